"""Ingest: everything that arrives lands in exactly one window, or in quarantine with the reason."""

from __future__ import annotations

import io
import os
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.pickles import find_pickles
from support.pictures import animated_gif, digits, noise, png_header, write_folder, write_tar
from support.proxy import Fault, at, running_proxy
from support.windows import CLASSES, pictures, pipeline, quarantined, taken

from everfresh.tasks import ingest as module
from everfresh.tasks.config import PipelineConfig, S3Config
from everfresh.tasks.errors import AccessRefused, AccountRefused, DigestMismatch, SourceError, StoreError
from everfresh.tasks.images import examine
from everfresh.tasks.ingest import ingest
from everfresh.tasks.ledger import stream
from everfresh.tasks.store import FolderStore, S3Store, Store, s3
from everfresh.tasks.views import View, ViewWriter

# --- what a window is made of ----------------------------------------------------------------------------


def test_the_folder_that_holds_a_file_is_its_label(store: Store, tmp_path: Path) -> None:
    files = pictures("cat/1.png", "dog/2.png", "deep/er/dog/3.PNG", "cow/4.png", "5.png")
    write_folder(tmp_path / "inbox", {**files, "notes.txt": b"no picture", "cat/.hidden.png": b"x"})
    entry = ingest(store, pipeline(tmp_path / "inbox"))
    assert entry is not None
    assert (entry.seq, entry.previous) == (1, None)
    view = View(store, entry.view)
    assert {s.key: s.label for s in view.samples} == {
        "5.png": None, "cat/1.png": "cat", "cow/4.png": "cow", "deep/er/dog/3.PNG": "dog", "dog/2.png": "dog",
    }  # fmt: skip
    assert (view.window.classes, view.window.pending, view.window.labelled) == ({"cat": 1, "dog": 2}, {"cow": 1}, 4)
    assert dict(zip(taken(store, entry), view.read(view.rows()), strict=True)) == files
    assert find_pickles(store) == []


def test_what_was_measured_stands_in_the_manifest(folder_store: FolderStore, tmp_path: Path) -> None:
    files = digits(3)
    (key, data), *_ = files.items()
    write_folder(tmp_path / "inbox", files)
    entry = ingest(folder_store, pipeline(tmp_path / "inbox"))
    assert entry is not None
    sample = next(s for s in View(folder_store, entry.view).samples if s.key == key)
    picture = examine(data)
    assert (sample.digest, sample.group, sample.width) == (picture.digest, picture.group, 32)
    assert (sample.brightness, sample.colourfulness) == (picture.brightness, picture.colourfulness)


def test_equal_pictures_under_two_keys_are_two_samples_of_one_split(folder_store: FolderStore, tmp_path: Path) -> None:
    data = noise(1)
    write_folder(tmp_path / "inbox", {f"cat/{n}.png": data for n in range(8)})
    entry = ingest(folder_store, pipeline(tmp_path / "inbox"))
    assert entry is not None
    samples = View(folder_store, entry.view).samples
    assert len(samples) == 8
    assert len({s.split for s in samples}) == 1


# --- tar shards ------------------------------------------------------------------------------------------


def test_archives_are_read_in_the_order_named_and_cut_where_the_window_is_full(store: Store, tmp_path: Path) -> None:
    first = write_tar(tmp_path / "z-first.tar", pictures("x/cat/1.png", "x/dog/2.png", "x/readme.txt"))
    second = write_tar(tmp_path / "a-second.tar", pictures("x/cat/3.png", "x/cat/4.png", "x/dog/5.png"))
    config = pipeline({"kind": "shards", "paths": [str(first), str(second)]}, max_samples=3)
    entry = ingest(store, config)
    assert taken(store, entry) == ["z-first.tar/x/cat/1.png", "z-first.tar/x/dog/2.png", "a-second.tar/x/cat/3.png"]
    entry = ingest(store, config)
    assert taken(store, entry) == ["a-second.tar/x/cat/4.png", "a-second.tar/x/dog/5.png"]
    assert entry is not None
    assert [s.label for s in View(store, entry.view).samples] == ["cat", "dog"]
    assert ingest(store, config) is None


