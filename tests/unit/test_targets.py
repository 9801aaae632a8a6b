"""Labels become tensors and predictions text, and a prediction is right or not: the same rules for every task."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from everfresh.tasks.errors import DataError
from everfresh.tasks.targets import MOST_GROUPS, Targets

NAMES = ("ant", "bee", "cow", "dog")
ONE, SETS, VALUES = Targets(NAMES), Targets(NAMES, "multi_label"), Targets(("age", "height"), "regression", 0.5)
SUBSET = st.sets(st.sampled_from(NAMES))
DECIMAL = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(st.lists(SUBSET, min_size=1, max_size=20))
def test_sets_of_classes_survive_the_way_to_a_tensor_and_back(sets: list[set[str]]) -> None:
    labels = [SETS.canonical("|".join(names) or "|") for names in sets]
    truth = SETS.encode(labels)
    assert truth.sum(axis=1).tolist() == [len(names) for names in sets]
    assert SETS.texts(truth - 0.5) == labels
    assert all(label in SETS for label in labels)


@given(SUBSET.flatmap(lambda names: st.permutations(sorted(names))))
def test_a_set_has_one_text_however_it_is_written(names: list[str]) -> None:
    import json

    spaced = f" {' | '.join(names)} |"
    assert SETS.canonical(spaced) == SETS.canonical(json.dumps(names)) == ("|".join(sorted(names)) or "|")


@given(st.lists(st.tuples(DECIMAL, DECIMAL), min_size=1, max_size=20))
def test_values_survive_the_way_to_a_tensor_and_back(rows: list[tuple[float, float]]) -> None:
    labels = [VALUES.canonical(f"{a!r};{b!r}") for a, b in rows]
    assert labels == [VALUES.canonical(f"[{a!r}, {b!r}]") for a, b in rows] == [VALUES.canonical(label) for label in labels]
    assert np.array_equal(VALUES.encode(labels), np.array(rows, dtype=np.float32))
    assert VALUES.right(VALUES.encode(labels), VALUES.encode(labels)).all()


def test_the_empty_set_is_a_label_and_no_label_is_none() -> None:
    truth = SETS.encode(["|", None, "ant|zebra"])
    assert SETS.known(truth).tolist() == [True, False, False]
    assert truth[0].tolist() == [0, 0, 0, 0]
    assert "|" in SETS
    assert None not in SETS
    assert "ant|zebra" not in SETS


@pytest.mark.parametrize(
    ("targets", "label", "said"),
    [
        (VALUES, "nan;1", "must have a finite decimal number such as -1.5 as its label, got 'nan;1'"),
        (VALUES, "1;inf", "finite decimal number"),
        (VALUES, "1;1e999", "finite decimal number"),
        (VALUES, "1;1e39", "finite decimal number"),  # more than a tensor holds
        (VALUES, "1;1_0", "finite decimal number"),
        (VALUES, "[NaN, 1]", "finite decimal number"),
        (VALUES, "[true, 1]", "finite decimal number"),
        (VALUES, "1;", "finite decimal number"),
        (VALUES, "1", r"must have 2 values \(age, height\) as its label, got '1'"),
        (VALUES, "[1, 2, 3]", "must have 2 values"),
        (VALUES, "[1, 2", "has a label that begins a list and is none in JSON"),
        (SETS, '["ant"', "has a label that begins a list and is none in JSON"),
        (SETS, '["ant", 3]', "must have names of classes in its list of labels, got '3'"),
        (SETS, '["ant|bee"]', "must have names of classes"),
        (SETS, '["ant", ""]', "must have names of classes"),
        (SETS, "bee|[ant", r"must have names of classes that do not begin with \[, got '\[ant'"),
    ],
)
def test_what_is_no_label_says_why(targets: Targets, label: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        targets.canonical(label)


@given(st.text(max_size=12), st.sampled_from([SETS, VALUES]))
@example(" [", SETS)
@example("bee|[ant", SETS)
@example('["[ant"]', SETS)
def test_any_text_has_a_canonical_form_that_stays_or_is_refused(text: str, targets: Targets) -> None:
    try:
        label = targets.canonical(text)
    except DataError:
        return
    assert targets.canonical(label) == label
    assert targets.known(targets.encode([label])).tolist() == [label in targets]


@pytest.mark.parametrize("of", [np.array, torch.tensor])
def test_right_means_the_same_for_arrays_and_tensors(of: Any) -> None:
    assert ONE.right(of([[1.0, 2, 0, 0], [3.0, 1, 0, 0]]), of([1, 1])).tolist() == [True, False]
    scores, truth = of([[1.0, -1, -1, -1], [1.0, 1, -1, -1], [1.0, 1, 1, -1]]), of([[1.0, 0, 0, 0]] * 3)
    assert SETS.right(scores, truth).tolist() == [True, False, False]
    assert Targets(NAMES, "multi_label", 1).right(scores, truth).tolist() == [True, True, False]
    said = of([[1.0, 2.0], [1.5, 2.0], [1.0, 2.6]])
    assert VALUES.right(said, of([[1.0, 2.0]] * 3)).tolist() == [True, True, False]
    nothing = of([[math.nan] * 4] * 3)
    assert not SETS.right(scores, nothing).any()
    assert not VALUES.right(said, nothing[:, :2]).any()


@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=5), st.integers(0, 2))
def test_confidence_in_a_set_is_that_of_all_outcomes_added_up(rows: list[list[float]], tolerance: int) -> None:
    from itertools import product

    probabilities = np.array(rows)
    wrong = np.minimum(probabilities, 1 - probabilities)
    expected = [
        sum(
            math.prod(q if fails else 1 - q for q, fails in zip(row, outcome, strict=True))
            for outcome in product([0, 1], repeat=3)
            if sum(outcome) <= tolerance
        )
        for row in wrong
    ]
    found = Targets(NAMES[:3], "multi_label", tolerance).confidence(probabilities)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_chance_is_how_often_one_label_is_right_for_another() -> None:
    assert ONE.chance(np.array([0, 0, 1, 1])) == 0.5
    assert SETS.chance(SETS.encode(["ant", "ant", "|", "bee|ant"])) == pytest.approx((4 + 1 + 1) / 16)
    loose = Targets(NAMES, "multi_label", 1)
    assert loose.chance(loose.encode(["ant", "ant", "|", "bee|ant"])) == 14 / 16  # no class and two are too far apart
    one = Targets(("age",), "regression", 1)
    assert one.chance(one.encode(["0", "1", "2", "9"])) == pytest.approx((2 + 3 + 2 + 1) / 16)
    assert one.chance(one.encode([])) == 1


@given(st.lists(st.integers(0, 200), min_size=1, max_size=300))
def test_counts_stay_bounded_and_add_up(values: list[int]) -> None:
    targets = Targets(("constant", "age"), "regression", 1)
    found = targets.counts(targets.canonical(f"7;{v}") for v in values)
    assert sum(found.values()) == len(values)
    assert len(found) == min(2, len(set(values)))
    many = Targets(tuple(f"c{i}" for i in range(201)), "multi_label").counts(f"c{v}" for v in values)
    assert sum(many.values()) == len(values)
    assert min(2, len(set(values))) <= len(many) <= MOST_GROUPS


def test_what_a_model_was_trained_for_may_grow_in_classes_only() -> None:
    assert ONE.changed(Targets(("ant",))) == ""
    assert SETS.changed(ONE) == "model.task single_label"
    assert VALUES.changed(Targets(("age",), "regression", 3)) == "model.targets age"
