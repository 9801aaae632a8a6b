"""One release in memory: verified, built, tried once, and then never changed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from everfresh.tasks import models
from everfresh.tasks.architectures import load_strict
from everfresh.tasks.errors import DataError, ModelError, ObjectMissing
from everfresh.tasks.inputs import noise, prepare
from everfresh.tasks.ledger import find
from everfresh.tasks.records import AliasMove, Part, Release
from everfresh.tasks.serving.answers import Predictions
from everfresh.tasks.serving.samples import Sample, as_input
from everfresh.tasks.store import FolderStore, Store, cache_folder
from everfresh.tasks.store.base import cached
from everfresh.tasks.targets import Targets

BATCH = 64
"""Samples that go through the network at once."""
ABANDONED = 3_600
"""Seconds after which a download that never ended is removed."""


class Model:
    """The release of one move of an alias, ready to be asked from any number of threads.

    Args:
        store: of the pipeline.
        move: that made it what it is.
        code: package of an architecture of one's own that may be run, see :func:`everfresh.tasks.models.load`.
        device: of torch, such as ``cpu`` or ``cuda``.
        cache_bytes: most bytes of weights that are kept locally.

    Raises:
        StoreError: the release is not there, or its bytes are not what was recorded.
        ModelError: it cannot be built, or gives no scores.
    """

    def __init__(self, store: Store, move: AliasMove, *, code: str, device: str, cache_bytes: int) -> None:
        key = f"releases/{move.release}/release.json"
        release = find(store, key, Release)
        if release is None:
            raise ObjectMissing(f"{store.url(key)} must be there, as v{move.version} names it, got none. Roll back.")
        self.move, self.spec, self.device = move, release.spec, device
        self._targets = Targets.of(release.spec)
        with torch.random.fork_rng(devices=[]):  # building draws random weights; the service's own numbers stay as they are
            module = models.skeleton(release.spec, store.url(key), code=code)
        part = release.files["model.safetensors"]
        load_strict(module, load_file(_weights(store, part, cache_bytes)), store.url(part.key))
        self._module: nn.Module = module.eval().to(device)
        self._try(store.url(key))

    @torch.inference_mode()
    def _try(self, name: str) -> None:
        scores = self._module(noise(self.spec, 1).to(self.device))
        if tuple(scores.shape) != (1, len(self.spec.classes)) or not scores.isfinite().all():
            raise ModelError(
                f"{name} must give {len(self.spec.classes)} finite scores, got {tuple(scores.shape)} of which "
                f"{int(scores.isfinite().sum())} are finite. Roll back to a release that does."
            )

    @torch.inference_mode()
    def predict(self, samples: Iterable[Sample]) -> Predictions:
        """What the release says of some samples.

        Raises:
            DataError: one of them is none that it can be asked about; says which.
        """
        made: list[Tensor] = [torch.zeros(0, len(self.spec.classes))]
        batch: list[Tensor] = []
        for number, sample in enumerate(samples):
            try:
                batch.append(as_input(sample, self.spec))
            except DataError as error:
                raise DataError(f"sample {number} {error}") from error
            if len(batch) == BATCH:
                made.append(self._scores(batch))
                batch = []
        if batch:
            made.append(self._scores(batch))
        return self._answers(torch.cat(made))

    def _scores(self, batch: list[Tensor]) -> Tensor:
        scores: Tensor = self._module(prepare(torch.stack(batch).to(self.device), self.spec))
        return scores.float().cpu()

    def _answers(self, scores: Tensor) -> Predictions:
        values, confidence = scores.double().numpy(), None
        if self.spec.task != "regression":
            said = scores.double()
            values = (said.softmax(dim=1) if self.spec.task == "single_label" else said.sigmoid()).numpy()
            confidence = self._targets.confidence(values) if len(values) else np.zeros(0)
        labels = tuple(self._targets.texts(scores.numpy()))
        return Predictions(labels, confidence, values, self.spec.classes, self.move.release, self.move.version)


def _weights(store: Store, part: Part, most: int) -> Path:
    """A local file of the weights: where they stand, or in a cache that all processes of this machine share."""
    if isinstance(store, FolderStore):
        return store.local(part)
    folder = cache_folder() / "models"
    path = cached(store, part, folder)
    stat = path.stat()
    os.utime(path, ns=(time.time_ns(), stat.st_mtime_ns))  # when it was used last, also where the disk does not say so
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
