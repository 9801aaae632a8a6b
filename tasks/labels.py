"""Labels, times and slices from a table beside the files: CSV, JSON lines or Parquet.

A table that is damaged as a whole stops the tick: to go on would lose labels without a word. A row that cannot be used,
or contradicts another, sets its file aside with the reason. A file without a row, or with an empty label, is not
labelled. Keys are only compared with those of the source, never opened: one that climbs out of it names nothing.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from everfresh.tasks.config import Sidecar
from everfresh.tasks.errors import DataError, ObjectMissing, SourceError
from everfresh.tasks.store import Store
from everfresh.tasks.targets import MAX_LABEL, Targets

MAX_NAME = 200
"""Characters of a label or of a slice; what is longer is no name but the contents of some other column."""
UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters and halves of characters, once white space is one space."""

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Annotation:
    """What is known of one file."""

    label: str | None = None
    timestamp: datetime | None = None
    slices: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Unusable(Annotation):
    """A row that cannot be used; its file goes into quarantine with the reason."""

    reason: str = ""


def name_in(value: Any, longest: int = MAX_NAME) -> str | None:
    """A label or a slice: white space trimmed and collapsed, None if nothing is left, or of a number that is none (NaN).

    A list becomes one of JSON.

    Raises:
        DataError: too long or with characters that no name has.
    """
    value = json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list) else value
    text = "" if value is None or value != value else re.sub(r"\s+", " ", str(value)).strip()
    if len(text) > longest:
        raise DataError(f"has a label or slice of {len(text):,} characters, more than {longest}: {text[:40]!r}…")
    if UNFIT.search(text):
        raise DataError(f"has a label or slice with control characters, {text[:40]!r}")
    return text or None


def read_table(store: Store, sidecar: Sidecar, timezone: str | None, targets: Targets) -> dict[str, Annotation]:
    """What the table says of each key.

    Raises:
        SourceError: it is missing, damaged, lacks a column or a key; names the line where there is one.
    """
    try:
        data = store.get(sidecar.path)
    except ObjectMissing:
        raise SourceError(
            f"source.labels.path must be a table in the source, got {sidecar.path!r}, which is not there. "
            "Write it beside the pictures or correct the path."
        ) from None
    columns, rows = _parse(data, sidecar.path)
    needed = [sidecar.key_column, sidecar.label_column, *sidecar.slice_columns]
    needed += [sidecar.timestamp_column] if sidecar.timestamp_column else []
    if missing := [c for c in needed if c not in columns]:
        raise SourceError(
            f"source.labels: {sidecar.path} must have the columns {', '.join(needed)}, got {', '.join(columns)[:200]}; "
            f"{', '.join(missing)} missing. Correct the names or the delimiter (comma)."
        )
    annotations: dict[str, Annotation] = {}
    for number, row in enumerate(rows, 1):
        if row.get(sidecar.key_column) in (None, ""):
            raise SourceError(
                f"source.labels: row {number} of {sidecar.path} must name a file, got none. Fill {sidecar.key_column}."
            )
        key = str(row[sidecar.key_column])
        annotation = annotation_in(row, sidecar, timezone, targets)
        if annotations.setdefault(key, annotation) != annotation:
            annotations[key] = Unusable(reason=f"has two different rows in {sidecar.path}")
    return annotations


def _parse(data: bytes, name: str) -> tuple[Sequence[str], Sequence[Row]]:
    """Columns and rows of a table."""
    parsers = {".csv": _csv, ".jsonl": _jsonl, ".ndjson": _jsonl, ".parquet": _parquet}
    parse = next((parse for suffix, parse in parsers.items() if name.endswith(suffix)), None)
    if parse is None:
        raise SourceError(f"source.labels.path must end in .csv, .jsonl or .parquet, got {name!r}. Rename or convert it.")
    try:
        if not data.strip():
            raise ValueError("it is empty")
        columns, rows = parse(data)
        if twice := sorted({c for c in columns if columns.count(c) > 1}):
            raise ValueError(f"it has more than one column {twice[0][:40]!r}")
        return columns, rows
    # Arrow's errors are ValueError, OSError, NotImplementedError and KeyError.
    except (ValueError, TypeError, OSError, NotImplementedError, KeyError, RecursionError, csv.Error) as error:
        words = str(error)[:200]
        raise SourceError(f"source.labels: {name} cannot be read ({words}). Correct it, or write it again as UTF-8.") from error


def _csv(data: bytes) -> tuple[Sequence[str], Sequence[Row]]:
    text = data.decode("utf-8-sig")
    if "\0" in text:
        raise ValueError("it holds NUL characters, as UTF-16 does")
    lines = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    try:
        columns = list(lines.fieldnames or ())
        for row in lines:
            if None in row or None in row.values():  # too many fields, or too few
                raise ValueError(f"it must have {len(columns)} fields, as the header has")
            rows.append(row)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"line {lines.reader.line_num}: {error}") from None
    return columns, rows


def _jsonl(data: bytes) -> tuple[Sequence[str], Sequence[Row]]:
    rows: list[Row] = []
    for number, line in enumerate(data.decode("utf-8-sig").split("\n"), 1):  # splitlines() would cut inside of strings
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
            if not isinstance(rows[-1], dict):
                raise ValueError(f"line {number} must be an object, got {line[:40]}")
    return list(dict.fromkeys(column for row in rows for column in row)), rows


def _parquet(data: bytes) -> tuple[Sequence[str], Sequence[Row]]:
    import pyarrow.parquet as pq

    table = pq.ParquetFile(io.BytesIO(data)).read()
    distinct = len(set(table.column_names)) == table.num_columns
    return table.column_names, table.to_pylist() if distinct else []


def annotation_in(row: Row, sidecar: Sidecar, timezone: str | None, targets: Targets) -> Annotation:
    """What a row says, its label as `targets` write it; :class:`Unusable` if it cannot be used."""
    try:
        label = _label(row.get(sidecar.label_column), targets)
        slices = {c: text for c in sidecar.slice_columns if (text := name_in(row.get(c))) is not None}
        raw = row.get(sidecar.timestamp_column) if sidecar.timestamp_column else None
        return Annotation(label, moment_of(raw, timezone) if raw else None, slices)
    except DataError as error:
        return Unusable(reason=str(error))


def _label(value: Any, targets: Targets) -> str | None:
    if targets.task == "regression" and value != value:
        raise DataError("has NaN as its label, which is no number; the cell of a sample without a label is empty")
    text = name_in(value, MAX_NAME if targets.task == "single_label" else MAX_LABEL)
    return None if text is None else targets.canonical(text)


def moment_of(raw: Any, timezone: str | None) -> datetime:
    """A time in UTC.

    Args:
        raw: a datetime or ISO 8601.
        timezone: of times that name none.

    Raises:
        DataError: it is no time, or names no zone and neither does the source.
    """
    try:
        moment = raw if isinstance(raw, datetime) else datetime.fromisoformat(str(raw))
        if moment.tzinfo is None:
            if timezone is None:
                raise DataError(f"has the time {raw} without a zone, and source.timezone is not set")
            moment = moment.replace(tzinfo=ZoneInfo(timezone))
        moment = moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise DataError(f"has the time {str(raw)[:40]!r}, which is not ISO 8601") from None
    return datetime.combine(moment.date(), moment.time(), UTC)  # no subclass with nanoseconds
