"""One pass over a table of any size: a seeded sample of its rows, and counters of what is wrong with all of them.

The sample is a reservoir: every row draws a random number and the rows with the smallest ones are kept, so the sample
depends on the seed and the order of rows alone, not on how a file is cut into batches, and memory is bounded by one
batch and two samples. Counters are of rows that no sample can speak for: one infinite value, one new category.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray

from everfresh.tasks.errors import DataError
from everfresh.tasks.records import Value

Kind = Literal["number", "text", "truth", "time", "vector", "nothing"]
"""What a column holds; ``nothing`` is a column without a value, which fits any other."""

BATCH = 16_384
"""Rows that are looked at at once."""
MOST_VALUES = 10_000
"""A column of more different texts has no categories to be new."""
SHOWN = 5
SUFFIXES = {
    ".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".ndjson": "json", ".json": "json",
}  # fmt: skip


class ColumnQuality(Value):
    """What is wrong with a column, counted over all rows of both tables."""

    name: str
    kind: Kind
    missing: tuple[int, int]
    """Rows without a value, in the reference and here; an empty text is none, nor is NaN."""
    infinite: tuple[int, int] = (0, 0)
    below: int = 0
    """Rows here with a number below the reference's least."""
    above: int = 0
    new: int = 0
    """Rows here with a text that the reference does not have; not counted where it has more than 10,000."""
    new_values: tuple[str, ...] = ()
    """The most frequent of them, at most five."""


@dataclass
class Counted:
    """Counters of one column, as far as a pass has come."""

    kind: Kind
    missing: int = 0
    infinite: int = 0
    low: float = np.inf
    high: float = -np.inf
    values: set[str] | None = field(default_factory=set)
    """Different texts; None where they are too many."""
    below: int = 0
    above: int = 0
    new: Counter[str] = field(default_factory=Counter)
    uncounted: int = 0
    """Rows with other new values than those in `new`."""


@dataclass(frozen=True)
class Scan:
    """What one pass over a table has found."""

    rows: int
    sample: pa.Table
    columns: dict[str, Counted]


def kind_of(type_: pa.DataType) -> Kind | None:
    """What a column of an Arrow type holds; None for what no test is made for."""
    if pa.types.is_dictionary(type_):
        return kind_of(type_.value_type)
    if pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_):
        return "vector" if kind_of(type_.value_type) == "number" else None
    checks: tuple[tuple[Kind, Any], ...] = (
        ("nothing", pa.types.is_null), ("truth", pa.types.is_boolean),
        ("number", pa.types.is_integer), ("number", pa.types.is_floating), ("number", pa.types.is_decimal),
        ("text", pa.types.is_string), ("text", pa.types.is_large_string), ("text", pa.types.is_string_view),
        ("time", pa.types.is_temporal),
    )  # fmt: skip
    return next((kind for kind, check in checks if check(type_)), None)


def schema_of(source: pa.Table | Path) -> pa.Schema:
    """Columns and types, without reading the rows.

    Raises:
        DataError: the file is not there or not what its name says.
    """
    if isinstance(source, pa.Table):
        return source.schema
    with _readable(source):
        return pq.read_schema(source) if _is_one_parquet(source) else _dataset(source).schema


def scan(
    source: pa.Table | Path, most: int, seed: int | Sequence[int], columns: Sequence[str], known: Scan | None = None
) -> Scan:
    """Read a table once.

    Args:
        source: the table, or the path of a Parquet, CSV or JSONL file or of a folder of Parquet files.
        most: rows of the sample; all, in order, where there are no more.
        seed: of the sample.
        columns: those to read.
        known: the scan of the reference, which ranges and categories are compared with.

    Raises:
        DataError: the file cannot be read to its end.
    """
    kinds = {name: kind_of(schema_of(source).field(name).type) or "nothing" for name in columns}
    counted = {name: Counted(kind) for name, kind in kinds.items()}
    kept, rows = Reservoir(most, seed), 0
    for batch in _batches(source, columns):
        rows += len(batch)
        kept.add(batch)
        for name, counters in counted.items():
            _count(batch.column(name), counters, known.columns[name] if known else None)
    empty = pa.schema([schema_of(source).field(name) for name in columns]).empty_table()
    return Scan(rows, kept.table() or empty, counted)


def compared(reference: Scan, current: Scan) -> tuple[ColumnQuality, ...]:
    """The counters of both tables, by column."""
    return tuple(
        ColumnQuality(
            name=name,
            kind=theirs.kind,
            missing=(ours.missing, theirs.missing),
            infinite=(ours.infinite, theirs.infinite),
            below=theirs.below,
            above=theirs.above,
            new=theirs.new.total() + theirs.uncounted,
            new_values=tuple(value for value, _ in theirs.new.most_common(SHOWN)),
        )
        for (name, ours), theirs in zip(reference.columns.items(), current.columns.values(), strict=True)
    )


