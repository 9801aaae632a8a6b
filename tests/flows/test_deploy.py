"""`everfresh deploy` on a real server: what stands there is what the file says, however often and whatever was before."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.states import AwaitingConcurrencySlot, AwaitingRetry, Crashed, Pending, Running
from support.prefect_server import PrefectServer
from support.stream import Pipeline, make_pipeline

from everfresh.flows import automations, declared
from everfresh.flows.deploy import deploy, differences, existing, ui
from everfresh.tasks.config import PipelineConfig
from everfresh.tasks.errors import ConfigError, EverfreshError

SCHEDULED_WITHIN = 60.0
"""Seconds in which the server's scheduler has made the runs of a schedule."""


@pytest.fixture
def deployable(server: PrefectServer, tmp_path: Path) -> Iterator[Pipeline]:
    """A pipeline under a name of its own; nothing of it is left on the server."""
    made = make_pipeline(tmp_path / "p", f"deployed-{uuid.uuid4().hex[:8]}")
    yield made
    deploy(made.config, delete=True)


def counted(config: PipelineConfig) -> dict[str, Any]:
    """What the server has of a pipeline."""
    with get_client(sync_client=True) as client:
        found = existing(client, config)
        named = [a["name"] for a in client.request("POST", "/automations/filter", json={"limit": 200}).json()]
        limits = [limit.name for limit in client.read_global_concurrency_limits(limit=200, offset=0)]
    return {
        "deployments": sorted(found),
        "schedules": {name: [f"{s.schedule.cron} {s.schedule.timezone}" for s in one.schedules] for name, one in found.items()},
        "automations": sorted(name for name in named if name.startswith(f"everfresh · {config.name} · ")),
        "limits": sorted(limit for limit in limits if limit == declared.publish_limit(config)),
    }


def wanted(config: PipelineConfig) -> dict[str, Any]:
    """What the file says."""
    with get_client(sync_client=True) as client:
        ids = {f"{name}/{config.name}": one.id for name, one in existing(client, config).items()}
    crons = {name: getattr(config.schedule, name, None) for name in declared.FLOWS}
    return {
        "deployments": sorted(declared.FLOWS),
        "schedules": {name: [f"{cron} {config.schedule.timezone}"] if cron else [] for name, cron in crons.items()},
        "automations": sorted(a.name for a in automations.wanted(config, ids, ui())),
        "limits": [declared.publish_limit(config)],
    }


def scheduled_runs(config: PipelineConfig) -> dict[str, list[str]]:
    """Times of the runs that wait for their hour, by flow."""
    waiting: dict[str, list[str]] = {}
    with get_client(sync_client=True) as client:
        for name, one in existing(client, config).items():
            only = FlowRunFilter(deployment_id={"any_": [one.id]}, state={"type": {"any_": ["SCHEDULED"]}})
            runs = client.read_flow_runs(flow_run_filter=only, limit=200)
            waiting[name] = sorted(str(run.next_scheduled_start_time) for run in runs)
    return waiting


CHANGES: list[dict[str, Any]] = [
    {"schedule": {"retrain": "0 3 * * *", "monitor": "*/5 * * * *"}},
    {"schedule": {"retrain": "30 4 * * *"}},
    {"deploy": {"gpu_pool": "gpu", "gpu_slots": 2}},
    {"alerts": {"retrain": True}},
    {"schedule": {"monitor": None}, "alerts": {"notify_on": ["drift.detected"]}},
    {"schedule": {"monitor": "*/10 * * * *", "timezone": "Europe/Berlin"}},
    {"fine_tune": {"epochs": 3}},
    {"deploy": {"gpu_pool": None, "heartbeat_seconds": 30, "env": {"A": "b"}}},
    {"schedule": {"retrain": None, "sweep": "0 5 * * 0"}, "alerts": {"retrain": False}},
]


