"""The real Evidently UI shows the reports that we keep in its workspace."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from everfresh.tasks.drift.frame import Frame
from everfresh.tasks.drift.report import Shelf, write_report


def window(move, seed):
    rng = np.random.default_rng(seed)
    return Frame(
        {"brightness": rng.normal(size=200) + move},
        {"scanner": rng.choice(["old", "new"], 200)},
        np.zeros((200, 0)),
        np.zeros((200, 0)),
        (),
        np.full(200, -1),
        (),
    )


@contextmanager
def running_ui(workspace: Path, log: Path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).parent / "evidently"), "ui", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as out:
        server = subprocess.Popen(
            [*command, "--workspace", str(workspace)],
            env=os.environ | {"DO_NOT_TRACK": "1"},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                get(f"http://127.0.0.1:{port}/api/version")
                break
            except OSError:
                if time.monotonic() > deadline or server.poll() is not None:
                    pytest.fail(f"the Evidently UI did not come up: {log.read_text()[-2000:]}")
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/api"
    finally:
        server.kill()
        server.wait()


def get(url):
    with urllib.request.urlopen(url, timeout=20) as reply:
        return json.loads(reply.read())


def test_the_ui_shows_each_window_once(tmp_path):
    workspace = tmp_path / "ws"
    for day, move in ((1, 0.0), (2, 2.0), (2, 2.0)):  # the second window's report is written twice
        shelf = Shelf(workspace, "scanner", f"window {day}", datetime(2026, 3, day, tzinfo=UTC))
        write_report(window(0.0, 0), window(move, day), tmp_path / "out", rate=0.01, shelf=shelf)
    with running_ui(workspace, tmp_path / "ui.log") as api:
        (project,) = get(f"{api}/projects")
        assert project["name"] == "scanner"
        reports = {r["name"]: r for r in get(f"{api}/projects/{project['id']}/reports")}
        assert sorted(reports) == ["window 1", "window 2"]
        assert reports["window 2"]["timestamp"].startswith("2026-03-02")
        shown = {n: json.dumps(get(f"{api}/projects/{project['id']}/{r['id']}/data")) for n, r in reports.items()}
        assert "Dataset Drift is NOT detected" in shown["window 1"]
        assert "Dataset Drift is detected" in shown["window 2"]
        assert all("brightness" in page for page in shown.values())
