"""The drift page as one picture: its parts under one another, as on a sheet of paper."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from everfresh.tasks.charts import BLUE, INK, RED, WIDTH, figure, plain
from everfresh.tasks.drift.pictures import samples_picture
from everfresh.tasks.pages import BADGES, Panel, raster

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

MAX_BYTES = 390_000


@dataclass(frozen=True)
class Page:
    """All that stands on the page."""

    title: str
    badge: tuple[str, str]
    """Verdict, and its colour: a key of BADGES."""
    sentence: str
    facts: list[tuple[str, str]]
    """Name and value."""
    timeline: Panel | None
    classes: Panel | None
    columns_title: str
    columns: list[Panel]
    counts: tuple[int, int]
    """Samples of the reference and of the window."""
    unusual: tuple[tuple[bytes, str], ...]
    """Encoded picture and caption."""
    typical: tuple[tuple[bytes, str], ...]
    slices: list[tuple[str, str, str, str]]
    """Name, samples, accuracy before → now, points lost."""
    notes: list[str]


def write_poster(page: Page, path: Path) -> Path:
    """Draw the page into a PNG under 400 kB; equal pages give equal bytes."""
    rows = [[_head(page)]]
    if numbers := [panel.figure for panel in (page.timeline, page.classes) if panel]:
        rows.append(numbers)
    if page.columns:
        rows.append([_strip(page.columns_title, page.counts)])
        columns = [panel.figure for panel in page.columns]
        rows += [columns[start : start + 3] for start in range(0, len(columns), 3)]
    if page.unusual or page.typical:
        rows.append(
            [
                samples_picture("Most unusual in this window", RED, page.unusual),
                samples_picture("Typical of the reference", BLUE, page.typical),
            ]
        )
    rows.append([_foot(page)])
    return _save(_stack([[raster(part, 1) for part in row] for row in rows]), path)


def _head(page: Page) -> Figure:
    verdict, colour = page.badge
    lines = _balanced(page.sentence, 70)
    height = 84 + 26 * len(lines)
    drawn = figure(height)
    drawn.text(14 / WIDTH, 1 - 18 / height, plain(page.title, 110), size=9, color="#555555", va="center")
    box = {"boxstyle": "round,pad=0.35", "facecolor": BADGES[colour], "edgecolor": "none"}
    drawn.text(
        1 - 18 / WIDTH, 1 - 18 / height, verdict, size=10.5, weight="bold", color="white", ha="right", va="center", bbox=box
    )
    for place, line in enumerate(lines):
        drawn.text(14 / WIDTH, 1 - (50 + 26 * place) / height, plain(line, 300), size=14, weight="bold", color=INK, va="center")
    wide = (WIDTH - 28) / max(len(page.facts), 1)
    for place, (name, value) in enumerate(page.facts):
        left = (14 + place * wide) / WIDTH
        drawn.text(left, 33 / height, plain(value, 40), size=11.5, weight="bold", color=INK, va="center")
        drawn.text(left, 14 / height, plain(name, 48), size=8, color="#555555", va="center")
    return drawn


def _balanced(text: str, letters: int) -> list[str]:
    """As few lines of so many letters as do, none much shorter than the others."""
    lines = textwrap.wrap(text, letters) or [""]
    even = textwrap.wrap(text, min(letters, len(text) // len(lines) + 8))
    return even if len(even) == len(lines) else lines


def _strip(title: str, counts: tuple[int, int]) -> Figure:
    height = 26
    drawn = figure(height)
    drawn.text(10 / WIDTH, 0.5, title, size=10.5, weight="bold", color=INK, va="center")
    for left, text, colour in ((330, f"■ reference, {counts[0]:,}", BLUE), (490, f"■ this window, {counts[1]:,}", RED)):
        drawn.text(left / WIDTH, 0.5, text, size=8.5, color=colour, va="center")
    drawn.text(1 - 12 / WIDTH, 0.5, "% of samples; dotted: average", size=8.5, color="#555555", va="center", ha="right")
    return drawn


def _foot(page: Page) -> Figure:
    """Slices at the left, small print at the right, or all across where there are no slices."""
    left, letters = (430, 78) if page.slices else (14, 150)
    notes = [line for note in page.notes for line in textwrap.wrap(note, letters)]
    height = 40 + max(17 * len(notes), 21 * (len(page.slices) + 1) if page.slices else 0)
    drawn = figure(height)
    if page.slices:
        drawn.text(
            14 / WIDTH, 1 - 14 / height, "Where it costs most, estimated", size=10.5, weight="bold", color=INK, va="center"
        )
        rows: Sequence[Sequence[str]] = [("", "samples", "accuracy", "points"), *page.slices]
        for place, row in enumerate(rows):
            y = 1 - (36 + 21 * place) / height
            ink = INK if place else "#555555"
            drawn.text(14 / WIDTH, y, plain(row[0], 36), size=8.5, color=ink, va="center")
            for right, cell in zip((240, 345, 400), row[1:], strict=True):
                drawn.text(right / WIDTH, y, cell, size=8.5, color=ink, va="center", ha="right")
    for place, line in enumerate(notes):
        drawn.text(left / WIDTH, 1 - (18 + 17 * place) / height, plain(line, 300), size=8, color="#555555", va="center")
    return drawn


def _stack(rows: list[list[Image.Image]]) -> Image.Image:
    """Rows under one another, the parts of a row side by side."""
    from PIL import Image

    heights = [max(part.height for part in row) for row in rows]
    whole = Image.new("RGB", (WIDTH, sum(heights)), "white")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for part in row:
            whole.paste(part, (left, top))
            left += part.width
        top += height
    return whole


def _save(image: Image.Image, path: Path) -> Path:
    """Photographs make large PNGs: fewer colours until it fits."""
    from PIL import Image

    for colours in (256, 128, 64, 32, 16):
        packed = image.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG)
        packed.save(path, "PNG", optimize=True)
        if path.stat().st_size <= MAX_BYTES:
            break
    return path
