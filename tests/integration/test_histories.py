"""Histories drawn at random: pictures come and go, people and ticks move the champion, processes die or overtake each other.

After every step the store is held against a model of a page, ``support.moves``; at the end of every history what was
left over is taken in, and swept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, ClassVar, NamedTuple, TypeVar

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from support import moves as model
from support import small
from support.fate import MOMENTS, Died, Fated, Moment

from everfresh.flows.look import fingerprint
from everfresh.tasks import alias, evaluate, ingest
from everfresh.tasks.errors import ReleaseError
from everfresh.tasks.journal import scheduled, window_of
from everfresh.tasks.ledger import champion_moves, find, stream
from everfresh.tasks.records import Candidate, Evaluation, StreamEntry, Tick
from everfresh.tasks.store import FolderStore, Store
from everfresh.tasks.store.folder import TEMPORARY
from everfresh.tasks.sweep import sweep
from everfresh.tasks.views import View

T = TypeVar("T")
Pair = tuple[str, str]
"""Key and version of a file."""

HISTORIES, STEPS = 500, 9
KEYS = [f"{label}/{number}.png" for label in small.CLASSES for number in range(5)]
BAD = b"no picture"
LOGS = ("stream", "stream.json", "aliases", "journal", "journal.json", "ticks", "embeddings")
CHANGES = ("write", "write", "spoil", "remove")
RECORDS = ("/record.json", "/window.json", "/release.json")
PEOPLE = ("rollback", "rollback to", "pin", "unpin", "unpin")
KINDS = ("ingest", "publish", "publish", *PEOPLE)
ALL = ("ingest", "prove", "publish", "tick", "sweep", *PEOPLE)
MUST_HAPPEN = (
    *(f"files {what}" for what in ("added", "changed", "removed", "set aside")),
    *ALL,
    *(f"deaths in {kind}" for kind in ALL),
    *(f"{kind} refused" for kind in ("publish", *PEOPLE)),
    *("started again", "overtaken", "objects swept", "published by a tick", "failed gate pinned", "failed gate barred"),
)
"""What must occur in some history, so that the test cannot become empty unseen."""


class Fate(NamedTuple):
    """At which write the process dies, and whether it is started again at once."""

    at: int
    when: Moment
    again: bool


numbers = st.integers(0, 99)
acts = st.tuples(st.sampled_from(KINDS), st.integers(0, 3))


def fates(most: int) -> st.SearchStrategy[Fate | None]:
    """A death at one of the first writes, or none."""
    fate = st.builds(Fate, st.integers(1, most), st.sampled_from(MOMENTS), st.booleans())
    return st.none() | fate | fate


class Act(NamedTuple):
    """What one actor does to the champion, and what the model says of it."""

    do: Callable[[Store], object]
    then: Callable[[model.History, int], model.History | None]
    """The history after it, from the history now and the number of moves that the actor saw; None if refused."""

    def succeeds(self, store: Store) -> bool:
        """Do it; False if it was refused."""
        try:
            self.do(store)
        except ReleaseError:
            return False
        return True


def _picture(number: int) -> bytes:
    return small.pictures()[number % len(small.pictures())][1]


class Proven(NamedTuple):
    """A challenger with its proof, which may be stale when it is published."""

    tick: Tick
    challenger: Candidate
    proof: Evaluation
    said: model.Proof


def _contradicted(key: str, files: dict[str, bytes]) -> bool:
    """Whether another file has the same bytes and another label."""
    return any(data == files[key] and other.split("/")[0] != key.split("/")[0] for other, data in files.items())


class Histories(RuleBasedStateMachine):
    """One pipeline in a folder, and what must be true of it."""

    starts: ClassVar[list[Histories]]
    tally: ClassVar[Counter[str]]

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(mkdtemp(prefix="history-"))
        self.config = small.small_pipeline(self.home)
        self.inbox, self.root = self.home / "inbox", self.home / "store"
        self.inbox.mkdir()
        self.store = FolderStore(self.root)
        self.clock = 0
        """Nanoseconds; each write has its own time, so each makes a new version."""
        self.present: dict[str, tuple[str, bytes]] = {}
        """Version and bytes of every file in the source."""
        self.windows: list[list[Pair]] = []
        """What each window took in."""
        self.moves: model.History = ()
        self.proven: list[Proven] = []
        self.treated = 0
        """Windows that a tick has ended."""
        self.litter = False
        """Whether a run has died since the last sweep."""
        self.died = False
        """Whether the last run died."""

    # --- the source ---------------------------------------------------------------------------------------------

    def _write(self, key: str, data: bytes) -> None:
        path = self.inbox / key
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        self.clock += 1
        os.utime(path, ns=(self.clock, self.clock))
        self.present[key] = f"{len(data)}-{self.clock}", data

    @initialize(releases=st.sampled_from([0, 1, 2, 3, 3]))
    def begin(self, releases: int) -> None:
        """Start after so many windows, each with a release and a challenger that is proven against it."""
        before = self.starts[releases]
        shutil.copytree(before.home, self.home, dirs_exist_ok=True)
        self.clock, self.present, self.moves = before.clock, dict(before.present), before.moves
        self.windows, self.proven, self.treated = list(before.windows), list(before.proven), before.treated

    @rule(keys=st.sets(st.sampled_from(KEYS), min_size=1, max_size=4), change=st.sampled_from(CHANGES), picture=numbers)
    def the_source_changes(self, keys: set[str], change: str, picture: int) -> None:
        """Files are added or changed, some of them bad or equal to others; or they go."""
        self.tally["steps"] += 1
        for number, key in enumerate(sorted(keys)):
            if change == "remove":
                (self.inbox / key).unlink(missing_ok=True)
                self.tally["files removed"] += self.present.pop(key, None) is not None
            else:
                self.tally["files changed" if key in self.present else "files added"] += 1
                self._write(key, BAD if change == "spoil" else _picture(picture + number // 2))

    # --- what runs and people do --------------------------------------------------------------------------------

    def _run(self, kind: str, work: Callable[[Store], T], fate: Fate | None, allowed: Sequence[model.History] = ()) -> T | None:
        """Do some work, to the end or to its death; None if it died. Only these histories may stand then."""
        self.tally[kind] += 1
        allowed = [self.moves, *allowed]
        self.died = False
        try:
            return work(Fated(self.root, fate.at, fate.when) if fate else self.store)
        except Died:
            self.died = self.litter = True
            self.tally.update(["deaths", f"deaths in {kind}"])
            return None
        finally:
            self._look()
            assert self.moves in allowed, kind

    def _perhaps_twice(self, step: Callable[[Fate | None], None], fate: Fate | None) -> None:
        self.tally["steps"] += 1
        step(fate)
        if fate and fate.again and self.died:
            self.tally["started again"] += 1
            step(None)

    @rule(fate=fates(9))
    def a_window_is_taken_in(self, fate: Fate | None) -> None:
        self._perhaps_twice(self._ingest, fate)

    def _ingest(self, fate: Fate | None) -> None:
        known, waiting = len(self.windows), self._waiting()
        entry = self._run("ingest", lambda store: ingest.ingest(store, self.config), fate)
        if not self.died:
            assert (entry.seq if entry else None) == (known + 1 if waiting else None)
        assert known <= len(self.windows) <= known + bool(waiting)

    @precondition(lambda self: self.windows)
    @rule(window=numbers, seed=st.integers(0, 2), fate=fates(8))
    def a_challenger_is_proven(self, window: int, seed: int, fate: Fate | None) -> None:
        self._perhaps_twice(partial(self._prove, 1 + window % len(self.windows), seed), fate)

    def _prove(self, seq: int, seed: int, fate: Fate | None) -> None:
        against = len(self.moves)
        entry = stream(self.store).entry(seq)
        assert entry is not None

        def prove(store: Store) -> Proven:
            tick = small.begun(store, entry)
            made = small.candidate(store, tick, seed)
            proof = evaluate.evaluate(store, self.config, tick, made, against=against)
            return Proven(tick, made, proof, model.Proof(made.key, against, proof.passed))

        if (found := self._run("prove", prove, fate)) is not None:
            holdout = window_of(self.store, entry.view).splits.get("holdout", 0)
            failed = model.failed_gates(self.moves, against, found.challenger.key, holdout)
            assert set(found.proof.failed_gates) == failed
            assert found.proof.passed == (not failed)
            self.tally.update(f"failed gate {name}" for name in failed)
            self.proven.append(found)

    @rule(fate=fates(22))
    def a_tick_runs(self, fate: Fate | None) -> None:
        self._perhaps_twice(self._tick, fate)

    def _tick(self, fate: Fate | None) -> None:
        treated = self.treated
        after = self._after_tick(treated + 1)
        entry = self._run("tick", lambda store: small.run_tick(store, self.config), fate, [after])
        if not self.died:
            assert self.moves == after
            assert self.treated == min(treated + 1, len(self.windows))
        if entry is not None:
            assert entry.champion == (after[-1].release if after else None)
            self.tally["published by a tick"] += entry.version is not None

    def _after_tick(self, seq: int) -> model.History:
        """What a tick over a window must leave: it sets out from where its first run did."""
        if seq > len(self.windows):
            return self.moves
        entry, begun = stream(self.store).entry(seq), find(self.store, f"ticks/{seq:08d}-tick.json", Tick)
        assert entry is not None
        key, holdout = small.candidate_key(entry.view, seq, 0), window_of(self.store, entry.view).splits.get("holdout", 0)
        for against in (begun.champion_move if begun else len(self.moves), len(self.moves)):
            if model.failed_gates(self.moves, against, key, holdout):
                break
            if (after := model.published(self.moves, model.Proof(key, against, True))) is not None:
                return after
        return self.moves

    def _act(self, kind: str, number: int) -> Act:
        if kind == "ingest":
            return Act(lambda store: ingest.ingest(store, self.config), lambda history, _seen: history)
        if kind == "publish" and self.proven:
            tick, challenger, proof, said = self.proven[-1 - number % len(self.proven)]
            return Act(
                lambda store: small.release(store, self.config, tick, challenger, proof),
                lambda history, _seen: model.published(history, said),
            )
        if kind in {"rollback", "rollback to"}:
            to = None if kind == "rollback" else 1 + number
            return Act(lambda store: alias.rollback(store, to, by="ana"), partial(model.rolled_back, to=to))
        if kind == "pin":
            return Act(lambda store: alias.pin(store, by="ben"), model.pinned)
        return Act(lambda store: alias.unpin(store, by="eva"), model.unpinned)

    def _alone(self, kind: str, number: int, fate: Fate | None) -> None:
        act, before = self._act(kind, number), self.moves
        after = act.then(before, len(before))
        done = self._run(kind, act.succeeds, fate, [] if after is None else [after])
        if done is not None:
            assert done == (after is not None), f"{kind}: refused is {not done}"
            assert self.moves == (before if after is None else after), kind
            self.tally[f"{kind} refused"] += not done

    @precondition(lambda self: self.proven)
    @rule(number=st.integers(0, 3), fate=fates(12))
    def a_challenger_is_published(self, number: int, fate: Fate | None) -> None:
        self._perhaps_twice(partial(self._alone, "publish", number), fate)

    @rule(kind=st.sampled_from(PEOPLE), number=st.integers(0, 3), fate=fates(3))
    def a_person_moves_the_champion(self, kind: str, number: int, fate: Fate | None) -> None:
        self._perhaps_twice(partial(self._alone, kind, number), fate)

    @rule(one=acts, other=acts, at=st.integers(1, 16), when=st.sampled_from(["before", "after"]))
    def one_overtakes_another(self, one: tuple[str, int], other: tuple[str, int], at: int, when: Moment) -> None:
        """The other acts as a whole while the one is at its n-th operation, or after it."""
        self.tally["steps"] += 1
        slow, quick, before = self._act(*one), self._act(*other), self.moves
        answers: list[bool] = []

        def overtake() -> None:
            self.tally["overtaken"] += 1
            answers.append(quick.succeeds(self.store))

        done = slow.succeeds(Fated(self.root, at, when, overtake))
        if not answers:
            answers.append(quick.succeeds(self.store))
        self._look()
        assert (done, answers[0], self.moves) in list(_orders(slow, quick, before)), (one, other)

    @precondition(lambda self: self.litter)
    @rule(fate=fates(4))
    def a_sweep_clears_up(self, fate: Fate | None) -> None:
        self._perhaps_twice(self._sweep, fate)

    def _sweep(self, fate: Fate | None) -> None:
        before, keys, counting = fingerprint(self.store), self._keys(), self._counting()
        removed = self._run("sweep", lambda store: sweep(store, timedelta(0)), fate)
        assert fingerprint(self.store) == before
        after = self._keys()
        assert counting <= after, "the sweep has removed what counts"
        if removed is not None:
            self.litter = False
            assert after == counting, "the sweep has left debris"
            assert sorted(item.key for item in removed) == sorted(keys - counting)
            self.tally["objects swept"] += len(removed)

    # --- what must be true --------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Read all that the store says, hold it against what is known, and remember it."""
        self.moves = model.written(self.store)
        model.check_rules(self.moves)
        if (head := champion_moves(self.store).last()) is not None:
            alias.check_release(self.store, head)
        entries = list(stream(self.store))
        assert [e.seq for e in entries] == list(range(1, 1 + len(list(self.store.list("stream")))))
        for entry in entries[len(self.windows) :]:
            self.windows.append(self._taken(entry))
        ended = list(scheduled(self.store))
        self.treated = len(ended)
        assert [e.view for e in ended] == [e.view for e in entries[: len(ended)]]
        assert {e.release for e in ended} - {None} <= {m.release for m in self.moves if m.kind == "publish"}

    def _waiting(self) -> list[Pair]:
        known = {pair for window in self.windows for pair in window}
        return sorted((key, version) for key, (version, _) in self.present.items() if (key, version) not in known)

    def _taken(self, entry: StreamEntry) -> list[Pair]:
        """What a new window took in: the first that waited, each once, its bytes as they were, the bad ones set aside."""
        expected = self._waiting()[: small.MOST]
        view, index = View(self.store, entry.view), entry.cursor_after.index
        assert index is not None
        cursor = pq.read_table(self.store.local(index)).to_pylist()
        known = [pair for window in self.windows for pair in window]
        assert sorted((row["key"], row["version"]) for row in cursor) == sorted(known + expected)
        files = {key: self.present[key][1] for key, _ in expected}
        good = {key: data for key, data in files.items() if data != BAD and not _contradicted(key, files)}
        assert dict(zip([s.key for s in view.samples], view.read(range(len(view.samples))), strict=True)) == good
        self.tally["files set aside"] += len(expected) - len(good)
        lines = self.store.get(f"quarantine/{entry.view}/quarantine.jsonl").splitlines() if len(good) < len(expected) else []
        assert sorted([*good, *(json.loads(line)["key"] for line in lines)]) == [key for key, _ in expected]
        return expected

    def _keys(self) -> set[str]:
        """All files that stand in the folder, whether the store lists them or not."""
        return {path.relative_to(self.store.root).as_posix() for path in self.store.root.rglob("*") if path.is_file()}

    def _counting(self) -> set[str]:
        """Keys of all that counts: logs, records, and what these name, which must be whole."""
        keys = {key for key in self._keys() if not key.rsplit("/", 1)[-1].startswith(TEMPORARY)}
        records = {key for key in keys if key.endswith(RECORDS)}
        counting = {key for key in keys if key.split("/")[0] in LOGS} | records
        for key in records | {key for key in keys if key.startswith("stream/")}:
            for part in _parts(json.loads(self.store.get(key))):
                assert hashlib.sha256(self.store.get(part["key"])).hexdigest() == part["sha256"], part["key"]
                counting.add(part["key"])
        views = {key.split("/")[1] for key in records if key.startswith("windows/")}
        return counting | {key for key in keys if key.startswith("quarantine/") and key.split("/")[1] in views}

    def teardown(self) -> None:
        try:
            while self._waiting():
                self._ingest(None)
            self._ingest(None)
            self._sweep(None)
            self.tally["histories"] += 1
            self.tally["windows"] += len(self.windows)
            self.tally["moves"] += len(self.moves)
        finally:
            shutil.rmtree(self.home)


