"""A model of a table, from the first rows to the consumer: no picture anywhere."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.consumer import score
from support.loop import release_of, run_window
from support.pickles import find_pickles
from support.tables import FEATURES, pipeline, table, write
from torch import nn

from everfresh.tasks import models, publish
from everfresh.tasks.config import load_config
from everfresh.tasks.errors import TrainingError
from everfresh.tasks.ingest import freeze
from everfresh.tasks.ledger import champion_moves
from everfresh.tasks.models import save
from everfresh.tasks.store import FolderStore
from everfresh.tasks.views import View

ROOT = Path(__file__).parents[2]


def test_a_table_whose_world_moves_is_kept_fresh_to_the_consumer(tmp_path: Path) -> None:
    store, config = FolderStore(tmp_path / "store"), pipeline(tmp_path)
    write(tmp_path / "inbox/1.parquet", table(200, 0))
    first = run_window(store, config)
    assert first.move is not None
    assert first.tried[0].tune_accuracy > 0.9

    write(tmp_path / "inbox/2.csv", table(200, 1, start=200))
    quiet = run_window(store, config)
    assert quiet.drift is not None
    assert (quiet.drift.alarm, quiet.decision.action) == (False, "nothing")
    named = {c.name: c.kind for c in quiet.drift.columns}
    assert named.items() >= {"load": "numerical", "heat": "numerical", "site": "categorical", "line": "categorical"}.items()
    assert named.keys().isdisjoint({"brightness", "pixels", "aspect"})

    write(tmp_path / "inbox/3.parquet", table(400, 2, start=400, moved=True))
    moved = run_window(store, pipeline(tmp_path, drift={"report": True}))
    assert moved.drift is not None
    assert moved.drift.alarm
    assert {c.name for c in moved.drift.columns[:3]} >= {"site", "load"}
    assert "“site” has new values (“east”)" in moved.drift.words
    page = store.get(moved.drift.files["drift.html"].key).decode()
    assert "site" in page
    assert "unreadable" not in page
    assert moved.evaluation is not None
    assert moved.evaluation.window.gain is not None
    assert moved.evaluation.window.gain.low > 0.1
    assert moved.move is not None

    release = release_of(store, moved.move)
    told = json.loads(store.get(release.files["config.json"].key))
    assert "transforms" not in told
    assert [f["name"] for f in told["features"]] == ["load", "heat", "site"]
    kept = release_of(store, first.move).spec.features
    assert release.spec.features == kept, "mean and std are those of version 1, or its head would mean something else"
    assert (kept[0].mean, kept[0].std) == (pytest.approx(100, abs=5), pytest.approx(20, abs=4))
    assert "rows of a table" in store.get(release.files["card.md"].key).decode()
    accuracy, as_recorded = score(tmp_path / "store", release.id)
    assert accuracy > 0.9
    assert as_recorded == 1
    assert find_pickles(store) == []

    narrower = pipeline(tmp_path, model={"features": FEATURES[:2]})
    with pytest.raises(TrainingError, match=r"must be those of the champion, load, heat, site, .* --rung pretrained"):
        run_window(store, narrower, request="forced")


def test_a_network_that_already_runs_is_adopted_with_the_scale_it_was_trained_on(tmp_path: Path) -> None:
    given: list[Any] = [{"name": "load", "mean": 100, "std": 20}, {"name": "heat", "mean": 100, "std": 20}]
    config = pipeline(tmp_path, model={"features": given, "weights": str(tmp_path / "mine.safetensors")})
    module, spec = models.start(config.model.model_copy(update={"weights": None}), 0)
    assert [(f.mean, f.std) for f in spec.features] == [(100, 20)] * 2
    save(module, tmp_path / "mine.safetensors")
    store = FolderStore(tmp_path / "store")
    window = freeze(store, config, str(write(tmp_path / "reference/a.parquet", table(40)).parent))
    assert window.splits == {"holdout": 40}
    release = release_of(store, publish.adopt(store, config, str(tmp_path / "mine.safetensors"), window))
    assert [(f.mean, f.std) for f in release.spec.features] == [(100, 20)] * 2
    assert score(tmp_path / "store", release.id)[1] == 1


@pytest.mark.skipif(not os.environ.get("FLIGHTS"), reason="FLIGHTS names no nyc_flights_2013.parquet")
def test_the_flights_of_2013_through_a_network_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of January to March, then of April: the pipeline file and the network that the documentation shows."""
    import pandas as pd

    spec = importlib.util.spec_from_file_location("flights_stream", ROOT / "benchmarks/flights_stream.py")
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    monkeypatch.syspath_prepend(ROOT / "deployments/pipelines")
    monkeypatch.setenv("FLIGHTS_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("FLIGHTS_INBOX", str(tmp_path / "inbox"))
    config = load_config(ROOT / "deployments/pipelines/flights.yaml")
    policy = config.policy.model_copy(update={"triggers": ()})
    config = config.model_copy(update={"policy": policy, "drift": config.drift.model_copy(update={"report": False})})
    store = FolderStore(tmp_path / "store")
    months = dict(bench.by_month(pd.read_parquet(os.environ["FLIGHTS"]), 0.05))
    (tmp_path / "inbox").mkdir()
    for month in (1, 2, 3):
        months[month].to_parquet(tmp_path / f"inbox/{month:02d}.parquet", index=False)
    first = run_window(store, config)
    assert first.move is not None
    assert first.tick.seq == 1
    view = View(store, first.tick.view)
    assert len(view.samples) == sum(len(months[m]) for m in (1, 2, 3))
    months[4].to_parquet(tmp_path / "inbox/04.parquet", index=False)
    april = run_window(store, config)
    assert april.drift is not None
    assert {"minute", "distance", "carrier", "origin", "dest", "weekday"} <= {c.name for c in april.drift.columns}
    ranked = bench.scores(store, first.move.release, april.tick.view)
    assert 0.6 < ranked["auc"] < 0.8
    assert champion_moves(store).last_seq() == 1
    assert isinstance(models.start(config.model, 0)[0], nn.Module)
    assert np.isfinite(ranked["loss"])
