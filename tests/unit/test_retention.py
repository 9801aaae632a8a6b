"""Retention: exactly what is promised stays, whatever has happened before and whenever the process dies."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import small
from support.fate import MOMENTS, Died, Fated, FatedBucket, Moment
from support.faults import copy
from support.releases import publish, put_release, release_id

from everfresh.tasks.alias import pin, promote, remove, restore, retire, rollback, unpin
from everfresh.tasks.catalogue import catalogue, release_ids, removed
from everfresh.tasks.config import RetentionConfig
from everfresh.tasks.errors import ObjectMissing, ReleaseError
from everfresh.tasks.ledger import aliases, champion_moves, find, moves
from everfresh.tasks.records import AliasMove, Cost, Decision, JournalEntry, Package, Release, Tick, TriedRung
from everfresh.tasks.retention import carry_out, plan
from everfresh.tasks.store import FolderStore, S3Store, Store
from everfresh.tasks.sweep import sweep

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
HOUR, DAY, NOW = timedelta(hours=1), timedelta(days=1), timedelta(0)


class Clocked(FolderStore):
    """A folder that says what time it is."""

    time = NOON

    def now(self) -> datetime:
        return self.time


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything temporary is in memory, and nothing is synced: it is processes that die here, not the machine's power."""
    with small.in_memory() as folder:
        monkeypatch.setattr("tempfile.tempdir", folder)
        monkeypatch.setattr("os.fsync", lambda _handle: None)
        yield


def whole(store: Store) -> set[str]:
    """Ids of the releases that stand, after every file of each was read and found as recorded."""
    for release in release_ids(store):
        record = find(store, f"releases/{release}/release.json", Release)
        assert record is not None
        for part in record.files.values():
            store.prove(part)
    return set(release_ids(store))


def retain(store: Store, grace: timedelta = NOW, **rule: Any) -> list[str]:
    return carry_out(store, plan(store, RetentionConfig(**{"keep_ancestors": 0, **rule}), grace), by="ana")


# --- what is promised -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_of_200_releases_the_newest_and_those_in_use_stay() -> None:
    with small.in_memory() as folder:
        store = Clocked(Path(folder))
        for number in range(1, 201):
            store.time += HOUR
            publish(store, number)
        promote(store, "v17", alias="shadow")
        rollback(store, 150)  # v200 is barred, and young
        store.time += 2 * DAY
        before = {item.key: item.size for item in store.list()}
        planned = plan(store, RetentionConfig(keep_releases=20, keep_days=3), DAY, "s3://b/p/releases/" + release_id(5) + "/w")
        assert {item.key: item.size for item in store.list()} == before  # it is only shown
        numbers = {17, 150, 149, 5, *range(181, 201)} | set(range(177, 201))  # younger than 72 h at hour 248
        assert planned.kept.keys() == {f"v{n}" for n in numbers}
        assert {planned.kept[v] for v in ("v17", "v150", "v149", "v5", "v181", "v177")} == {
            "is shadow", "is champion", "an ancestor of the champion", "model.weights names it", "younger than 3 days",
        }  # fmt: skip
        gone = carry_out(store, planned)
        assert sum(item.size for item in planned.listed) == sum(before[key] for key in gone)
        assert whole(store) == {release_id(n) for n in numbers}
        assert len(removed(store)) == 200 - len(numbers)
        ancestor = removed(store)[0]
        assert (ancestor.release.id, ancestor.version, ancestor.gone.keys()) == (release_id(1), 1, {"model.safetensors"})
        for part in ancestor.release.files.values():
            assert store.read(part)
        assert sweep(store, NOW) == []  # what stays is no debris
        assert plan(store, RetentionConfig(keep_releases=20, keep_days=3), DAY, release_id(5)).objects == {}


ACTS = ("publish", "make", "rollback", "pin", "unpin", "promote", "shadow", "unalias", "retire", "restore", "retain")


