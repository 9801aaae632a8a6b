"""The parts of a drift page that show samples: how a column moved, and what the strangest new pictures look like.

Each is a figure of its own, small enough for a phone; `explain` puts them on one page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from everfresh.tasks.charts import BLUE, GREY, INK, RED, figure, plain
from everfresh.tasks.drift.phrases import CLEAR, MISSING, missing_change, named, sd
from everfresh.tasks.pages import percent, short, thumbnail
from everfresh.tasks.records import ColumnDrift

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL = (300, 176)
"""Width and height of one column's picture."""
BARS = 6


def column_panel(column: ColumnDrift, reference: NDArray[Any], current: NDArray[Any]) -> Figure:
    """How one column moved: reference and window, one over the other, a third of a page wide.

    The title says in words which way it moved, by how many reference standard deviations (of categories: which share
    of the samples changed sides) and the corrected p-value; what is not clear at 5 % is said to be so.

    Args:
        column: what was measured.
        reference: values (N,) of the reference.
        current: values (M,) of the window.
    """
    width, height = PANEL
    drawn = figure(height, width)
    categorical = column.kind == "categorical"
    left, right, low = (96 if categorical else 34), 12, 26
    axes = drawn.add_axes((left / width, low / height, (width - left - right) / width, (height - low - 46) / height))
    (_bars if categorical else _histogram)(axes, reference, current)
    ink = INK if column.p_value < CLEAR else "#5A5A5A"
    drawn.text(10 / width, 1 - 13 / height, plain(named(column), 34), size=10.5, weight="bold", color=ink, va="center")
    drawn.text(10 / width, 1 - 31 / height, moved(column), size=9, color=ink, va="center")
    axes.tick_params(length=0, labelsize=8, colors="#555555")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#BBBBBB")
    return drawn


def moved(column: ColumnDrift) -> str:
    """Which way a column moved, how far, and how sure that is."""
    p = "p < 0.001" if column.p_value < 0.001 else f"p = {column.p_value:.2g}"
    if column.p_value < CLEAR and abs(missing_change(column)) >= MISSING:
        return f"missing {percent(column.missing[0])} → {percent(column.missing[1])}, {p}"
    if column.kind == "categorical":
        return f"{percent(column.effect)} moved elsewhere, {p}" if column.p_value < CLEAR else f"no clear change, {p}"
    size = sd(column.effect) if math.isfinite(column.effect) else "reference never varies"
    if column.p_value >= CLEAR:
        return f"no clear change ({size}), {p}"
    strength = abs(column.effect)
    if strength < 0.2:
        return f"other spread ({size}), {p}"
    how = "slightly " if strength < 0.5 else "" if strength < 1.0 else "much "
    return f"{how}{'higher' if column.effect > 0 else 'lower'} ({size}), {p}"


def _histogram(axes: Axes, reference: NDArray[Any], current: NDArray[Any]) -> None:
    """Both as shares over common bins; the outermost bins hold what lies beyond the central 99 %."""
    parts = [np.asarray(part, dtype=np.float64) for part in (reference, current)]
    parts = [part[np.isfinite(part)] for part in parts]
    pooled = np.concatenate(parts)
    if not pooled.size:
        axes.set_xticks([])
        axes.set_yticks([])
        return
    low, high = (float(v) for v in np.quantile(pooled, [0.005, 0.995]))
    if high - low <= 1e-12 * max(1.0, abs(low)):
        low, high = low - 0.5, high + 0.5
    bins = np.linspace(low, high, int(np.clip(math.sqrt(min(map(len, parts))) * 1.6, 8, 24)) + 1)
    for part, colour, fill in zip(parts, (BLUE, RED), (0.35, 0.25), strict=True):
        shares = np.histogram(np.clip(part, low, high), bins)[0] / max(len(part), 1) * 100
        axes.stairs(shares, bins, fill=True, color=colour, alpha=fill)
        axes.stairs(shares, bins, color=colour, linewidth=1.6)
        if len(part):
            axes.axvline(float(np.clip(part.mean(), low, high)), color=colour, linewidth=1.4, linestyle=(0, (2, 2)))
    axes.set_xlim(low, high)
    axes.set_ylim(bottom=0)
    axes.locator_params(axis="x", nbins=5)
    axes.locator_params(axis="y", nbins=4, integer=True)


def _bars(axes: Axes, reference: NDArray[Any], current: NDArray[Any]) -> None:
    """Share of each category; of many the ones that moved most, the rest together."""
    names, codes = np.unique(np.concatenate([reference, current]).astype(str), return_inverse=True)
    ours = np.bincount(codes[: len(reference)], minlength=len(names)) / len(reference) * 100
    theirs = np.bincount(codes[len(reference) :], minlength=len(names)) / len(current) * 100
    labels = [plain(short(str(name), 12) or "(none)", 12) for name in names]
    if len(names) > BARS:
        order = np.argsort(-np.abs(theirs - ours), kind="stable")
        first, rest = np.sort(order[: BARS - 1]), order[BARS - 1 :]
        ours, theirs = (np.append(shares[first], shares[rest].sum()) for shares in (ours, theirs))
        labels = [*(labels[i] for i in first), f"{len(rest)} others"]
    y = np.arange(len(labels))
    axes.barh(y - 0.2, ours, 0.38, color=BLUE, alpha=0.75)
    axes.barh(y + 0.2, theirs, 0.38, color=RED, alpha=0.75)
    axes.set_yticks(y, labels)
    axes.invert_yaxis()
    axes.locator_params(axis="x", nbins=5, integer=True)


def samples_picture(title: str, colour: str, samples: Sequence[tuple[bytes, str]]) -> Figure:
    """Some samples with their captions, half a page wide, four in a row.

    Args:
        title: what they are.
        colour: of the title.
        samples: encoded picture and caption (label, prediction and confidence; two short lines).
    """
    side, gap, across, top, tall = 98, 10, 4, 36, 98 + 34
    width, height = 450, top + tall * max(1, -(-len(samples) // across))
    drawn = figure(height, width)
    sheet = drawn.add_axes((0, 0, 1, 1))
    sheet.axis("off")
    sheet.text(12, 13, title, size=11, weight="bold", color=colour, va="center")
    sheet.plot([12, width - 16], [27, 27], color=colour, linewidth=1.5)
    for place, (data, caption) in enumerate(samples):
        x, y = 12 + place % across * (side + gap), top + place // across * tall
        tile = thumbnail(data, side)
        if tile is None:
            sheet.text(x + side / 2, y + side / 2, "unreadable", size=9, color=GREY, ha="center", va="center")
        else:
            inset, drop = x + (side - tile.width) // 2, y + (side - tile.height) // 2
            box = (inset, inset + tile.width, drop + tile.height, drop)
            sheet.imshow(np.asarray(tile), extent=box, interpolation="nearest")
            sheet.plot(*_outline(*box), color="#BBBBBB", linewidth=0.8)
        text = "\n".join(plain(short(line, 17), 17) for line in caption.splitlines()[:2])
        sheet.text(x + side / 2, y + side + 3, text, size=8, color=INK, ha="center", va="top", linespacing=1.05)
    sheet.set_xlim(0, width)
    sheet.set_ylim(height, 0)
    sheet.set_aspect("auto")
    return drawn


def _outline(left: float, right: float, low: float, high: float) -> tuple[list[float], list[float]]:
    return [left, right, right, left, left], [low, low, high, high, low]
