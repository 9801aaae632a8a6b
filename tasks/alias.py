"""Aliases, as a person moves them: the champion back to an earlier release, pinned, unpinned; any alias to any release.

Light to import, so that going back takes a second and needs neither torch nor a Prefect server. A move is created at
the next number of the alias's log; whoever was faster only makes it be tried again. What holds releases back, pins, bars
and retirements, stands in the champion's log alone: there a move and what it must respect cannot miss each other.
"""

from __future__ import annotations

import getpass
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from everfresh.tasks.catalogue import REMOVED, Named, check_alias, named
from everfresh.tasks.errors import ReleaseError
from everfresh.tasks.ledger import CHAMPION, aliases, champion_moves, find, moves, version_of
from everfresh.tasks.records import AliasMove, RemovedRelease
from everfresh.tasks.releases import find_release
from everfresh.tasks.store import Store

RACES = 100
"""A person's move is tried so often against others before giving up."""
Change = Callable[[AliasMove, AliasMove, Sequence[AliasMove]], dict[str, Any]]
"""What a move changes, from the move that the person saw, the last one of now, and all of them."""


def rollback(store: Store, to: int | None = None, *, reason: str = "", by: str | None = None, request: str = "") -> AliasMove:
    """Move the champion back, bar the release it leaves, and pin the alias until ``unpin``.

    Args:
        store: of the pipeline.
        to: version to go back to; if None the last champion before this one, or the one that a promotion replaced.
        reason: for the history.
        by: who; the user's name if None.
        request: the id that the move is to have; who asks again under it gets the move that was made then.

    Raises:
        ReleaseError: there is no such version, it was retired, or there is nothing to go back to.
    """

    def target(seen: AliasMove, head: AliasMove, history: Sequence[AliasMove]) -> dict[str, Any]:
        versions = {m.version: m.release for m in history}
        if to is None:
            shut = {*seen.barred, *head.retired}
            earlier = [m for m in _before(seen, history) if m.release not in shut]
            if not earlier:
                raise ReleaseError(f"rollback: there must be a champion before v{seen.version}, got none. Nothing was changed.")
            goal = earlier[-1]
        elif to not in versions:
            raise ReleaseError(f"rollback: version must be one of {_known(versions)}, got v{to}. See `everfresh history`.")
        else:
            goal = next(m for m in history if m.version == to)
        if goal.release == head.release:
            raise ReleaseError(f"rollback: v{goal.version} is champion already. Nothing was changed.")
        check_allowed(store, "rollback", goal, head)
        check_release(store, goal)
        left = (*head.barred, seen.release, head.release)  # also what was published while the person was going back
        barred = tuple(dict.fromkeys(release for release in left if release != goal.release))
        return {"release": goal.release, "version": goal.version, "pinned": True, "barred": barred}

    return _move_champion(store, "rollback", target, reason, by, request)


def _before(seen: AliasMove, history: Sequence[AliasMove]) -> list[AliasMove]:
    """Moves of champions that one may go back to, the nearest last."""
    arrivals = ("publish", "adopt", "promote", "rollback")
    came = next((m for m in reversed(history[: seen.seq]) if m.kind in arrivals), history[0])
    if came.kind == "promote":
        return [m for m in history[: came.seq - 1] if m.release != seen.release]
    return [m for m in history if m.version < seen.version]


def promote(store: Store, release: str, *, alias: str = CHAMPION, reason: str = "", by: str | None = None) -> AliasMove:
    """Let an alias name a release, after every file of it was read and found whole.

    A person's word needs no gate. It lifts the bar of a release that was rolled back, but neither a pin nor a retirement.

    Args:
        store: of the pipeline.
        release: `v3`, another alias, or the release's id or how it begins.
        alias: to move; made if there is none.
        reason: for the history.
        by: who; the user's name if None.

    Raises:
        ReleaseError: there is no such release, it is not whole or retired, the alias names it already or has no good name;
            of the champion also: it is pinned, or another release became champion meanwhile.
    """
    check_alias(alias)
    goal = named(store, release)
    check_release(store, goal, "promote")
    if alias == CHAMPION:
        return _promote_champion(store, goal, reason, by)
    check_allowed(store, "promote", goal, champion_moves(store).last())
    move = _move_other(store, alias, goal, reason, by)
    try:
        check_allowed(store, "promote", goal, champion_moves(store).last())  # who retires looks at the aliases after that
    except ReleaseError:
        remove(store, alias, reason=f"{goal.label} was retired meanwhile", by=by)
        raise
    return move


