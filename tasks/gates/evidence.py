"""Tests of shares against limits, and what they can tell at a number of samples.

The gates that set a limit on how bad something may be (a slice's drop, the share of negative flips) refuse a challenger
whom the samples *show* to be beyond it: a one-sided test at the declared confidence. So a challenger that is within its
limits passes with that confidence however few samples there are, and what could have been shown with the samples at hand
stands beside the verdict. Arguments are arrays of equal shapes, or plain numbers; p-values and bounds come likewise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binom, norm

Floats = NDArray[np.float64]
POWER = 0.8
"""With which what a test is said to resolve is found, by custom of the field."""
STEPS = 40
"""Of halving an interval; its ends are exact to 1e-12."""


def p_below(hits: Any, count: Any, minimum: Any) -> Floats:
    """Exact binomial p-value that a share is below a minimum, from `hits` of `count`."""
    return np.asarray(binom.cdf(hits, count, minimum))


def p_above(hits: Any, count: Any, maximum: Any) -> Floats:
    """Exact binomial p-value that a share is above a maximum."""
    return np.asarray(binom.sf(np.asarray(hits) - 1, count, maximum))


def p_dropped(lost: Any, won: Any, count: Any, most: Any) -> Floats:
    """p-value that more than `most` is lost between two paired shares.

    Of `count` samples, `lost` were right before only and `won` are right now only. The score test of Tango (1998); at
    `most` = 0 the exact McNemar test. Corrected for continuity, without which it errs 1.4 times too often at 20 samples.
    """
    lost, won, count, most = (np.asarray(v, dtype=np.float64) for v in np.broadcast_arrays(lost, won, count, most))
    # The share that is won if just `most` is lost, by maximum likelihood.
    b = (2 * count - lost + won) * most - lost - won
    win = (np.sqrt(b * b + 8 * count * won * most * (1 - most)) - b) / (4 * np.maximum(count, 1))
    spread = np.sqrt(np.maximum(count * (2 * win + most * (1 - most)), 1e-300))
    exact = binom.sf(lost - 1, lost + won, 0.5)
    return np.asarray(np.where(most > 0, norm.sf((lost - won - count * most - 0.5) / spread), exact))


def p_apart(high: Any, of_high: Any, low: Any, of_low: Any, most: Any) -> Floats:
    """p-value that two independent shares are more than `most` apart, the first being the higher.

    `high` of `of_high` samples and `low` of `of_low` are right. The score test of Farrington and Manning (1990), corrected
    for continuity and never below the exact tail of either sample by itself: alone it errs up to eight times too often far
    out, where one of two slices is small.
    """
    x1, n1, x2, n2, d = (np.asarray(v, dtype=np.float64) for v in np.broadcast_arrays(high, of_high, low, of_low, most))
    p1, p2, ratio = x1 / n1, x2 / n2, n2 / n1
    # Both shares if they are just `most` apart, by maximum likelihood: a root of a cubic.
    a = 1 + ratio
    b = -(1 + ratio + p1 + ratio * p2 + d * (ratio + 2))
    c = d * d + d * (2 * p1 + ratio + 1) + p1 + ratio * p2
    e = -p1 * d * (1 + d)
    v = b**3 / (3 * a) ** 3 - b * c / (6 * a * a) + e / (2 * a)
    u = np.where(v < 0, -1.0, 1.0) * np.sqrt(np.maximum(b * b / (3 * a) ** 2 - c / (3 * a), 0))
    cosine = np.clip(np.divide(v, u**3, out=np.zeros_like(v), where=u != 0), -1, 1)
    first = np.clip(2 * u * np.cos((np.pi + np.arccos(cosine)) / 3) - b / (3 * a), d, 1)
    second = np.clip(first - d, 0, 1)
    spread = np.sqrt(np.maximum(first * (1 - first) / n1 + second * (1 - second) / n2, 1e-300))
    score = norm.sf((p1 - p2 - d - (1 / n1 + 1 / n2) / 2) / spread)
    return np.asarray(np.maximum(score, np.maximum(binom.cdf(x2, n2, second), binom.sf(x1 - 1, n1, first))))


def holm(p_values: Floats) -> Floats:
    """p-values corrected for being many (Holm 1979): those of at most α err with α in all, whatever depends on what."""
    order = np.argsort(p_values)
    steps = p_values[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty_like(p_values)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return corrected


def lowest(p_of: Callable[[float], Floats], level: float) -> float:
    """The largest limit, 0…1, that a test refutes at a level: a lower bound of the quantity; 0 if it refutes none.

    Args:
        p_of: p-value by limit, which must grow with it.
        level: of the test.
    """
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if p_of(middle) <= level else (low, middle)
    return low


def highest_share(hits: int, count: int, level: float) -> float:
    """Upper bound of a share (Clopper and Pearson 1934), the dual of :func:`p_below`."""
    return 1.0 if hits >= count else float(beta.ppf(1 - level, hits + 1, count - hits))


def resolved_above(count: int, maximum: float, level: float) -> float:
    """The smallest share that :func:`p_above` finds to be above `maximum` with a power of 80 %; over 1 if it finds none."""
    least = int(binom.isf(level, count, maximum)) + 1
    return float(beta.ppf(POWER, least, count - least + 1)) if least <= count else np.inf


def resolved_below(count: int, minimum: float, level: float) -> float:
    """The largest share that :func:`p_below` finds to be below `minimum` with a power of 80 %; below 0 if it finds none."""
    most = int(binom.ppf(level, count, minimum))
    most = most if binom.cdf(most, count, minimum) <= level else most - 1
    return float(beta.ppf(1 - POWER, most + 1, count - most)) if most >= 0 else -np.inf


def resolved_drop(count: int, most: float, level: float, differ: float) -> float:
    """The smallest drop that :func:`p_dropped` finds to exceed `most` with a power of 80 %, by the normal approximation.

    Args:
        count: samples.
        most: the limit.
        level: of the test.
        differ: share of the samples that one model alone has right; it is no smaller than the drop.
    """
    z = (norm.isf(level) + norm.ppf(POWER)) / np.sqrt(max(count, 1))
    root = (z + np.sqrt(z * z + 4 * most)) / 2
    return float(min(max(most + z * np.sqrt(differ), root * root), 1.0))
