"""Slices: every sample is in one slice of each column, and the intervals hold what they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from everfresh.tasks.slices import LABEL, MISSING, WINDOW, by_slice, columns_of, wilson
from everfresh.tasks.views import Sample


def sample(label: str | None = "cat", slices: str = "{}") -> Sample:
    return Sample("k", "d", "g", label, "holdout", None, 0, 0, 1, slices=slices)


def test_the_columns_are_the_sources_and_label_and_window() -> None:
    samples = [sample("cat", '{"site": "a"}'), sample("dog", '{"site": "b", "device": "x"}'), sample("cat")]
    columns = columns_of(samples, ["1", "1", "2"], labels=True)
    assert {name: values.tolist() for name, values in columns.items()} == {
        LABEL: ["cat", "dog", "cat"],
        WINDOW: ["1", "1", "2"],
        "device": [MISSING, "x", MISSING],
        "site": ["a", "b", MISSING],
    }
    assert LABEL not in columns_of(samples, ["1"] * 3, labels=False)


def test_a_column_of_the_source_stands_before_ours_of_that_name() -> None:
    columns = columns_of([sample("cat", '{"window": "north"}')], ["1"], labels=True)
    assert columns[WINDOW].tolist() == ["north"]


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60))
@example([("a", False)] * 7)  # whose lower bound was above 0 by a rounding error
def test_slices_part_the_samples(rows: list[tuple[str, bool]]) -> None:
    values, right = np.array([v for v, _ in rows], dtype=np.str_), np.array([r for _, r in rows], dtype=bool)
    found = by_slice({"site": values, WINDOW: np.array(["1"] * len(rows), dtype=np.str_)}, right)
    for column in ("site", WINDOW):
        mine = [s for s in found if s.column == column]
        assert sum(s.samples for s in mine) == len(rows)
        assert sum(s.right for s in mine) == right.sum()
    assert all(s.accuracy.low <= s.accuracy.value <= s.accuracy.high and s.samples for s in found)


@settings(deadline=None)
@given(st.integers(0, 400), st.integers(0, 400), st.sampled_from([0.5, 0.8, 0.95, 0.999]))
def test_the_interval_is_wilsons(hits: int, more: int, confidence: float) -> None:
    found, count = wilson(hits, hits + more, confidence), hits + more
    if not count:
        assert (found.value, found.low, found.high) == (0, 0, 1)
        return
    known = binomtest(hits, count).proportion_ci(confidence, "wilson")
    assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=1e-9)
