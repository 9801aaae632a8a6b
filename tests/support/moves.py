"""What the champion's history must be, said again in a page: the model that random histories are held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from everfresh.tasks.ledger import champion_moves
from everfresh.tasks.store import Store


class Move(NamedTuple):
    """What counts of one move."""

    kind: str
    release: str
    version: int
    pinned: bool
    barred: frozenset[str]


History = tuple[Move, ...]


@dataclass(frozen=True)
class Proof:
    """A candidate that was evaluated against the champion of one move."""

    candidate: str
    against: int
    passed: bool


def written(store: Store) -> History:
    """The history that stands in the store; its numbers must follow one another."""
    entries = list(champion_moves(store))
    assert [e.seq for e in entries] == list(range(1, len(entries) + 1))
    assert len({e.id for e in entries}) == len(entries)
    assert champion_moves(store).last_seq() == len(entries)
    assert len(list(store.list("aliases/champion"))) == len(entries), "a move stands behind a gap"
    return tuple(Move(e.kind, e.release, e.version, e.pinned, frozenset(e.barred)) for e in entries)


def failed_gates(history: History, against: int, candidate: str, holdout: int) -> set[str]:
    """Gates that must say no to a candidate."""
    head = history[against - 1] if against else None
    failed = {"pinned"} if head and head.pinned else set()
    failed |= {"barred"} if head and candidate in head.barred else set()
    return failed if holdout else failed | {"holdout", "floor"}


def published(history: History, proof: Proof) -> History | None:
    """The history after a publication; None if it must be refused."""
    if not proof.passed:
        return None
    later = history[proof.against :]
    if any(m.kind == "publish" and m.release == proof.candidate for m in later):
        return history
    if later:
        return None
    barred = history[-1].barred if history else frozenset()
    version = 1 + len([m for m in history if m.kind == "publish"])
    return (*history, Move("publish", proof.candidate, version, False, barred))


def rolled_back(history: History, seen: int, to: int | None) -> History | None:
    """The history after a person who saw `seen` moves goes back; None if it must be refused."""
    if not seen:
        return None
    left, head = history[seen - 1], history[-1]
    goals = [m for m in history if m.version == to]
    if to is None:
        goals = [m for m in history if m.version < left.version and m.release not in left.barred]
    if not goals or goals[-1].release == head.release:
        return None
    goal = goals[-1]
    barred = (head.barred | {left.release, head.release}) - {goal.release}
    return (*history, Move("rollback", goal.release, goal.version, True, barred))


def pinned(history: History, seen: int) -> History | None:
    """The history after a person who saw `seen` moves pins; None if it must be refused."""
    if not seen or history[seen - 1].release != history[-1].release:
        return None
    return (*history, history[-1]._replace(kind="pin", pinned=True))


def unpinned(history: History, seen: int) -> History | None:
    """The history after an unpin; None if it must be refused."""
    if not seen or not history[-1].pinned:
        return None
    return (*history, history[-1]._replace(kind="unpin", pinned=False))


def check_rules(history: History) -> None:
    """What holds of every history, however it came about."""
    for number, move in enumerate(history):
        before = history[number - 1] if number else None
        assert move.release not in move.barred
        if move.kind == "publish":
            assert before is None or not before.pinned, "a challenger replaced a pinned champion"
            assert before is None or move.release not in before.barred, "a barred release came back by itself"
            assert move.version == 1 + max((m.version for m in history[:number]), default=0)
        else:
            assert (move.version, move.release) in {(m.version, m.release) for m in history[:number]}
