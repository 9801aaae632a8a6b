"""Rows of tables as samples: which wait, in which order, and what each of them says.

A row's key is `<file>#<number>`, counted from 0. What was taken is kept as ranges of rows of each file, so files must not
change: new rows come in new files. Files are read in batches, and of rows that wait for a later window nothing is held but
their place, and their time where that gives the order.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from everfresh.tasks.config import Column, PipelineConfig, TableRows
from everfresh.tasks.errors import DataError, SourceError
from everfresh.tasks.labels import Annotation, Unusable, annotation_in, moment_of
from everfresh.tasks.records import digest_of
from everfresh.tasks.sources import Source, is_path
from everfresh.tasks.vectors import Value, cell, encode, text

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 8_192
"""Rows that are read at once."""
CSV_BLOCK = 8 << 20
"""Bytes of a CSV file that are read at once; a row must fit."""
UNDATED = np.iinfo(np.int64).max
"""Rows without a readable time come last."""

Seen = set[tuple[str, str]]
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Row:
    """One row, read."""

    key: str
    data: bytes
    """Its features as they are kept; of a row that cannot be used, its cells as they were found."""
    annotation: Annotation
    """:class:`Unusable` if it cannot be used."""
    group: str
    """Equal for rows that must share a split."""


@dataclass
class TableFile:
    """One file of the source."""

    key: str
    version: str
    modified: float
    place: int
    path: Path
    """Where it can be read."""

    @property
    def name(self) -> str:
        """For people."""
        return f"source: {self.key}"

    @property
    def parquet(self) -> bool:
        return self.key.lower().endswith(".parquet")

    def columns(self) -> dict[str, pa.DataType | None]:
        """Names and types; a CSV file's cells are texts (None)."""
        import pyarrow.parquet as pq

        with _readable(self.name):
            if self.parquet:
                schema = pq.read_schema(self.path)
                names, types = schema.names, list(schema.types)
            else:
                with self.path.open(encoding="utf-8-sig", newline="") as file:
                    names = _header(file)
                types = [None] * len(names)
            if twice := [n for n, count in Counter(names).items() if count > 1]:
                raise ValueError(f"it has more than one column {twice[0][:40]!r}")
            return dict(zip(names, types, strict=True))

    def count(self) -> int:
        """Rows."""
        import pyarrow.parquet as pq

        if self.parquet:
            with _readable(self.name):
                return int(pq.read_metadata(self.path).num_rows)
        first = next(iter(self.columns()))
        return sum(batch.num_rows for batch in self.batches([first]))

    def batches(self, columns: list[str], wanted: Rows | None = None) -> Iterator[pa.RecordBatch]:
        """Some columns of all rows, in their order; parts of a Parquet file without a wanted row come empty."""
        import pyarrow as pa
        import pyarrow.csv
        import pyarrow.parquet as pq

        with _readable(self.name):
            if not self.parquet:
                reader = pyarrow.csv.open_csv(
                    self.path,
                    read_options=pyarrow.csv.ReadOptions(block_size=CSV_BLOCK, use_threads=False),
                    parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
                    convert_options=pyarrow.csv.ConvertOptions(
                        include_columns=columns,
                        column_types=dict.fromkeys(columns, pa.string()),
                        strings_can_be_null=True,
                        null_values=[""],
                    ),
                )
                yield from reader
                return
            with pq.ParquetFile(self.path) as file:
                begun = 0
                for number in range(file.num_row_groups):
                    rows = file.metadata.row_group(number).num_rows
                    if wanted is None or np.searchsorted(wanted, begun) < np.searchsorted(wanted, begun + rows):
                        yield from file.iter_batches(BATCH, row_groups=[number], columns=columns, use_threads=False)
                    else:
                        yield pa.RecordBatch.from_pydict({"": pa.nulls(rows)})
                    begun += rows


