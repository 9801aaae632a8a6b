"""The part that runs on a GPU worker: one rung, one challenger."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, cast

from prefect import flow
from prefect.states import Failed

from everfresh.flows.declared import gpu_limit
from everfresh.flows.leases import leased
from everfresh.flows.outcome import in_one_sentence
from everfresh.tasks import steps
from everfresh.tasks.config import PipelineConfig, Rung
from everfresh.tasks.errors import DataError, TrainingError
from everfresh.tasks.records import Candidate, Tick

UNTRAINABLE = "Untrainable"
"""Name of the state of a run whose window cannot be trained on; another start would end the same."""


@flow(name="fine-tune", flow_run_name="{config.name} · window {tick.seq} · {rung}", persist_result=False)
@in_one_sentence
def fine_tune(config: PipelineConfig, tick: Tick, rung: Rung, start: Candidate | None = None) -> Candidate | str:
    """Train one challenger for a tick, or say why the rung has none to give.

    What an earlier run finished is returned, what it began is gone on with.
    """
    try:
        with leased(gpu_limit(config)) if config.deploy.gpu_pool else nullcontext():
            return steps.fine_tune(config, tick, rung, start)
    except (DataError, TrainingError) as error:
        ended: Any = Failed(name=UNTRAINABLE, message=f"{type(error).__name__}: {error}", data=error)
        return cast(str, ended)
