"""A training that is killed again and again, at any step, ends in the same bytes; one told to stop loses nothing."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
from support.loop import arrive
from support.training import TRAINING, place, train_until
from support.warm import in_child

from everfresh.tasks.records import Candidate

KILLS = 10


def trained(folder: Path) -> Candidate:
    made = folder / "made"
    assert in_child(train_until, folder, signal.SIGKILL, None, made) == 0
    return Candidate.from_bytes(made.read_bytes(), "made")


def fresh(folder: Path) -> Path:
    folder.mkdir()
    arrive(place(folder)[1], 36)
    return folder


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(p.name.split("-")[1]) for p in (folder / "store").rglob("checkpoint-*"))


def test_ten_kills_end_in_the_same_bytes(tmp_path: Path) -> None:
    whole = trained(fresh(tmp_path / "whole"))
    killed = fresh(tmp_path / "killed")
    steps = 6 * 5  # 18 training samples in batches of 4, six times
    for at in sorted(np.random.default_rng(0).choice(steps, KILLS, replace=False).tolist()):
        assert in_child(train_until, killed, signal.SIGKILL, at, None) == -signal.SIGKILL
        newest = max(checkpoints(killed), default=0)
        assert at - newest < TRAINING["checkpoint_every"]  # type: ignore[operator]
    again = trained(killed)
    assert again.weights.sha256 == whole.weights.sha256
    assert again.tune_accuracy == whole.tune_accuracy


def test_a_training_that_is_told_to_stop_writes_its_last_step_and_exits(tmp_path: Path) -> None:
    folder = fresh(tmp_path / "told")
    assert in_child(train_until, folder, signal.SIGTERM, 16, None) == 128 + signal.SIGTERM
    assert max(checkpoints(folder)) == 17
    assert trained(folder).weights.sha256 == trained(fresh(tmp_path / "whole")).weights.sha256
