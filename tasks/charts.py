"""Pictures of how models do: confusions, classes, values and the timeline. Read at 900 px, told apart by colour-blind eyes.

Drawn on figures of their own, never through pyplot's global state, so that threads may draw at the same time.
Colours are Okabe and Ito's (jfly.uni-koeln.de/color).
"""

from __future__ import annotations

import base64
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from everfresh.tasks.targets import Targets

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, GREY, INK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8A8A8A", "#222222"
WIDTH = 900
MOST_BARS = 40
DPI = 100
_BANDS = ("#F3F3F3", "#FBF0DC", "#E3F0F8", "#E3F3EC", "#F8E9F1", "#FBFBE0")


@dataclass(frozen=True)
class TimelinePoint:
    """One window of the timeline."""

    window: int
    name: str
    """Short, under the axis: ``clean``, ``aged 1``."""
    phase: str
    """Windows of one phase that follow each other share a background."""
    frozen: float
    """True accuracy of the version that nobody keeps fresh, 0…1; NaN where unknown."""
    champion: float
    """True accuracy of the champion after this window's tick, 0…1; NaN where unknown."""
    alarm: bool
    release: str | None
    """What people call the version that this window made champion: ``v3``."""
    rejected: bool
    """A challenger was made and the gates refused it."""


def figure(height: int, width: int = WIDTH) -> Figure:
    """An empty figure of that many pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(drawn)
    return drawn


def save(drawn: Figure, path: Path) -> Path:
    """Write a figure as PNG; equal figures give equal bytes. Letters that the font lacks show as boxes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        drawn.savefig(path, format="png", metadata={"Software": None})
    return path


def plain(text: str, most: int = 40) -> str:
    """Text of others as it stands: dollars start no formula, and what is long is cut."""
    return (text if len(text) <= most else text[: most - 1] + "…").replace("$", r"\$")


