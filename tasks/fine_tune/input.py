"""What a training step is fed: pictures of a pool, read from shards, decoded and augmented ahead of the step that takes them.

Order and crops of a step follow from (seed, epoch, step) alone. So the batches are the same bytes whatever the number of
workers, and after a resume in the middle of an epoch.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from io import FileIO
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from everfresh.tasks import images, inputs
from everfresh.tasks.fine_tune.pool import Pool
from everfresh.tasks.fine_tune.recipe import balanced
from everfresh.tasks.records import ModelSpec, digest_of
from everfresh.tasks.views import Sample

Augment = Literal["none", "crop", "crop_flip"]
AHEAD = 3
"""Batches that are made while one is trained on, at most."""
MOST_OPEN = 128
"""Shards that stay open; of more, the others are opened for each sample."""
TRIES = 10
"""Crops drawn for each picture, of which the first that lies within it is taken; as many as torchvision tries."""


@dataclass(frozen=True)
class Plan:
    """What a step takes: rows (B,) of the pool, and how each of these pictures is cut and mirrored."""

    rows: Tensor
    boxes: Tensor | None
    """(B, 4) top, left, height and width as shares of the centred square, 0…1; None takes all of it."""
    flips: Tensor | None
    """(B,) bool: left and right change places."""


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

    def rows(self, done: int) -> Iterator[Tensor]:
        """Rows (B,) of each step after the first `done`."""
        for epoch in range(done // self.each, -(-self.steps // self.each)):
            draw = seeded("order", self.seed, epoch)
            if self.classes is None:
                order = torch.randperm(self.samples, generator=draw)
            else:
                order = balanced(self.classes, self.samples, draw)
            for number in range(max(0, done - epoch * self.each), self.each):
                if epoch * self.each + number >= self.steps:
                    return
                rows = order[number * self.size : (number + 1) * self.size]
                yield rows if len(rows) > 1 else rows.repeat(2)

    def plans(self, done: int, how: Augment) -> Iterator[Plan]:
        """What each step after the first `done` takes."""
        for step, rows in enumerate(self.rows(done), done):
            draw = seeded("crops", self.seed, step)
            boxes = None if how == "none" else crops(len(rows), draw)
            yield Plan(rows, boxes, torch.rand(len(rows), generator=draw) < 0.5 if how == "crop_flip" else None)


def seed_of(*parts: object) -> int:
    """A seed that follows from `parts` alone, on any machine."""
    return int(digest_of(*parts)[:15], 16)


def seeded(*parts: object) -> torch.Generator:
    """A generator whose draws follow from `parts` alone."""
    return torch.Generator().manual_seed(seed_of(*parts))


def crops(
    count: int, draw: torch.Generator, area: tuple[float, float] = (0.7, 1.0), ratio: tuple[float, float] = (0.85, 1.18)
) -> Tensor:
    """Random crops (count, 4) of a square: top, left, height, width as shares of its side (RandomResizedCrop of torchvision).

    Args:
        count: of pictures.
        draw: what is drawn from.
        area: least and most share of the square's area.
        ratio: least and most width / height, drawn evenly in its logarithm.
    """
    u = torch.rand(4, TRIES, count, generator=draw)
    areas = area[0] + (area[1] - area[0]) * u[0]
    low, high = torch.tensor(ratio).log().tolist()
    ratios = (low + (high - low) * u[1]).exp()
    width, height = (areas * ratios).sqrt(), (areas / ratios).sqrt()
    first = ((width <= 1) & (height <= 1)).int().argmax(dim=0)  # 0 if none does: then the bound cuts it
    height, width, top, left = (t.gather(0, first[None])[0] for t in (height.clamp(max=1), width.clamp(max=1), u[2], u[3]))
    return torch.stack([top * (1 - height), left * (1 - width), height, width], dim=1)


class Pictures:
    """The samples of a pool and their encoded labels (N, …); shards are fetched once and verified, samples read from there.

    Args:
        pool: what is trained on.
        spec: what the model is fed: pictures, or rows of a table, which are neither cut nor mirrored.
        keep: decoded samples stay in memory if all of them take at most so many bytes.
    """

    def __init__(self, pool: Pool, spec: ModelSpec, keep: int = 0) -> None:
        self.places = [(view, int(r)) for view, rows in pool.parts for r in rows]
        labels = pool.labels
        self.labels, self.spec = labels.float() if labels.is_floating_point() else labels, spec
        samples = [view.samples[row] for view, row in self.places]
        self.kept: dict[int, Tensor] | None = {} if sum(_memory(s, spec) for s in samples) <= keep else None
        shards = dict.fromkeys((view, view.shard(s)) for (view, _), s in zip(self.places, samples, strict=True))
        paths = {shard.sha256: view.store.local(shard) for view, shard in shards}
        self.files = {digest: path.open("rb", buffering=0) for digest, path in islice(paths.items(), MOST_OPEN)}
        """Shards that stay open, by digest."""
        weakref.finalize(self, _close, [*self.files.values()])

    def __len__(self) -> int:
        return len(self.places)

    def coded(self, index: int) -> bytes:
        """One sample as it lies in its shard."""
        view, row = self.places[index]
        sample = view.samples[row]
        if (file := self.files.get(view.shard(sample).sha256)) is None:
            return next(view.read([row]))
        return os.pread(file.fileno(), sample.size, sample.offset)

    def decoded(self, index: int) -> Tensor:
        """One sample: a picture (3, H, W) uint8 as large as it came, or a row (D,) float32."""
        if self.kept is not None and index in self.kept:
            return self.kept[index]
        data = self.coded(index)
        sample = inputs.decode(data, self.spec) if self.spec.features else images.pixels(data)
        if self.kept is not None:
            self.kept[index] = sample
        return sample

    def blank(self, count: int, *, pinned: bool = False) -> Tensor:
        """Room for a batch: (B, 3, S, S) uint8 or (B, D) float32."""
        kind = torch.float32 if self.spec.features else torch.uint8
        return torch.empty(count, *inputs.shape(self.spec), dtype=kind, pin_memory=pinned)

    def fill(self, batch: Tensor, plan: Plan, start: int, end: int) -> None:
        """Put samples `start` to `end` of a plan into their places."""
        rows = plan.rows[start:end].tolist()
        boxes, flips = (None if t is None else t[start:end].tolist() for t in (plan.boxes, plan.flips))
        for number, (place, row) in enumerate(zip(batch[start:end], rows, strict=True)):
            sample = self.decoded(row)
            if not self.spec.features:
                size = self.spec.image_size
                sample = images.framed(sample, size) if boxes is None else cut(sample, boxes[number], size)
                if flips is not None and flips[number]:
                    sample = sample.flip(-1)
            place.copy_(sample)


def _close(files: list[FileIO]) -> None:
    for file in files:
        file.close()


def _memory(sample: Sample, spec: ModelSpec) -> int:
    return inputs.size(spec) if spec.features else 3 * sample.width * sample.height


def cut(picture: Tensor, box: list[float], size: int) -> Tensor:
    """A box of the centred square of a picture (3, H, W), resized to (3, size, size): all of it in one resize."""
    height, width = picture.shape[-2:]
    side = min(height, width)
    high, wide = (max(1, round(share * side)) for share in box[2:])
    top, left = (
        min((whole - side) // 2 + round(share * side), whole - part)
        for whole, share, part in ((height, box[0], high), (width, box[1], wide))
    )
    found = picture[None, :, top : top + high, left : left + wide]
    return F.interpolate(found, size=(size, size), mode="bilinear", antialias=True)[0]


class Feed:
    """Batches of a run, in order: made in the training's own thread, or ahead of it by others.

    Decoding lets other threads run meanwhile, so that threads serve as well as processes, and neither a fork nor shared
    memory is needed.

    Args:
        pictures: of the pool.
        batches: their order.
        augment: ``none``, ``crop`` or ``crop_flip``.
        workers: threads that read, decode and cut; 0 does it in the caller's.
        pinned: whether batches lie in memory from which a GPU copies by itself.
    """

    def __init__(self, pictures: Pictures, batches: Batches, augment: Augment, workers: int, *, pinned: bool = False) -> None:
        self.pictures, self.batches, self.augment, self.workers, self.pinned = pictures, batches, augment, workers, pinned

    def __call__(self, done: int) -> Generator[tuple[Tensor, Tensor]]:
        """A batch, (B, 3, S, S) uint8 or (B, D), and class numbers (B,) of each step after the first `done`."""
        plans = self.batches.plans(done, self.augment)
        if not self.workers:
            for plan in plans:
                batch = self.pictures.blank(len(plan.rows), pinned=self.pinned)
                self.pictures.fill(batch, plan, 0, len(plan.rows))
                yield batch, self.pictures.labels[plan.rows]
            return
        waiting: deque[tuple[Tensor, Plan, list[Future[None]]]] = deque()
        with ThreadPoolExecutor(self.workers, "input", initializer=_on_one_core) as threads:
            try:
                while True:
                    for plan in islice(plans, AHEAD - len(waiting)):
                        waiting.append(self._begun(threads, plan))
                    if not waiting:
                        return
                    batch, plan, parts = waiting.popleft()
                    for part in parts:
                        part.result()
                    yield batch, self.pictures.labels[plan.rows]
            finally:
                threads.shutdown(cancel_futures=True)

    def _begun(self, threads: ThreadPoolExecutor, plan: Plan) -> tuple[Tensor, Plan, list[Future[None]]]:
        count = len(plan.rows)
        batch, share = self.pictures.blank(count, pinned=self.pinned), -(-count // self.workers)
        starts = range(0, count, share)
        return batch, plan, [threads.submit(self.pictures.fill, batch, plan, i, min(count, i + share)) for i in starts]


def _on_one_core() -> None:
    """A worker's tensor operations use its own thread alone; else each worker would bring a team of its own."""
    torch.get_num_threads()  # sets up this thread's number, which is changed then
    _pools().limit(limits=1, user_api="openmp")


@cache
def _pools() -> Any:
    """The thread pools of this process; finding them takes a while."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def workers_of(wanted: int | None, device: str) -> int:
    """Threads that make batches: as many as wanted, else one for each core that training leaves free, at least one.

    A GPU leaves all of them. On the CPU training takes all: there one thread fills the gaps between its parallel parts.
    """
    if wanted is not None:
        return wanted
    return cores() if device.startswith("cuda") else 1


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
