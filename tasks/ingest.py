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
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everfresh.tasks.config import ImageFolder, ParentFolder, PipelineConfig, Sidecar, TableRows
from everfresh.tasks.errors import AccessRefused, AccountRefused, DataError, ObjectMissing, SourceError
from everfresh.tasks.images import examine
from everfresh.tasks.labels import Annotation, Unusable, name_in
from everfresh.tasks.ledger import stream
from everfresh.tasks.logged import open_source
from everfresh.tasks.progress import bar
from everfresh.tasks.records import Cursor, Split, StreamEntry, Window, digest_of
from everfresh.tasks.sources import Source, SourceFile
from everfresh.tasks.store import Store, scratch
from everfresh.tasks.targets import Targets
from everfresh.tasks.vectors import as_kept
from everfresh.tasks.views import ViewWriter, split_of

if TYPE_CHECKING:
    from everfresh.tasks.rows import Rows, TableFile, Tables

log = logging.getLogger(__name__)


def ingest(store: Store, config: PipelineConfig) -> StreamEntry | None:
    """Turn what is new in the source into the next window.

    Returns:
        The stream entry of the new window, or None if fewer than ``window.min_samples`` new files can be read.

    Raises:
        SourceError: the source, its label table or all of what is new cannot be read.
    """
    head = stream(store).last()
    cursor = head.cursor_after if head else Cursor()
    if isinstance(config.source, TableRows):
        return _ingest_rows(store, config, head, cursor)
    source = open_source(config, after=_lower_bound(config, cursor))
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
        rows = bool(config.model.features)
        alike = writer.part_crowds(partial(_split, config=config), same=rows)
        if alike and rows:
            log.warning("%d rows equal many others: they are taken for samples of their own, and share no split", alike)
        elif alike:
            log.warning("%d pictures look alike, as a fixed camera's do: only identical ones share a split", alike)
        window = writer.commit(store, Targets.wanted(config.model), noisy=rows)
        seen.update((f.key, f.version) for f in taken)
        left = {f.archive_key for f in set(waiting) - set(taken)}  # an archive of which nothing is left is not opened again
        seen.update((f"{f.archive_key}/", f.archive_version) for f in taken if f.archive_key and f.archive_key not in left)
        listing = source.listing if len(taken) == len(waiting) and not source.holds_back else ""
        return _append(store, head, window, _cursor(store, config, window.view, source.seen_after(seen), listing, folder))


def _ingest_rows(store: Store, config: PipelineConfig, head: StreamEntry | None, cursor: Cursor) -> StreamEntry | None:
    """The same of a source of rows."""
    from everfresh.tasks.rows import Tables, seen_after

    tables = Tables(config)
    if tables.listing == cursor.listing:
        return None
    seen = _seen(store, cursor)
    waiting = tables.waiting(seen)
    left = sum(len(rows) for _, rows in waiting)
    if not left or left < config.window.min_samples:
        return None
    chosen = tables.chosen(waiting, config.window.max_samples)
    with scratch() as folder, ViewWriter(folder) as writer:
        _take_rows(writer, tables, chosen, config)
        window = writer.commit(store, Targets.wanted(config.model), noisy=True)
        listing = tables.listing if sum(len(rows) for _, rows in chosen) == left else ""
        seen = seen_after(seen, waiting, chosen)
        return _append(store, head, window, _cursor(store, config, window.view, seen, listing, folder))


def _take_rows(writer: ViewWriter, tables: Tables, chosen: list[tuple[TableFile, Rows]], config: PipelineConfig) -> None:
    """Take rows in, or set them aside."""
    rows = (row for file, places in chosen for row in tables.read(file, places))
    for row in bar(rows, "ingest", total=sum(len(places) for _, places in chosen)):
        if isinstance(row.annotation, Unusable):
            writer.reject(row.key, row.annotation.reason, row.data)
            continue
        writer.add(
            row.data,
            suffix=".json",
            key=row.key,
            digest=hashlib.sha256(row.data).hexdigest(),
            group=row.group,
            label=row.annotation.label,
            split=_split(row.group, config),
            timestamp=row.annotation.timestamp,
            slices=json.dumps(dict(row.annotation.slices), sort_keys=True),
        )
    if other := tables.other_values:
        most = ", ".join(f"{value} ({n})" for value, n in other.most_common(5))
        log.warning("%d values are none of the categories that model.features declares: %s", other.total(), most)


