"""Harm: what a shift costs is told from what it merely changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from everfresh.tasks.drift.frame import Answers, Frame
from everfresh.tasks.drift.harm import MOST_SLICES, class_shift, concept, estimated_accuracy, slices
from everfresh.tasks.targets import Targets

CLASSES = ("a", "b", "c")


def frame(
    count: int,
    seed: int = 0,
    *,
    sharp: float = 1.0,
    fade: float = 0.0,
    noise: float = 0.0,
    move: float = 0.0,
    shares: tuple[float, ...] = (1 / 3, 1 / 3, 1 / 3),
) -> Frame:
    """A model of three classes, calibrated at `sharp` 1; inputs can `fade` (0…1), be noisy, or all move."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, count, p=shares)
    embeddings = rng.normal(size=(count, 6)) + 1.8 * (1 - fade) * np.eye(6)[labels] + noise * rng.normal(size=(count, 6)) + move
    exponent = np.exp(1.8 * sharp * embeddings[:, :3])
    probabilities = exponent / exponent.sum(axis=1, keepdims=True)
    return Frame(
        numerical={"confidence": probabilities.max(axis=1)},
        categorical={
            "prediction": np.array(CLASSES)[probabilities.argmax(axis=1)],
            "site": rng.choice(np.array(["x", "y"], dtype=np.str_), count),
        },
        probabilities=probabilities,
        embeddings=embeddings,
        classes=CLASSES,
        labels=labels.astype(np.int64),
        places=(),
    )


def altered(sample: Frame, **changes: Any) -> Frame:
    return Frame(**{**vars(sample), **changes})


def joined(first: Frame, second: Frame) -> Frame:
    from everfresh.tasks.drift.frame import concatenate

    return concatenate([first, second])


def unlabelled(sample: Frame) -> Frame:
    return altered(sample, labels=np.full(len(sample), -1, dtype=np.int64))


def scoreless(count: int) -> Frame:
    """What a regression would give: a table without classes."""
    return Frame({"x": np.arange(float(count))}, {}, np.zeros((count, 0)), np.ones((count, 2)), (), np.full(count, -1), ())


# --- accuracy without labels ---------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 80), st.integers(0, 40), st.floats(0.05, 3))
def test_on_the_reference_itself_the_estimate_is_its_accuracy(count: int, seed: int, sharp: float) -> None:
    reference = frame(count, seed, sharp=sharp)
    accuracy, estimate = estimated_accuracy(reference, reference, seed=0)
    assert accuracy == reference.correct.mean()
    assert estimate.value == pytest.approx(accuracy)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 40), st.floats(0, 6), st.floats(-4, 4))
def test_an_estimate_is_a_share_inside_its_interval(ours: int, theirs: int, seed: int, noise: float, move: float) -> None:
    accuracy, estimate = estimated_accuracy(frame(ours, seed), frame(theirs, seed + 1, noise=noise, move=move), seed)
    assert 0 <= accuracy <= 1
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 40))
def test_the_order_of_rows_changes_nothing(seed: int) -> None:
    reference, current = frame(60, seed), frame(50, seed + 1, noise=1)
    rng = np.random.default_rng(seed)
    mixed = reference.take(rng.permutation(60)), current.take(rng.permutation(50))
    for ours, theirs in zip(
        _numbers(estimated_accuracy(reference, current, seed)), _numbers(estimated_accuracy(*mixed, seed)), strict=True
    ):
        assert ours == pytest.approx(theirs, abs=1e-6)
    assert [c.name for c in class_shift(reference, current, seed)] == [c.name for c in class_shift(*mixed, seed)]
    assert concept(reference, current, seed, 99) == concept(*mixed, seed, 99)
    for one, other in zip(slices(reference, current), slices(*mixed), strict=True):
        assert (one.column, one.value, one.samples) == (other.column, other.value, other.samples)
        assert one.estimated_accuracy == pytest.approx(other.estimated_accuracy, abs=1e-6)


def _numbers(found: Any) -> tuple[float, ...]:
    return found[0], found[1].value, found[1].low, found[1].high


def test_the_same_seed_gives_the_same_numbers() -> None:
    reference, current = frame(80), frame(60, 1, noise=1)
    assert estimated_accuracy(reference, current, 3) == estimated_accuracy(reference, current, 3)
    assert class_shift(reference, current, 3) == class_shift(reference, current, 3)
    assert concept(reference, current, 3, 99) == concept(reference, current, 3, 99)


