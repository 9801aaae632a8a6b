"""kill -9 at seeded moments, and two runs at once: the same windows, decisions, weights and champion as without."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.cli import SCRIPT, Everfresh
from support.stream import AGED, Pipeline, make_pipeline

from everfresh.tasks.alias import check_release
from everfresh.tasks.journal import scheduled
from everfresh.tasks.ledger import champion_moves, stream
from everfresh.tasks.sweep import sweep

KILLS = 20
WITHIN = 240.0
"""Seconds for one command."""
pytestmark = pytest.mark.slow


def two_windows(folder: Path, name: str) -> Pipeline:
    made = make_pipeline(folder, name, window={"max_samples": 120, "min_samples": 60}, fine_tune={"epochs": 12})
    made.arrives(1, samples=120)
    made.arrives(2, AGED, samples=90)
    return made


def outcome(pipeline: Pipeline) -> dict[str, Any]:
    """All that must be equal between two runs: times and costs aside."""
    entries = list(scheduled(pipeline.store))
    return {
        "views": [entry.view for entry in stream(pipeline.store)],
        "drift": [e.drift for e in entries],
        "decisions": [e.decision for e in entries],
        "candidates": [[(t.candidate, t.weights_sha256) for t in e.tried] for e in entries],
        "evaluations": [(e.evaluation, e.failed_gates) for e in entries],
        "moves": [(m.seq, m.kind, m.release, m.version) for m in champion_moves(pipeline.store)],
    }


def finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=WITHIN)
    assert process.returncode == 0, errors


def killed(everfresh: Everfresh, pipeline: Pipeline, objects: int, pause: float) -> bool:
    """Start a run and kill it once it has written so many objects; False if it was done before."""
    before = objects + len(list(pipeline.store.list()))
    process = everfresh.start("run", pipeline.file, "--all")
    deadline = time.monotonic() + WITHIN
    while process.poll() is None and len(list(pipeline.store.list())) < before and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(pause)
    alive = process.poll() is None
    process.kill()
    process.communicate()
    return alive


@pytest.fixture(scope="module")
def undisturbed(everfresh: Everfresh, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    made = two_windows(tmp_path_factory.mktemp("undisturbed") / "p", "stream")
    done = everfresh("run", made.file, "--all")
    assert done.returncode == 0, done.stderr
    return made


@pytest.mark.timeout(1800)
def test_killed_runs_end_as_an_undisturbed_one(undisturbed: Pipeline, everfresh: Everfresh, tmp_path: Path) -> None:
    sweep(undisturbed.store, timedelta(0))
    draw, kills, pipelines = random.Random(7), 0, 0
    while kills < KILLS:
        pipelines += 1
        disturbed = two_windows(tmp_path / str(pipelines), "stream")
        while kills < KILLS and killed(everfresh, disturbed, draw.randint(0, 16), draw.uniform(0, 0.1)):
            kills += 1
            if (move := champion_moves(disturbed.store).last()) is not None:
                check_release(disturbed.store, move)
        finish(everfresh.start("run", disturbed.file, "--all"))
        assert outcome(disturbed) == outcome(undisturbed)
        assert [e.version for e in scheduled(disturbed.store)] == [1, 2]
        sweep(disturbed.store, timedelta(0))
        assert objects(disturbed) == objects(undisturbed)
    sys.stdout.write(f"{kills} runs of {pipelines} pipelines killed\n")


OWN = re.compile(r"(attempts/|cursor-|tfevents\.)[^/]+")
"""Names that differ from run to run: of attempts, of times of modification in the source, of event files."""


def objects(pipeline: Pipeline) -> list[str]:
    """The keys of all that stands in the store, finished or not."""
    return sorted(OWN.sub(r"\1*", item.key) for item in [*pipeline.store.list(), *pipeline.store.unfinished()])


def test_two_runs_at_once_make_one_entry_and_one_release_a_window(
    undisturbed: Pipeline, everfresh: Everfresh, tmp_path: Path
) -> None:
    shared = two_windows(tmp_path / "shared", "stream")
    runs = [everfresh.start("run", shared.file, "--all") for _ in range(2)]
    for process in runs:
        finish(process)
    assert sorted(key for key in shared.bytes_of("journal")) == ["journal/00000001-tick.json", "journal/00000002-tick.json"]
    assert len([key for key in shared.bytes_of("releases") if key.endswith("/release.json")]) == 2
    assert outcome(shared) == outcome(undisturbed)


def test_ctrl_c_ends_a_run_and_not_the_temporary_server_under_it(everfresh: Everfresh, tmp_path: Path) -> None:
    """A terminal sends it to the whole group, the server that the run has started among it."""
    made = two_windows(tmp_path / "p", "stopped")
    environment = {k: v for k, v in everfresh.environment.items() if k != "PREFECT_API_URL"}
    environment["PREFECT_HOME"] = str(tmp_path / "not" / "there" / "yet")
    command = [SCRIPT, "run", str(made.file), "--all"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + WITHIN
    while not list(made.store.list("ticks")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    sent = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=WITHIN)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "everfresh: stopped; the same command goes on where it was"
    assert "Traceback" not in errors
    assert time.monotonic() - sent < 30


def test_a_killed_run_takes_its_temporary_server_with_it(everfresh: Everfresh, tmp_path: Path) -> None:
    made = two_windows(tmp_path / "p", "killed")
    environment = {k: v for k, v in everfresh.environment.items() if k != "PREFECT_API_URL"}
    environment["PREFECT_HOME"] = str(tmp_path / "home")
    process = subprocess.Popen([SCRIPT, "run", str(made.file)], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + WITHIN
    while not list(made.store.list("ticks")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    started = psutil.Process(process.pid).children(recursive=True)
    assert any("uvicorn" in " ".join(child.cmdline()) for child in started)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(started, timeout=30)
    assert alive == []
