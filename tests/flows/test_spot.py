"""A spot node is taken back while a GPU is training: the run goes back to its pool and goes on from its checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from prefect import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from support.prefect_server import PrefectServer
from support.stream import Pipeline, make_pipeline

from everfresh.flows import declared
from everfresh.flows.deploy import deploy
from everfresh.tasks import journal
from everfresh.tasks.ingest import ingest

WITHIN = 600.0


@pytest.fixture
def waiting(server: PrefectServer, tmp_path: Path) -> Iterator[tuple[Pipeline, FlowRun]]:
    """A fine-tuning long enough to be interrupted, which no worker has taken."""
    name = f"spot-{uuid.uuid4().hex[:8]}"
    made = make_pipeline(tmp_path / "p", name, deploy={"gpu_pool": f"{name}-gpu"})
    made.rewrite(fine_tune={"epochs": 200, "checkpoint_every": 20})
    made.arrives(1, samples=200)
    deploy(made.config)
    entry = ingest(made.store, made.config)
    assert entry is not None
    tick = journal.outlook(made.store, entry).model_dump(mode="json")
    yield made, run_deployment(f"fine-tune/{name}", parameters={"tick": tick, "rung": "pretrained"}, timeout=0)
    deploy(made.config, delete=True)


@contextmanager
def pod(server: PrefectServer, pipeline: Pipeline, run: FlowRun, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """What a pod of a Kubernetes pool runs, with the environment that `everfresh deploy` gives it."""
    how = pipeline.config.deploy.model_copy(update={"kind": "kubernetes"})
    given = declared.job_variables(pipeline.config.model_copy(update={"deploy": how}), gpu=True)["env"]
    command = [str(Path(sys.executable).with_name("prefect")), "flow-run", "execute", str(run.id)]
    with output.open("ab") as log:
        environment = server.environment() | given | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the training is a child of its own, and may outlive the one above it
        process.wait()


def state(run: FlowRun) -> State:
    with get_client(sync_client=True) as client:
        found = client.read_flow_run(run.id).state
    assert found is not None
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_training_on_a_node_that_is_taken_back_is_rescheduled_and_goes_on(
    waiting: tuple[Pipeline, FlowRun], server: PrefectServer, tmp_path: Path
) -> None:
    """With the signal Prefect kills the training, which therefore goes on from a checkpoint of its own rhythm."""
    pipeline, run = waiting
    output = tmp_path / "pod.log"
    with pod(server, pipeline, run, output) as first:
        deadline = time.monotonic() + WITHIN
        while not steps(pipeline):
            assert first.poll() is None, output.read_text()
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.1)
        first.send_signal(signal.SIGTERM)
        assert first.wait(WITHIN) == 0, output.read_text()  # backoffLimit: 0, a Job that failed would not come back
    assert state(run).is_scheduled(), (state(run), output.read_text())
    assert not records(pipeline)
    told = max(steps(pipeline))
    with pod(server, pipeline, run, output) as second:
        assert second.wait(WITHIN) == 0, output.read_text()
    assert state(run).is_completed(), (state(run), output.read_text())
    assert len(records(pipeline)) == 1
    assert f"resumed after step {told}" in server.logs(str(run.id))


def steps(pipeline: Pipeline) -> list[int]:
    """Steps after which there are checkpoints."""
    keys = [item.key for item in pipeline.store.list("candidates")]
    return [int(key.rpartition("/checkpoint-")[2].split("-")[0]) for key in keys if "/checkpoint-" in key]


def records(pipeline: Pipeline) -> list[str]:
    """Candidates that are finished."""
    return [item.key for item in pipeline.store.list("candidates") if item.key.endswith("record.json")]
