"""`deployments/prefect.yaml` declares what `everfresh deploy` makes, and Prefect's own command takes it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectNotFound
from support.prefect_server import PrefectServer

from everfresh.flows import declared
from everfresh.flows.deploy import as_declared, deploy, existing
from everfresh.tasks.config import PipelineConfig, parse_config

FILE = Path(__file__).parents[2] / "deployments" / "prefect.yaml"
WRITTEN: dict[str, Any] = yaml.safe_load(FILE.read_text("utf-8"))
CONFIG: PipelineConfig = parse_config(WRITTEN["definitions"]["config"])
ONLY_OURS = {"parameters", "form"}
"""Prefect's command keeps the config as it is written, without defaults, and shows all of its fields in the form."""


def test_every_flow_is_declared_by_an_entry_point_that_resolves() -> None:
    entrypoints = [one["entrypoint"] for one in WRITTEN["deployments"]]
    assert sorted(entrypoints) == sorted(map(declared.entrypoint, declared.FLOWS))
    assert {declared.load_flow_from_entrypoint(each).name for each in entrypoints} == set(declared.FLOWS)


def test_its_head_makes_the_limits_and_pools_that_its_runs_use() -> None:
    head = FILE.read_text("utf-8").partition("prefect-version")[0]
    for limit, slots in declared.limits(CONFIG).items():
        assert f"prefect gcl create {limit} --limit {slots}" in head
    for pool in declared.pools(CONFIG):
        template = f"infra/work_pools/{pool}-process.json"
        assert f"prefect work-pool create {pool} --type process --base-job-template {template}" in head


@pytest.fixture
def on_the_server(server: PrefectServer) -> Iterator[PrefectServer]:
    """The file deployed by `prefect deploy --all`; its deployments, and the pools that it needed, go again."""
    made = []
    with get_client(sync_client=True) as client:
        for name, template in declared.pools(CONFIG).items():
            try:
                client.read_work_pool(name)
            except ObjectNotFound:
                client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
                made.append(name)
    command = [str(Path(sys.executable).with_name("prefect")), "--no-prompt", "deploy", "--all", "--prefect-file", str(FILE)]
    done = subprocess.run(command, env=server.environment(), capture_output=True, text=True, timeout=240)
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        yield server
    finally:
        deploy(CONFIG, delete=True)
        with get_client(sync_client=True) as client:
            for name in made:
                client.delete_work_pool(name)


def test_prefect_deploys_it_as_everfresh_would(on_the_server: PrefectServer) -> None:
    with get_client(sync_client=True) as client:
        found = {name: as_declared(one) for name, one in existing(client, CONFIG).items()}
        pulled = [one.pull_steps for one in existing(client, CONFIG).values()]
    wanted = declared.deployments(CONFIG)
    assert found.keys() == wanted.keys()
    for name, facts in wanted.items():
        assert without(found[name], ONLY_OURS) == without(facts, ONLY_OURS), name
        assert parse_config(found[name]["parameters"]["config"]) == CONFIG
    assert not any(pulled), "the worker has the code"


def without(facts: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if key not in keys}
