"""Journal entries and moves as a store may hold them, without the work behind them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from everfresh.tasks.records import AliasMove, Cost, Decision, JournalEntry
from everfresh.tasks.store import Store

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def entry(seq: int, **fields: Any) -> JournalEntry:
    at = NOON + timedelta(hours=seq)
    usual: dict[str, Any] = {
        "seq": seq, "request": "", "view": f"view{seq}", "samples": 10, "quarantined": 0, "labelled": 10,
        "decision": Decision(action="nothing", reasons=("no drift alarm (p = 0.4)",)), "champion": None,
        "champion_version": None, "trust": "trusted", "bank": (), "samples_since_training": 0,
        "windows_since_training": 0, "cost": Cost(seconds=2.5), "started_at": at, "finished_at": at,
    }  # fmt: skip
    return JournalEntry(**{**usual, **fields})


def move(seq: int, kind: Any = "publish", version: int = 1, **fields: Any) -> AliasMove:
    return AliasMove(
        seq=seq, id=str(seq), kind=kind, release="r" * 32, version=version, by="ann", reason="audit", at=NOON, **fields
    )


def keep(store: Store, *entries: JournalEntry) -> None:
    for one in entries:
        store.create(f"journal/{one.seq:08d}-{one.request or 'tick'}.json", one.to_bytes())
