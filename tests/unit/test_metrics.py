"""Metrics: the numbers are those of scikit-learn, and intervals hold what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, classification_report, log_loss
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
