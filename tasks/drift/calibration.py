"""How probably is each prediction right, where no labels are? Four witnesses that confidence alone does not hear.

Estimates from confidence (average thresholded confidence, Garg et al., ICLR 2022; calibrated confidence, as in NannyML;
difference of confidences, Guillory et al., ICCV 2021) believe the model about itself: a champion that calls noise "eight"
with full confidence is estimated at 100 %. Everything here comes from the reference's labelled hold-outs and the window:

1. **A second head.** Ridge regression of the reference's labels on its embeddings, each row left out once in closed form. The
   margin it gives to the champion's prediction is combined with the champion's confidence by logistic regression on the
   reference. Two heads that agree on known data part on strange data (Jiang et al., ICLR 2022; Baek et al., NeurIPS 2022).
2. **A steeper curve.** Under shift a calibrated curve is too flat: it averages, thresholded confidence (a step) reacts.
   Ours lies between: the logits are multiplied by `STEEPNESS` and moved so that the reference's mean stays its accuracy.
3. **Distance.** Logits sink with the distance of the window's mean embedding from the reference's (as accuracy does with
   the Fréchet distance: Deng & Zheng, CVPR 2021), of which only what other shares of the classes do not explain counts.
4. **Collapse.** If the inputs moved, surprising shares of the classes are suspect: a champion that finds shares w where
   there were p errs on at least the total variation of the two (Lu et al., NeurIPS 2023). What exceeds a plausible
   change of shares is taken off, unless such a change explains the embeddings as well (one class only).

What it cannot see: a wider cloud of embeddings around the same mean that the champion is sure of, and inputs that move
little and look like another class (digits turned and mirrored). The constants were chosen on the `tune` roles of
`benchmarks/drift_grid.yaml`; docs/log.md has what was tried.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.special import expit, logit

from everfresh.tasks.drift.classes import confusions, noise_of, unmixed
from everfresh.tasks.drift.frame import Answers, Floats, Frame

STEEPNESS = 1.5
DISTANCE = 0.8
"""Logits lost for one standard deviation of unexplained shift, root mean square over the embedding; to the power 1.5."""
PLAUSIBLE = 0.25
"""Change of the classes' shares, in total variation, that is believed whatever the inputs look like."""
RIDGE = 0.5
"""Of the second head, times the number of samples, on standardised embeddings."""
EXPLAINED, UNEXPLAINED = 0.2, 0.4
"""Shares of the squared shift up to which the classes' shares explain it, and from which they do not."""


@dataclass(frozen=True)
class Expected:
    """How probably the champion is right on each labelled reference sample and on each sample of the window."""

    reference: Floats
    """(N,) mean: the champion's accuracy."""
    current: Floats
    """(M,)."""
    accuracy: float
    """Measured on the reference."""
    chance: float
    """What the window's predictions would reach if they had nothing to do with its labels."""


def expect(reference: Frame, current: Frame) -> Expected:
    """Weigh the four witnesses. Nothing here is random in the data; the order of rows does not matter.

    Args:
        reference: N ≥ 1 rows, all of them labelled; at least one class.
        current: M ≥ 1 rows; labels are not read.
    """
    hit = reference.correct
    if reference.answers is not None:
        return _expect_of(reference, current, reference.answers, hit)
    accuracy, count = float(hit.mean()), reference.probabilities.shape[1]
    by_label = (reference.labels[:, None] == np.arange(count)).astype(np.float64)  # (N, C)
    ours, theirs = _standardised(reference.embeddings, current.embeddings)
    features = _features(reference, current, ours, theirs, by_label)
    known, seen = _logits(*features, hit)  # (N,), (M,)
    bounded = float(np.clip(accuracy, 0.5 / len(hit), 1 - 0.5 / len(hit)))
    offset = _offset(known, bounded)
    away, suspect = _unexplained(reference, current, ours, theirs, by_label)
    right = expit(STEEPNESS * (seen - offset - DISTANCE * away**1.5)) * (1 - suspect)
    usual: Floats = by_label.mean(axis=0)
    chance = float(usual[current.probabilities.argmax(axis=1)].mean())
    return Expected(expit(STEEPNESS * (known - offset)), right, accuracy, chance)


