"""Sweep: remove what no record names, the debris of runs that died.

Readers look for records and never for parts, so debris costs space and nothing else. What is younger than a given age
may belong to a run that is under way, and stays. A rerun writes the parts of the run that died again under the same keys,
before their record: that makes them young, and each object is looked at again right before it goes.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from everfresh.tasks.errors import AccessRefused, ObjectMissing, StoreError
from everfresh.tasks.releases import RECORD
from everfresh.tasks.signing import SIGNATURE
from everfresh.tasks.store import Listed, Store, Unfinished

log = logging.getLogger(__name__)

RECORDS = ("record.json", "window.json", "release.json", "removed.json")
"""Names of the objects that make a folder exist."""
PARTS = ("windows", "quarantine", "references", "drift", "candidates", "evaluations", "packages", "releases")
"""Folders whose objects count only if a record names them; all others hold logs, hints, caches and what waits to be told."""
REPLAYS = "replays"


def debris(store: Store, older_than: timedelta) -> list[Listed]:
    """What no record names and nobody has written for so long.

    Args:
        store: of the pipeline; its replays are looked through too.
        older_than: by the store's own clock.
    """
    objects = list(store.list())
    named: dict[str, set[str]] = defaultdict(set)
    views: set[str] = set()
    for item in objects:
        root, key = _split(item.key)
        if key.startswith("stream/") or key.rsplit("/", 1)[-1] in RECORDS:
            named[root].update(_named(store, item.key))
        if key.startswith("windows/") and key.endswith("/window.json"):
            views.add(key.split("/")[1])
    limit = store.now() - older_than
    found = [item for item in objects if not _counts(item.key, named, views)]
    try:
        found += store.unfinished()
    except AccessRefused as error:
        log.warning("writes that never ended are left out: %s", error)
    return [item for item in found if item.modified <= limit]


def sweep(store: Store, older_than: timedelta) -> list[Listed]:
    """Delete the debris; returns what it was."""
    swept = []
    for item in debris(store, older_than):
        if isinstance(item, Unfinished):
            store.discard(item)
        elif _is_left(store, item):
            store.delete(item.key)
        else:
            continue
        swept.append(item)
    return swept


def _is_left(store: Store, item: Listed) -> bool:
    """Whether an object that was debris still is: no run has written it again, or made the record that names it."""
    root, key = _split(item.key)
    place = "/".join(key.split("/")[:-1][:2])
    folder = f"{root}{place}".rstrip("/")
    named = {part for name in RECORDS for part in _named(store, f"{folder}/{name}".lstrip("/"))}
    return key not in named and item in store.list(folder)


def _named(store: Store, key: str) -> Iterator[str]:
    """Keys of the parts that a record names; none where there is no record."""
    try:
        yield from _parts(json.loads(store.get(key)))
        if key.endswith(f"/{RECORD}"):
            yield f"{_split(key)[1].removesuffix(RECORD)}{SIGNATURE}"  # which covers the record, and so cannot be named by it
    except ObjectMissing:
        return
    except ValueError as error:
        raise StoreError(
            f"sweep: a record must be JSON, got {store.url(key)}, which is damaged ({error}). Restore it from a copy: until "
            "then nobody knows which objects it names, and nothing is deleted."
        ) from error


def _split(key: str) -> tuple[str, str]:
    """The replay that a key belongs to, empty for the live pipeline, and the key within."""
    if not key.startswith(f"{REPLAYS}/"):
        return "", key
    folder, replay, rest = key.split("/", 2)
    return f"{folder}/{replay}/", rest


def _counts(full: str, named: dict[str, set[str]], views: set[str]) -> bool:
    root, key = _split(full)
    folder, _, rest = key.partition("/")
    if folder.startswith("probe-"):
        return False
    if folder not in PARTS or key.rsplit("/", 1)[-1] in RECORDS or key in named[root]:
        return True
    return folder == "quarantine" and rest.split("/")[0] in views


def _parts(value: Any) -> Iterator[str]:
    """Keys of all parts that a record names, however deep."""
    if isinstance(value, dict):
        if value.keys() >= {"key", "sha256", "size"}:
            yield value["key"]
        for inner in value.values():
            yield from _parts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _parts(inner)
