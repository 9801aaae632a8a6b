"""What a flow run did, in its name and its tags: a list of runs is read at a glance."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Sequence

import httpx
from prefect import get_client
from prefect.exceptions import PrefectException
from prefect.runtime import flow_run

from everfresh.flows.run_words import outcome
from everfresh.tasks.config import PipelineConfig
from everfresh.tasks.records import DriftReport, JournalEntry

log = logging.getLogger(__name__)
TAGGED = 20
"""Windows of a run that tags name, the last ones: each is a resource of the run's events, which have 100 at most."""
NAMED_WITHIN = 20.0
"""Seconds; a name is no reason to hold up a run longer."""


def name_retraining(config: PipelineConfig, entries: Sequence[JournalEntry], *, waits: bool = False) -> None:
    """Name a run of `retrain`: `digits · window 12 · drift 0.31 · released v4`."""
    if not entries:
        name_run(config.name, ["waits for approval" if waits else "nothing new"], ["waits"] if waits else [])
        return
    first, last = entries[0], entries[-1]
    windows = f"window {last.seq}" if first.seq == last.seq else f"windows {first.seq}–{last.seq}"
    alarmed = any(entry.alarm for entry in entries)
    words = [windows, *([] if last.score is None else [f"drift {last.score:.2f}"]), *(["forced"] if last.request else [])]
    name_run(
        config.name,
        [*words, "waits for approval" if waits else outcome(last)],
        [
            *(f"window:{entry.seq}" for entry in entries[-TAGGED:]),
            *(f"release:v{entry.version}" for entry in entries[-TAGGED:] if entry.version is not None),
            *(["drift"] if alarmed else []),
            *(["rejected"] if last.failed_gates else []),
            *(["waits"] if waits else []),
        ],
    )


def name_monitoring(config: PipelineConfig, window: int | None, drift: DriftReport | None) -> None:
    """Name a run of `monitor`: `digits · window 12 · drift 0.31 · alarm`."""
    if window is None or drift is None:
        name_run(config.name, ["nothing new"] if window is None else [f"window {window}", "no champion yet"], [])
        return
    words = "alarm" if drift.alarm else "quiet" if not drift.exceeds else "no alarm yet"
    tags = [f"window:{window}", *(["drift"] if drift.alarm else [])]
    name_run(config.name, [f"window {window}", f"drift {drift.score:.2f}", words], tags)


def name_run(pipeline: str, words: Iterable[str], tags: Iterable[str]) -> None:
    """Give the running flow run its name, and tags beside those that it has; a server out of reach is only a warning."""
    name = " · ".join([pipeline, *words])
    try:
        with get_client(sync_client=True, httpx_settings={"timeout": NAMED_WITHIN}) as client:
            every = {*flow_run.tags, "everfresh", f"pipeline:{pipeline}", *tags}
            client.update_flow_run(uuid.UUID(flow_run.id), name=name, tags=sorted(every))
    except (httpx.HTTPError, PrefectException, OSError) as error:
        log.warning("the run %s could not be named: %s", name, error)
