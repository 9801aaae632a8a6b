"""The gate `serves`: what is released is loaded again by a fresh process, and what it cannot load never goes live."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import consumer
from support.fate import Died, Fated
from support.keys import pair
from support.loop import Outcome, arrive, pipeline, release_of, run_window
from support.tables import pipeline as tables
from support.tables import table, write

from everfresh.tasks import package as packages
from everfresh.tasks.config import PipelineConfig, ServesGate
from everfresh.tasks.errors import DigestMismatch, ReleaseError
from everfresh.tasks.ledger import champion_moves
from everfresh.tasks.package import gates_of, judge, package
from everfresh.tasks.records import Package, Verdict
from everfresh.tasks.serves import furthest
from everfresh.tasks.signing import SIGNING_KEY
from everfresh.tasks.store import FolderStore, Store
from everfresh.tasks.sweep import debris
from everfresh.tasks.views import View

BOTH = {"formats": ["pt2", "onnx"]}


class Served:
    """A pipeline whose first release has all formats."""

    def __init__(self, folder: Path) -> None:
        # Files of 16 pixels for a network of 20, so that consumers resize.
        model = {"image_size": 20}
        self.config = pipeline(folder, release=BOTH, model=model, gates=[{"kind": "floor", "minimum": 0}])
        self.store = FolderStore(folder / "store")
        arrive(self.config, 60)
        self.outcome = run_window(self.store, self.config)
        assert self.outcome.move is not None
        self.release = release_of(self.store, self.outcome.move)
        self.view = View(self.store, self.release.holdout_view)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(tmp_path_factory.mktemp("served"))


def verdict_of(outcome: Outcome) -> Verdict:
    """Of the gate `serves`."""
    assert outcome.evaluation is not None
    (found,) = [v for v in outcome.evaluation.verdicts if v.gate == "serves"]
    return found


def test_a_release_is_loaded_again_in_every_format_before_it_goes_live(served: Served) -> None:
    verdict = verdict_of(served.outcome)
    assert verdict.passed
    assert verdict.numbers["off"] < 1e-5
    assert verdict.numbers["flipped"] == 0
    assert verdict.numbers["samples"] == len(served.view.rows("holdout", served.config.model.classes))
    assert "in a fresh process scores of" in verdict.words
    assert all(f"{name} by" in verdict.words for name in ("safetensors", "pt2", "onnx"))
    assert {"model.pt2", "model.onnx"} <= served.release.files.keys()
    config = json.loads(served.store.read(served.release.files["config.json"]))
    assert config["exports"]["model.onnx"] == {
        "input": {"name": "samples", "shape": ["N", 3, 20, 20], "dtype": "uint8"},
        "output": {"name": "scores", "shape": ["N", 3]},
        "opset": 20,
    }


def again(served: Served, config: PipelineConfig | None = None) -> Any:
    candidate = served.outcome.tried[-1]
    return package(served.store, config or served.config, candidate.key, candidate.spec, candidate.weights, served.view)


def test_what_was_tried_is_not_tried_again(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.sys, "executable", "/nowhere")
    made = again(served)
    assert {name: part.sha256 for name, part in made.files.items()}.items() <= {
        name: part.sha256 for name, part in served.release.files.items()
    }.items()
    assert made.verdicts == (verdict_of(served.outcome),)


def test_what_somebody_planted_is_not_taken_for_tried(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of other weights never; where releases are signed, only what was signed as well."""
    shutil.copytree(served.store.root, tmp_path / "store")
    store = FolderStore(tmp_path / "store")
    candidate = served.outcome.tried[-1]
    (place,) = [item.key for item in store.list("packages") if item.key.endswith("record.json")]
    true = Package.from_bytes(store.get(place), place)
    monkeypatch.setattr(
        packages,
        "_try_in_fresh_process",
        lambda *_: {"samples": 1, "of": "it", "formats": {"onnx": {"off": 0.0, "flipped": 0}}},
    )

    def made() -> Package:
        return package(store, served.config, candidate.key, candidate.spec, candidate.weights, served.view)

    def plant(name: str) -> None:
        part = store.keep("packages/planted", b"evil")
        store.put(place, true.model_copy(update={"files": true.files | {name: part}}).to_bytes())

    plant("model.safetensors")
    assert made().files["model.safetensors"].sha256 == candidate.weights.sha256
    monkeypatch.setenv(SIGNING_KEY, str(pair(tmp_path)[0]))
    plant("model.pt2")
    again = made()
    assert again.files["model.pt2"].sha256 == true.files["model.pt2"].sha256
    assert made() == again


def test_a_process_without_an_answer_says_nothing_of_the_files(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.sys, "executable", "/bin/false")
    other = served.config.model_copy(update={"gates": (ServesGate(tolerance=0.5),)})
    with pytest.raises(ReleaseError, match=r"must answer, got exit status 1 \(nothing on stderr\)\. Nothing went live"):
        again(served, other)


def tried(served: Served, files: dict[str, Any]) -> dict[str, Any]:
    return packages._try_in_fresh_process(served.store, served.config, served.release.spec, files, served.view)


