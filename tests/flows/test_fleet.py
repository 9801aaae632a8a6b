"""One `monitor` run over many pipelines, against a real server."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.deployments import run_deployment
from prefect.flow_engine import run_flow
from prefect.states import Pending
from support.prefect_server import PrefectServer
from support.stream import AGED, Pipeline, make_pipeline

from everfresh.flows.declared import FLEET, as_parameter
from everfresh.flows.deploy import all_automations, deploy
from everfresh.flows.deploy_fleet import OF_RUNS, deploy_fleet, stands_for
from everfresh.flows.monitor_all import PipelinesFailed, monitor_all
from everfresh.tasks.config import PipelineConfig, parse_config
from everfresh.tasks.errors import ConfigError


def test_a_config_is_the_same_after_the_short_way(played: Pipeline) -> None:
    assert parse_config(as_parameter(played.config)) == played.config


def test_one_that_fails_does_not_stop_the_others(pipeline: Pipeline, server: PrefectServer, tmp_path: Path) -> None:
    """A wrong config, a store that is a file, one with drift, one with nothing new: each is told, and the drift is alerted."""
    idle = make_pipeline(tmp_path / "idle", "idle")
    blocked = make_pipeline(tmp_path / "blocked", "blocked")
    blocked.arrives(1)
    (blocked.folder / "store").write_text("not a folder", "utf-8")
    pipeline.arrives(3, AGED)
    configs = [
        {"name": "wrong", "store": "x"},
        *(as_parameter(one.config) for one in (blocked, pipeline, idle)),
    ]
    with pytest.raises(PipelinesFailed, match="2 of 4 pipelines failed, the others were looked at: wrong: ") as failed:
        monitor_all(configs, name=pipeline.name, threads=2)
    wrong, broken, drifted, quiet = failed.value.looked
    assert "source" in wrong.failure
    assert broken.failure
    assert "\n" not in broken.failure
    assert drifted.tick is not None
    assert drifted.drift is not None
    assert (drifted.tick.seq, quiet.words) == (3, "nothing new")
    [page] = server.artifacts(f"{pipeline.name}-fleet")
    assert page["description"].endswith("2 failed")
    assert "| blocked | – | failed |" in page["data"]
    [run] = server.call("flow_runs/filter", flow_runs={"name": {"like_": f"{pipeline.name} · 4 pipelines"}})
    assert run["state"]["type"] == "FAILED"
    assert run["state"]["message"].startswith("2 of 4 pipelines failed")
    again = monitor_all(configs[2:], name=pipeline.name)
    assert [one.words for one in again] == ["nothing new", "nothing new"]


@pytest.fixture
def fleet(server: PrefectServer, tmp_path: Path) -> Iterator[tuple[str, Pipeline, Pipeline]]:
    """Two pipelines with the same schedule and a name for both; nothing of them is left on the server."""
    name = f"fleet-{uuid.uuid4().hex[:6]}"
    every = {"schedule": {"monitor": "*/5 * * * *"}}
    one, two = (make_pipeline(tmp_path / each, f"{name}-{each}", **every) for each in ("a", "b"))
    yield name, one, two
    for each in (one, two):
        each.rewrite(schedule={"monitor": "*/5 * * * *"}, deploy={"pool": "cpu"})
    deploy_fleet(name, [one.config, two.config], delete=True)
    assert crons(name) == {}


def crons(name: str) -> dict[str, list[str]]:
    """Schedules of the deployed `monitor` and `monitor-all` of a fleet and its pipelines, by flow and name."""
    flows = FlowFilter(name=FlowFilterName(any_=["monitor", FLEET]))
    with get_client(sync_client=True) as client:
        found = [one for one in client.read_deployments(flow_filter=flows, limit=200) if one.name.startswith(name)]
        return {
            f"{client.read_flow(one.flow_id).name}/{one.name}": [each.schedule.cron for each in one.schedules] for one in found
        }


def configs_of(name: str) -> list[PipelineConfig]:
    """What a fleet looks with."""
    with get_client(sync_client=True) as client:
        made = client.read_deployment_by_name(f"{FLEET}/{name}")
    return [parse_config(each) for each in made.parameters["configs"]]


def test_a_fleet_has_the_schedule_and_its_pipelines_have_none(
    fleet: tuple[str, Pipeline, Pipeline], server: PrefectServer
) -> None:
    name, one, two = fleet
    both = [one.config, two.config]
    planned = {(c.sign, c.what) for c in deploy_fleet(name, both, dry_run=True)}
    assert crons(name) == {}
    assert {(c.sign, c.what) for c in deploy_fleet(name, both)} == planned
    assert deploy_fleet(name, both) == []
    assert deploy(one.config) == [], "what a fleet looks at keeps to it when it is deployed alone"
    assert crons(name) == {f"{FLEET}/{name}": ["*/5 * * * *"], f"monitor/{one.name}": [], f"monitor/{two.name}": []}
    assert configs_of(name) == both
    with get_client(sync_client=True) as client:
        watched = [a.name for a in all_automations(client) if a.name.startswith(f"everfresh · {name} · ")]
    assert f"everfresh · {name} · tell schedule.missed monitor" in watched
    assert f"everfresh · {name} · run crashed ones again" in watched

    with pytest.raises(ConfigError, match=f"{one.name} must not be in fleet {name}, which goes on looking at it"):
        deploy(one.config, delete=True)
    with pytest.raises(ConfigError, match=f"{one.name} must be in one fleet, got {name} beside {name}-2"):
        deploy_fleet(f"{name}-2", [one.config])
    with pytest.raises(ConfigError, match=f"--fleet must be a name that no pipeline has, got {one.name}"):
        deploy_fleet(one.name, [two.config.model_copy(update={"name": "other"})])

    run = run_deployment(f"{FLEET}/{name}", parameters={"configs": [{"name": "wrong", "store": "x"}]}, timeout=0)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run.id, Pending())
        run = client.read_flow_run(run.id)
    assert run_flow(monitor_all, flow_run=run, parameters={**run.parameters}, return_type="state").is_failed()
    [event] = server.events(name, "everfresh.run.failed")
    assert "1 of 1 pipelines failed" in event["payload"]["words"]

    one.rewrite(drift={"min_effect": 0.3})
    assert ("~", f"deployment {FLEET}/{name}") in {(c.sign, c.what) for c in deploy(one.config)}
    assert configs_of(name) == [one.config, two.config]
    assert deploy(one.config) == deploy_fleet(name, [one.config, two.config]) == []
    one.rewrite(schedule={"monitor": "*/7 * * * *"})
    with pytest.raises(ConfigError, match=rf"schedule\.monitor must be that of fleet {name}, got '\*/7 .*--fleet {name}"):
        deploy(one.config)
    one.rewrite(schedule={"monitor": "*/5 * * * *"})
    with pytest.raises(ConfigError, match=f"--delete must be given all pipelines of fleet {name}, got it without {two.name}"):
        deploy_fleet(name, [one.config], delete=True)

    left = deploy_fleet(name, [one.config])
    assert ("-", f"pipeline {two.name} of fleet {name}") in {(c.sign, c.what) for c in left}
    deploy(two.config)
    assert crons(name)[f"monitor/{two.name}"] == ["*/5 * * * *"]


def test_pipelines_that_differ_in_what_one_run_has_once_are_no_fleet(tmp_path: Path) -> None:
    one, two = (make_pipeline(tmp_path / name, name, schedule={"monitor": "*/5 * * * *"}) for name in ("one", "two"))
    head = stands_for("all", [one.config, two.config])
    assert (head.name, head.schedule.monitor, head.alerts.notify_on) == ("all", "*/5 * * * *", OF_RUNS)
    with pytest.raises(ConfigError, match="names of their own, got one twice"):
        stands_for("all", [one.config, one.config])
    with pytest.raises(ConfigError, match=r"--fleet:.*\n.*name: must be lower case"):
        stands_for("All Of Them", [one.config])
    two.rewrite(schedule={"monitor": "*/9 * * * *"})
    with pytest.raises(ConfigError, match=r"schedule.monitor must be the same .* in one and '\*/9 \* \* \* \*' in two"):
        stands_for("all", [one.config, two.config])
    two.rewrite(schedule={"monitor": "*/5 * * * *"}, deploy={"pool": "other"})
    with pytest.raises(ConfigError, match=r"deploy.pool must be the same .* got 'cpu' in one and 'other' in two"):
        stands_for("all", [one.config, two.config])
