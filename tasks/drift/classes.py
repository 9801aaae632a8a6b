"""Shares of the classes from soft outputs: solve t = M w for w on the simplex (black-box shift estimation).

M holds the champion's mean soft output on the samples of each class, t its mean on a window (Lipton, Wang & Smola, ICML 2018).
Where M is ill-conditioned or t is noisy, w leans to the usual shares (as in Azizzadenesheli et al., ICLR 2019).
All functions work on a batch of B problems at once, the draws of a bootstrap.
"""

from __future__ import annotations

import numpy as np

from everfresh.tasks.drift.frame import Floats

STEPS = 300


def confusions(weights: Floats, by_label: Floats, scores: Floats) -> Floats:
    """Mean soft outputs (B, C, C) by draw, output and label; a label that a draw lacks is taken to be predicted rightly.

    Args:
        weights: (B, N) weight of each sample in each draw.
        by_label: (N, C) one-hot labels.
        scores: (N, C) probabilities.
    """
    count = scores.shape[1]
    found = np.zeros((len(weights), count, count))
    for label in range(count):
        rows = by_label[:, label] > 0
        mass = weights[:, rows].sum(axis=1, keepdims=True)
        right = np.eye(count)[label]
        found[:, :, label] = np.where(mass > 0, weights[:, rows] @ scores[rows] / np.where(mass > 0, mass, 1), right)
    return found


def noise_of(scores: Floats, others: Floats) -> float:
    """How strongly shares should lean to the usual ones: variance of the difference of two mean outputs, summed."""
    return float(scores.var(axis=0).sum() / len(scores) + others.var(axis=0).sum() / len(others))


def unmixed(confused: Floats, outputs: Floats, usual: Floats, strength: float) -> Floats:
    """Shares (B, C) that minimise ‖M w - t‖² + strength ‖w - usual‖² over the simplex, by accelerated projected descent.

    Args:
        confused: (B, C, C) or (1, C, C), M of each problem.
        outputs: (B, C), t of each problem.
        usual: (C,) shares to lean to; also where the descent starts, so they are exact if they solve it.
        strength: at least 0.
    """
    gram = confused.transpose(0, 2, 1) @ confused
    target = (confused.transpose(0, 2, 1) @ outputs[:, :, None])[:, :, 0] + strength * usual
    pace = 1 / (np.trace(gram, axis1=1, axis2=2)[:, None] + strength)  # the trace is at least the largest eigenvalue
    shares = np.broadcast_to(usual, target.shape).copy()
    ahead, momentum = shares, 1.0
    for _ in range(STEPS):
        slope = (gram @ ahead[:, :, None])[:, :, 0] + strength * ahead - target
        moved = _onto_simplex(ahead - pace * slope)
        faster = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead, shares, momentum = moved + (momentum - 1) / faster * (moved - shares), moved, faster
    return shares


def _onto_simplex(points: Floats) -> Floats:
    """Nearest points (B, C) that are not negative and sum to 1 (Duchi et al., ICML 2008)."""
    ordered = -np.sort(-points, axis=1)
    excess = (np.cumsum(ordered, axis=1) - 1) / np.arange(1, points.shape[1] + 1)
    last = (ordered > excess).sum(axis=1) - 1
    nearest: Floats = np.maximum(points - excess[np.arange(len(points)), last][:, None], 0)
    nearest /= nearest.sum(axis=1, keepdims=True)
    return nearest
