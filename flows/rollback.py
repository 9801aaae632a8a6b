"""Go back: the champion moves to an earlier release and stays there until it is unpinned."""

from __future__ import annotations

import uuid

from prefect import flow
from prefect.runtime import flow_run

from everfresh.flows.alerts import announce
from everfresh.flows.outcome import in_one_sentence
from everfresh.tasks import steps
from everfresh.tasks.config import PipelineConfig
from everfresh.tasks.records import AliasMove


@flow(name="rollback", flow_run_name="{config.name} · rollback", persist_result=False)
@in_one_sentence
def rollback(config: PipelineConfig, to: int | None = None, reason: str = "") -> AliasMove:
    """Move the champion back to version `to`, or to the one before; once, however often the run is started again.

    Args:
        config: the pipeline.
        to: number of the version; empty for the one before.
        reason: why, for the history.

    Returns:
        The move that was made.
    """
    move = steps.rollback(config, to, reason, uuid.UUID(flow_run.id).hex)
    announce(config, None, move)
    return move
