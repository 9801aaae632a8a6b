"""Is this window from the same distribution as the reference? One permutation test over families of statistics.

The rows of reference and window are pooled and dealt out anew many times; every statistic is computed for the
observed deal and for each other one, so the p-value (count + 1) / (deals + 1) counts all tests and their
correlations at once and the finite reference as the noise that it is (Westfall & Young 1993). All statistics are
built from sums over the window's rows, so a deal costs one row of a matrix product.

Families, each alone a known detector:

- ``columns``: each numerical and categorical column of the frame. A numerical one is ranked in the pooled rows and
  counted above 15 of their quantiles, squared and weighted by variance: Anderson & Darling's (1954) test on a grid, as
  sharp in the tails as in the middle. A categorical one is Pearson's chi-squared; missing values are a category.
- ``outputs``: the champion's class probabilities and its predictions likewise (black-box shift detection, Lipton et
  al., ICML 2018; Rabanser et al., "Failing Loudly", NeurIPS 2019).
- ``components``: leading principal components of the embedding likewise, fitted on the pooled rows.
- ``classifier``: how well a ridge-regularised linear discriminant separates the two (regularised Hotelling's T²; the
  classifier two-sample test of Lopez-Paz & Oquab, ICLR 2017, without losing half of the rows to training). Its held-out
  AUC tells people how large the difference is.
- ``joint``: the same discriminant over all columns and outputs together, as normal scores of their ranks.
- ``mmd``: maximum mean discrepancy with a Gaussian kernel of median bandwidth by random Fourier features (Gretton et
  al., JMLR 2012; Rahimi & Recht, NeurIPS 2007; Zhao & Meng 2015).
- ``novelty``: the distance of each row from the pooled centre in whitened embedding space, as a column of which only more
  counts: a few strange pictures among many ordinary ones.

Each statistic is brought to one scale through the mean, spread and skewness of its deals (Wilson & Hilferty 1931). A
family says the most extreme of its statistics; families are combined by the mean of their inverse p-values (harmonic
mean p, Wilson, PNAS 2019), which keeps the sharpest and lets several weak ones add up. The combination is itself only a
statistic, whose p-value comes from the same deals: it is valid whatever the approximations are worth.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtri
from scipy.stats import mannwhitneyu, rankdata

from everfresh.tasks.drift.frame import PREDICTION, Floats, Frame
from everfresh.tasks.drift.space import Single, Space, whitened
from everfresh.tasks.records import ColumnDrift, FamilyDrift

SINGLE = ("columns", "outputs", "components", "novelty")
"""Families of single columns."""
QUANTILES = np.array([0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975, 0.99])
"""Of the pooled rows, above which the window's rows are counted."""
MOST_CLASSES = 64
"""Class probabilities that are tested: those that vary most over all rows."""
MOST_CATEGORIES = 64
"""Of one column."""
CELLS = 20_000_000
"""Numbers of deals, or of columns' features, that are held as floats at once: bounds memory."""


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
    families: tuple[FamilyDrift, ...] = ()
    strength: float = 0.0
    """The combined statistic itself; between windows of one size more is more drift, also beyond the least p-value."""

    @property
    def score(self) -> float:
        """Largest column distance, 0…1."""
        return max((c.statistic for c in self.columns), default=0.0)


@dataclass(frozen=True)
class Column:
    """One column of both frames, pooled."""

    name: str
    family: str
    values: NDArray[Any]
    """(N,), the reference's rows first; missing is NaN or ""."""

    @property
    def numerical(self) -> bool:
        return self.values.dtype.kind == "f"