@given(
    acts=st.lists(st.tuples(st.sampled_from(ACTS), st.integers(1, 12), st.integers(0, 40)), max_size=30),
    newest=st.none() | st.integers(1, 4),
    ancestors=st.none() | st.integers(0, 3),
    days=st.none() | st.sampled_from([0.5, 1, 3]),
    grace=st.sampled_from([0, 6, 24]),
)
@settings(max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@pytest.mark.usefixtures("quick")
def test_after_any_history_exactly_what_is_promised_stays(
    acts: list[tuple[str, int, int]], newest: int | None, ancestors: int | None, days: float | None, grace: int
) -> None:
    with small.in_memory() as folder:
        store, named = Clocked(Path(folder)), []  # (time, what the aliases name from then on)
        rule = RetentionConfig(keep_releases=newest, keep_days=days, keep_ancestors=ancestors)
        for number, (name, which, hours) in enumerate(acts, 1):
            with suppress(ReleaseError):
                _act(store, name, number, which, rule, grace * HOUR)
            named.append((store.time, {m.release for m in aliases(store).values()}))
            store.time += hours * HOUR
        entries, head = catalogue(store), champion_moves(store).last()
        retired = set(head.retired) if head else set()
        since = store.time - grace * HOUR
        until = [*(time for time, _ in named[1:]), datetime.max.replace(tzinfo=UTC)][: len(named)]
        in_use = {r for (_, releases), end in zip(named, until, strict=True) if end > since for r in releases}
        young = {e.release.id for e in entries if e.release.created_at > since}
        if days is not None:
            young |= {e.release.id for e in entries if e.release.created_at > store.time - days * DAY}
        counted = [e.release.id for e in entries if e.release.id not in retired]
        parents = {e.release.id: e.release.parent for e in entries}
        line = [head.release] if head else []
        while line and (parent := parents.get(line[-1])) in parents and parent not in line:
            line.append(parent)
        line = line[1:] if ancestors is None else line[1 : 1 + ancestors]
        promised = {*in_use, *young, *line, *(counted[-newest:] if newest else ())} & {e.release.id for e in entries}
        if (newest is None and days is None) or head is None:
            promised = {e.release.id for e in entries}
        carry_out(store, plan(store, rule, grace * HOUR))
        assert whole(store) == promised
        assert {m.release for m in aliases(store).values()} <= promised
        for gone in {e.release.id for e in entries} - promised:
            assert {i.key.rsplit("/", 1)[1] for i in store.list(f"releases/{gone}")} == {
                "removed.json",
                "card.md",
                "lineage.json",
            }


def _act(store: Clocked, name: str, number: int, which: int, rule: RetentionConfig, grace: timedelta) -> None:
    version = f"v{which}"
    made: dict[str, Callable[[], object]] = {
        "publish": lambda: publish(store, number) if not _pinned(store) else None,
        "make": lambda: put_release(store, number),
        "rollback": lambda: rollback(store, None if which > 6 else which),
        "pin": lambda: pin(store),
        "unpin": lambda: unpin(store),
        "promote": lambda: promote(store, version),
        "shadow": lambda: promote(store, release_id(which), alias="shadow"),
        "unalias": lambda: remove(store, "shadow"),
        "retire": lambda: retire(store, version),
        "restore": lambda: restore(store, version),
        "retain": lambda: carry_out(store, plan(store, rule, grace)),
    }
    made[name]()


def _pinned(store: Store) -> bool:
    head = champion_moves(store).last()
    return head is not None and head.pinned


def test_a_tick_under_way_keeps_the_champion_that_it_set_out_from(folder_store: FolderStore) -> None:
    for number in (1, 2, 3):
        publish(folder_store, number)
    tick = Tick(
        seq=1, view="v", champion=release_id(1), champion_move=1, reference=None, bank=(), now=folder_store.now()
    )  # fmt: skip
    folder_store.create("ticks/00000001-tick.json", tick.to_bytes())
    assert (
        plan(folder_store, RetentionConfig(keep_releases=1, keep_ancestors=0), NOW).kept["v1"]
        == "a tick under way sets out from it"
    )
    folder_store.create("journal/00000001-tick.json", ended().to_bytes())
    assert plan(folder_store, RetentionConfig(keep_releases=1, keep_ancestors=0), NOW).kept.keys() == {"v3"}


@pytest.mark.parametrize(("most", "kept"), [(0, {5}), (1, {4, 5}), (2, {3, 4, 5}), (None, {1, 2, 3, 4, 5})])
def test_the_nearest_ancestors_of_the_champion_stay(folder_store: FolderStore, most: int | None, kept: set[int]) -> None:
    for number in range(1, 6):
        publish(folder_store, number)
    planned = plan(folder_store, RetentionConfig(keep_releases=1, keep_ancestors=most), NOW)
    assert planned.kept.keys() == {f"v{n}" for n in kept}
    assert set(planned.kept.values()) <= {"is champion", "an ancestor of the champion"}


def test_an_ancestor_stays_whichever_release_is_newest(folder_store: FolderStore) -> None:
    for number in range(1, 6):
        publish(folder_store, number)
    rollback(folder_store, 3)
    assert plan(folder_store, RetentionConfig(keep_releases=1), NOW).kept.keys() == {"v2", "v3", "v5"}


def test_without_a_rule_all_stay(folder_store: FolderStore) -> None:
    publish(folder_store, 1)
    publish(folder_store, 2)
    planned = plan(folder_store, RetentionConfig(), NOW)
    assert (planned.kept, planned.objects) == ({"v1": "all", "v2": "all"}, {})


def ended(*tried: TriedRung) -> JournalEntry:
    """The entry of a tick that ended at noon."""
    return JournalEntry(
        seq=1, request="", view="v", samples=1, quarantined=0, labelled=1, decision=Decision(action="retrain", reasons=("so",)),
        tried=tried, champion=None, champion_version=None, trust="trusted", bank=(), samples_since_training=0,
        windows_since_training=0, cost=Cost(), started_at=NOON, finished_at=NOON,
    )  # fmt: skip


def make_challenger(store: Store, number: int) -> None:
    """A challenger with its weights, and the files of a release to be, named by the record of a package."""
    key = release_id(number)
    store.put(f"candidates/{key}/attempts/a/model.safetensors", b"w")
    store.put(f"candidates/{key}/record.json", b"{}")
    files = {"model.pt2": store.keep(f"releases/{key}/model.pt2", b"exported")}
    store.put(f"packages/p{number}/record.json", Package(release=key, files=files, verdicts=()).to_bytes())


def test_the_files_of_a_package_go_with_its_record_or_as_debris_after_it(folder_store: FolderStore) -> None:
    for number in (1, 2, 3):
        publish(folder_store, number)
        files = {"config.json": folder_store.keep(f"packages/p{number}/config.json", b"{}")}
        record = Package(release=release_id(number), files=files, verdicts=()).to_bytes()
        folder_store.put(f"packages/p{number}/record.json", record)
    folder_store.delete("packages/p2/record.json")  # a sweep that died in between
    retain(folder_store, keep_releases=1)
    assert [i.key for i in folder_store.list("packages/p1")] == []
    assert [i.key for i in sweep(folder_store, NOW)] == ["packages/p2/config.json"]
    assert [i.key for i in folder_store.list("packages")] == ["packages/p3/config.json", "packages/p3/record.json"]


def test_a_challenger_that_model_weights_names_stays(tmp_path: Path) -> None:
    store = Clocked(tmp_path)
    publish(store, 1)
    make_challenger(store, 2)
    tried = TriedRung(rung="head", candidate=release_id(2), weights_sha256="", tune_accuracy=1, cost=Cost())
    store.put("journal/00000001-tick.json", ended(tried).to_bytes())
    store.time += 2 * DAY
    rule = RetentionConfig(keep_releases=1)
    assert plan(store, rule, DAY).spent == (release_id(2),)
    assert plan(store, rule, DAY, f"s3://b/p/candidates/{release_id(2)}/attempts/a/model.safetensors").spent == ()


def test_the_challenger_that_a_release_was_goes_with_it(folder_store: FolderStore) -> None:
    for number in (1, 2):
        publish(folder_store, number)
        make_challenger(folder_store, number)
    gone = retain(folder_store, keep_releases=1)
    key = release_id(1)
    assert set(gone[:3]) == {f"releases/{key}/release.json", f"candidates/{key}/record.json", "packages/p1/record.json"}
    assert [i.key.split("/")[1] for i in folder_store.list("candidates")] == [release_id(2)] * 2
    assert [i.key for i in folder_store.list("packages")] == ["packages/p2/record.json"]


def test_challengers_that_never_became_a_release_go_some_time_after_their_tick(tmp_path: Path) -> None:
    store = Clocked(tmp_path)
    publish(store, 1)
    for number in (1, 2, 3):
        make_challenger(store, number)  # the third one's tick is under way
    tried = tuple(
        TriedRung(rung="head", candidate=release_id(n), weights_sha256="", tune_accuracy=1, cost=Cost()) for n in (1, 2)
    )
    store.put("journal/00000001-tick.json", ended(*tried).to_bytes())
    store.time += 2 * DAY
    for rule in ({}, {"keep_days": 3}):
        assert plan(store, RetentionConfig(**rule), DAY).objects == {}
    planned = plan(store, RetentionConfig(keep_releases=1, keep_ancestors=0), DAY)
    assert (planned.spent, planned.going) == ((release_id(2),), ())
    carry_out(store, planned)
    assert {i.key.split("/")[1] for i in store.list("candidates")} == {release_id(1), release_id(3)}
    assert list(store.list(f"releases/{release_id(2)}")) == []
    assert len(list(store.list("packages"))) == 2
    assert plan(store, RetentionConfig(keep_releases=1, keep_ancestors=0), DAY).objects == {}


def test_what_was_removed_can_never_be_named_again_and_says_why(folder_store: FolderStore) -> None:
    for number in (1, 2, 3):
        publish(folder_store, number)
    retain(folder_store, keep_releases=1)
    retire_words = "must not be retired, got v1"
    gone = r"must have its weights, got v1, whose weights ana removed at .* \(retention\)\. Choose another version"
    for act in (lambda: rollback(folder_store, 1), lambda: promote(folder_store, "v1", alias="shadow")):
        with pytest.raises(ReleaseError, match=f"{retire_words}|the release of v1 must be in the store"):
            act()
    with pytest.raises(ReleaseError, match=gone):
        restore(folder_store, "v1")
    publish(folder_store, 4)
    retain(folder_store, keep_releases=1)  # forgets retirements of what is gone
    with pytest.raises(ReleaseError, match="got none at|" + gone):
        rollback(folder_store, 1)


def test_a_reader_that_holds_the_record_of_what_was_removed_is_told_which_object_is_missing(folder_store: FolderStore) -> None:
    release = put_release(folder_store, 9)
    publish(folder_store, 10)
    retain(folder_store, keep_releases=1)
    with pytest.raises(ObjectMissing, match=r"model\.safetensors"):
        folder_store.local(release.files["model.safetensors"])


# --- a process that dies, and others beside it ------------------------------------------------------------


def stocked(store: Store) -> None:
    """Five versions with their challengers; v1 is somebody's, v5 champion."""
    for number in range(1, 6):
        publish(store, number)
        if number < 3:
            make_challenger(store, number)
    promote(store, "v1", alias="shadow")


def at_rest(store: Store) -> list[str]:
    """Keys of all objects, once the debris is swept."""
    sweep(store, NOW)
    return [item.key for item in store.list()]


def check_dead(store: Store) -> None:
    """What holds at every moment: what stands is whole, what is in use stands, and no challenger lacks its weights."""
    assert whole(store) >= {release_id(1), release_id(4), release_id(5)}
    keys = {item.key for item in store.list("candidates")}
    assert all(f"{key.rsplit('/', 1)[0]}/attempts/a/model.safetensors" in keys for key in keys if key.endswith("record.json"))
    for item in store.list("packages"):
        package = find(store, item.key, Package)
        assert package is not None
        for part in package.files.values():
            store.prove(part)


def die_and_go_on(fated: Fated | FatedBucket, plain: Store, expected: list[str]) -> bool:
    """Whether it died; in any case a rerun ends as undisturbed."""
    died = False
    try:
        retain(fated, keep_releases=2)
    except Died:
        died = True
    check_dead(plain)
    retain(plain, keep_releases=2)
    check_dead(plain)
    assert at_rest(plain) == expected
    return died


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("when", MOMENTS)
def test_a_sweep_that_dies_at_any_write_loses_nothing_and_is_gone_on_with(when: Moment) -> None:
    with small.in_memory() as folder:
        template = FolderStore(Path(folder) / "template")
        stocked(template)
        undisturbed = FolderStore(Path(folder) / "undisturbed")
        copy(template, undisturbed)
        retain(undisturbed, keep_releases=2)
        expected, at, died = at_rest(undisturbed), 0, True
        while died:
            at += 1
            plain = FolderStore(Path(folder) / str(at))
            copy(template, plain)
            died = die_and_go_on(Fated(plain.root, at, when), plain, expected)
        assert at > 12


@pytest.mark.parametrize("at", [1, 4, 6, 9])
def test_on_s3_too(s3_store: S3Store, at: int) -> None:
    stocked(s3_store)
    undisturbed = S3Store(s3_store.bucket, f"test-{uuid.uuid4().hex[:12]}")
    copy(s3_store, undisturbed)
    retain(undisturbed, keep_releases=2)
    fated = FatedBucket(s3_store.bucket, s3_store.prefix)
    fated.be(at, "after")
    assert die_and_go_on(fated, s3_store, at_rest(undisturbed))


class Named(FolderStore):
    """A folder in which somebody, who looked before, lets an alias name v1 as its removal begins, and dies at once."""

    def create(self, key: str, data: bytes) -> bool:
        if key == f"releases/{release_id(1)}/removed.json":
            move = AliasMove(seq=1, id="x", kind="promote", release=release_id(1), version=1, by="bob", reason="", at=NOON)
            assert moves(FolderStore(self.root), "canary").append(1, move)
        return super().create(key, data)


@pytest.mark.usefixtures("quick")
def test_an_alias_whose_mover_died_before_looking_again_keeps_what_it_names(tmp_path: Path) -> None:
    store = Named(tmp_path)
    for number in (1, 2, 3):
        publish(store, number)
    retain(store, keep_releases=1)
    assert whole(store) == {release_id(1), release_id(3)}
    head = champion_moves(store).last()
    assert head is not None
    assert (head.retired, head.reason) == ((release_id(2),), "an alias names it")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("act", ["restore and promote", "shadow", "rollback", "publish", "retain"])
def test_who_moves_an_alias_amid_a_sweep_keeps_what_it_names(act: str) -> None:
    """At each of the sweep's operations, somebody else acts; whatever an alias then names is whole."""

    def meanwhile(store: Store) -> None:
        with suppress(ReleaseError):
            match act:
                case "restore and promote":
                    with suppress(ReleaseError):
                        restore(store, "v2")
                    promote(store, "v2")
                case "shadow":
                    promote(store, "v2", alias="canary")
                case "rollback":
                    rollback(store, 2)
                case "publish":
                    publish(store, 6)
                case "retain":
                    retain(store, keep_releases=2)

    with small.in_memory() as folder:
        template = FolderStore(Path(folder) / "template")
        stocked(template)
        at, count = 0, 1
        while at < count:
            at += 1
            plain = FolderStore(Path(folder) / str(at))
            copy(template, plain)
            fated = Fated(plain.root, at, event=lambda plain=plain: meanwhile(plain))  # type: ignore[misc]
            retain(fated, keep_releases=2)
            count = fated.count
            assert {m.release for m in aliases(plain).values()} <= whole(plain)
            retain(plain, keep_releases=2)
            assert {m.release for m in aliases(plain).values()} <= whole(plain)
        assert at > 60