WRITES = 6
"""Of a package: five files and its record."""


@pytest.mark.slow
@pytest.mark.parametrize("at", range(1, WRITES + 1))
def test_a_death_at_any_write_is_made_good_by_the_rerun(served: Served, tmp_path: Path, at: int) -> None:
    shutil.copytree(served.store.root, tmp_path / "store")
    store = FolderStore(tmp_path / "store")
    for item in [*store.list("packages"), *store.list("releases")]:
        store.delete(item.key)
    candidate = served.outcome.tried[-1]
    wanted = (served.config, candidate.key, candidate.spec, candidate.weights, served.view)
    with pytest.raises(Died):
        package(Fated(store.root, at=at, when="before"), *wanted)
    assert not [item for item in store.list("packages") if item.key.endswith("record.json")]
    made = package(store, *wanted)
    assert {n: p.sha256 for n, p in made.files.items()} == {n: served.release.files[n].sha256 for n in made.files}
    assert made.verdicts[0].passed
    assert debris(store, timedelta(0)) == []


def test_files_that_do_not_load_are_named(served: Served) -> None:
    files = dict(served.release.files)
    whole = served.store.read(files["model.onnx"])
    files["model.onnx"] = served.store.keep("releases/strange/model.onnx", whole[: len(whole) // 2])
    files["model.pt2"] = served.store.keep("releases/strange/model.pt2", b"PK not really")
    found = tried(served, files)
    verdict = judge(ServesGate(), found)
    assert not verdict.passed
    assert "pt2 does not load (" in verdict.words
    assert "onnx does not load (" in verdict.words
    assert "safetensors does not load" not in verdict.words
    assert judge(ServesGate(formats=("safetensors",)), found).passed


def test_a_file_that_crashes_its_reader_is_a_failed_verdict(
    served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The loop goes on; a process that was killed, or died before it read a file, says nothing of one."""
    python = tmp_path / "python"
    monkeypatch.setattr(packages.sys, "executable", str(python))

    def dies(how: str) -> dict[str, Any]:
        python.write_text(f"#!/bin/sh\nfor folder; do :; done\n{how}\n")
        python.chmod(0o755)
        return tried(served, dict(served.release.files))

    found = dies('printf onnx > "$folder/trying"; kill -SEGV $$')
    verdict = judge(ServesGate(formats=("pt2",)), found)
    assert not verdict.passed
    assert verdict.words == "serves: onnx does not load (the process that read it crashed, SIGSEGV)"
    for how in ('printf onnx > "$folder/trying"; kill -KILL $$', "kill -SEGV $$"):
        with pytest.raises(ReleaseError, match=r"must answer, got exit status -(9|11)"):
            dies(how)


@pytest.mark.parametrize("version", ["torch", "onnxruntime"])
def test_another_library_tries_again(served: Served, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, real = packages.makers(served.config), importlib.metadata.version
    assert before == packages.makers(served.config)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9" if name == version else real(name))
    assert packages.makers(served.config) != before


def test_a_model_that_predicts_otherwise_fails_with_its_distance() -> None:
    formats = {"safetensors": {"off": 1e-7, "flipped": 0}, "onnx": {"off": 0.02, "flipped": 1}}
    found = {"samples": 3, "of": "the largest", "formats": formats}
    verdict = judge(ServesGate(), found)
    assert (verdict.passed, verdict.numbers["off"], verdict.numbers["flipped"]) == (False, 0.02, 1)
    assert verdict.words == (
        "serves: in a fresh process scores of 3 hold-out samples were off safetensors by 1e-07, onnx by 0.02 of the largest, "
        "and may be 0.001"
    )
    assert judge(ServesGate(tolerance=0.05), found).passed


def test_bytes_that_were_changed_after_the_upload_are_refused(served: Served) -> None:
    files = dict(served.release.files)
    part = files["model.onnx"]
    files["model.onnx"] = served.store.keep("releases/strange/model.onnx", b"x").model_copy(update={"sha256": part.sha256})
    with pytest.raises(DigestMismatch, match=r"strange/model\.onnx must have SHA-256"):
        tried(served, files)


def test_consumers_without_everfresh_reproduce_the_recorded_accuracy(served: Served) -> None:
    """By weights and by model.pt2 just so; by model.onnx to one sample in a hundred, for Pillow resizes a shade otherwise."""
    accuracy, as_recorded = consumer.score(served.store.root, served.release.id)
    assert (accuracy, as_recorded) == (pytest.approx(served.release.accuracy), 1)
    by_pt2 = consumer.consumer(consumer.DOCS / "consume_pt2.py").score(served.store.root, served.release.id)
    assert by_pt2 == pytest.approx(served.release.accuracy)
    code = f"""
import runpy, sys
score = runpy.run_path({str(consumer.DOCS / "consume_onnx.py")!r})["score"]
from pathlib import Path
print(score(Path({str(served.store.root)!r}), {served.release.id!r}), "torch" in sys.modules, "everfresh" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    by_onnx, *loaded = done.stdout.split()
    assert float(by_onnx) == pytest.approx(served.release.accuracy, abs=0.01)
    assert loaded == ["False", "False"]


def test_what_cannot_be_exported_is_a_failed_verdict_and_not_the_end_of_the_loop(tmp_path: Path) -> None:
    config = pipeline(
        tmp_path, release=BOTH, model={"architecture": "support.networks:choosy"}, gates=[{"kind": "floor", "minimum": 0}]
    )
    store = FolderStore(tmp_path / "store")
    arrive(config, 24)
    outcome = run_window(store, config)
    verdict = verdict_of(outcome)
    assert not verdict.passed
    assert "leave pt2 out of release.formats" in verdict.words
    assert outcome.move is None
    assert outcome.entry.failed_gates == ("serves",)
    assert champion_moves(store).last_seq() == 0
    assert not [item for item in store.list("releases") if item.key.endswith("release.json")]


@pytest.mark.slow
def test_rows_are_served_too(tmp_path: Path) -> None:
    config = tables(tmp_path, release=BOTH, gates=[{"kind": "floor", "minimum": 0}])
    write(tmp_path / "inbox/one.parquet", table(120))
    outcome = run_window(FolderStore(tmp_path / "store"), config)
    assert verdict_of(outcome).numbers["off"] < 1e-5
    assert outcome.move is not None


def test_a_store_on_s3_is_asked_by_the_fresh_process(s3_store: Store, served: Served) -> None:
    for item in served.store.list():
        s3_store.put(item.key, served.store.get(item.key))
    found = packages._try_in_fresh_process(s3_store, served.config, served.release.spec, served.release.files, served.view)
    assert judge(ServesGate(), found).passed


def test_the_gate_is_there_unless_there_is_no_format(tmp_path: Path) -> None:
    assert gates_of(pipeline(tmp_path)) == ()
    assert gates_of(pipeline(tmp_path, release=BOTH)) == (ServesGate(),)
    named = [{"kind": "floor"}, {"kind": "serves", "tolerance": 0.1}]
    assert gates_of(pipeline(tmp_path, gates=named)) == (ServesGate(tolerance=0.1),)


@given(
    st.lists(st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3), min_size=1, max_size=5),
    st.floats(0, 1),
)
def test_the_furthest_score_is_found_relative_to_the_largest(values: list[list[float]], shift: float) -> None:
    names, scores = ("a", "b", "c"), np.array(values, dtype=np.float32)
    recorded = [{"scores": dict(zip(names, map(float, row), strict=True))} for row in scores]
    assert furthest(scores, names, recorded) == 0
    moved = scores.copy()
    moved[-1, 1] += shift
    largest = max(1.0, float(np.abs(scores).max()))
    assert furthest(moved, names, recorded) == pytest.approx(abs(float(moved[-1, 1]) - float(scores[-1, 1])) / largest)
    moved[0, 0] = np.nan
    assert furthest(moved, names, recorded) == float("inf")


@pytest.mark.parametrize(("moved", "off"), [([[4e-4, 250_000], [8e-4, 150_000]], 0), ([[0, 250_000], [8e-4, 150_000]], 1)])
def test_a_small_value_is_not_hidden_by_a_large_one(moved: list[list[float]], off: float) -> None:
    recorded = [{"scores": {"dose": 4e-4, "price": 250_000.0}}, {"scores": {"dose": 8e-4, "price": 150_000.0}}]
    found = furthest(np.array(moved, dtype=np.float32), ("dose", "price"), recorded, values=True)
    assert found == pytest.approx(off, abs=1e-6)


def test_values_that_are_all_small_are_told_from_zero() -> None:
    recorded = [{"scores": {"dose": 4e-4}}, {"scores": {"dose": 5e-4}}]
    assert furthest(np.zeros((2, 1), dtype=np.float32), ("dose",), recorded, values=True) > 1


def test_a_class_that_was_not_among_the_highest_may_not_win() -> None:
    names = [f"c{i}" for i in range(12)]
    scores = np.arange(12, 0, -1, dtype=np.float32)[None]
    recorded = [{"scores": {f"c{i}": 12.0 - i for i in range(10)}}]
    assert furthest(scores, names, recorded) == 0
    scores[0, 11] = 15
    assert furthest(scores, names, recorded) == pytest.approx((15 - 3) / 12)
    assert furthest(scores[:, :10], names, recorded) == float("inf")


@pytest.mark.parametrize(("task", "count"), [("single_label", 10), ("multi_label", 12), ("regression", 12)])
def test_of_classes_the_highest_scores_are_recorded_and_else_all(served: Served, task: str, count: int) -> None:
    spec = served.release.spec.model_copy(update={"task": task, "classes": tuple(f"t{i}" for i in range(12))})
    lines = packages._holdout(served.view, spec, np.arange(2), np.ones((2, 12), dtype=np.float32)).splitlines()
    assert [len(json.loads(line)["scores"]) for line in lines] == [count] * 2
