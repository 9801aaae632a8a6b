"""The files of a release that hold the model, and whether they do what it did: the gate ``serves``.

They are written under ``packages/``; what has passed is copied to ``releases/<id>/`` when it is published. One
fresh process takes them from the store, verifies them, loads each format and predicts hold-out samples again. Files and
verdicts make one record, so a rerun after a crash writes and tries what is missing, and what failed stays failed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everfresh.tasks import errors, exports, models
from everfresh.tasks.architectures import source_digest
from everfresh.tasks.config import Export, PipelineConfig, ServesGate
from everfresh.tasks.embeddings import Embedder
from everfresh.tasks.errors import ExportError, ReleaseError
from everfresh.tasks.ledger import find
from everfresh.tasks.records import ModelSpec, Package, Part, Verdict, digest_of
from everfresh.tasks.signing import SIGNING_KEY, key_of, public_half, sign, verify
from everfresh.tasks.store import Store, file_digest, scratch
from everfresh.tasks.targets import Targets
from everfresh.tasks.views import View

WEIGHTS = "model.safetensors"
CODE = ("archives.py", "exports.py", "package.py", "serves.py")
LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime")
RECORDED = 10
"""Scores of classes of a hold-out sample that are recorded, the highest ones; where several may be right, all are."""
SAMPLES = 64
"""Hold-out samples that the fresh process predicts, at most, spread over all."""
CRASHES = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE})
"""Ends of a process that a file brings about; SIGKILL is the machine's, when memory runs out."""
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
    key = digest_of("package", 2, release, formats, gates, view.window.view, makers(config))
    if (known := _known(store, key, release, weights)) is not None:
        return known
    with scratch() as folder:
        try:
            write(store, config, spec, weights, view, formats, folder)
        except ExportError as error:
            verdict = Verdict(gate="serves", passed=False, numbers={}, words=f"serves: {error}")
            return _settle(store, key, Package(release=release, files={}, verdicts=(verdict,)))
        files = {path.name: store.keep_file(f"packages/{key}/{path.name}", path) for path in sorted(folder.iterdir())}
    tried = _try_in_fresh_process(store, config, spec, files, view)
    verdicts = tuple(judge(gate, tried) for gate in gates)
    return _settle(store, key, Package(release=release, files=files, verdicts=verdicts))


def makers(config: PipelineConfig) -> str:
    """Digest of the code and libraries that make and try the files: what failed with others may pass with these."""
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    here = Path(__file__).parent
    return digest_of(versions, [file_digest(here / name) for name in CODE], source_digest(config.model.architecture))


def _known(store: Store, key: str, release: str, weights: Part) -> Package | None:
    """The package of an earlier run, if it is of these weights and, where releases are signed here, was signed as well.

    Who signs a release vouches for its files, and must not take the word of whoever can write to the store.
    """
    known = find(store, f"packages/{key}/record.json", Package)
    if known is None or known.release != release:
        return None
    if known.files and known.files.get(WEIGHTS, weights).sha256 != weights.sha256:
        return None
    if (private := key_of(SIGNING_KEY)) is None:
        return known
    with scratch() as folder:
        (folder / "public.pem").write_bytes(public_half(private))
        try:
            verify(key, _digests(key, known), known.signature.encode(), folder / "public.pem")
        except ReleaseError:
            return None
    return known


def _settle(store: Store, key: str, made: Package) -> Package:
    """Record a package, in place of one that is not to be believed."""
    if (private := key_of(SIGNING_KEY)) is not None:
        made = made.model_copy(update={"signature": sign(key, _digests(key, made), private).decode()})
    place = f"packages/{key}/record.json"
    if not store.create(place, made.to_bytes()):
        store.put(place, made.to_bytes())
    return made


def _digests(key: str, made: Package) -> dict[str, str]:
    return {key: hashlib.sha256(made.model_copy(update={"signature": ""}).to_bytes()).hexdigest()}


def write(
    store: Store, config: PipelineConfig, spec: ModelSpec, weights: Part, view: View, formats: Sequence[Export], folder: Path
) -> None:
    """Write the files of a release that hold the model into a folder: weights, exports, configuration, hold-out.

    Raises:
        ExportError: the network cannot be written in one of the formats.
    """
    embedder = Embedder.open(store, spec, weights, code=config.model.architecture)
    exports.export(embedder.module, spec, formats, folder)
    shutil.copyfile(store.local(weights), folder / WEIGHTS)
    rows = view.rows("holdout", Targets.of(spec))
    (folder / "config.json").write_text(as_json(consumer_config(config, spec, formats)))
    (folder / "holdout.jsonl").write_text(_holdout(view, spec, rows, embedder.scores(view, rows)[1].numpy()))


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
    if "crashed" in tried:
        return Verdict(gate="serves", passed=False, numbers={"tolerance": gate.tolerance}, words=f"serves: {tried['crashed']}")
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
            if -done.returncode in CRASHES and (trying := folder / "trying").is_file():
                told = signal.Signals(-done.returncode).name
                return {"crashed": f"{trying.read_text()} does not load (the process that read it crashed, {told})"}
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