class Reservoir:
    """A uniform sample without replacement of rows that come in batches, in their order."""

    def __init__(self, most: int, seed: int | Sequence[int]) -> None:
        self._most = most
        self._rng = np.random.default_rng(seed)
        self._bound = np.inf
        self._pieces: list[pa.Table] = []
        self._keys: list[NDArray[np.float64]] = []
        self._held = 0

    def add(self, batch: pa.Table) -> None:
        """Offer the next rows."""
        keys = self._rng.random(len(batch))
        chosen = np.flatnonzero(keys < self._bound)
        if not len(chosen) and self._pieces:
            return
        self._pieces.append(batch.take(chosen))  # a copy: the batch itself goes
        self._keys.append(keys[chosen])
        self._held += len(chosen)
        if self._held > 2 * self._most:
            self._cut()

    def table(self) -> pa.Table | None:
        """The sample; None if nothing came."""
        if not self._pieces:
            return None
        self._cut()
        return self._pieces[0]

    def _cut(self) -> None:
        table, keys = pa.concat_tables(self._pieces).combine_chunks(), np.concatenate(self._keys)
        if len(keys) > self._most:
            order = np.sort(np.argpartition(keys, self._most)[: self._most])
            table, keys = table.take(order), keys[order]
            self._bound = float(keys.max())
        self._pieces, self._keys, self._held = [table], [keys], len(keys)


def _count(column: pa.ChunkedArray, counters: Counted, known: Counted | None) -> None:
    counters.missing += column.null_count
    if counters.kind == "number":
        _count_numbers(column.cast(pa.float64(), safe=False).drop_null().to_numpy(), counters, known)
    elif counters.kind in {"text", "truth"}:
        _count_texts(column.cast(pa.string()), counters, known)


def _count_numbers(values: NDArray[np.float64], counters: Counted, known: Counted | None) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        nan = int(np.isnan(values).sum())
        counters.missing += nan
        counters.infinite += len(values) - int(finite.sum()) - nan
        values = values[finite]
    if len(values):
        counters.low, counters.high = min(counters.low, float(values.min())), max(counters.high, float(values.max()))
    if known is not None and known.low <= known.high:
        counters.below += int((values < known.low).sum())
        counters.above += int((values > known.high).sum())


def _count_texts(column: pa.ChunkedArray, counters: Counted, known: Counted | None) -> None:
    filled = column.filter(pc.fill_null(pc.not_equal(column, ""), False))
    counters.missing += len(column) - column.null_count - len(filled)
    if known is None and counters.values is not None:
        counters.values.update(filled.unique().to_pylist())
        if len(counters.values) > MOST_VALUES:
            counters.values = None
    elif known is not None and known.values:
        strange = filled.filter(pc.invert(pc.is_in(filled, value_set=pa.array(sorted(known.values), pa.string()))))
        counters.new.update({row["values"].as_py(): row["counts"].as_py() for row in strange.value_counts()} if strange else {})
        if len(counters.new) > 2 * MOST_VALUES:  # of very many the rare ones are only counted
            kept = dict(counters.new.most_common(MOST_VALUES))
            counters.uncounted += counters.new.total() - sum(kept.values())
            counters.new = Counter(kept)


def _batches(source: pa.Table | Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The rows in order, some at a time, dictionaries as what they stand for."""
    if isinstance(source, pa.Table):
        found: Iterator[pa.RecordBatch] = iter(source.select(columns).to_batches(max_chunksize=BATCH))
        yield from (_plain(batch) for batch in found)
        return
    with _readable(source):
        if _is_one_parquet(source):  # batches within a row group, where a dataset would decode the group as a whole
            with pq.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20) as file:
                yield from (_plain(batch) for batch in file.iter_batches(BATCH, columns=list(columns)))
            return
        found = _dataset(source).to_batches(columns=list(columns), batch_size=BATCH, batch_readahead=2, fragment_readahead=1)
        yield from (_plain(batch) for batch in found)


def _plain(batch: pa.RecordBatch) -> pa.Table:
    table = pa.Table.from_batches([batch])
    for i, column in enumerate(table.schema):
        if pa.types.is_dictionary(column.type):
            table = table.set_column(i, column.name, table.column(i).cast(column.type.value_type))
    return table


def _is_one_parquet(path: Path) -> bool:
    return path.is_file() and SUFFIXES.get(path.suffix.lower()) == "parquet"


def _dataset(path: Path) -> ds.Dataset:
    kind = "parquet" if path.is_dir() else SUFFIXES[path.suffix.lower()]
    if kind == "csv":
        split = pa.csv.ParseOptions(delimiter="\t" if path.suffix.lower() == ".tsv" else ",", newlines_in_values=True)
        block = pa.csv.ReadOptions(block_size=8 << 20)  # types are guessed from the first block
        return ds.dataset(path, format=ds.CsvFileFormat(parse_options=split, read_options=block))
    return ds.dataset(path, format=kind)


class _readable:  # noqa: N801 - reads as a `with` clause
    """What Arrow says of a file, in one sentence with a remedy."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        if not self._path.exists():
            raise DataError(f"{self._path} must be a table or a folder of Parquet files, got nothing there. Check the path.")
        if not self._path.is_dir() and self._path.suffix.lower() not in SUFFIXES:
            known = ", ".join(itertools.chain(SUFFIXES))
            raise DataError(f"{self._path} must be named for what it is ({known}), got {self._path.suffix!r}. Rename it.")

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, (pa.ArrowException, OSError, UnicodeDecodeError)):
            words = " ".join(str(error).replace(str(self._path), self._path.name).split())[:300].rstrip(".")
            raise DataError(
                f"{self._path} must be readable as what its name says, got: {words}. "
                "Repair it, or write it as Parquet, which knows the types of its columns."
            ) from None
