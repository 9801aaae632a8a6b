"""Gates on planted faults: each is caught by its own gate, and a fair challenger passes as often as was declared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binom, binomtest, multinomial

from everfresh.tasks.config import BetterGate, CalibrationGate, FloorGate, NegativeFlipsGate, SlicesGate
from everfresh.tasks.gates import Judged, Trial, compare, judge
from everfresh.tasks.gates.calibration import Reliability
from everfresh.tasks.gates.evidence import (
    highest_share,
    holm,
    lowest,
    p_above,
    p_apart,
    p_below,
    p_dropped,
    resolved_above,
    resolved_below,
    resolved_drop,
)
from everfresh.tasks.gates.gain import _bootstrap
from everfresh.tasks.gates.many import drops, floors, gaps
from everfresh.tasks.records import Verdict
from everfresh.tasks.targets import Targets


def judged(now: Any, before: Any = None, columns: dict[str, Sequence[str]] | None = None, shared: Any = None) -> Judged:
    """Samples of class 0 which the models get right or wrong (N,)."""

    def scores(right: Any) -> torch.Tensor:
        return torch.eye(2)[1 - np.asarray(right, dtype=np.int64)].reshape(-1, 2)

    return Judged(
        np.zeros(len(now), dtype=np.int64),
        scores(now),
        None if before is None else scores(before),
        np.ones(len(now), dtype=bool) if shared is None else np.asarray(shared, dtype=bool),
        Targets(("a", "b")),
        columns={name: np.array(values, dtype=np.str_) for name, values in (columns or {}).items()},
    )


def said(gate: Any, window: Judged, bank: Judged | None = None, seed: str = "s") -> Verdict:
    earlier = judged([], None if window.champion is None else []) if bank is None else bank
    there = compare(earlier, "s") if len(earlier.labels) else None
    return judge(gate, Trial(window, compare(window, "s"), earlier, there, seed=seed))


# --- tests and bounds --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [20, 60])
@pytest.mark.parametrize("most", [0.0, 0.05, 0.2])
def test_a_drop_within_its_limit_is_refuted_no_more_often_than_the_level(count: int, most: float) -> None:
    """Over all outcomes, exactly, whatever the share of samples that is won."""
    lost, won = np.array([(x, y) for x in range(count + 1) for y in range(count + 1 - x)]).T
    p_values = p_dropped(lost, won, count, most)
    for win in (0.0, 0.02, 0.1, 0.3):
        chances = multinomial.pmf(np.stack([lost, won, count - lost - won], 1), count, [most + win, win, 1 - most - 2 * win])
        for level in (0.05, 0.005, 0.0005):
            assert chances[p_values <= level].sum() <= 1.2 * level


@pytest.mark.parametrize(("first", "second"), [(20, 20), (20, 200), (200, 20), (60, 60)])
@pytest.mark.parametrize("most", [0.0, 0.1])
def test_a_gap_within_its_limit_is_refuted_no_more_often_than_the_level(first: int, second: int, most: float) -> None:
    x1, x2 = np.meshgrid(np.arange(first + 1), np.arange(second + 1), indexing="ij")
    p_values = p_apart(x1, first, x2, second, most)
    for share in np.linspace(most, 1, 11):
        chances = binom.pmf(x1, first, share) * binom.pmf(x2, second, share - most)
        for level in (0.05, 0.005, 0.0005):
            assert chances[p_values <= level].sum() <= 1.2 * level


@settings(deadline=None)
@given(st.integers(1, 300), st.floats(0, 1), st.floats(0.01, 0.99))
def test_shares_against_a_limit_are_tested_exactly(count: int, share: float, limit: float) -> None:
    hits = round(share * count)
    assert p_below(hits, count, limit) == pytest.approx(binomtest(hits, count, limit, "less").pvalue)
    assert p_above(hits, count, limit) == pytest.approx(binomtest(hits, count, limit, "greater").pvalue)


@settings(deadline=None)
@given(st.integers(1, 200), st.floats(0, 1), st.sampled_from([0.05, 0.001]))
def test_a_bound_is_the_limit_at_which_its_test_turns(count: int, share: float, level: float) -> None:
    hits = round(share * count)
    high = highest_share(hits, count, level)
    assert hits == count or p_below(hits, count, high) == pytest.approx(level)
    low = lowest(lambda limit: p_above(hits, count, limit), level)
    assert hits == 0 or p_above(hits, count, low) == pytest.approx(level)
    assert low <= hits / count <= high


@settings(deadline=None)
@given(arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 1)))
def test_holms_correction_is_holms(p_values: np.ndarray) -> None:
    found, count = holm(p_values), len(p_values)
    for level in (0.01, 0.05, 0.5):
        refuted, order = set(), np.argsort(p_values, kind="stable")
        for step, i in enumerate(order):
            if p_values[i] * (count - step) > level:
                break
            refuted.add(int(i))
        assert {int(i) for i in np.flatnonzero(found <= level)} == refuted
    assert (found >= p_values).all()
    assert (found <= np.minimum(p_values * count, 1) + 1e-15).all()  # never harder than Bonferroni


@settings(deadline=None)
@given(st.permutations(range(8)), st.lists(st.floats(0, 1), min_size=8, max_size=8))
def test_holms_correction_knows_no_order(order: list[int], values: list[float]) -> None:
    p_values = np.array(values)
    assert holm(p_values[order]).tolist() == holm(p_values)[order].tolist()


@pytest.mark.parametrize("count", [25, 100, 1000])
def test_what_a_test_resolves_is_found_in_eight_of_ten(count: int) -> None:
    level = 0.05
    high, low = resolved_above(count, 0.05, level), resolved_below(count, 0.8, level)
    drop = resolved_drop(count, 0.05, level, 0.1)
    hits = np.arange(count + 1)
    assert binom.pmf(hits, count, high)[p_above(hits, count, 0.05) <= level].sum() == pytest.approx(0.8, abs=1e-6)
    assert binom.pmf(hits, count, low)[p_below(hits, count, 0.8) <= level].sum() == pytest.approx(0.8, abs=1e-6)
    lose = max((0.1 + drop) / 2, drop)
    lost, won, _ = np.random.default_rng(0).multinomial(count, [lose, lose - drop, 1 - 2 * lose + drop], 4000).T
    assert 0.65 <= (p_dropped(lost, won, count, 0.05) <= level).mean() <= 0.95  # careful


def test_too_few_samples_resolve_nothing() -> None:
    assert resolved_above(1, 0.2, 0.05) == np.inf
    assert resolved_below(3, 0.5, 0.05) == -np.inf


# --- slices ------------------------------------------------------------------------------------------------------

SIZES = (20, 25, 40, 80, 150, 300)
COUNTS = np.array(SIZES)


def sliced(now: Sequence[float], before: Sequence[float] | None = None, seed: int = 0) -> Judged:
    """Six slices of a column `site` with the accuracies of both models."""
    rng = np.random.default_rng(seed)
    draw = [rng.random(n) for n in SIZES]  # one draw for both models: what is hard for one is hard for the other

    def right(accuracies: Sequence[float]) -> np.ndarray:
        return np.concatenate([d < a for d, a in zip(draw, accuracies, strict=True)])

    sites = [name for name, n in zip("abcdef", SIZES, strict=True) for _ in range(n)]
    return judged(right(now), None if before is None else right(before), {"site": sites})


FAIR = (0.8,) * 6


def test_a_fair_challenger_passes_the_slices_at_the_declared_confidence() -> None:
    """All three limits hold with equality, in six slices of 20 to 300 samples, over 2,000 seeds."""
    rng, level = np.random.default_rng(1), 0.1
    hits = rng.binomial(COUNTS, 0.8, (2000, 6))
    lost, won = rng.binomial(COUNTS, 0.1, (2000, 6)), rng.binomial(COUNTS, 0.05, (2000, 6))
    first, second = (np.array(x) for x in zip(*[(i, j) for i in range(6) for j in range(6) if i != j], strict=True))
    p_values = np.concatenate(
        [
            floors("abcdef", hits, COUNTS, 0.8).p_values,
            drops("abcdef", lost, won, np.broadcast_to(COUNTS, lost.shape), 0.05).p_values,
            p_apart(hits[:, first], COUNTS[first], hits[:, second], COUNTS[second], 0.0),
        ],
        axis=1,
    )
    alarms = (p_values.min(axis=1) * p_values.shape[1] <= level).mean()
    assert 0.01 <= alarms <= level


@pytest.mark.parametrize(
    ("gate", "now", "before"),
    [
        (SlicesGate(minimum=0.7), (0.8, 0.8, 0.8, 0.4, 0.8, 0.8), None),
        (SlicesGate(max_gap=0.1), (0.8, 0.8, 0.8, 0.2, 0.8, 0.8), None),
        (SlicesGate(max_drop=0.05), (0.8, 0.8, 0.8, 0.5, 0.8, 0.8), FAIR),
        (SlicesGate(minimum=0.6, max_gap=0.1, max_drop=0.05), (0.8, 0.8, 0.8, 0.4, 0.8, 0.8), FAIR),
    ],
)
def test_a_planted_gap_fails_the_slices_and_is_named(gate: SlicesGate, now: Any, before: Any) -> None:
    for seed in range(3):
        fair, planted = (said(gate, sliced(a, before, seed)) for a in (FAIR, now))
        assert (fair.outcome, planted.outcome) == ("passed", "failed")
        assert "site=d" in planted.words or "over d" in planted.words
        assert planted.numbers["p_value"] <= 0.05 < fair.numbers["p_value"]
        assert "(power 80%)" in planted.resolves


def test_the_gap_that_is_said_to_be_resolved_is_found_about_as_often_as_said() -> None:
    rng = np.random.default_rng(0)
    for count, most, share in ((60, 0.0, 0.8), (200, 0.05, 0.9), (500, 0.1, 0.7)):
        look = gaps([("site", ["a", "b"], [round(share * count)] * 2, [count] * 2)], most)
        gap = look.resolved(0, 0.05)
        top = min(share + gap / 2, 1.0)
        high, low = rng.binomial(count, top, 2_000), rng.binomial(count, top - gap, 2_000)
        found = np.mean(p_apart(high, count, low, count, most) <= 0.05)
        assert 0.7 < found < 0.95


def test_a_slice_that_gains_is_not_said_to_drop() -> None:
    window = judged([1] * 40, [0] * 4 + [1] * 36, {"site": ["a"] * 40})
    assert "site=a gains 10.0% on 40" in said(SlicesGate(), window).words


def test_the_words_of_slices_hold_value_bound_limit_and_what_is_resolved() -> None:
    window = judged([0] * 12 + [1] * 28 + [1] * 60, [1] * 100, {"site": ["a"] * 40 + ["b"] * 57 + ["c"] * 3})
    verdict = said(SlicesGate(), window)
    low = lowest(lambda limit: p_dropped(12, 0, 40, limit), 0.025)
    assert verdict.words == (
        "slices: 2 slices of 20 samples or more, 1 smaller ones left aside; "
        f"site=a drops by 30.0% on 40 (at least {low:.1%}, may be 5.0%)"
    )
    assert verdict.numbers == pytest.approx(
        {"slices": 2, "left_aside": 1, "samples": 100, "drop": 0.3, "drop_bound": low, "drop_limit": 0.05, "tests": 2}
        | {"p_value": 2 * float(p_dropped(12, 0, 40, 0.05))}
    )
    assert verdict.resolves == (
        f"a drop of {resolved_drop(40, 0.05, 0.025, 0.3):.1%} in 40 samples, "
        f"a drop of {resolved_drop(57, 0.05, 0.025, 0):.1%} in 57 samples (power 80%)"
    )


@pytest.mark.parametrize(("too_few", "passed"), [("pass", True), ("fail", False)])
def test_small_slices_are_undecided(too_few: Any, passed: bool) -> None:
    verdict = said(SlicesGate(too_few=too_few), judged([0] * 19, [1] * 19, {"site": ["a"] * 19}))
    assert (verdict.outcome, verdict.passed) == ("undecided", passed)
    assert verdict.words == (
        f"slices: no slice of the 19 window samples has 20 of them, so it is undecided and counts as {too_few}ed"
    )


def test_slices_need_no_champion_for_a_floor_and_drop_against_none() -> None:
    window = judged([0] * 40, None, {"site": ["a"] * 40})
    assert said(SlicesGate(), window).words == "slices: there is no champion to drop against"
    assert said(SlicesGate(), window).outcome == "passed"
    assert said(SlicesGate(minimum=0.5), window).outcome == "failed"
    assert said(SlicesGate(scope="bank"), window).words == "slices: there is no earlier hold-out yet"


def test_slices_are_those_of_the_columns_that_are_named() -> None:
    columns = {"site": ["a"] * 40, "label": ["x"] * 40, "window": ["3"] * 40}
    window = judged([0] * 40, [1] * 40, columns)
    assert "site=a" in said(SlicesGate(), window).words
    assert said(SlicesGate(), window).numbers["slices"] == 1
    assert said(SlicesGate(columns=("label", "window")), window).numbers["slices"] == 2


def test_a_limit_that_could_not_be_tested_is_said_and_leaves_the_slices_undecided() -> None:
    """Two slices of 30 with all right; the champion knows none of the labels."""
    unknown = judged([1] * 60, [1] * 60, {"site": ["a"] * 30 + ["b"] * 30}, shared=[0] * 60)
    no_drop = "max_drop could not be tested in site for want of a slice of 20 samples that both models know"
    assert said(SlicesGate(), unknown).words == f"slices: {no_drop}, so it is undecided and counts as passed"
    partly = said(SlicesGate(minimum=0.5, max_drop=0.05, too_few="fail"), unknown)
    assert (partly.outcome, partly.passed, partly.numbers["floor"]) == ("undecided", False, 1)
    assert partly.words.endswith(f"; {no_drop}, so it is undecided and counts as failed")
    assert partly.resolves
    bad = judged([0] * 60, [1] * 60, {"site": ["a"] * 30 + ["b"] * 30}, shared=[0] * 60)
    failed = said(SlicesGate(minimum=0.5, max_drop=0.05), bad)
    assert failed.outcome == "failed"
    assert failed.words.endswith(f"; {no_drop}")


def test_a_gap_needs_two_values() -> None:
    window = judged([1] * 60, [1] * 60, {"site": ["a"] * 60})
    verdict = said(SlicesGate(max_gap=0.1), window)
    assert (verdict.outcome, verdict.numbers["slices"]) == ("undecided", 1)
    assert "max_gap could not be tested in site for want of two slices of 20 samples, so" in verdict.words
    assert said(SlicesGate(max_gap=0.1, max_drop=0.05), window).outcome == "undecided"


def test_a_column_that_is_named_must_be_there_and_one_that_is_not_is_left_aside_if_small() -> None:
    columns = {"site": ["a"] * 40, "device": [str(n) for n in range(40)]}
    window = judged([1] * 40, [1] * 40, columns)
    lost = said(SlicesGate(columns=("camera",)), window)
    assert lost.words == "slices: the 40 window samples have no column camera, so it is undecided and counts as passed"
    beside = said(SlicesGate(columns=("site", "camera")), window)
    assert (beside.outcome, beside.numbers["tests"]) == ("undecided", 1)
    assert "; the 40 window samples have no column camera, so it is undecided" in beside.words
    small = said(SlicesGate(columns=("site", "device"), too_few="fail"), window)
    assert (small.outcome, small.passed) == ("undecided", False)
    assert "max_drop could not be tested in device for want of a slice of 20 samples" in small.words
    assert said(SlicesGate(), window).outcome == "passed"
    assert "no column to make slices of" in said(SlicesGate(), judged([1] * 40, [1] * 40)).words


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(60)), st.integers(0, 2**60 - 1))
def test_the_slices_verdict_knows_no_order(order: list[int], bits: int) -> None:
    now = np.array([bits >> i & 1 for i in range(60)])
    sites = np.array(["a"] * 25 + ["b"] * 30 + ["c"] * 5)
    gate = SlicesGate(minimum=0.6, max_gap=0.1, max_drop=0.0)
    first = said(gate, judged(now, np.ones(60), {"site": list(sites)}))
    again = said(gate, judged(now[order], np.ones(60), {"site": list(sites[order])}))
    assert (first.numbers, first.words) == (again.numbers, again.words)


@pytest.mark.parametrize(
    ("targets", "truth", "good", "bad"),
    [
        (Targets(("x",), "regression", 1.0), np.zeros((60, 1), np.float32), 0.5, 1.5),
        (Targets(("a", "b"), "multi_label"), np.ones((60, 2), np.float32), 1.0, -1.0),
    ],
)
def test_values_and_sets_are_judged_by_right_or_wrong(targets: Targets, truth: Any, good: float, bad: float) -> None:
    """Right before in all 60; now wrong in one slice of 30."""
    before = torch.full(truth.shape, good)
    now = before.clone()
    now[:30] = bad
    sites = np.array(["a"] * 30 + ["b"] * 30)
    window = Judged(truth, now, before, np.ones(60, dtype=bool), targets, columns={"site": sites})
    verdict = said(SlicesGate(minimum=0.5, max_drop=0.05), window)
    assert (verdict.outcome, verdict.numbers["drop"], verdict.numbers["floor"]) == ("failed", 1, 0)
    assert said(NegativeFlipsGate(), window).numbers["flips"] == 30


def test_a_drop_is_measured_on_what_both_models_know() -> None:
    window = judged([0] * 60, [1] * 60, {"site": ["a"] * 60}, shared=[1] * 19 + [0] * 41)
    assert said(SlicesGate(), window).outcome == "undecided"
    window = judged([0] * 60, [1] * 60, {"site": ["a"] * 60}, shared=[1] * 30 + [0] * 30)
    assert "drops by 100.0% on 30" in said(SlicesGate(), window).words


# --- negative flips ----------------------------------------------------------------------------------------------


def test_flips_within_the_limit_pass_at_the_declared_confidence() -> None:
    counts = np.random.default_rng(0).binomial(300, 0.05, 20_000)
    alarms = (p_above(counts, 300, 0.05) <= 0.05).mean()
    assert 0.02 <= alarms <= 0.05
    for n in (22, 23):
        assert said(NegativeFlipsGate(), flipped(300, n)).passed == bool(p_above(n, 300, 0.05) > 0.05)


def flipped(count: int, flips: int, won: int = 0) -> Judged:
    """Both right but for some flips, and some that are right now only."""
    same = count - flips - won
    return judged([0] * flips + [1] * won + [1] * same, [1] * flips + [0] * won + [1] * same)


def test_more_flips_than_the_limit_fail_also_where_accuracy_has_grown() -> None:
    verdict = said(NegativeFlipsGate(), flipped(200, 24, won=60))
    assert said(BetterGate(), flipped(200, 24, won=60)).passed
    assert verdict.outcome == "failed"
    low = lowest(lambda limit: p_above(24, 200, limit), 0.05)
    assert verdict.words == (
        "negative_flips: 24 of 200 window samples were right and are wrong now, 12.0%; "
        f"at least {low:.1%} at a confidence of 0.95, may be 5.0%"
    )
    assert verdict.numbers["share"] == 0.12
    assert verdict.resolves == f"a share of {resolved_above(200, 0.05, 0.05):.1%} (power 80%)"


def test_relative_flips_are_one_where_errors_are_independent() -> None:
    """20 % wrong before, 10 % wrong now, by the toss of a coin; then those that are wrong now were all wrong before."""
    rng = np.random.default_rng(0)
    independent = judged(rng.random(20_000) < 0.9, rng.random(20_000) < 0.8)
    found = said(NegativeFlipsGate(relative=0.5), independent)
    assert found.numbers["relative"] == pytest.approx(1, abs=0.05)
    assert found.outcome == "failed"
    nested = judged([0] * 10 + [1] * 90, [0] * 20 + [1] * 80)
    assert said(NegativeFlipsGate(relative=0.5), nested).numbers["relative"] == 0
    assert said(NegativeFlipsGate(relative=0.5), judged([1] * 40, [1] * 40)).numbers["relative"] == 0


@pytest.mark.parametrize(("too_few", "passed"), [("pass", True), ("fail", False)])
def test_flips_of_few_samples_are_undecided(too_few: Any, passed: bool) -> None:
    verdict = said(NegativeFlipsGate(too_few=too_few), judged([0] * 30, [1] * 30, shared=[1] * 19 + [0] * 11))
    assert (verdict.outcome, verdict.passed) == ("undecided", passed)
    assert verdict.words == (
        "negative_flips: there are 19 window samples that both models know, and it needs 20, "
        f"so it is undecided and counts as {too_few}ed"
    )
    assert said(NegativeFlipsGate(), judged([0] * 30)).words == "negative_flips: there is no champion"


# --- floor and better --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("too_few", "passed"), [("pass", True), ("fail", False)])
def test_a_floor_of_few_samples_is_undecided(too_few: Any, passed: bool) -> None:
    verdict = said(FloorGate(min_samples=10, too_few=too_few), judged([1] * 9))
    assert (verdict.outcome, verdict.passed) == ("undecided", passed)
    assert verdict.words == f"floor: there are 9 window samples, and it needs 10, so it is undecided and counts as {too_few}ed"
    assert said(FloorGate(min_samples=10), judged([1] * 10)).outcome == "passed"
    assert said(FloorGate(), judged([1] * 10)).resolves == "accuracy to 72.2% … 100.0% (95%)"


@pytest.mark.parametrize(("too_few", "passed"), [("pass", True), ("fail", False)])
def test_better_of_too_few_samples_for_any_gain_is_undecided(too_few: Any, passed: bool) -> None:
    verdict = said(BetterGate(confidence=0.95, too_few=too_few), judged([1] * 4, [0] * 4))
    assert (verdict.outcome, verdict.passed) == ("undecided", passed)
    assert "there are 4 samples, and no gain can be shown on fewer than 5" in verdict.words
    found = said(BetterGate(confidence=0.95), judged([1] * 5, [0] * 5))
    assert (found.outcome, found.resolves) == ("passed", "a gain of 100.0% at the least")


def test_better_by_bootstrap_errs_about_as_often_as_declared() -> None:
    """A challenger as good as the champion; 100 samples of which a fifth differ."""
    rng, passed = np.random.default_rng(3), []
    for seed in range(400):
        won = rng.binomial(20, 0.5)
        passed.append(_bootstrap(won, 20 - won, 100, str(seed)) <= 0.1)
    assert 0.05 <= np.mean(passed) <= 0.15
    window = judged([1] * 30 + [0] * 5 + [1] * 65, [0] * 30 + [1] * 5 + [1] * 65)
    assert said(BetterGate(test="bootstrap", confidence=0.95), window).passed


# --- calibration -------------------------------------------------------------------------------------------------


def confident(confidence: np.ndarray, right: np.ndarray) -> torch.Tensor:
    """Scores (N, 2) of samples of class 0 that say these confidences, right or wrong."""
    odds = torch.from_numpy(np.log(confidence / (1 - confidence)))
    return torch.stack([odds, torch.zeros(len(odds), dtype=odds.dtype)], 1).where(
        torch.from_numpy(right)[:, None], torch.stack([torch.zeros(len(odds), dtype=odds.dtype), odds], 1)
    )


def calibrated(count: int, off: float, before: float | None = 0.0, seed: int = 0) -> Judged:
    """Two models whose confidences are too high by `off` and `before`, on the same samples."""
    rng = np.random.default_rng(seed)

    def scores(off: float) -> torch.Tensor:
        confidence = rng.uniform(0.55, 0.98, count)
        return confident(confidence, rng.random(count) < confidence - off)

    zeros, everywhere = np.zeros(count, dtype=np.int64), np.ones(count, dtype=bool)
    return Judged(zeros, scores(off), None if before is None else scores(before), everywhere, Targets(("a", "b")))


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(2, 40), st.integers(0, 9))
def test_bins_have_equal_mass_and_grow_with_confidence(count: int, bins: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    confidence, right = rng.random(count), rng.random(count) < 0.5
    found = Reliability.binned(confidence, right, bins)
    sizes = np.bincount(found.bin, minlength=found.bins)
    assert len(sizes) <= bins
    assert sizes.max() - sizes.min() <= 1
    assert sizes.min() >= min(25, count)
    assert (np.diff(found.bin[np.argsort(confidence, kind="stable")]) >= 0).all()
    assert abs(right.mean() - confidence.mean()) - 1e-12 <= found.error <= np.abs(right - confidence).mean() + 1e-12


@settings(deadline=None)
@given(st.integers(1, 120), st.integers(0, 9))
def test_the_calibration_error_is_that_of_its_definition_and_knows_no_order(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    confidence, right = rng.random(count), rng.random(count) < 0.5
    found = Reliability.binned(confidence, right, 4)
    expected = sum(
        (found.bin == b).mean() * abs(right[found.bin == b].mean() - confidence[found.bin == b].mean())
        for b in range(found.bins)
    )
    assert found.error == pytest.approx(expected)
    order = rng.permutation(count)
    assert Reliability.binned(confidence[order], right[order], 4).error == pytest.approx(found.error)


def test_what_chance_makes_of_no_error_is_taken_off() -> None:
    """Over seeds the estimate of a perfectly calibrated model is zero, though its plain ECE is 7 % of 100 samples."""
    found = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        confidence = rng.uniform(0.55, 0.98, 100)
        model = Reliability.binned(confidence, rng.random(100) < confidence, 15)
        found.append((model.error, model.error - model.chance(str(seed))))
    plain, taken_off = np.mean(found, axis=0)
    assert plain > 0.05
    assert abs(taken_off) < 0.01


@pytest.mark.parametrize(("gate", "off"), [(CalibrationGate(maximum=0.05), 0.05), (CalibrationGate(max_increase=0.0), 0.0)])
def test_a_model_calibrated_within_its_limit_passes_at_the_declared_confidence(gate: CalibrationGate, off: float) -> None:
    failed = [not said(gate, calibrated(200, off, 0.0, seed), seed=str(seed)).passed for seed in range(60)]
    assert binom.sf(sum(failed) - 1, 60, 0.05) > 0.01


@pytest.mark.parametrize(("gate", "number"), [(CalibrationGate(maximum=0.05), "value"), (CalibrationGate(), "increase")])
def test_a_model_that_is_too_sure_of_itself_fails_calibration(gate: CalibrationGate, number: str) -> None:
    for seed in range(5):
        verdict = said(gate, calibrated(600, 0.25, 0.0, seed))
        assert verdict.outcome == "failed"
        assert verdict.numbers[number] == pytest.approx(0.25, abs=0.08)
        assert 0.05 < float(verdict.resolves.partition("of ")[2].partition("%")[0]) / 100 < 0.2


def test_the_words_of_calibration_hold_error_chance_and_limits() -> None:
    verdict = said(CalibrationGate(maximum=0.1, max_increase=0.05), calibrated(200, 0.0))
    n = verdict.numbers
    assert verdict.words == (
        f"calibration: ECE {n['ece']:.1%} in 8 bins of equal mass on 200 window samples, of which chance alone makes "
        f"{n['chance']:.1%}; "
        f"{n['value']:+.1%} [{n['low']:+.1%}, {n['high']:+.1%}] without, may be 10.0%; champion's {n['champion_ece']:.1%}; "
        f"increase {n['increase']:+.1%} [{n['increase_low']:+.1%}, {n['increase_high']:+.1%}] less chance, may be 5.0%"
    )


@pytest.mark.parametrize(("too_few", "passed"), [("pass", True), ("fail", False)])
def test_calibration_of_few_samples_is_undecided(too_few: Any, passed: bool) -> None:
    verdict = said(CalibrationGate(too_few=too_few), calibrated(99, 0.3))
    assert (verdict.outcome, verdict.passed) == ("undecided", passed)
    assert verdict.words.startswith("calibration: there are 99 window samples, and it needs 100, so it is undecided")
    assert said(CalibrationGate(), calibrated(200, 0.3, None)).words == "calibration: there is no champion to compare with"
    assert said(CalibrationGate(maximum=0.05), calibrated(400, 0.3, None)).outcome == "failed"


def test_an_increase_that_could_not_be_tested_leaves_calibration_undecided_unless_its_error_fails() -> None:
    words = "max_increase could not be tested: both models know 99 of the samples, and it needs 100"
    for off, outcome in ((0.0, "undecided"), (0.3, "failed")):
        window = replace(calibrated(400, off), shared=np.arange(400) < 99)
        verdict = said(CalibrationGate(maximum=0.1, max_increase=0.05), window)
        assert verdict.outcome == outcome
        assert words in verdict.words
        assert verdict.resolves


def test_calibration_of_sets_is_that_of_the_whole_set() -> None:
    """Two classes, each there with probability 0.9: the set is right with 0.81, and the model says so."""
    targets, rng = Targets(("a", "b"), "multi_label"), np.random.default_rng(0)
    truth = (rng.random((1000, 2)) < 0.9).astype(np.float32)
    scores = torch.full((1000, 2), float(np.log(9)))
    window = Judged(truth, scores, None, np.ones(1000, dtype=bool), targets)
    assert said(CalibrationGate(maximum=0.03), window).outcome == "passed"
    sure = Judged(truth, scores * 5, None, np.ones(1000, dtype=bool), targets)
    assert said(CalibrationGate(maximum=0.03), sure).outcome == "failed"