def _expect_of(reference: Frame, current: Frame, asked: Answers, hit: Floats) -> Expected:
    """The same of sets and values, from two witnesses and the distance.

    The second head is the ridge regression of the labels, values or 0 and 1 for each class. Its witness is how far it is from
    the champion: the mean over classes or standardised values. Of sets the champion's confidence is the other one. This is
    direct loss estimation (as NannyML's DLE) with a logistic model of being right.
    """
    ours, theirs = _standardised(reference.embeddings, current.embeddings)
    usual, said = asked.truth.mean(axis=0), current.answers.scores if current.answers else asked.scores[:0]
    held_out, weights = _second_head(ours, asked.truth - usual)
    second = _as_if_new(ours, theirs, held_out, theirs @ weights) + usual
    spread = asked.truth.std(axis=0) + 1e-9
    each = []
    for scores, other, frame in ((asked.scores, held_out + usual, reference), (said, second, current)):
        if asked.targets.task == "regression":
            each.append(-np.log(np.abs(scores - other) / spread + 1e-3).mean(axis=1, keepdims=True))
        else:
            sure = logit(np.clip(frame.confidence, 1e-6, 1 - 1e-6))
            each.append(np.stack([sure, -np.abs(expit(scores) - other).mean(axis=1)], axis=1))
    known, seen = _logits(each[0], each[1], hit)
    accuracy = float(hit.mean())
    offset = _offset(known, float(np.clip(accuracy, 0.5 / len(hit), 1 - 0.5 / len(hit))))
    gap, noise = theirs.mean(axis=0) - ours.mean(axis=0), 1 / len(ours)
    noise += float(theirs.var(axis=0).mean()) / len(theirs) if theirs.size else 0.0
    away = np.sqrt(max(0.0, float((gap**2).mean()) - noise)) if gap.size else 0.0
    right = expit(STEEPNESS * (seen - offset - DISTANCE * away**1.5))
    return Expected(expit(STEEPNESS * (known - offset)), right, accuracy, asked.targets.chance(asked.truth))


def _standardised(ours: Floats, theirs: Floats) -> tuple[Floats, Floats]:
    """Embeddings in standard deviations of the reference, dead units left out; far outliers are cut at 10."""
    centre, spread = ours.mean(axis=0), ours.std(axis=0)
    alive = spread > 1e-3 * spread.max(initial=0)
    scaled = [np.clip((side[:, alive] - centre[alive]) / spread[alive], -10, 10) for side in (ours, theirs)]
    return scaled[0], scaled[1]


def _features(reference: Frame, current: Frame, ours: Floats, theirs: Floats, by_label: Floats) -> tuple[Floats, Floats]:
    """Confidence as log odds, and the second head's margin for the champion's prediction: (N, 2) and (M, 2)."""
    usual = by_label.mean(axis=0)
    held_out, weights = _second_head(ours, by_label - usual)
    scores = theirs @ weights + usual
    scores = _as_if_new(ours, theirs, held_out + usual, scores)
    return tuple(  # type: ignore[return-value]
        np.stack([logit(np.clip(p.max(axis=1), 1e-6, 1 - 1e-6)), _margin(second, p.argmax(axis=1))], axis=1)
        for p, second in ((reference.probabilities, held_out + usual), (current.probabilities, scores))
    )


def _second_head(ours: Floats, targets: Floats) -> tuple[Floats, Floats]:
    """Ridge regression: left-one-out predictions (N, C) of its own rows, and weights (D, C)."""
    size, width = ours.shape
    if size <= width:
        inverse = np.linalg.inv(ours @ ours.T + RIDGE * size * np.eye(size))
        dual = inverse @ targets
        return targets - dual / np.diag(inverse)[:, None], ours.T @ dual
    inverse = np.linalg.inv(ours.T @ ours + RIDGE * size * np.eye(width))
    weights = inverse @ (ours.T @ targets)
    leverage = ((ours @ inverse) * ours).sum(axis=1, keepdims=True)
    return targets - (targets - ours @ weights) / (1 - leverage), weights


def _as_if_new(ours: Floats, theirs: Floats, held_out: Floats, scores: Floats) -> Floats:
    """Scores (M, C) of the second head; of a picture that it learnt from, as if it had not."""
    same = {row.tobytes(): i for i, row in enumerate(ours)}
    for row, embedding in enumerate(theirs):
        if (twin := same.get(embedding.tobytes())) is not None:
            scores[row] = held_out[twin]
    return scores


