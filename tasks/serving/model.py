"""One release in memory: verified, built, tried once, and then never changed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from everfresh.tasks import models
from everfresh.tasks.architectures import load_strict, read_weights
from everfresh.tasks.errors import DataError, ModelError, ObjectMissing
from everfresh.tasks.exports import FILES, opened
from everfresh.tasks.inputs import prepare, shape
from everfresh.tasks.records import AliasMove, ModelSpec, Part
from everfresh.tasks.releases import find_release
from everfresh.tasks.serving.answers import Predictions
from everfresh.tasks.serving.samples import Sample, as_input
from everfresh.tasks.store import FolderStore, Store, cache_folder
from everfresh.tasks.store.base import cached
from everfresh.tasks.targets import Targets

BATCH = 64
"""Samples that go through the network at once."""
PT2 = FILES["pt2"]
Run = Callable[[Tensor], Tensor]
"""Scores (N, C) float32 on the CPU, of samples (N, 3, S, S) uint8 or (N, D) float32 of rows."""
ABANDONED = 3_600
"""Seconds after which a download that never ended is removed."""


class Model:
    """The release of one move of an alias, ready to be asked from any number of threads.

    Args:
        store: of the pipeline.
        move: that made it what it is.
        code: package of an architecture of one's own that may be run, see :func:`everfresh.tasks.models.load`.
        device: of torch, such as ``cpu`` or ``cuda``.
        file: of the release, ``model.safetensors`` or ``model.pt2``.
        cache_bytes: most bytes of weights that are kept locally.

    Raises:
        StoreError: the release is not there, or its bytes are not what was recorded.
        ModelError: it cannot be built, or gives no scores.
    """

    def __init__(self, store: Store, move: AliasMove, *, code: str, device: str, file: str, cache_bytes: int) -> None:
        key = f"releases/{move.release}/release.json"
        release = find_release(store, move.release)
        if release is None:
            raise ObjectMissing(f"{store.url(key)} must be there, as {move.label} names it, got none. Roll back.")
        if file not in release.files:
            raise ModelError(f"{store.url(key)} must name {file}, got {', '.join(release.files)}. Load one of these.")
        self.move, self.spec, name = move, release.spec, store.url(release.files[file].key)
        self._targets = Targets.of(release.spec)
        path = _local(store, release.files[file], cache_bytes)
        self._run = _exported(path, self.spec, name) if file == PT2 else _built(path, self.spec, name, code, device)
        self._try(name)

    @torch.inference_mode()
    def _try(self, name: str) -> None:
        scores = self._run(torch.zeros(2, *shape(self.spec), dtype=torch.float32 if self.spec.features else torch.uint8))
        if tuple(scores.shape) != (2, len(self.spec.classes)) or not scores.isfinite().all():
            raise ModelError(
                f"{name} must give {len(self.spec.classes)} finite scores a sample, got {tuple(scores.shape)} of two, "
                f"{int(scores.isfinite().sum())} of them finite. Roll back to a release that does."
            )

    @torch.inference_mode()
    def predict(self, samples: Iterable[Sample]) -> Predictions:
        """What the release says of some samples.

        Raises:
            DataError: one of them is none that it can be asked about; says which.
        """
        made = [torch.zeros(0, len(self.spec.classes))]
        batch: list[Tensor] = []
        for number, sample in enumerate(samples):
            try:
                batch.append(as_input(sample, self.spec))
            except DataError as error:
                raise DataError(f"sample {number} {error}") from error
            if len(batch) == BATCH:
                made.append(self._run(torch.stack(batch)))
                batch = []
        if batch:
            made.append(self._run(torch.stack(batch)))
        return self._answers(torch.cat(made))

    def _answers(self, scores: Tensor) -> Predictions:
        values, confidence = scores.double().numpy(), None
        if self.spec.task != "regression":
            said = scores.double()
            values = (said.softmax(dim=1) if self.spec.task == "single_label" else said.sigmoid()).numpy()
            confidence = self._targets.confidence(values) if len(values) else np.zeros(0)
        labels = tuple(self._targets.texts(scores.numpy()))
        return Predictions(labels, confidence, values, self.spec.classes, self.move.release, self.move.version)


def _built(path: Path, spec: ModelSpec, name: str, code: str, device: str) -> Run:
    """A network of verified weights."""
    with torch.random.fork_rng(devices=[]):  # building draws random weights; the service's own numbers stay as they are
        module = models.skeleton(spec, name, code=code)
    load_strict(module, read_weights(path, name), name)
    module = module.eval().to(device)
    return lambda batch: module(prepare(batch.to(device), spec)).float().cpu()


def _exported(path: Path, spec: ModelSpec, name: str) -> Run:
    """A verified ``model.pt2``, which standardises its samples itself."""
    if spec.features:
        raise ModelError(f"{name} must be of pictures to be served, got rows. Load model.safetensors.")
    run = opened(path, "pt2")
    return lambda batch: torch.from_numpy(run(batch.numpy()))


def _local(store: Store, part: Part, most: int) -> Path:
    """A local file of the part: where they stand, or in a cache that all processes of this machine share."""
    if isinstance(store, FolderStore):
        return store.local(part)
    folder = cache_folder() / "models"
    path = cached(store, part, folder)
    with suppress(OSError):  # another user's cache, or a process that was faster
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))  # its last use, also where the disk notes none
        _bound(folder, most, path)
    return path


def _bound(folder: Path, most: int, keep: Path) -> None:
    """Remove the files used longest ago until the rest fits; a process that reads one of them keeps what it has open."""
    files = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process was faster
            stat = path.stat()
            if path.suffix and time.time() - stat.st_mtime > ABANDONED:
                path.unlink()
            elif path != keep and not path.suffix:
                files.append((stat.st_atime_ns, stat.st_size, path))
    room = most - keep.stat().st_size
    for _, size, path in sorted(files, reverse=True):
        room -= size
        if room < 0:
            path.unlink(missing_ok=True)
