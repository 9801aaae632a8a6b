"""Windows as they stand in the store: a manifest of samples, and their bytes in tar shards.

``ViewWriter`` streams samples to local shards with bounded memory; the shards' bytes depend on the samples
alone, so two runs over the same files write the same objects. ``View`` reads one back.
"""

from __future__ import annotations

import io
import json
import math
import tarfile
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from everfresh.tasks.errors import ObjectMissing
from everfresh.tasks.ledger import find, settle
from everfresh.tasks.records import Part, Split, Window, digest_of
from everfresh.tasks.store import Store, file_digest
from everfresh.tasks.targets import Targets, bounded

if TYPE_CHECKING:
    import pyarrow as pa

CROWD, CROWD_SHARE = 20, 0.2
"""A group of near-duplicates that is larger than both, the share being of its window, is none: see `part_crowds`."""
SHARD_BYTES = 64 << 20
"""A shard is closed once it holds so many bytes of pictures."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of a manifest."""

    key: str
    digest: str
    group: str
    label: str | None
    split: Split
    timestamp: Any
    """Aware datetime or None."""
    shard: int
    offset: int
    """Of the bytes inside the shard."""
    size: int
    width: int = 0
    """Of a picture, as are those below; a row of a table has none."""
    height: int = 0
    brightness: float = math.nan
    contrast: float = math.nan
    sharpness: float = math.nan
    colourfulness: float = math.nan
    slices: str = "{}"
    """JSON object of slice columns."""


def split_of(group: str, seed: int, holdout: float, tune: float) -> Split:
    """The split of a group: the same group is always on the same side."""
    draw = int(digest_of("split", seed, group)[:13], 16) / 16**13
    return "holdout" if draw < holdout else "tune" if draw < holdout + tune else "train"


class ViewWriter:
    """Collects samples in a local folder; ``commit`` moves them into the store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.samples: list[Sample] = []
        self.rejected: list[dict[str, Any]] = []
        self._shards: list[Path] = []
        self._file: io.BufferedWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def add(self, data: bytes, suffix: str | None = None, **fields: Any) -> None:
        """Append one sample's bytes to the open shard; `suffix` is that of its key unless given."""
        file = self._file
        if file is None or file.tell() >= SHARD_BYTES:
            file = self._next_shard()
        info = tarfile.TarInfo(f"{len(self.samples):08d}{Path(fields['key']).suffix.lower() if suffix is None else suffix}")
        info.size, info.mtime, info.mode = len(data), 0, 0o644
        header = info.tobuf(tarfile.USTAR_FORMAT)
        offset = file.tell() + len(header)
        file.write(header + data + b"\0" * (-len(data) % tarfile.BLOCKSIZE))
        self.samples.append(Sample(shard=len(self._shards) - 1, offset=offset, size=len(data), **fields))

    def reject(self, key: str, reason: str, data: bytes) -> None:
        """Set a file aside: its bytes and the reason go into quarantine."""
        path = self.folder / f"rejected-{len(self.rejected):08d}"
        path.write_bytes(data)
        self.rejected.append({"key": key, "reason": reason, "sha256": file_digest(path), "size": len(data), "path": path})

    def _next_shard(self) -> io.BufferedWriter:
        self._close()
        path = self.folder / f"shard-{len(self._shards):05d}.tar"
        self._shards.append(path)
        self._file = path.open("wb")
        return self._file

    def _close(self) -> None:
        if self._file is not None:
            with self._file as file:  # it is closed also where the disk takes no more
                self._file = None
                file.write(b"\0" * tarfile.BLOCKSIZE * 2)

    def part_crowds(self, split: Callable[[str], Split], *, same: bool = False) -> int:
        """Make each sample of an overlarge group a group of its own, by its bytes; returns how many that concerns.

        A fixed camera makes pictures that the difference hash cannot tell apart. As one group they would all land in
        one split, and nothing could be trained, or nothing proven.

        Args:
            split: that a group is of.
            same: samples of a group have the same bytes, as rows of few categories do, and are told apart by their keys.
        """
        sizes = Counter(s.group for s in self.samples)
        crowds = {group for group, n in sizes.items() if n > max(CROWD, CROWD_SHARE * len(self.samples))}

        def alone(sample: Sample) -> Sample:
            group = digest_of("row", sample.key) if same else sample.digest
            return replace(sample, group=group, split=split(group))

        self.samples = [alone(s) if s.group in crowds else s for s in self.samples]
        return sum(sizes[group] for group in crowds)

    def _set_contradictions_aside(self) -> None:
        """Identical pictures with different labels go into quarantine, all of them: nobody can say which is right.

        A picture without a label contradicts nothing. The shards keep their bytes, but no sample points there.
        """
        first: dict[str, dict[str, str]] = {}  # by digest and label, the first key
        for s in self.samples:
            if s.label is not None:
                first.setdefault(s.digest, {}).setdefault(s.label, s.key)
        torn = [s for s in self.samples if s.label is not None and len(first[s.digest]) > 1]
        for s in torn:
            label, key = next((label, key) for label, key in first[s.digest].items() if label != s.label)
            with self._shards[s.shard].open("rb") as file:
                file.seek(s.offset)
                data = file.read(s.size)
            self.reject(s.key, f"is labelled {s.label!r}, but {key[:200]!r} has the same bytes and is labelled {label!r}", data)
        gone = {s.key for s in torn}
        self.samples = [s for s in self.samples if s.key not in gone]

    def commit(self, store: Store, targets: Targets, *, noisy: bool = False) -> Window:
        """Write shards, manifest and quarantine, then the record that makes the view exist.

        Args:
            store: of the pipeline.
            targets: what is asked for; samples of other labels wait.
            noisy: equal bytes may well have different labels, as equal rows of a table do.
        """
        import pyarrow.parquet as pq

        self._close()
        if not noisy:
            self._set_contradictions_aside()
        view = digest_of(
            sorted([s.key, s.digest, s.label or "", str(s.timestamp or ""), s.split, s.slices] for s in self.samples),
            sorted([r["key"], r["sha256"], r["reason"]] for r in self.rejected),
        )
        if (known := find(store, f"windows/{view}/window.json", Window)) is not None:
            return known
        for row in self.rejected:
            store.keep_file(f"quarantine/{view}/{row['sha256']}", row.pop("path"))
        if self.rejected:
            lines = "".join(json.dumps(row, sort_keys=True) + "\n" for row in self.rejected)
            store.keep(f"quarantine/{view}/quarantine.jsonl", lines.encode())
        manifest = self.folder / "manifest.parquet"
        pq.write_table(_table(self.samples), manifest)
        usable = [s for s in self.samples if s.label in targets]
        pending = Counter(s.label for s in self.samples if s.label is not None and s.label not in targets)
        single = targets.task == "single_label"
        window = Window(
            view=view,
            samples=len(self.samples),
            quarantined=len(self.rejected),
            labelled=len(usable) + pending.total(),
            splits=dict(Counter(s.split for s in usable)),
            train_classes=targets.counts(s.label or "" for s in usable if s.split == "train"),
            classes=targets.counts(s.label or "" for s in usable),
            pending=dict(sorted(pending.items())) if single else bounded(pending),
            chance=None if single else targets.chance(targets.encode([s.label for s in usable])),
            manifest=_keep(store, view, manifest),
            shards=tuple(_keep(store, view, path) for path in self._shards),
        )
        return settle(store, f"windows/{view}/window.json", window)


