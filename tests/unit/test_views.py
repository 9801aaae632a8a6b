"""Views: samples in shards and a manifest, the same bytes wherever they are made."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.pictures import noise

from everfresh.tasks import views
from everfresh.tasks.errors import DigestMismatch, ObjectMissing
from everfresh.tasks.images import examine
from everfresh.tasks.records import Window
from everfresh.tasks.store import FolderStore, Store
from everfresh.tasks.targets import Targets
from everfresh.tasks.views import View, ViewWriter, seeded_choice, split_of


def commit(store: Store, folder: Path, count: int = 6, **changes: Any) -> Window:
    """A view of noise pictures, two of three with a known label."""
    folder.mkdir()
    writer = ViewWriter(folder)
    for number in range(count):
        data = noise(number)
        picture = examine(data)
        label = ("cat", "dog", None)[number % 3]
        split = ("train", "tune", "holdout")[number % 3 - 1]
        fields: dict[str, Any] = {
            "key": f"{number}.png", "digest": picture.digest, "group": picture.group, "label": label, "split": split,
            "timestamp": None, "width": 16, "height": 16, "brightness": 0.5, "contrast": 0.1, "sharpness": 0.1,
            "colourfulness": 0.1, "slices": "{}",
        }  # fmt: skip
        writer.add(data, **{**fields, **changes})
    return writer.commit(store, Targets(("cat", "dog")))


def test_a_view_gives_back_what_was_written(store: Store, tmp_path: Path) -> None:
    window = commit(store, tmp_path / "w")
    view = View(store, window.view)
    assert view.window == window
    assert (window.samples, window.labelled, window.quarantined, window.classes) == (6, 4, 0, {"cat": 2, "dog": 2})
    assert [s.key for s in view.samples] == [f"{n}.png" for n in range(6)]
    assert list(view.read([5, 0, 5])) == [noise(5), noise(0), noise(5)]
    assert list(view.read([])) == []


def test_rows_are_chosen_by_split_and_class(folder_store: FolderStore, tmp_path: Path) -> None:
    view = View(folder_store, commit(folder_store, tmp_path / "w").view)
    assert view.rows().tolist() == [0, 1, 2, 3, 4, 5]
    assert view.rows("holdout").tolist() == [0, 3]
    assert view.rows(known=["dog"]).tolist() == [1, 4]
    assert view.rows("train", ["cat"]).tolist() == []
    assert view.window.splits == {"holdout": 2, "train": 2}


def test_a_label_that_is_no_class_waits(folder_store: FolderStore, tmp_path: Path) -> None:
    window = commit(folder_store, tmp_path / "w", label="cow")
    assert (window.classes, window.pending, window.labelled, window.splits) == ({}, {"cow": 6}, 6, {})


def test_shards_are_plain_archives_of_bounded_size(
    folder_store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "SHARD_BYTES", 3_000)
    window = commit(folder_store, tmp_path / "w", count=9)
    assert len(window.shards) > 2
    members = []
    for part in window.shards:
        with tarfile.open(fileobj=io.BytesIO(folder_store.read(part))) as tar:
            members += [tar.extractfile(member).read() for member in tar]  # type: ignore[union-attr]
    assert members == [noise(n) for n in range(9)]
    assert list(View(folder_store, window.view).read(range(9))) == members


def test_two_runs_elsewhere_write_the_same_bytes(tmp_path: Path) -> None:
    first, second = FolderStore(tmp_path / "a"), FolderStore(tmp_path / "b")
    assert commit(first, tmp_path / "wa") == commit(second, tmp_path / "wb")
    assert {i.key: first.get(i.key) for i in first.list()} == {i.key: second.get(i.key) for i in second.list()}


@pytest.mark.parametrize("change", [{"label": "dog"}, {"split": "train"}, {"digest": "other"}, {"key": "x.png"}])
def test_a_view_is_named_by_its_samples_and_labels(folder_store: FolderStore, tmp_path: Path, change: dict[str, str]) -> None:
    assert commit(folder_store, tmp_path / "a").view != commit(folder_store, tmp_path / "b", **change).view


def test_an_empty_view_is_a_view(store: Store, tmp_path: Path) -> None:
    window = commit(store, tmp_path / "w", count=0)
    assert (window.samples, window.shards, View(store, window.view).samples) == (0, (), [])


def test_a_missing_view_is_named_with_the_remedy(folder_store: FolderStore) -> None:
    with pytest.raises(ObjectMissing, match=r"windows/gone/window\.json.*Restore"):
        View(folder_store, "gone")


def test_a_changed_shard_is_found(store: Store, tmp_path: Path) -> None:
    window = commit(store, tmp_path / "w")
    store.put(window.shards[0].key, b"x" * window.shards[0].size)
    with pytest.raises(DigestMismatch, match="shard-00000"):
        list(View(store, window.view).read([0]))


def test_a_loser_of_a_race_does_not_touch_the_winners_bytes(
    folder_store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two versions of a library may write different manifests of the same samples at the same time."""
    window = commit(folder_store, tmp_path / "winner")
    monkeypatch.setattr(views, "find", lambda *_: None)
    loser = commit(folder_store, tmp_path / "loser", brightness=0.75)
    assert loser == window
    monkeypatch.undo()
    assert View(folder_store, window.view).samples[0].brightness == 0.5


