"""Releases that cost no training: networks that say the same of every picture, and by it which release they are."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from support.pictures import noise

from everfresh.tasks.config import Export
from everfresh.tasks.ledger import champion_moves
from everfresh.tasks.records import AliasMove, Release
from everfresh.tasks.serving import Predictions
from everfresh.tasks.store import Store

CODE = "support.networks:plain"
SIDE, CLASSES = 8, 3


def pictures(count: int = 4) -> list[bytes]:
    """A few pictures as PNG."""
    return [noise(number, SIDE) for number in range(count)]


def odds(number: int) -> float:
    """The probability that release `number` gives the first class, whatever it sees."""
    return math.exp(number / 25) / (math.exp(number / 25) + CLASSES - 1)


def write_release(
    store: Store, number: int, architecture: str = CODE, formats: Sequence[Export] = (), **changes: Any
) -> Release:
    """Release `number` as the pipeline leaves it, but for the files that no service reads."""
    import torch
    from support.loop import pipeline  # a service's process must not come to load what this does

    from everfresh.tasks import models
    from everfresh.tasks.exports import export

    config = pipeline(Path(), model={"architecture": architecture, "image_size": SIDE})
    module, spec = models.start(config.model, 0)
    head = models.linear_head(module, spec)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([number / 25, 0.0, 0.0]))
    key = f"release-{number:03d}"
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        models.save(module, path)
        made = [path, *export(module, spec, formats, Path(folder))]
        files = {file.name: store.keep_file(f"releases/{key}/{file.name}", file) for file in made}
    release = Release(
        id=key, spec=spec, files=files, evaluation="", holdout_view="", bank=(), reference="",
        parent=None, rung="head", seq=number, accuracy=1, created_at=store.now(),
    ).model_copy(update=changes)  # fmt: skip
    store.create(f"releases/{key}/release.json", release.to_bytes())
    return release


def publish(store: Store, number: int, **changes: Any) -> AliasMove:
    """Write release `number` and make it champion."""
    release, moves = write_release(store, number, **changes), champion_moves(store)
    move = AliasMove(
        seq=moves.last_seq() + 1, id=uuid.uuid4().hex, kind="publish", release=release.id, version=number, by="tests",
        reason="", at=store.now(),
    )  # fmt: skip
    if not moves.append(move.seq, move):
        raise LookupError(move.seq)
    return move


def check(answers: Predictions) -> None:
    """Raise unless every answer is one of the release that the batch names."""
    expected = odds(answers.version)
    wrong = [float(p) for p in answers.probabilities[:, 0] if not math.isclose(p, expected, rel_tol=1e-4)]
    if wrong or answers.release != f"release-{answers.version:03d}":
        raise AssertionError(f"{answers.release} v{answers.version}: {wrong}, not {expected}")


def said(count: int, label: str = "cat", version: int = 3) -> Predictions:
    """What a release might say."""
    odds = np.tile([0.9, 0.1], (count, 1))
    return Predictions((label,) * count, odds.max(axis=1), odds, ("cat", "dog"), f"release-{version}", version)
