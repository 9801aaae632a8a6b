"""Labels that nothing agrees with are suspect; a new regime is not."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from everfresh.tasks.records import DriftReport, Interval, LabelAgreement, Part, Window
from everfresh.tasks.trust import believed_from, judge_labels, suspicion

EVEN = dict.fromkeys("0123456789", 12)


def window(**classes: int) -> Window:
    part = Part(key="m", sha256="0" * 64, size=1)
    labelled = sum((classes or EVEN).values())
    return Window(
        view="v", samples=labelled, quarantined=0, labelled=labelled, splits={}, train_classes={}, classes=classes or EVEN,
        pending={}, manifest=part, shards=(),
    )  # fmt: skip


def drift(
    champion: float,
    neighbours: float,
    *,
    alarm: bool = False,
    tested: bool = True,
    chance: float = 0.1,
    usual: float = 0.9,
    spread: float = 0.05,
) -> DriftReport:
    accuracy = Interval(value=champion, low=max(0.0, champion - spread), high=min(1.0, champion + spread))
    return DriftReport(
        key="d", view="v", reference="r", reference_samples=90, current_samples=90, alarm=alarm, tested=tested, p_value=0.5,
        score=0.1, nearest="window 1", columns=(), reference_accuracy=usual, estimated_accuracy=accuracy, severity=0,
        labels=LabelAgreement(samples=60, champion=accuracy, neighbours=neighbours, chance=chance), files={},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("champion", "neighbours", "challenger", "trust"),
    [
        (0.1, 0.1, 0.1, "suspect"),  # shuffled labels: nothing agrees with them
        (0.1, 0.1, None, "suspect"),
        (0.0, 1.0, 1.0, "suspect"),  # every label off by one class: consistent, easily learnt, and wrong
        (0.88, 0.1, None, "trusted"),
        (0.49, 0.9, 0.9, "suspect"),  # above chance 0.6 of the usual is the line: 0.1 + 0.6 * 0.8
        (0.54, 0.1, 0.1, "trusted"),  # its interval reaches over it
    ],
)
def test_on_pictures_that_it_knows_the_champion_is_the_one_witness(
    champion: float, neighbours: float, challenger: float | None, trust: str
) -> None:
    assert judge_labels(window(), drift(champion, neighbours), challenger) == trust


@pytest.mark.parametrize(
    ("neighbours", "challenger", "trust"),
    [
        (0.3, 0.5, "trusted"),  # a hard new regime that can be learnt
        (0.8, 0.2, "trusted"),  # one in which neighbours agree
        (0.3, 0.15, "suspect"),  # shuffled labels in it
    ],
)
@pytest.mark.parametrize("state", [{"alarm": True}, {"tested": False}])
def test_on_pictures_that_it_does_not_know_others_may_speak_for_the_labels(
    neighbours: float, challenger: float, trust: str, state: dict[str, bool]
) -> None:
    assert judge_labels(window(), drift(0.1, neighbours, **state), challenger) == trust  # type: ignore[arg-type]


def test_labels_that_are_all_the_same_have_the_champion_alone_to_speak_for_them() -> None:
    assert judge_labels(window(), drift(0.1, 1.0, chance=1.0, alarm=True), 1.0) == "suspect"
    assert judge_labels(window(), drift(0.95, 1.0, chance=1.0, alarm=True), 1.0) == "trusted"


def test_shuffled_labels_of_two_classes_are_suspect_though_half_agree_by_chance() -> None:
    assert judge_labels(window(), drift(0.5, 0.5, chance=0.5, usual=0.95, spread=0.1), 0.52) == "suspect"


def test_shuffled_labels_of_a_rare_class_are_suspect_though_most_agree_by_chance() -> None:
    assert judge_labels(window(), drift(0.82, 0.82, chance=0.82, usual=0.97, spread=0.06), 0.84) == "suspect"


def test_without_labels_there_is_nothing_to_suspect() -> None:
    assert judge_labels(window(), drift(0.1, 0.1).model_copy(update={"labels": None}), 0.0) == "trusted"


@pytest.mark.parametrize(
    ("classes", "challenger", "trust"),
    [
        (EVEN, 0.1, "suspect"),  # 120 labels of ten classes, and nothing was learnt
        (EVEN, 0.5, "trusted"),  # far from any floor, but more than chance
        (EVEN, None, "trusted"),
        (dict.fromkeys("0123456789", 3), 0.1, "trusted"),  # too few to learn from: the next windows add to them
        ({"0": 50}, 1.0, "trusted"),
    ],
)
def test_without_a_champion_labels_are_suspect_if_enough_of_them_teach_nothing(
    classes: dict[str, int], challenger: float | None, trust: str
) -> None:
    assert judge_labels(window(**classes), None, challenger) == trust


def test_a_person_may_vouch_for_labels() -> None:
    assert judge_labels(window(), drift(0.0, 1.0), 1.0, vouched=True) == "trusted"
    assert judge_labels(window(), None, 0.0, vouched=True) == "trusted"


def test_a_suspicion_names_its_ground_and_the_remedy() -> None:
    assert "contradict the champion on pictures like those that it knows" in suspicion(drift(0.0, 1.0))
    assert "neither champion nor neighbours nor challenger" in suspicion(drift(0.0, 0.1, alarm=True))
    assert "--trust-labels" in suspicion(drift(0.0, 1.0))
    assert "learnt next to nothing" in suspicion(None)


@given(
    champion=st.floats(0, 1), neighbours=st.floats(0, 1), challenger=st.floats(0, 1), chance=st.floats(0, 1),
    usual=st.floats(0, 1), alarm=st.booleans(), tested=st.booleans(), vouched=st.booleans(),
)  # fmt: skip
def test_a_challenger_is_believed_from_where_it_makes_the_labels_trusted(
    champion: float, neighbours: float, challenger: float, chance: float, usual: float, alarm: bool, tested: bool, vouched: bool
) -> None:
    measured = drift(champion, neighbours, alarm=alarm, tested=tested, chance=chance, usual=usual)
    line = believed_from(window(), measured, vouched=vouched)
    assume(abs(challenger - line) > 1e-9)
    assert judge_labels(window(), measured, challenger, vouched=vouched) == ("trusted" if challenger > line else "suspect")


def test_without_a_measurement_labels_need_no_witness() -> None:
    assert believed_from(window(), None) == 0
