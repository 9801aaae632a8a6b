"""Checkpoints of a training run: in the store, under the digest of their own bytes, the newest two kept.

A checkpoint holds all that the next step depends on: weights, optimizer, random state, the sums of the running epoch, what
options keep beside (a mean of the weights, the best ones so far) and how far the run is; the order of an epoch follows from
(seed, epoch). So a run that goes on from one ends in the same bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from everfresh.tasks.errors import DigestMismatch, ObjectMissing, StoreError
from everfresh.tasks.records import Layout
from everfresh.tasks.store import Store, file_digest, scratch

log = logging.getLogger(__name__)

KEPT = 2
"""Checkpoints of each attempt that stay; an older one serves where the newest was damaged."""


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0
    """Steps done."""
    scale: float = 1.0
    """Of the learning rate; below 1 once the loss was not finite."""
    parts: int = 1
    """That each batch is taken in; more than one where memory ran out."""
    seconds: float = 0.0
    """Spent on those steps, by whoever did them."""
    waiting: float = 0.0
    """Of these seconds, until pictures were ready."""
    peak: float = 0.0
    """Of the learning rate, once a range test has found it; 0 before."""
    steps: int = 0
    """Of the training, where its budget of seconds has shortened it; else 0."""
    layout: Layout | None = None
    """How those steps were computed; the rest must be, to end in the same bytes."""
    random: dict[str, Tensor] = field(default_factory=dict)
    """State of the generators after those steps, where a checkpoint told; for `restore`."""
    beside: dict[str, Tensor] = field(default_factory=dict)
    """What options keep, where a checkpoint told."""

    def restore(self) -> None:
        """Draw from here as the run would have that wrote the checkpoint."""
        if "random" in self.random:
            torch.set_rng_state(self.random["random"])
        if "random.cuda" in self.random and torch.cuda.is_available():
            torch.cuda.set_rng_state(self.random["random.cuda"])


NUMBERS = {f.name: type(f.default) for f in fields(Progress) if isinstance(f.default, int | float)}
"""What a checkpoint tells of the progress in words, and of which type it is."""


class Checkpoints:
    """The checkpoints of one candidate, whoever wrote them; this run writes under its own attempt.

    Args:
        store: of the pipeline.
        folder: of the candidate.
        attempt: of this run, below `folder`.
    """

    def __init__(self, store: Store, folder: str, attempt: str) -> None:
        self.store, self.folder, self.attempt = store, folder, attempt
        self.written: list[str] = []

    def save(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        sums: Tensor,
        progress: Progress,
        beside: Mapping[str, Tensor],
    ) -> None:
        """Write one, with what options keep `beside`; those of this run before the newest two are removed after that."""
        tensors = {f"model.{name}": t for name, t in module.state_dict().items()}
        tensors |= {f"beside.{name}": t for name, t in beside.items()}
        tensors |= {"sums": sums, "random": torch.get_rng_state()}
        if sums.is_cuda:
            tensors["random.cuda"] = torch.cuda.get_rng_state(sums.device)
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": t for name, t in state.items()}
        told = {name: str(getattr(progress, name)) for name in NUMBERS}
        if progress.layout is not None:
            told["layout"] = progress.layout.model_dump_json()
        with scratch() as temporary:
            path = temporary / "checkpoint"
            save_file({n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}, path, told)
            key = f"{self.attempt}/checkpoint-{progress.step:09d}-{file_digest(path)}.safetensors"
            self.store.put_file(key, path)
        self.written.append(key)
        for old in self.written[:-KEPT]:
            try:
                self.store.delete(old)
            except StoreError as error:  # `sweep` will find it
                log.warning("checkpoint %s cannot be removed: %s", old, error)
        self.written = self.written[-KEPT:]

    def load(self, module: nn.Module, optimizer: torch.optim.Optimizer, sums: Tensor, every: int = 1) -> Progress | None:
        """Put the newest readable checkpoint of any attempt in place, but for its random state; None if there is none.

        Args:
            module: takes the weights.
            optimizer: takes its state.
            sums: (3,) of the running epoch.
            every: only checkpoints after a multiple of so many steps count, not those of a run that was told to stop.

        Raises:
            StoreError: the store cannot be reached; what is missing or damaged is passed over.
        """
        found = [i.key for i in self.store.list(f"{self.folder}/attempts") if "/checkpoint-" in i.key]
        found = [key for key in found if _step_of(key) % every == 0]
        for key in sorted(found, key=lambda k: k.rpartition("/")[2], reverse=True):
            try:
                tensors, progress = self._read(key)
                epoch = tensors["sums"]
            except (ObjectMissing, DigestMismatch, SafetensorError, KeyError, ValueError) as error:
                log.warning("checkpoint %s cannot be read (%s); trying an older one", key, error)
                continue
            module.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
            state = optimizer.state_dict()
            state["state"] = {}
            for name, tensor in tensors.items():
                if name.startswith("optimizer."):
                    _, index, entry = name.split(".", 2)
                    state["state"].setdefault(int(index), {})[entry] = tensor
            optimizer.load_state_dict(state)
            sums.copy_(epoch)
            progress.random = {name: t for name, t in tensors.items() if name.startswith("random")}
            progress.beside = {n.removeprefix("beside."): t for n, t in tensors.items() if n.startswith("beside.")}
            return progress
        return None

    def _read(self, key: str) -> tuple[dict[str, Tensor], Progress]:
        with scratch() as temporary:
            path = temporary / "checkpoint"
            self.store.fetch(key, path)
            if f"-{file_digest(path)}." not in key:
                raise DigestMismatch("its bytes are not those of its name")
            with safe_open(path, framework="pt") as file:
                told = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            layout = Layout.model_validate_json(told["layout"]) if "layout" in told else None
            numbers = {name: kind(told[name]) for name, kind in NUMBERS.items()}
            return tensors, Progress(**numbers, layout=layout)  # type: ignore[arg-type]


def _step_of(key: str) -> int:
    return int(key.rpartition("/checkpoint-")[2].split("-")[0])
