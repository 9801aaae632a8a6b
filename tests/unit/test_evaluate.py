"""Evaluate: each gate says no for its reason, with exact numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from support.loop import CLASSES as DIGITS
from support.loop import SIDE, arrive, open_tick, pipeline, release_of, run_window, second_window
from support.pictures import digits, write_folder

from everfresh.tasks.alias import pin, rollback, unpin
from everfresh.tasks.config import BetterGate, FloorGate, NoWorseGate, OnNewSamples, PolicyConfig
from everfresh.tasks.errors import ObjectMissing
from everfresh.tasks.evaluate import evaluate
from everfresh.tasks.fine_tune import fine_tune
from everfresh.tasks.gates import Judged, Trial, compare, judge
from everfresh.tasks.gates.judged import in_order
from everfresh.tasks.publish import publish
from everfresh.tasks.records import Banked, Comparison, Verdict
from everfresh.tasks.store import FolderStore
from everfresh.tasks.targets import Targets
from everfresh.tasks.views import View

CLASSES = ("cat", "dog")


def judged(challenger: Sequence[int], champion: Sequence[int] | None, shared: Sequence[int] | None = None) -> Judged:
    """Samples of class 0 which the models get right (1) or wrong (0)."""

    def scores(right: Sequence[int]) -> torch.Tensor:
        return torch.tensor([[1.0, 0.0] if r else [0.0, 1.0] for r in right]).reshape(-1, 2)

    return Judged(
        np.zeros(len(challenger), np.int64),
        scores(challenger),
        None if champion is None else scores(champion),
        np.array([True] * len(challenger) if shared is None else shared, dtype=bool),
        Targets(CLASSES),
    )


def said(gate: Any, window: Judged, bank: Judged | None = None) -> Verdict:
    earlier = judged([], []) if bank is None else bank
    there: Comparison | None = compare(earlier, "s") if len(earlier.labels) else None
    return judge(gate, Trial(window, compare(window, "s"), earlier, there, seed="s"))


# --- floor -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "passed", "sign"), [(5, True, "≥"), (4, False, "<")])
def test_the_floor_is_reached_or_not(right: int, passed: bool, sign: str) -> None:
    verdict = said(FloorGate(minimum=0.5), judged([1] * right + [0] * (10 - right), None))
    assert (verdict.gate, verdict.passed) == ("floor", passed)
    assert verdict.numbers == {"value": right / 10, "minimum": 0.5, "samples": 10}
    assert verdict.words == f"floor: accuracy {right}0.0% {sign} 50.0% on 10 window samples"


@pytest.mark.parametrize(("metric", "value"), [("precision", 1.0), ("recall", 0.8), ("f1", 8 / 9)])
def test_the_floor_reads_the_metric_it_names(metric: Any, value: float) -> None:
    assert said(FloorGate(metric=metric), judged([1, 1, 1, 1, 0], None)).numbers["value"] == pytest.approx(value)


def test_the_floor_on_the_bank_reads_the_bank() -> None:
    gate = FloorGate(scope="bank", minimum=0.5)
    window, bank = judged([0, 0], [0, 0]), judged([1, 1, 0], [0, 0, 0])
    assert said(gate, window, bank).passed
    assert said(gate, window, bank).words == "floor: accuracy 66.7% ≥ 50.0% on 3 bank samples"
    assert said(gate, window).words == "floor: there is no earlier hold-out yet"


def test_an_empty_holdout_fails_the_floor_even_at_zero() -> None:
    verdict = said(FloorGate(minimum=0), judged([], None))
    assert not verdict.passed
    assert verdict.numbers["samples"] == 0


# --- better ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("won", "lost", "gate", "passed"),
    [
        (5, 1, {"confidence": 0.8}, True),  # p = 0.109
        (5, 1, {"confidence": 0.9}, False),
        (4, 2, {"confidence": 0.8}, False),  # p = 0.344
        (5, 1, {"confidence": 0.8, "min_gain": 0.2}, False),  # the gain is 0.2, it must exceed that
        (5, 1, {"confidence": 0.8, "min_gain": 0.19}, True),
        (0, 0, {"confidence": 0.5}, False),
        (1, 3, {"confidence": 0.5}, False),
    ],
)
def test_better_needs_a_gain_that_chance_does_not_explain(won: int, lost: int, gate: dict[str, Any], passed: bool) -> None:
    same = 20 - won - lost
    verdict = said(BetterGate(**gate), judged([1] * won + [0] * lost + [1] * same, [0] * won + [1] * lost + [1] * same))
    assert verdict.passed == passed
    assert verdict.numbers["gain"] == pytest.approx((won - lost) / 20)
    expected = binomtest(won, won + lost, 0.5, "greater").pvalue if won + lost else 1
    assert verdict.numbers["p_value"] == pytest.approx(expected)
    assert (verdict.numbers["won"], verdict.numbers["lost"], verdict.numbers["samples"]) == (won, lost, 20)
    assert f"({won} won, {lost} lost of 20; p = " in verdict.words


def test_without_a_champion_there_is_nothing_to_beat() -> None:
    assert said(BetterGate(), judged([0, 0], None)).words == "better: there is no champion to beat"
    assert said(NoWorseGate(), judged([0, 0], None)).passed


# --- no worse ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("won", "lost", "same", "margin", "passed"),
    [
        (0, 0, 100, 0.0, True),
        (2, 3, 95, 0.02, True),  # -1 %
        (1, 3, 96, 0.02, True),  # -2 %, just what it may lose
        (1, 4, 95, 0.02, False),  # -3 %
        (0, 15, 985, 0.02, False),  # -1.5 % is within the margin, but certain: its whole interval lies below zero
        (20, 5, 75, 0.0, True),
    ],
)
def test_no_worse_bounds_the_loss_and_refuses_a_certain_one(
    won: int, lost: int, same: int, margin: float, passed: bool
) -> None:
    bank = judged([1] * won + [0] * lost + [1] * same, [0] * won + [1] * lost + [1] * same)
    verdict = said(NoWorseGate(margin=margin), judged([1], [1]), bank)
    assert verdict.passed == passed
    assert verdict.numbers["gain"] == pytest.approx((won - lost) / (won + lost + same))
    assert (verdict.numbers["margin"], verdict.numbers["samples"]) == (margin, won + lost + same)
    assert (verdict.numbers["high"] < 0) == (lost == 15)


@pytest.mark.parametrize(("too_few", "passed"), [("pass", True), ("fail", False)])
def test_no_worse_on_a_small_bank_refuses_a_certain_loss_only(too_few: Any, passed: bool) -> None:
    def on(lost: int, gate: NoWorseGate) -> Verdict:
        return said(gate, judged([1], [1]), judged([0] * lost + [1] * (19 - lost), [1] * 19))

    verdict = on(1, NoWorseGate(too_few=too_few))
    assert (verdict.outcome, verdict.passed, verdict.numbers["samples"]) == ("undecided", passed, 19)
    assert "-5.3% [-15.8%, +0.0%] on 19 earlier hold-out samples, may lose 2.0%; it needs 20 for that, so it is undecided " in (
        verdict.words
    )
    assert on(1, NoWorseGate(min_samples=19)).outcome == "failed"
    certain = on(6, NoWorseGate(too_few=too_few))
    assert certain.outcome == "failed"
    assert certain.words.endswith("may lose 2.0%")


def test_no_worse_on_a_bank_of_unknown_labels_is_undecided() -> None:
    bank = judged([0] * 40, [1] * 40, shared=[0] * 40)
    assert said(NoWorseGate(), judged([1], [1]), bank).outcome == "undecided"


def test_without_earlier_holdouts_nothing_can_be_worse() -> None:
    assert said(NoWorseGate(), judged([0], [1])).words == "no_worse: there is nothing earlier to compare on"


# --- other classes -----------------------------------------------------------------------------------------


def test_models_are_compared_on_the_classes_that_both_know() -> None:
    """A new class that is not learnt at all is seen by the floor; one that is learnt is no gain over the champion."""
    window = judged([1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], shared=[1, 1, 0, 0, 0, 0])
    assert said(FloorGate(), window).numbers["value"] == pytest.approx(1 / 3)
    assert said(BetterGate(), window).numbers["gain"] == 0.5
    assert said(BetterGate(), window).numbers["samples"] == 2
    assert said(NoWorseGate(), window, window).numbers["samples"] == 2


def test_scores_of_a_model_with_other_classes_are_putin_order() -> None:
    scores = torch.tensor([[1.0, 2.0], [4.0, 3.0]])
    ordered = in_order(scores, ("a", "b"), ("b", "new", "a"))
    assert ordered[:, [0, 2]].tolist() == [[2, 1], [3, 4]]
    assert (ordered[:, 1] < scores.min() - 10).all()
    assert in_order(scores, ("a", "b"), ("a", "b")) is scores


# --- on real digits ----------------------------------------------------------------------------------------


@pytest.fixture
def quick(tmp_path: Path) -> Any:
    """A pipeline whose bootstrap has passed, and what is new is aged."""
    return second_window(tmp_path)


def test_a_verdict_stands_once_and_knows_its_samples(quick: Any) -> None:
    store, config = quick
    tick = open_tick(store, config)
    challenger = fine_tune(store, config, tick, "head")
    found = evaluate(store, config, tick, challenger, against=1)
    assert evaluate(store, config, tick, challenger, against=1) == found
    assert (found.champion, found.champion_move) == (tick.champion, 1)
    assert found.window.challenger.samples == View(store, tick.view).window.splits["holdout"]
    assert found.bank is not None
    assert found.bank_views == tuple(b.view for b in tick.bank)
    assert found.bank.challenger.samples == View(store, tick.bank[0].view).window.splits["holdout"]
    assert [v.gate for v in found.verdicts] == ["floor", "better", "no_worse"]
    assert store.read(found.files["confusion.png"])[:4] == b"\x89PNG"


def test_the_bank_is_bounded_in_samples(quick: Any) -> None:
    store, config = quick
    config = config.model_copy(update={"window": config.window.model_copy(update={"bank_max_samples": 7})})
    tick = open_tick(store, config)
    found = evaluate(store, config, tick, fine_tune(store, config, tick, "head"), against=1)
    assert found.bank is not None
    assert found.bank.challenger.samples == 7


def test_a_new_class_is_in_the_scores_but_not_in_the_comparison(quick: Any) -> None:
    store, config = quick
    config = config.model_copy(update={"model": config.model.model_copy(update={"classes": ("three", "zero", "one", "two")})})
    arrive(config, 40, start=300, classes=("three",))
    tick = open_tick(store, config)
    found = evaluate(store, config, tick, fine_tune(store, config, tick, "head"), against=1)
    new = found.window.challenger.per_class["three"]["samples"]
    assert new > 0
    assert found.window.challenger.samples == View(store, tick.view).window.splits["holdout"]
    better = next(v for v in found.verdicts if v.gate == "better")
    assert better.numbers["samples"] == found.window.challenger.samples - new


def test_a_pinned_champion_and_a_barred_challenger_stay(quick: Any) -> None:
    store, config = quick
    ran = run_window(store, config)
    assert ran.move is not None
    (challenger,) = ran.tried
    back = rollback(store, reason="odd")
    found = evaluate(store, config, ran.tick, challenger, against=back.seq)
    assert {"pinned", "barred"} <= set(found.failed_gates)
    assert "v1 is pinned (odd)" in next(v.words for v in found.verdicts if v.gate == "pinned")
    free = unpin(store)
    assert "barred" in evaluate(store, config, ran.tick, challenger, against=free.seq).failed_gates
    assert "pinned" not in evaluate(store, config, ran.tick, challenger, against=free.seq).failed_gates
    assert "pinned" in evaluate(store, config, ran.tick, challenger, against=pin(store).seq).failed_gates


def test_without_any_holdout_nothing_is_proven_whatever_the_gates(tmp_path: Path) -> None:
    config = pipeline(tmp_path, gates=[{"kind": "better"}], window={"holdout_fraction": 0.001, "tune_fraction": 0.15})
    store = FolderStore(tmp_path / "store")
    arrive(config, 20)
    ran = run_window(store, config)
    assert ran.evaluation is not None
    assert (ran.evaluation.failed_gates, ran.move) == (("holdout",), None)


def test_a_lost_champion_is_named(quick: Any) -> None:
    store, config = quick
    tick = open_tick(store, config)
    challenger = fine_tune(store, config, tick, "head")
    store.delete(f"releases/{tick.champion}/release.json")
    with pytest.raises(ObjectMissing, match=r"release.json must exist: v1 is champion"):
        evaluate(store, config, tick, challenger, against=1)


def test_the_bank_leaves_out_the_window_itself(quick: Any) -> None:
    store, config = quick
    tick = open_tick(store, config)
    twice = tick.model_copy(update={"bank": (*tick.bank, Banked(view=tick.view, seq=2, regime="x"))})
    found = evaluate(store, config, twice, fine_tune(store, config, twice, "head"), against=1)
    assert found.bank_views == tuple(b.view for b in tick.bank)


def test_the_recorded_accuracy_is_that_of_the_release(quick: Any) -> None:
    store, config = quick
    ran = run_window(store, config)
    assert ran.move is not None
    assert ran.evaluation is not None
    assert release_of(store, ran.move).accuracy == ran.evaluation.window.challenger.accuracy
    assert publish(store, config, ran.tick, ran.tried[0], ran.evaluation, ran.tick.bank) == ran.move


# --- labels ------------------------------------------------------------------------------------------------------


def test_labels_off_by_one_class_are_suspect_until_a_person_vouches(tmp_path: Path) -> None:
    """They are consistent, so neighbours and challenger agree with them; the champion does not, and it knows the pictures."""
    config, store = pipeline(tmp_path), FolderStore(tmp_path / "store")
    arrive(config, 60)
    assert run_window(store, config).entry.version == 1
    wrong = dict(zip(DIGITS, (*DIGITS[1:], DIGITS[0]), strict=True))
    files = digits(60, start=300, classes=DIGITS, side=SIDE)
    write_folder(tmp_path / "inbox", {f"{wrong[k.split('/')[0]]}/late-{k.split('/')[1]}": data for k, data in files.items()})
    config = config.model_copy(update={"policy": PolicyConfig(triggers=(OnNewSamples(count=1),), ladder=("head",))})
    ran = run_window(store, config)
    assert ran.drift is not None
    assert not ran.drift.alarm
    assert (ran.entry.trust, ran.entry.version, ran.entry.bank) == ("suspect", None, ran.tick.bank)
    assert "labels" in ran.entry.failed_gates
    vouched = ran.tick.model_copy(update={"trust_labels": True})
    assert evaluate(store, config, vouched, ran.tried[0], ran.drift, against=1).trust == "trusted"


def test_a_first_model_gathers_small_windows_until_it_can_learn(tmp_path: Path) -> None:
    config, store = pipeline(tmp_path, gates=[{"kind": "floor", "minimum": 0.8}]), FolderStore(tmp_path / "store")
    for number in range(8):
        arrive(config, 10, start=40 * number)
        ran = run_window(store, config)
        if ran.entry.version:
            break
        assert ran.entry.failed_gates == ("floor",)
        assert len(ran.entry.bank) == number + 1  # trusted, so that the next window learns from it too
    assert number > 0
    assert ran.entry.version == 1


@pytest.mark.parametrize(("maximum", "passed", "sign"), [(0.6, True, "≤"), (0.4, False, ">")])
def test_a_floor_on_an_error_is_a_maximum(maximum: float, passed: bool, sign: str) -> None:
    targets = Targets(("x",), "regression", 1)
    window = Judged(np.zeros((4, 1)), torch.full((4, 1), 0.5), None, np.ones(4, dtype=bool), targets)
    verdict = said(FloorGate(metric="mae", maximum=maximum), window)
    assert (verdict.passed, verdict.words) == (passed, f"floor: mae 0.5 {sign} {maximum:g} on 4 window samples")


def test_sets_are_compared_where_both_models_know_the_classes_that_are_there() -> None:
    """The champion knows no bird: pictures with one say nothing of who is better."""
    targets = Targets(("cat", "dog", "bird"), "multi_label")
    truth = targets.encode(["cat", "bird|cat", "|"])
    window = Judged(truth, torch.from_numpy(truth) - 0.5, torch.tensor([[1.0, -1, -9]] * 3), truth[:, 2] == 0, targets)
    ours, theirs = window.pairs()
    assert ours.tolist() == [1, 1]
    assert theirs.tolist() == [1, 0]