def _promote_champion(store: Store, goal: Named, reason: str, by: str | None) -> AliasMove:
    def target(seen: AliasMove, head: AliasMove, history: Sequence[AliasMove]) -> dict[str, Any]:
        _check_still("promote", seen, head)
        if goal.release == head.release:
            raise ReleaseError(f"promote: v{head.version} is champion already. Nothing was changed.")
        if head.pinned:
            raise ReleaseError(
                f"promote: the champion must not be pinned, got v{head.version}, pinned since the {head.kind} by {head.by}. "
                "`everfresh unpin` first."
            )
        check_allowed(store, "promote", goal, head)
        barred = tuple(release for release in head.barred if release != goal.release)
        return {"release": goal.release, "version": version_of(history, goal.release), "barred": barred}

    return _move_champion(store, "promote", target, reason, by)


def _move_other(store: Store, alias: str, goal: Named, reason: str, by: str | None) -> AliasMove:
    log = moves(store, alias)
    for _ in range(RACES):
        head = log.last()
        if head is not None and head.release == goal.release and head.kind != "remove":
            raise ReleaseError(f"promote: {goal.label} is {alias} already. Nothing was changed.")
        move = AliasMove(
            seq=head.seq + 1 if head else 1,
            id=uuid.uuid4().hex,
            kind="promote",
            release=goal.release,
            version=goal.version,
            by=by or user(),
            reason=reason,
            at=store.now(),
        )
        if log.append(move.seq, move):
            return move
    raise _restless("promote", alias)


def remove(store: Store, alias: str, *, reason: str = "", by: str | None = None) -> AliasMove:
    """Let an alias other than the champion name nothing any more; its history stays.

    Raises:
        ReleaseError: it is the champion, or names nothing.
    """
    check_alias(alias)
    if alias == CHAMPION:
        raise ReleaseError("remove: the champion must stay, got champion. `everfresh rollback` or `promote` moves it.")
    log = moves(store, alias)
    for _ in range(RACES):
        head = log.last()
        if head is None or head.kind == "remove":
            raise ReleaseError(f"remove: the alias must name a release, got {alias}, which names none. Nothing was changed.")
        update = {"seq": head.seq + 1, "id": uuid.uuid4().hex, "kind": "remove", "by": by or user(), "reason": reason}
        move = head.model_copy(update=update | {"at": store.now()})
        if log.append(move.seq, move):
            return move
    raise _restless("remove", alias)


def retire(store: Store, release: str, *, reason: str = "", by: str | None = None) -> AliasMove:
    """Withdraw a release: no alias may name it, neither by rollback nor by promotion, until ``restore``.

    Args:
        store: of the pipeline.
        release: `v3`, or the release's id or how it begins.
        reason: for the history.
        by: who; the user's name if None.

    Raises:
        ReleaseError: there is no such release, an alias names it, or it is retired already.
    """
    goal = named(store, release)

    def withdrawn(_seen: AliasMove, head: AliasMove, _history: Sequence[AliasMove]) -> dict[str, Any]:
        if (holders := _holders(store, goal.release, head)) != []:
            raise ReleaseError(
                f"retire: no alias may name the release, got {goal.label}, which is {', '.join(holders)}. Move it first: "
                "`everfresh promote` or `rollback`; `everfresh unalias` removes another alias."
            )
        if goal.release in head.retired:
            raise ReleaseError(f"retire: {goal.label} is retired already. Nothing was changed.")
        return {"retired": (*head.retired, goal.release)}

    move = _move_champion(store, "retire", withdrawn, reason, by)
    if (holders := _holders(store, goal.release, move)) != []:  # moved there while it was retired
        restore(store, goal.release, reason=f"{', '.join(holders)} names it", by=by)
        raise ReleaseError(f"retire: {goal.label} became {', '.join(holders)} meanwhile. Nothing was changed.")
    return move


def retire_all(store: Store, releases: Sequence[str], *, reason: str, by: str | None = None) -> AliasMove:
    """Withdraw several releases in one move, but for those that an alias names by then; forgets those long gone.

    Args:
        store: of the pipeline.
        releases: ids.
        reason: for the history.
        by: who; the user's name if None.

    Returns:
        The champion's last move: its `retired` says which are.

    Raises:
        ReleaseError: there is no champion.
    """

    def withdrawn(_seen: AliasMove, head: AliasMove, _history: Sequence[AliasMove]) -> dict[str, Any]:
        known = [r for r in head.retired if store.exists(f"releases/{r}/release.json")]
        return {"retired": tuple(dict.fromkeys((*known, *(r for r in releases if r != head.release))))}

    head = champion_moves(store).last()
    if head is None or not set(releases) <= {*head.retired, head.release}:
        head = _move_champion(store, "retire", withdrawn, reason, by)
    taken = {m.release for name, m in aliases(store).items() if name != CHAMPION} & set(head.retired)
    for release in sorted(taken):  # an alias was moved there while it was retired
        head = restore(store, release, reason="an alias names it", by=by)
    return head


