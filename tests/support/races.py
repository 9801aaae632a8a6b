"""Processes that work on one store at the same time: on the next move, a tick and a person, two pipelines."""

from __future__ import annotations

import os
import random
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from support.faults import SECOND, play
from support.loop import pipeline, run_window

from everfresh.tasks import alias
from everfresh.tasks.errors import ChampionMoved, ReleaseError
from everfresh.tasks.ledger import champion_moves
from everfresh.tasks.records import AliasMove
from everfresh.tasks.store import open_store
from everfresh.tasks.sweep import sweep

WITHIN = 60.0
"""Seconds for one round of all."""


def race(uri: str, environment: dict[str, str], rounds: int, me: int, barrier: Any, won: Any) -> None:
    """Read the last move together with all others, then create the next one."""
    os.environ.update(environment)
    store = open_store(uri)
    moves = champion_moves(store)
    for number in range(rounds):
        last = moves.last_seq()
        barrier.wait(WITHIN)
        move = AliasMove(
            seq=last + 1, id=f"{me}-{number}", kind="pin", release="r", version=1, by=str(me), reason="", at=store.now()
        )
        if moves.append(last + 1, move):
            won.put((number, move.id))
        barrier.wait(WITHIN)


def tick(folder: Path, uri: str, environment: dict[str, str]) -> None:
    """Retrain on the window that waits and publish, unless a person was faster."""
    os.environ.update(environment, EVERFRESH_CACHE=str(folder / "cache"))
    with suppress(ChampionMoved):
        run_window(open_store(uri), pipeline(folder, **SECOND))


def person(uri: str, environment: dict[str, str], seed: int, seconds: float) -> None:
    """Go back, pin and unpin at random for so long."""
    os.environ.update(environment)
    store, draw, until = open_store(uri), random.Random(seed), time.monotonic() + seconds
    while time.monotonic() < until:
        with suppress(ReleaseError):  # nothing to go back to, or not pinned
            draw.choice([alias.rollback, alias.pin, alias.unpin, alias.unpin])(store, reason="odd", by="ana")
        time.sleep(draw.uniform(0, 0.2))


def sweeper(uri: str, seconds: float) -> None:
    """Sweep again and again for so long."""
    store, until = open_store(uri), time.monotonic() + seconds
    while time.monotonic() < until:
        sweep(store, timedelta(hours=1))


def whole_stream(folder: Path, uri: str, environment: dict[str, str]) -> None:
    """Play one pipeline to its end."""
    os.environ.update(environment, EVERFRESH_CACHE=str(folder / "cache"))
    play(open_store(uri), pipeline(folder, **SECOND))
