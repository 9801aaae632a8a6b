"""The files of a release that hold the model, and whether they do what it did: the gate ``serves``.

They are written under ``releases/<id>/`` while nothing there is visible yet, for readers look for ``release.json``. Then one
fresh process takes them from the store, verifies them, loads each format and predicts hold-out samples again. Files and
verdicts make one record, so a rerun after a crash writes and tries what is missing, and what failed stays failed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everfresh.tasks import errors, exports, models
from everfresh.tasks.config import Export, PipelineConfig, ServesGate
from everfresh.tasks.embeddings import Embedder
from everfresh.tasks.errors import ExportError, ReleaseError
from everfresh.tasks.ledger import find, settle
from everfresh.tasks.records import ModelSpec, Package, Part, Verdict, digest_of
from everfresh.tasks.store import Store, scratch
from everfresh.tasks.targets import Targets
from everfresh.tasks.views import View

WEIGHTS = "model.safetensors"
RECORDED = 10
"""Scores of classes of a hold-out sample that are recorded, the highest ones; where several may be right, all are."""
SAMPLES = 64
"""Hold-out samples that the fresh process predicts, at most, spread over all."""
WITHIN = 900.0
"""Seconds for the fresh process; a hundredth of it is usual."""


def gates_of(config: PipelineConfig) -> tuple[ServesGate, ...]:
    """The gates ``serves`` that a challenger must pass: those of the pipeline file, or one as it comes for its formats."""
    named = tuple(gate for gate in config.gates if isinstance(gate, ServesGate))
    return named or ((ServesGate(),) if config.release.formats else ())


def package(store: Store, config: PipelineConfig, release: str, spec: ModelSpec, weights: Part, view: View) -> Package:
    """The files of a release to be, written and tried; those of an earlier run if there was one.

    Args:
        store: of the pipeline.
        config: of the pipeline; names the formats and the gates.
        release: id of the release that they are for.
        spec: of the model.
        weights: its safetensors, wherever they stand.
        view: the window whose hold-out it is tried on.

    Raises:
        ReleaseError: the process that tries them ended without an answer, which says nothing of them.
    """
    gates, formats = gates_of(config), config.release.formats
    key = digest_of("package", 1, release, formats, gates, view.window.view)
    if (known := find(store, f"packages/{key}/record.json", Package)) is not None:
        return known
    try:
        files = write(store, config, release, spec, weights, view, formats)
    except ExportError as error:
        verdict = Verdict(gate="serves", passed=False, numbers={}, words=f"serves: {error}")
        return settle(store, f"packages/{key}/record.json", Package(release=release, files={}, verdicts=(verdict,)))
    tried = _try_in_fresh_process(store, config, spec, files, view)
    verdicts = tuple(judge(gate, tried) for gate in gates)
    return settle(store, f"packages/{key}/record.json", Package(release=release, files=files, verdicts=verdicts))


def write(
    store: Store, config: PipelineConfig, release: str, spec: ModelSpec, weights: Part, view: View, formats: Sequence[Export]
) -> dict[str, Part]:
    """Write the files of a release to be that hold the model: weights, exports, configuration, hold-out.

    Raises:
        ExportError: the network cannot be written in one of the formats.
    """
    folder = f"releases/{release}"
    files = {WEIGHTS: store.keep_file(f"{folder}/{WEIGHTS}", store.local(weights))}
    embedder = Embedder.open(store, spec, files[WEIGHTS], code=config.model.architecture)
    with scratch() as temporary:
        for path in exports.export(embedder.module, spec, formats, temporary):
            files[path.name] = store.keep_file(f"{folder}/{path.name}", path)
    rows = view.rows("holdout", Targets.of(spec))
    texts = {
        "config.json": as_json(consumer_config(config, spec, formats)),
        "holdout.jsonl": _holdout(view, spec, rows, embedder.scores(view, rows)[1].numpy()),
    }
    return files | {name: keep_first(store, f"{folder}/{name}", text.encode()) for name, text in texts.items()}


def keep_first(store: Store, key: str, data: bytes) -> Part:
    """The part under `key`: these bytes, or those of a run that was first and whose record may name them already.

    Written again also where they stand: what a run that died has left must not look like debris any longer.
    """
    return store.keep(key, data if store.create(key, data) else store.get(key))


def as_json(value: Any) -> str:
    """A value as a file that people read too."""
    return json.dumps(value, indent=1, default=str) + "\n"


def consumer_config(config: PipelineConfig, spec: ModelSpec, formats: Sequence[Export]) -> dict[str, Any]:
    """All that a consumer without Everfresh needs to build the model and feed it."""
    return {
        "pipeline": config.name,
        "architecture": spec.architecture,
        "task": spec.task,
        "targets" if spec.task == "regression" else "classes": spec.classes,
        "tolerance": spec.tolerance,
        "head": {"path": spec.head, "embedding_dim": spec.embedding_dim, "kind": models.head_kind(spec)},
        **(
            {"features": [f.model_dump(mode="json") for f in spec.features]}
            if spec.features
            else {"transforms": {"resize": spec.image_size, "center_crop": spec.image_size, "mean": spec.mean, "std": spec.std}}
        ),
        **({"exports": {exports.FILES[name]: exports.signature(spec, name) for name in formats}} if formats else {}),
    }


def _holdout(view: View, spec: ModelSpec, rows: NDArray[np.int64], scores: NDArray[np.float32]) -> str:
    """One line a hold-out sample: where its bytes are, its label, what the model said, and its highest scores."""
    lines = []
    for row, guess, values in zip(rows, Targets.of(spec).texts(scores), scores, strict=True):
        sample = view.samples[int(row)]
        highest = np.argsort(-values, kind="stable")[: RECORDED if spec.task == "single_label" else None]
        line = {
            "shard": view.shard(sample).key,
            "offset": sample.offset,
            "size": sample.size,
            "label": sample.label,
            "predicted": guess,
            "scores": {spec.classes[i]: float(f"{values[i]:.7g}") for i in highest},
        }
        lines.append(json.dumps(line) + "\n")
    return "".join(lines)


# --- the gate -------------------------------------------------------------------------------------------------


def judge(gate: ServesGate, tried: Mapping[str, Any]) -> Verdict:
    """What a gate says of what the fresh process found."""
    formats = [name for name in tried["formats"] if not gate.formats or name in gate.formats]
    found = {name: tried["formats"][name] for name in formats}
    numbers = {"tolerance": gate.tolerance, "samples": float(tried["samples"])}
    if broken := [f"{name} does not load ({found[name]['error']})" for name in formats if "error" in found[name]]:
        return Verdict(gate="serves", passed=False, numbers=numbers, words=f"serves: {'; '.join(broken)}")
    off = max(found[name]["off"] for name in formats)
    passed = off <= gate.tolerance
    told = ", ".join(f"{name} by {found[name]['off']:.1g}" for name in formats)
    return Verdict(
        gate="serves",
        passed=passed,
        numbers=numbers | {"off": off, "flipped": float(max(found[name]["flipped"] for name in formats))},
        words=(
            f"serves: in a fresh process scores of {tried['samples']} hold-out samples were off {told} of {tried['of']}, "
            f"{'≤' if passed else 'and may be'} {gate.tolerance:g}"
        ),
    )


def _try_in_fresh_process(
    store: Store, config: PipelineConfig, spec: ModelSpec, files: Mapping[str, Part], view: View
) -> dict[str, Any]:
    """What a process found that started with nothing but the address of the files, see `tasks/serves.py`."""
    with scratch() as folder:
        asked = {
            "store": store.url(""),
            "s3": config.s3.model_dump(mode="json"),
            "spec": spec.model_dump(mode="json"),
            "code": config.model.architecture,
            "files": {name: part.model_dump(mode="json") for name, part in files.items()},
            "view": view.window.view,
            "samples": SAMPLES,
        }
        (folder / "asked.json").write_text(json.dumps(asked))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path)}
        command = [sys.executable, "-W", "ignore", "-m", "everfresh.tasks.serves", str(folder)]
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=WITHIN, check=False)  # noqa: S603
            answer: dict[str, Any] = json.loads((folder / "answer.json").read_text())
        except subprocess.TimeoutExpired:
            raise _no_answer(f"none within {WITHIN:.0f} s") from None
        except FileNotFoundError:
            last = done.stderr.strip().splitlines()[-1:] or ["nothing on stderr"]
            raise _no_answer(f"exit status {done.returncode} ({last[0][:300]})") from None
    if "error" in answer:  # of the store, which may pass
        raise getattr(errors, answer["error"])(answer["words"])
    return answer


def _no_answer(got: str) -> ReleaseError:
    return ReleaseError(
        f"serves: the process that loads the release again must answer, got {got}. Nothing went live; give it memory and time "
        "and run again."
    )
