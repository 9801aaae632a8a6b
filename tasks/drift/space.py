"""The pooled embeddings of reference and window as a space: principal axes, whitened, random features of a kernel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, eigh, solve_triangular

from everfresh.tasks.drift.frame import Floats

Single = NDArray[np.float32]
RIDGE = 1.0
"""Added to the variance of each principal component, as a multiple of the mean one."""
SMALL = 256
"""Dimensions up to which principal axes are computed exactly."""
FEATURES = 256
"""Random Fourier features."""


def whitened(centred: Single) -> Single:
    """Features (N, D) of mean 0 with their covariance, to whose diagonal RIDGE times its mean is added, taken out."""
    rows, width = centred.shape
    covariance = centred.T @ centred / rows
    ridge = RIDGE * float(np.trace(covariance)) / min(rows, width)
    lower = cholesky(covariance + ridge * np.eye(width, dtype=np.float32), lower=True)
    scaled: Single = solve_triangular(lower, centred.T, lower=True).T.astype(np.float32)
    return scaled


class Space:
    """The pooled embeddings: leading principal axes, and all of them whitened with a ridge.

    Neither needs a full decomposition, which of 2,048 dimensions takes seconds.

    Args:
        pooled: embeddings (N, D); D may be 0.
        components: leading axes, fewer where the rank is lower: beyond it is only rounding.
    """

    def __init__(self, pooled: Floats, components: int) -> None:
        self.centred: Single = (
            (pooled - pooled.mean(axis=0)).astype(np.float32) if pooled.size else np.zeros((0, 0), np.float32)
        )
        self.varies = bool(self.centred.size) and float(np.abs(self.centred).max()) > 1e-6 * (1 + float(np.abs(pooled).max()))
        self.leading = self._leading(components) if self.varies and components else np.zeros((len(pooled), 0))  # (N, K)
        self.whitened = whitened(self.centred) if self.varies else np.zeros((len(pooled), 0), np.float32)  # (N, D)

    def _leading(self, components: int) -> Floats:
        from sklearn.utils.extmath import randomized_svd

        count, width = min(components, *self.centred.shape), self.centred.shape[1]
        if width <= SMALL:
            spread, vectors = eigh(self.centred.T @ self.centred, subset_by_index=[width - count, width - 1])
            scores, spread = (self.centred @ vectors)[:, ::-1], np.sqrt(np.maximum(spread[::-1], 0))
        else:
            left, spread, _ = randomized_svd(self.centred, count, random_state=0)
            scores = left * spread
        return np.asarray(scores[:, spread > 1e-3 * spread[0]], dtype=np.float64)

    def novelty(self) -> Floats:
        """(N,) squared distance from the pooled centre in whitened space."""
        return np.asarray((self.whitened.astype(np.float64) ** 2).sum(axis=1))

    def fourier(self, rng: np.random.Generator) -> Single:
        """(N, FEATURES) features whose inner products approach a Gaussian kernel of median bandwidth, centred."""
        some = self.centred[np.sort(rng.choice(len(self.centred), min(len(self.centred), 400), replace=False))]
        squares = (some**2).sum(axis=1)
        apart = squares[:, None] + squares[None, :] - 2 * some @ some.T
        median = float(np.median(apart[np.triu_indices(len(some), 1)])) if len(some) > 1 else 1.0
        directions = rng.standard_normal((self.centred.shape[1], FEATURES // 2), dtype=np.float32)
        phases = self.centred @ (directions / np.float32(np.sqrt(max(median, 1e-12))))
        features = np.concatenate([np.cos(phases), np.sin(phases)], axis=1)
        return np.asarray(features - features.mean(axis=0), dtype=np.float32)
