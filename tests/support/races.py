"""A process that wants the next move of a champion, round by round, at the same time as others."""

from __future__ import annotations

import os
from typing import Any

from everfresh.tasks.ledger import champion_moves
from everfresh.tasks.records import AliasMove
from everfresh.tasks.store import open_store

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
