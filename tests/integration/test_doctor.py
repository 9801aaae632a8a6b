"""`everfresh doctor` against a real server: what is not well is named with its remedy, and what is well passes."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from prefect import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from support.cli import Everfresh
from support.prefect_server import PrefectServer
from support.stream import Pipeline, make_pipeline

from everfresh.flows.deploy import deploy
from everfresh.flows.doctor import doctor, versions
from everfresh.tasks.errors import EverfreshError


@pytest.fixture
def undeployed(tmp_path: Path) -> Pipeline:
    name = f"sick-{uuid.uuid4().hex[:8]}"
    return make_pipeline(tmp_path, name, deploy={"pool": name}, schedule={"monitor": "*/5 * * * *"})


def asked(everfresh: Everfresh, *arguments: Any) -> tuple[int, dict[str, dict[str, Any]]]:
    done = everfresh("doctor", *arguments, "--json")
    return done.returncode, {line["check"]: line for line in json.loads(done.stdout)}


def test_what_is_not_there_is_named_with_its_remedy(everfresh: Everfresh, undeployed: Pipeline) -> None:
    code, lines = asked(everfresh, undeployed.file)
    assert code == 1
    missing = {f"pool {undeployed.name}", "deployed"}
    assert {name for name, line in lines.items() if not line["passed"]} == missing
    assert all("`everfresh deploy` makes" in lines[name]["words"] for name in missing)
    assert f"+ work pool {undeployed.name}" in lines["deployed"]["words"]
    assert lines["server version"]["words"].startswith("Prefect 3.8")
    assert lines["telemetry"]["words"] == "off"
    assert {"store write", "store race", "device", "disk", "versions", "server clock"} <= lines.keys()


def test_a_pool_without_a_worker_a_schedule_that_differs_and_what_is_switched_off(
    server: PrefectServer, undeployed: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", server.api)
    with temporary_settings({PREFECT_API_URL: server.api}), get_client(sync_client=True) as client:

        def line(name: str) -> tuple[bool, str]:
            found = next(line for line in doctor(undeployed.config) if line.name == name)
            return found.passed, found.words

        deploy(undeployed.config)
        pool = undeployed.name
        passed, words = line(f"pool {pool}")
        assert not passed
        assert "none ever was" in words
        assert f"prefect worker start --pool {pool}" in words
        client.send_worker_heartbeat(pool, "w-1", heartbeat_interval_seconds=30)
        assert line(f"pool {pool}") == (True, "process, 1 worker online (w-1)")
        assert (line("deployed")[0], line("switched off")) == (True, (True, "nothing"))

        undeployed.rewrite(schedule={"monitor": "*/7 * * * *"})
        passed, words = line("deployed")
        assert not passed
        assert f"~ deployment monitor/{pool}" in words
        assert "`everfresh deploy` makes it so" in words
        client.pause_deployment(client.read_deployment_by_name(f"retrain/{pool}").id)
        passed, words = line("switched off")
        assert not passed
        assert f"deployment retrain/{pool}" in words
        deploy(undeployed.config, delete=True)


def test_a_version_that_does_not_work_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "as asked for" in versions()
    real = __import__("importlib.metadata").metadata.version
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.155.0" if name == "fastapi" else real(name))
    with pytest.raises(EverfreshError, match=r"fastapi<0\.151,>=0\.139, got 0\.155\.0\. `pip install"):
        versions()


def test_a_full_disk_is_told_before_a_run_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everfresh.flows.doctor.LEAST_FREE", 1 << 62)
    line = next(line for line in doctor(None) if line.name == "disk")
    assert not line.passed
    assert "GiB must be free at" in line.words


def test_without_a_server_that_answers_the_rest_is_looked_at(everfresh: Everfresh) -> None:
    gone = Everfresh({**everfresh.environment, "PREFECT_API_URL": "http://127.0.0.1:9/api"})
    code, lines = asked(gone)
    assert code == 1
    assert [name for name, line in lines.items() if not line["passed"]] == ["server"]
    assert "prefect server start" in lines["server"]["words"]
