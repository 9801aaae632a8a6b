"""The numbers of an evaluation page that no record holds: intervals, calibration, slices beyond chance, flips."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom
from torch import Tensor

from everfresh.tasks.evaluation_page.samples import confidence
from everfresh.tasks.gates import Judged
from everfresh.tasks.gates.calibration import Reliability
from everfresh.tasks.gates.evidence import holm
from everfresh.tasks.records import Comparison, Interval, Scores, digest_of
from everfresh.tasks.slices import LABEL, WINDOW, by_slice, wilson

Floats = NDArray[np.float64]

RESAMPLES = 400
MOST_RESAMPLED, LARGEST = 20_000, 5_000_000
"""Samples, and samples times classes, beyond which nothing is resampled: a page is not worth so much memory."""
BINS = 15
CLEAR = 0.05
"""Chance, over all slices together, below which a slice counts as worse than the others."""
MOST_VALUES = 200
"""A column with more of them, such as the number of a picture, makes no slices."""


# --- metrics -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """One score of both models on the same samples; intervals hold 95 %, None where none is known."""

    name: str
    challenger: Interval
    champion: Interval | None
    difference: Interval | None
    """Challenger minus champion, paired."""


def metrics(judged: Judged, comparison: Comparison, seed: str) -> list[Metric]:
    """All scores that the record has, with intervals, and the expected calibration error.

    Values are the record's own. Intervals: Wilson's for accuracy, the record's for its gain, else the percentile
    bootstrap over samples, paired for differences. A score that resampling does not know has the value alone, as an
    interval of no width.
    """
    if not len(judged.labels):
        return []
    said, before = _scores(comparison.challenger), _scores(comparison.champion)
    ours, theirs = (_resampled(judged, scores, seed) for scores in (judged.challenger, judged.champion))
    if judged.targets.task != "regression":
        said["ece"] = calibrated(judged, judged.challenger).error
        if judged.champion is not None:
            before["ece"] = calibrated(judged, judged.champion).error
    found = []
    for name, value in said.items():
        difference = _between(value - before[name], ours.get(name), theirs.get(name)) if name in before else None
        first = _between(value, ours.get(name))
        second = _between(before[name], theirs.get(name)) if name in before else None
        if name == "accuracy":
            first = wilson(round(value * len(judged.labels)), len(judged.labels))
            second = wilson(round(before[name] * len(judged.labels)), len(judged.labels)) if name in before else None
            difference = comparison.gain
        found.append(Metric(name, first, second, difference))
    return found


def _scores(scores: Scores | None) -> dict[str, float]:
    if scores is None:
        return {}
    named = {name: getattr(scores, name) for name in ("accuracy", "precision", "recall", "f1")} | scores.metrics
    return {name: float(value) for name, value in (named | {"loss": scores.loss}).items() if value is not None}


def _between(value: float, draws: Floats | None, other: Floats | None = None) -> Interval:
    if draws is None or (other is not None and not len(other)):
        return Interval(value=value, low=value, high=value)
    low, high = np.quantile(draws if other is None else draws - other, [0.025, 0.975])
    return Interval(value=value, low=min(float(low), value), high=max(float(high), value))


def _resampled(judged: Judged, scores: Tensor | None, seed: str) -> dict[str, Floats]:
    """By name of a score, its values (RESAMPLES,) on samples drawn with replacement, the same draws for every model."""
    if scores is None or len(scores) > MOST_RESAMPLED or scores.numel() > LARGEST:
        return {}
    rng = np.random.default_rng(int(digest_of("resampled", seed), 16))
    count = len(judged.labels)
    weights = rng.multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(np.float32)  # (R, N)
    wide = scores.double().numpy()
    if judged.targets.task == "regression":
        return _of_values(weights, wide, judged.labels.astype(np.float64))
    if judged.targets.task == "single_label":
        numbers = np.arange(wide.shape[1])
        there, said = judged.labels[:, None] == numbers, wide.argmax(axis=1)[:, None] == numbers  # (N, C)
        loss = np.logaddexp.reduce(wide, axis=1) - wide[np.arange(count), judged.labels]
        return _of_decisions(weights, there, said, micro=False) | {"loss": weights @ loss / count}
    there, said = judged.labels > 0.5, wide > 0
    loss = (np.logaddexp(0, wide) - wide * there).mean(axis=1)
    hamming = {"hamming_accuracy": weights @ (there == said).mean(axis=1) / count}
    return _of_decisions(weights, there, said, micro=True) | hamming | {"loss": weights @ loss / count}


def _of_decisions(
    weights: NDArray[np.float32], there: NDArray[np.bool_], said: NDArray[np.bool_], *, micro: bool
) -> dict[str, Floats]:
    """Macro averages over the classes that occur in the draw."""
    hits, true, positive = (weights @ part.astype(np.float32) for part in (there & said, there, said))  # each (R, C)
    occurs = true > 0
    number = np.maximum(occurs.sum(axis=1), 1)

    def averaged(values: NDArray[np.floating]) -> Floats:
        return np.asarray((values * occurs).sum(axis=1) / number, dtype=np.float64)

    found = {
        "precision": averaged(hits / np.maximum(positive, 1)),
        "recall": averaged(hits / np.maximum(true, 1)),
        "f1": averaged(2 * hits / np.maximum(true + positive, 1)),
    }
    if micro:
        found["micro_f1"] = 2 * hits.sum(axis=1) / np.maximum((true + positive).sum(axis=1), 1)
    return found


def _of_values(weights: NDArray[np.float32], said: Floats, truth: Floats) -> dict[str, Floats]:
    error, count = said - truth, len(truth)  # (N, T)
    squared = weights @ error**2 / count  # (R, T)
    mean = weights @ truth / count
    spread = np.maximum(weights @ truth**2 / count - mean**2, 1e-12)
    return {
        "mae": (weights @ np.abs(error) / count).mean(axis=1),
        "rmse": np.sqrt(squared).mean(axis=1),
        "r2": (1 - squared / spread).mean(axis=1),
        "loss": squared.mean(axis=1),
    }


# --- calibration ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """How often a model is right against how sure it is (Naeini et al. 2015), in bins of equal mass."""

    confidence: Floats
    """(B,) mean in each bin."""
    accuracy: tuple[Interval, ...]
    """(B,) share that is right, Wilson's interval."""
    samples: NDArray[np.int64]
    """(B,)"""
    error: float
    """Expected calibration error, 0…1: the mean gap between the two, weighted by samples."""


