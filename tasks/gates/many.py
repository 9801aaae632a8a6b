"""Many limits at once: in every slice, under every corruption. A fair challenger passes them all at the declared confidence.

Each place gets its own test, and Holm's correction makes one confidence of all of them. Beside the observed value stands its
bound at the same confidence for all places together (Bonferroni): a limit beyond which a bound lies is shown to be exceeded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from everfresh.tasks.gates.evidence import (
    POWER,
    Floats,
    highest_share,
    holm,
    lowest,
    p_apart,
    p_below,
    p_dropped,
    resolved_below,
    resolved_drop,
)
from everfresh.tasks.records import Verdict

NAMED = 5
"""Places that a verdict names at most."""


@dataclass(frozen=True)
class Check:
    """One limit in M places."""

    name: str
    """Of its numbers: ``floor``, ``gap`` or ``drop``."""
    places: Sequence[str]
    """(M,)"""
    values: Floats
    """(M,) as observed."""
    counts: NDArray[np.int64]
    """(M,) samples behind each, of two slices the smaller one's."""
    limit: float
    p_values: Floats
    """(M,) that the limit is exceeded, not corrected."""
    bound: Callable[[int, float], float]
    """By place and level: what the value is at most, of a floor, or at least."""
    resolved: Callable[[int, float], float]
    """By place and level: which value would have been shown to exceed the limit with a power of 80 %."""
    says: str
    """Template of `place`, `value` or how it is a `change`, `count`, `bound`, `limit`."""
    resolves: str
    """Template of `value`."""

    def words(self, place: int, level: float) -> str:
        """Of one place."""
        return self.says.format(
            place=self.places[place],
            value=self.values[place],
            change=f"drops by {value:.1%}" if (value := float(self.values[place])) >= 0 else f"gains {-value:.1%}",
            count=self.counts[place],
            bound=self.bound(place, level),
            limit=self.limit,
        )

    def numbers(self, place: int, level: float) -> dict[str, float]:
        """Of one place."""
        found = {"": self.values[place], "_bound": self.bound(place, level), "_limit": self.limit}
        return {f"{self.name}{end}": float(value) for end, value in found.items()}

    def resolution(self, level: float) -> str:
        """In the smallest place and in the largest one."""
        ends = {int(self.counts[i]): i for i in (self.counts.argmin(), self.counts.argmax())}
        parts = []
        for count, place in ends.items():
            value = self.resolved(int(place), level)
            parts.append(f"{self.resolves.format(value=value) if 0 <= value <= 1 else f'no {self.name}'} in {count} samples")
        return ", ".join(parts)


def floors(places: Sequence[str], hits: Any, counts: Any, minimum: float) -> Check:
    """Accuracy must be no lower than a minimum anywhere; `hits` of `counts` samples are right, (M,) each."""
    hits, counts = np.asarray(hits, dtype=np.int64), np.asarray(counts, dtype=np.int64)
    return Check(
        name="floor",
        places=places,
        values=hits / counts,
        counts=counts,
        limit=minimum,
        p_values=p_below(hits, counts, minimum),
        bound=lambda i, level: highest_share(int(hits[i]), int(counts[i]), level),
        resolved=lambda i, level: resolved_below(int(counts[i]), minimum, level),
        says="{place} is right in {value:.1%} of {count} (at most {bound:.1%}, must be {limit:.1%})",
        resolves="accuracy of {value:.1%}",
    )


def drops(places: Sequence[str], lost: Any, won: Any, counts: Any, most: float) -> Check:
    """Accuracy must drop by no more than `most` against the champion anywhere.

    Of `counts` samples, `lost` were right before only and `won` are right now only, (M,) each.
    """
    lost, won, counts = (np.asarray(v, dtype=np.int64) for v in (lost, won, counts))
    return Check(
        name="drop",
        places=places,
        values=(lost - won) / counts,
        counts=counts,
        limit=most,
        p_values=p_dropped(lost, won, counts, most),
        bound=lambda i, level: lowest(lambda limit: p_dropped(lost[i], won[i], counts[i], limit), level),
        resolved=lambda i, level: resolved_drop(int(counts[i]), most, level, float(lost[i] + won[i]) / float(counts[i])),
        says="{place} {change} on {count} (at least {bound:.1%}, may be {limit:.1%})",
        resolves="a drop of {value:.1%}",
    )


