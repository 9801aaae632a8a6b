"""What every store does, and the digests that its objects are verified by."""

from __future__ import annotations

import errno
import hashlib
import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory, gettempdir
from typing import BinaryIO, TypeVar

from everfresh.tasks.errors import DigestMismatch, StoreError
from everfresh.tasks.records import Part

T = TypeVar("T")
CHUNK = 1 << 20
"""Bytes that are read at once."""
FULL = {errno.ENOSPC, errno.EDQUOT}
"""What a disk answers that takes no more."""
DAMAGED_TRIES = 3
"""Bytes that arrive damaged are sent so often before it is an error."""

_proven: set[object] = set()
"""Stores that have shown to this process that they create only what is absent."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One object of a listing."""

    key: str
    version: str
    """Changes when the object's bytes change: an ETag, or size and time of modification."""
    size: int
    modified: datetime


class Unfinished(Listed):
    """A write that never ended; no reader sees it."""


class HashingReader:
    """A file that is hashed as it is read, once and in order."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest, self._size = file, hashlib.sha256(), 0

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        data = self._file.read(size)
        self._digest.update(data)
        self._size += len(data)
        return data

    def part(self, key: str) -> Part:
        """What was read, as a part under `key`."""
        return Part(key=key, sha256=self._digest.hexdigest(), size=self._size)


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
        """Write an object whole only if none stands there; False if one does that has other bytes.

        The same bytes are no loss: a writer whose reply was lost finds its own. So what must tell two writers apart
        holds a fresh id.
        """

    @abstractmethod
    def put_file(self, key: str, path: Path) -> Part:
        """Write a local file as an object, replacing what stands there; returns what was read on the way."""

    def verify(self, part: Part) -> None:
        """Make sure, right after a write, that the store holds the part's bytes.

        Raises:
            DigestMismatch: it holds others.
        """
        self.prove(part)

    @abstractmethod
    def prove(self, part: Part) -> None:
        """Read all of the part's bytes in the store and compare them with its digest.

        Raises:
            DigestMismatch: they are others.
            ObjectMissing: there are none.
        """

    def fetch(self, key: str, target: Path) -> None:
        """Copy an object to a local file, whole as far as the store can tell.

        Raises:
            ObjectMissing: there is none.
        """
        self.download(key, target)

    @abstractmethod
    def download(self, key: str, target: Path) -> None:
        """Copy an object to a local file, for who checks its digest.

        Raises:
            ObjectMissing: there is none.
        """

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether an object stands there."""

    @abstractmethod
    def list(self, prefix: str = "", after: str = "") -> Iterator[Listed]:
        """Objects whose key starts with the folder `prefix` and sorts after `after`, in order of keys."""

    def folders(self) -> tuple[str, ...]:
        """Names of the folders at the top, in order; no more is read than need be."""
        return tuple(sorted({item.key.split("/")[0] for item in self.list() if "/" in item.key}))

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object; none there is fine."""

    @abstractmethod
    def unfinished(self) -> Iterator[Unfinished]:
        """Writes that were begun and neither ended nor given up: what a process leaves that is killed amid one."""

    @abstractmethod
    def discard(self, item: Unfinished) -> None:
        """Remove what an unfinished write has left."""

    @abstractmethod
    def now(self) -> datetime:
        """The store's own clock, UTC."""

    @abstractmethod
    def sub(self, prefix: str) -> Store:
        """The same store with keys that start at `prefix`."""

    @abstractmethod
    def url(self, key: str) -> str:
        """Where a person finds the object."""

    def prove_create(self) -> None:
        """Find out by trying, once a process, whether the store keeps its one promise; nothing is left behind.

        Raises:
            StoreError: it writes over an object that must be absent, does not give back what was written, or does not delete.
        """
        if self.identity in _proven:
            return
        key = f"probe-{uuid.uuid4().hex[:12]}"
        try:
            if not self.create(key, b"first") or self.create(key, b"second") or self.get(key) != b"first":
                raise StoreError(
                    f"store {self.url('')} must refuse to write over an object (If-None-Match: *), got an overwrite. "
                    "Use AWS S3 or a store that honours it: two runs could otherwise both make a champion."
                )
        except BaseException:
            with suppress(StoreError):  # what went wrong first is what to tell
                self.delete(key)
            raise
        self.delete(key)
        if self.exists(key):
            raise StoreError(f"store {self.url('')} must let objects be deleted, got one that stays. Allow s3:DeleteObject.")
        _proven.add(self.identity)

    @property
    def identity(self) -> object:
        """What two stores share that are the same place, spoken to in the same way."""
        return self.url("")

    def prove_checksum(self, key: str) -> str:
        """Find out whether damage on the way in is refused; says how it is found.

        Raises:
            StoreError: it would not be found.
        """
        self.keep(key, b"sum")
        return "each write is read back"

    def local(self, part: Part) -> Path:
        """A local file with the part's bytes, verified against its digest.

        Raises:
            DigestMismatch: the bytes are not what was recorded.
        """
        return cached(self, part, cache_folder() / "objects" / part.sha256[:2])

    def read(self, part: Part) -> bytes:
        """The part's bytes, verified against its digest.

        Raises:
            DigestMismatch: the bytes are not what was recorded.
        """

        def bring() -> bytes:
            data = self.get(part.key)
            if (found := hashlib.sha256(data).hexdigest()) != part.sha256:
                raise DigestMismatch(mismatch(self.url(part.key), part.sha256, found))
            return data

        return undamaged(bring)

    def keep(self, key: str, data: bytes) -> Part:
        """Write bytes and return the part that a record names, once the store is proven to hold it."""
        part = Part(key=key, sha256=hashlib.sha256(data).hexdigest(), size=len(data))

        def write() -> Part:
            self.put(key, data)
            self.verify(part)
            return part

        return undamaged(write)

    def keep_file(self, key: str, path: Path) -> Part:
        """Write a local file and return its part, once the store is proven to hold it."""

        def write() -> Part:
            part = self.put_file(key, path)
            self.verify(part)
            return part

        return undamaged(write)


