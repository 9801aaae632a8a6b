"""Objects under keys, in a local folder or in S3: one interface, the same guarantees.

All safety of Everfresh rests on one primitive, ``create``: write an object only if none stands there.
A folder does it with an exclusive hard link to a finished file; S3 with ``If-None-Match: *``. Everything
else is immutable once a record names it, so a reader needs no lock.

Keys are relative POSIX paths without ``.`` and ``..``; ``sub`` gives a store whose keys start deeper.
This is the only module that imports boto3.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from everfresh.tasks.errors import ConfigError, DigestMismatch, ObjectMissing, StoreError
from everfresh.tasks.records import Part

if TYPE_CHECKING:
    from botocore.client import BaseClient

CHUNK = 1 << 20
CONFLICT_TRIES = 8
CONFLICT_PAUSE = 0.05
"""Seconds before the second try; doubled for each further one."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One object of a listing."""

    key: str
    version: str
    """Changes when the object's bytes change: an ETag, or size and time of modification."""
    size: int
    modified: datetime


class Store(ABC):
    """Objects under keys."""

    @abstractmethod
    def get(self, key: str) -> bytes:
        """The object's bytes.

        Raises:
            ObjectMissing: there is none.
        """

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Write an object whole, replacing what stands there. For hints and attempts only."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Write an object whole only if none stands there; False if one does."""

    @abstractmethod
    def put_file(self, key: str, path: Path) -> None:
        """Write a local file as an object, replacing what stands there."""

    @abstractmethod
    def fetch(self, key: str, target: Path) -> None:
        """Copy an object to a local file."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether an object stands there."""

    @abstractmethod
    def list(self, prefix: str = "", after: str = "") -> Iterator[Listed]:
        """Objects whose key starts with the folder `prefix` and sorts after `after`, in order of keys."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object; none there is fine."""

    @abstractmethod
    def now(self) -> datetime:
        """The store's own clock, UTC."""

    @abstractmethod
    def sub(self, prefix: str) -> Store:
        """The same store with keys that start at `prefix`."""

    @abstractmethod
    def url(self, key: str) -> str:
        """Where a person finds the object."""

    def local(self, part: Part) -> Path:
        """A local file with the part's bytes, verified against its digest.

        Raises:
            DigestMismatch: the bytes are not what was recorded.
        """
        cached = cache_folder() / "objects" / part.sha256[:2] / part.sha256
        if not _is_whole(cached, part):
            cached.parent.mkdir(parents=True, exist_ok=True)
            partial = cached.with_name(f"{part.sha256}.{uuid.uuid4().hex}")
            try:
                self.fetch(part.key, partial)
                check_digest(partial, part, self.url(part.key))
                partial.replace(cached)
            finally:
                partial.unlink(missing_ok=True)
        return cached

    def read(self, part: Part) -> bytes:
        """The part's bytes, verified against its digest."""
        data = self.get(part.key)
        if (found := hashlib.sha256(data).hexdigest()) != part.sha256:
            raise DigestMismatch(_mismatch(self.url(part.key), part.sha256, found))
        return data

    def keep(self, key: str, data: bytes) -> Part:
        """Write bytes and return the part that a record names; the digest is verified after the write."""
        part = Part(key=key, sha256=hashlib.sha256(data).hexdigest(), size=len(data))
        self.put(key, data)
        self.read(part)
        return part

    def keep_file(self, key: str, path: Path) -> Part:
        """Write a local file and return its part; the digest is verified after the write."""
        part = Part(key=key, sha256=file_digest(path), size=path.stat().st_size)
        self.put_file(key, path)
        with tempfile.TemporaryDirectory(prefix="everfresh-") as folder:
            back = Path(folder) / "back"
            self.fetch(key, back)
            check_digest(back, part, self.url(key))
        return part


class _Conflict(StoreError):
    """Another conditional write to the same key was under way."""