@pytest.mark.parametrize("order", ["key", "shuffled"])
def test_a_folder_of_archives_is_read_archive_by_archive(folder_store: FolderStore, tmp_path: Path, order: str) -> None:
    for name in "bac":
        write_tar(tmp_path / f"in/{name}.tar", pictures(*(f"cat/{name}{n}.png" for n in range(6))))
    config = pipeline({"kind": "shards", "paths": [str(tmp_path / "in")]}, order=order)
    found = taken(folder_store, ingest(folder_store, config))
    assert [key[0] for key in found] == ["a"] * 6 + ["b"] * 6 + ["c"] * 6
    assert (found == sorted(found)) is (order == "key")


def test_an_archive_of_which_all_was_taken_is_not_opened_again(
    folder_store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "in/a.tar", pictures("cat/1.png"))
    config = pipeline({"kind": "shards", "paths": [str(tmp_path / "in")]})
    ingest(folder_store, config)
    write_tar(tmp_path / "in/b.tar", pictures("cat/2.png"))
    opened: list[str] = []
    original = module.Source.local
    monkeypatch.setattr(module.Source, "local", lambda *args: opened.append(args[2].key) or original(*args))
    assert taken(folder_store, ingest(folder_store, config)) == ["b.tar/cat/2.png"]
    assert opened == ["b.tar"]


