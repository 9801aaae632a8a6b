"""The gate on slices: no group of samples may be served badly, be left far behind, or lose what it had."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from everfresh.tasks.config import SlicesGate
from everfresh.tasks.gates.judged import Judged, Trial, undecided
from everfresh.tasks.gates.many import Check, drops, floors, gaps, together
from everfresh.tasks.records import Verdict
from everfresh.tasks.slices import LABEL, WINDOW


@dataclass(frozen=True)
class _Group:
    column: str
    value: str
    inside: NDArray[np.bool_]
    """(N,) which samples."""

    @property
    def name(self) -> str:
        return f"{self.column}={self.value}"


def slices(gate: SlicesGate, trial: Trial) -> Verdict:
    """Whether a slice is shown to be below the floor, behind another one, or worse than under the champion."""
    judged = trial.on(gate.scope)
    if not len(judged.labels) and gate.scope == "bank":
        return Verdict(gate="slices", passed=True, numbers={}, words="slices: there is no earlier hold-out yet")
    groups = _groups(gate, judged)
    large = [g for g in groups if g.inside.sum() >= gate.min_samples]
    checks = [c for c in _checks(gate, judged, large) if len(c.places)]
    numbers = {"slices": float(len(large)), "left_aside": float(len(groups) - len(large)), "samples": float(len(judged.labels))}
    if not checks:
        return _nothing(gate, judged, large, numbers)
    aside = f", {len(groups) - len(large)} smaller ones left aside" if len(groups) > len(large) else ""
    about = f"{len(large)} slices of {gate.min_samples} samples or more{aside}"
    return together("slices", checks, gate.confidence, about, **numbers)


def _groups(gate: SlicesGate, judged: Judged) -> list[_Group]:
    """All slices of the columns that the gate looks at."""
    mine = [name for name in judged.columns if name not in (LABEL, WINDOW)] if gate.columns is None else gate.columns
    found = [(name, judged.columns[name]) for name in mine if name in judged.columns]
    return [_Group(name, str(value), values == value) for name, values in found for value in np.unique(values)]


def _checks(gate: SlicesGate, judged: Judged, groups: list[_Group]) -> list[Check]:
    right, checks = judged.right(), []
    names = [g.name for g in groups]
    hits, counts = [int(right[g.inside].sum()) for g in groups], [int(g.inside.sum()) for g in groups]
    if gate.minimum is not None:
        checks.append(floors(names, hits, counts, gate.minimum))
    if gate.max_gap is not None:
        columns = {g.column: [i for i, other in enumerate(groups) if other.column == g.column] for g in groups}
        parts = [
            (column, [groups[i].value for i in mine], [hits[i] for i in mine], [counts[i] for i in mine])
            for column, mine in columns.items()
        ]
        checks.append(gaps(parts, gate.max_gap))
    if gate.max_drop is not None and judged.champion is not None:
        before = judged.right_before()
        pairs = [(g.name, right[inside], before[inside]) for g in groups if (inside := g.inside & judged.shared).any()]
        pairs = [(name, now, then) for name, now, then in pairs if len(now) >= gate.min_samples]
        lost, won = [int((then & ~now).sum()) for _, now, then in pairs], [int((now & ~then).sum()) for _, now, then in pairs]
        checks.append(drops([name for name, _, _ in pairs], lost, won, [len(now) for _, now, _ in pairs], gate.max_drop))
    return checks


def _nothing(gate: SlicesGate, judged: Judged, large: list[_Group], numbers: dict[str, float]) -> Verdict:
    """Why nothing could be looked at."""
    if large and judged.champion is None:
        return Verdict(gate="slices", passed=True, numbers=numbers, words="slices: there is no champion to drop against")
    words = f"no slice of the {len(judged.labels)} {gate.scope} samples has {gate.min_samples} of them"
    return undecided("slices", gate.too_few, words, **numbers)
