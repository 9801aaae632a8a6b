"""A pipeline whose whole tick takes some 30 ms: pictures of 8 × 8 pixels, a network of 251 weights that nobody trains."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from jinja2 import Environment
from support.loop import CLASSES, pipeline
from support.pictures import digits

from everfresh.tasks import card, decide, evaluate, journal, models, publish
from everfresh.tasks.config import PipelineConfig
from everfresh.tasks.errors import ChampionMoved
from everfresh.tasks.ledger import attempt_folder, champion_moves, find, settle
from everfresh.tasks.records import (
    AliasMove,
    Candidate,
    Cost,
    Decision,
    Evaluation,
    JournalEntry,
    ModelSpec,
    StreamEntry,
    Tick,
    digest_of,
)
from everfresh.tasks.store import Store

SIDE = 8
MOST = 3
"""Samples of a window."""


@cache
def pictures() -> tuple[tuple[str, bytes], ...]:
    """Class and bytes of a few digits."""
    return tuple((key.split("/")[0], data) for key, data in digits(30, classes=CLASSES, side=SIDE).items())


def small_pipeline(folder: Path) -> PipelineConfig:
    """Small windows over ``<folder>/inbox``, and a floor that anybody reaches."""
    return pipeline(
        folder,
        model={"architecture": "support.networks:plain", "image_size": SIDE},
        window={"max_samples": MOST, "holdout_fraction": 0.7},
        gates=[{"kind": "floor", "minimum": 0}],
    )


def in_memory() -> TemporaryDirectory[str]:
    """A folder in memory where the system has such a thing, else an ordinary temporary one."""
    memory = Path("/dev/shm")
    return TemporaryDirectory(prefix="everfresh-", dir=memory if os.access(memory, os.W_OK) else None)


def make_quick(patch: pytest.MonkeyPatch) -> None:
    """Leave out what takes nine tenths of the time and is not remembered: drawing, compiling a template, fsync.

    It is processes that die here, not the power of the machine.
    """
    draw, compiled = cache(_drawn), cache(lambda _name: Environment(loader=card.PackageLoader("everfresh.tasks")))
    patch.setattr(evaluate, "confusion_picture", lambda before, after, classes, path: path.write_bytes(draw(tuple(classes))))
    patch.setattr(card, "Environment", lambda **_options: compiled("card"))
    patch.setattr("os.fsync", lambda _handle: None)


def _drawn(classes: tuple[str, ...]) -> bytes:
    from everfresh.tasks.charts import confusion_picture

    with TemporaryDirectory() as folder:
        path = Path(folder) / "confusion.png"
        confusion_picture(None, [[0] * len(classes)] * len(classes), classes, path)
        return path.read_bytes()


@cache
def _weights(seed: int) -> tuple[ModelSpec, bytes]:
    module, spec = models.start(small_pipeline(Path()).model, seed)
    with TemporaryDirectory() as folder:
        models.save(module, Path(folder) / "model.safetensors")
        return spec, (Path(folder) / "model.safetensors").read_bytes()


def begun(store: Store, entry: StreamEntry) -> Tick:
    """The tick over a window, as the first run that came to it wrote it down."""
    return journal.begin(store, journal.outlook(store, entry))


def candidate_key(view: str, seq: int, seed: int) -> str:
    """Key of the challenger that a window and a seed make."""
    return digest_of("candidate", view, seq, seed)


def candidate(store: Store, tick: Tick, seed: int) -> Candidate:
    """A challenger as a rung leaves it, but with the weights that the seed draws."""
    key = candidate_key(tick.view, tick.seq, seed)
    if (known := find(store, f"candidates/{key}/record.json", Candidate)) is not None:
        return known
    spec, data = _weights(seed)
    weights = store.keep(f"{attempt_folder(f'candidates/{key}')}/model.safetensors", data)
    made = Candidate(
        key=key, rung="head", view=tick.view, replay=(), champion=tick.champion, start=None, request="", spec=spec, encoder="",
        weights=weights, trained_on=1, tune_accuracy=1, tune_samples=1, kept_accuracy=None, cost=Cost(), device="cpu",
    )  # fmt: skip
    return settle(store, f"candidates/{key}/record.json", made)


def release(store: Store, config: PipelineConfig, tick: Tick, challenger: Candidate, proof: Evaluation) -> AliasMove:
    """Publish a proven challenger."""
    bank = decide.bank_after(tick, journal.window_of(store, tick.view), None, proof.trust)
    return publish.publish(store, config, tick, challenger, proof, bank)


def run_tick(store: Store, config: PipelineConfig) -> JournalEntry | None:
    """The flow's tick over the oldest window that waits: prove, publish, prove again if the champion moved, note it."""
    if (entry := journal.pending(store)) is None:
        return None
    tick = begun(store, entry)
    challenger = candidate(store, tick, 0)
    proof, move = evaluate.evaluate(store, config, tick, challenger, against=tick.champion_move), None
    while proof.passed and move is None:
        try:
            move = release(store, config, tick, challenger, proof)
        except ChampionMoved:
            proof = evaluate.evaluate(store, config, tick, challenger, against=champion_moves(store).last_seq())
    decision = Decision(action="retrain", reasons=("so",), ladder=("head",))
    bank = decide.bank_after(tick, journal.window_of(store, tick.view), None, proof.trust)
    entry = journal.sum_up(store, tick, None, decision, [challenger], proof, move, proof.trust, bank)
    return journal.end(store, tick, entry)