def test_ten_deploys_with_changes_in_between_leave_what_the_file_says_each_time(deployable: Pipeline) -> None:
    assert {c.sign for c in deploy(deployable.config)} == {"+"}
    for change in CHANGES:
        deployable.rewrite(**change)
        shown = [(c.sign, c.what) for c in deploy(deployable.config, dry_run=True)]
        done = [(c.sign, c.what) for c in deploy(deployable.config)]
        assert done
        assert set(shown) == set(done)
        assert deploy(deployable.config) == []
        assert counted(deployable.config) == wanted(deployable.config)
    for name in ("monitor", "sweep"):
        times = runs_of(name, deployable.config)
        assert len(times) == len(set(times)), name


def test_a_changed_schedule_takes_its_waiting_runs_with_it(deployable: Pipeline) -> None:
    deployable.rewrite(schedule={"monitor": "7 * * * *"})
    deploy(deployable.config)
    assert all(":07:00" in at for at in runs_of("monitor", deployable.config))
    deployable.rewrite(schedule={"monitor": "9 * * * *"})
    deploy(deployable.config)
    times = runs_of("monitor", deployable.config)
    assert all(":09:00" in at for at in times)
    assert len(set(times)) == len(times)
    with get_client(sync_client=True) as client:
        [id] = {existing(client, deployable.config)["monitor"].id}
        deploy(deployable.config, delete=True)
        assert client.read_flow_runs(flow_run_filter=FlowRunFilter(deployment_id={"any_": [id]})) == []


def test_a_run_that_waits_to_go_on_outlives_a_deploy(deployable: Pipeline) -> None:
    """What has begun once, crashed or was approved, is work; so is what waits for another run to end."""
    deployable.rewrite(schedule={"monitor": "7 * * * *"})
    deploy(deployable.config)
    runs_of("monitor", deployable.config)
    with get_client(sync_client=True) as client:
        one = existing(client, deployable.config)["monitor"]
        begun, queued, untouched = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(deployment_id={"any_": [one.id]}), sort=FlowRunSort.EXPECTED_START_TIME_ASC, limit=3
        )
        for state in (Pending(), Running(), Crashed(), AwaitingRetry()):
            client.set_flow_run_state(begun.id, state, force=True)
        client.set_flow_run_state(queued.id, AwaitingConcurrencySlot(), force=True)
        deployable.rewrite(schedule={"monitor": "9 * * * *"})
        deploy(deployable.config)
        assert client.read_flow_run(begun.id).state_name == "AwaitingRetry"
        assert client.read_flow_run(queued.id).state_name == "AwaitingConcurrencySlot"
        with pytest.raises(ObjectNotFound):
            client.read_flow_run(untouched.id)


def runs_of(name: str, config: PipelineConfig) -> list[str]:
    """The scheduled runs of a flow, once the scheduler has made some."""
    deadline = time.monotonic() + SCHEDULED_WITHIN
    while not (found := scheduled_runs(config)[name]) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert found
    return found


def test_what_a_person_switched_off_stays_off(deployable: Pipeline) -> None:
    deploy(deployable.config)
    with get_client(sync_client=True) as client:
        [one] = client.read_automations_by_name(f"everfresh · {deployable.name} · no sign of life")
        client.pause_automation(one.id)
        assert deploy(deployable.config) == []
        assert not client.read_automations_by_name(one.name)[0].enabled


