"""One sentence that says what happened to a window, whatever was measured."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.drifted import (
    DOMAIN,
    HOSTILE,
    KNOCKOUT,
    NOISE,
    PROPERTIES,
    QUIET,
    column,
    family,
    measured,
    part,
    picture_columns,
    report,
    share,
)

from everfresh.tasks.drift import words
from everfresh.tasks.records import ClassShift, ColumnDrift, DriftReport, FamilyDrift, Interval, LabelAgreement, SliceDrift


def sentence(report: DriftReport, window: int | None = None) -> str:
    """As people read it: a space that never ends a line is a space."""
    return words.sentence(report, window).replace("\u00a0", " ")


class TestSentence:
    def test_the_example_of_the_issue(self) -> None:
        dark = report(*picture_columns(column("brightness", -0.8, 0.001)), slices=(part("dog", 0.9, 0.5),))
        assert sentence(dark, 13) == (
            "Since window 12, pictures are darker (−0.8 SD); estimated accuracy 0.93 → 0.71; worst for class dog"
        )

    def test_noise_is_told_as_noise_though_embedding_and_answers_move_too(self) -> None:
        assert sentence(NOISE, 13).startswith("Since window 12, pictures are noisier or sharper (+2.4 SD); estimated accuracy")

    def test_a_knocked_out_class_has_vanished(self) -> None:
        assert sentence(KNOCKOUT, 12) == (
            "In window 12, class dog has almost vanished (10 % → 1 %); estimated accuracy 0.93 → 0.92"
        )

    def test_another_domain_looks_unlike_any_known(self) -> None:
        assert sentence(DOMAIN, 13) == (
            "Since window 12, pictures look unlike any known (a classifier tells them apart with AUC 0.99), also brighter "
            "(+2.5 SD); measured accuracy 0.93 → 0.22; worst for class person"
        )

    def test_quiet_and_close_and_too_few(self) -> None:
        assert sentence(QUIET, 13) == "Window 13 is like what the champion was proven on (p = 0.4)"
        small = QUIET.model_copy(update={"p_value": 0.002})
        assert "no difference that matters (p = 0.002)" in sentence(small)
        few = QUIET.model_copy(update={"tested": False, "current_samples": 7, "p_value": 1.0})
        assert sentence(few) == "This window has too few samples to tell: 7 here, 400 in the reference"

    @pytest.mark.parametrize(
        ("columns", "words"),
        [
            ([column("distance", 0.8, 0.001)], "“distance” is higher (+0.8 SD)"),
            ([column("dep_delay", 0.1, 0.001, missing=(0.02, 0.3))], "“dep_delay” is missing more often (2 % → 30 %)"),
            (
                [column("carrier", 0.2, 0.001, 0.2, kind="categorical", new_categories=("AA", "BB", "CC"))],
                "“carrier” has new values (“AA”, “BB” and 1 more)",
            ),
            ([column("origin", 0.31, 0.001, 0.31, kind="categorical")], "“origin” is mixed differently (31 % moved)"),
            ([column("hour", 0.05, 0.001, 0.2)], "“hour” varies differently"),
            ([column("price", float("nan"), 0.001, 1.0)], "“price”, which never varied, does"),
            ([column("a", -0.5, 0.001), column("b", 0.9, 0.001)], "“b” is higher (+0.9 SD) and “a” is lower (−0.5 SD)"),
            ([column("a", 3.0, 0.04), column("b", 0.4, 0.001)], "“b” is higher (+0.4 SD) and “a” is higher (+3.0 SD)"),
        ],
    )
    def test_tables_of_any_columns(self, columns: list[ColumnDrift], words: str) -> None:
        assert sentence(report(*columns), 13) == f"Since window 12, {words}; estimated accuracy 0.93 → 0.71"

    @pytest.mark.parametrize(
        ("effect", "words"),
        [
            ({"contrast": -1.7, "sharpness": -1.5, "brightness": -1.4}, "darker (−1.4 SD) and flatter (−1.7 SD)"),
            ({"contrast": -2.5, "sharpness": -2.2}, "flatter (−2.5 SD)"),
            ({"sharpness": -1.9, "contrast": -0.6}, "blurrier (−1.9 SD)"),
            ({"colourfulness": -1.0, "pixels": 0.9}, "paler (−1.0 SD) and larger (+0.9 SD)"),
        ],
    )
    def test_causes_come_before_what_follows_from_them(self, effect: dict[str, float], words: str) -> None:
        moved = [column(name, size, 0.002) for name, size in effect.items()]
        assert f"pictures are {words}; " in sentence(report(*picture_columns(*moved)))

    @pytest.mark.parametrize(
        ("reference", "now", "words"),
        [
            (0.1, 0.0, "class dog has vanished (10 % → 0 %)"),
            (0.2, 0.12, "class dog is rarer (20 % → 12 %)"),
            (0.1, 0.16, "class dog is more frequent (10 % → 16 %)"),
            (0.1, 0.4, "class dog is far more frequent (10 % → 40 %)"),
            (0.17, 0.98, "almost all is class dog (17 % → 98 %)"),
            (0.0, 0.1, "class dog has appeared (0 % → 10 %)"),
        ],
    )
    def test_class_shares(self, reference: float, now: float, words: str) -> None:
        assert f", {words}; " in sentence(report(*picture_columns(), classes=(share("dog", reference, now),)))

    def test_a_vanished_class_leads_though_it_takes_a_property_with_it(self) -> None:
        moved = picture_columns(column("sharpness", -0.2, 0.01, 0.16))
        said = sentence(report(*moved, auc=0.55, classes=(share("0", 0.11, 0.0), share("1", 0.1, 0.13))))
        assert ", class 0 has vanished (11 % → 0 %); " in said

    def test_a_part_of_another_domain_is_told_beside_the_property(self) -> None:
        moved = picture_columns(column("brightness", 1.7, 0.002, 0.47))
        said = sentence(report(*moved, auc=0.68, families=(family("novelty", 0.002),)))
        assert "pictures are brighter (+1.7 SD), some unlike any known; " in said

    def test_a_share_within_its_interval_is_not_told(self) -> None:
        assert "dog" not in sentence(report(*picture_columns(), classes=(share("dog", 0.1, 0.11),)))

    def test_what_shows_in_the_embedding_alone(self) -> None:
        said = sentence(
            report(*picture_columns(column("embedding 1", 2.0, 0.001)), auc=0.9, families=(family("classifier", 0.001),))
        )
        assert "pictures look different from the known ones (a classifier tells them apart with AUC 0.90)" in said

    def test_what_shows_in_the_model_alone(self) -> None:
        assert "the champion is less sure of its answers (−0.8 SD)" in sentence(
            report(*picture_columns(column("confidence", -0.8, 0.001)))
        )
        assert "errs more" in sentence(report(*picture_columns(), families=(family("concept", 0.001),)))

    def test_a_loss_that_is_none_has_no_worst_slice(self) -> None:
        said = sentence(report(*picture_columns(column("brightness", -0.8, 0.001)), now=0.95, slices=(part("dog", 0.9, 0.5),)))
        assert said.endswith("estimated accuracy holds (0.93 → 0.95)")

    def test_names_of_others_are_cut_and_on_one_line(self) -> None:
        said = sentence(report(column(HOSTILE, 1.0, 0.001), slices=(part(HOSTILE, 0.9, 0.1, HOSTILE),)))
        assert said.isprintable()
        assert len(said) < 200


NUMBERS = st.floats(allow_nan=True, allow_infinity=True)
SHARES = st.floats(0, 1)
NAMES = st.one_of(st.text(max_size=60), st.sampled_from([*PROPERTIES, "prediction", "P(dog)", "embedding 1"]))
INTERVALS = st.builds(Interval, value=SHARES, low=SHARES, high=SHARES)
COLUMNS = st.builds(
    ColumnDrift,
    name=NAMES,
    kind=st.sampled_from(["numerical", "categorical"]),
    statistic=SHARES,
    effect=NUMBERS,
    p_value=SHARES,
    missing=st.tuples(SHARES, SHARES),
    new_categories=st.lists(st.text(max_size=30), max_size=5).map(tuple),
)
REPORTS = st.builds(
    DriftReport,
    key=st.just("k"),
    view=st.just("v"),
    reference=st.just("r"),
    reference_samples=st.integers(0, 10**9),
    current_samples=st.integers(0, 10**9),
    exceeds=st.booleans(),
    alarm=st.booleans(),
    tested=st.booleans(),
    p_value=SHARES,
    score=SHARES,
    auc=st.none() | SHARES,
    families=st.lists(
        st.builds(FamilyDrift, name=st.sampled_from(["novelty", "concept", "mmd"]), p_value=SHARES), max_size=3
    ).map(tuple),
    nearest=NAMES,
    columns=st.lists(COLUMNS, max_size=5).map(tuple),
    classes=st.lists(st.builds(ClassShift, name=NAMES, reference=SHARES, estimated=INTERVALS), max_size=3).map(tuple),
    slices=st.lists(
        st.builds(
            SliceDrift,
            column=NAMES,
            value=NAMES,
            samples=st.integers(0, 99),
            reference_accuracy=SHARES,
            estimated_accuracy=SHARES,
        ),
        max_size=3,
    ).map(tuple),
    reference_accuracy=SHARES,
    estimated_accuracy=INTERVALS,
    severity=st.floats(-1, 1),
    labels=st.none()
    | st.builds(LabelAgreement, samples=st.integers(0, 99), champion=INTERVALS, neighbours=SHARES, chance=SHARES),
    since=st.none() | st.integers(1, 10**6),
    words=st.just(""),
    files=st.just({}),
)


@settings(max_examples=300, deadline=None)
@given(REPORTS, st.none() | st.integers(1, 10**6))
def test_any_report_gives_a_sentence_that_fits_its_verdict(found: DriftReport, window: int | None) -> None:
    said = sentence(found, window)
    assert 10 < len(said) <= 300
    assert said.isprintable()
    assert ("too few samples" in said) == (not found.tested)
    if found.tested and not (found.exceeds or found.alarm):
        assert "what the champion was proven on" in said


def test_accuracy_is_measured_where_labels_tell_it_more_narrowly_than_the_estimate_does() -> None:
    few = LabelAgreement(samples=12, champion=Interval(value=0.5, low=0.25, high=0.75), neighbours=0.9, chance=0.1)
    known = report(now=0.8, labels=measured(0.5))
    assert (known.measured, known.accuracy.value) == (True, 0.5)
    assert words.accuracy(known) == "measured accuracy 0.93 → 0.50"
    guessed = report(now=0.8, labels=few)
    assert (guessed.measured, guessed.accuracy.value) == (False, 0.8)
    assert words.accuracy(guessed) == "estimated accuracy 0.93 → 0.80"
    assert report(now=0.8).accuracy.value == 0.8
