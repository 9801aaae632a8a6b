"""Labels that nothing agrees with are suspect; a new regime is not."""

from __future__ import annotations

import pytest

from everfresh.tasks.records import DriftReport, Interval, LabelAgreement
from everfresh.tasks.trust import judge_labels


def drift(champion: float, neighbours: float, *, chance: float = 0.1, usual: float = 0.9, spread: float = 0.05) -> DriftReport:
    accuracy = Interval(value=champion, low=max(0.0, champion - spread), high=min(1.0, champion + spread))
    return DriftReport(
        key="d", view="v", reference="r", reference_samples=90, current_samples=90, alarm=False, p_value=0.5, score=0.1,
        nearest="window 1", columns=(), reference_accuracy=usual, estimated_accuracy=accuracy, severity=0,
        labels=LabelAgreement(samples=60, champion=accuracy, neighbours=neighbours, chance=chance), files={},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("champion", "neighbours", "challenger", "trust"),
    [
        (0.1, 0.1, 0.1, "suspect"),  # shuffled labels: nothing agrees with them
        (0.1, 0.1, None, "suspect"),
        (0.2, 0.2, 0.8, "trusted"),  # a new regime that can be learnt
        (0.2, 0.8, 0.2, "trusted"),  # a new regime in which neighbours agree
        (0.88, 0.1, None, "trusted"),
        (0.49, 0.1, 0.57, "suspect"),  # above chance 0.6 of the usual is the line: 0.1 + 0.6 * 0.8
        (0.54, 0.1, 0.1, "trusted"),  # its interval reaches over it
    ],
)
def test_labels_are_suspect_if_nothing_agrees_with_them(
    champion: float, neighbours: float, challenger: float | None, trust: str
) -> None:
    assert judge_labels(drift(champion, neighbours), challenger) == trust


def test_shuffled_labels_of_two_classes_are_suspect_though_half_agree_by_chance() -> None:
    assert judge_labels(drift(0.5, 0.5, chance=0.5, usual=0.95, spread=0.1), 0.52) == "suspect"


def test_shuffled_labels_of_a_rare_class_are_suspect_though_most_agree_by_chance() -> None:
    assert judge_labels(drift(0.82, 0.82, chance=0.82, usual=0.97, spread=0.06), 0.84) == "suspect"


def test_a_hard_new_regime_is_not_suspect_but_shuffled_labels_in_it_are() -> None:
    drifted = drift(0.1, 0.3).model_copy(update={"alarm": True})
    assert judge_labels(drifted, 0.5) == "trusted"
    assert judge_labels(drifted, 0.15) == "suspect"


def test_without_labels_there_is_nothing_to_suspect() -> None:
    assert judge_labels(drift(0.1, 0.1).model_copy(update={"labels": None}), 0.0) == "trusted"


@pytest.mark.parametrize(("floors_passed", "trust"), [(True, "trusted"), (False, "suspect")])
def test_without_a_champion_a_challenger_below_its_floors_makes_its_window_suspect(*, floors_passed: bool, trust: str) -> None:
    assert judge_labels(None, 0.1, floors_passed=floors_passed) == trust
