"""Where a rung is trained: here, or by a worker of the GPU pool.

The run on the pool leaves its candidate in the store, where the run that asked finds it: nothing is handed over but records.
Each piece of work has one name, made of all that it depends on, and at most one live run under it: a `retrain` that died and
starts again waits for the run that its predecessor began.
"""

from __future__ import annotations

import logging
import time
from typing import Any, cast

import httpx
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.context import FlowRunContext
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelling

from everfresh.flows.declared import tags
from everfresh.flows.fine_tune import UNTRAINABLE, fine_tune
from everfresh.tasks import steps
from everfresh.tasks.config import PipelineConfig, Rung
from everfresh.tasks.errors import DataError, EverfreshError, TrainingError
from everfresh.tasks.records import Candidate, Tick, digest_of

log = logging.getLogger(__name__)
FOR_GPUS: tuple[Rung, ...] = ("full", "pretrained")
"""Rungs that train the whole network; the others take seconds on a CPU."""
POLL = 3.0
"""Seconds between two looks at a run on the pool."""
UNTAKEN = 60.0
"""Seconds after which a run that no worker has taken is remarked on."""
CRASHES = 3
"""Starts of a run whose worker dies under it, before the one that waits gives up."""


def fine_tuned(config: PipelineConfig, tick: Tick, rung: Rung, start: Candidate | None = None) -> Candidate | str:
    """Train one challenger where the config says, or say why the rung has none to give.

    Args:
        config: of the pipeline; `deploy.gpu_pool` names the pool.
        tick: what it is trained for.
        rung: `full` and `pretrained` go to the pool.
        start: a candidate to go on from.

    Raises:
        DataError: the window cannot be trained on.
        TrainingError: training cannot go on.
        EverfreshError: the run on the pool failed for another reason, was cancelled, or crashed too often.
    """
    if not _sent_away(config, rung):
        return fine_tune(config, tick, rung, start)
    for _ in range(CRASHES):
        ended = _ended(config, tick, rung, start)
        if ended.type != StateType.CRASHED:
            break
        log.warning("the run on pool %s crashed (%s); it is started again", config.deploy.gpu_pool, ended.message)
    _raise_if_bad(config, ended)
    return steps.fine_tune(config, tick, rung, start)  # which finds it in the store


def work_name(config: PipelineConfig, tick: Tick, rung: Rung, start: Candidate | None) -> str:
    """The name of a piece of work: a digest of all that its result depends on, and of the store that keeps it."""
    facts = {
        "config": config.model_dump(mode="json", exclude={"schedule", "alerts", "approval", "deploy"}),
        "tick": tick.model_dump(mode="json"),
        "rung": rung,
        "start": start.key if start else None,
    }
    return f"work:{digest_of(facts)}"


def _sent_away(config: PipelineConfig, rung: Rung) -> bool:
    """Whether the server has the pool and the deployment; says so where it has not."""
    pool = config.deploy.gpu_pool
    if pool is None or rung not in FOR_GPUS:
        return False
    try:
        with get_client(sync_client=True) as client:
            client.read_work_pool(pool)
            client.read_deployment_by_name(f"fine-tune/{config.name}")
    except ObjectNotFound:
        log.warning("%s is trained here: the server has no pool %s, or nothing deployed to it", rung, pool)
        return False
    return True


def _ended(config: PipelineConfig, tick: Tick, rung: Rung, start: Candidate | None) -> State:
    """The state in which the run on the pool ended, one that is there already or a new one."""
    name = work_name(config, tick, rung, start)
    parameters = {
        "config": config.model_dump(mode="json"),
        "tick": tick.model_dump(mode="json"),
        "rung": rung,
        "start": start.model_dump(mode="json") if start else None,
    }
    with get_client(sync_client=True) as client:
        earlier = _runs(client, name)
        run = next((run for run in earlier if not _is_over(run)), None)
        number = len(earlier) + 1
        while run is None or _is_over(run):  # a number may be taken by a run that is older than the server's history
            run, number = _start(config, parameters, name, number), number + 1
        log.info("%s is trained on pool %s, by run %s", rung, config.deploy.gpu_pool, run.name)
        try:
            return _waited(client, run, config)
        except BaseException:
            _cancelled_too(client, run)
            raise


def _start(config: PipelineConfig, parameters: dict[str, Any], name: str, number: int) -> FlowRun:
    """The run of a piece of work with this number: a new one, or the one that was started under it before."""
    run = run_deployment(
        f"fine-tune/{config.name}",
        parameters=parameters,
        timeout=0,
        idempotency_key=f"{name}-{number}",
        tags=[*tags(config), name],
    )
    return cast(FlowRun, run)  # outside of an event loop it is no coroutine


def _runs(client: SyncPrefectClient, name: str) -> list[FlowRun]:
    """The runs under a name so far."""
    return client.read_flow_runs(flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=[name])))


def _is_over(run: FlowRun) -> bool:
    """Whether it ended without a result: one that is complete has left its candidate and is not run again."""
    return bool(run.state and run.state.is_final() and not run.state.is_completed())


def _waited(client: SyncPrefectClient, run: FlowRun, config: PipelineConfig) -> State:
    """The state in which a run ends; a server that is out of reach for a while does not end the waiting."""
    since, remarked = time.monotonic(), False
    while True:
        try:
            state = client.read_flow_run(run.id).state
        except (httpx.TransportError, PrefectHTTPStatusError) as gone:
            if isinstance(gone, PrefectHTTPStatusError) and gone.response.status_code < httpx.codes.INTERNAL_SERVER_ERROR:
                raise
            log.warning("the Prefect server cannot be asked about %s: %s", run.name, gone)
            state = None
        if state is not None and state.is_final():
            return state
        if state is not None and state.is_scheduled() and not remarked and time.monotonic() - since > UNTAKEN:
            remarked = True
            log.warning(
                "no worker has taken %s for %.0f s: is one of `prefect worker start --pool %s` alive?",
                run.name,
                UNTAKEN,
                config.deploy.gpu_pool,
            )
        time.sleep(POLL)


def _cancelled_too(client: SyncPrefectClient, child: FlowRun) -> None:
    """Cancel the run on the pool if a person is cancelling this one; if this one dies of anything else, the next finds it."""
    own = FlowRunContext.get()
    if own is None or own.flow_run is None:
        return
    try:
        state = client.read_flow_run(own.flow_run.id).state
        if state is not None and (state.is_cancelling() or state.is_cancelled()):
            client.set_flow_run_state(child.id, Cancelling(message=f"{own.flow_run.name} was cancelled."))
    except (httpx.HTTPError, PrefectHTTPStatusError) as gone:
        log.warning("whether %s is to be cancelled cannot be asked: %s", child.name, gone)


def _raise_if_bad(config: PipelineConfig, ended: State) -> None:
    if ended.is_completed():
        return
    words = ended.message or "no reason is known"
    if ended.name == UNTRAINABLE:
        kind, _, sentence = words.partition(": ")
        raise {"DataError": DataError}.get(kind, TrainingError)(sentence)
    raise EverfreshError(
        f"fine-tune on pool {config.deploy.gpu_pool} must end with a candidate, got {ended.name}: {words.rstrip('.')}. "
        "Mend that; the next run tries again and goes on from its last checkpoint."
    )
