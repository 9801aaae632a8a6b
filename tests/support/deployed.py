"""Deployments and automations of a pipeline on a server, without workers: runs are begun and ended by the test."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from prefect import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.events.schemas.automations import AutomationCore
from prefect.flow_engine import run_flow
from prefect.states import Pending, Running, Submitting

from everfresh.flows.automations import wanted
from everfresh.tasks.config import PipelineConfig

WITHIN = 90.0
FLOWS = ("monitor", "retrain", "rollback", "sweep", "fine-tune")


class Deployed:
    """A pipeline as it stands on the server."""

    def __init__(self, config: PipelineConfig, ids: dict[str, UUID]) -> None:
        self.config, self.ids = config, ids

    def run_of(self, flow: str) -> FlowRun:
        """A new run of a deployment, as its schedule makes one."""
        with get_client(sync_client=True) as client:
            return client.create_flow_run_from_deployment(self.ids[f"{flow}/{self.config.name}"])

    def begin(self, run: FlowRun) -> None:
        """A worker takes the run and begins it."""
        self.take(run)
        self.becomes(run, Running())

    def take(self, run: FlowRun) -> None:
        """A worker takes the run."""
        self.becomes(run, Pending())
        self.becomes(run, Submitting())

    def becomes(self, run: FlowRun, state: State[Any]) -> None:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(run.id, state)

    def execute(self, flow: Any, run: FlowRun) -> Any:
        """Work it off in this process, as a worker's process does."""
        with get_client(sync_client=True) as client:
            self.becomes(run, Pending())
            return run_flow(flow, flow_run=client.read_flow_run(run.id), parameters={"config": self.config})

    def state(self, run: FlowRun, wanted: Callable[[State[Any]], bool]) -> State[Any]:
        """The run's state once it is as wanted."""
        deadline = time.monotonic() + WITHIN
        while True:
            with get_client(sync_client=True) as client:
                state = client.read_flow_run(run.id).state
            assert state is not None
            if wanted(state) or time.monotonic() > deadline:
                return state
            time.sleep(0.2)

    def runs(self, flow: str) -> int:
        """How many runs a deployment has."""
        from prefect.client.schemas.filters import FlowRunFilter

        with get_client(sync_client=True) as client:
            id = self.ids[f"{flow}/{self.config.name}"]
            return len(client.read_flow_runs(flow_run_filter=FlowRunFilter(deployment_id={"any_": [id]})))


@contextmanager
def deployed(
    config: PipelineConfig, ui: str, changed: Callable[[AutomationCore], AutomationCore] = lambda a: a
) -> Iterator[Deployed]:
    """Deployments of all flows and the automations; these go at the end, for they would act on other tests' events."""
    tags = ["everfresh", f"pipeline:{config.name}"]
    with get_client(sync_client=True) as client:
        ids = {
            f"{flow}/{config.name}": client.create_deployment(client.create_flow_from_name(flow), config.name, tags=tags)
            for flow in FLOWS
        }
        made = [changed(automation) for automation in wanted(config, ids, ui)]
        answers = [client.request("POST", "/automations/", json=one.model_dump(mode="json")) for one in made]
        automations = [answer.json()["id"] for answer in answers]
        time.sleep(1)  # the server reads automations in the background
        try:
            yield Deployed(config, ids)
        finally:
            for id in automations:
                client.request("DELETE", f"/automations/{id}")


def happening(config: PipelineConfig, name: str, ago: float, words: str = "") -> None:
    """An event of ours that happened so many seconds ago."""
    from datetime import UTC, datetime, timedelta

    event = {
        "event": f"everfresh.{name}", "id": str(uuid.uuid4()), "payload": {"words": words}, "related": [],
        "occurred": (datetime.now(UTC) - timedelta(seconds=ago)).isoformat(),
        "resource": {"prefect.resource.id": f"everfresh.pipeline.{config.name}"},
    }  # fmt: skip
    with get_client(sync_client=True) as client:
        client.request("POST", "/events", json=[event])


def sign_of_life(run: FlowRun, config: PipelineConfig) -> None:
    """What a run's process sends every heartbeat."""
    from datetime import UTC, datetime

    tag = {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.pipeline:{config.name}"}
    event = {
        "event": "prefect.flow-run.heartbeat", "id": str(uuid.uuid4()), "payload": {}, "related": [tag],
        "occurred": datetime.now(UTC).isoformat(),
        "resource": {"prefect.resource.id": f"prefect.flow-run.{run.id}"},
    }  # fmt: skip
    with get_client(sync_client=True) as client:
        client.request("POST", "/events", json=[event])
