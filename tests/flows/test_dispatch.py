"""The whole network is trained by a worker of the GPU pool: once, whatever dies while it does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
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
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.flow_engine import run_flow
from prefect.states import Cancelling, Crashed, Failed, Pending
from support.operations import working
from support.prefect_server import PrefectServer
from support.stream import Pipeline, make_pipeline

from everfresh.flows import dispatch
from everfresh.flows.deploy import deploy, existing
from everfresh.flows.fine_tune import UNTRAINABLE, fine_tune
from everfresh.tasks import journal
from everfresh.tasks.errors import DataError, EverfreshError, TrainingError
from everfresh.tasks.journal import scheduled
from everfresh.tasks.ledger import champion_moves
from everfresh.tasks.records import Tick

WITHIN = 240.0


@pytest.fixture
def sent(server: PrefectServer, tmp_path: Path) -> Iterator[Pipeline]:
    """A deployed pipeline whose first version is trained on a GPU pool of its own, on one window that waits."""
    name = f"sent-{uuid.uuid4().hex[:8]}"
    made = make_pipeline(tmp_path / "p", name, deploy={"pool": f"{name}-cpu", "gpu_pool": f"{name}-gpu"})
    made.arrives(1, samples=200)
    deploy(made.config)
    yield made
    deploy(made.config, delete=True)


def runs(pipeline: Pipeline, name: str) -> list[FlowRun]:
    with get_client(sync_client=True) as client:
        one = existing(client, pipeline.config)[name]
        found = client.read_flow_runs(flow_run_filter=FlowRunFilter(deployment_id={"any_": [one.id]}))
    return sorted(found, key=lambda run: str(run.created))


def ended(pipeline: Pipeline, run: FlowRun) -> FlowRun:
    deadline = time.monotonic() + WITHIN
    while time.monotonic() < deadline:
        with get_client(sync_client=True) as client:
            now = client.read_flow_run(run.id)
        if now.state and now.state.is_final():
            return now
        time.sleep(0.3)
    raise AssertionError(f"{run.name} of {pipeline.name} is {now.state}")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_worker_of_the_gpu_pool_trains_and_the_other_publishes(sent: Pipeline, server: PrefectServer, tmp_path: Path) -> None:
    with working(server, sent.config.deploy.pool, tmp_path), working(server, str(sent.config.deploy.gpu_pool), tmp_path):
        run = ended(sent, run_deployment(f"retrain/{sent.name}", timeout=0))
    assert run.state is not None
    assert run.state.is_completed(), (run.state.message, server.logs(str(run.id)))
    [trained] = runs(sent, "fine-tune")
    assert trained.state is not None
    assert trained.state.is_completed()
    assert trained.work_pool_name == sent.config.deploy.gpu_pool
    assert run.work_pool_name == sent.config.deploy.pool
    assert trained.parent_task_run_id is not None, "the graph of the run shows it"
    [entry] = scheduled(sent.store)
    assert entry.version == 1
    assert [move.version for move in champion_moves(sent.store)] == [1]


def test_without_the_pool_it_is_trained_here(sent: Pipeline, server: PrefectServer) -> None:
    from everfresh.flows.retrain import retrain

    deploy(sent.config, delete=True)
    [entry] = retrain(sent.config)
    assert entry.version == 1


def tick_of(pipeline: Pipeline) -> Tick:
    from everfresh.tasks.ingest import ingest

    entry = ingest(pipeline.store, pipeline.config)
    assert entry is not None
    return journal.outlook(pipeline.store, entry)


@pytest.mark.parametrize(
    ("message", "kind"), [("TrainingError: the loss is not finite", TrainingError), ("DataError: no sample", DataError)]
)
def test_a_window_that_cannot_be_trained_on_says_so_to_the_one_that_asked(
    sent: Pipeline, message: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_start", ends_with(dispatch._start, Failed(name=UNTRAINABLE, message=message)))
    with pytest.raises(kind, match=message.partition(": ")[2]):
        dispatch.fine_tuned(sent.config, tick_of(sent), "pretrained")
    assert len(runs(sent, "fine-tune")) == 1


def test_a_run_that_failed_is_told_and_the_next_call_starts_another(sent: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    tick = tick_of(sent)
    monkeypatch.setattr(dispatch, "_start", ends_with(dispatch._start, Failed(message="The GPU is on fire.")))
    for times in (1, 2):
        with pytest.raises(EverfreshError, match=r"got Failed: The GPU is on fire\. Mend that"):
            dispatch.fine_tuned(sent.config, tick, "pretrained")
        assert len(runs(sent, "fine-tune")) == times


def test_a_run_whose_worker_dies_each_time_is_given_up(sent: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_start", ends_with(dispatch._start, Crashed(message="No sign of life.")))
    with pytest.raises(EverfreshError, match="got Crashed: No sign of life"):
        dispatch.fine_tuned(sent.config, tick_of(sent), "pretrained")
    assert len(runs(sent, "fine-tune")) == dispatch.CRASHES


def ends_with(start: Any, state: Any) -> Any:
    """Starts a run as ever; while it is waited for, it ends so on the server: what a worker would report."""

    def started(*given: Any) -> FlowRun:
        run = start(*given)
        if not run.state.is_final():
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(run.id, state, force=True)
        return run

    return started


def test_a_run_by_hand_without_a_gpu_pool_needs_no_slot(sent: Pipeline) -> None:
    sent.rewrite(deploy={"gpu_pool": None})
    deploy(sent.config)
    tick = tick_of(sent).model_dump(mode="json")
    run = run_deployment(f"fine-tune/{sent.name}", parameters={"tick": tick, "rung": "head"}, timeout=0)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run.id, Pending())
        started = client.read_flow_run(run.id)
    ended = run_flow(fine_tune, flow_run=started, parameters={**started.parameters}, return_type="state")
    assert ended.is_completed(), ended.message


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_retrain_that_is_killed_finds_the_run_that_it_began(sent: Pipeline, server: PrefectServer, tmp_path: Path) -> None:
    sent.rewrite(fine_tune={"epochs": 200})
    deploy(sent.config)
    command = [str(Path(sys.executable).with_name("everfresh")), "run", str(sent.file)]
    first = subprocess.Popen(command, env=server.environment())
    with working(server, str(sent.config.deploy.gpu_pool), tmp_path):
        deadline = time.monotonic() + WITHIN
        while not any(run.state and run.state.is_running() for run in runs(sent, "fine-tune")):
            assert time.monotonic() < deadline
            assert first.poll() is None
            time.sleep(0.2)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        assert subprocess.run(command, env=server.environment(), timeout=WITHIN).returncode == 0
    assert len(runs(sent, "fine-tune")) == 1
    assert [move.version for move in champion_moves(sent.store)] == [1]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_who_cancels_a_retraining_cancels_its_training(sent: Pipeline, server: PrefectServer, tmp_path: Path) -> None:
    sent.rewrite(fine_tune={"epochs": 2_000})
    deploy(sent.config)
    with working(server, str(sent.config.deploy.gpu_pool), tmp_path), working(server, sent.config.deploy.pool, tmp_path):
        parent = run_deployment(f"retrain/{sent.name}", timeout=0)
        deadline = time.monotonic() + WITHIN
        while not any(run.state and run.state.is_running() for run in runs(sent, "fine-tune")):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(parent.id, Cancelling())
        [child] = runs(sent, "fine-tune")
        assert [ended(sent, run).state_name for run in (parent, child)] == ["Cancelled", "Cancelled"]
    assert champion_moves(sent.store).last() is None


@given(st.integers(1, 9), st.text(max_size=4), st.sampled_from(["full", "pretrained"]), st.integers(1, 50))
def test_the_name_of_a_piece_of_work_is_of_its_inputs_alone(seq: int, request: str, rung: Any, epochs: int) -> None:
    def named(**changed: Any) -> str:
        facts = {"seq": seq, "request": request, "rung": rung, "epochs": epochs, "cron": "0 3 * * *"} | changed
        config = make(epochs=facts["epochs"], cron=facts["cron"])
        tick = Tick.model_validate_json(
            json.dumps(
                {"seq": facts["seq"], "request": facts["request"], "view": "v", "champion": None, "champion_move": 0}
                | {"reference": None, "bank": [], "now": "2026-01-01T00:00:00Z"}
            )
        )
        return dispatch.work_name(config, tick, facts["rung"], None)

    assert named() == named() == named(cron="1 3 * * *"), "when it runs, and where, changes no weights"
    others = [named(seq=seq + 1), named(request=request + "x"), named(epochs=epochs + 1)]
    others.append(named(rung="full" if rung == "pretrained" else "pretrained"))
    assert len({named(), *others}) == 5


def make(epochs: int, cron: str) -> Any:
    from everfresh.tasks.config import parse_config

    return parse_config(
        {"name": "p", "store": "s", "source": {"kind": "folder"}, "model": {"classes": ["a", "b"]}}
        | {"fine_tune": {"epochs": epochs}, "schedule": {"retrain": cron}}
    )
