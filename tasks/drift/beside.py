"""Evidently's verdict of each column beside ours, and in words why they differ.

Its verdict is that of its defaults: the test or distance that it picks by itself for so many rows, at its own
threshold. It is asked itself, column by column, not imitated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from everfresh.tasks.records import ColumnDrift, Record, Share, Value

if TYPE_CHECKING:
    import pandas as pd

WHOLE = 0.5
"""Share of drifted columns from which Evidently's preset calls the data set drifted."""


class Difference(Value):
    """One column as we see it and as Evidently's defaults do."""

    column: str
    p_value: Share
    """Ours, corrected for all columns tested together."""
    drifted: bool
    """At the declared rate."""
    method: str
    """Evidently's, in its own words."""
    score: float | None
    """Its p-value, or its distance where the method is one; None where it has none."""
    threshold: float
    theirs: bool
    """Whether Evidently calls the column drifted."""
    reason: str = ""
    """Why the two differ; empty where they agree."""


class Differences(Record):
    """Both verdicts of one window, side by side."""

    rate: float
    """Declared false-alarm rate."""
    rows: tuple[int, int] = Field(description="Of the reference and of the window, as both were asked about.")
    columns: tuple[Difference, ...]
    """Those that both looked at, in our order."""
    drifted: bool
    """Ours: one of these columns is."""
    theirs: bool
    """Evidently's: at least half of these columns are."""
    words: str

    @property
    def differing(self) -> tuple[Difference, ...]:
        """Columns on which the two verdicts differ."""
        return tuple(d for d in self.columns if d.reason)


def differences(reference: pd.DataFrame, current: pd.DataFrame, columns: Sequence[ColumnDrift], rate: float) -> Differences:
    """Ask Evidently's defaults about each column that we tested too.

    Args:
        reference: (N, columns) as the readable report has them.
        current: (M, columns).
        columns: our results; those that the tables do not have are left out.
        rate: p-values up to it are drift.
    """
    shown = [c for c in columns if c.name in reference]
    asked = [_ask(reference[c.name], current[c.name]) for c in shown]
    found = tuple(
        Difference(
            column=ours.name,
            p_value=ours.p_value,
            drifted=ours.p_value <= rate,
            reason=_reason(ours, rate, theirs, len(shown), len(reference)),
            **theirs,
        )
        for ours, theirs in zip(shown, asked, strict=True)
    )
    share = sum(d.theirs for d in found) / max(1, len(found))
    return Differences(
        rate=rate,
        rows=(len(reference), len(current)),
        columns=found,
        drifted=any(d.drifted for d in found),
        theirs=bool(found) and share >= WHOLE,
        words=_summary(found),
    )


def _ask(reference: pd.Series[Any], current: pd.Series[Any]) -> dict[str, Any]:
    """Method, score, threshold and verdict of Evidently's default for one column."""
    from everfresh.tasks.drift.report import quietly

    with quietly():
        from evidently.legacy.calculations.stattests import get_stattest
        from evidently.legacy.core import ColumnType

        kind = ColumnType.Numerical if reference.dtype.kind == "f" else ColumnType.Categorical
        ours, theirs = (s.replace([float("inf"), float("-inf")], float("nan")).dropna() for s in (reference, current))
        test = get_stattest(ours, theirs, kind, None)
        result = test(ours, theirs, kind, None)
    score = float(result.drift_score)
    return {
        "method": test.display_name,
        "score": score if score == score and abs(score) != float("inf") else None,
        "threshold": float(result.actual_threshold),
        "theirs": bool(result.drifted),
    }


def _reason(ours: ColumnDrift, rate: float, theirs: dict[str, Any], count: int, rows: int) -> str:
    drifted, tested = ours.p_value <= rate, "p_value" in theirs["method"]
    if drifted == theirs["theirs"]:
        return ""
    if not tested:
        side = "below" if drifted else "above"
        chance = "far from chance all the same" if drifted else "within chance all the same"
        return (
            f"a distance with a fixed threshold, which Evidently takes for references of more than 1,000 rows (here "
            f"{rows:,}): {side} {theirs['threshold']:g}, {chance} (p = {ours.p_value:.2g})"
        )
    if not drifted and theirs["score"] is not None and theirs["score"] * count <= rate:
        return (
            f"another test of the same column: ours ({_statistic(ours)}) finds p = {ours.p_value:.2g} corrected for all columns"
        )
    if not drifted:
        return (
            f"not corrected for {count} columns: where nothing has changed {theirs['threshold'] * count:.2g} of them look "
            f"drifted on average; our rate of {rate:g} is that of all together"
        )
    missing = " and leaves missing values out" if any(ours.missing) else ""
    return (
        f"another test of the same column: Evidently's ({theirs['method']}) sees less than ours ({_statistic(ours)}){missing}"
    )


def _statistic(ours: ColumnDrift) -> str:
    return "Kolmogorov-Smirnov distance" if ours.kind == "numerical" else "total variation distance"


def _summary(found: Sequence[Difference]) -> str:
    if not found:
        return "No column was looked at by both."
    ours, theirs, apart = sum(d.drifted for d in found), sum(d.theirs for d in found), sum(bool(d.reason) for d in found)
    whole = "drifted" if theirs / len(found) >= WHOLE else "not drifted"
    return (
        f"Of {len(found)} columns we find {ours} drifted and Evidently's defaults {theirs} (they call a data set drifted "
        f"when half of its columns are: {whole}); the two differ on {apart}."
    )