def _margin(scores: Floats, chosen: NDArray[np.int64]) -> Floats:
    """Score of the chosen class over the best other one."""
    rows = np.arange(len(scores))
    others = scores.copy()
    others[rows, chosen] = -np.inf
    best = others.max(axis=1) if scores.shape[1] > 1 else np.zeros(len(scores))
    margin: Floats = scores[rows, chosen] - best
    return margin


def _logits(known: Floats, seen: Floats, hit: Floats) -> tuple[Floats, Floats]:
    """Log odds of being right, by logistic regression on the reference; more confidence is never worse."""
    centre, spread = known.mean(axis=0), known.std(axis=0) + 1e-9
    design = np.column_stack([np.ones(len(known)), (known - centre) / spread])
    weights = np.zeros(design.shape[1])
    penalty = np.diag([1e-6] + [1.0] * (design.shape[1] - 1))
    for _ in range(20):
        expected = expit(design @ weights)
        curvature = design.T @ (design * (expected * (1 - expected) + 1e-6)[:, None]) + penalty
        step = np.linalg.solve(curvature, design.T @ (hit - expected) - penalty @ weights)
        weights = weights + np.clip(step, -4, 4)
        if np.abs(step).max() < 1e-8:
            break
    weights[1:] = np.maximum(weights[1:], 0)
    return design @ weights, np.column_stack([np.ones(len(seen)), (seen - centre) / spread]) @ weights


def _offset(logits: Floats, accuracy: float) -> float:
    """Where the steep curve has to stand for its mean on the reference to be the accuracy (bisection)."""
    low, high = float(logits.min()) - 10, float(logits.max()) + 10
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if expit(STEEPNESS * (logits - middle)).mean() > accuracy else (low, middle)
    return (low + high) / 2


def _unexplained(reference: Frame, current: Frame, ours: Floats, theirs: Floats, by_label: Floats) -> tuple[float, float]:
    """Root mean square shift of the mean embedding that shares of the classes leave unexplained, and the collapse's share.

    Squared shifts are less what chance alone would give; with few samples nothing is left of a small one.
    """
    usual, width = by_label.mean(axis=0), max(1, ours.shape[1])
    shares, surprise = _surprise(reference.probabilities, current.probabilities, by_label)
    centre = theirs.mean(axis=0)
    own_noise = float(theirs.var(axis=0, ddof=1).sum()) / len(theirs) if len(theirs) > 1 else float(width)

    def left(of: Floats) -> float:
        weights: Floats = by_label @ np.divide(of, usual, out=np.zeros_like(of), where=usual > 0)
        weights /= max(1e-12, weights.sum())
        gap: Floats = centre - weights @ ours
        return float((gap @ gap - own_noise - width * (weights @ weights)) / width)

    total, rest = left(usual), max(0.0, left(shares))
    if total <= 0:
        return float(np.sqrt(rest)), 0.0
    unlikely = min(rest, max(0.0, left(_mixed(ours, centre, by_label)))) / total
    return float(np.sqrt(rest)), surprise * float(np.clip((unlikely - EXPLAINED) / (UNEXPLAINED - EXPLAINED), 0, 1))


def _mixed(ours: Floats, centre: Floats, by_label: Floats) -> Floats:
    """Shares of the classes whose mixed mean embeddings come nearest to the window's."""
    counts = by_label.sum(axis=0)
    present = counts > 0
    means = (by_label[:, present] / counts[present]).T @ ours  # (classes, D)
    heavy = 1e3 * max(1.0, float(np.abs(means).max(initial=0)))
    solved, _ = nnls(np.vstack([means.T, np.full((1, len(means)), heavy)]), np.append(centre, heavy))
    shares = np.zeros(len(counts))
    shares[present] = solved / max(1e-12, solved.sum())
    return shares


def _surprise(scores: Floats, seen: Floats, by_label: Floats) -> tuple[Floats, float]:
    """Shares of the classes in the window, and by how much they exceed a plausible change, 0…1."""
    usual = by_label.mean(axis=0)
    confused = confusions(np.full((1, len(scores)), 1 / len(scores)), by_label, scores)
    shares: Floats = unmixed(confused, seen.mean(axis=0)[None], usual, noise_of(scores, seen))[0]
    moved = float(np.abs(shares - usual).sum()) / 2
    return shares, max(0.0, moved - PLAUSIBLE) / (1 - PLAUSIBLE)