def test_the_estimate_follows_the_model_down() -> None:
    reference = frame(400)
    estimates, truths = [], []
    for fade in (0.0, 0.3, 0.6, 0.9):
        current = frame(400, 1, fade=fade)
        estimates.append(estimated_accuracy(reference, current, 0)[1].value)
        truths.append(current.correct.mean())
    assert estimates == sorted(estimates, reverse=True)
    assert estimates[0] - estimates[-1] > 0.3 * (truths[0] - truths[-1])


def test_the_interval_holds_the_accuracy_of_a_quiet_window() -> None:
    held = []
    for seed in range(60):
        current = frame(60, 100 + seed)
        _, estimate = estimated_accuracy(frame(300, seed), current, seed)
        held.append(estimate.low <= current.correct.mean() <= estimate.high)
    assert binomtest(sum(held), len(held), 0.95, "less").pvalue > 1e-3


def test_a_quiet_window_is_expected_to_be_like_the_reference() -> None:
    for seed in range(10):
        accuracy, estimate = estimated_accuracy(frame(400, seed), frame(50, 100 + seed), seed)
        assert estimate.value == pytest.approx(accuracy, abs=0.05)
        assert estimate.low <= accuracy <= estimate.high


def test_a_sure_model_on_one_class_of_strange_inputs_is_not_believed() -> None:
    """Noise that the champion calls one class with full confidence: thresholded confidence says 100 %."""
    current = frame(200, 1)
    noise = np.random.default_rng(2).normal(8, 1, size=(200, 6))
    probabilities = np.tile([0.002, 0.002, 0.996], (200, 1))
    collapsed = altered(
        current, embeddings=noise, probabilities=probabilities, numerical={"confidence": probabilities.max(axis=1)}
    )
    assert estimated_accuracy(frame(300), collapsed, 0)[1].value < 0.5


def test_a_window_of_one_known_class_is_believed() -> None:
    errors = []
    for seed in range(10):
        current = frame(200, 100 + seed, shares=(1.0, 0.0, 0.0))
        errors.append(estimated_accuracy(frame(300, seed), current, seed)[1].value - current.correct.mean())
    assert np.abs(errors).mean() < 0.06


def test_a_picture_of_the_reference_counts_as_if_the_second_head_had_not_learnt_it() -> None:
    """Wide embeddings and few rows: the head fits what it has seen, and would call any such window right."""
    rng = np.random.default_rng(0)
    reference = altered(frame(60), embeddings=rng.normal(size=(60, 200)))
    accuracy, estimate = estimated_accuracy(reference, reference.take(np.arange(0, 60)), 0)
    assert estimate.value == pytest.approx(accuracy)


def test_the_accuracy_is_that_of_labelled_reference_samples_only() -> None:
    reference = frame(60)
    half = altered(reference, labels=np.where(np.arange(60) < 30, reference.labels, -1))
    assert estimated_accuracy(half, frame(20, 1), 0)[0] == reference.correct[:30].mean()


def test_without_labels_or_samples_the_estimate_says_that_it_knows_nothing() -> None:
    for reference, current in ((unlabelled(frame(30)), frame(20, 1)), (frame(30), frame(0, 1)), (frame(0), frame(20))):
        _, estimate = estimated_accuracy(reference, current, 0)
        assert (estimate.low, estimate.high) == (0, 1)


def test_a_table_without_classes_loses_nothing_and_says_nothing() -> None:
    accuracy, estimate = estimated_accuracy(scoreless(40), scoreless(30), 0)
    assert (accuracy, estimate.value, estimate.low, estimate.high) == (1, 1, 0, 1)
    assert class_shift(scoreless(40), scoreless(30), 0) == ()
    assert slices(scoreless(40), scoreless(30)) == ()
    assert concept(scoreless(40), scoreless(30), 0, 99) is None


def test_a_table_without_embeddings_has_its_confidence_alone() -> None:
    reference, current = (altered(f, embeddings=np.zeros((len(f), 0))) for f in (frame(200), frame(100, 1, sharp=0.3)))
    accuracy, estimate = estimated_accuracy(reference, current, 0)
    assert accuracy == reference.correct.mean()
    assert estimate.value < accuracy
    assert slices(reference, current)


@pytest.mark.parametrize("label", [0, 2])
def test_a_reference_of_one_class_is_no_trouble(label: int) -> None:
    reference = frame(40)
    single = altered(reference, labels=np.full(40, label, dtype=np.int64))
    assert 0 <= estimated_accuracy(single, frame(90, 1), 0)[1].value <= 1
    assert sum(c.estimated.value for c in class_shift(single, frame(90, 1), 0)) == pytest.approx(1)
    assert slices(single, frame(90, 1))


# --- classes -----------------------------------------------------------------------------------------------------


