"""Columns of any table as those of a frame.

What a column is tested as follows from its type, never from how its values look, so that two tables of one schema are
always treated alike. Numbers (integers, decimals, floats) are numbers, also where they are few: a code that only looks
like one is named in `categorical`. Texts and truth values are categories. A column of vectors is an embedding, tested
as a whole. A point in time moves by itself, and of a text of which most rows have their own (an id) every value is
new: of these only whether they are there is tested. Infinite numbers count as missing, and so do NaN and the empty text.

Which texts are ids, and which categories are rare, is read off both samples together, so that no side is favoured
and the p-value stays valid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from everfresh.tasks.drift.frame import Floats, Frame
from everfresh.tasks.drift.quality import Kind, kind_of
from everfresh.tasks.errors import DataError

MAX_CATEGORIES = 50
"""Of more the rarer ones are one category."""
ID_SHARE = 0.5
"""A text column in which more than this share of the values are different is one of ids; fewer than 50 are not."""
OTHER, THERE = "(other)", "(there)"

Texts = NDArray[np.str_]


def frame_of(table: pa.Table, *, categorical: Sequence[str] = (), ignore: Sequence[str] = ()) -> Frame:
    """One table as a frame; two that are to be compared go through `frames_of`.

    Args:
        table: N rows.
        categorical: columns of numbers that are codes.
        ignore: columns to leave out.

    Raises:
        DataError: a column is of a type that no test is made for, or there is none.
    """
    return frames_of(table, table.slice(0, 0), categorical=categorical, ignore=ignore)[0]


def frames_of(
    reference: pa.Table, current: pa.Table, *, categorical: Sequence[str] = (), ignore: Sequence[str] = ()
) -> tuple[Frame, Frame, dict[str, str]]:
    """Two tables as frames with the same columns, and why the values of some are not among them.

    Raises:
        DataError: names or types of the columns differ, or there is no column that can be tested.
    """
    kinds = kinds_of(reference.schema, current.schema, categorical=categorical, ignore=ignore)
    first = len(reference)
    numerical: dict[str, Floats] = {}
    texts: dict[str, Texts] = {}
    left_out: dict[str, str] = {}
    vectors: list[Floats] = []
    for name, kind in kinds.items():
        parts = [table.column(name) for table in (reference, current)]
        if kind == "number":
            numerical[name] = np.concatenate([_numbers(part) for part in parts])
        elif kind == "vector":
            vectors.append(_vectors(name, parts))
        else:
            values = np.concatenate([_texts(part, kind) for part in parts])
            texts[name], why = _categories(values, kind)
            left_out |= {name: why} if why else {}
    embeddings = np.concatenate(vectors, axis=1) if vectors else np.zeros((first + len(current), 0))
    ours, theirs = (_frame(numerical, texts, embeddings, part) for part in (slice(first), slice(first, None)))
    return ours, theirs, left_out


def kinds_of(
    reference: pa.Schema, current: pa.Schema, *, categorical: Sequence[str] = (), ignore: Sequence[str] = ()
) -> dict[str, Kind]:
    """What each column is tested as, in the reference's order.

    Raises:
        DataError: as `frames_of`.
    """
    for which, schema in (("reference", reference), ("current", current)):
        if twice := sorted({name for name in schema.names if schema.names.count(name) > 1}):
            raise DataError(f"Each column of the {which} table must have its own name, got {_list(twice)} twice. Rename one.")
    if unknown := sorted({*categorical, *ignore} - {*reference.names, *current.names}):
        raise DataError(f"Columns to ignore or to take as categories must be there, got {_list(unknown)}. {_known(reference)}")
    ours, theirs = ([name for name in schema.names if name not in set(ignore)] for schema in (reference, current))
    if set(ours) != set(theirs):
        only = [(set(ours) - set(theirs), "the reference"), (set(theirs) - set(ours), "the current table")]
        words = " and ".join(f"{_list(sorted(names))} in {which} only" for names, which in only if names)
        raise DataError(f"Both tables must have the same columns, got {words}. Rename them, or leave them out with `--ignore`.")
    found: dict[str, Kind] = {name: _kind(name, reference.field(name).type, current.field(name).type) for name in ours}
    found |= {name: "text" for name in categorical if found.get(name) == "number"}
    if not found:
        raise DataError("There must be a column to compare, got none. Give tables with columns, and ignore fewer.")
    return found


def _kind(name: str, ours: pa.DataType, theirs: pa.DataType) -> Kind:
    kinds = [kind_of(ours), kind_of(theirs)]
    for kind, type_ in zip(kinds, (ours, theirs), strict=True):
        if kind is None:
            raise DataError(
                f"Column {name!r} must hold numbers, texts, truth values, times or vectors of numbers, got {type_}. "
                f"Take it apart, or leave it out with `--ignore {name}`."
            )
    filled = {kind for kind in kinds if kind and kind != "nothing"}
    if len(filled) > 1:
        raise DataError(
            f"Column {name!r} must be of one kind in both tables, got {kinds[0]} ({ours}) in the reference and {kinds[1]} "
            f"({theirs}) in the current table. Cast one of them, or leave it out with `--ignore {name}`."
        )
    return filled.pop() if filled else "nothing"


def _frame(numerical: Mapping[str, Floats], texts: Mapping[str, Texts], embeddings: Floats, part: slice) -> Frame:
    rows = embeddings[part]
    return Frame(
        {name: values[part] for name, values in numerical.items()},
        {name: values[part] for name, values in texts.items()},
        np.zeros((len(rows), 0)),
        rows,
        (),
        np.full(len(rows), -1, dtype=np.int64),
        (),
    )


def _numbers(column: pa.ChunkedArray) -> Floats:
    values: Floats = column.cast(pa.float64(), safe=False).to_numpy().astype(np.float64, copy=True)
    values[~np.isfinite(values)] = np.nan
    return values


def _texts(column: pa.ChunkedArray, kind: Kind) -> Texts:
    """Categories as text, "" where there is none; a number that is a code the same in every type it may have."""
    if kind in {"time", "nothing"}:
        return np.where(column.is_null().to_numpy(), "", THERE).astype(np.str_)
    if kind_of(column.type) == "number":
        values, codes = np.unique(_numbers(column), return_inverse=True)
        names = ["" if np.isnan(v) else str(int(v)) if v.is_integer() else repr(float(v)) for v in values]
        return np.array(names or [""], dtype=np.str_)[codes]
    texts: Texts = column.cast(pa.string()).fill_null("").to_numpy().astype(np.str_)
    return texts


def _categories(values: Texts, kind: Kind) -> tuple[Texts, str]:
    """Values with the rare ones of many as one, or only whether they are there, and then why."""
    if kind == "time":
        return values, "a point in time, which moves by itself"
    if kind == "nothing":
        return values, "there is no value in either table"
    filled = values[values != ""]
    names, counts = np.unique(filled, return_counts=True)
    if len(names) > max(MAX_CATEGORIES, ID_SHARE * len(filled)):
        return np.where(values == "", "", THERE), f"{len(names):,} different values in {len(filled):,} rows, like an id"
    if len(names) <= MAX_CATEGORIES:
        return values, ""
    frequent = names[np.argsort(-counts, kind="stable")[: MAX_CATEGORIES - 1]]
    return np.where((values == "") | np.isin(values, frequent), values, OTHER), ""


def _vectors(name: str, parts: Sequence[pa.ChunkedArray]) -> Floats:
    chunks = [chunk for part in parts for chunk in part.chunks if len(chunk)]
    lengths = {length for chunk in chunks if not chunk.null_count for length in pc.list_value_length(chunk).to_pylist()}
    if len(lengths) > 1 or any(chunk.null_count for chunk in chunks):
        raise DataError(f"Vectors of column {name!r} must all be there and of one length. Drop the rows where they are not.")
    flat = [np.asarray(chunk.flatten().cast(pa.float64(), safe=False), dtype=np.float64) for chunk in chunks]
    values = np.concatenate([*flat, np.zeros(0)]).reshape(-1, *lengths or {0})
    if not np.isfinite(values).all():
        raise DataError(f"Vectors of column {name!r} must be finite, got NaN or infinity. Drop the rows where they are not.")
    return values


def _known(schema: pa.Schema) -> str:
    return f"The reference has {_list(schema.names[:20])}{' …' if len(schema.names) > 20 else ''}."


def _list(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
