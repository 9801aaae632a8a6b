"""`everfresh up` as its user runs it: all of it real, all of it gone afterwards."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.cli import SCRIPT

from everfresh.flows import stack as local
from everfresh.flows.demo_live import pipeline_file
from everfresh.flows.stack import Stack, read_stack
from everfresh.flows.supervise import Supervisor
from everfresh.tasks.config import load_config

COMES_UP_WITHIN = 500.0


def up(folder: Path) -> tuple[subprocess.Popen[bytes], Stack]:
    (folder / "stack.json").unlink(missing_ok=True)  # of one that was killed
    with (folder.parent / "up.log").open("ab") as said:
        process = subprocess.Popen([SCRIPT, "up", "--folder", str(folder)], stdout=said, stderr=said)
    deadline = time.monotonic() + COMES_UP_WITHIN
    while not (folder / "stack.json").exists():
        assert process.poll() is None, (folder.parent / "up.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return process, read_stack(folder)


def workers(stack: Stack, pool: str) -> list[str]:
    found = stack.ask(f"work_pools/{pool}/workers/filter", {})
    return [worker["name"] for worker in found if worker["status"] == "ONLINE"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of which only Prefect's server runs."""
    folder = tmp_path_factory.mktemp("alone")
    planned = local._plan(folder)
    supervisor = Supervisor(folder / "logs", lambda name, line: None, threading.Event())
    try:
        supervisor.start(local._server(planned, {}))
        yield planned
    finally:
        supervisor.end()


ELSEWHERE = "http://page.example"
POOL = json.dumps({"name": "of-a-page", "type": "process"}).encode()


@pytest.mark.parametrize(
    ("method", "path", "body", "kind", "status"),
    [
        ("POST", "work_pools/", POOL, "application/json", 401),
        ("POST", "work_pools/", POOL, "text/plain", 401),  # for which a browser does not ask beforehand
        ("POST", "deployments/00000000-0000-0000-0000-000000000001/resume_deployment", b"", "text/plain", 401),
        ("GET", "admin/settings", None, "text/plain", 401),
        ("OPTIONS", "work_pools/", None, "text/plain", 400),
    ],
)
def test_a_page_of_the_web_gets_nothing_done(
    alone: Stack, method: str, path: str, body: bytes | None, kind: str, status: int
) -> None:
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    headers = {"Origin": ELSEWHERE, "Content-Type": kind, **(asks if method == "OPTIONS" else {})}
    request = urllib.request.Request(f"{alone.api}/{path}", body, headers, method=method)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=30)
    with refused.value as answer:
        assert answer.code == status
        assert "Access-Control-Allow-Origin" not in answer.headers
    assert "of-a-page" not in [pool["name"] for pool in alone.ask("work_pools/filter", {})]


@pytest.mark.parametrize("path", ["events/in", "events/out", "logs/out"])
def test_a_page_of_the_web_opens_no_socket(alone: Stack, path: str) -> None:
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    with (
        pytest.raises(InvalidStatus, match="403"),
        connect(f"{alone.api.replace('http', 'ws')}/{path}", origin=ELSEWHERE),  # type: ignore[arg-type]
    ):
        pass


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_login_page_takes_the_password(alone: Stack, host: str) -> None:
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("Chromium is not installed")
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.set_default_timeout(60_000)
        page.goto(alone.ui.replace("127.0.0.1", host))
        page.wait_for_url("**/login**")
        page.locator("input").fill(alone.password)
        page.locator("input").press("Enter")
        page.get_by_text("Work Pools").first.wait_for()
        page.goto(f"{alone.ui.replace('127.0.0.1', host)}/runs")
        page.get_by_text("Run a task or flow to get started").wait_for()
        browser.close()


def test_ctrl_c_during_start_up_ends_all_and_the_folder_is_private(tmp_path: Path) -> None:
    folder = tmp_path / "stack"
    process = subprocess.Popen([SCRIPT, "up", "--folder", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 60
    while not (folder / "logs" / "server.log").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    everything = psutil.Process(process.pid).children(recursive=True)
    assert not (folder / "stack.json").exists(), "it is up already"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)  # each part has ten seconds to end
    assert process.returncode == 0, said
    _, alive = psutil.wait_procs(everything, timeout=10)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


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
