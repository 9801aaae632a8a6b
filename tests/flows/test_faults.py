"""Faults of the world around a scheduled run: one sentence in the UI, an alert that goes out, and the next tick recovers."""

from __future__ import annotations

import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prefect.deployments import run_deployment
from support.deployed import Deployed, deployed
from support.operations import reaches, working
from support.prefect_server import PrefectServer
from support.proxy import always, running_proxy
from support.receiver import Receiver, running_receiver
from support.s3 import ACCESS_KEY, BUCKET, SECRET_KEY, environment
from support.stream import make_pipeline

from everfresh.flows.channel import make_channel
from everfresh.flows.deploy import deploy
from everfresh.flows.monitor import monitor
from everfresh.tasks import steps
from everfresh.tasks.errors import StoreError
from everfresh.tasks.store import s3


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with running_receiver() as running:
        yield running


@contextmanager
def scheduled(folder: Path, store: str, server: PrefectServer, receiver: Receiver) -> Iterator[Deployed]:
    """A deployed pipeline whose source has something new, with an alert for runs that fail."""
    name = f"fault-{uuid.uuid4().hex[:8]}"
    make_channel(name, webhook=receiver.address, slack=None)
    alerts = {"notify": [f"custom-webhook/{name}"], "notify_on": ["run.failed"]}
    made = make_pipeline(folder, name, store=store, s3={"max_attempts": 1, "connect_timeout": 2}, alerts=alerts)
    made.arrives(1, samples=20)
    with deployed(made.config, server.ui) as there:
        yield there


def fails_and_tells(there: Deployed, receiver: Receiver) -> str:
    """The sentence of a run that fails, which is its state's message and stands in the alert."""
    run = there.run_of("monitor")
    before = len(receiver.messages)
    with pytest.raises(StoreError) as caught:
        there.execute(monitor, run)
    words = there.state(run, lambda state: state.is_failed()).message
    assert words == " ".join(str(caught.value).split())
    [body] = receiver.waits_for(f"{there.config.name} · a run failed", before + 1)[before:]
    assert words in body
    return words or ""


def recovers(there: Deployed) -> None:
    run = there.run_of("monitor")
    there.execute(monitor, run)
    assert there.state(run, lambda state: state.is_final()).is_completed()


@contextmanager
def credentials(monkeypatch: pytest.MonkeyPatch, endpoint: str, secret: str = SECRET_KEY) -> Iterator[None]:
    with monkeypatch.context() as patch:
        for name, value in environment(endpoint, ACCESS_KEY, secret).items():
            patch.setenv(name, value)
        patch.setattr("boto3.DEFAULT_SESSION", None)
        s3.client.cache_clear()
        yield
    s3.client.cache_clear()


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tries of a step do not wait for better times here."""
    monkeypatch.setattr(steps.watched_window, "retry_delay_seconds", [0, 0])


@pytest.mark.slow
def test_credentials_that_are_wrong(
    tmp_path: Path, server: PrefectServer, receiver: Receiver, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scheduled(tmp_path, f"s3://{BUCKET}/{tmp_path.name}", server, receiver) as there:
        with credentials(monkeypatch, s3_endpoint, "not-the-secret"):
            assert "refused" in fails_and_tells(there, receiver)
        assert all("not-the-secret" not in message["body"] for message in receiver.messages)
        recovers(there)


@pytest.mark.slow
def test_a_worker_that_has_wrong_credentials(
    tmp_path: Path, server: PrefectServer, receiver: Receiver, s3_endpoint: str
) -> None:
    """As it is when it runs for good: deployed, and run by a worker's process."""
    name = f"worker-{uuid.uuid4().hex[:8]}"
    make_channel(name, webhook=receiver.address, slack=None)
    alerts = {"notify": [f"custom-webhook/{name}"]}
    made = make_pipeline(tmp_path, name, store=f"s3://{BUCKET}/{name}", alerts=alerts, deploy={"pool": f"{name}-cpu"})
    made.arrives(1, samples=20)
    deploy(made.config)
    try:
        for secret, wanted in (("not-the-secret", "Failed"), (SECRET_KEY, "Completed")):
            with working(server, f"{name}-cpu", tmp_path, **environment(s3_endpoint, ACCESS_KEY, secret)):
                run = run_deployment(f"monitor/{name}", timeout=0)
                message = reaches(server, wanted, id={"any_": [str(run.id)]})["state"]["message"]
            if wanted == "Failed":
                assert "refused" in message
                [body] = receiver.waits_for(f"{name} · a run failed")
                assert message in body
                assert secret not in body + (tmp_path / "worker.log").read_text()
    finally:
        deploy(made.config, delete=True)


@pytest.mark.slow
def test_credentials_that_are_over(
    tmp_path: Path, server: PrefectServer, receiver: Receiver, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scheduled(tmp_path, f"s3://{BUCKET}/{tmp_path.name}", server, receiver) as there, running_proxy(s3_endpoint) as proxy:
        with credentials(monkeypatch, proxy.endpoint), proxy.injecting(always("400 expired")):
            assert "ExpiredToken" in fails_and_tells(there, receiver)
        recovers(there)


@pytest.mark.slow
def test_a_store_that_is_out_of_reach(
    tmp_path: Path, server: PrefectServer, receiver: Receiver, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with scheduled(tmp_path, f"s3://{BUCKET}/{tmp_path.name}", server, receiver) as there:
        with credentials(monkeypatch, closed):
            assert "had no answer" in fails_and_tells(there, receiver)
        recovers(there)


@pytest.mark.slow
def test_a_disk_that_is_full(tmp_path: Path, server: PrefectServer, receiver: Receiver) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk can be made by root only")
    try:
        with scheduled(tmp_path / "p", str(disk / "store"), server, receiver) as there:
            ballast = disk / "ballast"
            with suppress_full(), ballast.open("wb") as file:
                file.write(b"\0" * (1 << 20))
            assert "No space left on device" in fails_and_tells(there, receiver)
            ballast.unlink()
            recovers(there)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@contextmanager
def suppress_full() -> Iterator[None]:
    """Fill a disk to the brim."""
    try:
        yield
    except OSError as error:
        assert error.errno == 28  # noqa: PT017
