"""Pipelines of the two other tasks over small real pictures: the slant of a digit, and sets of classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from support.loop import SIDE, pipeline
from support.pictures import _digits, encode, table

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
    training = {"epochs": 30, "learning_rate": 0.01, "augment": "none", "batch_size": 16} | changes.pop("fine_tune", {})
    gates = [{"kind": "floor", "metric": "mae", "maximum": 9}, {"kind": "better"}, {"kind": "no_worse", "margin": 0.2}]
    return pipeline(folder, source=SIDECAR, model=model, fine_tune=training, gates=gates, **changes)


def leaning(config: PipelineConfig, count: int, *, start: int, scanner: Scanner = CLEAN) -> None:
    """Digits arrive that lean by known angles, seen through a scanner."""
    angles = np.random.default_rng(start).uniform(-STEEPEST, STEEPEST, count).round(2)
    files = {}
    for number, angle in enumerate(angles, start):
        grey = scan(_digits()[0][number][None] / 16, Scanner(scanner.contrast, scanner.blur, float(angle)))[0]
        small = np.asarray(Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        files[f"{number:04d}.png"] = (encode(small), float(angle))
    labelled(config, files)
