"""Metrics: the numbers are those of scikit-learn, and intervals hold what they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    classification_report,
    f1_score,
    hamming_loss,
    log_loss,
    mean_absolute_error,
    r2_score,
    root_mean_squared_error,
)
from torch import Tensor

from everfresh.tasks.metrics import paired_gain, score
from everfresh.tasks.targets import Targets

CLASSES = ("cat", "dog", "cow", "emu")


def noisy(count: int = 60, seed: int = 0) -> tuple[Tensor, np.ndarray]:
    """Scores of a mediocre model and labels; no emu occurs."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    scores = rng.normal(size=(count, 4)) + np.eye(4)[labels]
    return torch.from_numpy(scores), labels


def test_scores_are_those_of_scikit_learn() -> None:
    scores, labels = noisy()
    predicted = scores.argmax(dim=1).numpy()
    found = score(scores, labels, Targets(CLASSES))
    table = classification_report(
        labels, predicted, labels=range(4), target_names=CLASSES, output_dict=True, zero_division=0
    )  # fmt: skip
    assert found.accuracy == accuracy_score(labels, predicted)
    assert found.loss == pytest.approx(log_loss(labels, scores.softmax(dim=1).numpy(), labels=range(4)))
    for name in CLASSES:
        theirs = table[name]
        ours = found.per_class[name]
        assert (ours["precision"], ours["recall"], ours["f1"]) == (theirs["precision"], theirs["recall"], theirs["f1-score"])
        assert ours["samples"] == theirs["support"]
    assert found.recall == pytest.approx(np.mean([table[c]["recall"] for c in CLASSES[:3]]))  # of the classes that occur
    assert np.array(found.confusion).sum() == 60
    assert np.trace(found.confusion) == (labels == predicted).sum()


def test_no_sample_scores_nothing() -> None:
    found = score(torch.zeros(0, 4), np.zeros(0, np.int64), Targets(CLASSES))
    assert (found.samples, found.accuracy, found.per_class) == (0, 0, {})
    assert np.array(found.confusion).shape == (4, 4)


def test_the_gain_is_the_difference_of_accuracies_inside_its_interval() -> None:
    challenger, champion = np.array([1.0] * 8 + [0.0] * 2), np.array([1.0] * 5 + [0.0] * 5)
    gain = paired_gain(challenger, champion, 0.95, "seed")
    assert gain.value == pytest.approx(0.3)
    assert 0 <= gain.low <= 0.1
    assert 0.5 <= gain.high <= 0.7
    assert gain == paired_gain(challenger, champion, 0.95, "seed")


def test_equal_models_gain_nothing_for_sure_and_no_samples_say_nothing() -> None:
    same = np.array([1.0, 0.0, 1.0])
    assert paired_gain(same, same, 0.95, "").model_dump() == {"value": 0, "low": 0, "high": 0}
    nothing = np.zeros(0)
    assert paired_gain(nothing, nothing, 0.95, "").model_dump() == {"value": 0, "low": -1, "high": 1}


def test_the_interval_holds_the_true_gain_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        difference = rng.choice([-1.0, 0.0, 1.0], 80, p=[0.1, 0.6, 0.3])
        gain = paired_gain(np.maximum(difference, 0), np.maximum(-difference, 0), 0.9, str(trial))
        held += gain.low <= 0.2 <= gain.high
    assert 0.83 <= held / 200 <= 0.97


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=50))
def test_swapping_the_models_turns_the_sign(pairs: list[tuple[bool, bool]]) -> None:
    ours, theirs = np.array(pairs, dtype=np.float64).T
    there, back = paired_gain(ours, theirs, 0.95, "s"), paired_gain(theirs, ours, 0.95, "s")
    assert there.value == pytest.approx(-back.value)
    assert there.low <= there.value <= there.high
    assert there.low >= -1
    assert there.high <= 1


def test_scores_of_sets_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, (50, 4)).astype(np.float32)
    truth[:, 3] = 0  # a class that never occurs
    scores = torch.from_numpy(rng.normal(size=(50, 4)) + truth - 0.5).float()
    said = (scores > 0).numpy()
    found = score(scores, truth, Targets(CLASSES, "multi_label"))
    assert found.accuracy == accuracy_score(truth, said)
    assert found.metrics["micro_f1"] == f1_score(truth, said, average="micro")
    assert found.metrics["hamming_accuracy"] == pytest.approx(1 - hamming_loss(truth, said))
    assert found.metrics["mean_average_precision"] == pytest.approx(
        average_precision_score(truth[:, :3], scores.numpy()[:, :3], average="macro")
    )
    assert found.f1 == pytest.approx(f1_score(truth[:, :3], said[:, :3], average="macro"))
    assert found.loss == pytest.approx(log_loss(truth.ravel(), scores.sigmoid().numpy().ravel()), rel=1e-5)
    assert found.confusion == ()
    assert found.get("micro_f1") == found.metrics["micro_f1"]
    assert found.get("recall") == found.recall


def test_scores_of_values_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal([3, -50], [1, 20], (40, 2)).astype(np.float32)
    said = truth + rng.normal(0, 0.5, (40, 2)).astype(np.float32)
    found = score(torch.from_numpy(said), truth, Targets(("x", "y"), "regression", 0.5))
    assert found.get("mae") == pytest.approx(mean_absolute_error(truth, said), rel=1e-5)
    assert found.get("rmse") == pytest.approx(root_mean_squared_error(truth, said), rel=1e-5)
    assert found.get("r2") == pytest.approx(r2_score(truth, said), rel=1e-5)
    assert found.accuracy == (np.abs(said - truth).max(axis=1) <= 0.5).mean()
    assert (found.precision, found.recall, found.f1) == (None, None, None)


@pytest.mark.parametrize("task", ["multi_label", "regression"])
def test_no_sample_scores_nothing_in_any_task(task: Any) -> None:
    targets = Targets(CLASSES, task, 1)
    assert score(torch.zeros(0, 4), targets.encode([]), targets).accuracy == 0
