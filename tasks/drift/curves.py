"""The parts of a drift page that show numbers: loss of accuracy over the windows, and the shares of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from everfresh.tasks.charts import BLUE, GREY, INK, RED, figure, plain
from everfresh.tasks.pages import short
from everfresh.tasks.records import ClassShift, DriftPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT = 236
CLASSES = 10
"""Classes shown; of more, those that changed most."""
_AMBER = "#B87700"


def timeline(points: Sequence[DriftPoint], since: int | None, width: int) -> Figure:
    """Estimated loss of accuracy, window by window, with its interval; measured where labels have come.

    Args:
        points: oldest first, this window last.
        since: first window of the run of exceeding windows that the last one ends; shaded.
        width: px.
    """
    drawn = figure(HEIGHT, width)
    left, right, top, low = 46, 14, 58, 34
    axes = drawn.add_axes((left / width, low / HEIGHT, (width - left - right) / width, (HEIGHT - top - low) / HEIGHT))
    _heading(drawn, "Accuracy lost since the champion was proven, in points")
    x = np.array([p.seq for p in points], dtype=float)
    proven = np.array([p.reference_accuracy for p in points])
    loss = np.array([p.estimated_loss for p in points]) * 100
    # the interval of the loss is that of the accuracy, turned over
    worst = (proven - np.array([p.estimated_accuracy.low for p in points])) * 100
    least = (proven - np.array([p.estimated_accuracy.high for p in points])) * 100
    measured = (proven - np.array([np.nan if p.measured_accuracy is None else p.measured_accuracy for p in points])) * 100
    axes.axhline(0, color="#999999", linewidth=1, zorder=1)
    if since is not None and len(points):
        axes.axvspan(since - 0.5, x[-1] + 0.5, color="#FBEADD", linewidth=0, zorder=0)
        corner = (x[-1] + 0.45, 0.985)
        axes.annotate(
            f"since window {since}", corner, xycoords=("data", "axes fraction"), size=8.5, color="#8A3A00", va="top", ha="right"
        )
    _releases(axes, points)
    if len(points) > 1:
        axes.fill_between(x, least, worst, color=RED, alpha=0.16, linewidth=0, zorder=2)
    axes.plot(x, loss, color=RED, linewidth=2.2, zorder=4)
    for place, p in enumerate(points):
        axes.plot([x[place]] * 2, [least[place], worst[place]], color=RED, alpha=0.35, linewidth=1.2, zorder=3)
        size, face = (9, RED) if p is points[-1] else (5, RED if p.exceeds else "white")
        axes.plot([x[place]], [loss[place]], "o", color=RED, markersize=size, markerfacecolor=face, zorder=5)
    axes.plot(x, measured, "D", color=INK, markersize=5, zorder=6)
    _scale(axes, points, np.concatenate([loss, worst, least, measured]))
    _alarms(axes, points)
    _legend(drawn, width, measured=bool(np.isfinite(measured).any()), alarms=any(p.alarm for p in points))
    return drawn


def _scale(axes: Axes, points: Sequence[DriftPoint], values: np.ndarray) -> None:
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    low, high = min(low, -2.0), max(high, 10.0)
    axes.set_ylim(low - 0.06 * (high - low), high + 0.45 * (high - low))
    first, last = (points[0].seq, points[-1].seq) if points else (1, 1)
    axes.set_xlim(min(first, last - 4) - 0.5, last + 0.5)
    step = max(1, -(-(last - first + 1) // 14))
    ticks = list(range(last, first - 1, -step))
    axes.set_xticks(ticks, [f"window {t}" if t == last and step < 3 and len(ticks) < 9 else str(t) for t in ticks], size=8.5)
    axes.locator_params(axis="y", nbins=5, integer=True)
    axes.yaxis.grid(color="#EEEEEE", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=8.5, colors="#444444")
    axes.spines[:].set_visible(False)


def _alarms(axes: Axes, points: Sequence[DriftPoint]) -> None:
    rang = [p.seq for p in points if p.alarm]
    low, high = axes.get_ylim()
    axes.scatter(rang, [high - 0.17 * (high - low)] * len(rang), marker="^", s=70, color=_AMBER, zorder=6, linewidths=0)


def _releases(axes: Axes, points: Sequence[DriftPoint]) -> None:
    """A line where a new champion took over: what is lost is counted anew from there."""
    for before, after in pairwise(points):
        if before.release != after.release:
            axes.axvline((before.seq + after.seq) / 2, color=BLUE, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
            axes.annotate(
                "new champion",
                ((before.seq + after.seq) / 2, 0.985),
                xycoords=("data", "axes fraction"),
                xytext=(3, 0),
                textcoords="offset points",
                size=8,
                color=BLUE,
                va="top",
            )


def _legend(drawn: Figure, width: int, *, measured: bool, alarms: bool) -> None:
    entries = [("● estimated, with its range", RED, True), ("◆ measured on labels", INK, measured), ("▲ alarm", _AMBER, alarms)]
    x = 10.0
    for text, colour, there in entries:
        if there:
            drawn.text(x / width, 1 - 36 / HEIGHT, text, size=8.5, color=colour, va="center")
            x += 7.0 * len(text) + 14


def class_shares(classes: Sequence[ClassShift], width: int) -> Figure:
    """Share of each class in the reference and, with its interval, in this window.

    Args:
        classes: most changed first.
        width: px.
    """
    drawn = figure(HEIGHT, width)
    shown = classes[:CLASSES]
    left, right, top, low = 92, 14, 58, 24
    axes = drawn.add_axes((left / width, low / HEIGHT, (width - left - right) / width, (HEIGHT - top - low) / HEIGHT))
    _heading(drawn, "Class shares, estimated, %")
    drawn.text(10 / width, 1 - 36 / HEIGHT, "■ reference", size=8.5, color=BLUE, va="center")
    drawn.text(100 / width, 1 - 36 / HEIGHT, "● this window, 95 %", size=8.5, color=RED, va="center")
    y = np.arange(len(shown))
    axes.barh(y, [c.reference * 100 for c in shown], 0.62, color=BLUE, alpha=0.55)
    for place, c in enumerate(shown):
        moved = not c.estimated.low <= c.reference <= c.estimated.high
        ink = RED if moved else GREY
        axes.plot([c.estimated.low * 100, c.estimated.high * 100], [place, place], color=ink, linewidth=2)
        axes.plot([c.estimated.value * 100], [place], "o", color=ink, markersize=6)
    axes.set_yticks(y, [plain(short(c.name, 12) or "(none)", 12) for c in shown])
    for label, c in zip(axes.get_yticklabels(), shown, strict=True):
        label.set_fontweight("normal" if c.estimated.low <= c.reference <= c.estimated.high else "bold")
    axes.set_ylim(max(len(shown), 3) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.locator_params(axis="x", nbins=5, integer=True)
    axes.tick_params(length=0, labelsize=8.5, colors="#333333")
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.spines["left"].set_color("#BBBBBB")
    return drawn


def _heading(drawn: Figure, text: str) -> None:
    height, width = drawn.get_figheight() * drawn.dpi, drawn.get_figwidth() * drawn.dpi
    drawn.text(10 / width, 1 - 14 / height, text, size=10.5, weight="bold", color=INK, va="center")