def test_shares_of_classes_on_the_reference_itself_are_exact() -> None:
    reference = frame(200, shares=(0.5, 0.3, 0.2))
    for found in class_shift(reference, reference, 0):
        assert found.estimated.value == pytest.approx(found.reference, abs=1e-9)
        assert found.estimated.low <= found.reference <= found.estimated.high


def test_new_shares_of_classes_are_found_within_their_intervals() -> None:
    shares = {"a": 0.1, "b": 0.2, "c": 0.7}
    held = []
    for seed in range(30):
        found = class_shift(frame(500, seed), frame(300, 100 + seed, shares=tuple(shares.values())), seed)
        assert found[0].name == "c"  # the most changed first
        held += [c.estimated.low <= shares[c.name] <= c.estimated.high for c in found]
    assert binomtest(sum(held), len(held), 0.95).pvalue > 1e-3 or np.mean(held) > 0.95


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 40), st.floats(-3, 3))
def test_shares_are_a_distribution(ours: int, theirs: int, seed: int, move: float) -> None:
    found = class_shift(frame(ours, seed), frame(theirs, seed + 1, move=move), seed)
    assert sorted(c.name for c in found) == list(CLASSES)
    assert sum(c.estimated.value for c in found) == pytest.approx(1)
    assert all(0 <= c.estimated.low <= c.estimated.value <= c.estimated.high <= 1 + 1e-12 for c in found)
    changes = [abs(c.estimated.value - c.reference) for c in found]
    assert changes == sorted(changes, reverse=True)


def test_a_model_that_tells_two_classes_not_apart_leans_to_the_usual_shares() -> None:
    def blind(sample: Frame) -> Frame:
        pair = sample.probabilities[:, :2].sum(axis=1, keepdims=True) / 2
        return altered(sample, probabilities=np.hstack([pair, pair, sample.probabilities[:, 2:]]))

    found = {c.name: c.estimated.value for c in class_shift(blind(frame(500)), blind(frame(300, 1, shares=(0.1, 0.1, 0.8))), 0)}
    assert found["c"] == pytest.approx(0.8, abs=0.1)
    assert found["a"] == pytest.approx(found["b"], abs=0.08)


def test_nothing_is_said_of_classes_without_labels_or_samples() -> None:
    assert class_shift(unlabelled(frame(30)), frame(20), 0) == ()
    assert class_shift(frame(30), frame(0), 0) == ()


# --- slices ------------------------------------------------------------------------------------------------------


def test_the_slice_that_suffers_comes_first() -> None:
    good, bad = frame(200, 1), frame(100, 2, fade=0.8)
    good = altered(good, categorical={**good.categorical, "site": np.full(200, "x")})
    bad = altered(bad, categorical={**bad.categorical, "site": np.full(100, "y")})
    found = [s for s in slices(frame(400), joined(good, bad)) if s.column == "site"]
    assert [s.value for s in found] == ["y", "x"]
    assert [s.samples for s in found] == [100, 200]
    assert found[0].reference_accuracy - found[0].estimated_accuracy > 0.1


def test_slices_are_few_and_large_and_the_worst_come_first() -> None:
    many = frame(400, 1)
    rare = np.where(np.arange(400) < 4, "rare", np.array([f"s{i % 20}" for i in range(400)]))
    many = altered(many, categorical={**many.categorical, "sensor": rare})
    found = slices(frame(300), many)
    assert len(found) == MOST_SLICES
    assert "rare" not in {s.value for s in found}
    losses = [s.reference_accuracy - s.estimated_accuracy for s in found]
    assert losses == sorted(losses, reverse=True)
    assert all(0 <= s.estimated_accuracy <= 1 for s in found)


def test_a_slice_that_the_reference_lacks_is_held_against_all_of_it() -> None:
    reference, current = frame(300), frame(100, 1)
    current = altered(current, categorical={**current.categorical, "site": np.full(100, "new")})
    (found,) = [s for s in slices(reference, current) if s.column == "site"]
    assert found.reference_accuracy == pytest.approx(reference.correct.mean())


def test_no_slices_without_labels_in_the_reference() -> None:
    assert slices(unlabelled(frame(50)), frame(50, 1)) == ()


# --- concept -----------------------------------------------------------------------------------------------------


def test_an_unchanged_concept_is_called_changed_no_more_often_than_declared() -> None:
    trials = 300
    values = np.array([concept(frame(80, 2 * i), frame(60, 2 * i + 1), i, 99) for i in range(trials)], dtype=float)
    for level in (0.05, 0.1, 0.2):
        alarms = int((values <= level).sum())
        assert binomtest(alarms, trials, level, "greater").pvalue > 1e-3, f"{alarms} of {trials} at {level}"


