"""Pipelines of the two other tasks over small real pictures: the slant of a digit, and sets of classes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from support.loop import SIDE, pipeline
from support.pictures import _digits, digits, encode, table

from everfresh.flows.digits import Scanner, scan
from everfresh.tasks.config import PipelineConfig

SIDECAR = {"labels": {"kind": "sidecar", "path": "labels.jsonl"}}
STEEPEST = 25.0
"""Degrees that a digit leans to either side, at most."""
CLEAN, AGED = Scanner(), Scanner(contrast=0.35, blur=0.9)


def labelled(config: PipelineConfig, files: dict[str, tuple[bytes, Any]]) -> None:
    """Put files into the pipeline's inbox, and their labels into the table beside them."""
    inbox = Path(config.source.path)  # type: ignore[union-attr]
    inbox.mkdir(parents=True, exist_ok=True)
    sidecar = inbox / "labels.jsonl"
    rows = [{"key": key, "label": label} for key, (_, label) in files.items()]
    for key, (data, _) in files.items():
        (inbox / key).write_bytes(data)
    sidecar.write_bytes((sidecar.read_bytes() if sidecar.exists() else b"") + table(rows, "jsonl"))


def slants(folder: Path, **changes: Any) -> PipelineConfig:
    """A pipeline that tells by how many degrees a digit leans; five off is right."""
    model = {"task": "regression", "classes": (), "targets": ["slant"], "tolerance": 5.0} | changes.pop("model", {})
    training = {"epochs": 12, "learning_rate": 0.02, "augment": "none", "batch_size": 16} | changes.pop("fine_tune", {})
    gates = [{"kind": "floor", "metric": "mae", "maximum": 9}, {"kind": "better"}, {"kind": "no_worse", "margin": 0.2}]
    return pipeline(folder, source=SIDECAR, model=model, fine_tune=training, **{"gates": gates} | changes)


def leaning(config: PipelineConfig, count: int, *, start: int, scanner: Scanner = CLEAN) -> None:
    """Digits arrive that lean by known angles, seen through a scanner."""
    angles = np.random.default_rng(start).uniform(-STEEPEST, STEEPEST, count).round(2)
    files = {}
    for number, angle in enumerate(angles, start):
        grey = scan(_digits()[0][number][None] / 16, Scanner(scanner.contrast, scanner.blur, float(angle)))[0]
        small = np.asarray(Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        files[f"{number:04d}.png"] = (encode(small), float(angle))
    labelled(config, files)


DIGITS, DARK = ("zero", "one", "two"), "dark"


def sets(folder: Path, **changes: Any) -> PipelineConfig:
    """A pipeline that tells which digit is in a picture, and whether it is dark: two attributes, any set of them."""
    model = {"task": "multi_label", "classes": (*DIGITS, DARK)} | changes.pop("model", {})
    training = {"epochs": 10, "learning_rate": 0.02, "augment": "none", "batch_size": 16} | changes.pop("fine_tune", {})
    gates = [{"kind": "floor", "metric": "micro_f1", "minimum": 0.6}, {"kind": "better"}, {"kind": "no_worse", "margin": 0.2}]
    return pipeline(folder, source=SIDECAR, model=model, fine_tune=training, gates=gates, **changes)


def attributed(config: PipelineConfig, count: int, *, start: int, aged: bool = False) -> None:
    """Digits arrive, every second one in negative, which is not dark; aged ones lie on their side and are faint."""
    files = {}
    for place, (key, data) in enumerate(digits(count, start=start, classes=DIGITS, side=SIDE).items()):
        name, pixels = key.split("/")[0], np.asarray(Image.open(io.BytesIO(data)))
        pixels = np.rot90(pixels) // 3 + 60 if aged else pixels
        light = place % 2 == 0
        files[key.replace("/", "-")] = (
            encode(np.ascontiguousarray(pixels if light else 255 - pixels)),
            [name] + [DARK] * light,
        )
    labelled(config, files)
