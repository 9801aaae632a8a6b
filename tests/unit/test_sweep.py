"""Sweep: what no record names goes, everything else stays."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from support.loop import run_window, second_window

from everfresh.tasks import alias
from everfresh.tasks.config import S3Config
from everfresh.tasks.errors import AccessRefused
from everfresh.tasks.ledger import champion_moves
from everfresh.tasks.store import FolderStore, S3Store, Store, Unfinished, pipeline_store, s3
from everfresh.tasks.sweep import debris, sweep

NOW = timedelta(0)
LEFT = (
    "candidates/k/checkpoint-00002-abc",
    "drift/k/attempts/a/columns.png",
    "evaluations/k/attempts/a/confusion.png",
    "releases/half/model.safetensors",
    "windows/half/shard-00000.tar",
    "quarantine/half/bytes",
    "probe-0123456789ab",
    "replays/trial/drift/k/attempts/a/columns.png",
)


def test_what_a_whole_loop_writes_is_no_debris(tmp_path: Path) -> None:
    store, config = second_window(tmp_path, drift={"report": True, "permutations": 199, "components": 4})
    bad = tmp_path / "inbox" / "one" / "bad.png"
    bad.write_bytes(b"no picture")
    assert run_window(store, config).entry.version == 2
    assert [item.key for item in debris(store, NOW) if "/checkpoint-" not in item.key] == []


def test_debris_goes_and_the_champion_stays_whole(tmp_path: Path) -> None:
    store, config = second_window(tmp_path)
    run_window(store, config)
    sweep(store, NOW)
    before = [item.key for item in store.list()]
    for key in LEFT:
        store.put(key, b"left by a run that died")
    assert debris(store, timedelta(hours=1)) == []  # it may be under way
    assert sorted(item.key for item in sweep(store, NOW)) == sorted(LEFT)
    assert [item.key for item in store.list()] == before
    move = champion_moves(store).last()
    assert move is not None
    alias.check_release(store, move)


def test_sweeping_twice_finds_nothing_and_an_empty_store_is_clean(store: Store) -> None:
    assert sweep(store, NOW) == []
    store.put("releases/half/model.safetensors", b"x")
    assert len(sweep(store, NOW)) == 1
    assert sweep(store, NOW) == []


def test_what_was_never_finished_goes_and_what_stands_under_its_key_stays(store: Store) -> None:
    store.put("journal.json", b"1")
    if isinstance(store, FolderStore):
        (store.root / ".tmp-dead").write_bytes(b"half")
    else:
        assert isinstance(store, S3Store)
        s3.client(S3Config()).create_multipart_upload(Bucket=store.bucket, Key=f"{store.prefix}/journal.json")
    (found,) = sweep(store, NOW)
    assert isinstance(found, Unfinished)
    assert [[item.key for item in store.list()], list(store.unfinished())] == [["journal.json"], []]


def test_without_the_right_to_look_for_unfinished_writes_the_rest_is_swept(
    folder_store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_self: FolderStore) -> Iterator[Unfinished]:
        raise AccessRefused("no right to list uploads")

    monkeypatch.setattr(FolderStore, "unfinished", refused)
    folder_store.put("releases/half/model.safetensors", b"x")
    assert len(sweep(folder_store, NOW)) == 1


def test_the_parts_of_a_replay_stay(tmp_path: Path) -> None:
    store, config = second_window(tmp_path)
    run_window(store, config)
    replayed = pipeline_store(config.model_copy(update={"store": str(tmp_path), "name": "store"}), "trial")
    run_window(replayed, config)
    assert replayed.exists("aliases/champion/00000001.json")
    assert [item.key for item in debris(store, NOW) if "/checkpoint-" not in item.key] == []
