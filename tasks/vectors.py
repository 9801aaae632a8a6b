"""Rows of a table as samples: bytes at ingest, numbers for the model.

A sample's bytes are one JSON object of the values of its row, by column: numbers, texts, null where one is missing. They
are canonical, so equal rows have equal bytes, and plain: a consumer needs a JSON reader alone. What the model is fed,
`to_vector` makes of them: numbers standardised, a missing one at the mean; categories as zeros and a one, any other value
as zeros alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from everfresh.tasks.errors import DataError
from everfresh.tasks.labels import name_in
from everfresh.tasks.records import Feature

if TYPE_CHECKING:
    import torch

    from everfresh.tasks.config import Column

Value = float | str | None


def encode(values: Mapping[str, Value]) -> bytes:
    """The bytes of a row; numbers must be finite."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def values_of(data: bytes) -> dict[str, Value]:
    """The values of a row, by column."""
    found: dict[str, Value] = json.loads(data)
    return found


def as_kept(data: bytes, features: Iterable[Column | Feature]) -> bytes:
    """A row that came as a JSON object of its values, as a row of a table is kept.

    Raises:
        DataError: it is no such object, lacks one of the features, or one of its values cannot be used.
    """
    try:
        cells = json.loads(data)
    except (ValueError, RecursionError):
        cells = None
    if not isinstance(cells, dict):
        raise DataError("is not a row: a JSON object of its values by column")
    features = tuple(features)
    if missing := [f.name for f in features if f.name not in cells]:
        raise DataError(f"has no value, not even null, in {', '.join(missing)}, which model.features names")
    return encode({f.name: cell(f, cells[f.name]) for f in features})


def cell(feature: Column | Feature, raw: Any) -> Value:
    """The value of a feature as it is kept, whatever a table, a service or JSON calls it.

    Raises:
        DataError: it is no such value.
    """
    return name_in(text(raw)) if feature.categories else _number(feature.name, raw)


def _number(name: str, raw: Any) -> float | None:
    if raw is None:
        return None
    try:
        value = float(raw)
    except (ValueError, TypeError, OverflowError):
        raise DataError(f"has {str(raw)[:40]!r} in {name}, which is not a number") from None
    if math.isinf(value):
        raise DataError(f"has an infinite number in {name}")
    return None if math.isnan(value) else value + 0.0  # one zero


def text(raw: Any) -> Any:
    """A cell that is a name; a whole number is written without a point, as tables with gaps make 1.0 of 1."""
    return int(raw) if isinstance(raw, float) and raw.is_integer() else None if raw != raw else raw


def to_vector(data: bytes, features: Sequence[Feature]) -> torch.Tensor:
    """A row as the model's input, (D,) float32: a place for each number and for each category, in the order of `features`.

    Raises:
        DataError: the row was taken in before `model.features` named one of the columns.
    """
    import torch

    values, vector = values_of(data), []
    for feature in features:
        if feature.name not in values:
            raise DataError(
                f"model.features names the column {feature.name!r}, which a row of an earlier window does not have: rows keep "
                f"the columns that were named when they came in, {', '.join(sorted(values))[:200]}. Name those, or start a "
                "pipeline of another name."
            )
        value = values[feature.name]
        if feature.categories:
            vector += [float(value == category) for category in feature.categories]
        else:
            vector.append(0.0 if value is None else (float(value) - feature.mean) / feature.std)
    return torch.tensor(vector, dtype=torch.float64).float()


def fitted(features: Sequence[Feature], rows: Iterable[bytes]) -> tuple[Feature, ...]:
    """The features with mean and standard deviation of each number over some rows; missing values are passed over.

    A number that never varies keeps the standard deviation 1. Means and squares are summed in one pass (Welford 1962).
    """
    numbers = [f for f in features if not f.categories]
    counts, means, squares = ([0.0] * len(numbers) for _ in range(3))
    for data in rows:
        values = values_of(data)
        for i, feature in enumerate(numbers):
            value = values.get(feature.name)
            if isinstance(value, float | int):
                counts[i] += 1
                step = value - means[i]
                means[i] += step / counts[i]
                squares[i] += step * (value - means[i])
    made = {
        f.name: f.model_copy(update={"mean": mean, "std": math.sqrt(square / count) if count and square > 0 else 1.0})
        for f, count, mean, square in zip(numbers, counts, means, squares, strict=True)
    }
    return tuple(made.get(f.name, f) for f in features)
