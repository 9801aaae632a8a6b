"""The gate on slices: no group of samples may be served badly, be left far behind, or lose what it had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from everfresh.tasks.config import SlicesGate
from everfresh.tasks.gates.judged import Judged, Trial, but_for, undecided
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


@dataclass(frozen=True)
class _Look:
    """One limit, where it could be tested."""

    limit: str
    """Field of the gate."""
    check: Check
    columns: set[str]
    """In which it has a place."""
    needs: str
    """What a column must have for one."""


def slices(gate: SlicesGate, trial: Trial) -> Verdict:
    """Whether a slice is shown to be below the floor, behind another one, or worse than under the champion."""
    judged = trial.on(gate.scope)
    if not len(judged.labels) and gate.scope == "bank":
        return Verdict(gate="slices", passed=True, numbers={}, words="slices: there is no earlier hold-out yet")
    groups = _groups(gate, judged)
    large = [g for g in groups if g.inside.sum() >= gate.min_samples]
    numbers = {"slices": float(len(large)), "left_aside": float(len(groups) - len(large)), "samples": float(len(judged.labels))}
    if not large:
        return undecided("slices", gate.too_few, _none_large(gate, judged, groups), **numbers)
    if judged.champion is None and gate.minimum is None and gate.max_gap is None:
        return Verdict(gate="slices", passed=True, numbers=numbers, words="slices: there is no champion to drop against")
    looks = _looks(gate, judged, large)
    untested = _untested(gate, judged, looks)
    checks = [look.check for look in looks if len(look.check.places)]
    if not checks:
        return undecided("slices", gate.too_few, "; ".join(untested), **numbers)
    aside = f", {len(groups) - len(large)} smaller ones left aside" if len(groups) > len(large) else ""
    about = f"{len(large)} slices of {gate.min_samples} samples or more{aside}"
    return but_for(untested, together("slices", checks, gate.confidence, about, **numbers), gate.too_few)


def _asked(gate: SlicesGate, judged: Judged) -> tuple[str, ...]:
    """The columns that the gate looks at, there or not."""
    return gate.columns or tuple(name for name in judged.columns if name not in (LABEL, WINDOW))


def _groups(gate: SlicesGate, judged: Judged) -> list[_Group]:
    """All slices of the columns that the gate looks at."""
    found = [(name, judged.columns[name]) for name in _asked(gate, judged) if name in judged.columns]
    return [_Group(name, str(value), values == value) for name, values in found for value in np.unique(values)]


def _looks(gate: SlicesGate, judged: Judged, groups: list[_Group]) -> list[_Look]:
    """One for each limit of the gate, in slices that are large enough."""
    right, looks = judged.right(), []
    hits, counts = [int(right[g.inside].sum()) for g in groups], [int(g.inside.sum()) for g in groups]
    if gate.minimum is not None:
        check = floors([g.name for g in groups], hits, counts, gate.minimum)
        looks.append(_Look("minimum", check, {g.column for g in groups}, f"a slice of {gate.min_samples} samples"))
    if gate.max_gap is not None:
        columns = {g.column: [i for i, other in enumerate(groups) if other.column == g.column] for g in groups}
        parts = [
            (column, [groups[i].value for i in mine], [hits[i] for i in mine], [counts[i] for i in mine])
            for column, mine in columns.items()
        ]
        several = {column for column, mine in columns.items() if len(mine) > 1}
        looks.append(_Look("max_gap", gaps(parts, gate.max_gap), several, f"two slices of {gate.min_samples} samples"))
    if gate.max_drop is not None and judged.champion is not None:
        before = judged.right_before()
        shared = [(g, inside) for g in groups if (inside := g.inside & judged.shared).sum() >= gate.min_samples]
        pairs = [(right[inside], before[inside]) for _, inside in shared]
        lost, won = [int((then & ~now).sum()) for now, then in pairs], [int((now & ~then).sum()) for now, then in pairs]
        check = drops([g.name for g, _ in shared], lost, won, [len(now) for now, _ in pairs], gate.max_drop)
        needs = f"a slice of {gate.min_samples} samples that both models know"
        looks.append(_Look("max_drop", check, {g.column for g, _ in shared}, needs))
    return looks


def _untested(gate: SlicesGate, judged: Judged, looks: list[_Look]) -> list[str]:
    """Why a limit could be tested nowhere, or not in a column that is named."""
    lacking = [name for name in _asked(gate, judged) if name not in judged.columns]
    said = [_lacks(gate, judged, lacking)] if lacking else []
    for look in looks:
        left = [name for name in _asked(gate, judged) if name not in look.columns and name not in lacking]
        if left and (gate.columns or not look.columns):
            said.append(f"{look.limit} could not be tested in {', '.join(left)} for want of {look.needs}")
    return said


def _lacks(gate: SlicesGate, judged: Judged, columns: Sequence[str]) -> str:
    return f"the {len(judged.labels)} {gate.scope} samples have no column {', '.join(columns)}"


def _none_large(gate: SlicesGate, judged: Judged, groups: list[_Group]) -> str:
    """Why nothing could be looked at."""
    if groups or not len(judged.labels):
        return f"no slice of the {len(judged.labels)} {gate.scope} samples has {gate.min_samples} of them"
    return _lacks(gate, judged, gate.columns or ("to make slices of",))
