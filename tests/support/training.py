"""A training in a process of its own that gets a signal in one of its steps."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from support.loop import open_tick, pipeline

from everfresh.tasks.config import PipelineConfig
from everfresh.tasks.store import FolderStore

TRAINING = {
    "epochs": 6, "batch_size": 4, "learning_rate": "auto", "augment": "crop_flip", "checkpoint_every": 3,
    "policy": "trivial", "mix": {"kind": "either"}, "sampling": "balanced", "layer_decay": 0.8, "keep": {"ema": 0.9},
    "schedule": {"freeze": 0.5, "freeze_until": 0.5, "thaw": "gradually", "patience": 6},
}  # fmt: skip
"""With options that a checkpoint keeps something for, or that draw at random."""


def place(folder: Path) -> tuple[FolderStore, PipelineConfig]:
    return FolderStore(folder / "store"), pipeline(folder, fine_tune=TRAINING)


def train_until(folder: Path, number: int, at: int | None, made: Path | None) -> None:
    """Train, and send this process a signal in step `at`; the candidate's record goes to `made` at the end."""
    os.environ["EVERFRESH_CACHE"] = str(folder / "cache")
    from everfresh.tasks.fine_tune import fine_tune
    from everfresh.tasks.fine_tune.trainer import Trainer

    step = Trainer._step

    def ends(self: Trainer, pictures: object, rows: object, now: int, steps: int) -> None:
        if now == at and number == signal.SIGTERM:
            os.kill(os.getpid(), number)
        step(self, pictures, rows, now, steps)  # type: ignore[arg-type]
        if now == at and number == signal.SIGKILL:
            os.kill(os.getpid(), number)

    Trainer._step = ends  # type: ignore[method-assign]
    store, config = place(folder)
    candidate = fine_tune(store, config, open_tick(store, config), "pretrained")
    if made:
        made.write_bytes(candidate.to_bytes())


def crash(patch: pytest.MonkeyPatch, after: int) -> None:
    """The next run dies in the step after so many."""
    from everfresh.tasks.fine_tune.trainer import Trainer

    step, done = Trainer._step, []

    def dies(self: Trainer, *arguments: Any) -> None:
        done.append(0)
        if len(done) == after + 1:
            raise MemoryError
        step(self, *arguments)

    patch.setattr(Trainer, "_step", dies)
