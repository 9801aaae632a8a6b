"""What a shift costs: classes that came or went, slices that suffer, labels that changed their meaning.

Drift tests say that a window differs; these functions say whether the difference hurts. All of them are pure
functions on frames, deterministic under their seed; nothing but the reference's labelled hold-outs and the window
itself is used. Accuracy without labels is estimated in `calibration`.

- **Classes**: black-box shift estimation (Lipton, Wang & Smola, ICML 2018) on soft outputs.
- **Concept**: a stratified permutation test in the manner of Cochran (1954) and Mantel & Haenszel (1959).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from everfresh.tasks.drift.calibration import expect
from everfresh.tasks.drift.classes import confusions, noise_of, unmixed
from everfresh.tasks.drift.frame import Answers, Floats, Frame
from everfresh.tasks.records import ClassShift, Interval, SliceDrift

SHRINK = 1.5
"""A change of accuracy whose square is below this many times its variance is taken for noise."""
UNSEEN = 0.05
"""Accuracy that a shift may cost which none of the witnesses sees."""
MIN_SLICE = 20
"""Samples that a slice needs on a side to be spoken of."""
MOST_SLICES = 12
DRAWS = 200
"""Bootstrap draws behind an interval."""
CELLS = 2_000_000
"""Cells of the confusion matrices of all draws: many classes get fewer draws."""
MIN_LABELS = 30
"""With fewer labels on either side nothing is said about concept drift."""
STRATUM = 25
"""Samples that a stratum of confidence should have, and at most `BINS` strata a predicted class."""
BINS = 20


def estimated_accuracy(reference: Frame, current: Frame, seed: int) -> tuple[float, Interval]:
    """Accuracy of the champion on the reference, and on a window without reading its labels.

    The mean of `expect` over the window, not below chance; its difference from the reference shrinks to nothing where it is
    no larger than noise (James & Stein 1961), so a quiet window is expected to do as the reference did. On the reference
    itself it is exact. The interval is for the accuracy on this very window: the bootstrap over both samples, joined with
    half of the estimated change and `UNSEEN`, for that much an estimate without labels may be off; so it held the truth in
    95 % of the windows of the grid's `tune` role. Of sets and values, which that grid has not, it is joined with all of the
    change.

    Without labelled reference samples, or without a window, the interval is 0…1 and the value what is known: the mean
    confidence of the reference or its accuracy. A frame without classes gives 1 and 1: nothing is lost, nothing is known.
    """
    rows = np.flatnonzero(reference.labels >= 0)
    if not reference.judged:
        return 1.0, Interval(value=1.0, low=0.0, high=1.0)
    if not len(rows) or not len(current):
        known = reference.correct[rows] if len(rows) else reference.numerical.get("confidence", np.zeros(0))
        accuracy = float(known.mean()) if len(known) else 1.0
        return accuracy, Interval(value=accuracy, low=0.0, high=1.0)
    found = expect(reference.take(rows), current)
    ours, theirs = np.sort(found.reference), np.sort(found.current)  # the bootstrap does not depend on the order of rows
    change = max(float(theirs.mean()), min(found.chance, found.accuracy)) - float(ours.mean())
    change = _shrunk(change, ours, theirs)
    value = float(np.clip(found.accuracy + change, 0, 1))
    rng = np.random.default_rng(seed)
    drawn = theirs[rng.integers(len(theirs), size=(DRAWS, len(theirs)))]  # samples, then whether each of them is right
    spread = (rng.random(drawn.shape) < drawn).mean(axis=1) - theirs.mean()
    spread += found.accuracy - rng.binomial(len(rows), found.accuracy, DRAWS) / len(rows)
    low, high = np.quantile(spread, [0.025, 0.975])
    doubt = np.hypot(change / 2 if reference.answers is None else change, UNSEEN)
    below, above = float(np.hypot(low, doubt)), float(np.hypot(high, doubt))
    return found.accuracy, Interval(value=value, low=max(0.0, value - below), high=min(1.0, value + above))


def _shrunk(change: float, ours: Floats, theirs: Floats) -> float:
    """A difference of two means, less what their noise would give."""
    noise = float(ours.var() / len(ours) + theirs.var() / len(theirs))
    return change * max(0.0, 1 - SHRINK * noise / max(change**2, 1e-12))


def slices(reference: Frame, current: Frame) -> tuple[SliceDrift, ...]:
    """Which parts of the window lose most: predicted classes and values of metadata, at most 12, largest loss first.

    A slice needs `MIN_SLICE` samples in the window; its reference is the same slice there if it has as many, else all of it.
    """
    rows = np.flatnonzero(reference.labels >= 0)
    if not len(rows) or not len(current) or not reference.judged:
        return ()
    reference = reference.take(rows)
    found, hit = expect(reference, current), reference.correct
    measured = []
    for column, values in current.categorical.items():
        usual = reference.categorical.get(column, np.array([], dtype=np.str_))
        for value, samples in zip(*np.unique(values, return_counts=True), strict=True):
            same = usual == value if len(usual) else np.zeros(len(hit), dtype=bool)
            known = same if same.sum() >= MIN_SLICE else np.ones(len(hit), dtype=bool)
            if samples >= MIN_SLICE:
                ours, theirs = found.reference[known], found.current[values == value]
                change = _shrunk(float(theirs.mean() - ours.mean()), ours, theirs)
                measured.append(_slice(column, str(value), int(samples), float(hit[known].mean()), change))
    measured.sort(key=lambda s: (s.estimated_accuracy - s.reference_accuracy, s.column, s.value))
    return tuple(measured[:MOST_SLICES])


def _slice(column: str, value: str, samples: int, usual: float, change: float) -> SliceDrift:
    estimate = float(np.clip(usual + change, 0, 1))
    return SliceDrift(column=column, value=value, samples=samples, reference_accuracy=usual, estimated_accuracy=estimate)


def class_shift(reference: Frame, current: Frame, seed: int) -> tuple[ClassShift, ...]:
    """Shares of the classes in a window without labels, most changed first; empty where nothing can be said.

    Let M hold the champion's mean soft output on the reference samples of each class and t its mean on the window. If
    only the classes' shares w changed, t = M w. Solved for w on the simplex; where M is ill-conditioned the answer
    leans to the reference's shares, by as much as the noise of t asks for (regularised as in Azizzadenesheli et al.,
    ICLR 2019). On the reference itself it is exact. A class without reference labels is taken to be predicted rightly.

    Args:
        reference: N rows, some of them labelled.
        current: M rows; labels are not read.
        seed: of the bootstrap over both samples behind the 95 % intervals.
    """
    rows = np.flatnonzero(reference.labels >= 0)
    count = reference.probabilities.shape[1]
    if not len(rows) or not len(current) or not count or reference.answers is not None:
        return ()
    rows = rows[np.lexsort(reference.probabilities[rows].T)]  # the bootstrap does not depend on the order of rows
    current = current.take(np.lexsort(current.probabilities.T))
    labels, scores = reference.labels[rows], reference.probabilities[rows]
    by_label = (labels[:, None] == np.arange(count)).astype(np.float64)  # (N, C)
    prior = by_label.mean(axis=0)
    rng = np.random.default_rng(seed)
    draws = int(np.clip(CELLS // count**2, 20, DRAWS))
    ours = _resampled(rng, len(rows), draws)  # (1 + B, N), the first draw is the sample itself
    theirs = _resampled(rng, len(current), draws)
    strength = noise_of(scores, current.probabilities)
    shares = unmixed(confusions(ours, by_label, scores), theirs @ current.probabilities, prior, strength)
    low, high = np.quantile(shares[1:], [0.025, 0.975], axis=0)
    found = [
        ClassShift(
            name=name,
            reference=float(prior[i]),
            estimated=Interval(
                value=float(shares[0, i]), low=float(min(low[i], shares[0, i])), high=float(max(high[i], shares[0, i]))
            ),
        )
        for i, name in enumerate(reference.classes)
    ]
    return tuple(sorted(found, key=lambda c: -abs(c.estimated.value - c.reference)))


def _resampled(rng: np.random.Generator, size: int, draws: int) -> Floats:
    """Weights (1 + B, size) that sum to 1: even ones first, then those of bootstrap samples."""
    drawn = rng.integers(size, size=(draws, size)) + size * np.arange(draws)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=draws * size).reshape(draws, size)
    return np.concatenate([np.ones((1, size)), counts]) / size


def concept(reference: Frame, current: Frame, seed: int, permutations: int) -> float | None:
    """P-value that the champion errs as often as before on inputs that look the same to it; None with too few labels.

    Labelled samples of both sides are put into strata of confidence, at quantiles of the pooled sample, within each
    predicted class. Within a stratum the side of a sample is exchangeable under the null hypothesis, so the number of
    errors that fall on the window's side is hypergeometric. Statistics are the excess of errors over that expectation,
    standardised, for each class and for all of them together (Cochran-Mantel-Haenszel); the largest in absolute value is
    compared with that of `permutations` deals (Westfall & Young 1993), so one swapped pair of classes is seen as well as
    a change everywhere. Never 0: (count + 1) / (permutations + 1).

    Where only the classes' shares change, P(error | prediction) changes too, though no concept did: a second test has
    strata within each *label*, where such a shift is quiet, and the larger of both p-values is returned. So neither a
    shift of inputs that the confidence shows nor a shift of labels alone is called a changed concept. A change of input
    that the confidence does not show (an overconfident champion on noise) is: tests of the input tell it apart.
    """
    if not reference.judged:
        return None
    ours, theirs = np.flatnonzero(reference.labels >= 0), np.flatnonzero(current.labels >= 0)
    if min(len(ours), len(theirs)) < MIN_LABELS:
        return None
    if reference.answers is not None and current.answers is not None:
        return _concept_of(reference.answers.take(ours), current.answers.take(theirs), seed, permutations)
    scores = np.concatenate([reference.probabilities[ours], current.probabilities[theirs]])
    labels = np.concatenate([reference.labels[ours], current.labels[theirs]])
    predicted, here = scores.argmax(axis=1), np.arange(len(scores)) >= len(ours)
    rng = np.random.default_rng(seed)
    return max(
        _changed(within, scores.max(axis=1), predicted != labels, here, rng, permutations) for within in (predicted, labels)
    )


def _concept_of(reference: Answers, current: Answers, seed: int, permutations: int) -> float:
    """The same of sets and values: strata within each set that is said, or at quantiles of each value.

    Sets too rare for a stratum of their own are one; of several values the sum of the standardised ones counts.
    """
    targets, here = reference.targets, np.arange(len(reference.scores) + len(current.scores)) >= len(reference.scores)
    said = np.concatenate([reference.scores, current.scores])
    true = np.concatenate([reference.truth, current.truth])
    wrong = ~np.asarray(targets.right(said, true))
    rng, found = np.random.default_rng(seed), []
    for of in (said, true):
        if targets.task == "regression":
            within, order = np.zeros(len(of), dtype=np.int64), ((of - of.mean(axis=0)) / (of.std(axis=0) + 1e-9)).sum(axis=1)
        else:
            _, sets, counts = np.unique(of > (0.5 if of is true else 0), axis=0, return_inverse=True, return_counts=True)
            within = np.where(counts[sets] < STRATUM, -1, sets)
            order = targets.confidence(expit(said))
        found.append(_changed(within, order, wrong, here, rng, permutations))
    return max(found)


def _changed(
    within: NDArray[np.int64],
    confidence: Floats,
    wrong: NDArray[np.bool_],
    here: NDArray[np.bool_],
    rng: np.random.Generator,
    permutations: int,
) -> float:
    """P-value that errors (N,) do not depend on the side (N,), in strata of `confidence` within each class of `within`."""
    strata, classes = _strata(within, confidence)
    size = np.bincount(strata)
    errors, members = (np.bincount(strata, of, len(size)).astype(np.int64) for of in (wrong, here))
    dealt = rng.hypergeometric(errors, size - errors, members, (permutations, len(size)))
    observed = np.bincount(strata, wrong & here, len(size))
    excess = np.vstack([observed, dealt]) - errors * members / size  # (1 + B, strata)
    spread = errors / size * (size - errors) * members / size * (size - members) / np.maximum(size - 1, 1)
    groups = np.vstack([classes == np.unique(classes)[:, None], np.ones((1, len(size)), dtype=bool)])
    variance = groups @ spread
    told = variance > 0
    if not told.any():
        return 1.0
    largest = np.abs((excess @ groups.T)[:, told] / np.sqrt(variance[told])).max(axis=1)
    return float((largest >= largest[0] - 1e-9).mean())


def _strata(within: NDArray[np.int64], confidence: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Stratum of each sample (N,), and the class of each stratum."""
    strata = np.zeros(len(confidence), dtype=np.int64)
    classes: list[int] = []
    for name in np.unique(within):
        rows = np.flatnonzero(within == name)
        bins = int(np.clip(len(rows) // STRATUM, 1, BINS))
        edges = np.unique(np.quantile(confidence[rows], np.arange(1, bins) / bins))
        _, part = np.unique(np.searchsorted(edges, confidence[rows], side="right"), return_inverse=True)
        strata[rows] = len(classes) + part
        classes += [int(name)] * (int(part.max()) + 1)
    return strata, np.array(classes, dtype=np.int64)
