"""`everfresh doctor` against a real server: what is not well is named with its remedy, and what is well passes."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, WorkPoolCreate, WorkPoolUpdate
from prefect.settings import PREFECT_API_URL, temporary_settings
from support.cli import Everfresh
from support.prefect_server import PrefectServer, running_server
from support.stream import Pipeline, make_pipeline

from everfresh.flows import declared
from everfresh.flows.deploy import deploy
from everfresh.flows.doctor import doctor, versions
from everfresh.flows.stack import LEASE_STORAGE
from everfresh.tasks.config import PipelineConfig
from everfresh.tasks.errors import EverfreshError


@pytest.fixture
def undeployed(tmp_path: Path) -> Pipeline:
    name = f"sick-{uuid.uuid4().hex[:8]}"
    return make_pipeline(tmp_path, name, deploy={"pool": name}, schedule={"monitor": "*/5 * * * *"})


def asked(everfresh: Everfresh, *arguments: Any) -> tuple[int, dict[str, dict[str, Any]]]:
    done = everfresh("doctor", *arguments, "--json")
    return done.returncode, {line["check"]: line for line in json.loads(done.stdout)}


@contextmanager
def own_server(server: PrefectServer) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: server.api}), get_client(sync_client=True) as client:
        yield client


def line_of(config: PipelineConfig | None, name: str) -> tuple[bool, str]:
    found = next(line for line in doctor(config) if line.name == name)
    return found.passed, found.words


def test_what_is_not_there_is_named_with_its_remedy(everfresh: Everfresh, undeployed: Pipeline) -> None:
    code, lines = asked(everfresh, undeployed.file)
    assert code == 1
    missing = {f"pool {undeployed.name}", "deployed"}
    assert {name for name, line in lines.items() if not line["passed"]} == {*missing, "leases"}  # this server's, in its memory
    assert all("`everfresh deploy` makes" in lines[name]["words"] for name in missing)
    assert f"+ work pool {undeployed.name}" in lines["deployed"]["words"]
    assert lines["server version"]["words"].startswith("Prefect 3.8")
    assert lines["telemetry"]["words"] == "the server sends none"
    assert {"store write", "store race", "device", "disk", "versions", "server clock"} <= lines.keys()


def test_a_server_of_a_profile_is_looked_at_as_deploy_finds_it(
    everfresh: Everfresh, server: PrefectServer, undeployed: Pipeline, tmp_path: Path
) -> None:
    profiles = tmp_path / "profiles.toml"
    profiles.write_text(f'active = "own"\n[profiles.own]\nPREFECT_API_URL = "{server.api}"\n')
    environment = {k: v for k, v in everfresh.environment.items() if k != "PREFECT_API_URL"}
    of_profile = Everfresh({**environment, "PREFECT_PROFILES_PATH": str(profiles)})
    _, lines = asked(of_profile, undeployed.file)
    assert lines["server"]["words"] == f"{server.api}: healthy"
    assert not lines["deployed"]["passed"]
    assert f"{server.api}: healthy" in of_profile("check", undeployed.file).stdout


def test_a_pool_that_a_worker_made_of_prefects_default_gives_runs_no_gpu(server: PrefectServer, tmp_path: Path) -> None:
    name = f"gpu-{uuid.uuid4().hex[:8]}"
    made = make_pipeline(tmp_path, name, deploy={"pool": f"{name}-cpu", "gpu_pool": name, "kind": "kubernetes"})
    known = files("prefect.server.api").joinpath("collections_data/views/aggregate-worker-metadata.json").read_text("utf-8")
    default = json.loads(known)["prefect-kubernetes"]["kubernetes"]["default_base_job_configuration"]
    with own_server(server) as client:
        client.create_work_pool(WorkPoolCreate(name=name, type="kubernetes", base_job_template=default))
        client.send_worker_heartbeat(name, "w-1", heartbeat_interval_seconds=30)
        passed, words = line_of(made.config, f"pool {name}")
        assert not passed
        assert "got one without image, " in words
        assert "gpu_count" in words
        assert f"prefect work-pool update {name} --base-job-template infra/work_pools/gpu-kubernetes.json" in words
        default["variables"]["properties"]["of_theirs"] = {"type": "string"}  # a pool belongs to whoever changed it
        for template in (declared.template("gpu", "kubernetes"), default):
            client.update_work_pool(name, WorkPoolUpdate(base_job_template=template))
            assert line_of(made.config, f"pool {name}") == (True, "kubernetes, 1 worker online (w-1)")
        client.delete_work_pool(name)


def test_a_slot_outlives_a_server_that_starts_anew_and_doctor_says_where_it_would_not(
    server: PrefectServer, tmp_path: Path
) -> None:
    with own_server(server):
        passed, words = line_of(None, "leases")
    assert not passed
    assert f"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE={LEASE_STORAGE}" in words
    kept = {"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASE_STORAGE}
    with running_server(tmp_path / "prefect", **kept) as first, own_server(first) as client:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name="gpu", limit=1, active=True, active_slots=0))
        taken = client.increment_concurrency_slots_with_lease(["gpu"], 1, "concurrency", 90)
        lease = uuid.UUID(taken.json()["lease_id"])
    with running_server(tmp_path / "prefect", **kept) as second, own_server(second) as client:
        client.renew_concurrency_lease(lease, 90)
        assert client.read_global_concurrency_limit_by_name("gpu").active_slots == 1
        client.release_concurrency_slots_with_lease(lease)
        assert client.read_global_concurrency_limit_by_name("gpu").active_slots == 0
        assert line_of(None, "leases")[0]


def test_a_pool_without_a_worker_a_schedule_that_differs_and_what_is_switched_off(
    server: PrefectServer, undeployed: Pipeline
) -> None:
    with own_server(server) as client:

        def line(name: str) -> tuple[bool, str]:
            return line_of(undeployed.config, name)

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
    with pytest.raises(EverfreshError, match=r"fastapi<0\.151,>=0\.139, got 0\.155\.0\. `git pull` and `make -B"):
        versions()


def test_a_full_disk_is_told_before_a_run_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everfresh.flows.doctor.LEAST_FREE", 1 << 62)
    passed, words = line_of(None, "disk")
    assert not passed
    assert "GiB must be free at" in words


def test_a_cache_that_cannot_be_written_to_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EVERFRESH_CACHE", str(tmp_path / "file" / "cache"))
    passed, words = line_of(None, "disk")
    assert not passed
    assert words.startswith(
        f"disk: runs must be able to write to {tmp_path / 'file'}, got: Not a directory. Make that possible"
    )


def test_without_a_server_that_answers_the_rest_is_looked_at(everfresh: Everfresh) -> None:
    gone = Everfresh({**everfresh.environment, "PREFECT_API_URL": "http://127.0.0.1:9/api"})
    code, lines = asked(gone)
    assert code == 1
    assert [name for name, line in lines.items() if not line["passed"]] == ["server"]
    assert "prefect server start" in lines["server"]["words"]