def calibration(confidence: Floats, right: NDArray[np.bool_]) -> Calibration:
    """Of samples (N,) by their confidence, 0…1, in the bins of the gate on calibration."""
    found = Reliability.binned(confidence, right, BINS)
    counts = np.bincount(found.bin, minlength=found.bins)
    filled = np.flatnonzero(counts)
    hits = np.bincount(found.bin, weights=right, minlength=found.bins)
    means = np.bincount(found.bin, weights=confidence, minlength=found.bins)[filled] / counts[filled]
    return Calibration(means, tuple(wilson(int(hits[b]), int(counts[b])) for b in filled), counts[filled], found.error)


def calibrated(judged: Judged, scores: Tensor) -> Calibration:
    """Of one of the two models; not of values."""
    said = scores.numpy()
    return calibration(confidence(judged.targets, said), judged.targets.right(said, judged.labels))


# --- slices --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SliceRow:
    """One value of a slice column: how both models do on its samples."""

    column: str
    value: str
    samples: int
    challenger: Interval
    champion: Interval | None
    others: float
    """The challenger's accuracy on all samples with another value."""
    p_value: float
    """Chance of so few right answers here if they fell on the column's samples at random, corrected for all slices."""

    @property
    def built_in(self) -> bool:
        """Whether the column is none of the source's."""
        return self.column in (LABEL, WINDOW)

    @property
    def gap(self) -> float:
        """Accuracy here minus that of the others."""
        return self.challenger.value - self.others

    @property
    def flagged(self) -> bool:
        """Whether the challenger is worse here than chance explains."""
        return self.p_value < CLEAR


def slice_rows(judged: Judged) -> list[SliceRow]:
    """All slices of the columns with two values or more: the largest gap's column first, its worst value first.

    Columns of the source stand before the label's and the window's. The test of a slice is Fisher's exact one, one-sided,
    Holm's correction is over all slices shown.
    """
    columns = {name: values for name, values in judged.columns.items() if 1 < len(np.unique(values)) <= MOST_VALUES}
    right = judged.right()
    made = by_slice(columns, right)
    before = None if judged.champion is None else by_slice(columns, judged.right_before())
    count, hits = len(right), int(right.sum())
    raw = np.array([hypergeom.cdf(s.right, count, hits, s.samples) for s in made])
    rows = [
        SliceRow(
            column=part.column,
            value=part.value,
            samples=part.samples,
            challenger=part.accuracy,
            champion=before[place].accuracy if before else None,
            others=(hits - part.right) / (count - part.samples),
            p_value=float(p),
        )
        for place, (part, p) in enumerate(zip(made, holm(raw), strict=True))
    ]
    worst: dict[str, tuple[bool, bool, float]] = {}
    for row in rows:
        key = (row.built_in, not row.flagged, row.gap)
        worst[row.column] = min(worst.get(row.column, key), key)
    return sorted(rows, key=lambda r: (worst[r.column], r.column, r.challenger.value, r.value))


# --- flips ---------------------------------------------------------------------------------------------------------


def flips(judged: Judged) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows where only the champion is right (negative flips), and where only the challenger is; the surest mistakes first.

    Of values the largest errors come first. None without a champion.
    """
    if judged.champion is None:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    right, before = judged.right(), judged.right_before()
    lost, won = np.flatnonzero(before & ~right), np.flatnonzero(right & ~before)
    return tuple(  # type: ignore[return-value]
        rows[np.argsort(-_mistake(judged, scores.numpy())[rows], kind="stable")]
        for rows, scores in ((lost, judged.challenger), (won, judged.champion))
    )


def _mistake(judged: Judged, scores: NDArray[np.float32]) -> Floats:
    """(N,) how bad each answer is if it is wrong."""
    if judged.targets.task == "regression":
        return np.asarray(np.abs(scores - judged.labels).max(axis=1), dtype=np.float64)
    return confidence(judged.targets, scores)
