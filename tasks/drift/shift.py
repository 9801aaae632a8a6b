"""Is this window from the same distribution as the reference? One permutation test over many columns.

Every numerical column has its Kolmogorov-Smirnov distance, every categorical one its total variation distance.
The rows of reference and window are pooled and dealt out anew many times; each column's distance is standardised
by its mean and spread over these deals, and the largest standardised distance of a deal is compared with the
observed one (max-T, Westfall & Young 1993). So the p-value counts all columns and their correlations at once, the
finite reference as the noise that it is, and is (count + 1) / (permutations + 1), never 0.

Columns: image properties, confidence and slices; the champion's class probabilities (black-box shift detection,
Rabanser et al., "Failing Loudly", NeurIPS 2019); leading principal components of the embedding, fitted on the
pooled rows so that no side is favoured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.optimize import nnls

from everfresh.tasks.drift.frame import Floats, Frame
from everfresh.tasks.records import ColumnDrift, Interval

BLOCK = 4_000_000
"""Cells of one block of permutations: bounds memory to some tens of MB."""


@dataclass(frozen=True)
class Shift:
    """Result of comparing a window with one reference sample."""

    name: str
    """Component of the reference, or ``mixture``."""
    p_value: float
    columns: tuple[ColumnDrift, ...]
    """Most drifted first."""
    reference: Frame
    values: dict[str, tuple[Floats, Floats]]
    """Numerical columns by name: reference and current values."""

    @property
    def score(self) -> float:
        """Largest column distance, 0…1."""
        return max((c.statistic for c in self.columns), default=0.0)


def compare(name: str, reference: Frame, current: Frame, *, components: int, permutations: int, seed: int) -> Shift:
    """Test whether two frames come from one distribution.

    Args:
        name: what the reference frame is called.
        reference: N rows.
        current: M rows.
        components: principal components of the embedding to test, at least 0.
        permutations: deals behind the p-value.
        seed: of the deals.
    """
    values = _numerical(reference, current, components)
    rng = np.random.default_rng(seed)
    first = np.zeros(len(reference) + len(current), dtype=bool)
    first[: len(reference)] = True
    deals = np.stack([first, *(rng.permutation(first) for _ in range(permutations))])  # (B + 1, N + M), first observed
    names, kinds, distances = [], [], []
    for column, (ours, theirs) in values.items():
        names.append(column)
        kinds.append("numerical")
        distances.append(_ks(np.concatenate([ours, theirs]), deals))
    for column in reference.categorical:
        pooled = np.concatenate([reference.categorical[column], current.categorical.get(column, np.array([], dtype=np.str_))])
        if len(pooled) == deals.shape[1]:
            names.append(column)
            kinds.append("categorical")
            distances.append(_total_variation(pooled, deals))
    table = np.stack(distances)  # (columns, B + 1)
    spread = table.std(axis=1, keepdims=True)
    standard = np.divide(table - table.mean(axis=1, keepdims=True), spread, out=np.zeros_like(table), where=spread > 0)
    largest = standard.max(axis=0)  # (B + 1,)
    corrected = (largest[None, :] >= standard[:, :1] - 1e-12).mean(axis=1)  # the observed deal counts as one
    columns = [
        _describe(names[i], kinds[i], float(table[i, 0]), float(corrected[i]), values)
        for i in np.argsort(-standard[:, 0], kind="stable")
    ]
    return Shift(name, float(corrected.min()), tuple(columns), reference, values)


def mixture(components: Mapping[str, Frame], current: Frame, seed: int) -> Frame | None:
    """A reference sample whose shares of the components fit the window best; None if one component suffices.

    The shares minimise the squared distance between the means of probabilities and standardised embeddings, over the
    simplex (non-negative least squares).
    """
    if len(components) < 2:
        return None
    frames = list(components.values())
    pooled = np.concatenate([f.embeddings for f in frames])
    centre, scale = pooled.mean(axis=0), pooled.std(axis=0) + 1e-9

    def signature(frame: Frame) -> Floats:
        embedding = ((frame.embeddings - centre) / scale).mean(axis=0) / np.sqrt(len(centre))
        return np.concatenate([embedding, frame.probabilities.mean(axis=0), [100.0]])  # the last row holds the sum at 1

    shares, _ = nnls(np.stack([signature(f) for f in frames], axis=1), signature(current))
    shares = np.where(shares < 0.05, 0.0, shares)
    if (shares > 0).sum() < 2:
        return None
    shares = shares / shares.sum()
    size = min(len(f) / s for f, s in zip(frames, shares, strict=True) if s > 0)
    rng = np.random.default_rng(seed)
    parts = [
        f.take(np.sort(rng.choice(len(f), int(size * s), replace=False)))
        for f, s in zip(frames, shares, strict=True)
        if int(size * s) > 0
    ]
    return concatenate(parts)


def concatenate(frames: Sequence[Frame]) -> Frame:
    """One frame of all rows."""
    first = frames[0]
    shared = set.intersection(*(set(f.categorical) for f in frames))
    return Frame(
        {name: np.concatenate([f.numerical[name] for f in frames]) for name in first.numerical},
        {name: np.concatenate([f.categorical[name] for f in frames]) for name in first.categorical if name in shared},
        np.concatenate([f.probabilities for f in frames]),
        np.concatenate([f.embeddings for f in frames]),
        first.classes,
        np.concatenate([f.labels for f in frames]),
        tuple(place for f in frames for place in f.places),
    )


def estimated_accuracy(reference: Frame, current: Frame, seed: int) -> tuple[float, Interval]:
    """Accuracy of the champion on a window without its labels, by average thresholded confidence.

    As many reference samples are below the threshold as the champion has wrong; the estimate is the share of the
    window that is not below it (Garg et al., ICLR 2022). On the reference itself it is exact.

    Returns:
        Accuracy on the labelled reference, and the estimate with its 95 % bootstrap interval over both samples.
    """
    correct = reference.correct
    labelled = np.flatnonzero(~np.isnan(correct))
    accuracy = float(correct[labelled].mean()) if len(labelled) else float(reference.confidence.mean())
    if not len(labelled) or not len(current):
        return accuracy, Interval(value=accuracy, low=0.0, high=1.0)

    def estimate(rows: NDArray[np.int64], confidence: Floats) -> float:
        wrong = int((correct[rows] == 0).sum())
        threshold = np.append(np.sort(reference.confidence[rows]), np.inf)[wrong]
        return float((confidence >= threshold).mean())

    rng = np.random.default_rng(seed)
    draws = [estimate(rng.choice(labelled, len(labelled)), rng.choice(current.confidence, len(current))) for _ in range(200)]
    low, high = np.quantile(draws, [0.025, 0.975])
    value = estimate(labelled, current.confidence)
    return accuracy, Interval(value=value, low=min(float(low), value), high=max(float(high), value))


def unusual(reference: Frame, current: Frame, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the most unusual current and the most typical reference samples, by distance to nearest references."""
    from sklearn.neighbors import NearestNeighbors

    scale = reference.embeddings.std(axis=0) + 1e-9
    ours, theirs = reference.embeddings / scale, current.embeddings / scale
    neighbours = min(5, len(ours) - 1)
    index = NearestNeighbors(n_neighbors=neighbours + 1).fit(ours)
    away = index.kneighbors(theirs, neighbours)[0].mean(axis=1)
    inside = index.kneighbors(ours)[0][:, 1:].mean(axis=1)
    return np.argsort(-away, kind="stable")[:count], np.argsort(inside, kind="stable")[:count]


