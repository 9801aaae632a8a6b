"""What a training step is fed: pictures of a pool, decoded and augmented, in a seeded order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from everfresh.tasks.fine_tune.checkpoint import Progress
from everfresh.tasks.fine_tune.pool import Pool
from everfresh.tasks.fine_tune.recipe import balanced
from everfresh.tasks.inputs import decode, size
from everfresh.tasks.records import ModelSpec, digest_of

MEMORY = 512 << 20
"""Decoded pictures are kept in memory up to so many bytes."""


class Pictures(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Decoded samples, (3, S, S) uint8 or rows (D,) float32, and class numbers; decoded once if they fit in memory."""

    def __init__(self, pool: Pool, spec: ModelSpec) -> None:
        self.places = [(view, int(r)) for view, rows in pool.parts for r in rows]
        self.labels = pool.labels.tolist()
        self.spec = spec
        self.kept: dict[int, Tensor] | None = {} if len(pool) * size(spec) <= MEMORY else None

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self.kept is not None and index in self.kept:
            return self.kept[index], self.labels[index]
        view, row = self.places[index]
        picture = decode(next(view.read([row])), self.spec)
        if self.kept is not None:
            self.kept[index] = picture
        return picture, self.labels[index]


class Batches:
    """Which rows each step takes: every epoch in an order of its own, drawn from the seed.

    A last batch of one sample is left out, for batch norm cannot take it; a pool of one sample is taken twice. Where class
    numbers are given, an epoch takes as many of each class. `steps` may be lowered while they are taken.
    """

    def __init__(self, samples: int, size: int, epochs: int, seed: int, classes: Tensor | None = None) -> None:
        self.samples, self.size, self.seed, self.classes = samples, size, seed, classes
        self.each = samples // size + (samples % size > 1) or 1
        """Steps in an epoch."""
        self.steps = self.each * epochs

    def rows(self, done: Progress) -> Iterator[Tensor]:
        """Rows (B,) of each step still to be done; all that an epoch draws at random is seeded with its order."""
        for epoch in range(done.step // self.each, -(-self.steps // self.each)):
            torch.manual_seed(int(digest_of("epoch", self.seed, epoch)[:15], 16))
            order = torch.randperm(self.samples) if self.classes is None else balanced(self.classes, self.samples)
            skipped = max(0, done.step - epoch * self.each)
            if skipped:
                done.restore()
            for number in range(skipped, self.each):
                if epoch * self.each + number >= self.steps:
                    return
                rows = order[number * self.size : (number + 1) * self.size]
                yield rows if len(rows) > 1 else rows.repeat(2)


def augmented(picture: Tensor, how: Literal["none", "crop", "crop_flip"]) -> Tensor:
    """A random resized crop of (3, S, S), mirrored half the time where `how` says so; drawn from torch's generator.

    A row (D,) stays as it is.
    """
    from torchvision.transforms import v2

    if how == "none" or picture.ndim != 3:
        return picture
    crop = v2.RandomResizedCrop(picture.shape[-1], scale=(0.7, 1.0), ratio=(0.85, 1.18), antialias=True)
    picture = crop(picture)
    return v2.functional.horizontal_flip(picture) if how == "crop_flip" and torch.rand(()) < 0.5 else picture
