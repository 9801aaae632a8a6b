"""Retention: the weights of old releases go, what is in use or newest stays, and of what went a record stays.

Three steps, each of which a crash may follow. The releases that go are retired in one move of the champion's log: from
then on no alias can come to name one. Then, release by release, ``removed.json`` is created, which says what the release
was and keeps card, metrics and lineage; ``release.json`` is deleted, so that nobody finds half a release; and last the
files. Who looks at the retirements or at the aliases does so after its own mark stands: of two who meet there, one at
least sees the other, and gives way. A rerun goes on where the one before has died.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from everfresh.tasks.alias import restore, retire_all, user
from everfresh.tasks.catalogue import REMOVED, Entry, catalogue, removed
from everfresh.tasks.config import RetentionConfig
from everfresh.tasks.errors import ReleaseError
from everfresh.tasks.ledger import CHAMPION, alias_names, aliases, champion_moves, find, moves, settle
from everfresh.tasks.records import JournalEntry, Package, Release, RemovedRelease, Tick
from everfresh.tasks.store import Listed, Store
from everfresh.tasks.sweep import debris, sweep

STAYS = ("card.md", "config.json", "lineage.json", "metrics.json", "verdicts.json")
"""Files of a release that stay when its weights go: some kilobytes that say what it was."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What retention would do."""

    kept: dict[str, str]
    """Why each release that stays does, by its label."""
    going: tuple[Entry, ...]
    """Releases that go, oldest first."""
    spent: tuple[str, ...]
    """Ids of the challengers that go: they never became a release."""
    objects: dict[str, tuple[Listed, ...]]
    """All that goes, by the id of the release or challenger, with what an earlier removal has left."""
    undone: tuple[str, ...] = ()
    """Ids of releases whose removal was begun and is not wanted any more."""

    @property
    def listed(self) -> list[Listed]:
        """All objects that go."""
        return [item for items in self.objects.values() for item in items]


@dataclass(frozen=True, slots=True)
class Cleared:
    """What was removed, or could be."""

    plan: Plan
    old: list[Listed]
    """Objects of what retention lets go."""
    debris: list[Listed]
    """Objects that no record names."""

    @property
    def size(self) -> int:
        """Bytes of all of it."""
        return sum(item.size for item in (*self.old, *self.debris))


def clear(store: Store, rule: RetentionConfig, age: timedelta, weights: str | None = None, *, delete: bool) -> Cleared:
    """Remove, or only find, what retention lets go and what no record names; `plan` tells of the arguments."""
    planned = plan(store, rule, age, weights)
    gone = set(carry_out(store, planned, reason=f"retention: {rule.words}")) if delete else set()
    old = [item for item in planned.listed if item.key in gone or not delete]
    known = {item.key for item in old}
    return Cleared(planned, old, [item for item in (sweep if delete else debris)(store, age) if item.key not in known])


def plan(store: Store, rule: RetentionConfig, grace: timedelta, weights: str | None = None) -> Plan:
    """Find out which releases stay and which go; nothing is changed. All stay where no rule is given or no champion stands.

    Args:
        store: of the pipeline.
        rule: how many and how young ones stay.
        grace: what is younger, or was named by an alias until then, may still be in use and stays.
        weights: `model.weights` of the pipeline file; a release or challenger that it names stays.
    """
    entries, begun = catalogue(store), {r.release.id: r for r in removed(store)}
    wanted = rule.asked and any(CHAMPION in e.aliases for e in entries)
    reasons = _reasons(store, entries, rule, grace, weights or "") if wanted else {e.release.id: "all" for e in entries}
    going = [e for e in entries if e.release.id not in reasons or (e.retired and e.release.id in begun)]
    standing = {e.release.id for e in entries}
    spent = _spent(store, max(grace, timedelta(days=rule.keep_days or 0))) - standing - begun.keys() if wanted else set()
    spent = {key for key in spent if key not in (weights or "")}
    stays = {e.release.id: _stays(e.release) for e in going} | {key: set[str]() for key in spent}
    stays |= {gone: _stays(record.release) for gone, record in begun.items() if gone not in standing}
    objects = _objects(store, stays) if stays else {}
    return Plan(
        kept={e.label: reasons[e.release.id] for e in entries if e not in going},
        going=tuple(going),
        spent=tuple(sorted(spent & objects.keys())),
        objects=objects,
        undone=tuple(e.release.id for e in entries if e not in going and _is_old(begun.get(e.release.id), store.now() - grace)),
    )


def _stays(release: Release) -> set[str]:
    """Keys that stay of a release that goes."""
    return {f"releases/{release.id}/{REMOVED}", *(part.key for name, part in release.files.items() if name in STAYS)}


def _spent(store: Store, age: timedelta) -> set[str]:
    """Challengers of ticks that ended so long ago."""
    entries = (find(store, item.key, JournalEntry) for item in store.list("journal"))
    old = [e for e in entries if e is not None and e.finished_at <= store.now() - age]
    return {tried.candidate for entry in old for tried in (*entry.tried, *entry.beside)}


