"""The reference by regimes: a window is quiet if it fits one accepted regime, or a mixture of them.

Each regime is a component of the reference. Comparing with all of them at once would alarm on every pure window (98 % of
pure painting windows against photos and paintings together); so the p-value is the largest over the components and,
where there are several, their best mixture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from everfresh.tasks.config import DriftConfig, Season
from everfresh.tasks.drift.frame import Floats, Frame, concatenate
from everfresh.tasks.drift.shift import Shift, compare

MIN_SAMPLES = 10
"""With fewer samples on either side nothing is tested."""
ENOUGH, TENTH = 20, 0.1
"""Samples from which on a regime is heard whatever the window's size, and share of a smaller window that is as good."""
MIN_SHARE = 0.05
"""Of a component in a mixture; less is left out."""


def compare_all(components: Mapping[str, Frame], current: Frame, config: DriftConfig, seed: int) -> list[Shift]:
    """The window against each component and, where there are several, against their best mixture.

    A component with too few samples is left out, for any window would fit it: with fewer than `MIN_SAMPLES` always, with
    fewer than `ENOUGH` and than a `TENTH` of the window where there is a better one.
    """
    seasonal = {name: same_season(frame, current, config.seasonal) for name, frame in components.items()}
    references = {name: frame for name, frame in seasonal.items() if len(frame) >= MIN_SAMPLES}
    enough = min(ENOUGH, TENTH * len(current))
    references = {name: frame for name, frame in references.items() if len(frame) >= enough} or references
    if len(current) < MIN_SAMPLES or not references:
        return [Shift(name, 1.0, (), frame, {}) for name, frame in components.items()]
    if (mixed := mixture(references, current, seed)) is not None and len(mixed) >= MIN_SAMPLES:
        references["mixture"] = mixed
    # part of the rate may go to the labels; what is left must be within reach
    permutations = max(config.permutations, math.ceil(1.25 / config.false_alarm_rate))
    return [
        compare(name, frame, current, components=config.components, permutations=permutations, seed=seed)
        for name, frame in references.items()
    ]


def mixture(components: Mapping[str, Frame], current: Frame, seed: int) -> Frame | None:
    """A reference sample whose shares of the components fit the window best; None if one component suffices.

    The shares minimise the squared distance between the means of standardised columns, probabilities and embeddings,
    over the simplex (non-negative least squares).
    """
    if len(components) < 2:
        return None
    frames = list(components.values())
    tables = [_signature_columns(f, frames[0]) for f in frames]
    pooled = np.concatenate(tables)
    centre, scale = pooled.mean(axis=0), pooled.std(axis=0) + 1e-9

    def signature(table: Floats) -> Floats:
        return np.append(((table - centre) / scale).mean(axis=0) / np.sqrt(len(centre)), 100.0)  # the last holds the sum at 1

    shares, _ = nnls(np.stack([signature(t) for t in tables], axis=1), signature(_signature_columns(current, frames[0])))
    shares = np.where(shares < MIN_SHARE, 0.0, shares)
    if (shares > 0).sum() < 2:
        return None
    return _drawn(frames, shares / shares.sum(), seed)


def _signature_columns(frame: Frame, like: Frame) -> Floats:
    """(N, K) all that is a number in a frame; missing values count as the mean."""
    names = [name for name in like.numerical if name in frame.numerical]
    table = np.column_stack([*(frame.numerical[n] for n in names), frame.probabilities, frame.embeddings])
    with np.errstate(invalid="ignore"):
        known = np.isfinite(table)
        means = np.where(known, table, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    filled: Floats = np.where(known, table, means)
    return filled


def _drawn(frames: Sequence[Frame], shares: Floats, seed: int) -> Frame:
    """The largest sample of the frames in these shares, without replacement."""
    size = min(len(f) / s for f, s in zip(frames, shares, strict=True) if s > 0)
    rng = np.random.default_rng(seed)
    return concatenate(
        [
            f.take(np.sort(rng.choice(len(f), int(size * s), replace=False)))
            for f, s in zip(frames, shares, strict=True)
            if int(size * s) > 0
        ]
    )


def closest(components: Mapping[str, Frame], current: Frame) -> str:
    """The component with the nearest mean embedding, for a window that is too small to test."""
    if not len(current):
        return next(iter(components))
    centre = current.embeddings.mean(axis=0)
    gaps = {name: float(np.linalg.norm(f.embeddings.mean(axis=0) - centre)) for name, f in components.items() if len(f)}
    return min(gaps, key=lambda name: gaps[name]) if gaps else next(iter(components))


def same_season(reference: Frame, current: Frame, seasons: Sequence[Season]) -> Frame:
    """The reference's samples of the window's hours and weekdays (UTC), in the window's shares.

    All of them where no season is asked for, where times are missing, or where the reference knows fewer than half of
    the window's seasons.
    """
    if not seasons or reference.times is None or current.times is None:
        return reference
    ours, theirs = _cells(reference.times, seasons), _cells(current.times, seasons)
    counts = {c: int((ours == c).sum()) for c in set(theirs[theirs >= 0].tolist())}
    wanted = {c: int((theirs == c).sum()) for c, known in counts.items() if known}
    if sum(wanted.values()) * 2 < len(current):
        return reference
    size = min(counts[c] / n for c, n in wanted.items())
    rows = [_evenly(np.flatnonzero(ours == c), max(1, int(size * n))) for c, n in wanted.items()]
    found = reference.take(np.sort(np.concatenate(rows)))
    return found if len(found) >= MIN_SAMPLES else reference


def _evenly(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """So many of the rows, from all along them: old and new ones."""
    picked: NDArray[np.int64] = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)]
    return picked


def _cells(times: NDArray[np.datetime64], seasons: Sequence[Season]) -> NDArray[np.int64]:
    """(N,) number of each time's season, -1 where there is no time."""
    hours = times.astype("datetime64[h]").astype(np.int64)
    cells = np.zeros(len(times), dtype=np.int64)
    if "hour" in seasons:
        cells += hours % 24
    if "weekday" in seasons:
        cells += 24 * ((hours // 24 + 3) % 7)  # the epoch was a Thursday
    return np.where(np.isnat(times), -1, cells)
