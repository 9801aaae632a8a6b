"""The loop without Prefect: small real digits as PNG files, the stages called one after the other."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image, ImageOps
from support.pictures import digits, write_folder

from everfresh.tasks import decide, drift, evaluate, fine_tune, ingest, journal, publish
from everfresh.tasks.config import PipelineConfig, parse_config
from everfresh.tasks.ledger import champion_moves, find
from everfresh.tasks.records import AliasMove, Candidate, Decision, DriftReport, Evaluation, JournalEntry, Release, Tick
from everfresh.tasks.store import FolderStore, Store
from everfresh.tasks.trust import judge_labels

CLASSES = ("zero", "one", "two")
SIDE = 16
"""Pixels of the files and of the model's input."""


def pipeline(folder: Path, **changes: dict[str, Any] | Any) -> PipelineConfig:
    """A pipeline over ``<folder>/inbox`` that trains in a second; a mapping changes single fields of a section."""
    raw: dict[str, Any] = {
        "name": "digits",
        "store": str(folder / "store"),
        "source": {"kind": "folder", "path": str(folder / "inbox")},
        "window": {"holdout_fraction": 0.35, "tune_fraction": 0.15},
        "model": {
            "architecture": "everfresh.tasks.models:small_cnn",
            "weights": None,
            "classes": CLASSES,
            "image_size": SIDE,
            "mean": (0.3, 0.3, 0.3),
            "std": (0.3, 0.3, 0.3),
        },
        "evaluation": {"report": False},
        "drift": {"report": False, "permutations": 199, "components": 4},
        "release": {"formats": []},  # which cost seconds; tests of them say so
        "policy": {"bootstrap": "pretrained", "ladder": ["head", "full"]},
        "fine_tune": {"epochs": 4, "batch_size": 16, "learning_rate": 0.005, "augment": "none"},
    }
    for name, change in changes.items():
        raw[name] = raw.get(name, {}) | change if isinstance(change, dict) else change
    return parse_config(raw)


def arrive(config: PipelineConfig, count: int, *, start: int = 0, classes: Sequence[str] = CLASSES, aged: bool = False) -> None:
    """Put digits into the pipeline's inbox; `aged` ones are turned and inverted, as no clean one ever is."""
    files = digits(count, start=start, classes=classes, side=SIDE)
    if aged:
        files = {f"aged/{key}": _age(data) for key, data in files.items()}
    write_folder(Path(config.source.path), files)  # type: ignore[union-attr]


def _age(data: bytes) -> bytes:
    picture = Image.open(io.BytesIO(data)).transpose(Image.Transpose.ROTATE_90)
    sink = io.BytesIO()
    ImageOps.invert(picture).save(sink, "PNG")
    return sink.getvalue()


@dataclass(frozen=True)
class Outcome:
    """All that one tick made."""

    tick: Tick
    drift: DriftReport | None
    decision: Decision
    tried: tuple[Candidate, ...]
    evaluation: Evaluation | None
    move: AliasMove | None
    entry: JournalEntry


class NothingNew(Exception):
    """The source has no new file, and every window was treated."""


def open_tick(store: Store, config: PipelineConfig, request: str = "", replay: str = "") -> Tick:
    """Begin a tick over the next window, of a `replay` too; over the last one again if a person's `request` forces it."""
    entry = journal.stream(store).last() if request else journal.pending(store) or ingest.ingest(store, config)
    if entry is None:
        raise NothingNew
    return journal.begin(store, journal.outlook(store, entry, request=request, replay=replay))


def run_window(store: Store, config: PipelineConfig, request: str = "", replay: str = "") -> Outcome:
    """One whole tick: what the flow does, in its order."""
    tick = open_tick(store, config, request, replay)
    window = journal.window_of(store, tick.view)
    measured = drift.detect(store, config, tick) if tick.champion else None
    champion = champion_moves(store).entry(tick.champion_move)
    release = find(store, f"releases/{champion.release}/release.json", Release) if champion else None
    decision = decide.decide(
        config.policy,
        tick,
        window,
        measured,
        journal.previous(store, tick.seq, request),
        champion,
        release.created_at if release else None,
    )
    tried: list[Candidate] = []
    while rung := decide.next_rung(decision, tried):
        tried.append(fine_tune.fine_tune(store, config, tick, rung, tried[-1] if tried else None))
    evaluation, move = None, None
    if challenger := decide.best(tried):
        evaluation = evaluate.evaluate(store, config, tick, challenger, measured, against=tick.champion_move)
        bank = decide.bank_after(tick, window, measured, evaluation.trust)
        if evaluation.passed:
            move = publish.publish(store, config, tick, challenger, evaluation, bank)
    trust = evaluation.trust if evaluation else judge_labels(window, measured, None)
    bank = decide.bank_after(tick, window, measured, trust)
    entry = journal.sum_up(store, tick, measured, decision, tried, evaluation, move, trust, bank)
    entry = journal.end(store, tick, entry)
    return Outcome(tick, measured, decision, tuple(tried), evaluation, move, entry)


def release_of(store: Store, move: AliasMove) -> Release:
    """The release that a move made champion."""
    found = find(store, f"releases/{move.release}/release.json", Release)
    if found is None:
        raise LookupError(move.release)
    return found


@cache
def _first_version() -> TemporaryDirectory[str]:
    """A pipeline after its first window, made once a session."""
    folder = TemporaryDirectory(prefix="everfresh-first-")
    config = pipeline(Path(folder.name))
    arrive(config, 60)
    if run_window(FolderStore(Path(folder.name) / "store"), config).move is None:
        raise LookupError("the first window made no champion")
    return folder


def second_window(folder: Path, **changes: Any) -> tuple[FolderStore, PipelineConfig]:
    """A copy of a pipeline with a champion, in whose inbox 60 aged digits wait; any new sample makes it retrain."""
    shutil.copytree(_first_version().name, folder, dirs_exist_ok=True)
    policy = {"policy": {"triggers": [{"kind": "new_samples", "count": 1}], "ladder": ["head"]}}
    config = pipeline(folder, **policy | changes)
    arrive(config, 60, start=300, aged=True)
    return FolderStore(folder / "store"), config