@pytest.mark.parametrize("shift", [{"shares": (0.8, 0.1, 0.1)}, {"shares": (0.5, 0.5, 0.0)}])
def test_other_shares_of_classes_are_no_changed_concept(shift: Any) -> None:
    values = [concept(frame(200, 2 * i), frame(150, 2 * i + 1, **shift), i, 99) for i in range(100)]
    alarms = sum(v is not None and v <= 0.05 for v in values)
    assert binomtest(alarms, 100, 0.05, "greater").pvalue > 1e-3, alarms


@pytest.mark.parametrize("meaning", [[1, 2, 0], [1, 0, 2], [0, 0, 2]], ids=["all moved on", "two swapped", "one renamed"])
def test_labels_that_mean_something_else_are_found(meaning: list[int]) -> None:
    for seed in range(10):
        current = frame(100, 100 + seed)
        assert concept(frame(200, seed), altered(current, labels=np.array(meaning)[current.labels]), seed, 199) <= 0.05


def test_concept_needs_labels_on_both_sides() -> None:
    assert concept(unlabelled(frame(100)), frame(100), 0, 99) is None
    assert concept(frame(100), unlabelled(frame(100)), 0, 99) is None
    assert concept(frame(100), frame(20), 0, 99) is None


def test_a_champion_without_errors_on_either_side_has_no_changed_concept() -> None:
    def perfect(sample: Frame) -> Frame:
        return altered(sample, labels=sample.probabilities.argmax(axis=1))

    assert concept(perfect(frame(100)), perfect(frame(100, 1)), 0, 99) == 1.0


# --- sets and values -----------------------------------------------------------------------------------------------


def answered(task: str, seed: int, noise: float, shift: float = 0.0, rows: int = 200) -> Frame:
    """Labels that follow from the embedding, and a champion that is `noise` away from them."""
    from scipy.special import expit

    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(rows, 6)) + shift
    truth, scores = embeddings[:, :2], embeddings[:, :2] + rng.normal(0, noise, (rows, 2))
    if task == "regression":
        answers = Answers(Targets(("x", "y"), "regression", 0.5), scores, truth)
        return Frame({}, {}, np.zeros((rows, 0)), embeddings, (), np.zeros(rows, np.int64), answers=answers)
    sets = Targets(("a", "b"), "multi_label")
    numbers = {"confidence": sets.confidence(expit(3 * scores))}
    answers = Answers(sets, 3 * scores, (truth > 0).astype(float))
    return Frame(numbers, {}, expit(3 * scores), embeddings, sets.names, np.zeros(rows, np.int64), answers=answers)


@pytest.mark.parametrize("task", ["multi_label", "regression"])
class TestOfSetsAndValues:
    def test_a_quiet_window_is_expected_to_do_as_the_reference_did(self, task: str) -> None:
        reference, current = answered(task, 0, 0.3), answered(task, 1, 0.3)
        accuracy, estimate = estimated_accuracy(reference, current, 0)
        assert accuracy == reference.correct.mean()
        assert abs(estimate.value - accuracy) < 0.05
        assert estimate.low <= current.correct.mean() <= estimate.high

    def test_a_champion_that_parts_from_the_second_head_is_expected_to_do_worse(self, task: str) -> None:
        reference, current = answered(task, 0, 0.3), answered(task, 1, 1.5)
        accuracy, estimate = estimated_accuracy(reference, current, 0)
        assert current.correct.mean() < accuracy - 0.1
        assert estimate.value < accuracy - 0.03

    def test_on_the_reference_itself_it_is_exact(self, task: str) -> None:
        reference = answered(task, 0, 0.3)
        accuracy, estimate = estimated_accuracy(reference, reference, 0)
        assert estimate.value == pytest.approx(accuracy)

    def test_errors_at_equal_predictions_are_told_from_chance(self, task: str) -> None:
        reference, same, worse = answered(task, 0, 0.3), answered(task, 1, 0.3), answered(task, 2, 0.8)
        quiet, loud = (concept(reference, window, 0, 199) for window in (same, worse))
        assert quiet is not None
        assert loud is not None
        assert quiet > 0.05
        assert loud <= 0.01

    def test_no_label_is_no_accuracy(self, task: str) -> None:
        reference = answered(task, 0, 0.3)
        blind = Frame(**{**vars(reference), "labels": np.full(len(reference), -1)})
        _, estimate = estimated_accuracy(blind, reference, 0)
        assert (estimate.low, estimate.high) == (0, 1)
        assert concept(blind, reference, 0, 99) is None
        assert slices(blind, reference) == ()
        assert class_shift(reference, reference, 0) == ()