def _numerical(reference: Frame, current: Frame, components: int) -> dict[str, tuple[Floats, Floats]]:
    values = {name: (column, current.numerical[name]) for name, column in reference.numerical.items()}
    for i, name in enumerate(reference.classes):
        values[f"P({name})"] = (reference.probabilities[:, i], current.probabilities[:, i])
    pooled = np.concatenate([reference.embeddings, current.embeddings])
    pooled = pooled - pooled.mean(axis=0)
    if components and pooled.size:
        projected = pooled @ _directions(pooled, components)  # (N + M, components)
        for i, column in enumerate(projected.T, 1):
            values[f"embedding {i}"] = (column[: len(reference)], column[len(reference) :])
    return values


def _directions(centred: Floats, count: int) -> Floats:
    """Leading principal directions (D, count) of rows (N, D), from the smaller Gram matrix: no SVD of all rows.

    Fewer where the rank is lower: beyond it is only rounding, which knows at which place a row stands.
    """
    wide = centred.shape[0] < centred.shape[1]
    gram = centred @ centred.T if wide else centred.T @ centred
    size = len(gram)
    spread, vectors = eigh(gram, subset_by_index=[max(0, size - count), size - 1])  # ascending
    vectors = vectors[:, spread > 1e-12 * max(1.0, spread[-1])][:, ::-1]
    vectors = centred.T @ vectors if wide else vectors
    directions: Floats = vectors / np.linalg.norm(vectors, axis=0)
    return directions


def _ks(pooled: Floats, deals: NDArray[np.bool_]) -> Floats:
    """Kolmogorov-Smirnov distance (B,) of one column under every deal (B, N)."""
    order = np.argsort(pooled, kind="stable")
    ends = np.append(np.diff(pooled[order]) > 0, True)  # within ties the distance is not defined
    size, members = len(pooled), int(deals[0].sum())
    evenly = np.arange(1, size + 1) * members  # whole numbers: a column that does not vary has distance 0 in every deal
    distances = np.empty(len(deals))
    rows = max(1, BLOCK // size)
    for start in range(0, len(deals), rows):
        gap = np.cumsum(deals[start : start + rows][:, order], axis=1, dtype=np.int64) * size - evenly
        distances[start : start + rows] = np.abs(gap[:, ends]).max(axis=1)
    distances /= float(members) * float(size - members)
    return distances


def _total_variation(pooled: NDArray[np.str_], deals: NDArray[np.bool_]) -> Floats:
    """Total variation distance (B,) of one categorical column under every deal (B, N)."""
    _, codes = np.unique(pooled, return_inverse=True)
    one_hot = np.eye(codes.max() + 1, dtype=np.float32)[codes]  # (N, categories)
    members = float(deals[0].sum())
    inside = deals.astype(np.float32) @ one_hot  # (B, categories)
    outside = one_hot.sum(axis=0) - inside
    distance: Floats = np.abs(inside / members - outside / (deals.shape[1] - members)).sum(axis=1).astype(np.float64) / 2
    return distance


def _describe(
    name: str,
    kind: str,
    statistic: float,
    p_value: float,
    values: Mapping[str, tuple[Floats, Floats]],
) -> ColumnDrift:
    if kind == "categorical":
        return ColumnDrift(name=name, kind="categorical", statistic=statistic, effect=statistic, p_value=p_value)
    ours, theirs = values[name]
    spread = float(ours.std()) or 1.0
    return ColumnDrift(
        name=name,
        kind="numerical",
        statistic=min(1.0, statistic),
        effect=float(theirs.mean() - ours.mean()) / spread,
        p_value=p_value,
        reference_mean=float(ours.mean()),
        current_mean=float(theirs.mean()),
    )
