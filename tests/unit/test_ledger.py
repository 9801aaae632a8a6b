"""Logs give order, records are settled once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everfresh.tasks.errors import StoreError
from everfresh.tasks.ledger import Log, attempt_folder, champion_moves, find, settle, stream
from everfresh.tasks.records import Record
from everfresh.tasks.store import FolderStore, Store


class Note(Record):
    text: str


class Counting(FolderStore):
    """Keeps keys in memory and counts the questions."""

    def __init__(self) -> None:
        super().__init__(Path("unused"))
        self.objects: dict[str, bytes] = {}
        self.questions = 0

    def exists(self, key: str) -> bool:
        self.questions += 1
        return key in self.objects

    def get(self, key: str) -> bytes:
        from everfresh.tasks.errors import ObjectMissing

        if key not in self.objects:
            raise ObjectMissing(key)
        return self.objects[key]


@settings(max_examples=200)
@given(
    entries=st.integers(0, 300),
    hint=st.none() | st.integers(-5, 1_000).map(lambda n: b"%d\n" % n) | st.binary(max_size=8),
)
def test_the_last_number_is_found_whatever_the_hint_says(entries: int, hint: bytes | None) -> None:
    store = Counting()
    store.objects = {f"log/{n:08d}.json": b"{}" for n in range(1, entries + 1)}
    if hint is not None:
        store.objects["log.json"] = hint
    assert Log(store, "log", Note).last_seq() == entries


def test_finding_the_last_entry_does_not_grow_with_history() -> None:
    store = Counting()
    store.objects = {f"log/{n:08d}.json": b"{}" for n in range(1, 5_001)}
    store.objects["log.json"] = b"4998\n"
    assert Log(store, "log", Note).last_seq() == 5_000
    assert store.questions <= 6
    del store.objects["log.json"]
    store.questions = 0
    assert Log(store, "log", Note).last_seq() == 5_000
    assert store.questions <= 30


def test_entries_are_appended_and_read_in_order(store: Store) -> None:
    log = Log(store, "log", Note)
    assert (log.last_seq(), log.last(), log.entry(0), log.entry(1), list(log)) == (0, None, None, None, [])
    notes = [Note(text=str(n)) for n in range(1, 6)]
    assert all(log.append(n, note) for n, note in enumerate(notes, 1))
    assert log.last_seq() == 5
    assert log.last() == notes[-1]
    assert log.entry(2) == notes[1]
    assert list(log) == notes


def test_a_number_is_given_once(store: Store) -> None:
    log = Log(store, "log", Note)
    assert log.append(1, Note(text="first"))
    assert not log.append(1, Note(text="second"))
    assert log.last() == Note(text="first")


def test_a_lost_reply_is_not_taken_for_a_lost_race(folder_store: FolderStore) -> None:
    class LosesReply(FolderStore):
        def create(self, key: str, data: bytes) -> bool:
            super().create(key, data)
            return super().create(key, data)  # the retry is refused by what the first try wrote

    log = Log(LosesReply(folder_store.root), "log", Note)
    assert log.append(1, Note(text="mine"))
    assert not log.append(1, Note(text="another's"))


def test_of_eight_appenders_exactly_one_wins(store: Store) -> None:
    log = Log(store, "log", Note)
    barrier = threading.Barrier(8)

    def append(writer: int) -> bool:
        barrier.wait()
        return log.append(1, Note(text=str(writer)))

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(append, range(8)))
    assert sum(won) == 1
    assert log.last() == Note(text=str(won.index(True)))


def test_a_record_is_settled_by_the_first_and_adopted_by_the_rest(store: Store) -> None:
    assert find(store, "drift/1/record.json", Note) is None
    assert settle(store, "drift/1/record.json", Note(text="first")) == Note(text="first")
    assert settle(store, "drift/1/record.json", Note(text="second")) == Note(text="first")
    assert find(store, "drift/1/record.json", Note) == Note(text="first")


def test_a_damaged_record_is_named_by_its_key(store: Store) -> None:
    store.put("drift/1/record.json", b"{half")
    with pytest.raises(StoreError, match=r"drift/1/record\.json"):
        find(store, "drift/1/record.json", Note)
    store.put("log/00000001.json", b"{half")
    with pytest.raises(StoreError, match=r"log/00000001\.json"):
        Log(store, "log", Note).last()


def test_attempts_have_places_of_their_own() -> None:
    assert attempt_folder("candidates/k") != attempt_folder("candidates/k")
    assert attempt_folder("candidates/k").startswith("candidates/k/attempts/")


def test_where_the_two_logs_stand(folder_store: FolderStore) -> None:
    assert stream(folder_store)._key(7) == "stream/00000007.json"
    assert champion_moves(folder_store)._key(7) == "aliases/champion/00000007.json"
