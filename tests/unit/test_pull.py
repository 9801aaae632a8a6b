"""A release in a folder: the whole of it, or nothing; and what is wrong with one in the store."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fate import Died, Fated
from support.keys import pair
from support.releases import FILES, publish, put_release, release_id

from everfresh.tasks.catalogue import Named, named
from everfresh.tasks.config import RetentionConfig
from everfresh.tasks.errors import DigestMismatch, ObjectMissing, ReleaseError, StoreError
from everfresh.tasks.pull import problems, pull, recorded
from everfresh.tasks.records import Part, Release
from everfresh.tasks.releases import sign_release
from everfresh.tasks.retention import carry_out, plan
from everfresh.tasks.store import FolderStore, Store

MINE = {*FILES, "release.json"}


def found(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_release_is_copied_whole_and_twice_is_fine(store: Store, tmp_path: Path) -> None:
    publish(store, 1)
    target = tmp_path / "deep" / "model"
    for _ in range(2):
        release = pull(store, named(store, "champion"), target)
    assert found(tmp_path / "deep") == {f"model/{name}" for name in MINE}
    for name, part in release.files.items():
        assert (target / name).read_bytes() == store.read(part)
    assert Release.from_bytes((target / "release.json").read_bytes()) == release


def damaged(store: FolderStore) -> None:
    store.put(f"releases/{release_id(1)}/model.safetensors", b"other")


def half(store: FolderStore) -> None:
    store.delete(f"releases/{release_id(1)}/card.md")


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [(damaged, DigestMismatch, r"model\.safetensors must have SHA-256"), (half, ObjectMissing, r"card\.md")],
)
def test_of_a_release_that_is_not_whole_nothing_is_left(
    folder_store: FolderStore, tmp_path: Path, fault: Callable[[FolderStore], None], kind: type[StoreError], words: str
) -> None:
    publish(folder_store, 1)
    goal = named(folder_store, "v1")
    assert problems(folder_store, goal) == []
    fault(folder_store)
    with pytest.raises(kind, match=words):
        pull(folder_store, goal, tmp_path / "out" / "model")
    assert list((tmp_path / "out").iterdir()) == []
    [problem] = problems(folder_store, goal)
    assert problem.split(":")[0] in FILES


def test_a_target_that_holds_something_else_is_left_alone(folder_store: FolderStore, tmp_path: Path) -> None:
    publish(folder_store, 1)
    publish(folder_store, 2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    (tmp_path / "file").write_text("x")
    for taken in ("mine", "file"):
        with pytest.raises(ReleaseError, match=r"must be absent or an empty folder, got .* Choose another, or empty it"):
            pull(folder_store, named(folder_store, "v1"), tmp_path / taken)
    assert found(tmp_path / "mine") == {"thesis.tex"}
    (tmp_path / "empty").mkdir()
    pull(folder_store, named(folder_store, "v1"), tmp_path / "empty")
    with pytest.raises(ReleaseError, match="must be absent or an empty folder"):
        pull(folder_store, named(folder_store, "v2"), tmp_path / "empty")
    (tmp_path / "empty" / "card.md").write_text("my notes")
    with pytest.raises(ReleaseError, match="must be absent or an empty folder"):
        pull(folder_store, named(folder_store, "v1"), tmp_path / "empty")
    assert (tmp_path / "empty" / "card.md").read_text() == "my notes"


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/cron.d/evil", "a/../../evil", "a\\..\\evil", "c:evil", "", ".", "release.json"]
)
def test_no_file_lands_outside_the_folder(folder_store: FolderStore, tmp_path: Path, name: str) -> None:
    record = put_release(folder_store, 1)
    part = record.files["card.md"].model_copy(update={"key": f"releases/{record.id}/{name}"})
    folder_store.put(f"releases/{record.id}/release.json", record.model_copy(update={"files": {name: part}}).to_bytes())
    before = found(tmp_path)
    with pytest.raises(ReleaseError, match="must name files of its own folder alone"):
        pull(folder_store, named(folder_store, record.id), tmp_path / "out")
    assert found(tmp_path) == before


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="ab./\\:\0~ ", min_size=1, max_size=12))
def test_whatever_a_file_is_called_it_is_refused_or_lands_inside(name: str) -> None:
    part = Part(key=f"releases/{release_id(1)}/{name}", sha256="0" * 64, size=1)
    with TemporaryDirectory() as folder:
        store = FolderStore(Path(folder))
        record = put_release(store, 1).model_copy(update={"files": {name: part}})
        store.put(f"releases/{record.id}/release.json", record.to_bytes())
        try:
            recorded(store, Named(record.id, 1))
        except ReleaseError:
            return
    inside = Path(os.path.normpath(Path("/target") / name))
    assert inside.parent == Path("/target")


def test_of_a_pull_that_dies_no_target_is_seen(folder_store: FolderStore, tmp_path: Path) -> None:
    publish(folder_store, 1)
    goal = named(folder_store, "v1")

    def die() -> None:
        raise Died

    for operation in range(1, 6):  # its record, its signature, each file
        with pytest.raises(Died):
            pull(Fated(folder_store.root, operation, event=die), goal, tmp_path / "model")
        assert not (tmp_path / "model").exists()
    pull(folder_store, goal, tmp_path / "model")
    assert found(tmp_path / "model") == MINE


def test_of_eight_at_once_each_ends_with_the_release(folder_store: FolderStore, tmp_path: Path) -> None:
    publish(folder_store, 1)
    goal, refused = named(folder_store, "v1"), []

    def one() -> None:
        try:
            pull(folder_store, goal, tmp_path / "model")
        except (ReleaseError, StoreError) as error:
            refused.append(error)

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused == []
    assert found(tmp_path / "model") == MINE
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_what_was_removed_says_by_whom(folder_store: FolderStore, tmp_path: Path) -> None:
    publish(folder_store, 1)
    publish(folder_store, 2)
    carry_out(
        folder_store,
        plan(folder_store, RetentionConfig(keep_releases=1, keep_ancestors=0), timedelta(0)),
        reason="old",
        by="ana",
    )
    with pytest.raises(ReleaseError, match=r"v1 must be in the store, got none .*; ana removed its weights at .* \(old\)"):
        pull(folder_store, named(folder_store, "v1"), tmp_path / "model")
    assert "ana removed its weights" in problems(folder_store, named(folder_store, "v1"))[0]


def test_a_record_of_another_release_is_found_out(folder_store: FolderStore) -> None:
    one, two = put_release(folder_store, 1), put_release(folder_store, 2)
    folder_store.put(f"releases/{one.id}/release.json", two.to_bytes())
    assert "must be the record of" in problems(folder_store, Named(one.id, 0))[0]


def test_where_a_key_is_named_only_what_it_signed_is_whole_and_pulled(
    folder_store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = pair(tmp_path)
    publish(folder_store, 1)
    publish(folder_store, 2)
    monkeypatch.setenv("EVERFRESH_SIGNING_KEY", str(private))
    sign_release(folder_store, release_id(1))
    monkeypatch.setenv("EVERFRESH_VERIFYING_KEY", str(public))
    pull(folder_store, named(folder_store, "v1"), tmp_path / "model")
    assert found(tmp_path / "model") == {*MINE, "model.sig"}
    assert problems(folder_store, named(folder_store, "v1")) == []
    assert "must have a signature model.sig over its files" in problems(folder_store, named(folder_store, "v2"))[0]
    with pytest.raises(ReleaseError, match=r"must have a signature model\.sig"):
        pull(folder_store, named(folder_store, "v2"), tmp_path / "other")
    assert not (tmp_path / "other").exists()
