"""Ingest: what is new in the source becomes one frozen window.

Each new file is read once, decoded, measured, hashed and put into a group; one that cannot be used goes into
quarantine with the reason, and so do identical pictures whose labels differ. Then the view is written, and creating
the next stream entry commits the window and the source cursor together: a crash before it loses nothing, a crash
after it repeats nothing. What is new is told by key and version, never by a clock: one that goes back, or files
dated 1970 or 2100, at most change the order in which files are taken.

A folder's links are followed, also to files outside of it: many inboxes are made of links. Of an archive only plain
files are read, in place and whatever path they claim: nothing is ever unpacked.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

from everfresh.tasks.config import ImageFolder, ParentFolder, PipelineConfig, Sidecar, TarShards
from everfresh.tasks.errors import AccessRefused, AccountRefused, DataError, ObjectMissing, SourceError, StoreError
from everfresh.tasks.images import SUFFIXES, examine
from everfresh.tasks.labels import Annotation, Unusable, name_in, read_table
from everfresh.tasks.ledger import stream
from everfresh.tasks.progress import bar
from everfresh.tasks.records import Cursor, Split, StreamEntry, Window, digest_of
from everfresh.tasks.store import FolderStore, Listed, Store, cache_folder, open_store, scratch
from everfresh.tasks.store.base import CHUNK, clean, make_cache
from everfresh.tasks.views import ViewWriter, split_of

log = logging.getLogger(__name__)

MAX_BYTES = 256 << 20
"""A file larger than this is not read into memory but set aside."""


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


def ingest(store: Store, config: PipelineConfig) -> StreamEntry | None:
    """Turn what is new in the source into the next window.

    Returns:
        The stream entry of the new window, or None if fewer than ``window.min_samples`` new files can be read.

    Raises:
        SourceError: the source, its label table or all of what is new cannot be read.
    """
    log_of_windows = stream(store)
    head = log_of_windows.last()
    cursor = head.cursor_after if head else Cursor()
    source = Source(config, after=_lower_bound(config, cursor))
    if source.listing == cursor.listing:
        return None
    seen = _seen(store, cursor)
    waiting = [f for f in source.files(seen) if (f.key, f.version) not in seen]
    if len(waiting) < config.window.min_samples:
        return None
    annotations = source.annotations()
    with scratch() as folder, ViewWriter(folder) as writer:
        readable = (f for f in _ordered(waiting, config) if _take(writer, source, f, annotations, config))
        most = config.window.max_samples
        taken = list(bar(islice(readable, most), "ingest", total=min(most, len(waiting))))
        if not taken:
            raise SourceError(
                f"source: new files must be readable, got {len(waiting)} of which none is, {waiting[0].key} among them. "
                "Grant the right to read them, or remove them."
            )
        if len(taken) < config.window.min_samples:
            return None
        if isinstance(config.source.labels, Sidecar) and not any(f.key in annotations for f in taken):
            log.warning(
                "none of %d new files has a row in %s: %r has none; the first row is for %r. Keys are relative to the source",
                len(taken), config.source.labels.path, taken[0].key, next(iter(annotations), "")[:200],
            )  # fmt: skip
        if alike := writer.part_crowds(partial(_split, config=config)):
            log.warning("%d pictures look alike, as a fixed camera's do: only identical ones share a split", alike)
        window = writer.commit(store, config.model.classes)
        seen.update((f.key, f.version) for f in taken)
        left = {f.archive_key for f in set(waiting) - set(taken)}  # an archive of which nothing is left is not opened again
        seen.update((f"{f.archive_key}/", f.archive_version) for f in taken if f.archive_key and f.archive_key not in left)
        complete = len(taken) == len(waiting)
        entry = StreamEntry(
            seq=(head.seq if head else 0) + 1,
            view=window.view,
            previous=head.view if head else None,
            cursor_after=_cursor(store, config, window.view, seen, source.listing if complete else "", folder),
            committed_at=store.now(),
        )
    if log_of_windows.append(entry.seq, entry):
        log.info("window %d: %d samples, %d in quarantine", entry.seq, window.samples, window.quarantined)
        return entry
    log.info("window %d was committed by another run", entry.seq)
    return log_of_windows.entry(entry.seq)


def freeze(store: Store, config: PipelineConfig, folder: str) -> Window:
    """Make one view of a labelled folder outside the stream: samples that an adopted model never learnt from.

    Every sample is hold-out; labels are the names of the parent folders.

    Raises:
        SourceError: the folder cannot be listed.
    """
    window = config.window.model_copy(update={"holdout_fraction": 1.0})
    source_config = ImageFolder(path=folder, labels=ParentFolder())
    config = config.model_copy(update={"source": source_config, "window": window})
    source = Source(config)
    with scratch() as temporary, ViewWriter(temporary) as writer:
        for file in bar(list(source.files(set())), "reference"):
            _take(writer, source, file, {}, config)
        writer.part_crowds(partial(_split, config=config))
        return writer.commit(store, config.model.classes)


def _take(
    writer: ViewWriter, source: Source, file: SourceFile, annotations: Mapping[str, Annotation], config: PipelineConfig
) -> bool:
    """Take one file in, or set it aside; False if the source refuses it: then it waits, and the others go on."""
    try:
        data = source.read(file)
    except ObjectMissing:
        writer.reject(file.key, "vanished between listing and reading", b"")
        return True
    except DataError as error:
        writer.reject(file.key, str(error), b"")
        return True
    except AccessRefused as error:
        if isinstance(error, AccountRefused) or (isinstance(config.source, ImageFolder) and config.source.ordered):
            raise  # the others fare no better, or later keys would leave it behind for good
        log.warning("%s waits until it can be read: %s", file.key, error)
        return False
    try:
        picture = examine(data)
        annotation = annotation_of(file, annotations, config)
    except DataError as error:
        writer.reject(file.key, str(error), data)
        return True
    writer.add(
        data,
        key=file.key,
        digest=picture.digest,
        group=picture.group,
        label=annotation.label,
        split=_split(picture.group, config),
        timestamp=annotation.timestamp,
        width=picture.width,
        height=picture.height,
        brightness=picture.brightness,
        contrast=picture.contrast,
        sharpness=picture.sharpness,
        colourfulness=picture.colourfulness,
        slices=json.dumps(dict(annotation.slices), sort_keys=True),
    )
    return True


def annotation_of(file: SourceFile, annotations: Mapping[str, Annotation], config: PipelineConfig) -> Annotation:
    """What is known of a file, from the folder it stands in or from its row in the label table.

    Raises:
        DataError: the folder's name is no label, or the row cannot be used.
    """
    if isinstance(config.source.labels, ParentFolder):
        return Annotation(label=name_in(_parent(file.key.removeprefix(f"{file.archive_key}/"))))
    annotation = annotations.get(file.key, Annotation())
    if isinstance(annotation, Unusable):
        raise DataError(annotation.reason)
    return annotation


def _split(group: str, config: PipelineConfig) -> Split:
    window = config.window
    return split_of(group, window.seed, window.holdout_fraction, window.tune_fraction)


def _parent(key: str) -> str | None:
    folder = key.rpartition("/")[0].rpartition("/")[2]
    return None if folder in {"", ".", ".."} else folder  # archives are often made of "."


def _ordered(files: list[SourceFile], config: PipelineConfig) -> list[SourceFile]:
    match config.window.order:
        case "modified":
            return sorted(files, key=lambda f: (f.modified, f.key))
        case "shuffled":
            return sorted(files, key=lambda f: (f.place, f.archive_key, digest_of(config.window.seed, f.key)))
        case "key":
            return sorted(files, key=lambda f: (f.place, f.key))


def _lower_bound(config: PipelineConfig, cursor: Cursor) -> str:
    return cursor.last_key if isinstance(config.source, ImageFolder) and config.source.ordered else ""


def _seen(store: Store, cursor: Cursor) -> set[tuple[str, str]]:
    if cursor.index is None:
        return set()
    import pyarrow.parquet as pq

    table = pq.read_table(store.local(cursor.index))
    return set(zip(table["key"].to_pylist(), table["version"].to_pylist(), strict=True))


def _cursor(store: Store, config: PipelineConfig, view: str, seen: set[tuple[str, str]], listing: str, folder: Path) -> Cursor:
    last_key = max(key for key, _ in seen if not key.endswith("/"))
    if isinstance(config.source, ImageFolder) and config.source.ordered:
        return Cursor(last_key=last_key, listing=listing)
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = sorted(seen)
    path = folder / "cursor.parquet"
    pq.write_table(pa.table({"key": [k for k, _ in rows], "version": [v for _, v in rows]}), path)
    name = digest_of(rows)
    index = store.keep_file(f"windows/{view}/cursor-{name}.parquet", path)
    return Cursor(index=index, last_key=last_key, listing=listing)


class Source:
    """The files of a source, listed once, and their labels."""

    def __init__(self, config: PipelineConfig, after: str = "") -> None:
        self.config, self._s3 = config.source, config.s3
        self._after = after
        paths = (self.config.path,) if isinstance(self.config, ImageFolder) else self.config.paths
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

    def _list(self, path: str) -> None:
        place = open_store(path, self._s3)
        wanted = ".tar" if isinstance(self.config, TarShards) else SUFFIXES
        try:
            if isinstance(place, FolderStore) and not place.root.is_dir():
                if not place.root.is_file():
                    raise SourceError(f"source.path must be a folder that exists, got {path}. Create it or correct the path.")
                name, place = place.root.name, FolderStore(place.root.parent)
                objects = [item for item in place.list() if item.key == name]
            elif path.startswith("s3://") and path.endswith(".tar"):
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
        if not _is_path(item.key):
            raise SourceError(
                f"source.paths: the key of an archive must be a path without empty parts, '.' or '..', got {item.key!r}. "
                "Put it under another one."
            )
        archive = self._local(place, item)
        try:
            with tarfile.open(archive, "r:") as tar:  # uncompressed: members are read in place
                members = {m.name: m for m in tar if not m.isdir() and m.name.lower().endswith(SUFFIXES)}  # the last one counts
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

    def _local(self, place: int, item: Listed) -> Path:
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
            if not _is_path(file.key):
                raise DataError("has a key with empty parts, '.' or '..', which is no path; put it under another one")
            return self._stores[file.place].get(file.key)
        if not file.member.isreg() or file.member.issparse():
            raise DataError("is a link, a device or a sparse file in its archive; only plain files are read")
        with file.archive.open("rb") as archive:
            archive.seek(file.member.offset_data)
            return archive.read(file.size)

    def annotations(self) -> dict[str, Annotation]:
        """Labels, times and slices from the sidecar, by key; empty without one.

        Raises:
            SourceError: the table is missing, unreadable, or lacks a column.
        """
        if not isinstance(self.config.labels, Sidecar):
            return {}
        return read_table(self._stores[0], self.config.labels, self.config.timezone)


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


def _is_path(key: str) -> bool:
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