class Deals:
    """The observed deal of the pooled rows and random others of the same sizes.

    Args:
        reference: rows of the reference, which stand first.
        current: rows of the window.
        permutations: random deals beside the observed one.
    """

    def __init__(self, reference: int, current: int, permutations: int, rng: np.random.Generator) -> None:
        self.rows, self.current = reference + current, current
        self.inside = np.zeros((permutations + 1, self.rows), dtype=np.int8)  # (B + 1, N): 1 in the window
        self.inside[0, reference:] = 1
        self.inside[1:, :current] = 1
        rng.permuted(self.inside[1:], axis=1, out=self.inside[1:])

    def sums(self, features: Single) -> Floats:
        """Sums (F, B + 1) over the window's rows of features (N, F) of mean 0, in standard deviations of a deal."""
        total = np.zeros((len(self.inside), features.shape[1]))
        block = max(1, CELLS // len(self.inside))
        for start in range(0, self.rows, block):
            stop = start + block
            total += self.inside[:, start:stop].astype(np.float32) @ features[start:stop]
        spread = np.sqrt(self.current * (self.rows - self.current) / max(self.rows - 1, 1))
        scaled: Floats = total.T / max(spread, 1e-12)
        return scaled


def compare(name: str, reference: Frame, current: Frame, *, components: int, permutations: int, seed: int) -> Shift:
    """Test whether two frames come from one distribution.

    Args:
        name: what the reference frame is called.
        reference: N rows.
        current: M rows.
        components: principal components of the embedding that are tested one by one, at least 0.
        permutations: deals behind the p-value.
        seed: of the deals and of the random features.
    """
    columns, families, combined = statistics(reference, current, components=components, permutations=permutations, seed=seed)
    single = np.concatenate([np.zeros((0, permutations + 1)), *families.values()])[: len(columns)]
    p_columns = _rank(single.max(axis=0, initial=-np.inf), single[:, 0])
    order = np.argsort(-single[:, 0], kind="stable")
    largest = {family: scores.max(axis=0) for family, scores in families.items()}
    return Shift(
        name,
        float(_rank(combined, combined[:1])[0]),
        tuple(_describe(columns[i], len(reference), float(p_columns[i])) for i in order),
        reference,
        {c.name: (c.values[: len(reference)], c.values[len(reference) :]) for c in columns if c.numerical},
        tuple(FamilyDrift(name=f, p_value=float(_rank(scores, scores[:1])[0])) for f, scores in largest.items()),
        float(combined[0]),
    )


def statistics(
    reference: Frame, current: Frame, *, components: int, permutations: int, seed: int
) -> tuple[list[Column], dict[str, Floats], Floats]:
    """All statistics under all deals, the observed one first.

    Returns:
        The single columns, grouped by family; by family its statistics (S, B + 1) on the normal scale, those of the single
        columns first and in their order; and the combination (B + 1,).
    """
    rng = np.random.default_rng(seed)
    deals = Deals(len(reference), len(current), permutations, rng)
    space = Space(np.concatenate([reference.embeddings, current.embeddings]), components)
    columns = sorted(_columns(reference, current, space), key=lambda c: SINGLE.index(c.family))
    single = _statistics(columns, deals)
    of = np.array([SINGLE.index(c.family) for c in columns])
    families = {name: single[of == i] for i, name in enumerate(SINGLE) if (of == i).any()}
    if (joint := _joint(columns)).shape[1] > 1:
        families["joint"] = normal_scale(_squares(deals, whitened(joint)))
    if space.varies:
        families["classifier"] = normal_scale(_squares(deals, space.whitened))
        families["mmd"] = normal_scale(_squares(deals, space.fourier(rng)))
    return columns, families, _combined([_corrected(scores) for scores in families.values()], permutations)


def normal_scale(table: Floats) -> Floats:
    """Statistics (S, B + 1), each row to about the standard normal scale, by mean, spread and skewness of its deals.

    A gamma distribution with these moments has a nearly normal cube root (Wilson & Hilferty 1931).
    """
    centred = table - table.mean(axis=1, keepdims=True)
    spread = centred.std(axis=1, keepdims=True)
    scale = np.abs(table).max(axis=1, keepdims=True)
    varies = spread > 1e-7 * np.maximum(scale, 1e-12)
    t = np.where(varies, centred / np.where(varies, spread, 1.0), 0.0)
    skew = np.clip((t**3).mean(axis=1, keepdims=True), -1.0, 8.0)
    bent = np.abs(skew) > 0.05
    g = np.where(bent, skew, 1.0)
    root = (6 / g) * (np.cbrt(np.maximum(1 + g * t / 2, 1e-9)) - 1) + g / 6
    scaled: Floats = np.where(bent, root, t)
    return scaled


def _corrected(scores: Floats) -> Floats:
    """(B + 1,) minus log p of a family, Bonferroni's bound over its statistics (S, B + 1)."""
    if not len(scores):
        return np.zeros(scores.shape[1])
    bound: Floats = -log_ndtr(-scores.max(axis=0)) - np.log(len(scores))
    return bound


def _combined(families: list[Floats], permutations: int) -> Floats:
    """(B + 1,) log of the mean inverse p-value over families."""
    if not families:
        return np.zeros(permutations + 1)
    mean: Floats = np.logaddexp.reduce(families, axis=0) - np.log(len(families))
    return mean


def _rank(deals: Floats, observed: Floats) -> Floats:
    """(S,) p-values of observed values among the deals (B + 1,), of which the observed one is the first."""
    share: Floats = (deals[None, :] >= observed[:, None] - 1e-9 * (1 + np.abs(observed[:, None]))).mean(axis=1)
    return share


# --- columns -------------------------------------------------------------------------------------------------------


def _columns(reference: Frame, current: Frame, space: Space) -> Iterator[Column]:
    """All single columns. One that only the window has is left out; a slice that it has lost is missing throughout."""

    def pooled(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate([ours, theirs]).astype(np.float64)

    for name, values in reference.numerical.items():
        if name in current.numerical:
            yield Column(
                name, "outputs" if name.startswith(f"{PREDICTION}:") else "columns", pooled(values, current.numerical[name])
            )
    for name, words in reference.categorical.items():
        family = "outputs" if name == PREDICTION else "columns"
        lost = np.full(len(current), "", dtype=np.str_)
        yield Column(name, family, np.concatenate([words, current.categorical.get(name, lost)]))
    probabilities = pooled(reference.probabilities, current.probabilities)
    for i in sorted(np.argsort(-probabilities.std(axis=0), kind="stable")[:MOST_CLASSES]):
        yield Column(f"P({reference.classes[i]})", "outputs", probabilities[:, i])
    for i, values in enumerate(space.leading.T, 1):
        yield Column(f"embedding {i}", "components", values)
    if space.varies:
        yield Column("novelty", "novelty", space.novelty())


def _statistics(columns: list[Column], deals: Deals) -> Floats:
    """(columns, B + 1) statistic of each column under each deal on the normal scale; more is farther apart.

    Of a numerical column with missing values: the larger one of its values and of their absence.
    """
    table = np.zeros((len(columns), len(deals.inside)))
    numerical = [i for i, c in enumerate(columns) if c.numerical]
    per = max(1, CELLS // max(1, deals.rows * len(QUANTILES)))
    for start in range(0, len(numerical), per):
        some = numerical[start : start + per]
        features = _above_quantiles(np.stack([columns[i].values for i in some], axis=1))
        sums = deals.sums(features.reshape(deals.rows, -1)).reshape(len(some), -1, len(deals.inside))
        one_sided = np.array([columns[i].family == "novelty" for i in some])
        sums[one_sided] = np.maximum(sums[one_sided], 0)
        table[some] = (sums**2).sum(axis=1)
    for i, column in enumerate(columns):
        if not column.numerical:
            table[i] = (deals.sums(_indicators(column.values)) ** 2).sum(axis=0)
    table = normal_scale(table)
    for i in numerical:
        if not (known := np.isfinite(columns[i].values)).all():
            absent = deals.sums(_standardised(~known[:, None] * np.float32(1))) ** 2
            table[i] = np.maximum(table[i], normal_scale(absent)[0])
    return table


def _above_quantiles(values: NDArray[np.float64]) -> Single:
    """(N, C, Q) is a row of a column (N, C) above each quantile of the pooled rows, of mean 0 and variance 1.

    A missing value counts as the mean. What does not vary is 0.
    """
    ordered = np.sort(values, axis=0)  # NaN last
    known = np.isfinite(ordered).sum(axis=0)  # (C,)
    at = np.ceil(QUANTILES[:, None] * known).astype(np.int64) - 1  # (Q, C): the inverse of the empirical distribution
    cuts = np.take_along_axis(ordered, np.maximum(at, 0), axis=0)
    cuts[1:][cuts[1:] == cuts[:-1]] = np.inf  # a quantile that ties with the one below says nothing new
    missing = ~np.isfinite(values)
    features = (values[:, :, None] > cuts.T[None]).astype(np.float32)
    if missing.any():
        means = (features.sum(axis=0) / np.maximum(known, 1)[:, None]).astype(np.float32)
        features = np.where(missing[:, :, None], means, features)
    features -= features.mean(axis=0)
    spread = np.sqrt(np.einsum("ncq,ncq->cq", features, features) / len(features))
    features *= np.where(spread > 1e-6, 1 / np.where(spread > 1e-6, spread, 1), 0).astype(np.float32)
    scaled: Single = features
    return scaled


def _indicators(words: NDArray[np.str_]) -> Single:
    """(N, K) indicators of the categories, most frequent first, scaled so that their squares add up to Pearson's chi-squared.

    The rare ones of many, counted over all rows, are one.
    """
    _, codes, counts = np.unique(words, return_inverse=True, return_counts=True)
    place = np.empty(len(counts), dtype=np.int64)
    place[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    one_hot = np.eye(min(len(counts), MOST_CATEGORIES), dtype=np.float32)[np.minimum(place, MOST_CATEGORIES - 1)[codes]]
    shares = one_hot.mean(axis=0)
    scaled: Single = (one_hot - shares) / np.sqrt(np.maximum(shares, 1e-12))
    return scaled


def _joint(columns: list[Column]) -> Single:
    """(N, K) all columns that people can read and the outputs, for a discriminant over them together.

    Numbers are normal scores of their ranks, missing ones the middle; categories are indicators.
    """
    parts = []
    for column in columns:
        if column.family in {"columns", "outputs"}:
            part = _normal_scores(column.values) if column.numerical else _indicators(column.values)
            parts.append(_standardised(part))
    found = np.concatenate(parts, axis=1) if parts else np.zeros((0, 0), np.float32)
    kept: Single = found[:, found.any(axis=0)]
    return kept


def _normal_scores(values: NDArray[np.float64]) -> Single:
    """(N, 1) van der Waerden's scores: ranks as quantiles of the normal distribution."""
    known = np.isfinite(values)
    scores = np.zeros((len(values), 1), dtype=np.float32)
    scores[known, 0] = ndtri((rankdata(values[known]) - 0.5) / max(1, known.sum()))
    return scores


def _standardised(features: Single) -> Single:
    centred = features - features.mean(axis=0)
    spread = centred.std(axis=0)
    scaled: Single = (centred[:, spread > 1e-6] / spread[spread > 1e-6]).astype(np.float32)
    return scaled if scaled.shape[1] else np.zeros((len(features), 1), dtype=np.float32)


def _describe(column: Column, reference: int, p_value: float) -> ColumnDrift:
    """What a person wants to know of one column."""
    ours, theirs = column.values[:reference], column.values[reference:]
    if not column.numerical:
        names, codes = np.unique(column.values, return_inverse=True)
        counts = [np.bincount(part, minlength=len(names)) for part in (codes[:reference], codes[reference:])]
        distance = float(np.abs(counts[0] / len(ours) - counts[1] / len(theirs)).sum() / 2)
        unseen = sorted(np.flatnonzero((counts[0] == 0) & (names != "")), key=lambda i: -counts[1][i])[:5]
        return ColumnDrift(
            name=column.name,
            kind="categorical",
            statistic=distance,
            effect=distance,
            p_value=p_value,
            missing=(float((ours == "").mean()), float((theirs == "").mean())),
            new_categories=tuple(str(names[i]) for i in unseen),
        )
    known = [np.sort(part[np.isfinite(part)]) for part in (ours, theirs)]
    missing = (1 - len(known[0]) / len(ours), 1 - len(known[1]) / len(theirs))
    distance = abs(missing[0] - missing[1])
    means: tuple[float | None, float | None] = (None, None)
    effect = 0.0
    if len(known[0]) and len(known[1]):
        distance = max(distance, kolmogorov_smirnov(*known))
        with np.errstate(over="ignore", invalid="ignore"):  # values near the end of the range
            means = float(np.nan_to_num(known[0].mean())), float(np.nan_to_num(known[1].mean()))
            effect = float(np.nan_to_num((means[1] - means[0]) / (float(known[0].std()) or 1.0), posinf=0, neginf=0))
    return ColumnDrift(
        name=column.name,
        kind="numerical",
        statistic=min(1.0, distance),
        effect=effect,
        p_value=p_value,
        reference_mean=means[0],
        current_mean=means[1],
        missing=missing,
    )


def kolmogorov_smirnov(ours: Floats, theirs: Floats) -> float:
    """Largest distance between the distribution functions of two sorted samples, 0…1."""
    at = np.concatenate([ours, theirs])
    gap = np.searchsorted(ours, at, side="right") / len(ours) - np.searchsorted(theirs, at, side="right") / len(theirs)
    return float(np.abs(gap).max())


# --- all rows as a whole -------------------------------------------------------------------------------------------


def classifier_auc(reference: Frame, current: Frame, seed: int, folds: int = 5) -> float | None:
    """Held-out AUC of the ridge discriminant between two frames, over embeddings or else columns; None without either.

    Fitted on four fifths of the rows, scored on the fifth, in turn; the whitening sees no side, so all rows serve it.
    """
    space = Space(np.concatenate([reference.embeddings, current.embeddings]), 0)
    x = space.whitened if space.varies else _joint(list(_columns(reference, current, space)))
    if not x.size:
        return None
    x = x if space.varies else whitened(x)
    new = np.arange(len(x)) >= len(reference)
    rng = np.random.default_rng(seed)
    fold = np.empty(len(x), dtype=np.int64)
    for part in (np.flatnonzero(new), np.flatnonzero(~new)):
        fold[rng.permutation(part)] = np.arange(len(part)) % folds
    areas = []
    for k in range(folds):
        fit, held = fold != k, fold == k
        direction = x[fit & new].mean(axis=0) - x[fit & ~new].mean(axis=0)
        ours, theirs = x[held & ~new] @ direction, x[held & new] @ direction
        if len(ours) and len(theirs):
            areas.append(float(mannwhitneyu(theirs, ours).statistic) / (len(ours) * len(theirs)))
    return float(np.mean(areas)) if areas else None


def _squares(deals: Deals, features: Single) -> Floats:
    """(1, B + 1) squared length of the sums of features (N, F)."""
    total: Floats = (deals.sums(features) ** 2).sum(axis=0, keepdims=True)
    return total
