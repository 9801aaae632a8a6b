"""A process that knows a release by its address alone: ``python -m everfresh.tasks.serves FOLDER``.

It takes every file from the store, verifies its digest, loads each format and says how far its scores of some hold-out
samples are from those that were recorded. FOLDER holds ``asked.json``; the answer becomes ``answer.json``. ``model.pt2`` and
``model.onnx`` are run by torch and ONNX Runtime without the network's code.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from everfresh.tasks import exports, inputs, models
from everfresh.tasks.architectures import load_strict, read_weights
from everfresh.tasks.config import Export, S3Config
from everfresh.tasks.errors import StoreError, passing
from everfresh.tasks.records import ModelSpec, Part
from everfresh.tasks.store import Store, open_store
from everfresh.tasks.store.base import check_digest
from everfresh.tasks.targets import Targets
from everfresh.tasks.views import View

Scores = NDArray[np.float32]
TRYING = "trying"
"""Names the format that is being read, for who finds the process dead."""


def main(folder: Path) -> None:
    """Answer what is asked in `folder`."""
    try:
        answer = _answer(json.loads((folder / "asked.json").read_text()), folder)
    except StoreError as error:
        answer = {"error": type(error).__name__, "words": str(error)}
    partial = folder / "answer.partial"
    partial.write_text(json.dumps(answer))
    partial.replace(folder / "answer.json")


def _answer(asked: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    store = open_store(asked["store"], S3Config(**asked["s3"]))
    spec = ModelSpec(**asked["spec"])
    files = {name: Part(**part) for name, part in asked["files"].items()}
    for name, part in files.items():
        store.fetch(part.key, folder / name)
        check_digest(folder / name, part, store.url(part.key))
    lines = [json.loads(line) for line in (folder / "holdout.jsonl").read_text().splitlines()]
    chosen = np.unique(np.linspace(0, len(lines) - 1, min(len(lines), asked["samples"])).astype(int))
    view = View(store, asked["view"])
    data = list(view.read(int(row) for row in view.rows("holdout", Targets.of(spec))[chosen]))
    recorded = [lines[i] for i in chosen]
    loaders: dict[str, Callable[[], Scores]] = {
        "safetensors": lambda: _by_weights(folder / "model.safetensors", store, spec, asked["code"], data)
    }
    for name in (name for name, file in exports.FILES.items() if file in files):
        loaders[name] = lambda name=name: _by_export(folder / exports.FILES[name], name, spec, data)  # type: ignore[misc]
    found = {}
    for name, load in loaders.items():
        (folder / TRYING).write_text(name)
        found[name] = _tried(load, spec, recorded)
    return {"samples": len(data), "of": "their range" if spec.task == "regression" else "the largest", "formats": found}


def _by_export(path: Path, name: Export, spec: ModelSpec, data: Sequence[bytes]) -> Scores:
    return exports.opened(path, name)(np.stack([exports.sample(one, spec) for one in data]))


def _tried(load: Callable[[], Scores], spec: ModelSpec, recorded: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    try:
        scores = load()
    except Exception as error:  # of torch, ONNX Runtime, or somebody else's code
        if passing(error):
            raise
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    flipped = 0
    if spec.task != "regression":  # whose predictions are the scores
        said = Targets.of(spec).texts(scores)
        flipped = sum(one != line["predicted"] for one, line in zip(said, recorded, strict=True))
    return {"off": furthest(scores, spec.classes, recorded, values=spec.task == "regression"), "flipped": flipped}


def furthest(scores: Scores, names: Sequence[str], recorded: Sequence[Mapping[str, Any]], *, values: bool = False) -> float:
    """Largest difference of a score (N, C) from its recorded one; infinite where one is no number.

    Of classes it is a share of the largest recorded score (at least 1). One that was not recorded is not among the highest: it
    is off by what it is above the lowest of these. Of values it is a share of what each ranges over, see `exports.spans`.
    """
    place = {name: i for i, name in enumerate(names)}
    known = np.full((len(recorded), len(names)), np.nan)  # (N, C)
    for row, line in zip(known, recorded, strict=True):
        row[[place[name] for name in line["scores"]]] = list(line["scores"].values())
    if scores.shape != known.shape or not np.isfinite(scores).all():
        return float("inf")
    above = np.maximum(scores - np.nanmin(known, axis=1, keepdims=True), 0)
    off = np.where(np.isnan(known), above, abs(scores - known))
    return float((off / (exports.spans(known) if values else max(1.0, np.nanmax(abs(known))))).max())


@torch.no_grad()
def _by_weights(path: Path, store: Store, spec: ModelSpec, code: str, data: Sequence[bytes]) -> Scores:
    module = models.skeleton(spec, store.url(""), code=code)
    load_strict(module, read_weights(path, path.name), path.name)
    samples = torch.stack([inputs.decode(one, spec) for one in data])
    return cast(Scores, module.eval()(inputs.prepare(samples, spec)).numpy())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
