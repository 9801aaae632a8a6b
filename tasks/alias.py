"""The champion alias, as a person moves it: back to an earlier release, pinned, unpinned.

Light to import, so that going back takes a second and needs neither torch nor a Prefect server. A move is created at
the next number of the alias log; whoever was faster only makes it be tried again.
"""

from __future__ import annotations

import getpass
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from everfresh.tasks.errors import ReleaseError
from everfresh.tasks.ledger import champion_moves, find
from everfresh.tasks.records import AliasMove, Release
from everfresh.tasks.store import Store

RACES = 100
"""A person's move is tried so often against others before giving up."""


def rollback(store: Store, to: int | None = None, *, reason: str = "", by: str | None = None) -> AliasMove:
    """Move the champion back, bar the release it leaves, and pin the alias until ``unpin``.

    Args:
        store: of the pipeline.
        to: version to go back to; the last champion before this one if None.
        reason: for the history.
        by: who; the user's name if None.

    Raises:
        ReleaseError: there is no such version, or nothing to go back to.
    """

    def target(seen: AliasMove, head: AliasMove, history: Sequence[AliasMove]) -> dict[str, Any]:
        versions = {m.version: m.release for m in history}
        if to is None:
            earlier = [m for m in history if m.version < seen.version and m.release not in seen.barred]
            if not earlier:
                raise ReleaseError(f"rollback: there must be a champion before v{seen.version}, got none. Nothing was changed.")
            goal = earlier[-1]
        elif to not in versions:
            raise ReleaseError(f"rollback: version must be one of {_known(versions)}, got v{to}. See `everfresh history`.")
        else:
            goal = next(m for m in history if m.version == to)
        if goal.release == head.release:
            raise ReleaseError(f"rollback: v{goal.version} is champion already. Nothing was changed.")
        check_release(store, goal)
        left = (*head.barred, seen.release, head.release)  # also what was published while the person was going back
        barred = tuple(dict.fromkeys(release for release in left if release != goal.release))
        return {"release": goal.release, "version": goal.version, "pinned": True, "barred": barred}

    return _move(store, "rollback", target, reason, by)


def pin(store: Store, *, reason: str = "", by: str | None = None) -> AliasMove:
    """Keep the champion where it is: no challenger can replace it until ``unpin``.

    Raises:
        ReleaseError: there is none, or another release became champion meanwhile.
    """

    def stay(seen: AliasMove, head: AliasMove, _history: Sequence[AliasMove]) -> dict[str, Any]:
        if head.release != seen.release:
            raise ReleaseError(
                f"pin: the champion must still be v{seen.version}, got v{head.version} meanwhile. Look, and pin again."
            )
        return {"pinned": True}

    return _move(store, "pin", stay, reason, by)


def unpin(store: Store, *, reason: str = "", by: str | None = None) -> AliasMove:
    """Let challengers replace the champion again. Releases that were rolled back stay barred.

    Raises:
        ReleaseError: there is none, or it is not pinned.
    """

    def release(_seen: AliasMove, head: AliasMove, _history: Sequence[AliasMove]) -> dict[str, Any]:
        if not head.pinned:
            raise ReleaseError(f"unpin: v{head.version} is not pinned. Nothing was changed.")
        return {"pinned": False}

    return _move(store, "unpin", release, reason, by)


def _move(store: Store, kind: Literal["rollback", "pin", "unpin"], change: Any, reason: str, by: str | None) -> AliasMove:
    """Create the next move from the last one, again if somebody was faster: a person's word must not be lost.

    ``change`` gets the champion that the person saw, the one of now, and all moves.
    """
    moves = champion_moves(store)
    seen: AliasMove | None = None
    for _ in range(RACES):
        head = moves.last()
        if head is None:
            raise ReleaseError(f"{kind}: there must be a champion, got none. Run a first window or `everfresh adopt`.")
        seen = seen or head
        update = {"seq": head.seq + 1, "id": uuid.uuid4().hex, "kind": kind, "by": by or user(), "reason": reason}
        move = head.model_copy(update=update | {"at": store.now()} | change(seen, head, list(moves)))
        if moves.append(move.seq, move):
            return move
    raise ReleaseError(f"{kind}: the champion keeps moving ({RACES} tries). Stop the other runs and try again.")


def check_release(store: Store, move: AliasMove) -> None:
    """Raise unless every file of a move's release is there, whole: an incident is no time to go live with half of one."""
    release = find(store, f"releases/{move.release}/release.json", Release)
    if release is None:
        raise ReleaseError(
            f"rollback: the release of v{move.version} must be in the store, got none at "
            f"{store.url(f'releases/{move.release}/release.json')}. Nothing was changed; choose another version."
        )
    for part in release.files.values():
        store.prove(part)


def _known(versions: Mapping[int, str]) -> str:
    return ", ".join(f"v{v}" for v in sorted(versions))


def user() -> str:
    """Who moves the alias, for the history."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container whose user has no name
        return "unknown"
