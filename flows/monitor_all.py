"""``monitor`` over many pipelines in one run, for fleets whose windows come rarely.

A run of its own costs a pipeline seconds of process, imports and server; looking at a source costs milliseconds. So one
run looks at all of them. Looking is mostly waiting for stores and sources, and is done by a bounded number of threads;
measuring takes all cores, and is done one window after the other. What fails, fails for its pipeline alone, and is told
at the end.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, replace
from typing import Any

import httpx
from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.exceptions import PrefectException
from rich.table import Table

from everfresh.flows import run_names
from everfresh.flows.alerts import deliver
from everfresh.flows.logs import about
from everfresh.flows.markdown import plain
from everfresh.flows.monitor import measure
from everfresh.flows.outcome import in_one_sentence, sentence
from everfresh.tasks import steps
from everfresh.tasks.config import PipelineConfig, parse_config
from everfresh.tasks.errors import ConfigError, EverfreshError
from everfresh.tasks.records import DriftReport, Tick

log = logging.getLogger(__name__)
NAMED = 5
"""Pipelines that the sentence of a failure names."""


@dataclass(frozen=True)
class Looked:
    """What one pipeline was found to be."""

    pipeline: str
    config: PipelineConfig | None = None
    tick: Tick | None = None
    """The new window; None if nothing is new."""
    drift: DriftReport | None = None
    failure: str = ""
    """The cause in one sentence."""

    @property
    def words(self) -> str:
        """What was found, in a few words."""
        if self.failure:
            return "failed"
        if self.tick is None:
            return "nothing new"
        if self.drift is None:
            return "no champion yet"
        return f"{'ALARM' if self.drift.alarm else 'quiet'}, drift {self.drift.score:.2f}"

    def as_json(self) -> dict[str, Any]:
        """The same as plain values."""
        drift = self.drift.model_dump(mode="json") if self.drift else None
        window = self.tick.seq if self.tick else None
        return {"pipeline": self.pipeline, "window": window, "found": self.words, "failure": self.failure, "drift": drift}


class PipelinesFailed(EverfreshError):
    """Some of the pipelines could not be looked at or measured; the others were."""

    def __init__(self, looked: Sequence[Looked]) -> None:
        self.looked = list(looked)
        failed = [one for one in looked if one.failure]
        more = f"; and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
        causes = "; ".join(f"{one.pipeline}: {one.failure}" for one in failed[:NAMED])
        super().__init__(f"{len(failed)} of {len(looked)} pipelines failed, the others were looked at: {causes}{more}")


@flow(name="monitor-all", flow_run_name="{name} · monitor", persist_result=False)
@in_one_sentence
def monitor_all(configs: list[dict[str, Any]], name: str = "fleet", threads: int = 8) -> list[Looked]:
    """Take in what is new of many pipelines, measure drift, alert.

    Args:
        configs: of the pipelines, each as `declared.as_parameter` gives it; one that is wrong fails alone.
        name: of the fleet; its summary stands under the artifact key `<name>-fleet`.
        threads: stores and sources looked at at a time.

    Raises:
        PipelinesFailed: after all of them were looked at.
    """
    if not configs:
        raise ConfigError("configs must name a pipeline at least, got none. Give the pipelines to look at.")
    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="look") as pool:
        looking = [pool.submit(copy_context().run, _look, raw) for raw in configs]  # with it, log lines find the run
        looked = [_measured(one.result()) for one in looking]
    _tell(looked, name)
    get_run_logger().info("%s", _count(looked))
    if any(one.failure for one in looked):
        raise PipelinesFailed(looked)
    return looked


def _tell(looked: Sequence[Looked], name: str) -> None:
    """The run's page and name; a server out of reach is only a warning, as ever."""
    try:
        create_markdown_artifact(summary(looked), key=f"{name}-fleet", description=_count(looked))
    except (httpx.HTTPError, PrefectException, OSError) as error:
        log.warning("the page %s-fleet could not be told to Prefect: %s", name, error)
    run_names.name_run(name, [_count(looked)], ["drift"] if any(one.drift and one.drift.alarm for one in looked) else [])


def _look(raw: dict[str, Any]) -> Looked:
    """Take in what is new; never raises. The step's plain function: a task run each would cost more than the look."""
    name = str(raw.get("name", "a pipeline without a name"))
    try:
        with about(pipeline=name):
            config = parse_config(raw)
            deliver(config)
            return Looked(name, config, steps.watched_window.fn(config))
    except Exception as error:
        return _failed(Looked(name), error)


def _measured(one: Looked) -> Looked:
    if one.config is None or one.tick is None:
        return one
    try:
        with about(pipeline=one.pipeline, window=one.tick.seq):
            return replace(one, drift=measure(one.config, one.tick))
    except Exception as error:
        return _failed(one, error)


def _failed(one: Looked, error: Exception) -> Looked:
    if not isinstance(error, EverfreshError):
        get_run_logger().error("%s: an error that is not meant to be", one.pipeline, exc_info=error)
    return replace(one, failure=sentence(error))


def summary(looked: Sequence[Looked]) -> str:
    """The run as Markdown: what failed, then what is new; of the idle ones their number."""
    told = sorted((one for one in looked if one.failure or one.tick), key=lambda one: not one.failure)
    rows = [
        f"| {plain(one.pipeline)} | {one.tick.seq if one.tick else '–'} | {one.words} | {plain(one.failure) or '–'} |"
        for one in told
    ]
    table = ["| pipeline | window | found | failure |\n|---|---|---|---|", *rows] if rows else []
    return "\n\n".join([f"## {_count(looked)}", *(["\n".join(table)] if table else [])])


def overview(looked: Sequence[Looked]) -> Table:
    """The same for a terminal, every pipeline a row."""
    table = Table(header_style="bold", pad_edge=False)
    for name in ("pipeline", "window", "found", "failure"):
        table.add_column(name, justify="right" if name == "window" else "left", overflow="fold")
    for one in looked:
        table.add_row(one.pipeline, str(one.tick.seq) if one.tick else "–", one.words, one.failure or "–")
    return table


def _count(looked: Sequence[Looked]) -> str:
    new, alarms = sum(one.tick is not None for one in looked), sum(bool(one.drift and one.drift.alarm) for one in looked)
    failed = sum(bool(one.failure) for one in looked)
    return f"{len(looked)} pipelines: {new} with something new, {alarms} alarms, {failed} failed"
