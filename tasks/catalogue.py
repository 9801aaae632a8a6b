"""The catalogue: which releases there are, what people call them, and which alias names them.

A release is called `v3` if it ever was champion, by any alias that names it, or by its id or how that begins.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from everfresh.tasks.errors import ReleaseError
from everfresh.tasks.ledger import CHAMPION, aliases, champion_moves, find, moves
from everfresh.tasks.records import Release, RemovedRelease, label
from everfresh.tasks.store import Store

ALIAS = re.compile(r"[a-z][a-z0-9-]{0,62}")
VERSION = re.compile(r"v[0-9]+")
ID = re.compile(r"[0-9a-f]{8,32}")
"""An id, or how it begins."""
REMOVED = "removed.json"
"""Stands in a release's folder from when its removal begins."""


def check_alias(name: str) -> None:
    """Raise unless a name may be an alias, and can be told from a version and an id.

    Raises:
        ReleaseError: it may not.
    """
    if not ALIAS.fullmatch(name) or VERSION.fullmatch(name) or ID.fullmatch(name):
        raise ReleaseError(
            f"alias: a name must be lower-case letters, digits and dashes, begin with a letter and look neither like a version "
            f"(v3) nor like an id, got {name!r}. Call it `shadow`, for example."
        )


def release_ids(store: Store) -> list[str]:
    """Ids of all releases whose record stands in the store."""
    keys = (item.key for item in store.list("releases"))
    return [key.split("/")[1] for key in keys if key.endswith("/release.json")]


@dataclass(frozen=True, slots=True)
class Entry:
    """One release of the catalogue."""

    release: Release
    version: int
    """Of the champion; 0 if it never was."""
    aliases: tuple[str, ...]
    """That name it now."""
    retired: bool
    barred: bool

    @property
    def label(self) -> str:
        """`v3`, or the first digits of its id if it never was champion."""
        return label(self.release.id, self.version)

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(part.size for part in self.release.files.values())


def catalogue(store: Store) -> list[Entry]:
    """All releases that stand in the store, oldest first; not a record that was copied from another release's folder."""
    numbers, named_by = versions(store), aliases(store)
    champion = named_by.get(CHAMPION)
    found = ((key, find(store, f"releases/{key}/release.json", Release)) for key in release_ids(store))
    genuine = [release for key, release in found if release is not None and release.id == key]
    return [
        Entry(
            release=release,
            version=numbers.get(release.id, 0),
            aliases=tuple(name for name, move in named_by.items() if move.release == release.id),
            retired=champion is not None and release.id in champion.retired,
            barred=champion is not None and release.id in champion.barred,
        )
        for release in sorted(genuine, key=lambda r: (r.created_at, r.id))
    ]


def pipelines(store: Store) -> list[str]:
    """Names of the pipelines of a whole store: folders in which a window was taken in or a champion named."""

    def has(name: str) -> bool:
        own = store.sub(name)
        return own.exists("stream/00000001.json") or own.exists(f"aliases/{CHAMPION}/00000001.json")

    return [name for name in store.folders() if has(name)]


def removed(store: Store) -> list[RemovedRelease]:
    """What stays of the releases whose weights went, oldest first."""
    keys = [item.key for item in store.list("releases") if item.key.endswith(f"/{REMOVED}")]
    found = (find(store, key, RemovedRelease) for key in keys)
    return sorted(filter(None, found), key=lambda r: (r.release.created_at, r.release.id))


class Named(NamedTuple):
    """A release as people call it."""

    release: str
    """Its id."""
    version: int
    """Of the champion; 0 if it never was."""

    @property
    def label(self) -> str:
        """`v3`, or the first digits of its id if it never was champion."""
        return label(self.release, self.version)


def versions(store: Store) -> dict[str, int]:
    """The number of each release that ever was champion, by its id; the last one where it was published twice."""
    return {move.release: move.version for move in champion_moves(store)}


def named(store: Store, name: str) -> Named:
    """The release that a person means; whether it still stands in the store is for the caller to find out.

    Args:
        store: of the pipeline.
        name: `v3`, an alias, or a release's id or how it begins, eight digits at least.

    Raises:
        ReleaseError: it is none of these, or how several ids begin.
    """
    if VERSION.fullmatch(name):
        for move in champion_moves(store):
            if move.version == int(name[1:]):
                return Named(move.release, move.version)
    elif ID.fullmatch(name):
        matching = [release for release in release_ids(store) if release.startswith(name)]
        if len(matching) == 1:
            return Named(matching[0], versions(store).get(matching[0], 0))
        if matching:
            raise ReleaseError(f"release: one id must begin with {name}, got {len(matching)}. Write more of it.")
    elif ALIAS.fullmatch(name):
        last = moves(store, name).last()
        if last is not None and last.kind != "remove":
            return Named(last.release, last.version or versions(store).get(last.release, 0))
    known = ", ".join(aliases(store)) or "none"
    raise ReleaseError(
        f"release: must be a version such as v3, an alias ({known}) or how an id begins, got {name!r}. "
        "See `everfresh releases`."
    )


def named_or_standing(store: Store) -> list[Named]:
    """All releases that stand in the store or that an alias names, in order of versions, those without one last."""
    numbers = versions(store)
    known = {*release_ids(store), *(move.release for move in aliases(store).values())}
    found = [Named(release, numbers.get(release, 0)) for release in sorted(known)]
    return sorted(found, key=lambda n: (n.version == 0, n.version))
