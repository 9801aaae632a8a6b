"""The drawings of an evaluation page: accuracy by slice, and confidence against truth. Each is a figure of its own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from everfresh.tasks.charts import BLUE, GREY, INK, RED, WIDTH, figure, plain
from everfresh.tasks.evaluation_page.numbers import Calibration, SliceRow
from everfresh.tasks.evaluation_page.words import points
from everfresh.tasks.pages import percent, short
from everfresh.tasks.records import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROWS, VALUES = 36, 10
"""Slices drawn in all, and of one column."""
_LEFT, _RIGHT, _ROW = 232, 284, 25


def shown_slices(rows: Sequence[SliceRow]) -> list[list[SliceRow]]:
    """The slices to draw, by column: of many values the flagged ones and those that may be worst."""
    found: list[list[SliceRow]] = []
    for _, part in groupby(rows, key=lambda row: row.column):
        every = list(part)
        first = sorted(every, key=lambda row: (not row.flagged, row.challenger.high))[:VALUES]
        kept = [row for row in every if row in first]
        if sum(map(len, found)) + len(kept) <= ROWS:
            found.append(kept)
    return found


def slices_picture(groups: Sequence[Sequence[SliceRow]], overall: float, left_out: int) -> Figure:
    """Accuracy in each slice with its 95 % interval, both models; worst first, red where worse beyond chance.

    Args:
        groups: slices by column, see :func:`shown_slices`.
        overall: the challenger's accuracy on all samples, 0…1: the line to compare with.
        left_out: slices that are not drawn.
    """
    lines = sum(map(len, groups)) + len(groups)
    top, low = 34, 44
    height = top + low + _ROW * lines
    drawn = figure(height)
    axes = drawn.add_axes((_LEFT / WIDTH, low / height, (WIDTH - _LEFT - _RIGHT) / WIDTH, (height - top - low) / height))
    y = 0
    for group in groups:
        axes.text(
            -0.58, y, plain(short(group[0].column, 40), 40), size=10.5, weight="bold", color=INK, va="center", clip_on=False
        )
        axes.axhline(y - 0.55, color="#DDDDDD", linewidth=0.8)
        for row in group:
            y += 1
            _slice(axes, row, y)
        y += 1
    axes.axvline(overall, color=INK, linewidth=1, linestyle=(0, (3, 3)), zorder=1)
    axes.text(overall, -1.15, f"all: {percent(overall)}", size=9, color=INK, ha="center", va="center", clip_on=False)
    axes.text(-0.03, -1.15, "samples", size=9, color="#555555", ha="right", va="center", clip_on=False)
    axes.set_xlim(0, 1)
    axes.set_ylim(lines - 0.4, -0.7)
    axes.set_yticks([])
    ticks = np.linspace(0, 1, 6)
    axes.set_xticks(ticks, [f"{tick:.0%}" for tick in ticks], size=9)
    axes.xaxis.grid(color="#EEEEEE")
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    more = f"; {left_out} more slices are not drawn" if left_out else ""
    note = f"right answers, with 95 % intervals{more}"
    drawn.text(_LEFT / WIDTH, 12 / height, note, size=9, color="#555555", va="center")
    _legend(drawn, height, champion=any(row.champion for group in groups for row in group))
    return drawn


def _slice(axes: Axes, row: SliceRow, y: int) -> None:
    colour = RED if row.flagged else BLUE
    if row.flagged:
        axes.axhspan(y - 0.5, y + 0.5, xmin=-0.59, xmax=1.725, color="#FBE9DF", linewidth=0, zorder=0, clip_on=False)
    weight = "bold" if row.flagged else "normal"
    name = plain(short(row.value, 26) or "(none)", 26)
    axes.text(-0.555, y, name, size=9.5, color=INK, va="center", weight=weight, clip_on=False)
    axes.text(-0.03, y, f"{row.samples:,}", size=9, color="#555555", ha="right", va="center", clip_on=False)
    if row.champion is not None:
        _interval(axes, row.champion, y - 0.2, GREY, marker="s", size=4)
    _interval(axes, row.challenger, y + 0.14 * (row.champion is not None), colour, marker="o", size=7)
    before = "" if row.champion is None else f"{percent(row.champion.value)} → "
    text = f"{before}{percent(row.challenger.value)}"
    if row.flagged:
        text += f"   {points(row.gap)} to others"
    axes.text(1.03, y, text, size=9.5, color="#B23A00" if row.flagged else INK, weight=weight, va="center", clip_on=False)


def _interval(axes: Axes, at: Interval, y: float, colour: str, *, marker: str, size: int) -> None:
    axes.plot([at.low, at.high], [y, y], color=colour, linewidth=2.2 if size > 4 else 1.5, solid_capstyle="butt", zorder=3)
    axes.plot([at.value], [y], marker=marker, markersize=size, color=colour, linewidth=0, zorder=4, clip_on=False)


def _legend(drawn: Figure, height: int, *, champion: bool) -> None:
    marks = [(500, "● challenger", BLUE), (610, "● worse beyond chance", "#B23A00")] + (
        [(790, "■ champion", "#6A6A6A")] * champion
    )
    for x, text, colour in marks:
        drawn.text(x / WIDTH, 12 / height, text, size=9, color=colour, va="center")


def reliability_picture(models: Sequence[tuple[str, Calibration]]) -> Figure:
    """How often each model is right when it is so sure; on the diagonal it knows what it does not know.

    Args:
        models: name and calibration, side by side.
    """
    side, height = WIDTH // 2, 300
    drawn = figure(height, side * len(models))
    width = side * len(models)
    for place, (name, found) in enumerate(models):
        axes = drawn.add_axes(((place * side + 58) / width, 46 / height, (side - 80) / width, (height - 84) / height))
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (3, 3)))
        low = [max(0.0, a.value - a.low) for a in found.accuracy]
        high = [max(0.0, a.high - a.value) for a in found.accuracy]
        colour = BLUE if name != "champion now" else "#6A6A6A"
        values = [a.value for a in found.accuracy]
        axes.errorbar(
            found.confidence, values, yerr=[low, high], fmt="o-", color=colour, linewidth=1.6, markersize=5, capsize=2
        )
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.set_title(f"{name}: ECE {found.error:.3f}", size=11.5, weight="bold", color=INK)
        axes.set_xlabel("how sure it is (each point stands for as many samples)", size=9.5)
        axes.set_ylabel("how often it is right", size=9.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
    return drawn
