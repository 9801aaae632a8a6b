"""Past windows in order, the same steps, nothing published to the live alias: try a policy before living with it."""

from __future__ import annotations

import uuid
from typing import get_args

from prefect import flow

from everfresh.flows.retrain import run_tick
from everfresh.tasks import steps
from everfresh.tasks.config import PipelineConfig, Rung
from everfresh.tasks.records import JournalEntry


@flow(name="replay", flow_run_name="{config.name} · replay", persist_result=False)
def replay(
    config: PipelineConfig,
    name: str = "",
    rung: Rung | None = None,
    last: int | None = None,
    all_rungs: bool = False,
) -> tuple[str, list[JournalEntry]]:
    """Run the loop over the stream that is in the store already.

    Args:
        config: the pipeline, perhaps with another policy than the live one.
        name: of the replay; a rerun under the same name goes on where it stopped. A fresh one if empty.
        rung: the one rung to try at every retraining.
        last: stop after this window.
        all_rungs: at every retraining, measure what each rung would have cost and gained, too; the stream goes on with
            the ladder's own choice.

    Returns:
        The replay's name, and a journal entry a window; all it made stands under ``replays/<name>/``.
    """
    name = name or uuid.uuid4().hex[:8]
    entries = []
    while (tick := steps.replayed_window(config, name, rung, last)) is not None:
        entries.append(run_tick(config, tick, beside=get_args(Rung) if all_rungs else ()))
    return name, entries
