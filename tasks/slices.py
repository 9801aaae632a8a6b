"""Accuracy by slice: by the values of each metadata column, by label, by window.

One place for gate, page and card alike: which columns the samples have, and how often a model is right in each slice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from everfresh.tasks.records import Interval
from everfresh.tasks.views import Sample

LABEL, WINDOW = "label", "window"
"""Columns that every sample has, beside those of its source; a column of the source with such a name stands before it."""
MISSING = "(none)"
"""Value of a sample whose cell is empty."""

Columns = dict[str, NDArray[np.str_]]
"""By name of the column, the value of each sample (N,)."""


@dataclass(frozen=True)
class Slice:
    """How one model does on the samples with one value in a column."""

    column: str
    value: str
    samples: int
    right: int
    accuracy: Interval
    """Share that is right, with its Wilson interval; 0…1 for no sample."""


def columns_of(samples: Sequence[Sample], windows: Sequence[str], *, labels: bool) -> Columns:
    """The slice columns of some samples: those of their source, then `label` and `window`.

    Args:
        samples: N of them.
        windows: (N,) what to call the window that each is of.
        labels: whether a label is one of several classes and so makes slices.
    """
    rows = [json.loads(s.slices) for s in samples]
    names = sorted({name for row in rows for name in row})
    found = {name: [str(row.get(name, MISSING)) for row in rows] for name in names}
    built_in = {LABEL: [s.label or MISSING for s in samples]} if labels else {}
    built_in[WINDOW] = list(windows)
    return {name: np.array(values, dtype=np.str_) for name, values in (built_in | found).items()}


def by_slice(columns: Mapping[str, NDArray[np.str_]], right: NDArray[np.bool_], confidence: float = 0.95) -> list[Slice]:
    """Accuracy in every slice of every column, columns in their order, values sorted.

    Args:
        columns: see :func:`columns_of`.
        right: (N,) whether each prediction is right.
        confidence: of each interval, by itself.
    """
    found = []
    for column, values in columns.items():
        for value in np.unique(values):
            inside = right[values == value]
            count, hits = len(inside), int(inside.sum())
            found.append(Slice(column, str(value), count, hits, wilson(hits, count, confidence)))
    return found


def wilson(hits: int, count: int, confidence: float = 0.95) -> Interval:
    """A share with its score interval (Wilson 1927), which holds its confidence at small counts and near 0 and 1."""
    if not count:
        return Interval(value=0.0, low=0.0, high=1.0)
    z = float(norm.ppf((1 + confidence) / 2))
    share = hits / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return Interval(
        value=share, low=max(0.0, min(share, float(centre - half))), high=min(1.0, max(share, float(centre + half)))
    )