def _orders(slow: Act, quick: Act, history: model.History) -> Iterator[tuple[bool, bool, model.History]]:
    """What two acts may answer and leave: one after the other, or the quick one after the slow one's first look."""
    first = slow.then(history, len(history))
    between = history if first is None else first
    second = quick.then(between, len(between))
    yield first is not None, second is not None, between if second is None else second
    first = quick.then(history, len(history))
    between = history if first is None else first
    for seen in (len(history), len(between)):
        second = slow.then(between, seen)
        yield second is not None, first is not None, between if second is None else second


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict) and "sha256" in value and "key" in value:
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _parts(inner)


def started(releases: int) -> Histories:
    """A history that went well so far; one more window waits for its tick, and three more files for theirs."""
    machine = Histories()
    for number in range(releases + 2):
        for key in KEYS[number::5]:
            machine._write(key, _picture(KEYS.index(key)))
        if number <= releases:
            machine._ingest(None)
        if number < releases:
            machine._tick(None)
            machine._prove(number + 1, 1, None)
    assert [move.kind for move in machine.moves] == ["publish"] * releases
    assert all(proven.said.passed for proven in machine.proven)
    return machine


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything temporary is in memory."""
    with small.in_memory() as folder, monkeypatch.context() as patch:
        patch.setattr("tempfile.tempdir", folder)
        yield


@pytest.mark.timeout(900)  # a failure is shrunk for up to five minutes
@pytest.mark.usefixtures("memory")
def test_histories_at_random_are_as_the_model_says(monkeypatch: pytest.MonkeyPatch) -> None:
    small.make_quick(monkeypatch)
    Histories.tally = Counter()
    Histories.starts = [started(releases) for releases in range(4)]
    Histories.tally.clear()
    settled = settings(
        max_examples=HISTORIES, stateful_step_count=STEPS, deadline=None, derandomize=True, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )  # fmt: skip
    run_state_machine_as_test(Histories, settings=settled)
    tally = Histories.tally
    words = ", ".join(f"{number} {what}" for what, number in sorted(tally.items(), key=lambda item: -item[1]))
    sys.stdout.write(f"{words}\n")
    assert tally["histories"] >= HISTORIES
    assert tally["steps"] >= HISTORIES * STEPS / 2
    assert tally["deaths"] >= HISTORIES / 2
    assert [what for what in MUST_HAPPEN if not tally[what]] == []
