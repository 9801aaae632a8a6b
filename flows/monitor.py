"""The cheap, frequent part: ingest, detect drift, alert. Deciding and training are left to `retrain`."""

from __future__ import annotations

from prefect import flow

from everfresh.flows import artifacts, run_names
from everfresh.flows.alerts import announce, deliver
from everfresh.flows.outcome import in_one_sentence
from everfresh.tasks import steps
from everfresh.tasks.config import PipelineConfig
from everfresh.tasks.records import DriftReport, Tick


@flow(name="monitor", flow_run_name="{config.name} · monitor", persist_result=False)
@in_one_sentence
def monitor(config: PipelineConfig) -> DriftReport | None:
    """Take in what is new and measure drift.

    Returns:
        What was measured, None if nothing is new or there is no champion yet.
    """
    deliver(config)
    tick = steps.watched_window(config)
    if tick is None:
        run_names.name_monitoring(config, None, None)
        return None
    drift = measure(config, tick)
    run_names.name_monitoring(config, tick.seq, drift)
    return drift


def measure(config: PipelineConfig, tick: Tick) -> DriftReport | None:
    """Measure the drift of one window and tell of it; None while there is no champion."""
    drift = steps.detect_drift(config, tick)
    artifacts.drift_table(config, tick, drift)
    announce(config, tick, drift)
    return drift
