"""What stands in a source: files in a folder or under a prefix, members of archives, tables; listed once."""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from everfresh.tasks.config import ImageFolder, LoggedPredictions, PipelineConfig, Sidecar, TableRows, TarShards
from everfresh.tasks.errors import DataError, SourceError, StoreError
from everfresh.tasks.images import SUFFIXES
from everfresh.tasks.labels import Annotation, read_table
from everfresh.tasks.records import digest_of
from everfresh.tasks.store import FolderStore, Listed, Store, cache_folder, open_store
from everfresh.tasks.store.base import CHUNK, clean, make_cache
from everfresh.tasks.targets import Targets

MAX_BYTES = 256 << 20
"""A file larger than this is not read into memory but set aside."""
TABLES = (".parquet", ".csv")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of the source, inside a folder, a prefix or an archive."""

    key: str
    """Relative to the source; for a member of an archive `archive.tar/member`."""
    version: str
    size: int
    modified: float
    place: int
    """Which of the source's paths it stands in."""
    archive_key: str = ""
    """Key of the archive that holds it."""
    archive_version: str = ""
    member: tarfile.TarInfo | None = field(default=None, compare=False)
    archive: Path | None = None


class Source:
    """The files of a source, listed once, and their labels."""

    def __init__(self, config: PipelineConfig, after: str = "") -> None:
        self.config, self._s3, self.targets = config.source, config.s3, Targets.wanted(config.model)
        self._after = after
        paths = (self.config.path,) if isinstance(self.config, ImageFolder | LoggedPredictions) else self.config.paths
        self._stores: list[Store] = []
        self._objects: list[list[Listed]] = []
        for path in paths:
            self._list(path)
        digest = hashlib.sha256()
        known: set[str] = set()
        for objects in self._objects:
            for item in objects:
                _check_name(item.key)
                if item.key in known:
                    raise SourceError(f"source.paths: names must differ between the paths, got {item.key} twice. Rename one.")
                known.add(item.key)
                digest.update(f"{item.key}\0{item.version}\0".encode())
        self.listing = digest.hexdigest()
        """Digest of all keys and versions."""
        self.holds_back = False
        """Whether something that is listed is not due yet: then an equal listing may have something new later."""

    def _list(self, path: str) -> None:
        place = open_store(path, self._s3)
        wanted = {"folder": SUFFIXES, "shards": (".tar",), "rows": TABLES, "predictions": (".tar", ".jsonl")}[self.config.kind]
        try:
            if isinstance(place, FolderStore) and not place.root.is_dir():
                if not place.root.is_file():
                    raise SourceError(f"source.path must be a folder that exists, got {path}. Create it or correct the path.")
                name, place = place.root.name, FolderStore(place.root.parent)
                objects = [item for item in place.list() if item.key == name]
            elif path.startswith("s3://") and self.config.kind in {"shards", "rows"} and path.endswith(wanted):
                folder, _, name = path.rpartition("/")
                place = open_store(folder, self._s3)
                objects = [item for item in place.list() if item.key == name]
            else:
                objects = [item for item in place.list(after=self._after) if item.key.lower().endswith(wanted)]
        except StoreError as error:
            raise SourceError(f"source.path {path} cannot be listed: {error}") from error
        sidecar = self.config.labels.path if isinstance(self.config.labels, Sidecar) else None
        self._stores.append(place)
        self._objects.append([item for item in objects if item.key != sidecar])

    @property
    def listed(self) -> list[tuple[int, Listed]]:
        """All objects, each with the number of the path that it stands in."""
        return [(place, item) for place, objects in enumerate(self._objects) for item in objects]

    def files(self, seen: set[tuple[str, str]]) -> Iterator[SourceFile]:
        """Every file; an archive whose every member was seen is not opened."""
        for place, objects in enumerate(self._objects):
            for item in objects:
                if isinstance(self.config, TarShards):
                    if (f"{item.key}/", item.version) in seen:
                        continue
                    yield from self._members(place, item)
                else:
                    yield SourceFile(item.key, item.version, item.size, item.modified.timestamp(), place)

    def _members(self, place: int, item: Listed) -> Iterator[SourceFile]:
        if not is_path(item.key):
            raise SourceError(
                f"source.paths: the key of an archive must be a path without empty parts, '.' or '..', got {item.key!r}. "
                "Put it under another one."
            )
        archive = self.local(place, item)
        try:
            with tarfile.open(archive, "r:") as tar:  # uncompressed: members are read in place
                members = {m.name: m for m in tar if not m.isdir() and self._is_sample(m.name)}  # the last one counts
                _check_end(tar)
        except (tarfile.TarError, OSError) as error:
            raise SourceError(
                f"source.paths: {item.key} is not a readable, uncompressed tar archive ({error}). Write it again."
            ) from error
        for name, member in members.items():
            key = f"{item.key}/{name}"
            _check_name(key)
            version = f"{member.size}-{member.mtime}-{member.offset_data}"  # an archive that grows keeps its old members
            yield SourceFile(key, version, member.size, member.mtime, place, item.key, item.version, member, archive)

    def _is_sample(self, name: str) -> bool:
        """Whether a member of an archive is one, by its name."""
        return name.lower().endswith(SUFFIXES)

    def local(self, place: int, item: Listed) -> Path:
        """The object as a local file: where it stands, or fetched once."""
        store = self._stores[place]
        if isinstance(store, FolderStore):
            return store.root / item.key
        cached = cache_folder() / "sources" / digest_of(store.url(item.key), item.version)
        if not cached.exists():
            make_cache(cached.parent)
            with tempfile.TemporaryDirectory(dir=cached.parent) as folder:
                store.fetch(item.key, Path(folder) / "archive")
                (Path(folder) / "archive").replace(cached)
        return cached

    def read(self, file: SourceFile) -> bytes:
        """The file's bytes.

        Raises:
            DataError: it is none that can be read: too large, a link or a device in an archive, a key that is no path.
        """
        if file.size > MAX_BYTES:
            raise DataError(f"is {file.size:,} bytes, more than {MAX_BYTES:,}")
        if file.member is None or file.archive is None:
            if not is_path(file.key):
                raise DataError("has a key with empty parts, '.' or '..', which is no path; put it under another one")
            return self._stores[file.place].get(file.key)
        if not file.member.isreg() or file.member.issparse():
            raise DataError("is a link, a device or a sparse file in its archive; only plain files are read")
        with file.archive.open("rb") as archive:
            archive.seek(file.member.offset_data)
            return archive.read(file.size)

    def seen_after(self, seen: set[tuple[str, str]]) -> set[tuple[str, str]]:
        """What of these keys and versions must be kept to know what was taken."""
        return seen

    def annotations(self) -> dict[str, Annotation]:
        """Labels, times and slices from the sidecar, by key; empty without one.

        Raises:
            SourceError: the table is missing, unreadable, or lacks a column.
        """
        if isinstance(self.config, TableRows) or not isinstance(self.config.labels, Sidecar):
            return {}
        return read_table(self._stores[0], self.config.labels, self.config.timezone, self.targets)


def _check_end(tar: tarfile.TarFile) -> None:
    """A damaged header or a hole of zeros in the middle would pass for the end, and what follows would be lost.

    So behind the end of an archive there may be nothing but zeros.
    """
    file, place = tar.fileobj, tar.offset
    if file is None:
        return
    file.seek(place)
    while chunk := file.read(CHUNK):
        if rest := chunk.lstrip(b"\0"):
            place += len(chunk) - len(rest)
            if place == tar.offset:
                raise tarfile.ReadError(f"damaged at byte {place:,}")
            raise tarfile.ReadError(f"damaged: it ends at byte {tar.offset:,} and goes on at byte {place:,}")
        place += len(chunk)


def is_path(key: str) -> bool:
    """Whether a store has a place for the key; S3 lists others too."""
    try:
        clean(key)
    except StoreError:
        return False
    return True


def _check_name(key: str) -> None:
    try:
        key.encode()
    except UnicodeEncodeError:
        raise SourceError(f"source: the name of a file must be UTF-8, got {key!r}. Rename it.") from None
