"""Evidently's own workspace reads what we keep there."""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pandas as pd
import pytest

from everfresh.tasks.drift.report import _snapshot, quietly
from everfresh.tasks.drift.workspace import keep

AT = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def snapshot():
    table = pd.DataFrame({"brightness": [0.1, 0.5, 0.9, 0.3] * 20})
    return _snapshot(table, table * 0.5, 0.01, None)


def opened(folder):
    with quietly():
        from evidently.ui.workspace import Workspace

        return Workspace(str(folder))


def test_a_snapshot_is_kept_once_in_one_project(snapshot, tmp_path):
    for run in ("w1", "w2", "w1", "w2"):
        assert keep(snapshot, tmp_path / "ws", "digits", run)
    assert keep(snapshot, tmp_path / "ws", "pets", "w1")
    space = opened(tmp_path / "ws")
    assert sorted(p.name for p in space.list_projects()) == ["digits", "pets"]
    (project,) = space.search_project("digits")
    runs = space.list_runs(project.id)
    assert len(runs) == 2
    read = space.get_run(project.id, runs[0])
    assert any("brightness" in str(m.display_name) for m in read.metric_results.values())
    assert [p.title for p in project.dashboard.model().panels] == ["Drifted columns"]


def test_a_project_that_the_team_has_made_is_used(snapshot, tmp_path):
    theirs = opened(tmp_path).create_project("digits", description="ours, by hand")
    assert keep(snapshot, tmp_path, "digits", "w1")
    (project,) = opened(tmp_path).list_projects()
    assert project.id == theirs.id
    assert project.description == "ours, by hand"
    assert len(opened(tmp_path).list_runs(theirs.id)) == 1
    assert project.dashboard.model().panels == []  # nor is its dashboard touched


def test_runs_at_the_same_time_make_one_project(snapshot, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda n: keep(snapshot, tmp_path / "ws", "digits", f"w{n % 2}"), range(8)))
    space = opened(tmp_path / "ws")
    (project,) = space.list_projects()
    assert any(done)
    assert 1 <= len(space.list_runs(project.id)) <= 2
    assert keep(snapshot, tmp_path / "ws", "digits", "w0")


def test_nothing_but_the_workspace_is_left(snapshot, tmp_path):
    keep(snapshot, tmp_path, "digits", "w1")
    (project,) = opened(tmp_path).list_projects()
    assert [p.name for p in tmp_path.iterdir()] == [str(project.id)]


@pytest.mark.parametrize("broken", ["a file", "no json", "another record"])
def test_a_broken_workspace_is_a_warning(broken, snapshot, tmp_path, caplog):
    folder = tmp_path / "ws"
    if broken == "a file":
        folder.write_text("not a folder")
    else:
        keep(snapshot, folder, "digits", "w1")
        (metadata,) = folder.glob("*/metadata.json")
        metadata.write_text("{" if broken == "no json" else json.dumps({"name": 3.5, "dashboard": []}))
    with caplog.at_level(logging.WARNING):
        kept = keep(snapshot, folder, "digits", "w2")
    if not kept:
        assert f"Evidently must be able to write to {folder}" in caplog.text
        assert "goes on without its snapshot" in caplog.text
    assert kept == (broken == "another record")  # Evidently takes that for a project without a name
