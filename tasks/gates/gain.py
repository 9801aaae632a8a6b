"""Gates on accuracy as a whole: the challenger's own floor, a gain here, no loss on the bank, few negative flips."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from everfresh.tasks.config import BetterGate, FloorGate, NegativeFlipsGate, NoWorseGate
from everfresh.tasks.gates.evidence import Floats, lowest, p_above, resolved_above
from everfresh.tasks.gates.judged import Trial, but_for, undecided
from everfresh.tasks.metrics import paired_gain, seeded_rng
from everfresh.tasks.records import Verdict
from everfresh.tasks.slices import wilson

RESAMPLES = 2_000


def floor(gate: FloorGate, trial: Trial) -> Verdict:
    """Whether one score of the challenger reaches its floor, or one error stays under its ceiling."""
    on = trial.here if gate.scope == "window" else trial.there
    if on is None:
        return Verdict(gate="floor", passed=True, numbers={}, words="floor: there is no earlier hold-out yet")
    value, samples = on.challenger.get(gate.metric), on.challenger.samples
    if samples < gate.min_samples:
        words = f"there are {samples} {gate.scope} samples, and it needs {gate.min_samples}"
        return undecided("floor", gate.too_few, words, samples=float(samples))
    if gate.maximum is not None:
        passed, limit, shown = value <= gate.maximum, {"maximum": gate.maximum}, f"{value:.4g}"
        against = f"{'≤' if passed else '>'} {gate.maximum:g}"
    else:
        passed, limit, shown = value >= gate.minimum, {"minimum": gate.minimum}, f"{value:.1%}"
        against = f"{'≥' if passed else '<'} {gate.minimum:.1%}"
    return Verdict(
        gate="floor",
        passed=passed,
        numbers={"value": value, **limit, "samples": float(samples)},
        words=f"floor: {gate.metric} {shown} {against} on {samples} {gate.scope} samples",
        resolves=_known_to(round(value * samples), samples) if gate.metric == "accuracy" else "",
    )


def _known_to(hits: int, samples: int) -> str:
    known = wilson(hits, samples)
    return f"accuracy to {known.low:.1%} … {known.high:.1%} (95%)"


def better(gate: BetterGate, trial: Trial) -> Verdict:
    """Whether the challenger beats the champion by more than chance explains."""
    gain = trial.here.gain
    if gain is None:
        return Verdict(gate="better", passed=True, numbers={}, words="better: there is no champion to beat")
    challenger, champion = trial.window.pairs()
    samples, needed = len(champion), wins_needed(gate.confidence)
    won, lost = int((challenger > champion).sum()), int((challenger < champion).sum())
    p_value = _mcnemar(won, lost) if gate.test == "mcnemar" else _bootstrap(won, lost, samples, trial.seed)
    numbers = {"gain": gain.value, "low": gain.low, "high": gain.high, "p_value": p_value}
    numbers |= {"won": float(won), "lost": float(lost), "samples": float(samples)}
    if samples < needed:
        words = f"there are {samples} samples, and no gain can be shown on fewer than {needed}"
        return undecided("better", gate.too_few, words, **numbers)
    return Verdict(
        gate="better",
        passed=gain.value > gate.min_gain and p_value <= 1 - gate.confidence,
        numbers=numbers,
        words=(
            f"better: {gain.value:+.1%} on this window's hold-out ({won} won, {lost} lost of {samples}; "
            f"p = {p_value:.2g}, needs more than {gate.min_gain:+.1%} at p ≤ {1 - gate.confidence:.2g})"
        ),
        resolves=f"a gain of {max(needed / samples, gate.min_gain):.1%} at the least",
    )


def wins_needed(confidence: float) -> int:
    """Samples that the challenger must win, if it loses none: p is a half to their number."""
    return math.ceil(math.log2(1 / (1 - confidence)))


def _mcnemar(won: int, lost: int) -> float:
    return float(binomtest(won, won + lost, 0.5, "greater").pvalue) if won + lost else 1.0


def _bootstrap(won: int, lost: int, samples: int, seed: str) -> float:
    """Share of resampled windows in which the challenger gains nothing."""
    if not samples:
        return 1.0
    shares = np.array([won, lost, samples - won - lost]) / samples
    drawn = seeded_rng("better", seed).multinomial(samples, shares, RESAMPLES)
    return float((np.sum(drawn[:, 0] <= drawn[:, 1]) + 1) / (RESAMPLES + 1))


def no_worse(gate: NoWorseGate, trial: Trial) -> Verdict:
    """Whether the challenger loses next to nothing on the earlier hold-outs; of few, whether it is certain to lose."""
    if trial.there is None or trial.bank.champion is None:
        return Verdict(gate="no_worse", passed=True, numbers={}, words="no_worse: there is nothing earlier to compare on")
    right, before = trial.bank.pairs()
    gain = paired_gain(right, before, gate.confidence, "no_worse")
    certain, few = gain.high < 0, len(right) < gate.min_samples
    verdict = Verdict(
        gate="no_worse",
        passed=not certain and (few or gain.value >= -gate.margin),
        numbers={"gain": gain.value, "low": gain.low, "high": gain.high, "margin": gate.margin, "samples": float(len(right))},
        words=(
            f"no_worse: {gain.value:+.1%} [{gain.low:+.1%}, {gain.high:+.1%}] on {len(right)} earlier hold-out samples, "
            f"may lose {gate.margin:.1%}"
        ),
        resolves=f"differences of {gain.width / 2:.1%} ({gate.confidence:.0%})" if len(right) else "",
    )
    return but_for([f"it needs {gate.min_samples} for that"] if few and not certain else [], verdict, gate.too_few)


def negative_flips(gate: NegativeFlipsGate, trial: Trial) -> Verdict:
    """Whether the share of samples that were right and are wrong now is shown to exceed its limit.

    The negative flip rate of Yan et al. (CVPR 2021). `relative` sets it in relation to what two models with these error rates
    would have if they erred independently.
    """
    judged, level = trial.on(gate.scope), 1 - gate.confidence
    if judged.champion is None:
        return Verdict(gate="negative_flips", passed=True, numbers={}, words="negative_flips: there is no champion")
    right, before = judged.pairs()
    samples = len(right)
    if samples < gate.min_samples:
        words = f"there are {samples} {gate.scope} samples that both models know, and it needs {gate.min_samples}"
        return undecided("negative_flips", gate.too_few, words, samples=float(samples))
    flips = int((right < before).sum())
    known = wilson(flips, samples)
    low = lowest(lambda limit: p_above(flips, samples, limit), level)
    numbers = {"flips": float(flips), "share": known.value, "low": known.low, "high": known.high, "samples": float(samples)}
    said = [f"{flips} of {samples} {gate.scope} samples were right and are wrong now, {known.value:.1%}"]
    passed, resolves = True, []
    if gate.maximum is not None:
        passed = low <= gate.maximum
        said.append(f"at least {low:.1%} at a confidence of {gate.confidence:g}, may be {gate.maximum:.1%}")
        numbers |= {"at_least": low, "maximum": gate.maximum}
        resolves.append(_share(resolved_above(samples, gate.maximum, level)))
    if gate.relative is not None:
        ratio, least = relative_flips(right, before, gate.confidence, trial.seed)
        passed = passed and least <= gate.relative
        said.append(
            f"{ratio:.2f} times what errors made independently would give, at least {least:.2f}, may be {gate.relative:g}"
        )
        numbers |= {"relative": ratio, "relative_at_least": least, "relative_maximum": gate.relative}
    return Verdict(
        gate="negative_flips",
        passed=passed,
        numbers=numbers,
        words=f"negative_flips: {'; '.join(said)}",
        resolves="; ".join(resolves),
    )


def _share(least: float) -> str:
    return f"a share of {least:.1%} (power 80%)" if least <= 1 else "nothing: no share could be shown to be too high"


def relative_flips(right: Floats, before: Floats, confidence: float, seed: str) -> tuple[float, float]:
    """The relative negative flip rate and its lower bound by bootstrap at a one-sided confidence; 0 if nothing is wrong."""
    counts = np.array([np.sum((right == r) & (before == b)) for r, b in ((1, 1), (1, 0), (0, 1), (0, 0))])
    samples = counts.sum()

    def ratio(cells: NDArray[np.int64]) -> Floats:
        both, _won, lost, neither = cells.T
        expected = (both + lost) * (lost + neither) / samples
        return np.asarray(np.divide(lost, expected, out=np.zeros(len(cells)), where=expected > 0))

    drawn = seeded_rng("relative flips", seed).multinomial(samples, counts / samples, RESAMPLES)
    return float(ratio(counts[None])[0]), float(np.quantile(ratio(drawn), 1 - confidence))