def data_uri(path: Path) -> str:
    """A PNG as a URI that pages and artifacts show without fetching anything."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def confusion_picture(
    champion: tuple[tuple[int, ...], ...] | None,
    challenger: tuple[tuple[int, ...], ...],
    classes: Sequence[str],
    path: Path,
) -> Path:
    """What each model takes for what, side by side, in counts; right answers blue, wrong ones orange.

    Args:
        champion: rows are true classes, columns predicted ones; None for a first model, which stands alone.
        challenger: likewise, on the same samples.
        classes: names, in that order.
        path: the PNG to write.
    """
    shown = [("champion now", champion), ("challenger", challenger)] if champion is not None else [("first model", challenger)]
    names = [plain(name, 14) for name in classes]
    longest = max(map(len, names), default=1)
    width = WIDTH if champion is not None else WIDTH * 6 // 10
    left, right, top, bottom = 50 + 7 * longest, 14, 64, 54 + (6 * longest if len(names) > 4 else 16)
    side = (width - left - right - (len(shown) - 1) * 40) // len(shown)
    height = min(side, max(180, 95 * len(classes))) + top + bottom  # of few classes the cells are wide, not tall
    drawn = figure(height, width)
    for place, (title, counts) in enumerate(shown):
        x = left + place * (side + 40)
        axes = drawn.add_axes((x / width, bottom / height, side / width, (height - top - bottom) / height))
        matrix = np.array(counts, dtype=np.int64).reshape(len(classes), len(classes))
        _confusion(axes, matrix, names, title, labelled=place == 0)
    return save(drawn, path)


def _confusion(axes: Axes, counts: np.ndarray, names: list[str], title: str, *, labelled: bool) -> None:
    from matplotlib.colors import to_rgb

    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)  # (C, C)
    right = np.eye(len(counts), dtype=bool)
    colour = np.where(right[..., None], to_rgb(BLUE), to_rgb(ORANGE))
    strength = np.where(right, shares, np.minimum(1.0, shares * 2))[..., None] ** 0.7
    axes.imshow(1 - strength * (1 - colour), aspect="auto")
    size = float(np.clip(120 / max(len(counts), 1), 6, 15))
    if len(counts) <= 20:
        for row, column in np.argwhere(counts > 0):
            dark = right[row, column] and shares[row, column] > 0.45
            axes.text(
                column, row, f"{counts[row, column]}", ha="center", va="center", size=size, color="white" if dark else INK
            )
    total, hits = int(counts.sum()), int(counts[right].sum())
    axes.set_title(
        f"{title}: {hits / max(total, 1):.0%} right ({hits} of {total})", size=12.5, color=INK, pad=10, weight="bold"
    )
    step = max(1, -(-len(names) // 40))
    ticks = range(0, len(names), step)
    letters = 10 if len(names) <= 20 else 7
    turned: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if len(names) > 4 else {}
    axes.set_xticks(ticks, [names[i] for i in ticks], size=letters, **turned)
    axes.set_yticks(ticks, [names[i] for i in ticks] if labelled else [], size=letters)
    axes.set_xlabel("the model says", size=11)
    if labelled:
        axes.set_ylabel("the label says", size=11)
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(1, len(names)) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, len(names)) - 0.5, minor=True)
    axes.grid(which="minor", color="#DDDDDD", linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_color("#BBBBBB")


def classes_picture(
    champion: Mapping[str, Mapping[str, float]] | None, challenger: Mapping[str, Mapping[str, float]], path: Path
) -> Path:
    """F1 of each class of a set, of both models on the same samples.

    Args:
        champion: scores by class; None for a first model, which stands alone.
        challenger: likewise; of many classes the `MOST_BARS` with the most samples are shown.
        path: the PNG to write.
    """
    shown = sorted(challenger, key=lambda name: -challenger[name]["samples"])[:MOST_BARS]
    names = [f"{plain(name, 20)} ({challenger[name]['samples']:.0f})" for name in shown]
    left, top, low = 60 + 7 * max(map(len, names), default=1), 60, 46
    height = top + low + 34 * max(1, len(shown))
    drawn = figure(height)
    axes = drawn.add_axes((left / WIDTH, low / height, (WIDTH - left - 24) / WIDTH, (height - top - low) / height))
    y, sides = np.arange(len(shown)), [("challenger" if champion is not None else "first model", challenger, BLUE)]
    sides = [("champion now", champion, GREY), *sides] if champion is not None else sides
    for place, (title, scores, colour) in enumerate(sides):
        at = y + (place - (len(sides) - 1) / 2) * 0.38
        axes.barh(at, [scores[n]["f1"] * 100 if n in scores else 0 for n in shown], 0.36, color=colour, label=title)
    axes.set_yticks(y, names, size=10)
    axes.set_ylim(max(len(shown), 1) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel("F1, %; in brackets the samples that have the class", size=10)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, frameon=False, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    return save(drawn, path)


def values_picture(
    champion: NDArray[Any] | None, challenger: NDArray[Any], truth: NDArray[Any], targets: Targets, path: Path
) -> Path:
    """What each model says against what the label says, side by side, a row a target; right answers lie in the band.

    Args:
        champion: predictions (N, T); None for a first model, which stands alone.
        challenger: likewise, on the same samples.
        truth: values of the labels (N, T).
        targets: their names, and how far off a right answer may be.
        path: the PNG to write.
    """
    shown = [("champion now", champion), ("challenger", challenger)] if champion is not None else [("first model", challenger)]
    side, count = WIDTH // 2, len(targets.names)
    width, height = side * len(shown), side * count
    drawn = figure(height, width)
    for row, name in enumerate(targets.names):
        true = truth[:, row].astype(float)
        each = [np.asarray(said, dtype=float)[:, row] for _, said in shown if said is not None]
        pooled = np.concatenate([true, *each, np.zeros(0 if len(true) else 1)])
        low, high = float(pooled.min()), float(pooled.max())
        edge = max((high - low) * 0.05, targets.tolerance)
        ends = np.array([low - edge, high + edge])
        for place, said in enumerate(each):
            box = (
                (place * side + 70) / width,
                1 - ((row + 1) * side - 60) / height,
                (side - 90) / width,
                (side - 110) / height,
            )
            axes = drawn.add_axes(box)
            axes.fill_between(ends, ends - targets.tolerance, ends + targets.tolerance, color=BLUE, alpha=0.15, linewidth=0)
            near = np.abs(said - true) <= targets.tolerance
            axes.scatter(true, said, s=14, c=np.where(near, BLUE, ORANGE), linewidths=0)
            axes.set_xlim(*ends)
            axes.set_ylim(*ends)
            share = f"{near.mean():.0%} within {targets.tolerance:g}" if len(true) else "no sample"
            axes.set_title(f"{shown[place][0]}: {plain(name, 16)}, {share}", size=11.5, weight="bold", color=INK)
            axes.set_xlabel("the label says", size=10)
            axes.set_ylabel("the model says", size=10)
            axes.spines[["top", "right"]].set_visible(False)
    return save(drawn, path)


def timeline_picture(rows: Sequence[TimelinePoint], path: Path, title: str) -> Path:
    """The model left alone against the champion kept fresh, window by window, and what happened at each.

    Args:
        rows: oldest first.
        path: the PNG to write.
        title: one line, what it shows.
    """
    drawn = figure(520)
    axes = drawn.add_axes((0.08, 0.34, 0.755, 0.51))
    events = drawn.add_axes((0.08, 0.165, 0.755, 0.155), sharex=axes)
    drawn.text(0.02, 0.955, plain(title, 100), size=14, weight="bold", color=INK, va="center")
    x = np.arange(len(rows), dtype=float)
    champion = np.array([row.champion for row in rows], dtype=float) * 100
    frozen = np.array([row.frozen for row in rows], dtype=float) * 100
    axes.set_xlim(-0.5, max(len(rows), 1) - 0.5)
    axes.plot(x, frozen, color=GREY, linewidth=2, linestyle=(0, (5, 2.5)), marker="o", markersize=4, zorder=3)
    axes.plot(x, champion, color=BLUE, linewidth=3, marker="o", markersize=5, zorder=4)
    _scale(axes, np.concatenate([champion, frozen]))
    _bands(axes, events, rows)
    _name_lines(axes, champion, frozen)
    _ticks(events, rows)
    _events(axes, events, rows, champion)
    return save(drawn, path)


def _scale(axes: Axes, values: np.ndarray) -> None:
    known = values[np.isfinite(values)]
    low = float(known.min()) if known.size else 0.0
    axes.set_ylim(max(-4.0, min(75.0, 10 * np.floor(low / 10) - 5)), 109)
    axes.set_yticks([tick for tick in range(0, 101, 10 if low > 30 else 20) if tick >= axes.get_ylim()[0]])
    axes.set_ylabel("right answers, %", size=11)
    axes.yaxis.grid(color="white", linewidth=1.2)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.tick_params(length=0, labelsize=10, labelbottom=False)


def _bands(axes: Axes, events: Axes, rows: Sequence[TimelinePoint]) -> None:
    """Background and name of each run of windows in one phase; one phase keeps its colour."""
    colours: dict[str, str] = {}
    start = 0
    for phase, run in groupby(row.phase for row in rows):
        length = len(list(run))
        colour = colours.setdefault(phase, _BANDS[len(colours) % len(_BANDS)])
        for each in (axes, events):
            each.axvspan(start - 0.5, start + length - 0.5, color=colour, linewidth=0, zorder=0)
            if start:
                each.axvline(start - 0.5, color="white", linewidth=2, zorder=1)
        axes.annotate(
            _wrapped(phase, int(length / len(rows) * 680 / 7.3)),
            (start + (length - 1) / 2, 1.02),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="bottom",
            size=9.5,
            color="#555555",
            linespacing=1.05,
        )
        start += length


def _wrapped(text: str, letters: int) -> str:
    """At most two lines of so many letters; nothing where too few would fit."""
    import textwrap

    if letters < 4:
        return ""
    return plain("\n".join(textwrap.wrap(text, letters, max_lines=2, placeholder="…")), 200)


def _name_lines(axes: Axes, champion: np.ndarray, frozen: np.ndarray) -> None:
    """Names and last values at the right end of the lines, kept apart."""
    ends: list[tuple[float, str, str, str]] = []
    for values, name, colour, weight in ((champion, "kept fresh", BLUE, "bold"), (frozen, "left alone", "#6A6A6A", "normal")):
        known = np.flatnonzero(np.isfinite(values))
        if known.size:
            ends.append((float(values[known[-1]]), f"{name}\n{values[known[-1]]:.0f} %", colour, weight))
    low, high = axes.get_ylim()
    apart = (high - low) * 0.17
    heights = [end[0] for end in ends]
    if len(heights) == 2 and abs(heights[0] - heights[1]) < apart:
        middle, sign = sum(heights) / 2, 1 if heights[0] >= heights[1] else -1
        middle = float(np.clip(middle, low + apart, high - apart))
        heights = [middle + sign * apart / 2, middle - sign * apart / 2]
    for height, (_, text, colour, weight) in zip(heights, ends, strict=True):
        axes.annotate(
            text,
            (1.015, height),
            xycoords=("axes fraction", "data"),
            va="center",
            size=11.5,
            color=colour,
            weight=weight,
            linespacing=1.1,
        )


def _ticks(axes: Axes, rows: Sequence[TimelinePoint]) -> None:
    room = 680 / max(len(rows), 1)  # px a window
    turned = max((len(row.name) for row in rows), default=0) * 8 > room
    every = max(1, int(np.ceil(26 / room)))
    texts = [f"{row.window} {row.name}" if turned else f"{row.window}\n{row.name}" for row in rows]
    style: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if turned else {}
    axes.set_xticks(range(0, len(rows), every), [plain(text, 16) for text in texts[::every]], size=9.5, **style)


def _events(axes: Axes, events: Axes, rows: Sequence[TimelinePoint], champion: np.ndarray) -> None:
    """Below: what happened at each window. A release also stands on the line that it lifts, by its name."""
    kinds = (
        ("▲ drift alarm", [i for i, row in enumerate(rows) if row.alarm], "^", "#B87700", 90),
        ("★ new version", [i for i, row in enumerate(rows) if row.release], "*", GREEN, 170),
        ("✖ refused", [i for i, row in enumerate(rows) if row.rejected], "X", RED, 80),
    )
    for height, (name, where, marker, colour, size) in zip((2, 1, 0), kinds, strict=True):
        events.scatter(where, [height] * len(where), marker=marker, s=size, color=colour, zorder=4, linewidths=0)
        shade = colour if where else GREY
        events.annotate(name, (1.015, height), xycoords=("axes fraction", "data"), va="center", size=10.5, color=shade)
    for i, row in enumerate(rows):
        if row.release and np.isfinite(champion[i]):
            axes.scatter([i], [champion[i]], marker="*", s=260, color=GREEN, edgecolors="white", zorder=6)
            axes.annotate(
                plain(row.release, 8),
                (i, champion[i]),
                xytext=(0, 15),
                textcoords="offset points",
                ha="center",
                va="center",
                size=10.5,
                weight="bold",
                color="#00684B",
                zorder=7,
            )
    events.set_ylim(-0.7, 2.7)
    events.set_yticks([])
    events.tick_params(length=0)
    events.spines[:].set_visible(False)