class FolderStore(Store):
    """Objects as files under a folder of one machine, or of a shared disk that has hard links."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def _path(self, key: str) -> Path:
        return self.root / _clean(key)

    def get(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise ObjectMissing(f"{self.url(key)} does not exist.") from None
        except OSError as error:
            raise self._failed("read", key, error) from error

    def put(self, key: str, data: bytes) -> None:
        self._replace(key, data)

    def create(self, key: str, data: bytes) -> bool:
        if self._path(key).exists():
            return False
        with self._finished(key, data) as path:
            try:
                os.link(path, self._path(key))
            except FileExistsError:
                return False
            except OSError as error:
                raise self._failed("write", key, error) from error
        return True

    def put_file(self, key: str, path: Path) -> None:
        self._replace(key, path)

    def _replace(self, key: str, content: bytes | Path) -> None:
        with self._finished(key, content) as finished:
            try:
                finished.replace(self._path(key))
            except OSError as error:
                raise self._failed("write", key, error) from error

    def fetch(self, key: str, target: Path) -> None:
        try:
            with self._path(key).open("rb") as source, target.open("wb") as sink:
                while chunk := source.read(CHUNK):
                    sink.write(chunk)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise ObjectMissing(f"{self.url(key)} does not exist.") from None
        except OSError as error:
            raise self._failed("read", key, error) from error

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def list(self, prefix: str = "", after: str = "") -> Iterator[Listed]:
        start = self._path(prefix) if prefix else self.root
        try:
            yield from (item for item in self._walk(start) if item.key > after)
        except OSError as error:
            raise self._failed("list", prefix, error) from error

    def _walk(self, folder: Path) -> Iterator[Listed]:
        try:
            entries = [e for e in os.scandir(folder) if not e.name.startswith(".")]
        except (FileNotFoundError, NotADirectoryError):
            return
        # S3 sorts whole keys, in which a folder's name ends in "/".
        for entry in sorted(entries, key=lambda e: e.name + "/" if e.is_dir() else e.name):
            if entry.is_dir():
                yield from self._walk(Path(entry.path))
            elif entry.is_file():
                try:
                    stat = entry.stat()
                except FileNotFoundError:  # deleted meanwhile
                    continue
                yield Listed(
                    Path(entry.path).relative_to(self.root).as_posix(),
                    f"{stat.st_size}-{stat.st_mtime_ns}",
                    stat.st_size,
                    datetime.fromtimestamp(stat.st_mtime, UTC),
                )

    def delete(self, key: str) -> None:
        try:
            self._path(key).unlink(missing_ok=True)
        except NotADirectoryError:
            return
        except OSError as error:
            raise self._failed("delete", key, error) from error

    def now(self) -> datetime:
        return datetime.now(UTC)

    def sub(self, prefix: str) -> FolderStore:
        return FolderStore(self.root / _clean(prefix))

    def url(self, key: str) -> str:
        return str(self._path(key)) if key else str(self.root)

    def local(self, part: Part) -> Path:
        path = self._path(part.key)
        if not path.exists():
            raise ObjectMissing(f"{self.url(part.key)} does not exist, but a record names it.")
        check_digest(path, part, str(path))
        return path

    def _finished(self, key: str, content: bytes | Path) -> _TemporaryFile:
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return _TemporaryFile(path.parent, content)
        except OSError as error:
            raise self._failed("write", key, error) from error

    def _failed(self, verb: str, key: str, error: OSError) -> StoreError:
        return StoreError(
            f"store: cannot {verb} {self.url(key)} ({error.strerror or error}). "
            "Check that the folder exists, is writable by this user, knows hard links and that the disk is not full."
        )


class _TemporaryFile:
    """A finished, synced file beside its destination, gone at the end of the block."""

    def __init__(self, folder: Path, content: bytes | Path) -> None:
        self.path = folder / f".tmp-{uuid.uuid4().hex}"
        try:
            with self.path.open("xb") as sink:
                if isinstance(content, bytes):
                    sink.write(content)
                else:
                    with content.open("rb") as source:
                        while chunk := source.read(CHUNK):
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


class S3Store(Store):
    """Objects in an S3-compatible bucket. Endpoint, region and credentials come from boto3's own chain."""

    def __init__(self, bucket: str, prefix: str = "") -> None:
        self.bucket = bucket
        self.prefix = prefix

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{_clean(key)}" if self.prefix else _clean(key)

    def _call(self, operation: str, key: str, **arguments: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        arguments = {"Bucket": self.bucket, "Key": key, **arguments} if key else {"Bucket": self.bucket, **arguments}
        try:
            return getattr(_client(), operation)(**arguments)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in {"NoSuchKey", "404", "NotFound"}:
                raise ObjectMissing(f"s3://{self.bucket}/{key} does not exist.") from None
            if code in {"PreconditionFailed", "412"}:
                raise FileExistsError(key) from None
            if code in {"ConditionalRequestConflict", "409"}:
                raise _Conflict(
                    f"store: {operation} on s3://{self.bucket}/{key} met another writer again and again ({code})."
                ) from None
            raise StoreError(
                f"store: {operation} on s3://{self.bucket}/{key} was refused ({code}). "
                "Check the bucket's name, the credentials and their rights, and AWS_ENDPOINT_URL."
            ) from error
        except BotoCoreError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> StoreError:
        return StoreError(
            f"store: s3://{self.bucket} cannot be reached ({error}). Check the network, AWS_ENDPOINT_URL and the credentials."
        )

    def get(self, key: str) -> bytes:
        from botocore.exceptions import BotoCoreError

        try:
            body: bytes = self._call("get_object", self._key(key))["Body"].read()
        except BotoCoreError as error:
            raise self._unreachable(error) from error
        return body

    def put(self, key: str, data: bytes) -> None:
        self._call("put_object", self._key(key), Body=data)

    def create(self, key: str, data: bytes) -> bool:
        for attempt in range(CONFLICT_TRIES):
            try:
                self._call("put_object", self._key(key), Body=data, IfNoneMatch="*")
            except FileExistsError:
                return False
            except _Conflict:  # two wrote at once and this one was told to come back: it may still win
                if attempt + 1 == CONFLICT_TRIES:
                    raise
                time.sleep(CONFLICT_PAUSE * 2**attempt)
            else:
                break
        return True

    def put_file(self, key: str, path: Path) -> None:
        self._transfer("upload_file", str(path), self._key(key))

    def fetch(self, key: str, target: Path) -> None:
        if not self.exists(key):
            raise ObjectMissing(f"{self.url(key)} does not exist.")
        self._transfer("download_file", self._key(key), str(target))

    def _transfer(self, operation: str, first: str, second: str) -> None:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        order = (first, self.bucket, second) if operation == "upload_file" else (self.bucket, first, second)
        try:
            getattr(_client(), operation)(*order)
        except (Boto3Error, BotoCoreError, ClientError) as error:
            raise StoreError(
                f"store: {operation} of {first} failed ({error}). Check the network and the credentials."
            ) from error

    def exists(self, key: str) -> bool:
        try:
            self._call("head_object", self._key(key))
        except ObjectMissing:
            return False
        return True

    def list(self, prefix: str = "", after: str = "") -> Iterator[Listed]:
        root = f"{self.prefix}/" if self.prefix else ""
        start = f"{root}{_clean(prefix)}/" if prefix else root
        arguments: dict[str, Any] = {"Prefix": start}
        if after:
            arguments["StartAfter"] = root + after
        yield from sorted(self._pages(root, arguments), key=lambda item: item.key)  # not every server sorts whole keys

    def _pages(self, root: str, arguments: dict[str, Any]) -> Iterator[Listed]:
        while True:
            page = self._call("list_objects_v2", "", **arguments)
            for item in page.get("Contents", ()):
                key = item["Key"].removeprefix(root)
                if not any(part.startswith(".") for part in key.split("/")) and not key.endswith("/"):
                    yield Listed(key, item["ETag"].strip('"'), item["Size"], item["LastModified"].astimezone(UTC))
            if not page.get("IsTruncated"):
                return
            arguments["ContinuationToken"] = page["NextContinuationToken"]

    def delete(self, key: str) -> None:
        self._call("delete_object", self._key(key))

    def now(self) -> datetime:
        from email.utils import parsedate_to_datetime

        headers = self._call("list_objects_v2", "", MaxKeys=1)["ResponseMetadata"]["HTTPHeaders"]
        return parsedate_to_datetime(headers["date"]).astimezone(UTC) if "date" in headers else datetime.now(UTC)

    def sub(self, prefix: str) -> S3Store:
        return S3Store(self.bucket, self._key(prefix))

    def url(self, key: str) -> str:
        return f"s3://{self.bucket}/{self._key(key) if key else self.prefix}"


class OverlayStore(Store):
    """A store that reads what `below` has and writes to `above`, but for the folders in `shared`.

    A replay runs the same steps on it: it reads the live stream and windows, and what it makes lands
    under ``replays/<id>/``, out of the live alias's way.
    """

    def __init__(self, below: Store, above: Store, shared: tuple[str, ...]) -> None:
        self.below, self.above, self.shared = below, above, shared

    def _pick(self, key: str) -> Store:
        return self.below if key.split("/", 1)[0].removesuffix(".json") in self.shared else self.above

    def get(self, key: str) -> bytes:
        return self._pick(key).get(key)

    def put(self, key: str, data: bytes) -> None:
        self._pick(key).put(key, data)

    def create(self, key: str, data: bytes) -> bool:
        return self._pick(key).create(key, data)

    def put_file(self, key: str, path: Path) -> None:
        self._pick(key).put_file(key, path)

    def fetch(self, key: str, target: Path) -> None:
        self._pick(key).fetch(key, target)

    def exists(self, key: str) -> bool:
        return self._pick(key).exists(key)

    def list(self, prefix: str = "", after: str = "") -> Iterator[Listed]:
        return self._pick(prefix).list(prefix, after)

    def delete(self, key: str) -> None:
        self._pick(key).delete(key)

    def now(self) -> datetime:
        return self.below.now()

    def sub(self, prefix: str) -> Store:
        raise StoreError("a replay's store has no deeper view")

    def url(self, key: str) -> str:
        return self._pick(key).url(key)

    def local(self, part: Part) -> Path:
        return self._pick(part.key).local(part)


def open_store(uri: str) -> Store:
    """The store at a folder, ``file://`` or ``s3://bucket/prefix``; nothing is touched yet.

    Raises:
        ConfigError: the scheme is none of these.
    """
    scheme, separator, rest = uri.partition("://")
    bucket, _, prefix = rest.partition("/")
    if not separator:
        return FolderStore(Path(uri).expanduser())
    if scheme == "s3" and bucket:
        return S3Store(bucket, prefix.strip("/"))
    if scheme == "file" and rest.startswith("/"):
        return FolderStore(Path(rest))
    raise ConfigError(f"store must be a folder, file:///… or s3://bucket/prefix, got {uri!r}. Change the address.")


def pipeline_store(uri: str, name: str, replay: str = "") -> Store:
    """The store of one pipeline; with `replay`, what is made lands under ``replays/<id>/``."""
    live = open_store(uri).sub(name)
    if not replay:
        return live
    return OverlayStore(live, live.sub(f"replays/{replay}"), ("stream", "windows", "quarantine", "embeddings"))


@cache
def _client() -> BaseClient:
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        config=Config(
            retries={"mode": "standard", "max_attempts": 5},
            connect_timeout=10,
            read_timeout=60,
            max_pool_connections=16,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def cache_folder() -> Path:
    """Where objects of a remote store are kept locally by digest; ``EVERFRESH_CACHE`` moves it."""
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "everfresh"
    return Path(os.environ.get("EVERFRESH_CACHE", default))


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_digest(path: Path, part: Part, name: str) -> None:
    """Raise ``DigestMismatch`` unless the file has the part's bytes. A file that has not changed is hashed once."""
    stat = path.stat()
    if (found := _digest_at(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)) != part.sha256:
        raise DigestMismatch(_mismatch(name, part.sha256, found))


def _is_whole(path: Path, part: Part) -> bool:
    try:
        check_digest(path, part, str(path))
    except (FileNotFoundError, DigestMismatch):
        return False
    return True


@cache
def _digest_at(path: Path, _size: int, _modified: int, _inode: int) -> str:
    return file_digest(path)


def _mismatch(name: str, expected: str, found: str) -> str:
    return (
        f"{name} must have SHA-256 {expected[:16]}…, got {found[:16]}…: it was changed or damaged after it was written. "
        "Restore it from a copy, or roll back to a release that is whole."
    )


def _clean(key: str) -> str:
    path = PurePosixPath(key)
    if key in {"", "."} or path.is_absolute() or ".." in path.parts or "\x00" in key or str(path) != key:
        raise StoreError(f"store: a key must be a relative path without '.', '..' or empty parts, got {key!r}.")
    return key
