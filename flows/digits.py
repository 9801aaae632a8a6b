"""The stream behind ``make run``: scikit-learn's handwritten digits, seen through a scanner that ages.

1,797 real digits of 8 × 8 pixels (UCI optdigits' test set). 400 are kept apart, never ingested, and tell the truth.
The rest arrive as PNG files in order of time: clean windows, then ageing step by step (contrast, blur, slant), then
one window with shuffled labels, then the aged scanner with right labels again.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TRUTH = 400
"""Digits that are kept apart to score with."""
SIDE = 32
"""Pixels of the files."""


@dataclass(frozen=True)
class Scanner:
    """What the scanner does to a digit on the grid of 8 × 8."""

    contrast: float = 1.0
    """Share of the ink's darkness that is left."""
    blur: float = 0.0
    """Standard deviation of the Gaussian, in cells of the grid."""
    slant: float = 0.0
    """Shear of the page, degrees."""


@dataclass(frozen=True)
class Arrival:
    """One window of the stream."""

    number: int
    name: str
    phase: str
    """``clean``, ``ageing``, ``wrong labels`` or ``aged``."""
    samples: int
    scanner: Scanner
    shuffled: bool = False


def _schedule() -> tuple[Arrival, ...]:
    steps = 5
    ageing = [
        Scanner(round(float(c), 2), round(float(b), 2), round(float(s), 1))
        for c, b, s in zip(np.linspace(0.8, 0.3, steps), np.linspace(0.3, 1.2, steps), np.linspace(5, 25, steps), strict=True)
    ]
    plan = [("clean", "clean", 400, Scanner(), False)]
    plan += [("clean", "clean", 90, Scanner(), False)] * 3
    plan += [(f"aged {i}", "ageing", 90, scanner, False) for i, scanner in enumerate(ageing, 1)]
    plan += [("wrong labels", "wrong labels", 90, ageing[-1], True)]
    plan += [(f"aged {steps}", "aged", 90, ageing[-1], False)] * 2
    return tuple(Arrival(i, *row) for i, row in enumerate(plan, 1))


SCHEDULE = _schedule()
"""All windows in order."""


def scan(digits: NDArray[np.float64], scanner: Scanner) -> NDArray[np.uint8]:
    """Digits (N, 8, 8) in 0…1 as the scanner sees them: (N, 32, 32) grey levels."""
    from scipy import ndimage

    slope = np.tan(np.deg2rad(scanner.slant))
    pages = []
    for digit in digits:
        sheared = ndimage.affine_transform(digit, [[1, 0], [slope, 1]], offset=[0, -slope * 3.5], order=1)
        blurred = ndimage.gaussian_filter(sheared, scanner.blur) if scanner.blur else sheared
        pages.append(ndimage.zoom(blurred * scanner.contrast, SIDE / 8, order=1, grid_mode=True, mode="nearest"))
    grey: NDArray[np.uint8] = np.round(np.clip(np.stack(pages), 0, 1) * 255).astype(np.uint8)
    return grey


@cache
def _digits(seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(seed).permutation(len(data.target))
    return data.images[order] / 16, data.target[order]


def truth(seed: int, scanner: Scanner) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The 400 digits that were kept apart, (400, 32, 32) under a scanner, and their labels (400,)."""
    images, labels = _digits(seed)
    return scan(images[:TRUTH], scanner), labels[:TRUTH]


def arrive(inbox: Path, arrival: Arrival, seed: int) -> bool:
    """Put a window's files into the inbox, all at once; False if they are there already.

    They stand under ``<inbox>/<number>-<name>/<label>/<id>.png``.
    """
    from PIL import Image

    target = inbox / f"{arrival.number:02d}-{arrival.name.replace(' ', '-')}"
    if target.exists():
        return False
    first = TRUTH + sum(a.samples for a in SCHEDULE[: arrival.number - 1])
    images, labels = _digits(seed)
    chosen = slice(first, first + arrival.samples)
    pages, names = scan(images[chosen], arrival.scanner), labels[chosen]
    if arrival.shuffled:
        names = np.random.default_rng(seed).permutation(names)
    inbox.mkdir(parents=True, exist_ok=True)
    partial = inbox / f".{target.name}"
    shutil.rmtree(partial, ignore_errors=True)
    for index, (page, name) in enumerate(zip(pages, names, strict=True), first):
        folder = partial / str(name)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(page).save(folder / f"{index:04d}.png")
    partial.rename(target)
    return True
