"""A store in a folder."""

from __future__ import annotations

import errno
import io
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from everfresh.tasks.errors import AccessRefused, DigestMismatch, ObjectMissing, StoreError
from everfresh.tasks.records import Part
from everfresh.tasks.store.base import (
    CHUNK,
    HashingReader,
    Listed,
    Store,
    Unfinished,
    check_digest,
    clean,
    file_digest,
    mismatch,
)

TEMPORARY = ".tmp-"
NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}
"""What disks answer that cannot sync a folder."""
REFUSED = {errno.EROFS, errno.ELOOP, errno.ENAMETOOLONG}
"""Troubles of one file, beside a lack of rights; others may pass."""


class Readable(Protocol):
    """What bytes can be read from, in order."""

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes; none at the end."""


class FolderStore(Store):
    """Objects as files under a folder of one machine, or of a shared disk that has hard links."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def _path(self, key: str) -> Path:
        return self.root / clean(key)

    @contextmanager
    def _speaking(self, verb: str, key: str) -> Iterator[None]:
        """Turn the system's errors into ours."""
        try:
            yield
        except OSError as error:
            if verb == "read" and isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
                raise ObjectMissing(f"{self.url(key)} does not exist.") from None
            raise self._failed(verb, key, error) from error

    def get(self, key: str) -> bytes:
        with self._speaking("read", key):
            return self._path(key).read_bytes()

    def put(self, key: str, data: bytes) -> None:
        self._replace(key, io.BytesIO(data))

    def create(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        with self._speaking("write", key):
            if path.exists():
                return path.read_bytes() == data
        with self._finished(key, io.BytesIO(data)) as finished, self._speaking("write", key):
            try:
                os.link(finished, path)
            except FileExistsError:
                return path.read_bytes() == data
            _sync(path.parent)
        return True

    def put_file(self, key: str, path: Path) -> Part:
        with path.open("rb") as file:
            reader = HashingReader(file)
            self._replace(key, reader)
        return reader.part(key)

    def prove(self, part: Part) -> None:
        with self._speaking("read", part.key):
            found = file_digest(self._path(part.key))
        if found != part.sha256:
            raise DigestMismatch(mismatch(self.url(part.key), part.sha256, found))

    def _replace(self, key: str, content: Readable) -> None:
        with self._finished(key, content) as finished, self._speaking("write", key):
            finished.replace(self._path(key))
            _sync(finished.parent)

    def download(self, key: str, target: Path) -> None:
        with self._speaking("read", key), self._path(key).open("rb") as source, target.open("wb") as sink:
            while chunk := source.read(CHUNK):
                sink.write(chunk)

    def exists(self, key: str) -> bool:
        with self._speaking("look at", key):
            return self._path(key).is_file()

    def list(self, prefix: str = "", after: str = "") -> Iterator[Listed]:
        start = self._path(prefix) if prefix else self.root
        with self._speaking("list", prefix):
            within = f"{clean(prefix)}/" if prefix else ""
            yield from (item for item in self._walk(str(start), within, (os.path.realpath(start),)) if item.key > after)

    def folders(self) -> tuple[str, ...]:
        with self._speaking("list", ""):
            if not self.root.is_dir():
                return ()
            folders = [entry.name for entry in os.scandir(self.root) if entry.is_dir() and not entry.name.startswith(".")]
        return tuple(sorted(folders))

    def _walk(self, folder: str, within: str, inside: tuple[str, ...]) -> Iterator[Listed]:
        """Files under a folder, links followed; a link to a folder that it stands in, `inside`, would never end.

        Keys grow with the way down, `within`: to make each from a path of its own was three quarters of an idle tick.
        """
        try:
            entries = [e for e in os.scandir(folder) if not e.name.startswith(".") and not _leads_to_itself(e)]
        except (FileNotFoundError, NotADirectoryError):
            return
        # S3 sorts whole keys, in which a folder's name ends in "/".
        for entry in sorted(entries, key=lambda e: e.name + "/" if e.is_dir() else e.name):
            if entry.is_dir():
                real = os.path.realpath(entry.path) if entry.is_symlink() else f"{inside[-1].rstrip('/')}/{entry.name}"
                if real not in inside:
                    yield from self._walk(entry.path, f"{within}{entry.name}/", (*inside, real))
            elif entry.is_file():
                try:
                    stat = entry.stat()
                except FileNotFoundError:  # deleted meanwhile
                    continue
                version = f"{stat.st_size}-{stat.st_mtime_ns}"
                yield Listed(within + entry.name, version, stat.st_size, _moment(stat.st_mtime))

    def delete(self, key: str) -> None:
        with self._speaking("delete", key), suppress(NotADirectoryError):
            self._path(key).unlink(missing_ok=True)

    def unfinished(self) -> Iterator[Unfinished]:
        for path in sorted(self.root.rglob(f"{TEMPORARY}*")):
            with suppress(FileNotFoundError):  # finished meanwhile
                if not path.is_file():
                    continue
                stat = path.stat()
                began = datetime.fromtimestamp(stat.st_mtime, UTC)
                yield Unfinished(path.relative_to(self.root).as_posix(), "", stat.st_size, began)

    def discard(self, item: Unfinished) -> None:
        self.delete(item.key)

    def now(self) -> datetime:
        return datetime.now(UTC)

    def sub(self, prefix: str) -> FolderStore:
        return FolderStore(self.root / clean(prefix))

    def url(self, key: str) -> str:
        return str(self._path(key)) if key else str(self.root)

    def local(self, part: Part) -> Path:
        path = self._path(part.key)
        with self._speaking("read", part.key):
            check_digest(path, part, str(path))
        return path

    def _finished(self, key: str, content: Readable) -> _TemporaryFile:
        path = self._path(key)
        with self._speaking("write", key):
            _make(path.parent)
            return _TemporaryFile(path.parent, content)

    def _failed(self, verb: str, key: str, error: OSError) -> StoreError:
        refused = isinstance(error, PermissionError) or error.errno in REFUSED
        return (AccessRefused if refused else StoreError)(
            f"store: cannot {verb} {self.url(key)} ({error.strerror or error}). "
            "Check that the folder exists, is writable by this user, knows hard links and that the disk is not full."
        )


def _leads_to_itself(entry: os.DirEntry[str]) -> bool:
    try:
        entry.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return True
    return False


def _moment(seconds: float) -> datetime:
    """A time of modification; a file system holds years that no calendar has."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError):
        return datetime.fromtimestamp(0, UTC)


def _make(folder: Path) -> None:
    """Make a folder and those above it, each of them to survive a loss of power as what stands in it does."""
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)


def _sync(folder: Path) -> None:
    """Let a name that was just made survive a loss of power, not only a death of the process."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
    finally:
        os.close(handle)


class _TemporaryFile:
    """A finished, synced file beside its destination, gone at the end of the block."""

    def __init__(self, folder: Path, content: Readable) -> None:
        self.path = folder / f"{TEMPORARY}{uuid.uuid4().hex}"
        try:
            with self.path.open("xb") as sink:
                while chunk := content.read(CHUNK):
                    sink.write(chunk)
                sink.flush()
                os.fsync(sink.fileno())
        except BaseException:
            self.path.unlink(missing_ok=True)
            raise

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.path.unlink(missing_ok=True)
