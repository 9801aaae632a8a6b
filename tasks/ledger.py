"""The two ways Everfresh remembers: logs that give order, and records under the digest of their inputs.

Both rest on ``Store.create``. A log entry is created at the next number, so two writers can never both
have it. A record is created under a key that digests all its inputs, so whoever computed it first is
right for everybody, and a rerun after a crash finds what is already done.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Generic, TypeVar

from everfresh.tasks.errors import ObjectMissing, StoreError
from everfresh.tasks.records import AliasMove, Record, StreamEntry
from everfresh.tasks.store import Store

R = TypeVar("R", bound=Record)
CHAMPION = "champion"


class Log(Generic[R]):
    """An append-only sequence of records under ``<folder>/<seq>.json``, numbered from 1 without gaps."""

    def __init__(self, store: Store, folder: str, kind: type[R], suffix: str = "") -> None:
        self.store, self.folder, self.kind, self.suffix = store, folder, kind, suffix

    def _key(self, seq: int) -> str:
        return f"{self.folder}/{seq:08d}{self.suffix}.json"

    def entry(self, seq: int) -> R | None:
        """The entry with that number, if there is one."""
        if seq < 1:
            return None
        return find(self.store, self._key(seq), self.kind)

    def last_seq(self) -> int:
        """Number of the last entry, 0 if there is none. Starts at the hint, so it does not grow with history."""
        known = self._hint()
        if known and not self.store.exists(self._key(known)):
            known = 0  # a hint is only a hint
        step = 1
        while self.store.exists(self._key(known + step)):
            known, step = known + step, step * 2
        while step > 1:
            step //= 2
            if self.store.exists(self._key(known + step)):
                known += step
        return known

    def last(self) -> R | None:
        """The last entry, if there is one."""
        return self.entry(self.last_seq())

    def append(self, seq: int, record: R) -> bool:
        """Create entry `seq`; False if another one has that number.

        Raises:
            StoreError: the store would write over an entry, so that two could have that number.
        """
        self.store.prove_create()
        won = self.store.create(self._key(seq), record.to_bytes())
        if won:
            with suppress(StoreError):  # it is only a hint: the entry stands, and a retry would make another
                self.store.put(f"{self.folder}.json", b"%d\n" % seq)
        return won

    def __iter__(self) -> Iterator[R]:
        seq = 1
        while (entry := self.entry(seq)) is not None:
            yield entry
            seq += 1

    def _hint(self) -> int:
        try:
            return int(self.store.get(f"{self.folder}.json"))
        except (ObjectMissing, ValueError):
            return 0


def stream(store: Store) -> Log[StreamEntry]:
    """The windows in order."""
    return Log(store, "stream", StreamEntry)


def moves(store: Store, alias: str) -> Log[AliasMove]:
    """The moves of one alias in order."""
    return Log(store, f"aliases/{alias}", AliasMove)


def champion_moves(store: Store) -> Log[AliasMove]:
    """The moves of the champion in order."""
    return moves(store, CHAMPION)


def alias_names(store: Store) -> list[str]:
    """Names of all aliases that ever moved."""
    return sorted({item.key.split("/")[1].removesuffix(".json") for item in store.list("aliases")})


def aliases(store: Store) -> dict[str, AliasMove]:
    """The last move of every alias that names a release, by its name."""
    heads = {name: moves(store, name).last() for name in alias_names(store)}
    return {name: head for name, head in heads.items() if head is not None and head.kind != "remove"}


def version_of(history: Iterable[AliasMove], release: str) -> int:
    """The number that a release has in the champion's history, or would get as its next champion."""
    numbers = {move.release: move.version for move in history}
    return numbers.get(release, 1 + max(numbers.values(), default=0))


def find(store: Store, key: str, kind: type[R]) -> R | None:
    """The record under `key`, if it was written."""
    try:
        return kind.from_bytes(store.get(key), store.url(key))
    except ObjectMissing:
        return None


def settle(store: Store, key: str, record: R) -> R:
    """Create the record under `key` and return it; if another run was first, return that one's."""
    if store.create(key, record.to_bytes()):
        return record
    return type(record).from_bytes(store.get(key), store.url(key))


def attempt_folder(folder: str) -> str:
    """A fresh place for the parts of a record; nothing there counts until the record names it."""
    return f"{folder}/attempts/{uuid.uuid4().hex[:12]}"