def _keep(store: Store, view: str, path: Path) -> Part:
    """Keep a part under a name with its digest: two runs that differ in a library's version do not overwrite each other."""
    return store.keep_file(f"windows/{view}/{path.stem}-{file_digest(path)[:12]}{path.suffix}", path)


def _table(samples: Iterable[Sample]) -> pa.Table:
    import pyarrow as pa

    text, real, whole = pa.string(), pa.float64(), pa.int64()
    schema = pa.schema(
        [("key", text), ("digest", text), ("group", text), ("label", text), ("split", text)]
        + [("timestamp", pa.timestamp("us", "UTC")), ("shard", pa.int32()), ("offset", whole), ("size", whole)]
        + [("width", pa.int32()), ("height", pa.int32())]
        + [(name, real) for name in ("brightness", "contrast", "sharpness", "colourfulness")]
        + [("slices", text)]
    )
    rows = list(samples)
    return pa.table({name: [getattr(row, name) for row in rows] for name in schema.names}, schema=schema)


class View:
    """The samples of one window, read from the store; bytes are verified against the record."""

    def __init__(self, store: Store, view: str) -> None:
        self.store = store
        window = find(store, f"windows/{view}/window.json", Window)
        if window is None:
            raise ObjectMissing(
                f"{store.url(f'windows/{view}/window.json')} does not exist, but a record names this view. "
                "Restore the folder windows/ of this store from a copy."
            )
        self.window = window
        self._samples: list[Sample] | None = None

    @property
    def samples(self) -> list[Sample]:
        """All rows of the manifest, in the order in which they were taken in."""
        if self._samples is None:
            import pyarrow.parquet as pq

            table = pq.read_table(self.store.local(self.window.manifest))
            columns = [table[name].to_pylist() for name in Sample.__slots__]
            self._samples = [Sample(*row) for row in zip(*columns, strict=True)]
        return self._samples

    def rows(self, split: Split | None = None, known: Container[str | None] | None = None) -> NDArray[np.int64]:
        """Indices of samples of a split (or all), with a label among the `known` ones if those are given."""
        return np.array(
            [
                i
                for i, s in enumerate(self.samples)
                if (split is None or s.split == split) and (known is None or s.label in known)
            ],
            dtype=np.int64,
        )

    def read(self, rows: Iterable[int]) -> Iterator[bytes]:
        """Bytes of the pictures at `rows`; shards are fetched once, never one request a picture."""
        opened: dict[int, io.BufferedReader] = {}
        try:
            for row in rows:
                sample = self.samples[row]
                if sample.shard not in opened:
                    opened[sample.shard] = self.store.local(self.shard(sample)).open("rb")
                file = opened[sample.shard]
                file.seek(sample.offset)
                yield file.read(sample.size)
        finally:
            for file in opened.values():
                file.close()

    def shard(self, sample: Sample) -> Part:
        """The shard that holds a sample."""
        return self.window.shards[sample.shard]


def seeded_choice(count: int, most: int, *seed: Any) -> NDArray[np.int64]:
    """At most `most` of the indices 0…count-1, in order, drawn without replacement by a seed that any JSON gives."""
    if count <= most:
        return np.arange(count)
    rng = np.random.default_rng(int(digest_of(*seed), 16))
    return np.sort(rng.choice(count, most, replace=False))
