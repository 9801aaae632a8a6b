"""What is trained and tuned on: rows of the window, and a reservoir of earlier ones, fair to each window and class.

Each sample has a fixed place in its window: first one of every class, then the others so that every class keeps its share.
The reservoir takes the first of every window, then the second of every window, until its budget is spent (a stratified
bottom-k sample: Cohen & Kaplan, PODC 2007). So no window crowds another out, no class dies out, rare ones stay rare, and
what is kept under a budget is kept under every larger one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everfresh.tasks.records import Split, digest_of
from everfresh.tasks.targets import Targets
from everfresh.tasks.views import View


@dataclass(frozen=True)
class Pool:
    """Rows of several views, the new window first."""

    parts: tuple[tuple[View, NDArray[np.int64]], ...]
    targets: Targets

    @property
    def labels(self) -> Tensor:
        """Encoded labels (N, …), as `Targets.encode` makes them."""
        labels = [v.samples[int(r)].label for v, rows in self.parts for r in rows]
        return torch.from_numpy(self.targets.encode(labels))

    def __len__(self) -> int:
        return sum(len(rows) for _, rows in self.parts)


def pool_of(
    window: View | None, earlier: Sequence[View], split: Split, targets: Targets, most: int, withheld: frozenset[str]
) -> Pool:
    """Rows of a split: all of the window's, and a reservoir of the earlier views', at most `most` in all."""

    def rows_of(view: View) -> NDArray[np.int64]:
        rows = view.rows(split, targets)
        return rows[[view.samples[int(r)].group not in withheld for r in rows]] if len(rows) else rows

    parts = [] if window is None else [(window, rows_of(window))]
    if most:
        rows = [rows_of(view) for view in earlier]
        names = [
            [(v.window.view, v.samples[int(r)].label or "", v.samples[int(r)].key) for r in own]
            for v, own in zip(earlier, rows, strict=True)
        ]
        kept = reservoir([name for own in names for name in own], most)
        parts += [(v, own[[n in kept for n in named]]) for v, own, named in zip(earlier, rows, names, strict=True)]
    return Pool(tuple(parts), targets)


def reservoir(samples: Sequence[tuple[str, str, str]], most: int) -> frozenset[tuple[str, str, str]]:
    """At most `most` samples, each (view, class, key): of every window the same number, as far as it has them.

    Of a window's classes there is at least one sample each as soon as there are as many places, and beyond that each class
    has the share that it has in the window. Whatever the order of the samples, the same ones are kept; they are among those
    that a larger budget keeps.
    """
    cells: dict[tuple[str, str], list[tuple[str, tuple[str, str, str]]]] = defaultdict(list)
    for sample in set(samples):
        cells[sample[:2]].append((digest_of("replay", *sample), sample))
    windows: dict[str, list[tuple[float, str, tuple[str, str, str]]]] = defaultdict(list)
    for (view, _), cell in cells.items():
        windows[view] += [(rank and (rank + 0.5) / len(cell), *drawn) for rank, drawn in enumerate(sorted(cell))]
    places = [(place, draw, sample) for own in windows.values() for place, (_, draw, sample) in enumerate(sorted(own))]
    return frozenset(sample for _, _, sample in sorted(places)[:most])


def labels_of(view: View, rows: NDArray[np.int64], targets: Targets) -> Tensor:
    """Encoded labels (N, …) of some rows."""
    return torch.from_numpy(targets.encode([view.samples[int(r)].label for r in rows]))


def hits_of(scores: Tensor, labels: Tensor, targets: Targets) -> tuple[int, int]:
    """Right predictions and samples, of scores (N, K) and encoded labels (N, …)."""
    return int(targets.right(scores, labels).sum()), len(labels)


def pooled(hits: Sequence[tuple[int, int]]) -> float | None:
    """Accuracy over several sets of hits; None of nothing."""
    total = sum(n for _, n in hits)
    return sum(h for h, _ in hits) / total if total else None