def test_a_schedule_that_a_person_switched_off_stays_off_and_is_told(
    deployable: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    deployable.rewrite(schedule={"monitor": "7 * * * *", "retrain": "0 3 * * *"})
    deploy(deployable.config)
    with get_client(sync_client=True) as client:
        had = existing(client, deployable.config)
        client.update_deployment_schedule(had["monitor"].id, had["monitor"].schedules[0].id, active=False)
        client.pause_deployment(had["retrain"].id)
    deployable.rewrite(schedule={"monitor": "9 * * * *", "retrain": "0 4 * * *"})
    deploy(deployable.config)
    with get_client(sync_client=True) as client:
        now = existing(client, deployable.config)
    assert [(s.schedule.cron, s.active) for s in now["monitor"].schedules] == [("9 * * * *", False)]
    assert [s.schedule.cron for s in now["retrain"].schedules] == ["0 4 * * *"]
    assert now["retrain"].paused
    for flow in ("monitor", "retrain"):
        assert f"deployment {flow}/{deployable.name}: its schedule was switched off by hand" in caplog.text


def test_an_automation_that_is_there_twice_goes(deployable: Pipeline) -> None:
    deploy(deployable.config)
    with get_client(sync_client=True) as client:
        [one] = client.read_automations_by_name(f"everfresh · {deployable.name} · never begun")
        client.create_automation(AutomationCore.model_validate(one.model_dump(exclude={"id"})))
        assert [(c.sign, c.what) for c in deploy(deployable.config)] == [("-", f"automation {one.name}")]
        assert len(client.read_automations_by_name(one.name)) == 1


def test_what_is_under_way_is_not_deleted(deployable: Pipeline) -> None:
    deploy(deployable.config)
    with get_client(sync_client=True) as client:
        run = client.create_flow_run_from_deployment(existing(client, deployable.config)["retrain"].id)
        client.set_flow_run_state(run.id, Pending())
        for dry_run in (True, False):
            with pytest.raises(EverfreshError, match=rf"got 1 under way, such as {run.name}\. .*cancel {run.id}"):
                deploy(deployable.config, delete=True, dry_run=dry_run)
        assert counted(deployable.config) == wanted(deployable.config)
        client.set_flow_run_state(run.id, Crashed())


def test_nothing_is_made_of_a_file_that_is_wrong(deployable: Pipeline) -> None:
    for wrong in ({"schedule": {"retrain": "61 3 * * *"}}, {"alerts": {"notify": ["slack-webhook/nowhere"]}}):
        deployable.rewrite(**wrong)
        with pytest.raises(ConfigError, match=r"'61 3 \* \* \*|got slack-webhook/nowhere"):
            deploy(deployable.config)
        assert counted(deployable.config)["deployments"] == []


def test_a_pool_of_another_kind_is_named(deployable: Pipeline) -> None:
    deploy(deployable.config)
    deployable.rewrite(deploy={"kind": "docker"})
    with pytest.raises(ConfigError, match=r"deploy\.kind must be the type of pool cpu, got docker and a pool of type process"):
        deploy(deployable.config)


def test_pipelines_beside_it_are_left_alone(deployable: Pipeline, tmp_path: Path) -> None:
    other = make_pipeline(tmp_path / "q", f"{deployable.name}-2")
    deploy(deployable.config)
    deploy(other.config)
    deploy(other.config, delete=True)
    assert counted(deployable.config) == wanted(deployable.config)
    assert counted(other.config)["deployments"] == counted(other.config)["automations"] == []


def test_a_job_variable_that_the_pool_does_not_have_is_named(deployable: Pipeline) -> None:
    deployable.rewrite(deploy={"job_variables": {"stream_output": "loud"}})
    with pytest.raises(EverfreshError, match=r"deployment monitor/deployed.*must take it, got 4.*loud"):
        deploy(deployable.config)


@pytest.mark.parametrize("name", declared.FLOWS)
def test_the_form_of_a_custom_run_is_short_and_ends_with_the_config(name: str) -> None:
    fields = declared.form(declared.flow_of(name))["properties"]
    assert list(fields)[-1] == "config" or name == "fine-tune"
    assert [field["position"] for field in fields.values()] == list(range(len(fields)))
    assert all(field.get("description") and "$ref" not in str(field) for field in fields.values() if name != "fine-tune")


values = st.recursive(st.none() | st.integers() | st.text(max_size=3), lambda inner: st.lists(inner, max_size=3), max_leaves=4)
trees = st.recursive(values, lambda inner: st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3), max_leaves=8)


@given(trees, trees)
def test_two_values_differ_exactly_if_a_difference_is_told(one: Any, other: Any) -> None:
    assert list(differences(one, one)) == []
    assert bool(list(differences(one, other))) == (one != other)
