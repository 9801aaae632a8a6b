"""Clear up: what no record names, and the weights of old releases as `retention` says."""

from __future__ import annotations

from prefect import flow

from everfresh.flows.outcome import in_one_sentence
from everfresh.tasks import steps
from everfresh.tasks.config import PipelineConfig


@flow(name="sweep", flow_run_name="{config.name} · sweep", persist_result=False)
@in_one_sentence
def sweep(config: PipelineConfig, older_than_hours: float = 24.0, delete: bool = True) -> int:
    """Remove debris of runs that died, and the weights of releases that `retention` lets go.

    Args:
        config: the pipeline.
        older_than_hours: what is younger, or was in use then, may be in use still.
        delete: false only counts.

    Returns:
        Objects that went, or would go.
    """
    return steps.sweep(config, older_than_hours, delete)
