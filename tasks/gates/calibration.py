"""The gate on calibration: of the predictions made with 80 % confidence, 80 % should be right.

The expected calibration error (ECE: Naeini et al., AAAI 2015; Guo et al., ICML 2017) is the mean distance between confidence
and accuracy over bins of confidence, here of equal mass. It is biased upwards, and the more so the fewer samples a bin has: a
perfectly calibrated model shows an ECE of 0.09 on 100 samples in 15 bins, and of 0.03 on 1,000. How much it would show here is
found by drawing whether each prediction is right from its own confidence (consistency resampling: Bröcker and Smith 2007), and
is taken off; an interval comes from a bootstrap of the samples, paired where two models are compared. Chance adds most to an
error of zero, so of a larger one too much is taken off, never too little: a model within its limit passes at the declared
confidence, and `resolves` counts what was taken off.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from torch import Tensor

from everfresh.tasks.config import CalibrationGate
from everfresh.tasks.gates.evidence import POWER, Floats
from everfresh.tasks.gates.judged import Judged, Trial, but_for, undecided, unshared
from everfresh.tasks.metrics import seeded_rng
from everfresh.tasks.records import Verdict
from everfresh.tasks.targets import Targets

LEAST = 25
"""Samples of a bin."""
RESAMPLES = 1_000
CHUNK = 100
"""Resamples at once, for memory's sake."""


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy, in bins of equal mass."""

    confidence: Floats
    """(N,) how sure the model is of each prediction."""
    right: NDArray[np.bool_]
    """(N,)"""
    bin: NDArray[np.int64]
    """(N,) number of the bin of each."""
    bins: int

    @classmethod
    def of(cls, scores: Tensor, labels: NDArray[np.float32], targets: Targets, bins: int) -> Reliability:
        """Of a model's scores (N, C) and encoded labels (N, …)."""
        confidence = targets.confidence(targets.probabilities(scores))
        right = np.asarray(targets.right(scores.numpy(), labels), dtype=bool)
        return cls.binned(confidence, right, bins)

    @classmethod
    def binned(cls, confidence: Floats, right: NDArray[np.bool_], bins: int) -> Reliability:
        """In at most `bins` bins of at least `LEAST` samples."""
        count = len(confidence)
        bins = max(min(bins, count // LEAST), 1)
        rank = np.empty(count, dtype=np.int64)
        rank[np.argsort(confidence, kind="stable")] = np.arange(count)
        return cls(confidence, np.asarray(right, dtype=bool), rank * bins // max(count, 1), bins)

    @property
    def error(self) -> float:
        """The ECE, 0…1."""
        return float(self.errors(np.ones((1, len(self.right))))[0])

    def errors(self, weights: Floats) -> Floats:
        """The ECE of R weightings of the samples (R, N), (R,)."""
        return self._mean_distance(weights * (self.right - self.confidence))

    def chance(self, seed: str) -> float:
        """The ECE to expect of a perfectly calibrated model with these confidences."""
        rng = seeded_rng("calibrated", seed)
        drawn = [
            self._mean_distance((rng.random((CHUNK, len(self.right))) < self.confidence) - self.confidence)
            for _ in range(RESAMPLES // CHUNK)
        ]
        return float(np.mean(drawn))

    def _mean_distance(self, differences: Floats) -> Floats:
        """Of R times N differences between right and confidence, their sums by bin, in absolute value, over N."""
        inside = self.bin[:, None] == np.arange(self.bins)  # (N, bins)
        return np.asarray(np.abs(differences @ inside).sum(axis=1) / max(len(self.right), 1))


@dataclass(frozen=True)
class Estimate:
    """An error, or the difference of two, less what chance adds to it."""

    value: float
    low: float
    """Lower bound at a one-sided confidence."""
    high: float
    """Upper bound, likewise."""
    spread: float
    """Standard deviation by bootstrap."""


def estimate(models: list[Reliability], confidence: float, seed: str) -> Estimate:
    """The error of one model, or by how much the first's exceeds the second's on the same samples."""
    count = len(models[0].right)
    rng, drawn = seeded_rng("calibration", seed), []
    for _ in range(RESAMPLES // CHUNK):
        weights = rng.multinomial(count, np.full(count, 1 / count), CHUNK).astype(np.float64)
        drawn.append(_difference([m.errors(weights) for m in models]))
    resampled = np.concatenate(drawn)
    around = resampled - resampled.mean()
    value = float(_difference([np.array([m.error - m.chance(seed)]) for m in models])[0])
    low, high = value + np.quantile(around, [1 - confidence, confidence])
    return Estimate(value, float(low), float(high), float(around.std()))


def _difference(values: list[Floats]) -> Floats:
    return values[0] - values[1] if len(values) > 1 else values[0]


def calibration(gate: CalibrationGate, trial: Trial) -> Verdict:
    """Whether the calibration error, or its increase over the champion's, is shown to exceed its limit."""
    judged = trial.on(gate.scope)
    samples = len(judged.labels)
    if judged.champion is None and gate.maximum is None:
        return Verdict(gate="calibration", passed=True, numbers={}, words="calibration: there is no champion to compare with")
    if samples < gate.min_samples:
        words = f"there are {samples} {gate.scope} samples, and it needs {gate.min_samples}"
        return undecided("calibration", gate.too_few, words, samples=float(samples))
    ours = _reliability(judged, judged.challenger, np.ones(samples, dtype=bool), gate.bins)
    chance = ours.chance(trial.seed)
    numbers = {"ece": ours.error, "chance": chance, "bins": float(ours.bins), "samples": float(samples)}
    where = f"in {ours.bins} bins of equal mass on {samples} {gate.scope} samples"
    said = [f"ECE {ours.error:.1%} {where}, of which chance alone makes {chance:.1%}"]
    z, resolves, passed = float(norm.ppf(gate.confidence) + norm.ppf(POWER)), [], True
    untested = []
    if gate.maximum is not None:
        found = estimate([ours], gate.confidence, trial.seed)
        passed = found.low <= gate.maximum
        numbers |= {"value": found.value, "low": found.low, "high": found.high, "maximum": gate.maximum}
        said.append(f"{_shown(found)} without, may be {gate.maximum:.1%}")
        resolves.append(f"an error of {min(gate.maximum + chance + z * found.spread, 1):.1%}")
    if gate.max_increase is not None and judged.champion is not None:
        if (both := int(judged.shared.sum())) < gate.min_samples:
            untested.append(unshared("max_increase", both, gate.min_samples))
        else:
            pair = [_reliability(judged, s, judged.shared, gate.bins) for s in (judged.challenger, judged.champion)]
            found = estimate(pair, gate.confidence, trial.seed)
            passed = passed and found.low <= gate.max_increase
            numbers |= {"champion_ece": pair[1].error, "increase": found.value, "increase_low": found.low}
            numbers |= {"increase_high": found.high, "max_increase": gate.max_increase}
            increase = f"increase {_shown(found)} less chance, may be {gate.max_increase:.1%}"
            said.append(f"champion's {pair[1].error:.1%}; {increase}")
            resolves.append(f"an increase of {min(gate.max_increase + z * found.spread, 1):.1%}")
    verdict = Verdict(
        gate="calibration",
        passed=passed,
        numbers=numbers,
        words=f"calibration: {'; '.join(said)}",
        resolves=f"{', '.join(resolves)} (power 80%)" if resolves else "",
    )
    return but_for(untested, verdict, gate.too_few)


def _reliability(judged: Judged, scores: Tensor, rows: NDArray[np.bool_], bins: int) -> Reliability:
    return Reliability.of(scores[rows], judged.labels[rows], judged.targets, bins)


def _shown(found: Estimate) -> str:
    return f"{found.value:+.1%} [{found.low:+.1%}, {found.high:+.1%}]"
