"""Windows of noise pictures over a folder or archives: what was taken, and what was set aside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.pictures import noise

from everfresh.tasks.config import PipelineConfig, parse_config
from everfresh.tasks.records import StreamEntry
from everfresh.tasks.store import Store
from everfresh.tasks.views import View

CLASSES = ["cat", "dog"]


def pipeline(source: dict[str, Any] | Path, **window: Any) -> PipelineConfig:
    """A pipeline of cats and dogs over a source, or over the folder of one."""
    if isinstance(source, Path):
        source = {"kind": "folder", "path": str(source)}
    silent = source.get("labels", {}).get("kind") == "none"
    raw = {"name": "p", "store": "unused", "source": source, "model": {"classes": CLASSES}, "window": window}
    return parse_config({**raw, "policy": {"triggers": []}} if silent else raw)


def pictures(*keys: str) -> dict[str, bytes]:
    """A picture of its own under each key."""
    return {key: noise(sum(map(ord, key)) * 1_000 + len(key)) for key in keys}


def taken(store: Store, entry: StreamEntry | None) -> list[str]:
    """Keys of a window's samples, in order."""
    assert entry is not None
    return [sample.key for sample in View(store, entry.view).samples]


def quarantined(store: Store, entry: StreamEntry | None) -> dict[str, str]:
    """What a window set aside, with the reasons."""
    assert entry is not None
    if View(store, entry.view).window.quarantined == 0:
        return {}
    lines = store.get(f"quarantine/{entry.view}/quarantine.jsonl").decode().splitlines()
    return {row["key"]: row["reason"] for row in map(json.loads, lines)}
