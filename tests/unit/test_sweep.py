"""Sweep: what no record names goes, everything else stays."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from support.fate import Died, Fated
from support.loop import pipeline, run_window, second_window
from support.pictures import digits, write_folder

from everfresh.tasks import alias, publish
from everfresh.tasks.config import S3Config
from everfresh.tasks.errors import AccessRefused, StoreError
from everfresh.tasks.ingest import ingest
from everfresh.tasks.ledger import champion_moves, stream
from everfresh.tasks.store import FolderStore, S3Store, Store, Unfinished, pipeline_store, s3
from everfresh.tasks.sweep import debris, sweep
from everfresh.tasks.views import View

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


UPLOADING = """
import os, sys
from pathlib import Path
from everfresh.tasks.store import open_store, s3
from everfresh.tasks.config import S3Config

sent = []

def dies(**_):
    sent.append(1)
    if len(sent) == 3:
        os._exit(42)

store = open_store(sys.argv[1])
s3.client(S3Config()).meta.events.register("before-send.s3.UploadPart", dies)
store.put_file("candidates/k/attempts/a/model.safetensors", Path(sys.argv[2]))
"""


def test_of_a_process_that_dies_between_the_parts_of_a_file_nothing_is_left(s3_store: S3Store, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(40 << 20))
    command = [sys.executable, "-c", UPLOADING, s3_store.url(""), str(tmp_path / "large")]
    assert subprocess.run(command, check=False).returncode == 42
    assert list(s3_store.list()) == []
    (found,) = sweep(s3_store, NOW)
    assert (found.key, isinstance(found, Unfinished)) == ("candidates/k/attempts/a/model.safetensors", True)
    assert [*s3_store.list(), *s3_store.unfinished()] == []


def test_where_nothing_may_be_deleted_a_sweep_says_which_right_is_missing(
    folder_store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_self: FolderStore, key: str) -> None:
        raise AccessRefused(f"store: delete_object on {key} was refused (AccessDenied). Allow s3:DeleteObject.")

    folder_store.put("releases/half/model.safetensors", b"x")
    monkeypatch.setattr(FolderStore, "delete", refused)
    with pytest.raises(AccessRefused, match=r"releases/half/model\.safetensors was refused .* Allow s3:DeleteObject"):
        sweep(folder_store, NOW)
    assert folder_store.exists("releases/half/model.safetensors")


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


# --- a run that comes back while its debris is swept -----------------------------------------------------


class Recorded(Fated):
    """Tells what is done to it."""

    operations: list[str]

    def _operate(self, name: str, *arguments: Any, **named: Any) -> Any:
        self.operations.append(name)
        return super()._operate(name, *arguments, **named)


def grow_old(folder: Path) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (0, 0))


@pytest.mark.parametrize("died_at", range(1, 9))
def test_a_run_that_comes_back_amid_a_sweep_keeps_all_that_it_commits(tmp_path: Path, died_at: int) -> None:
    """A rerun writes under the keys of the run that died: what was debris when it was listed is none any more."""
    day = timedelta(hours=24)
    config = pipeline(tmp_path)
    write_folder(tmp_path / "inbox", {**digits(3), "zero/bad.png": b"no picture"})
    with pytest.raises(Died):
        ingest(Fated(tmp_path / "dead", died_at), config)
    grow_old(tmp_path / "dead")

    def swept(operation: int) -> list[str]:
        here = tmp_path / f"store-{operation}"
        shutil.copytree(tmp_path / "dead", here) if (tmp_path / "dead").exists() else here.mkdir()
        store = Recorded(here, operation, event=lambda: ingest(FolderStore(here), config))
        store.operations = []
        sweep(store, day)
        return store.operations

    for operation, name in enumerate(swept(0), 1):
        if name == "delete":  # the look before it was the last
            continue
        swept(operation)
        store = FolderStore(tmp_path / f"store-{operation}")
        entry = stream(store).last()
        assert entry is not None
        assert entry.cursor_after.index is not None
        assert store.local(entry.cursor_after.index)
        view = View(store, entry.view)
        assert len(list(view.read(view.rows()))) == 3
        assert len(list(store.list(f"quarantine/{entry.view}"))) == 2


def test_a_release_file_that_a_dead_run_left_turns_young_when_it_is_taken_up(folder_store: FolderStore) -> None:
    key = "releases/k/card.md"
    folder_store.put(key, b"card")
    grow_old(folder_store.root)
    assert len(debris(folder_store, timedelta(hours=1))) == 1
    for data in (b"card", b"another card"):  # what was first counts: its record may name it already
        assert folder_store.read(publish._keep_first(folder_store, key, data)) == b"card"
        assert debris(folder_store, timedelta(hours=1)) == []
        grow_old(folder_store.root)


def test_a_record_that_comes_before_its_part_goes_keeps_it(folder_store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    part = folder_store.keep("candidates/k/attempts/slow/model", b"took two days")
    record = part.model_dump_json().encode()
    monkeypatch.setattr(FolderStore, "unfinished", lambda store: store.put("candidates/k/record.json", record) or iter(()))
    assert sweep(folder_store, NOW) == []
    assert folder_store.read(part)


def test_a_damaged_record_stops_a_sweep_with_its_key(folder_store: FolderStore) -> None:
    folder_store.put("candidates/k/record.json", b'{"half":')
    folder_store.put("candidates/k/attempts/a/model", b"x")
    with pytest.raises(StoreError, match=r"must be JSON, got .*candidates/k/record\.json, which is damaged .* Restore it"):
        sweep(folder_store, NOW)
    assert folder_store.exists("candidates/k/attempts/a/model")