def _append(store: Store, head: StreamEntry | None, window: Window, cursor: Cursor) -> StreamEntry | None:
    """Commit a window and the cursor; what another run committed meanwhile if it was first."""
    log_of_windows = stream(store)
    entry = StreamEntry(
        seq=(head.seq if head else 0) + 1,
        view=window.view,
        previous=head.view if head else None,
        cursor_after=cursor,
        committed_at=store.now(),
    )
    if log_of_windows.append(entry.seq, entry):
        log.info("window %d: %d samples, %d in quarantine", entry.seq, window.samples, window.quarantined)
        return entry
    log.info("window %d was committed by another run", entry.seq)
    return log_of_windows.entry(entry.seq)


def freeze(store: Store, config: PipelineConfig, folder: str) -> Window:
    """Make one view of a labelled folder outside the stream: samples that an adopted model never learnt from.

    Every sample is hold-out; labels are the names of the parent folders, or stand in the rows of a table. Those that no folder
    can be named by, sets and values, stand in a table beside the pictures wherever the pipeline's own do.

    Raises:
        SourceError: the folder cannot be listed.
    """
    window = config.window.model_copy(update={"holdout_fraction": 1.0})
    if config.model.features:
        rows = config.source if isinstance(config.source, TableRows) else TableRows(paths=(folder,), label_column="label")
        return _freeze_rows(store, config.model_copy(update={"window": window}), rows, folder)
    beside = config.source.labels if config.model.task != "single_label" else None
    source_config = ImageFolder(path=folder, labels=beside if isinstance(beside, Sidecar) and beside.path else ParentFolder())
    config = config.model_copy(update={"source": source_config, "window": window})
    source = Source(config)
    annotations = source.annotations()
    with scratch() as temporary, ViewWriter(temporary) as writer:
        for file in bar(list(source.files(set())), "reference"):
            _take(writer, source, file, annotations, config)
        writer.part_crowds(partial(_split, config=config))
        return writer.commit(store, Targets.wanted(config.model))


def _freeze_rows(store: Store, config: PipelineConfig, source: TableRows, path: str) -> Window:
    from everfresh.tasks.rows import Tables

    tables = Tables(config.model_copy(update={"source": source.model_copy(update={"paths": (path,)})}))
    with scratch() as temporary:
        with ViewWriter(temporary) as writer:
            _take_rows(writer, tables, tables.waiting(set()), config)
        return writer.commit(store, Targets.wanted(config.model), noisy=True)


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
        kept, measured = examined(data, config)
        annotation = annotation_of(file, annotations, config)
    except DataError as error:
        writer.reject(file.key, str(error), data)
        return True
    writer.add(
        kept,
        key=file.key,
        label=annotation.label,
        split=_split(measured["group"], config),
        timestamp=annotation.timestamp,
        slices=json.dumps(dict(annotation.slices), sort_keys=True),
        **measured,
    )
    return True


def examined(data: bytes, config: PipelineConfig) -> tuple[bytes, dict[str, Any]]:
    """A sample's bytes as they are kept, and what is measured of it: a picture, or a row that a service was asked about.

    Raises:
        DataError: it is neither.
    """
    if not config.model.features:
        return data, asdict(examine(data))
    kept = as_kept(data, config.model.features)
    return kept, {"digest": hashlib.sha256(kept).hexdigest(), "group": digest_of("row", kept.decode())}


def annotation_of(file: SourceFile, annotations: Mapping[str, Annotation], config: PipelineConfig) -> Annotation:
    """What is known of a file, from the folder it stands in or from its row in the label table.

    Raises:
        DataError: the folder's name is no label, or the row cannot be used, or the label is none of the task's.
    """
    if isinstance(config.source.labels, ParentFolder):
        label = name_in(_parent(file.key.removeprefix(f"{file.archive_key}/")))
        return Annotation(label=None if label is None else Targets.wanted(config.model).canonical(label))
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
        case "key" | "time":  # the latter is for rows alone
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
    last_key = max((key for key, _ in seen if not key.endswith("/")), default="")
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
