"""Tell others what happened: Prefect events, for automations to act on."""

from __future__ import annotations

from typing import Any

from prefect.events import emit_event

from everfresh.tasks.config import PipelineConfig
from everfresh.tasks.records import AliasMove, DriftReport, JournalEntry, Tick


def announce(config: PipelineConfig, tick: Tick | None, what: DriftReport | JournalEntry | AliasMove | None) -> None:
    """Emit the events of a measurement, a tick's end or a rollback, as far as ``alerts.events`` names them."""
    if tick is not None and tick.replay:
        return
    for name, payload in _events(what):
        if name in config.alerts.events:
            emit_event(
                event=f"everfresh.{name}",
                resource={"prefect.resource.id": f"everfresh.pipeline.{config.name}", "prefect.resource.name": config.name},
                payload={"pipeline": config.name, "window": tick.seq if tick else None, **payload},
            )


def _events(what: DriftReport | JournalEntry | AliasMove | None) -> list[tuple[str, dict[str, Any]]]:
    match what:
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
        case AliasMove(kind="rollback"):
            return [("champion.rolled-back", what.model_dump(mode="json", include={"version", "by", "reason"}))]
        case _:
            return []
