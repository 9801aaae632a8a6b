"""The whole loop over the two other tasks: numbers, and sets of classes. A world that changes is noticed and learnt."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from support import consumer
from support.loop import Outcome, release_of, run_window
from support.tasks import AGED, DARK, DIGITS, attributed, labelled, leaning, sets, slants

from everfresh.flows.check import check
from everfresh.tasks.embeddings import Embedder
from everfresh.tasks.records import Scores
from everfresh.tasks.store import FolderStore
from everfresh.tasks.targets import Targets
from everfresh.tasks.views import View


def scores_of(done: Outcome) -> tuple[Scores, Scores]:
    """Challenger and champion on the window's hold-out."""
    assert done.evaluation is not None
    assert done.evaluation.window.champion is not None
    return done.evaluation.window.challenger, done.evaluation.window.champion


def test_a_regression_follows_a_scanner_that_ages(tmp_path: Path) -> None:
    store, config = FolderStore(tmp_path / "store"), slants(tmp_path, policy={"ladder": ["full"]})
    leaning(config, 180, start=0)
    labelled(config, {"nan.png": ((tmp_path / "inbox/0000.png").read_bytes(), float("nan"))})
    first = run_window(store, config)
    assert first.move is not None
    assert first.entry.quarantined == 1  # the label that is no number; nothing else is lost
    assert first.entry.labelled == 180
    reason = json.loads(store.get(f"quarantine/{first.tick.view}/quarantine.jsonl"))["reason"]
    assert "has NaN as its label" in reason
    window = View(store, first.tick.view).window
    assert len(window.classes) == len(window.train_classes) == 2  # however many angles there are
    assert window.chance is not None
    assert window.chance < 0.4
    release = release_of(store, first.move)
    assert (release.spec.task, release.spec.classes, release.spec.tolerance) == ("regression", ("slant",), 5.0)
    told = json.loads(store.read(release.files["config.json"]))
    assert (told["task"], told["targets"], told["tolerance"]) == ("regression", ["slant"], 5.0)

    leaning(config, 100, start=180, scanner=AGED)
    done = run_window(store, config)
    assert done.drift is not None
    assert done.drift.alarm
    assert done.drift.labels is not None
    assert done.drift.severity > 0.1
    assert "prediction:slant" in {c.name for c in done.drift.columns}
    assert done.drift.estimated_accuracy.low <= done.drift.labels.champion.value <= done.drift.estimated_accuracy.high
    assert done.move is not None
    challenger, champion = scores_of(done)
    assert challenger.metrics["mae"] < 0.7 * champion.metrics["mae"]
    assert challenger.metrics["r2"] > champion.metrics["r2"]
    assert challenger.precision is None
    lines = [json.loads(line) for line in store.read(release_of(store, done.move).files["holdout.jsonl"]).splitlines()]
    near = np.mean([abs(float(line["label"]) - float(line["predicted"])) <= 5 for line in lines])
    assert near == pytest.approx(challenger.accuracy)
    accuracy, as_recorded = consumer.score(tmp_path / "store", done.move.release)
    assert (accuracy, as_recorded) == (pytest.approx(challenger.accuracy), 1)
    assert done.evaluation is not None
    assert set(done.evaluation.files) == {"values.png"}


def test_sets_of_classes_follow_pictures_that_are_turned(tmp_path: Path) -> None:
    store, config = FolderStore(tmp_path / "store"), sets(tmp_path)
    attributed(config, 160, start=0)
    first = run_window(store, config)
    assert first.move is not None
    assert set(View(store, first.tick.view).window.classes) == {*DIGITS, *(f"{DARK}|{name}" for name in DIGITS)}
    attributed(config, 120, start=600, aged=True)
    done = run_window(store, config)
    assert done.drift is not None
    assert done.drift.alarm
    assert done.drift.classes == ()  # shares of classes that exclude each other
    assert "P(dark)" in {c.name for c in done.drift.columns}
    assert done.move is not None
    challenger, champion = scores_of(done)
    assert challenger.accuracy > champion.accuracy + 0.2
    for name in ("micro_f1", "hamming_accuracy", "mean_average_precision"):
        assert challenger.metrics[name] >= champion.metrics[name]
    accuracy, as_recorded = consumer.score(tmp_path / "store", done.move.release)
    assert (accuracy, as_recorded) == (pytest.approx(challenger.accuracy), 1)
    release = release_of(store, done.move)
    assert json.loads(store.read(release.files["config.json"]))["classes"] == [*DIGITS, DARK]
    assert b"says which of 4 classes a picture has; right means all of them" in store.read(release.files["card.md"])
    assert done.evaluation is not None
    assert set(done.evaluation.files) == {"classes.png"}


def test_check_tells_what_labels_are_not_those_of_the_task(tmp_path: Path) -> None:
    config = slants(tmp_path)
    leaning(config, 3, start=0)
    (line,) = [line for line in check(config) if line.name == "classes"]
    assert (line.passed, line.words) == (True, "3 rows of labels, 3 different labels")
    wrong = [{"key": f"{n:04d}.png", "label": "steep"} for n in range(3)]
    (tmp_path / "inbox/labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in wrong))
    (line,) = [line for line in check(config) if line.name == "classes"]
    assert not line.passed
    assert "must have a finite decimal number" in line.words


DOMAINS = ("photo", "art_painting", "cartoon")
NAMES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")


@pytest.mark.skipif(not {"PACS_DATA", "SQUEEZENET"} <= os.environ.keys(), reason="PACS_DATA and SQUEEZENET name no files")
def test_class_and_domain_of_pacs(tmp_path: Path) -> None:
    """Photographs first, then paintings: both the class and the domain are asked of each picture."""
    model = {
        "architecture": "squeezenet1_1",
        "weights": os.environ["SQUEEZENET"],
        "image_size": 96,
        "classes": (*NAMES, *DOMAINS),
    }
    model |= {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "tolerance": 1}
    config = sets(tmp_path, model=model, policy={"bootstrap": "head", "ladder": ["head"]})
    store = FolderStore(tmp_path / "store")
    outcomes = []
    for domain in DOMAINS[:2]:
        files = {}
        with tarfile.open(Path(os.environ["PACS_DATA"]) / f"pacs-{domain}.tar") as tar:
            for member in tar.getmembers()[::7]:
                data = tar.extractfile(member) if member.isfile() else None
                if data is not None:
                    name = member.name.split("/")[-2]
                    files[f"{domain}-{name}-{Path(member.name).name}"] = (io.BytesIO(data.read()).getvalue(), [name, domain])
        labelled(config, files)
        outcomes.append(run_window(store, config))
    first, done = outcomes
    assert first.move is not None
    assert done.drift is not None
    assert done.drift.alarm
    assert done.move is not None
    challenger, champion = scores_of(done)
    assert challenger.metrics["mean_average_precision"] > champion.metrics["mean_average_precision"]
    view, spec = View(store, done.tick.view), release_of(store, done.move).spec
    embedder = Embedder.open(store, spec, release_of(store, done.move).files["model.safetensors"])
    rows = view.rows("holdout", Targets.of(spec))
    said = Targets.of(spec).texts(embedder.scores(view, rows)[1].numpy())
    assert np.mean(["art_painting" in text for text in said]) > 0.85  # the domain, that only the second window has
