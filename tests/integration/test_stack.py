"""`everfresh up` as its user runs it: all of it real, all of it gone afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from support.cli import SCRIPT

from everfresh.flows.demo_live import pipeline_file
from everfresh.flows.stack import Stack, read_stack
from everfresh.tasks.config import load_config

COMES_UP_WITHIN = 500.0


def up(folder: Path) -> tuple[subprocess.Popen[bytes], Stack]:
    with (folder.parent / "up.log").open("ab") as said:
        process = subprocess.Popen([SCRIPT, "up", "--folder", str(folder)], stdout=said, stderr=said)
    deadline = time.monotonic() + COMES_UP_WITHIN
    while not (folder / "stack.json").exists():
        assert process.poll() is None, (folder.parent / "up.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return process, read_stack(folder)


def workers(stack: Stack, pool: str) -> list[str]:
    request = urllib.request.Request(
        f"{stack.api}/work_pools/{pool}/workers/filter", b"{}", {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return [worker["name"] for worker in json.load(answer) if worker["status"] == "ONLINE"]


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_up_runs_all_parts_keeps_what_was_stored_and_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "stack"
    process, first = up(folder)
    everything = psutil.Process(process.pid).children(recursive=True)
    try:
        assert {pool: workers(first, pool) for pool in first.pools} == {"cpu": ["cpu-worker"], "gpu": ["gpu-worker"]}
        again = subprocess.run([SCRIPT, "up", "--folder", str(folder)], capture_output=True, text=True, timeout=120)
        assert again.returncode == 1
        assert "one that runs already" in again.stderr
        assert {path.name for path in (folder / "logs").iterdir()} >= {
            "server.log",
            "s3.log",
            "cpu-worker.log",
            "gpu-worker.log",
        }
        write = "from everfresh.tasks.store import open_store; open_store('s3://everfresh/kept').put('a', b'1')"
        subprocess.run([Path(SCRIPT).with_name("python"), "-c", write], env=os.environ | first.environment, check=True)
    finally:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(everything, timeout=60)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
    process, second = up(folder)
    try:
        assert second.environment["AWS_SECRET_ACCESS_KEY"] == first.environment["AWS_SECRET_ACCESS_KEY"]
        read = "from everfresh.tasks.store import open_store; assert open_store('s3://everfresh/kept').get('a') == b'1'"
        subprocess.run([Path(SCRIPT).with_name("python"), "-c", read], env=os.environ | second.environment, check=True)
    finally:
        process.terminate()
        assert process.wait(120) == 0
    assert not (folder / "stack.json").exists()


def test_the_live_demos_pipeline_goes_to_the_gpu_pool_by_itself(tmp_path: Path) -> None:
    where = {"api": "http://127.0.0.1:1/api", "ui": "http://127.0.0.1:1", "s3": "http://127.0.0.1:2"}
    stack = Stack(pid=1, pools={"cpu": "cpu", "gpu": "gpu"}, logs=str(tmp_path / "logs"), environment={}, **where)
    config = load_config(pipeline_file(stack, seed=3))
    assert (config.deploy.pool, config.deploy.gpu_pool, config.policy.ladder) == ("cpu", "gpu", ("full",))
    assert config.alerts.retrain
    assert config.schedule.monitor == "* * * * *"
    assert config.store == "s3://everfresh/demo-3/store"
    assert config.fine_tune.seed == 3
