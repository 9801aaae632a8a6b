"""Journal: a tick that died is taken up where it set out, and one entry tells each window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.loop import arrive, open_tick, pipeline, run_window, second_window

from everfresh.tasks import alias, ingest, journal
from everfresh.tasks.errors import DataError
from everfresh.tasks.ledger import stream
from everfresh.tasks.records import Decision, Tick, Wish
from everfresh.tasks.store import FolderStore

NOTHING = Decision(action="nothing", reasons=("quiet",))


@pytest.fixture
def second(tmp_path: Path) -> Any:
    return second_window(tmp_path)


def finish(store: FolderStore, tick: Tick, decision: Decision = NOTHING) -> Any:
    return journal.end(store, tick, journal.sum_up(store, tick, None, decision, (), None, None, "trusted", tick.bank))


def test_a_tick_that_began_sets_out_from_the_same_again(second: Any) -> None:
    store, config = second
    tick = open_tick(store, config)
    alias.pin(store)  # the world moves on
    again = journal.outlook(store, stream(store).last())
    assert again.champion_move == 2
    assert journal.begin(store, again) == tick
    assert (tick.seq, tick.champion_move, tick.request) == (2, 1, "")


def test_the_first_tick_sets_out_from_nothing(tmp_path: Path) -> None:
    config = pipeline(tmp_path)
    arrive(config, 6)
    tick = open_tick(FolderStore(tmp_path / "store"), config)
    assert (tick.seq, tick.champion, tick.champion_move, tick.reference, tick.bank) == (1, None, 0, None, ())


def test_windows_are_pending_in_order_until_they_have_an_entry(tmp_path: Path) -> None:
    config = pipeline(tmp_path, window={"max_samples": 5})
    arrive(config, 13)
    store = FolderStore(tmp_path / "store")
    assert journal.pending(store) is None
    while ingest.ingest(store, config):
        pass
    for seq in (1, 2, 3):
        entry = journal.pending(store)
        assert entry is not None
        assert entry.seq == seq
        finish(store, journal.begin(store, journal.outlook(store, entry)))
    assert journal.pending(store) is None
    assert [e.windows_since_training for e in journal.scheduled(store)] == [1, 2, 3]
    assert [e.samples_since_training for e in journal.scheduled(store)] == [5, 10, 13]


def test_a_second_end_adopts_the_first(second: Any) -> None:
    store, config = second
    tick = open_tick(store, config)
    entry = finish(store, tick)
    other = finish(store, tick, Decision(action="nothing", reasons=("another run thought otherwise",)))
    assert other == entry
    assert len(list(journal.scheduled(store))) == 2


def test_an_entry_tells_what_a_tick_did(second: Any) -> None:
    store, config = second
    ran = run_window(store, config)
    entry = ran.entry
    assert (entry.seq, entry.samples, entry.labelled) == (2, 60, 60)
    assert ran.drift is not None
    assert (entry.drift, entry.alarm, entry.score) == (ran.drift.key, True, ran.drift.score)
    assert [(t.rung, t.weights_sha256) for t in entry.tried] == [("head", ran.tried[0].weights.sha256)]
    assert entry.decision == ran.decision
    assert ran.evaluation is not None
    assert entry.gain == ran.evaluation.window.gain
    assert (entry.version, entry.champion_version, entry.samples_since_training) == (2, 2, 0)
    assert [b.view for b in entry.bank] == [b.view for b in ran.tick.bank] + [ran.tick.view]
    assert journal.scheduled(store).last() == entry


def test_ticks_that_people_force_stand_beside_the_scheduled_ones(second: Any) -> None:
    store, config = second
    run_window(store, config)
    for request in ("f2", "f1"):
        assert run_window(store, config, request).entry.request == request
    assert [e.request for e in journal.forced(store, 2)] == ["f2", "f1"]  # in order of time
    assert journal.forced(store, 1) == []
    assert len(list(journal.scheduled(store))) == 2
    assert journal.pending(store) is None


def test_a_forced_training_counts_as_the_last_one(second: Any) -> None:
    """Else the next window would answer again what a person has answered already."""
    store, config = second
    finish(store, open_tick(store, config))
    scheduled = journal.previous(store, 3)
    assert scheduled is not None
    assert scheduled.samples_since_training == 60
    forced = run_window(store, config, "f1").entry
    assert forced.tried
    assert journal.previous(store, 3) == forced
    assert journal.previous(store, 2, "f2") == forced
    assert journal.previous(store, 2) == journal.scheduled(store).entry(1)
    arrive(config, 10, start=900)
    assert open_tick(store, config).bank == forced.bank


def test_a_lost_window_is_named(folder_store: FolderStore) -> None:
    with pytest.raises(DataError, match=r"window abc must be in the store, got none at .*windows/abc/window.json. Restore it."):
        journal.window_of(folder_store, "abc")


def test_an_idle_tick_leaves_a_note_and_no_entry(folder_store: FolderStore) -> None:
    journal.idle(folder_store)
    assert b"idle_at" in folder_store.get("state.json")
    assert journal.scheduled(folder_store).last_seq() == 0


def test_a_forced_tick_that_died_is_gone_on_with_in_the_same_words_only(second: Any) -> None:
    store, config = second
    run_window(store, config)
    head = stream(store).last()
    died = journal.begin(store, journal.outlook(store, head, request="f1", reason="use everything", rung="full"))
    assert journal.unfinished(store, head.seq, Wish(reason="use everything", rung="full")) == died
    for other in ({"reason": "cheap one instead", "rung": "head"}, {"reason": "use everything"}, {}):
        assert journal.unfinished(store, head.seq, Wish(**other)) is None
