"""A process that dies at the n-th operation on its store, before or after it took place."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from support.loop import NothingNew, pipeline, run_window, second_window

from everfresh.flows.look import fingerprint
from everfresh.tasks import alias
from everfresh.tasks.config import PipelineConfig
from everfresh.tasks.errors import ReleaseError
from everfresh.tasks.ledger import champion_moves
from everfresh.tasks.store import FolderStore, S3Store, Store
from everfresh.tasks.sweep import sweep

WRITES = ("put", "create", "put_file", "delete")
READS = ("get", "download", "prove", "exists", "list", "unfinished", "now")
DIED = 42
SECOND = {"policy": {"triggers": [{"kind": "new_samples", "count": 1}], "ladder": ["head"]}}


def play(store: Store, config: PipelineConfig) -> None:
    """What a scheduled loop and then a person do: retrain on what waits, publish, go back. Again after a death: the rest."""
    while True:
        try:
            run_window(store, config)
        except NothingNew:
            break
    alias.rollback(store, reason="odd", by="ana", request="odd")


def prepare(folder: Path) -> None:
    """A pipeline with a champion, and a window that waits."""
    second_window(folder)


def play_until(
    folder: Path,
    uri: str,
    environment: dict[str, str],
    at: int,
    when: Literal["before", "after", "never"],
    names: tuple[str, ...],
) -> None:
    """Play on a store, and die at its operation `at` of these names; the names of all go to ``operations`` otherwise."""
    os.environ.update(environment, EVERFRESH_CACHE=str(folder / "cache"))
    from everfresh.tasks.store import open_store

    store, seen, counting = open_store(uri), [], Lock()

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(self: Store, *arguments: Any, **named: Any) -> Any:
            with counting:
                seen.append(f"{name} {arguments[0] if arguments else ''}")
                here = len(seen) == at
            if here and when == "before":
                os._exit(DIED)
            try:
                return real(self, *arguments, **named)
            finally:  # an object that is missing is an answer too
                if here and when == "after":
                    os._exit(DIED)

        return operation

    for kind in (FolderStore, S3Store):
        for name in names:
            setattr(kind, name, counted(name, getattr(kind, name)))
    play(store, pipeline(folder, **SECOND))
    (folder / "operations").write_text("\n".join(seen))


def whole(store: Store) -> str:
    """The champion's release, after every byte of it has been verified."""
    move = champion_moves(store).last()
    if move is None:
        raise ReleaseError("no champion")
    alias.check_release(store, move)
    return move.release


def copy(source: Store, target: Store) -> None:
    """Put every object of a store into another."""
    for item in source.list():
        target.put(item.key, source.get(item.key))


def outcome(store: Store) -> list[Any]:
    """All that must be equal between two plays once the debris is swept: what was decided, and which objects stand."""
    sweep(store, timedelta(0))
    objects = [*store.list(), *store.unfinished()]
    return [*fingerprint(store), sorted(re.sub("attempts/[0-9a-f]+", "attempts/*", item.key) for item in objects)]