def test_what_was_rejected_stands_beside_the_view_with_its_reason(store: Store, tmp_path: Path) -> None:
    writer = ViewWriter(tmp_path)
    writer.reject("a/bad.jpg", "is empty (0 bytes)", b"")
    writer.reject("a/worse.jpg", "cannot be decoded", b"junk")
    window = writer.commit(store, Targets(("cat",)))
    assert window.quarantined == 2
    lines = store.get(f"quarantine/{window.view}/quarantine.jsonl").decode().splitlines()
    assert [("a/bad.jpg" in lines[0]), ("cannot be decoded" in lines[1])] == [True, True]
    assert sorted(store.get(i.key) for i in store.list(f"quarantine/{window.view}") if not i.key.endswith("l")) == [
        b"",
        b"junk",
    ]


# --- splits ----------------------------------------------------------------------------------------------


@given(group=st.text(max_size=16), seed=st.integers(0, 2**32))
def test_a_group_has_one_split(group: str, seed: int) -> None:
    assert split_of(group, seed, 0.2, 0.1) == split_of(group, seed, 0.2, 0.1)
    assert split_of(group, seed, 1.0, 0.1) == "holdout"


@given(seed=st.integers(0, 2**32), holdout=st.floats(0.05, 0.5), tune=st.floats(0.05, 0.4))
def test_the_splits_have_about_their_shares(seed: int, holdout: float, tune: float) -> None:
    found = Counter(split_of(f"group-{n}", seed, holdout, tune) for n in range(1_000))
    for split, share in (("holdout", holdout), ("tune", tune), ("train", 1 - holdout - tune)):
        assert abs(found[split] / 1_000 - share) < 0.08  # five standard deviations


def test_another_seed_is_another_split() -> None:
    one, two = ([split_of(str(n), seed, 0.3, 0.3) for n in range(50)] for seed in (0, 1))
    assert one != two


@given(count=st.integers(0, 200), most=st.integers(0, 200), seed=st.integers())
def test_a_seeded_choice_is_bounded_sorted_and_repeatable(count: int, most: int, seed: int) -> None:
    chosen = seeded_choice(count, most, seed, "x").tolist()
    assert chosen == seeded_choice(count, most, seed, "x").tolist()
    assert len(chosen) == min(count, most)
    assert chosen == sorted(set(chosen))
    assert all(0 <= index < count for index in chosen)


@pytest.mark.parametrize(("alike", "others", "parted"), [(21, 0, 21), (20, 60, 0), (30, 30, 30), (21, 200, 0)])
def test_a_crowd_of_look_alikes_is_parted_and_a_burst_is_not(tmp_path: Path, alike: int, others: int, parted: int) -> None:
    """A fixed camera's pictures share one difference hash; in one split nothing could be trained or proven."""
    with ViewWriter(tmp_path) as writer:
        for number in range(alike + others):
            group = "same" if number < alike else f"own {number}"
            writer.add(
                b"x", key=f"{number}.png", digest=f"d{number // 2}", group=group, label="cat", split="train", timestamp=None,
                width=1, height=1, brightness=0, contrast=0, sharpness=0, colourfulness=0, slices="{}",
            )  # fmt: skip
    assert writer.part_crowds(lambda group: "holdout" if group == "d1" else "tune") == parted
    changed = [s for s in writer.samples if s.group == s.digest]
    assert len(changed) == parted
    if parted:
        assert [s.split for s in changed[:4]] == ["tune", "tune", "holdout", "holdout"]  # identical ones stay together
