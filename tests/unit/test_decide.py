"""Decide: every verdict follows from the records and says why in numbers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everfresh.tasks.config import OnAge, OnDrift, OnNewSamples, OnPerformance, PolicyConfig
from everfresh.tasks.decide import MOST_BANKED, bank_after, best, decide, next_rung
from everfresh.tasks.records import (
    AliasMove,
    Banked,
    Candidate,
    ClassShift,
    Comparison,
    Cost,
    Decision,
    DriftReport,
    Evaluation,
    Interval,
    JournalEntry,
    LabelAgreement,
    ModelSpec,
    Part,
    Scores,
    Tick,
    Window,
)

NOW = datetime(2024, 5, 1, tzinfo=UTC)
PART = Part(key="k", sha256="0" * 64, size=1)
BANKED = (Banked(view="v0", seq=1, regime="window 1"),)


def tick(**changes: Any) -> Tick:
    fields = {"seq": 2, "view": "v1", "champion": "r1", "champion_move": 1, "reference": "ref", "bank": BANKED, "now": NOW}
    return Tick(**{**fields, **changes})


def window(train: int = 50, classes: tuple[str, ...] = ("a", "b"), **changes: Any) -> Window:
    fields: dict[str, Any] = {
        "view": "v1", "samples": 100, "quarantined": 0, "labelled": 2 * train,
        "splits": {"train": train, "tune": 5, "holdout": 20} if train else {},
        "classes": dict.fromkeys(classes, 10) if train else {}, "manifest": PART, "shards": (),
    }  # fmt: skip
    fields = {**fields, **changes}
    return Window(**{"train_classes": fields["classes"], **fields})


def agreement(champion: float, neighbours: float = 0.9, half: float = 0.04) -> LabelAgreement:
    interval = Interval(value=champion, low=max(0.0, champion - half), high=min(1.0, champion + half))
    return LabelAgreement(samples=100, champion=interval, neighbours=neighbours, chance=0.5)


def drift(
    *, alarm: bool = False, severity: float = 0.0, labels: LabelAgreement | None = None, regime: str = "window 1"
) -> DriftReport:
    return DriftReport(
        key="d",
        view="v1",
        reference="ref",
        reference_samples=100,
        current_samples=100,
        alarm=alarm,
        p_value=0.001 if alarm else 0.4,
        score=0.5,
        regime=regime,
        nearest="mixture",
        columns=(),
        reference_accuracy=0.9,
        estimated_accuracy=Interval(value=0.9 - severity, low=0.0, high=1.0),
        severity=severity,
        labels=labels,
        files={},
    )


def move(**changes: Any) -> AliasMove:
    fields = {"seq": 1, "id": "i", "kind": "publish", "release": "r1", "version": 1, "by": "x", "reason": "", "at": NOW}
    return AliasMove(**{**fields, **changes})


def entry(*, samples: int = 0, windows: int = 5) -> JournalEntry:
    return JournalEntry(
        seq=1,
        request="",
        view="v0",
        samples=100,
        quarantined=0,
        labelled=100,
        decision=Decision(action="nothing", reasons=("x",)),
        champion="r1",
        champion_version=1,
        trust="trusted",
        bank=BANKED,
        samples_since_training=samples,
        windows_since_training=windows,
        cost=Cost(),
        started_at=NOW,
        finished_at=NOW,
    )


def candidate(rung: str = "head", tune: float = 0.8, kept: float | None = None) -> Candidate:
    spec = ModelSpec(
        architecture="x", classes=("a", "b"), head="fc", native_head=False, embedding_dim=4, image_size=8,
        mean=(0, 0, 0), std=(1, 1, 1),
    )  # fmt: skip
    return Candidate(
        key=f"{rung} {tune}", rung=rung, view="v1", replay=(), champion="r1", start=None, request="", spec=spec, encoder="e",
        weights=PART, trained_on=10, tune_accuracy=tune, tune_samples=10, kept_accuracy=kept, cost=Cost(), device="cpu",
    )  # type: ignore[arg-type]  # fmt: skip


def scores(accuracy: float) -> Scores:
    return Scores(
        samples=20, accuracy=accuracy, loss=1, precision=0, recall=0, f1=0, per_class={}, confusion=((0, 0), (0, 0))
    )  # fmt: skip


def evaluation(challenger: float) -> Evaluation:
    return Evaluation(
        key="e", candidate="c", champion="r1", champion_move=1, bank=None, bank_views=(), verdicts=(), passed=True,
        window=Comparison(challenger=scores(challenger), champion=scores(0.1), gain=None),
    )  # fmt: skip


def verdict(policy: PolicyConfig | None = None, **changes: Any) -> Decision:
    """The decision about a quiet window with a champion, but for the changes."""
    given_: dict[str, Any] = {"tick": tick(), "window": window(), "drift": drift(), "last": entry(), "champion": move()}
    given_ |= {"champion_since": NOW - timedelta(days=3)}
    return decide(policy or PolicyConfig(), **{**given_, **changes})


# --- no champion -----------------------------------------------------------------------------------------


def test_without_a_champion_the_first_window_bootstraps() -> None:
    decision = verdict(PolicyConfig(bootstrap="pretrained"), drift=None, champion=None, last=None)
    assert (decision.action, decision.ladder) == ("bootstrap", ("pretrained",))
    assert decision.reasons == ("there is no champion yet",)


@pytest.mark.parametrize(
    ("train", "classes", "words"),
    [(0, ("a", "b"), "0 labelled training samples of 0 classes"), (1, ("a", "b"), "1 labelled"), (9, ("a",), "of 1 classes")],
)
def test_without_a_champion_too_few_labels_train_nothing(train: int, classes: tuple[str, ...], words: str) -> None:
    decision = verdict(window=window(train, classes), drift=None, champion=None, last=None)
    assert decision.action == "nothing"
    assert words in decision.reasons[0]


# --- triggers --------------------------------------------------------------------------------------------

ALARM = {"alarm": True}
DRIFT, HARM, COUNT, AGE = OnDrift(min_severity=0.02), OnPerformance(max_drop=0.05), OnNewSamples(count=150), OnAge(days=2)


@pytest.mark.parametrize(
    ("trigger", "facts", "fires", "words"),
    [
        (DRIFT, {"drift": drift(alarm=True, severity=0.1)}, True, "estimated loss of accuracy +10.0%, at least 2.0%"),
        (DRIFT, {"drift": drift(alarm=True, severity=0.02)}, True, "+2.0%, at least 2.0%"),
        (DRIFT, {"drift": drift(alarm=True, severity=0.01)}, False, "+1.0%, below 2.0%"),
        (DRIFT, {"drift": drift(alarm=True, severity=0.1, labels=agreement(0.8))}, True, "measured loss of accuracy +10.0%"),
        (DRIFT, {"drift": drift(severity=0.3)}, False, "no drift alarm (p = 0.4)"),
        (HARM, {"drift": drift(labels=agreement(0.7))}, True, "accuracy 70.0% against 90.0%: dropped by 20.0 points"),
        (HARM, {"drift": drift(labels=agreement(0.88))}, False, "88.0% against 90.0%: no drop of 5.0 points"),
        (HARM, {"drift": drift(labels=agreement(0.8, half=0.2))}, False, "within chance (up to 100.0% at 100 labels)"),
        (HARM, {"drift": drift()}, False, "cannot be measured: too few labels"),
        (COUNT, {"last": entry(samples=60)}, True, "160 labelled samples since the last training, of 150"),
        (COUNT, {"last": entry(samples=40)}, False, "140 labelled samples since the last training, of 150"),
        (COUNT, {"last": None}, False, "100 labelled samples"),
        (AGE, {}, True, "the champion is 3.0 days old, of 2"),
        (AGE, {"champion_since": NOW - timedelta(days=1)}, False, "1.0 days old, of 2"),
        (AGE, {"champion_since": None}, False, "0.0 days old"),
        (AGE, {"champion_since": NOW + timedelta(days=5)}, False, "dated 5.0 days after the store's clock, which went back"),
    ],
)  # fmt: skip
def test_a_trigger_fires_or_not_and_gives_its_numbers(trigger: Any, facts: dict[str, Any], fires: bool, words: str) -> None:
    decision = verdict(PolicyConfig(triggers=(trigger,)), **facts)
    assert decision.action == ("retrain" if fires else "nothing")
    assert decision.triggers == ((trigger.kind,) if fires else ())
    assert words in decision.reasons[0]


def test_every_trigger_is_named_whether_it_fired_or_not() -> None:
    decision = verdict(PolicyConfig(triggers=(DRIFT, COUNT, AGE)))
    assert decision.triggers == ("age",)
    assert len(decision.reasons) == 3


def test_without_triggers_it_only_watches() -> None:
    decision = verdict(PolicyConfig(triggers=()), drift=drift(alarm=True, severity=0.5))
    assert decision.reasons == ("no trigger is configured: this pipeline only watches",)


def test_the_target_is_the_baseline_less_what_is_adequate() -> None:
    assert verdict(PolicyConfig(triggers=(AGE,), adequate_drop=0.03)).target == pytest.approx(0.87)
    assert verdict(PolicyConfig(triggers=(AGE,), adequate_drop=1)).target == 0


# --- what holds a trigger back -----------------------------------------------------------------------------


@pytest.mark.parametrize("since", range(4))
def test_a_cooldown_holds_back_as_many_windows_as_it_says(since: int) -> None:
    decision = verdict(PolicyConfig(triggers=(AGE,), cooldown_windows=2), last=entry(windows=since))
    assert decision.action == ("nothing" if since < 2 else "retrain")
    if since < 2:
        assert f"only {since} windows have passed since the last training, within the cooldown of 2" in decision.reasons[-1]


def test_a_pinned_champion_stays() -> None:
    decision = verdict(PolicyConfig(triggers=(AGE,)), champion=move(pinned=True, version=3, reason="holiday"))
    assert decision.action == "nothing"
    assert decision.reasons[-1] == "but v3 is pinned (holiday); `everfresh unpin` lets it move"


def test_an_unlabelled_window_trains_nothing() -> None:
    decision = verdict(PolicyConfig(triggers=(AGE,)), window=window(0))
    assert decision.reasons[-1] == "but the window has no labelled sample to train on"


@pytest.mark.parametrize("request_", ["", "f1"])
def test_one_class_alone_trains_nothing_where_nothing_is_replayed(request_: str) -> None:
    adopted = (Banked(view="v0", seq=0, regime="adopted"),)  # its samples are all hold-out
    policy = PolicyConfig(triggers=(AGE,))
    decision = verdict(policy, tick=tick(request=request_, bank=adopted), window=window(classes=("a",)))
    assert decision.action == "nothing"
    assert "training samples of one class only ('a') and nothing earlier to replay" in decision.reasons[-1]
    assert verdict(policy, tick=tick(request=request_), window=window(classes=("a",))).action == "retrain"


def test_a_person_forces_past_trigger_cooldown_and_pin() -> None:
    policy = PolicyConfig(cooldown_windows=9)
    forced = tick(request="f1", reason="new camera")
    decision = verdict(policy, tick=forced, last=entry(windows=0), champion=move(pinned=True))
    assert (decision.action, decision.triggers, decision.ladder) == ("retrain", ("force",), ("head", "full"))
    assert decision.reasons == ("forced by a person: new camera",)
    assert verdict(policy, tick=tick(request="f1", rung="pretrained")).ladder == ("pretrained",)


def test_force_without_labels_does_nothing_and_says_so() -> None:
    decision = verdict(tick=tick(request="f1"), window=window(0))
    assert decision.action == "nothing"
    assert decision.reasons == ("forced by a person: no reason given; but the window has no labelled sample to train on",)


@given(
    severity=st.floats(-1, 1),
    alarm=st.booleans(),
    labelled=st.booleans(),
    train=st.integers(0, 3),
    request=st.sampled_from(["", "f1"]),
    pinned=st.booleans(),
    champion=st.booleans(),
    last=st.none() | st.builds(entry, samples=st.integers(0, 300), windows=st.integers(0, 5)),
    triggers=st.lists(st.sampled_from([DRIFT, HARM, COUNT, AGE]), max_size=4),
    cooldown=st.integers(0, 4),
)
def test_a_decision_is_repeatable_and_never_without_reasons(
    severity: float, alarm: bool, labelled: bool, train: int, request: str, pinned: bool, champion: bool,
    last: JournalEntry | None, triggers: list[Any], cooldown: int,
) -> None:  # fmt: skip
    def once() -> Decision:
        return verdict(
            PolicyConfig(triggers=tuple(triggers), cooldown_windows=cooldown),
            tick=tick(request=request),
            window=window(train),
            drift=drift(alarm=alarm, severity=severity, labels=agreement(0.6) if labelled else None) if champion else None,
            champion=move(pinned=pinned) if champion else None,
            last=last,
        )

    decision = once()
    assert decision == once()
    assert decision.reasons
    assert all(decision.reasons)
    assert bool(decision.ladder) == (decision.action != "nothing")
    assert bool(decision.triggers) == (decision.action == "retrain")


# --- rungs ---------------------------------------------------------------------------------------------------

RETRAIN = Decision(action="retrain", reasons=("x",), ladder=("head", "full", "pretrained"), target=0.8)


@pytest.mark.parametrize(
    ("tried", "expected"),
    [
        ([], "head"),
        ([candidate(tune=0.8)], None),
        ([candidate(tune=0.79)], "full"),
        ([candidate(tune=0.5), candidate("full", 0.9)], None),
        ([candidate(tune=0.5), candidate("full", 0.6)], "pretrained"),
        ([candidate(tune=0.5), candidate("full", 0.6), candidate("pretrained", 0.7)], None),
    ],
)
def test_the_ladder_is_climbed_until_a_rung_is_enough(tried: list[Candidate], expected: str | None) -> None:
    assert next_rung(RETRAIN, tried) == expected


def test_a_rung_that_forgot_is_not_enough() -> None:
    """The gates would refuse it, and the dearer rung that keeps what was learnt would never be tried."""
    kept = candidate(tune=0.9, kept=0.89).model_copy(update={"champion_kept_accuracy": 0.9})
    forgot = kept.model_copy(update={"kept_accuracy": 0.87})
    assert next_rung(RETRAIN, [kept]) is None
    assert next_rung(RETRAIN, [forgot]) == "full"


def test_a_recalibration_that_gained_nothing_keeps_no_other_from_the_gates() -> None:
    idle = candidate("recalibrate", 0.2, kept=0.9).model_copy(update={"champion_accuracy": 0.2, "champion_kept_accuracy": 0.9})
    head = candidate("head", 0.9, kept=0.87).model_copy(update={"champion_accuracy": 0.2, "champion_kept_accuracy": 0.9})
    assert head.forgot > 0.02
    assert best([idle, head]) == head
    assert best([idle]) == idle
    assert best([idle.model_copy(update={"champion_accuracy": 0.1}), head]) != head


def test_without_a_tune_sample_the_first_rung_that_learns_must_do() -> None:
    unmeasured = candidate(tune=0.0).model_copy(update={"tune_samples": 0})
    assert next_rung(RETRAIN, [unmeasured]) is None
    assert next_rung(RETRAIN, [unmeasured.model_copy(update={"kept_accuracy": 0.5})]) == "full"


def test_a_rung_without_an_answer_is_passed_over() -> None:
    assert next_rung(RETRAIN, [], {"head"}) == "full"
    assert next_rung(RETRAIN, [candidate("full", 0.1)], {"head"}) == "pretrained"
    assert next_rung(RETRAIN, [candidate("head", 0.1)], {"full", "pretrained"}) is None


@pytest.mark.parametrize(("before", "enough"), [(0.8, False), (0.9, False), (0.7, True), (None, True)])
def test_a_recalibration_must_gain_on_the_champion_to_be_enough(before: float | None, enough: bool) -> None:
    decision = RETRAIN.model_copy(update={"ladder": ("recalibrate", "head")})
    made = candidate("recalibrate", 0.8).model_copy(update={"champion_accuracy": before})
    assert next_rung(decision, [made]) == (None if enough else "head")
    assert next_rung(decision, [made.model_copy(update={"rung": "full"})]) is None


def shares(*estimated: tuple[float, float]) -> tuple[ClassShift, ...]:
    return tuple(
        ClassShift(name=str(low), reference=0.2, estimated=Interval(value=low, low=low, high=high)) for low, high in estimated
    )


@pytest.mark.parametrize(
    ("classes", "ladder", "left"),
    [
        ((), ("head", "full"), {"recalibrate"}),
        (shares((0.1, 0.3), (0.2, 0.4)), ("head", "full"), {"recalibrate"}),
        (shares((0.1, 0.3), (0.3, 0.4)), ("recalibrate", "head", "full"), set()),
    ],
)
def test_recalibrating_is_tried_where_class_shares_have_moved(
    classes: tuple[ClassShift, ...], ladder: tuple[str, ...], left: set[str]
) -> None:
    measured = drift(alarm=True, severity=0.3).model_copy(update={"classes": classes})
    decision = verdict(drift=measured)
    assert (decision.ladder, set(decision.left_out)) == (ladder, left)
    assert verdict(PolicyConfig(ladder=("recalibrate",)), drift=measured).ladder == ("recalibrate",)
    assert verdict(drift=measured, tick=tick(request="f", rung="recalibrate")).ladder == ("recalibrate",)


def test_no_dearer_rung_learns_from_labels_that_nobody_agrees_with() -> None:
    policy = PolicyConfig(triggers=(OnAge(days=1),))
    labels = agreement(0.1, neighbours=0.1)
    wrong = drift(alarm=True, severity=0.3, labels=labels.model_copy(update={"chance": 0.1}))
    decision = verdict(policy, drift=wrong)
    assert decision.believed_from == pytest.approx(0.1 + 0.3 * 0.8)
    assert next_rung(decision, []) == "head"
    assert next_rung(decision, [candidate(tune=0.3)]) is None
    assert next_rung(decision, [candidate(tune=0.4)]) == "full"
    assert next_rung(decision, [candidate("recalibrate", 0.1)]) == "head"  # it has learnt nothing from the labels
    assert next_rung(verdict(policy, drift=wrong, tick=tick(trust_labels=True)), [candidate(tune=0.3)]) == "full"
    known = drift(labels=labels)  # pictures that the champion knows: no challenger speaks for their labels
    for rung in ("head", "recalibrate"):
        assert next_rung(verdict(policy, drift=known), [candidate(rung, 0.8)]) is None
    assert verdict(policy, drift=drift(labels=agreement(0.8))).believed_from == 0


def test_nothing_to_do_tries_no_rung_and_a_bootstrap_one() -> None:
    assert next_rung(Decision(action="nothing", reasons=("x",)), []) is None
    bootstrap = Decision(action="bootstrap", reasons=("x",), ladder=("full",))
    assert next_rung(bootstrap, []) == "full"
    assert next_rung(bootstrap, [candidate("full", 0.0)]) is None


@pytest.mark.parametrize(
    ("tried", "expected"),
    [
        ([], None),
        ([candidate("head", 0.7), candidate("full", 0.8)], 1),
        ([candidate("head", 0.8), candidate("full", 0.8)], 0),
        ([candidate("head", 0.8, kept=0.9), candidate("full", 0.9, kept=0.6)], 0),
        ([candidate("head", 0.8, kept=0.6), candidate("full", 0.9, kept=0.6)], 1),
    ],
)
def test_the_best_is_good_on_new_and_earlier_windows_and_cheap(tried: list[Candidate], expected: int | None) -> None:
    assert best(tried) == (None if expected is None else tried[expected])


def test_what_has_forgotten_is_not_the_best_while_something_else_is_there() -> None:
    forgot, kept = (
        candidate(name, tune, kept=kept).model_copy(update={"champion_kept_accuracy": 0.9})
        for name, tune, kept in (("full", 0.95, 0.87), ("head", 0.6, 0.89))
    )
    assert best([kept, forgot]) == kept
    assert best([forgot]) == forgot
    assert (forgot.forgot, kept.forgot) == (pytest.approx(0.03), pytest.approx(0.01))
    assert best([kept, forgot.model_copy(update={"kept_accuracy": 0.89})]).rung == "full"  # type: ignore[union-attr]
    assert candidate().forgot == 0


# --- trust and the bank --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measured", "regime"),
    [
        (None, "window 2"),
        (drift(regime="window 1"), "window 1"),
        (drift(alarm=True, regime="window 1"), "window 2"),
        (drift(regime="window 0"), "window 0"),
    ],
)
def test_a_trusted_window_joins_the_regime_it_fits(measured: DriftReport | None, regime: str) -> None:
    assert bank_after(tick(), window(), measured, "trusted") == (*BANKED, Banked(view="v1", seq=2, regime=regime, labelled=100))


@pytest.mark.parametrize("trust", ["suspect", "retired"])
def test_only_trusted_windows_enter_the_bank(trust: Any) -> None:
    assert bank_after(tick(), window(), drift(), trust) == BANKED


def test_a_window_without_holdout_or_already_there_leaves_the_bank_as_it_is() -> None:
    assert bank_after(tick(), window(0), drift(), "trusted") == BANKED
    assert bank_after(tick(), window(view="v0"), drift(), "trusted") == BANKED


def test_the_bank_is_bounded_and_the_oldest_of_the_crowded_regime_leaves() -> None:
    rare = Banked(view="rare", seq=1, regime="rare")
    bank = (rare, *(Banked(view=f"c{i}", seq=i, regime="window 1") for i in range(2, MOST_BANKED + 1)))
    after = bank_after(tick(bank=bank), window(), drift(), "trusted")
    assert len(after) == MOST_BANKED
    assert after[0] == rare
    assert [b.view for b in after[1:3]] == ["c3", "c4"]
    assert after[-1].view == "v1"


def test_without_tune_samples_of_its_own_a_rung_is_judged_by_the_earlier_ones() -> None:
    small = candidate(tune=0.0).model_copy(update={"tune_samples": 0, "kept_accuracy": 0.9})
    assert small.reached == 0.9
    assert candidate(tune=0.4).model_copy(update={"tune_samples": 5, "kept_accuracy": 0.9}).reached == 0.4


def test_many_small_windows_do_not_push_a_large_one_out_of_the_bank() -> None:
    bank = (Banked(view="large", seq=1, regime="window 1", labelled=5_000),)
    for seq in range(2, MOST_BANKED + 10):
        small = window(view=f"c{seq}").model_copy(update={"labelled": 5})
        bank = bank_after(tick(bank=bank, seq=seq), small, drift(regime="window 1"), "trusted")
    assert len(bank) == MOST_BANKED
    assert bank[0].view == "large"


def test_drift_that_could_not_be_tested_is_not_called_quiet() -> None:
    untested = drift().model_copy(update={"tested": False, "current_samples": 5})
    decision = verdict(PolicyConfig(triggers=(DRIFT,)), drift=untested)
    assert decision.action == "nothing"
    assert decision.reasons[0].startswith("drift was not tested: too few samples")
