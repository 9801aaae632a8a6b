"""Clauses and numbers of a drift report in plain words: how a column moved, how the share of a class changed."""

from __future__ import annotations

import math

from everfresh.tasks.pages import percent, short
from everfresh.tasks.records import ClassShift, ColumnDrift

CLEAR = 0.05
"""Corrected p from which a column counts as moved."""
MISSING = 0.05
"""Change in the share of missing values that is told."""


def made_by_model(name: str) -> bool:
    """Whether a column is a class probability, a predicted value or an embedding component, and none of the data."""
    return name.startswith(("embedding ", "P(", "prediction:"))


def column_words(column: ColumnDrift) -> str:
    """How a column of any table moved, in a clause."""
    name = quoted(column.name)
    before, now = column.missing
    if abs(missing_change(column)) >= MISSING and (column.kind == "categorical" or not abs(column.effect) >= 0.5):
        return f"{name} is missing {'more' if now > before else 'less'} often ({percent(before)} → {percent(now)})"
    if column.new_categories:
        names = ", ".join(quoted(c, 14) for c in column.new_categories[:2])
        more = f" and {len(column.new_categories) - 2} more" if len(column.new_categories) > 2 else ""
        return f"{name} has new values ({names}{more})"
    if column.kind == "categorical":
        return f"{name} is mixed differently ({percent(min(1.0, abs(column.effect)))} moved)"
    if not math.isfinite(column.effect):
        return f"{name}, which never varied, does"
    if abs(column.effect) < 0.2:
        return f"{name} varies differently"
    return f"{name} is {'higher' if column.effect > 0 else 'lower'} ({sd(column.effect)})"


def named(column: ColumnDrift) -> str:
    """A column's name as a heading."""
    name = short(column.name, 30)
    if column.name.startswith("prediction:"):
        return f"what it says: {short(column.name.removeprefix('prediction:'), 20)}"
    if column.name.startswith("P(") and column.name.endswith(")"):
        return f"how likely: {short(column.name[2:-1], 20)}"
    return name.replace("embedding ", "embedding, direction ", 1) if column.name.startswith("embedding ") else name


def missing_change(column: ColumnDrift) -> float:
    """How much more often the column is missing, −1…1."""
    return column.missing[1] - column.missing[0]


def class_words(shift: ClassShift) -> str:
    """How the share of a class changed, in a clause."""
    was, now = shift.reference, min(1.0, max(0.0, shift.estimated.value))
    name, numbers = f"class {short(shift.name)}", f"({percent(was)} → {percent(now)})"
    if now < was:
        how = "has vanished" if now < 0.005 else "has almost vanished" if now <= 0.25 * was else "is rarer"
        return f"{name} {how} {numbers}"
    if was < 0.005:
        return f"{name} has appeared {numbers}"
    if now >= 0.75:
        return f"almost all is {name} {numbers}"
    return f"{name} is {'far more' if now >= 2 * was else 'more'} frequent {numbers}"


def sd(effect: float) -> str:
    """Reference standard deviations with a sign."""
    if abs(effect) >= 100:
        return "> 100 SD" if effect > 0 else "< −100 SD"
    size = round(effect, 1) + 0.0  # no negative zero
    return f"{size:+.1f} SD".replace("-", "−")


def quoted(name: str, most: int = 24) -> str:
    """A name of others, set apart from our own words."""
    return f"“{short(name, most)}”"