def _objects(store: Store, stays: dict[str, set[str]]) -> dict[str, tuple[Listed, ...]]:
    """Objects of releases and challengers but for those that stay, and the records that name them."""
    found: dict[str, list[Listed]] = {}
    packed = list(store.list("packages"))
    packages = {i.key.split("/")[1]: find(store, i.key, Package) for i in packed if i.key.endswith("/record.json")}
    for item in (*store.list("releases"), *store.list("candidates"), *packed):
        folder, owner = item.key.split("/")[:2]
        if folder == "packages":  # whose files are debris once their record is gone
            package = packages.get(owner)
            owner = package.release if package else ""
        if owner in stays and item.key not in stays[owner]:
            found.setdefault(owner, []).append(item)
    return {owner: tuple(items) for owner, items in found.items()}


def _reasons(store: Store, entries: list[Entry], rule: RetentionConfig, grace: timedelta, weights: str) -> dict[str, str]:
    """Why releases stay, by id; the strongest reason of each."""
    now, found = store.now(), dict[str, str]()
    counted = [e for e in entries if not e.retired]
    newest = counted[-rule.keep_releases :] if rule.keep_releases else []
    found |= {e.release.id: f"one of the {rule.keep_releases} newest" for e in newest}
    if rule.keep_days is not None:
        young = [e for e in entries if e.release.created_at > now - timedelta(days=rule.keep_days)]
        found |= {e.release.id: f"younger than {rule.keep_days:g} days" for e in young}
    found |= {e.release.id: "just made" for e in entries if e.release.created_at > now - grace}
    found |= {e.release.id: "model.weights names it" for e in entries if e.release.id in weights}
    found |= dict.fromkeys(_ancestors(entries, rule.keep_ancestors), "an ancestor of the champion")
    found |= dict.fromkeys(_set_out_from(store), "a tick under way sets out from it")
    found |= _left_since(store, now - grace)
    return found | {e.release.id: f"is {', '.join(e.aliases)}" for e in entries if e.aliases}


def _ancestors(entries: list[Entry], most: int | None) -> list[str]:
    """Releases that the champion descends from, the nearest first, as far as they stand; at most so many of them."""
    parents = {e.release.id: e.release.parent for e in entries}
    line: list[str] = []
    at = next(parents[e.release.id] for e in entries if CHAMPION in e.aliases)
    while at in parents and at not in line and (most is None or len(line) < most):
        line.append(at)
        at = parents[at]
    return line


def _set_out_from(store: Store) -> Iterator[str]:
    """Releases that were champion when a tick began that has not ended."""
    ended = {item.key.removeprefix("journal/") for item in store.list("journal")}
    for item in store.list("ticks"):
        if item.key.removeprefix("ticks/") not in ended:
            tick = find(store, item.key, Tick)
            if tick is not None and tick.champion is not None:
                yield tick.champion


def _left_since(store: Store, since: datetime) -> dict[str, str]:
    """Releases that an alias named at some time since then, and that it has left."""
    return {
        before.release: f"was {name} until {after.at:%Y-%m-%d %H:%M}"
        for name in alias_names(store)
        for before, after in pairwise(moves(store, name))
        if after.at > since and before.kind != "remove"
    }


def _is_old(begun: RemovedRelease | None, limit: datetime) -> bool:
    """Whether a removal was begun so long ago that no other sweep is still at it."""
    return begun is not None and begun.at <= limit


def carry_out(store: Store, planned: Plan, *, reason: str = "retention", by: str | None = None) -> list[str]:
    """Do what was planned, but leave what an alias has come to name meanwhile.

    Args:
        store: of the pipeline.
        planned: what goes.
        reason: for the history.
        by: who; the user's name if None.

    Returns:
        Keys of the objects that went, in that order.
    """
    for release in planned.undone:
        store.delete(f"releases/{release}/{REMOVED}")
    staying = {e.release.id for e in planned.going}
    if planned.going:
        retired = retire_all(store, [e.release.id for e in planned.going], reason=reason, by=by).retired
        for entry in planned.going:
            if entry.release.id in retired and _close(store, entry, reason, by):
                staying.discard(entry.release.id)
    keys = [item.key for owner, items in planned.objects.items() if owner not in staying for item in items]
    going = sorted(keys, key=lambda key: not key.endswith(("/release.json", "/record.json")))  # records first
    for key in going:
        store.delete(key)
    return going


def _close(store: Store, entry: Entry, reason: str, by: str | None) -> bool:
    """Begin the removal of a release; False if its retirement was taken back, or an alias has come to name it meanwhile.

    Whoever moved the alias looks at the retirements after that and takes the move back, unless they died before: so both look.
    """
    release, key = entry.release, f"releases/{entry.release.id}/{REMOVED}"
    stays = {name: part for name, part in release.files.items() if name in STAYS}
    settle(
        store,
        key,
        RemovedRelease(
            release=release.model_copy(update={"files": stays}),
            version=entry.version,
            gone={name: part.sha256 for name, part in release.files.items() if name not in stays},
            by=by or user(),
            reason=reason,
            at=store.now(),
        ),
    )
    head = champion_moves(store).last()
    named = any(move.release == release.id for move in aliases(store).values())
    if head is not None and release.id in head.retired and not named:
        return True
    store.delete(key)
    if named:
        with suppress(ReleaseError):  # it is not retired any more
            restore(store, release.id, reason="an alias names it", by=by)
    return False
