"""The reservoir of what is replayed: bounded, fair to every class and window, and the same whatever the order."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everfresh.tasks.fine_tune.pool import Pool, pool_of, reservoir
from everfresh.tasks.targets import Targets
from everfresh.tasks.views import Sample

SAMPLES = st.lists(st.tuples(st.sampled_from("VW"), st.sampled_from("abc"), st.integers(0, 40).map(str)), max_size=80)
BUDGET = st.integers(0, 90)


@given(SAMPLES, BUDGET)
def test_a_reservoir_is_full_to_its_budget_and_no_fuller(samples: list[tuple[str, str, str]], most: int) -> None:
    assert len(reservoir(samples, most)) == min(most, len(set(samples)))


@given(SAMPLES, BUDGET)
def test_no_window_gets_more_than_another_that_has_more(samples: list[tuple[str, str, str]], most: int) -> None:
    kept, there = (Counter(s[0] for s in some) for some in (reservoir(samples, most), set(samples)))
    assert all(kept[view] == there[view] or kept[view] >= max(kept.values(), default=0) - 1 for view in there)


@given(SAMPLES, BUDGET)
def test_each_class_of_a_window_keeps_its_share_and_none_dies_out(samples: list[tuple[str, str, str]], most: int) -> None:
    kept, there = (Counter(s[:2] for s in some) for some in (reservoir(samples, most), set(samples)))
    for view in {view for view, _ in there}:
        classes = [cell for cell in there if cell[0] == view]
        places, size = (sum(counts[cell] for cell in classes) for counts in (kept, there))
        assert places < len(classes) or all(kept[cell] for cell in classes)
        assert all(abs(kept[cell] - places * there[cell] / size) <= len(classes) for cell in classes)


def test_a_rare_class_stays_rare_under_any_budget() -> None:
    samples = [("V", "rare" if i % 10 == 0 else "common", str(i)) for i in range(1_000)]
    kept = Counter(label for _, label, _ in reservoir(samples, 200))
    assert abs(kept["rare"] - 20) <= 1


@given(SAMPLES, BUDGET, BUDGET)
def test_what_is_kept_stays_kept_under_a_larger_budget(samples: list[tuple[str, str, str]], one: int, other: int) -> None:
    assert reservoir(samples, min(one, other)) <= reservoir(samples, max(one, other))


@given(SAMPLES.flatmap(lambda samples: st.tuples(st.just(samples), st.permutations(samples))), BUDGET)
def test_the_order_of_the_samples_does_not_matter(
    orders: tuple[list[tuple[str, str, str]], list[tuple[str, str, str]]], most: int
) -> None:
    assert reservoir(orders[0], most) == reservoir(orders[1], most)


@given(SAMPLES, st.lists(st.integers(0, 40).map(str), max_size=20), BUDGET)
def test_a_new_window_only_takes_places_from_the_earlier_ones(
    samples: list[tuple[str, str, str]], more: list[str], most: int
) -> None:
    before = reservoir(samples, most)
    after = reservoir([*samples, *(("X", "a", key) for key in more)], most)
    assert {s for s in after if s[0] != "X"} <= before


class Fake:
    """A view of samples that are a label each; even ones are for training."""

    def __init__(self, name: str, labels: str) -> None:
        self.window = type("Window", (), {"view": name})
        common = dict.fromkeys(
            ("timestamp", "shard", "offset", "size", "width", "height", "brightness", "contrast", "sharpness",
             "colourfulness", "slices")
        )  # fmt: skip
        self.samples = [
            Sample(key=f"{name}{i}", digest="", group=f"g{i}", label=c, split="tune" if i % 2 else "train", **common)  # type: ignore[arg-type]
            for i, c in enumerate(labels)
        ]

    def rows(self, split: str, known: Targets) -> np.ndarray:
        return np.array([i for i, s in enumerate(self.samples) if s.split == split and s.label in known], dtype=np.int64)


def pool(most: int, withheld: frozenset[str] = frozenset()) -> Pool:
    old = [Fake("old", "abababaaaaaaaaaaaaaa"), Fake("older", "ccccbbbbaa")]
    return pool_of(Fake("new", "aabbcc"), old, "train", Targets(("a", "b")), most, withheld)  # type: ignore[arg-type]


@pytest.mark.parametrize(("most", "sizes"), [(0, [2]), (3, [2, 2, 1]), (100, [2, 10, 3])])
def test_a_pool_has_all_of_the_window_and_a_reservoir_of_the_others(most: int, sizes: list[int]) -> None:
    found = pool(most)
    assert [len(rows) for _, rows in found.parts] == sizes
    assert found.parts[0][1].tolist() == [0, 2]
    assert all((np.diff(rows) > 0).all() for _, rows in found.parts)


def test_a_pool_leaves_out_withheld_groups_and_unknown_classes() -> None:
    found = pool(100, frozenset({"g0", "g2"}))
    assert found.parts[0][1].tolist() == []
    assert {s.label for v, rows in found.parts for s in (v.samples[int(r)] for r in rows)} == {"a", "b"}
    assert not {v.samples[int(r)].group for v, rows in found.parts for r in rows} & {"g0", "g2"}