def gaps(groups: Sequence[tuple[str, Sequence[str], Any, Any]], most: float) -> Check:
    """No two slices of a column may be more than `most` apart.

    Args:
        groups: of each column its name, the K values, how many samples are right, and of how many, (K,) each.
        most: the limit.
    """
    places, parts = [], []
    for column, values, hits, counts in groups:
        for i in range(len(values)):
            for j in range(len(values)):
                if i != j:
                    places.append(f"{column}={values[i]} over {values[j]}")
                    parts.append((hits[i], counts[i], hits[j], counts[j]))
    x1, n1, x2, n2 = np.array(parts, dtype=np.int64).reshape(-1, 4).T

    def resolved(i: int, level: float) -> float:
        """The smallest one that an unlucky draw, one in five, still shows, about the share that both are right in now."""
        share, apart = (x1[i] + x2[i]) / (n1[i] + n2[i]), np.linspace(most, 1, 401)
        low = np.clip(share - apart / 2, 0, 1 - apart)
        spread = np.sqrt((low + apart) * (1 - low - apart) / n1[i] + low * (1 - low) / n2[i])
        short = norm.ppf(POWER) * spread / 2
        found = np.clip([n1[i] * (low + apart - short), n2[i] * (low + short)], 0, [[n1[i]], [n2[i]]])
        shown = p_apart(np.floor(found[0]), n1[i], np.ceil(found[1]), n2[i], most) <= level
        return float(apart[shown.argmax()]) if shown.any() else np.inf

    return Check(
        name="gap",
        places=places,
        values=x1 / n1 - x2 / n2,
        counts=np.minimum(n1, n2),
        limit=most,
        p_values=p_apart(x1, n1, x2, n2, most),
        bound=lambda i, level: lowest(lambda limit: p_apart(x1[i], n1[i], x2[i], n2[i], limit), level),
        resolved=resolved,
        says="{place} by {value:.1%} (at least {bound:.1%}, may be {limit:.1%})",
        resolves="a gap of {value:.1%}",
    )


def together(gate: str, checks: Sequence[Check], confidence: float, about: str, **numbers: float) -> Verdict:
    """The verdict over all places of all checks: it fails where one limit is shown to be exceeded.

    Args:
        gate: its name.
        checks: with at least one place among them.
        confidence: of all tests together.
        about: what was looked at, for the words.
        numbers: of the verdict, beside those of the checks.
    """
    checks = [c for c in checks if len(c.places)]
    corrected = holm(np.concatenate([c.p_values for c in checks]))
    level = (1 - confidence) / len(corrected)
    parts = np.split(corrected, np.cumsum([len(c.places) for c in checks])[:-1])
    said: list[str] = []
    for check, p_values in zip(checks, parts, strict=True):
        worst = int(check.p_values.argmin())
        numbers |= check.numbers(worst, level)
        guilty = [int(i) for i in np.argsort(check.p_values, kind="stable") if p_values[i] <= 1 - confidence]
        more = [f"and {len(guilty) - NAMED} more"] if len(guilty) > NAMED else []
        said += [*(check.words(i, level) for i in guilty[:NAMED] or [worst]), *more]
    return Verdict(
        gate=gate,
        passed=bool(corrected.min() > 1 - confidence),
        numbers={**numbers, "tests": float(len(corrected)), "p_value": float(corrected.min())},
        words=f"{gate}: {about}; {'; '.join(said)}",
        resolves=f"{'; '.join(c.resolution(level) for c in checks)} (power 80%)",
    )