def undamaged(transfer: Callable[[], T]) -> T:
    """What a transfer gives; bytes that were damaged on their way are sent again."""
    for _ in range(DAMAGED_TRIES - 1):
        with suppress(DigestMismatch):
            return transfer()
    return transfer()


def bring(store: Store, part: Part, path: Path) -> None:
    """Copy the part's bytes to a local file, verified.

    Raises:
        DigestMismatch: the bytes are not what was recorded.
        ObjectMissing: there are none.
    """

    def copy() -> None:
        store.download(part.key, path)
        check_digest(path, part, store.url(part.key))

    undamaged(copy)


def cached(store: Store, part: Part, folder: Path) -> Path:
    """A file in `folder` with the part's bytes, under its digest; brought there, whole and verified, if it is not yet.

    Raises:
        DigestMismatch: the bytes are not what was recorded.
    """
    path = folder / part.sha256
    if not _is_whole(path, part):
        make_cache(folder)
        partial = folder / f"{part.sha256}.{uuid.uuid4().hex}"
        try:
            bring(store, part, partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return path


def cache_folder() -> Path:
    """Where objects of a remote store are kept locally by digest; ``EVERFRESH_CACHE`` moves it."""
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "everfresh"
    return Path(os.environ.get("EVERFRESH_CACHE", default))


def make_cache(folder: Path) -> None:
    """Make a folder of the cache.

    Raises:
        StoreError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"store: copies of what is read must have a folder that can be written, got {folder} ({error.strerror or error}). "
            "Set EVERFRESH_CACHE to one."
        ) from error


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder, gone at the end of the block.

    Raises:
        StoreError: the disk that it stands on is full, or it cannot be made.
    """
    try:
        with TemporaryDirectory(prefix="everfresh-") as folder:
            yield Path(folder)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise StoreError(
            f"temporary files must have room, got none in {gettempdir()} ({error.strerror}). Free some there, or set TMPDIR to "
            "a folder on another disk; then run again: it goes on where it was."
        ) from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_digest(path: Path, part: Part, name: str) -> None:
    """Raise ``DigestMismatch`` unless the file has the part's bytes. A file that has not changed is hashed once."""
    stat = path.stat()
    if (found := _digest_at(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)) != part.sha256:
        raise DigestMismatch(mismatch(name, part.sha256, found))


def _is_whole(path: Path, part: Part) -> bool:
    try:
        check_digest(path, part, str(path))
    except (FileNotFoundError, DigestMismatch):
        return False
    return True


@cache
def _digest_at(path: Path, _size: int, _modified: int, _inode: int) -> str:
    return file_digest(path)


def mismatch(name: str, expected: str, found: str) -> str:
    """The words for bytes that are others than recorded."""
    return (
        f"{name} must have SHA-256 {expected[:16]}…, got {found[:16]}…: it was changed or damaged after it was written. "
        "Restore it from a copy, or roll back to a release that is whole."
    )


def clean(key: str) -> str:
    """The key, if it is one."""
    path = PurePosixPath(key)
    if key in {"", "."} or path.is_absolute() or ".." in path.parts or "\x00" in key or str(path) != key:
        raise StoreError(f"store: a key must be a relative path without '.', '..' or empty parts, got {key!r}.")
    return key
