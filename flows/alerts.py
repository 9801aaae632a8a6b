"""Tell others what happened: Prefect events, for automations to act on. Each happening is told once."""

from __future__ import annotations

import json
import uuid
from typing import Any

from prefect.events import emit_event

from everfresh.tasks.config import PipelineConfig
from everfresh.tasks.records import AliasMove, DriftReport, JournalEntry, Question, Tick
from everfresh.tasks.steps import open_pipeline

Happening = DriftReport | JournalEntry | AliasMove | Question


def announce(config: PipelineConfig, tick: Tick | None, what: Happening | None) -> None:
    """Emit the events of a measurement, a question, a tick's end, or a move by hand, as far as ``alerts.events`` names them.

    `monitor` and `retrain` see the same drift, and a rerun after a crash sees it again: what was told stands under
    ``alerts/`` and is not told twice. The event's id is made from the happening, so that Prefect too knows it again.
    """
    if what is None or (tick is not None and tick.replay):
        return
    store = open_pipeline(config)
    for name, payload in _events(what):
        told = f"alerts/{name}-{_identity(what)}.json"
        if name not in config.alerts.events or store.exists(told):
            continue
        payload = {"pipeline": config.name, "window": tick.seq if tick else None, **payload}
        emit_event(
            event=f"everfresh.{name}",
            resource={"prefect.resource.id": f"everfresh.pipeline.{config.name}", "prefect.resource.name": config.name},
            payload=payload,
            id=uuid.uuid5(uuid.NAMESPACE_URL, store.url(told)),
        )
        store.create(told, json.dumps(payload, indent=1).encode() + b"\n")


def _identity(what: Happening) -> str:
    match what:
        case Question():
            return what.id
        case DriftReport():
            return f"{what.view}-{what.reference}"  # measured again after other windows, it is the same happening
        case JournalEntry():
            return f"{what.seq:08d}-{what.request or 'tick'}"
        case AliasMove():
            return what.id


def _events(what: Happening) -> list[tuple[str, dict[str, Any]]]:
    match what:
        case Question():
            facts = what.model_dump(mode="json", include={"id", "stage", "expires_at"})
            return [("approval.asked", {"words": what.title, **facts})]
        case DriftReport(alarm=True):
            numbers = what.model_dump(mode="json", include={"p_value", "score", "severity", "nearest", "key"})
            return [("drift.detected", numbers)]
        case JournalEntry():
            facts = what.model_dump(mode="json", include={"decision", "failed_gates", "champion_version", "quarantined"})
            happened = {
                "data.quarantined": what.quarantined > 0,
                "gate.rejected": bool(what.failed_gates),
                "release.published": what.version is not None,
            }
            return [(name, facts) for name, yes in happened.items() if yes]
        case AliasMove(kind="rollback" | "promote"):
            name = "champion.rolled-back" if what.kind == "rollback" else "champion.promoted"
            return [(name, what.model_dump(mode="json", include={"version", "by", "reason"}))]
        case _:
            return []