def restore(store: Store, release: str, *, reason: str = "", by: str | None = None) -> AliasMove:
    """Take the retirement of a release back.

    Raises:
        ReleaseError: there is no such release, it is not retired, or its removal has begun.
    """
    goal = named(store, release)

    def back(_seen: AliasMove, head: AliasMove, _history: Sequence[AliasMove]) -> dict[str, Any]:
        if goal.release not in head.retired:
            raise ReleaseError(f"restore: {goal.label} is not retired. Nothing was changed.")
        return {"retired": tuple(r for r in head.retired if r != goal.release)}

    check_allowed(store, "restore", goal, None)
    move = _move_champion(store, "restore", back, reason, by)
    check_allowed(store, "restore", goal, None)  # a removal looks at the retirements after its record stands
    return move


def pin(store: Store, *, reason: str = "", by: str | None = None) -> AliasMove:
    """Keep the champion where it is: no challenger can replace it until ``unpin``.

    Raises:
        ReleaseError: there is none, or another release became champion meanwhile.
    """

    def stay(seen: AliasMove, head: AliasMove, _history: Sequence[AliasMove]) -> dict[str, Any]:
        _check_still("pin", seen, head)
        return {"pinned": True}

    return _move_champion(store, "pin", stay, reason, by)


def unpin(store: Store, *, reason: str = "", by: str | None = None) -> AliasMove:
    """Let challengers replace the champion again. Releases that were rolled back stay barred.

    Raises:
        ReleaseError: there is none, or it is not pinned.
    """

    def release(_seen: AliasMove, head: AliasMove, _history: Sequence[AliasMove]) -> dict[str, Any]:
        if not head.pinned:
            raise ReleaseError(f"unpin: v{head.version} is not pinned. Nothing was changed.")
        return {"pinned": False}

    return _move_champion(store, "unpin", release, reason, by)


ByHand = Literal["rollback", "pin", "unpin", "promote", "retire", "restore"]


def _move_champion(store: Store, kind: ByHand, change: Change, reason: str, by: str | None, request: str = "") -> AliasMove:
    """Create the next move from the last one, again if somebody was faster: a person's word must not be lost."""
    log = champion_moves(store)
    seen: AliasMove | None = None
    for _ in range(RACES):
        head = log.last()
        if head is None:
            raise ReleaseError(f"{kind}: there must be a champion, got none. Run a first window or `everfresh adopt`.")
        seen, history = seen or head, list(log)
        if (made := next((move for move in history if move.id == request), None)) is not None:
            return made
        update = {"seq": head.seq + 1, "id": request or uuid.uuid4().hex, "kind": kind, "by": by or user(), "reason": reason}
        move = head.model_copy(update=update | {"at": store.now(), "evaluation": ""} | change(seen, head, history))
        if log.append(move.seq, move):
            return move
    raise _restless(kind, CHAMPION)


def check_release(store: Store, move: AliasMove | Named, doing: str = "rollback") -> None:
    """Raise unless every file of a move's release is there, whole: an incident is no time to go live with half of one."""
    release = find_release(store, move.release)
    if release is None:
        raise ReleaseError(
            f"{doing}: the release of {move.label} must be in the store, got none at "
            f"{store.url(f'releases/{move.release}/release.json')}. Nothing was changed; choose another version."
        )
    for part in release.files.values():
        store.prove(part)


def _check_still(doing: str, seen: AliasMove, head: AliasMove) -> None:
    if head.release != seen.release:
        raise ReleaseError(
            f"{doing}: the champion must still be v{seen.version}, got v{head.version} meanwhile. Look, and {doing} again."
        )


def check_allowed(store: Store, doing: str, goal: AliasMove | Named, head: AliasMove | None) -> None:
    """Raise unless an alias may name a release.

    Args:
        store: of the pipeline.
        doing: what it is asked for.
        goal: the release.
        head: the champion's last move, read before this call.

    Raises:
        ReleaseError: it is retired, or its removal has begun.
    """
    if head is not None and goal.release in head.retired:
        raise ReleaseError(f"{doing}: the release must not be retired, got {goal.label}. `everfresh restore` takes that back.")
    if (gone := find(store, f"releases/{goal.release}/{REMOVED}", RemovedRelease)) is not None:
        raise ReleaseError(
            f"{doing}: the release must have its weights, got {goal.label}, whose weights {gone.by} removed at "
            f"{gone.at:%Y-%m-%d %H:%M} ({gone.reason}). Choose another version."
        )


def _holders(store: Store, release: str, champion: AliasMove) -> list[str]:
    """Names of the aliases that name a release."""
    others = {name: move.release for name, move in aliases(store).items() if name != CHAMPION}
    return [name for name, theirs in {CHAMPION: champion.release, **others}.items() if theirs == release]


def _restless(doing: str, alias: str) -> ReleaseError:
    return ReleaseError(f"{doing}: the {alias} keeps moving ({RACES} tries). Stop the other runs and try again.")


def _known(versions: Mapping[int, str]) -> str:
    return ", ".join(f"v{v}" for v in sorted(versions))


def user() -> str:
    """Who moves the alias, for the history."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container whose user has no name
        return "unknown"
