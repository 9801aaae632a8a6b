"""What is trained and tuned on: rows of the window and of earlier ones, replayed in equal shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from everfresh.tasks import models
from everfresh.tasks.records import Split
from everfresh.tasks.views import View, seeded_choice


@dataclass(frozen=True)
class Pool:
    """Rows of several views, the new window first."""

    parts: tuple[tuple[View, NDArray[np.int64]], ...]
    classes: tuple[str, ...]

    @property
    def labels(self) -> Tensor:
        """Class numbers (N,)."""
        return models.class_index([v.samples[int(r)].label for v, rows in self.parts for r in rows], self.classes)

    def __len__(self) -> int:
        return sum(len(rows) for _, rows in self.parts)


def pool_of(
    window: View | None, earlier: Sequence[View], split: Split, classes: tuple[str, ...], most: int, withheld: frozenset[str]
) -> Pool:
    """Rows of a split: all of the window's, and a seeded, equal share of each earlier view's up to `most` in all."""

    def rows_of(view: View) -> NDArray[np.int64]:
        rows = view.rows(split, classes)
        return rows[[view.samples[int(r)].group not in withheld for r in rows]] if len(rows) else rows

    parts = [] if window is None else [(window, rows_of(window))]
    if most:
        rows = [rows_of(view) for view in earlier]
        share = equal_share([len(r) for r in rows], most)
        for view, r in zip(earlier, rows, strict=True):
            chosen = r[seeded_choice(len(r), share, "replay", view.window.view)]
            parts.append((view, chosen))
    return Pool(tuple(parts), classes)


def equal_share(counts: Sequence[int], most: int) -> int:
    """The largest cap on each count with which their sum stays within `most`, at least 1."""
    left = most
    for place, count in enumerate(sorted(counts)):
        share = left // (len(counts) - place)
        if count > share:
            return max(1, share)
        left -= count
    return max(counts, default=1) or 1


def labels_of(view: View, rows: NDArray[np.int64], classes: Sequence[str]) -> Tensor:
    """Class numbers (N,) of some rows."""
    return models.class_index([view.samples[int(r)].label for r in rows], classes)


def hits_of(scores: Tensor, labels: Tensor) -> tuple[int, int]:
    """Right predictions and samples, of class scores (N, C) and class numbers (N,)."""
    return int((scores.argmax(dim=1) == labels).sum()), len(labels)


def accuracy_of(scores: Tensor, labels: Tensor) -> float:
    """Share of right predictions; 0 of nothing."""
    return pooled([hits_of(scores, labels)]) or 0.0


def pooled(hits: Sequence[tuple[int, int]]) -> float | None:
    """Accuracy over several sets of hits; None of nothing."""
    total = sum(n for _, n in hits)
    return sum(h for h, _ in hits) / total if total else None
