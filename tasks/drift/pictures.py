"""Pictures of a drift report: which columns moved and how, and what the strangest new samples look like."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from everfresh.tasks.charts import BLUE, GREY, INK, RED, WIDTH, figure, plain, save
from everfresh.tasks.errors import DataError
from everfresh.tasks.records import ColumnDrift

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL import Image

PANELS = 6
BARS = 8
THUMBNAILS = 12
MAX_BYTES = 190_000
CLEAR = 0.05


def columns_picture(
    columns: Sequence[ColumnDrift], values: Mapping[str, tuple[NDArray[Any], NDArray[Any]]], path: Path
) -> Path:
    """How the (up to six) most drifted columns moved: reference and new window, one over the other.

    Each title says in words which way it moved, by how many reference standard deviations (of categories: which
    share of the samples changed sides) and the corrected p-value; what is not clear at 5 % is said to be so.

    Args:
        columns: most drifted first; those without values are left out.
        values: by column name, reference (N,) and current (M,).
        path: the PNG to write.
    """
    shown = [column for column in columns if column.name in values and all(len(v) for v in values[column.name])][:PANELS]
    across = min(3, max(len(shown), 2)) if len(shown) != 4 else 2
    down = max(1, -(-len(shown) // across))
    top, tall = 62, 235
    height = top + down * tall
    drawn = figure(height)
    drawn.text(16 / WIDTH, 1 - 18 / height, "What moved most", size=14, weight="bold", color=INK, va="center")
    if not shown:
        drawn.text(0.5, 0.4, "There is no column to compare.", size=12, color=GREY, ha="center")
        return save(drawn, path)
    counts = [len(part) for part in values[shown[0].name]]
    drawn.text(16 / WIDTH, 1 - 42 / height, f"■ reference, {counts[0]:,} samples", size=11, color=BLUE, va="center")
    drawn.text(270 / WIDTH, 1 - 42 / height, f"■ new window, {counts[1]:,} samples", size=11, color=RED, va="center")
    drawn.text(
        1 - 16 / WIDTH, 1 - 42 / height, "share of samples, %; dotted: average", size=10, color=GREY, va="center", ha="right"
    )
    wide = WIDTH / across
    for place, column in enumerate(shown):
        categorical = column.kind == "categorical"
        left = (place % across) * wide + (105 if categorical else 40)
        right = (place % across + 1) * wide - 16
        low = height - top - (place // across + 1) * tall + 30
        axes = drawn.add_axes((left / WIDTH, low / height, (right - left) / WIDTH, (tall - 88) / height))
        (_bars if categorical else _histogram)(axes, *values[column.name])
        heading = axes.annotate  # both lines start at the panel's left edge, category names included
        start = -90 if categorical else -25
        clear = column.p_value < CLEAR
        for up, text, size, weight in ((27, plain(column.name, 30), 11.5, "bold"), (10, _words(column), 10, "normal")):
            heading(
                text,
                (0, 1),
                xycoords="axes fraction",
                xytext=(start * 0.72, up),
                textcoords="offset points",
                va="center",
                size=size,
                weight=weight,
                color=INK if clear else "#6A6A6A",
            )
        axes.tick_params(length=0, labelsize=9, colors="#555555")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color("#BBBBBB")
    return save(drawn, path)


def _words(column: ColumnDrift) -> str:
    p = "p < 0.001" if column.p_value < 0.001 else f"p = {column.p_value:.2g}"
    if column.kind == "categorical":
        return f"{column.effect:.0%} moved elsewhere, {p}" if column.p_value < CLEAR else f"no clear change, {p}"
    size = f"{column.effect:+.1f} SD".replace("-", "−") if math.isfinite(column.effect) else "reference never varies"
    if column.p_value >= CLEAR:
        return f"no clear change ({size}), {p}"
    strength = abs(column.effect)
    if strength < 0.2:
        return f"same level, other spread ({size}), {p}"
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
    labels = [_short(str(name) or "(none)") for name in names]
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


def _short(name: str, most: int = 11) -> str:
    """Long names lose their middle: what tells them apart often stands at the end."""
    return plain(name if len(name) <= most else f"{name[: most // 2]}…{name[-(most - most // 2 - 1) :]}")


def contact_sheet(unusual: Sequence[tuple[bytes, str]], typical: Sequence[tuple[bytes, str]], path: Path) -> Path:
    """The most unusual new samples beside typical samples of the reference, up to twelve each.

    Args:
        unusual: encoded picture and caption (label, prediction, confidence; up to three short lines), strangest first.
        typical: likewise, of the reference.
        path: the PNG to write, under 200 kB.
    """
    blocks = [
        ("Most unusual new samples", RED, unusual[:THUMBNAILS]),
        ("Typical reference samples", BLUE, typical[:THUMBNAILS]),
    ]
    side, gap, across = 100, 8, 4
    top, tall = 46, side + 50
    down = max(1, -(-max(len(samples) for _, _, samples in blocks) // across))
    height = top + down * tall
    drawn = figure(height)
    sheet = drawn.add_axes((0, 0, 1, 1))
    sheet.set_xlim(0, WIDTH)
    sheet.set_ylim(height, 0)
    sheet.axis("off")
    for block, (title, colour, samples) in enumerate(blocks):
        left = 12 + block * 452
        sheet.text(left, 22, title, size=12.5, weight="bold", color=colour, va="center")
        note = "label → prediction"
        sheet.text(left + across * (side + gap) - gap, 24, note, size=8.5, color=GREY, ha="right", va="center")
        sheet.plot([left, left + across * (side + gap) - gap], [37, 37], color=colour, linewidth=2)
        if not samples:
            sheet.text(left, top + 20, "none", size=11, color=GREY)
        for place, (data, caption) in enumerate(samples):
            x, y = left + place % across * (side + gap), top + place // across * tall
            tile = _thumbnail(data, side)
            if tile is None:
                sheet.text(x + side / 2, y + side / 2, "unreadable", size=9, color=GREY, ha="center", va="center")
            else:
                wide, high = tile.size
                inset, drop = x + (side - wide) // 2, y + (side - high) // 2
                box = (inset, inset + wide, drop + high, drop)
                sheet.imshow(np.asarray(tile), extent=box, interpolation="nearest")
                sheet.plot(*_outline(*box), color="#BBBBBB", linewidth=0.8)
            lines = [cut for line in caption.splitlines() for cut in textwrap.wrap(line, 16) or [""]][:3]
            text = "\n".join(plain(line, 18) for line in lines)
            sheet.text(x + side / 2, y + side + 3, text, size=8.5, color=INK, ha="center", va="top", linespacing=1.1)
    sheet.set_xlim(0, WIDTH)
    sheet.set_ylim(height, 0)
    sheet.set_aspect("auto")
    return _shrink(save(drawn, path))


def _outline(left: float, right: float, low: float, high: float) -> tuple[list[float], list[float]]:
    return [left, right, right, left, left], [low, low, high, high, low]


def _thumbnail(data: bytes, side: int) -> Image.Image | None:
    """The picture within a square: tiny ones enlarged with their pixels kept visible, large ones reduced."""
    from PIL import Image

    from everfresh.tasks.images import decode

    try:
        picture = decode(data)
    except DataError:
        return None
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def _shrink(path: Path) -> Path:
    """Photographs make large PNGs: fewer colours until it fits."""
    from PIL import Image

    with Image.open(path) as image:
        full = image.convert("RGB")
    for colours in (256, 128, 64, 32, 16):
        if path.stat().st_size <= MAX_BYTES:
            break
        out = io.BytesIO()
        full.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG).save(
            out, "PNG", optimize=True
        )
        path.write_bytes(out.getvalue())
    return path