def test_a_file_at_the_top_of_an_archive_has_no_label(folder_store: FolderStore, tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar", pictures("1.png"))
    entry = ingest(folder_store, pipeline({"kind": "shards", "paths": [str(archive)]}))
    assert entry is not None
    assert View(folder_store, entry.view).samples[0].label is None


def test_of_a_member_written_twice_the_last_counts(folder_store: FolderStore, tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar", [("cat/1.png", noise(1)), ("cat/1.png", noise(2))])
    entry = ingest(folder_store, pipeline({"kind": "shards", "paths": [str(archive)]}))
    assert entry is not None
    view = View(folder_store, entry.view)
    assert list(view.read(view.rows())) == [noise(2)]


def test_archives_are_read_from_s3(s3_store: S3Store, tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar", pictures("cat/1.png", "dog/2.png"))
    s3_store.put_file("in/a.tar", archive)
    for number, path in enumerate([s3_store.url("in"), s3_store.url("in/a.tar")]):
        store = s3_store.sub(f"store-{number}")
        assert taken(store, ingest(store, pipeline({"kind": "shards", "paths": [path]}))) == [
            "a.tar/cat/1.png",
            "a.tar/dog/2.png",
        ]


@pytest.mark.parametrize("trouble", ["truncated", "text", "gzip"])
def test_an_archive_that_cannot_be_read_stops_with_the_reason(folder_store: FolderStore, tmp_path: Path, trouble: str) -> None:
    archive = write_tar(tmp_path / "bad.tar", pictures("cat/1.png", "cat/2.png"), "w:gz" if trouble == "gzip" else "w")
    if trouble != "gzip":
        archive.write_bytes(archive.read_bytes()[:1_300] if trouble == "truncated" else b"just text" * 100)
    with pytest.raises(SourceError, match=r"bad\.tar is not a readable, uncompressed tar archive"):
        ingest(folder_store, pipeline({"kind": "shards", "paths": [str(archive)]}))


def test_two_archives_of_one_name_are_refused(folder_store: FolderStore, tmp_path: Path) -> None:
    paths = [str(write_tar(tmp_path / f"{d}/part.tar", pictures("cat/1.png"))) for d in "ab"]
    with pytest.raises(SourceError, match=r"names must differ between the paths, got part\.tar twice"):
        ingest(folder_store, pipeline({"kind": "shards", "paths": paths}))


# --- only what is new ------------------------------------------------------------------------------------


def test_a_second_window_holds_only_what_is_new(store: Store, tmp_path: Path) -> None:
    inbox = write_folder(tmp_path / "inbox", pictures("cat/2.png", "dog/1.png"))
    config = pipeline(inbox)
    first = ingest(store, config)
    assert ingest(store, config) is None
    write_folder(inbox, pictures("cat/1.png"))
    second = ingest(store, config)
    assert taken(store, second) == ["cat/1.png"]
    assert first is not None
    assert second is not None
    assert (second.seq, second.previous) == (2, first.view)
    assert ingest(store, config) is None


def test_a_file_that_changed_is_new_and_one_that_went_is_not_missed(folder_store: FolderStore, tmp_path: Path) -> None:
    inbox = write_folder(tmp_path / "inbox", pictures("cat/1.png", "cat/2.png"))
    ingest(folder_store, pipeline(inbox))
    write_folder(inbox, {"cat/1.png": noise(77, 20)})
    (inbox / "cat/2.png").unlink()
    assert taken(folder_store, ingest(folder_store, pipeline(inbox))) == ["cat/1.png"]


def test_a_window_waits_for_enough_files(folder_store: FolderStore, tmp_path: Path) -> None:
    inbox = write_folder(tmp_path / "inbox", pictures("cat/1.png", "cat/2.png"))
    config = pipeline(inbox, min_samples=3)
    assert ingest(folder_store, config) is None
    write_folder(inbox, pictures("cat/3.png"))
    assert len(taken(folder_store, ingest(folder_store, config))) == 3


def test_an_empty_source_makes_no_window(store: Store, tmp_path: Path) -> None:
    assert ingest(store, pipeline(write_folder(tmp_path / "inbox", {}))) is None
    assert list(store.list()) == []


def test_a_source_that_is_not_there_is_named(folder_store: FolderStore, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"must be a folder that exists, got .*nowhere"):
        ingest(folder_store, pipeline(tmp_path / "nowhere"))


def test_a_source_in_a_missing_bucket_is_named(folder_store: FolderStore, s3_endpoint: str) -> None:
    with pytest.raises(SourceError, match=r"s3://no-bucket-here/x cannot be listed"):
        ingest(folder_store, pipeline({"kind": "folder", "path": "s3://no-bucket-here/x"}))


def test_a_name_that_is_no_text_is_named(folder_store: FolderStore, tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path / "inbox") + b"/caf\xe9.png")).write_bytes(noise(1))
    with pytest.raises(SourceError, match=r"must be UTF-8, got 'caf\\udce9\.png'"):
        ingest(folder_store, pipeline(tmp_path / "inbox"))


def test_an_ordered_source_is_read_on_from_the_last_key(store: Store, tmp_path: Path) -> None:
    inbox = write_folder(tmp_path / "inbox", pictures("cat/1.png", "cat/2.png", "cat/3.png"))
    config = pipeline({"kind": "folder", "path": str(inbox), "ordered": True}, max_samples=2)
    assert taken(store, ingest(store, config)) == ["cat/1.png", "cat/2.png"]
    entry = ingest(store, config)
    assert taken(store, entry) == ["cat/3.png"]
    assert entry is not None
    assert (entry.cursor_after.index, entry.cursor_after.last_key) == (None, "cat/3.png")
    assert ingest(store, config) is None
    write_folder(inbox, pictures("cat/4.png"))
    assert taken(store, ingest(store, config)) == ["cat/4.png"]


@pytest.mark.parametrize("order", ["key", "modified", "shuffled"])
def test_the_order_decides_which_files_wait(folder_store: FolderStore, tmp_path: Path, order: str) -> None:
    inbox = write_folder(tmp_path / "inbox", pictures(*(f"cat/{n}.png" for n in range(8))))
    for n in range(8):
        os.utime(inbox / f"cat/{n}.png", (1_000_000 - n, 1_000_000 - n))
    config = pipeline(inbox, order=order, max_samples=3)
    found = [taken(folder_store, ingest(folder_store, config)) for _ in range(3)]
    numbers = [int(Path(key).stem) for window in found for key in window]
    assert sorted(numbers) == list(range(8))
    expected = {"key": list(range(8)), "modified": list(range(7, -1, -1))}.get(order)
    assert numbers == expected if expected else numbers != sorted(numbers)


@pytest.mark.parametrize("order", ["key", "modified", "shuffled"])
def test_dates_of_files_lose_and_repeat_nothing(folder_store: FolderStore, tmp_path: Path, order: str) -> None:
    config = pipeline(write_folder(tmp_path / "inbox", {}), order=order, max_samples=2)
    found: list[str] = []
    for number, date in enumerate([1_700_000_000, 0, 4_000_000_000, -1_000_000_000, 1_700_000_000 - 3_600, 0]):
        key = f"cat/{number}.png"
        write_folder(tmp_path / "inbox", pictures(key, f"dog/{number}.png"))
        os.utime(tmp_path / "inbox" / key, (date, date))  # before, or long after, what has been taken already
        found += taken(folder_store, ingest(folder_store, config))
    assert sorted(found) == sorted(f"{label}/{number}.png" for label in CLASSES for number in range(6))
    assert ingest(folder_store, config) is None


# --- quarantine ------------------------------------------------------------------------------------------

BAD = {
    "cat/truncated.jpg": (noise(1, 64, "jpeg")[:-400], "cannot be decoded"),
    "cat/empty.png": (b"", "is empty (0 bytes)"),
    "cat/text.jpg": (b"these are words", "is not a picture in a known format"),
    "cat/animated.gif": (animated_gif(), "holds 3 pictures (animated, or several pages)"),
    "cat/bomb.png": (png_header(60_000, 60_000), "pixels"),
}


def test_bad_files_go_into_quarantine_and_good_ones_stay(store: Store, tmp_path: Path) -> None:
    bad = {key: data for key, (data, _) in BAD.items()}
    write_folder(tmp_path / "inbox", {**bad, **pictures("cat/1.png", "dog/2.png")})
    entry = ingest(store, pipeline(tmp_path / "inbox"))
    assert taken(store, entry) == ["cat/1.png", "dog/2.png"]
    found = quarantined(store, entry)
    assert set(found) == set(BAD)
    assert all(reason in found[key] for key, (_, reason) in BAD.items())
    assert entry is not None
    kept = [store.get(i.key) for i in store.list(f"quarantine/{entry.view}") if not i.key.endswith(".jsonl")]
    assert sorted(kept) == sorted(bad.values())


def test_a_window_of_only_bad_files_still_moves_on(folder_store: FolderStore, tmp_path: Path) -> None:
    inbox = write_folder(tmp_path / "inbox", {"cat/1.png": b"junk"})
    entry = ingest(folder_store, pipeline(inbox))
    assert taken(folder_store, entry) == []
    assert quarantined(folder_store, entry) == {"cat/1.png": "is not a picture in a known format"}
    assert ingest(folder_store, pipeline(inbox)) is None


def test_a_file_too_large_is_not_read(folder_store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everfresh.tasks.sources.MAX_BYTES", 100)
    entry = ingest(folder_store, pipeline(write_folder(tmp_path / "inbox", pictures("cat/1.png"))))
    assert "more than 100" in quarantined(folder_store, entry)["cat/1.png"]


def test_a_file_that_vanishes_before_it_is_read_is_told(
    folder_store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = write_folder(tmp_path / "inbox", pictures("cat/1.png", "cat/2.png"))
    original = module.Source.annotations

    def annotations(source: module.Source) -> Any:
        (inbox / "cat/1.png").unlink()
        return original(source)

    monkeypatch.setattr(module.Source, "annotations", annotations)
    entry = ingest(folder_store, pipeline(inbox))
    assert taken(folder_store, entry) == ["cat/2.png"]
    assert quarantined(folder_store, entry) == {"cat/1.png": "vanished between listing and reading"}


# --- the same window everywhere --------------------------------------------------------------------------


def test_a_window_has_one_name_and_one_content_wherever_and_whenever_it_is_made(s3_store: S3Store, tmp_path: Path) -> None:
    files = {**pictures("cat/1.png", "dog/a-2.png", "dog/a/3.png", "cow/4.png"), "cat/bad.png": b"junk"}
    write_folder(tmp_path / "one/inbox", files)
    os.utime(write_folder(tmp_path / "two/inbox", files) / "cat/1.png", (1, 1))
    for key, data in files.items():
        s3_store.put(f"inbox/{key}", data)
    remote = {"kind": "folder", "path": s3_store.url("inbox")}
    places: list[tuple[Store, PipelineConfig]] = [
        (FolderStore(tmp_path / "store-1"), pipeline(tmp_path / "one/inbox")),
        (FolderStore(tmp_path / "store-2"), pipeline(tmp_path / "two/inbox")),
        (s3_store.sub("store-3"), pipeline(tmp_path / "one/inbox")),
        (s3_store.sub("store-4"), pipeline(remote)),
    ]
    windows = []
    for store, config in places:
        entry = ingest(store, config)
        assert entry is not None
        windows.append(View(store, entry.view).window)
    assert all(window == windows[0] for window in windows)


# --- crashes and races -----------------------------------------------------------------------------------


class Crash(Exception):
    """The machine goes away."""


@pytest.mark.parametrize("where", ["examine", "commit", "cursor", "append"])
def test_a_crash_before_the_stream_entry_loses_and_repeats_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    inbox = write_folder(tmp_path / "inbox", pictures("cat/1.png", "dog/2.png"))
    ingest(store, pipeline(inbox))
    write_folder(inbox, pictures("cat/3.png", "dog/4.png"))
    calls = 0

    def crash(*_: object, **__: object) -> None:
        nonlocal calls
        calls += 1
        if where != "examine" or calls == 2:
            raise Crash

    original = module.examine
    target = {"commit": "ViewWriter.commit", "cursor": "_cursor", "append": "Log.append", "examine": "examine"}[where]
    with monkeypatch.context() as patch:
        if where == "append":
            patch.setattr("everfresh.tasks.ledger.Log.append", crash)
        elif where == "examine":
            patch.setattr(module, "examine", lambda data: crash() or original(data))
        else:
            patch.setattr(f"everfresh.tasks.ingest.{target}", crash)
        with pytest.raises(Crash):
            ingest(store, pipeline(inbox))
    assert stream(store).last_seq() == 1
    assert taken(store, ingest(store, pipeline(inbox))) == ["cat/3.png", "dog/4.png"]
    assert ingest(store, pipeline(inbox)) is None


def test_of_two_ingesters_exactly_one_commits_a_sequence(store: Store, tmp_path: Path) -> None:
    inbox = write_folder(tmp_path / "inbox", pictures("cat/1.png", "cat/2.png", "dog/3.png"))
    config = pipeline(inbox)
    barrier = threading.Barrier(2)
    original = module.Source.annotations

    def together(source: module.Source) -> Any:
        barrier.wait(timeout=30)
        return original(source)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(module.Source, "annotations", together)
        first, second = pool.map(lambda _: ingest(store, config), range(2))
    assert first == second
    assert [entry.seq for entry in stream(store)] == [1]
    assert ingest(store, config) is None


def test_a_store_that_fails_leaves_no_half_window(
    folder_store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = write_folder(tmp_path / "inbox", pictures("cat/1.png"))

    def full(*_: object) -> None:
        raise StoreError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "put_file", full)
        with pytest.raises(StoreError, match="disk full"):
            ingest(folder_store, pipeline(inbox))
    assert [i.key for i in folder_store.list() if i.key.endswith(".json")] == []
    assert taken(folder_store, ingest(folder_store, pipeline(inbox))) == ["cat/1.png"]


# --- the property all rests on ---------------------------------------------------------------------------

ARRIVALS = st.lists(
    st.one_of(st.just(None), st.tuples(st.integers(0, 9), st.integers(1, 5))), min_size=1, max_size=14
)  # a tick, or file n arrives with content c


@settings(max_examples=40, deadline=None)
@given(
    arrivals=ARRIVALS,
    least=st.integers(1, 3),
    most=st.integers(3, 5),
    order=st.sampled_from(["key", "modified", "shuffled"]),
)
def test_every_version_of_every_file_that_a_tick_can_see_lands_in_exactly_one_window(
    arrivals: list[tuple[int, int] | None], least: int, most: int, order: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        inbox, store = Path(folder) / "inbox", FolderStore(Path(folder) / "store")
        config = pipeline(write_folder(inbox, {}), min_samples=least, max_samples=most, order=order)
        waiting: set[tuple[str, bytes]] = set()
        now: dict[str, bytes] = {}
        landed: list[tuple[str, bytes]] = []
        for clock, arrival in enumerate([*arrivals, None, None, None, None, None]):
            if arrival is not None:
                key, data = f"cat/{arrival[0]}.png", noise(arrival[0] * 10 + arrival[1], 4 + arrival[1])
                if now.get(key) == data:
                    continue
                waiting.discard((key, now.get(key, b"")))  # overwritten before it was seen
                waiting.add((key, data))
                now[key] = data
                write_folder(inbox, {key: data})
                os.utime(inbox / key, (clock, clock))
                continue
            entry = ingest(store, config)
            if entry is None:
                assert len(waiting) < least
                continue
            view = View(store, entry.view)
            window = list(zip([s.key for s in view.samples], view.read(view.rows()), strict=True))
            assert least <= len(window) <= most
            assert set(window) <= waiting
            waiting -= set(window)
            landed += window
        assert len(waiting) < least
        assert [entry.seq for entry in stream(store)] == list(range(1, stream(store).last_seq() + 1))


def test_pictures_of_a_fixed_camera_are_split(
    folder_store: FolderStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    scene = np.tile(np.linspace(0, 255, 64), (64, 1))
    for number in range(60):
        shot = np.clip(scene + rng.normal(0, 3, scene.shape), 0, 255).astype(np.uint8)
        path = tmp_path / "inbox" / CLASSES[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(shot).save(path)
    with caplog.at_level("WARNING"):
        entry = ingest(folder_store, pipeline(tmp_path / "inbox"))
    assert entry is not None
    assert len({examine(p.read_bytes()).group for p in (tmp_path / "inbox").rglob("*.png")}) == 1
    splits = View(folder_store, entry.view).window.splits
    assert set(splits) == {"train", "tune", "holdout"}
    assert "60 pictures look alike" in caplog.text


def refuse(monkeypatch: pytest.MonkeyPatch, *keys: str) -> None:
    """The source does not let these files be read."""
    read = Path.read_bytes

    def refused(self: Path) -> bytes:
        if self.name in keys:
            raise PermissionError(13, "Permission denied", str(self))
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", refused)


def test_a_file_that_may_not_be_read_waits_and_the_others_go_on(
    folder_store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_folder(tmp_path / "in", pictures("cat/a.png", "cat/b.png", "dog/c.png"))
    with monkeypatch.context() as patch:
        refuse(patch, "b.png")
        assert taken(folder_store, ingest(folder_store, pipeline(tmp_path / "in"))) == ["cat/a.png", "dog/c.png"]
        assert "cat/b.png waits until it can be read" in caplog.text
        with pytest.raises(SourceError, match=r"new files must be readable, got 1 of which none is, cat/b.png among them"):
            ingest(folder_store, pipeline(tmp_path / "in"))
    assert taken(folder_store, ingest(folder_store, pipeline(tmp_path / "in"))) == ["cat/b.png"]
    assert ingest(folder_store, pipeline(tmp_path / "in")) is None


def test_where_keys_grow_a_file_that_may_not_be_read_is_not_left_behind(
    folder_store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "in", pictures("cat/a.png", "cat/b.png"))
    refuse(monkeypatch, "a.png")
    source = {"kind": "folder", "path": str(tmp_path / "in"), "ordered": True}
    with pytest.raises(AccessRefused, match=r"cannot read .*a\.png \(Permission denied\)"):
        ingest(folder_store, pipeline(source, order="key"))
    assert stream(folder_store).last() is None


def test_files_that_may_not_be_read_take_no_place_of_those_that_may(
    folder_store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"a/{n}.png" for n in range(5)] + [f"cat/{n}.png" for n in range(7)]
    write_folder(tmp_path / "in", pictures(*names))
    config = pipeline(tmp_path / "in", max_samples=5, min_samples=5, order="key")
    get = FolderStore.get

    def refusing(store: FolderStore, key: str) -> bytes:
        if key.startswith("a/"):
            raise AccessRefused(f"store: cannot read {key} (Permission denied).")
        return get(store, key)

    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "get", refusing)
        assert taken(folder_store, ingest(folder_store, config)) == names[5:10]
        assert ingest(folder_store, config) is None  # 2 that can be read are no window of 5
    assert "a/4.png waits until it can be read" in caplog.text
    assert taken(folder_store, ingest(folder_store, config)) == names[:5]


@pytest.mark.parametrize(("fault", "remedy"), [("400 expired", "Renew them"), ("403 skewed", "Set this machine's clock")])
def test_what_is_refused_to_all_is_told_as_such_and_not_of_each_file(
    folder_store: FolderStore, s3_store: S3Store, fault: Fault, remedy: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Credentials that expire amid a source: the window is not made of what came before."""
    for key, data in pictures(*(f"cat/{n}.png" for n in range(6))).items():
        s3_store.put(key, data)
    with running_proxy(str(s3.client(S3Config()).meta.endpoint_url)) as proxy:
        direct = pipeline({"kind": "folder", "path": s3_store.url("")})
        config = direct.model_copy(update={"s3": S3Config(endpoint=proxy.endpoint, max_attempts=1)})
        with proxy.injecting(at(fault, nth=4, times=99, method="GET", path=".png")):
            words = rf"get_object on s3://.*/cat/3\.png was refused .*{remedy}"
            with pytest.raises(AccountRefused, match=words):
                ingest(folder_store, config)
        s3.client(config.s3).close()
        assert (stream(folder_store).last(), "waits until" in caplog.text) == (None, False)
        assert len(taken(folder_store, ingest(folder_store, direct))) == 6


def test_a_full_disk_of_temporary_files_is_told_with_its_remedy(
    folder_store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "in", pictures("cat/a.png"))

    def full(writer: ViewWriter) -> Any:
        writer._file = Path("/dev/full").open("wb")  # noqa: SIM115 - the writer closes it
        return writer._file

    monkeypatch.setattr(ViewWriter, "_next_shard", full)
    words = rf"must have room, got none in {tempfile.gettempdir()} \(No space left on device\)\. Free some there, or set TMPDIR"
    with pytest.raises(StoreError, match=words):
        ingest(folder_store, pipeline(tmp_path / "in"))
    assert list(folder_store.list()) == []


def test_bytes_in_quarantine_are_proven_as_others_are(
    folder_store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "in", {"cat/bad.png": b"no picture"})
    replace = FolderStore._replace

    def lossy(store: FolderStore, key: str, content: Any) -> None:
        data = content.read()
        replace(store, key, io.BytesIO(data[:-1] if key.startswith("quarantine/") else data))

    monkeypatch.setattr(FolderStore, "_replace", lossy)
    with pytest.raises(DigestMismatch, match="quarantine/"):
        ingest(folder_store, pipeline(tmp_path / "in"))
    assert stream(folder_store).last() is None