class _readable:  # noqa: N801 - a context
    """Errors of what reads a table as one of the source; Arrow's are ValueError, OSError, KeyError and others."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, ValueError | TypeError | OSError | NotImplementedError | KeyError):
            raise SourceError(
                f"{self.name} cannot be read as a {'Parquet' if self.name.lower().endswith('.parquet') else 'CSV'} table "
                f"({' '.join(str(error).split())[:200]}). Write it again, under another name until it is whole."
            ) from error


def _header(lines: Iterable[str]) -> list[str]:
    import csv

    names = next(csv.reader(lines), None)
    if not names:
        raise ValueError("it is empty")
    return names


class Tables:
    """The tables of a source, listed once."""

    def __init__(self, config: PipelineConfig) -> None:
        if not isinstance(config.source, TableRows):
            raise TypeError(config.source.kind)
        self.config, self.features, self.window = config.source, config.model.features, config.window
        self._source = Source(config)
        self.targets = self._source.targets
        self.listing = self._source.listing
        self.other_values: Counter[str] = Counter()
        """Rows by column and value that is none of its categories, among those read so far."""

    @property
    def columns(self) -> list[str]:
        """All columns that are read."""
        said = self.config.annotations
        names = [f.name for f in self.features]
        names += [n for n in (said.label_column, said.timestamp_column) if n]
        return list(dict.fromkeys([*names, *self.config.slice_columns, *self.config.group_columns]))

    def files(self, seen: Seen) -> list[TableFile]:
        """Files of which not all rows were seen, in the order in which they are taken, their columns checked.

        Raises:
            SourceError: a file has changed since it was taken in, cannot be read, or lacks a column.
        """
        known = {_file_of(key): version for key, version in seen}
        found = []
        for place, item in self._source.listed:
            if known.get(item.key, item.version) != item.version:
                raise SourceError(
                    f"source: {item.key} must not change once rows of it were taken in, got another version. Put it back as "
                    "it was, and write new rows, or the changed ones, to a file of another name."
                )
            if not is_path(item.key):
                raise SourceError(
                    f"source: the key of a table must be a path without empty parts, '.' or '..', got {item.key!r}. Rename it."
                )
            if (f"{item.key}/", item.version) in seen:
                continue
            file = TableFile(item.key, item.version, item.modified.timestamp(), place, self._source.local(place, item))
            self._check(file)
            found.append(file)
        by_time = self.window.order == "modified"
        return sorted(found, key=lambda f: (f.modified, f.key) if by_time else (f.place, f.key))

    def _check(self, file: TableFile) -> None:
        import pyarrow.types as types

        columns = file.columns()
        if missing := [name for name in self.columns if name not in columns]:
            raise SourceError(
                f"source: {file.key} must have the columns {', '.join(self.columns)}, got {', '.join(columns)[:200]}; "
                f"{', '.join(missing)} missing. Correct the names in the pipeline file, or the file."
            )
        for feature in self.features:
            kind = columns[feature.name]
            fits = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal, types.is_null)
            if kind is not None and not feature.categories and not any(fit(kind) for fit in fits):
                raise SourceError(
                    f"source: {file.key} must hold numbers in {feature.name}, as model.features says, got {kind}. "
                    "Declare its categories there, or convert the column."
                )

    def waiting(self, seen: Seen) -> list[tuple[TableFile, Rows]]:
        """Rows that were not seen, by file, in order of their place."""
        taken: dict[str, list[tuple[int, int]]] = {}
        for key, _ in seen:
            if not key.endswith("/"):
                first, _, last = key.rpartition("#")[2].partition("-")
                taken.setdefault(_file_of(key), []).append((int(first), int(last)))
        found = []
        for file in self.files(seen):
            free = np.ones(file.count(), dtype=bool)
            for begin, end in taken.get(file.key, []):
                free[begin : end + 1] = False
            found.append((file, np.flatnonzero(free)))
        return found

    def chosen(self, waiting: list[tuple[TableFile, Rows]], most: int) -> list[tuple[TableFile, Rows]]:
        """The next `most` of the rows that wait, by file, in order of their place."""
        match self.window.order:
            case "time":
                times = np.concatenate([self._times(file, rows) for file, rows in waiting])
                whose = np.repeat(np.arange(len(waiting)), [len(rows) for _, rows in waiting])
                where = np.concatenate([rows for _, rows in waiting])
                first = np.argsort(times, kind="stable")[:most]
                return [(file, np.sort(where[first][whose[first] == n])) for n, (file, _) in enumerate(waiting)]
            case "shuffled":
                draws = [np.random.default_rng(int(digest_of(self.window.seed, f.key), 16)) for f, _ in waiting]
                waiting = [(f, rng.permutation(rows)) for rng, (f, rows) in zip(draws, waiting, strict=True)]
        picked = []
        for file, rows in waiting:
            picked.append((file, np.sort(rows[:most])))
            most -= len(picked[-1][1])
        return picked

    def _times(self, file: TableFile, rows: Rows) -> Rows:
        """Microseconds since 1970 (len(rows),)."""
        column = self.config.timestamp_column or ""
        times = [_microseconds(raw, self.config.timezone) for batch in file.batches([column]) for raw in batch[0].to_pylist()]
        return np.array(times, dtype=np.int64)[rows]

    def read(self, file: TableFile, rows: Rows) -> Iterator[Row]:
        """Some rows of a file, in order of their place."""
        begun = 0
        for batch in file.batches(self.columns, rows):
            inside = rows[np.searchsorted(rows, begun) : np.searchsorted(rows, begun + batch.num_rows)]
            if len(inside):
                for number, cells in zip(inside.tolist(), batch.take(inside - begun).to_pylist(), strict=True):
                    yield self._row(f"{file.key}#{number}", cells)
            begun += batch.num_rows

    def _row(self, key: str, cells: Mapping[str, Any]) -> Row:
        said = self.config.annotations
        try:
            values = {f.name: self._value(f, cells[f.name]) for f in self.features}
            number = self.targets.task == "regression"  # a label that is one stays as it is, NaN too
            names = (*([] if number else [said.label_column]), *said.slice_columns)
            texts = {**cells, **{c: text(cells[c]) for c in names if c}}
            annotation = annotation_in(texts, said, self.config.timezone, self.targets)
            if isinstance(annotation, Unusable):
                raise DataError(annotation.reason)
        except DataError as error:
            return Row(key, json.dumps(dict(cells), default=str).encode(), Unusable(reason=str(error)), "")
        data = encode(values)
        return Row(key, data, annotation, self._group(key, cells, data, annotation))

    def _group(self, key: str, cells: Mapping[str, Any], data: bytes, annotation: Annotation) -> str:
        """Rows of one thing, or written twice. Where no time tells rows apart, equal ones are taken for two samples."""
        if self.config.group_columns:
            return digest_of("group", [text(cells[c]) for c in self.config.group_columns])
        return digest_of("row", data.decode(), str(annotation.timestamp)) if annotation.timestamp else digest_of("row", key)

    def _value(self, feature: Column, raw: Any) -> Value:
        """A cell as it is kept.

        Raises:
            DataError: it is missing where it must not, or no finite number.
        """
        value = cell(feature, raw)
        if value is None and self.config.missing == "quarantine":
            raise DataError(f"has no value in {feature.name}; source.missing: impute takes such rows")
        if feature.categories and value is not None and value not in feature.categories:
            self.other_values[f"{feature.name} {str(value)[:40]!r}"] += 1
        return value


def _microseconds(raw: Any, timezone: str | None) -> int:
    try:
        return round(moment_of(raw, timezone).timestamp() * 1e6) if raw else UNDATED
    except DataError:
        return UNDATED


def _file_of(key: str) -> str:
    """The file of a range of rows, `<file>#<first>-<last>`, or of the mark on one that was taken whole, `<file>/`."""
    return key.removesuffix("/") if key.endswith("/") else key.rpartition("#")[0]


def seen_after(seen: Seen, waiting: list[tuple[TableFile, Rows]], chosen: list[tuple[TableFile, Rows]]) -> Seen:
    """What was seen once these rows were taken: ranges of each file, and a mark on one of which nothing is left."""
    open_files = {file.key for file, _ in waiting}
    after = {(key, version) for key, version in seen if _file_of(key) not in open_files}
    for (file, rows), (_, taken) in zip(waiting, chosen, strict=True):
        total = file.count()
        free = np.zeros(total, dtype=bool)
        free[np.setdiff1d(rows, taken, assume_unique=True)] = True
        edges = np.flatnonzero(np.diff(np.concatenate([[True], free, [True]]).astype(np.int8)))
        after |= {(f"{file.key}#{a}-{b - 1}", file.version) for a, b in edges.reshape(-1, 2).tolist()}
        if not free.any():
            after.add((f"{file.key}/", file.version))
    return after
