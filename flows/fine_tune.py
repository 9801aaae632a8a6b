"""The part that runs on a GPU worker: one rung, one challenger."""

from __future__ import annotations

from prefect import flow

from everfresh.tasks import steps
from everfresh.tasks.config import PipelineConfig, Rung
from everfresh.tasks.records import Candidate, Tick


@flow(name="fine-tune", flow_run_name="{config.name} · window {tick.seq} · {rung}", persist_result=False)
def fine_tune(config: PipelineConfig, tick: Tick, rung: Rung, start: Candidate | None = None) -> Candidate | str:
    """Train one challenger for a tick, or say why the rung has none to give.

    What an earlier run finished is returned, what it began is gone on with.
    """
    return steps.fine_tune(config, tick, rung, start)
