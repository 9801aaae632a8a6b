"""The log of predictions: never in the service's way, never half, and each of them in one window, once."""

from __future__ import annotations

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support import tables
from support.pictures import noise
from support.proxy import always, running_proxy
from support.served import said
from support.small import in_memory
from support.windows import pipeline, quarantined, taken

from everfresh.flows.check import check
from everfresh.tasks.config import PipelineConfig, S3Config, parse_config
from everfresh.tasks.errors import DataError, SourceError
from everfresh.tasks.ingest import ingest
from everfresh.tasks.ledger import stream
from everfresh.tasks.predictions import (
    TABLE,
    Logged,
    labels_key,
    newest_labels,
    pack,
    pack_labels,
    prediction_id,
    rows_in,
    shard_key,
    shard_of,
)
from everfresh.tasks.serving import PredictionLog
from everfresh.tasks.store import FolderStore, S3Store, Store, cache_folder
from everfresh.tasks.views import View

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SHARDS = [f"20260301T12000{n}Z-{n:012x}" for n in range(3)]


def reading(place: str, **source: Any) -> PipelineConfig:
    """A pipeline of cats and dogs that reads a log."""
    return pipeline({"kind": "predictions", "path": place, "label_wait_hours": 0, **source})


# --- what stands in the store ----------------------------------------------------------------------------


@given(
    st.lists(st.binary(max_size=200), min_size=1, max_size=5),
    st.text(max_size=20),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
)
def test_a_shard_gives_back_what_was_packed(contents: list[bytes], prediction: str, slices: dict[str, str]) -> None:
    logged = [
        Logged(prediction_id(SHARDS[0], number), data, NOW, prediction, 0.5, "r", 1, slices)
        for number, data in enumerate(contents)
    ]
    with tarfile.open(fileobj=io.BytesIO(pack(logged)), mode="r:") as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    rows = rows_in(files.pop(TABLE), TABLE)
    assert [files[row["member"]] for row in rows] == contents
    assert [(row["id"], row["prediction"], row["slices"]) for row in rows] == [(i.id, prediction, slices) for i in logged]
    assert {shard_of(row["id"]) for row in rows} == {SHARDS[0]}


given_labels = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(["cat", "dog", "bird"]), st.integers(0, 5)), min_size=1, max_size=20
)


@given(given_labels, st.lists(st.integers(0, 20)), st.randoms())
def test_the_newest_label_counts_in_whatever_order_and_however_often_they_come(
    labels: list[tuple[int, str, int]], cuts: list[int], draw: Any
) -> None:
    lines = [(prediction_id(SHARDS[0], n), label, NOW + timedelta(seconds=s)) for n, label, s in labels]
    edges = sorted({0, len(lines), *(cut % len(lines) for cut in cuts)})
    objects = [(f"{n}.jsonl", pack_labels(lines[a:b])) for n, (a, b) in enumerate(itertools.pairwise(edges))]
    found = newest_labels(objects)
    shuffled = [*objects, draw.choice(objects)]
    draw.shuffle(shuffled)
    assert newest_labels(shuffled) == found
    last = max(second for _, _, second in labels)
    for number, label, second in labels:
        if second == last:  # among equal times the place decides, the same each time
            at_last = {text for n, text, s in labels if (n, s) == (number, last)}
            assert found[prediction_id(SHARDS[0], number)] in at_last
            assert label in at_last
    assert found.keys() == {identity for identity, _, _ in lines}


@given(st.text())
def test_an_id_is_one_that_was_given_or_refused(text: str) -> None:
    with pytest.raises(DataError, match="must be one that log"):
        shard_of(text)


@given(st.binary(max_size=80) | st.sampled_from([b"[]", b"7", b"null", b'{"id": 3}', b'{"id": "x", "at": 1}']))
def test_a_damaged_line_is_named(data: bytes) -> None:
    good = pack_labels([(prediction_id(SHARDS[0], 0), "cat", NOW)])
    if not data.strip(b"\n"):
        assert len(rows_in(good + data, "l.jsonl")) == 1
        return
    with pytest.raises(SourceError, match=r"line \d+ of l\.jsonl must be a JSON object with id and at"):
        rows_in(good + data, "l.jsonl")


def taken_view(store: Store, config: PipelineConfig) -> str:
    """The view of the next window."""
    entry = ingest(store, config)
    assert entry is not None
    return entry.view


# --- writing ---------------------------------------------------------------------------------------------


def test_what_is_logged_becomes_samples(store: Store) -> None:
    pictures = [noise(n) for n in range(3)]
    with PredictionLog(store.url("log")) as log:
        ids = log.log(pictures, said(3), slices=[{"site": "a"}, {"site": "b"}, {}])
        log.label(ids[1] or "", "dog")
        log.label(ids[0] or "", "dog")
        log.label(ids[0] or "", "cat")
    assert (log.written, log.labels_written, log.dropped, log.waiting_bytes, log.last_error) == (3, 3, 0, 0, None)
    entry = ingest(store.sub("p"), config := reading(store.url("log"), slice_columns=["release", "site"]))
    assert entry is not None
    view = View(store.sub("p"), entry.view)
    assert list(view.read(view.rows())) == pictures
    assert [s.label for s in view.samples] == ["cat", "dog", None]
    assert [s.slices for s in view.samples] == [
        '{"release": "v3", "site": "a"}',
        '{"release": "v3", "site": "b"}',
        '{"release": "v3"}',
    ]
    assert all(abs(s.timestamp - datetime.now(UTC)) < timedelta(minutes=5) for s in view.samples)
    assert ingest(store.sub("p"), config) is None


def test_opened_pictures_and_tensors_are_logged_as_png(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    with PredictionLog(tmp_path / "log") as log:
        log.log([Image.fromarray(pixels)], said(1))
        log.log(torch.from_numpy(pixels).movedim(-1, 0)[None], said(1))  # type: ignore[arg-type]
    entry = ingest(store.sub("p"), reading(str(tmp_path / "log")))
    assert entry is not None
    view = View(store.sub("p"), entry.view)
    assert all(np.array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels) for data in view.read(view.rows()))


class Unpacked(Image.Image):
    """A picture that must not be encoded."""

    def save(self, *_: Any, **__: Any) -> None:
        raise AssertionError


def test_a_picture_that_there_is_no_room_for_is_not_encoded(tmp_path: Path) -> None:
    picture = Image.new("RGB", (100, 100))
    with PredictionLog(tmp_path / "log", most_bytes=30_000) as log:
        costly = Image.new("RGB", (100, 100))
        costly.__class__ = Unpacked
        tensor = torch.zeros(3, 100, 101, dtype=torch.uint8)
        assert log.log([costly, tensor], said(2)) == [None, None]
        assert log.dropped == 2
        assert log.log([picture.resize((90, 90)), b"x"], said(2)).count(None) == 0


@pytest.mark.parametrize("slices", [None, [{}]])
def test_numbers_that_differ_are_refused(tmp_path: Path, slices: Any) -> None:
    with pytest.raises(DataError, match="must be as many, got 2, "):
        PredictionLog(tmp_path).log([b"1", b"2"], said(2 if slices else 1), slices=slices)


@pytest.mark.parametrize("label", [None, {"a": 1}, [None]])
def test_what_is_no_label_is_refused(tmp_path: Path, label: Any) -> None:
    with pytest.raises(DataError, match="a label must be a text, a number or a list of such, got"):
        PredictionLog(tmp_path).label(prediction_id(SHARDS[0], 0), label)


@pytest.mark.parametrize("seven", [7, 7.0, np.int64(7), np.float32(7), torch.tensor(7), "7", [7], [7.0]])
def test_a_class_that_is_a_whole_number_is_that_class(tmp_path: Path, seven: Any) -> None:
    with PredictionLog(tmp_path / "log") as log:
        log.label(log.log([noise(0)], said(1))[0] or "", seven)
    config = reading(str(tmp_path / "log"))
    model = {"classes": ("7", "8")} | ({"task": "multi_label"} if isinstance(seven, list) else {})
    config = config.model_copy(update={"model": config.model.model_copy(update=model)})
    view = View(store := FolderStore(tmp_path / "store"), taken_view(store, config))
    assert ([s.label for s in view.samples], view.window.pending) == (["7"], {})


def test_a_full_shard_is_written_at_once(tmp_path: Path) -> None:
    with PredictionLog(tmp_path, flush_every=60, shard_bytes=1_000) as log:
        log.log([b"x" * 600] * 4, said(4))
        until = time.monotonic() + 30
        while log.written < 4 and time.monotonic() < until:
            time.sleep(0.01)
        assert log.written == 4
        assert len(list(FolderStore(tmp_path).list("predictions"))) == 2


def test_memory_is_bounded_and_what_is_dropped_is_counted_while_the_store_is_down(s3_endpoint: str, s3_store: S3Store) -> None:
    with running_proxy(s3_endpoint) as proxy:
        s3 = S3Config(endpoint=proxy.endpoint, connect_timeout=1, read_timeout=1, max_attempts=1)
        log = PredictionLog(s3_store.url("log"), s3=s3, flush_every=0.05, most_bytes=10_000)
        with proxy.injecting(always("reset")):
            begun = time.monotonic()
            ids = [identity for _ in range(50) for identity in log.log([noise(1)], said(1))]
            assert time.monotonic() - begun < 5
            assert not log.flush()
        assert log.waiting_bytes <= 10_000
        assert log.last_error is not None
        assert log.dropped == ids.count(None) > 0
        while not log.label(next(i for i in ids if i), "cat"):
            log.flush()
        log.close()
    assert log.written == 50 - log.dropped
    assert (log.labels_written, log.waiting_bytes, log.last_error) == (1, 0, None)
    entry = ingest(s3_store.sub("p"), reading(s3_store.url("log")))
    assert len(taken(s3_store.sub("p"), entry)) == log.written


class Gated(FolderStore):
    """A store that takes an object once it is let."""

    let = threading.Event()

    def create(self, key: str, data: bytes) -> bool:
        self.let.wait(30)
        return super().create(key, data)


def test_who_logs_while_it_is_closed_begins_again(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path, flush_every=60)
    log._store = store = Gated(tmp_path)
    log.log([b"x"], said(1))
    closing = threading.Thread(target=log.close, daemon=True)
    closing.start()
    while log._thread is not None:
        time.sleep(0.01)
    log.log([b"y"], said(1))
    store.let.set()
    closing.join(5)
    assert not closing.is_alive()
    log.log([b"z"], said(1))
    assert log._thread is not None
    assert log._thread.is_alive()
    log.close()
    assert (log.written, log.waiting_bytes) == (3, 0)


def test_a_process_that_is_killed_loses_its_buffer_at_most(tmp_path: Path) -> None:
    code = f"""
from support.pictures import noise
from support.served import said
from everfresh.tasks.serving import PredictionLog
log = PredictionLog({str(tmp_path / "log")!r}, flush_every=60)
log.log([noise(n) for n in range(20)], said(20))
log.flush()
print("written", flush=True)
while True:
    log.log([noise(n) for n in range(20)], said(20))
    log.flush()
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    entry = ingest(store := FolderStore(tmp_path / "store"), reading(str(tmp_path / "log")))
    assert entry is not None
    samples = taken(store, entry)
    assert len(samples) >= 20
    assert len(samples) % 20 == 0
    assert quarantined(store, entry) == {}


def test_workers_that_a_process_forks_write_logs_of_their_own(tmp_path: Path) -> None:
    code = f"""
import os
from support.pictures import noise
from support.served import said
from everfresh.tasks.serving import PredictionLog
log = PredictionLog({str(tmp_path / "log")!r}, flush_every=60)
log.log([noise(0)], said(1))
child = os.fork()
with log:
    log.log([noise(1 if child else 2)], said(1))
if child:
    os.waitpid(child, 0)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, check=True)
    entry = ingest(store := FolderStore(tmp_path / "store"), reading(str(tmp_path / "log")))
    assert entry is not None
    view = View(store, entry.view)
    assert sorted(view.read(view.rows())) == sorted(map(noise, range(3)))


# --- reading ---------------------------------------------------------------------------------------------


def write_shard(store: Store, shard: str, count: int) -> list[str]:
    """A shard of `count` pictures in the log; their ids."""
    logged = [
        Logged(prediction_id(shard, n), noise(SHARDS.index(shard) * 100 + n), NOW, "cat", 0.9, "r", 1) for n in range(count)
    ]
    store.create(f"log/{shard_key(shard)}", pack(logged))
    return [item.id for item in logged]


def write_labels(store: Store, labels: Sequence[tuple[str, str]], second: int = 0) -> None:
    """Labels for predictions of one shard, given at some second."""
    at = NOW + timedelta(seconds=second)
    store.create(f"log/{labels_key(shard_of(labels[0][0]), at)}", pack_labels((i, label, at) for i, label in labels))


def test_a_shard_waits_until_each_has_a_label(store: Store) -> None:
    config = reading(store.url("log"), label_wait_hours=1)
    ids = write_shard(store, SHARDS[0], 2)
    others = write_shard(store, SHARDS[1], 1)
    write_labels(store, [(ids[0], "cat")])
    assert ingest(store.sub("p"), config) is None
    write_labels(store, [(others[0], "dog")])
    assert ingest(store.sub("p"), config) is None  # what is labelled fast does not become the window
    write_labels(store, [(ids[1], "dog"), (ids[0], "dog")], second=1)
    write_shard(store, SHARDS[2], 1)
    entry = ingest(store.sub("p"), config)
    assert entry is not None
    assert [s.label for s in View(store.sub("p"), entry.view).samples] == ["dog", "dog", "dog"]
    assert ingest(store.sub("p"), config) is None
    write_labels(store, [(ids[1], "cat")], second=2)
    assert ingest(store.sub("p"), config) is None


def test_a_shard_is_taken_without_labels_once_the_wait_is_over(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    config = reading(store.url("log"), label_wait_hours=1)
    write_shard(store, SHARDS[0], 2)
    write_shard(store, SHARDS[1], 2)
    hour_ago = time.time() - 3_601
    os.utime(tmp_path / "log" / shard_key(SHARDS[0]), (hour_ago, hour_ago))
    entry = ingest(store.sub("p"), config)
    assert len(taken(store.sub("p"), entry)) == 2
    os.utime(tmp_path / "log" / shard_key(SHARDS[1]), (hour_ago, hour_ago + 1))
    assert len(taken(store.sub("p"), ingest(store.sub("p"), config))) == 2  # nothing has come, but time has passed


def test_a_log_that_grows_costs_what_is_new_of_it(s3_store: S3Store) -> None:
    """Of a shard that was taken the cursor keeps the name alone; one that is not due is not fetched, nor are labels kept."""
    config, pipe = reading(s3_store.url("log"), label_wait_hours=1), s3_store.sub("p")
    for shard in SHARDS[:2]:
        write_labels(s3_store, [(identity, "cat") for identity in write_shard(s3_store, shard, 3)])
    write_shard(s3_store, SHARDS[2], 1)
    cached = cache_folder() / "sources"
    before = set(cached.iterdir()) if cached.exists() else set()
    for most, kept in ((4, 1 + 1), (9, 2)):
        entry = ingest(pipe, config.model_copy(update={"window": config.window.model_copy(update={"max_samples": most})}))
        assert entry is not None
        assert entry.cursor_after.index is not None
        assert pq.read_table(pipe.local(entry.cursor_after.index)).num_rows == kept
    assert len(set(cached.iterdir()) - before) <= 2
    assert ingest(pipe, config) is None


def test_a_label_that_is_none_sets_its_sample_aside(folder_store: FolderStore) -> None:
    ids = write_shard(folder_store, SHARDS[0], 2)
    write_labels(folder_store, [(ids[0], "x" * 300), (ids[1], "bird")])
    entry = ingest(folder_store.sub("p"), reading(folder_store.url("log")))
    assert entry is not None
    assert ["characters" in reason for reason in quarantined(folder_store.sub("p"), entry).values()] == [True]
    assert View(folder_store.sub("p"), entry.view).window.pending == {"bird": 1}


def test_rows_that_a_service_was_asked_about_are_kept_as_rows_of_a_table(tmp_path: Path) -> None:
    tables.write(tmp_path / "inbox" / "t.parquet", tables.table(3))
    config = tables.pipeline(tmp_path)
    store = FolderStore(tmp_path / "store")
    by_table = View(store.sub("a"), taken_view(store.sub("a"), config))
    rows = [{n: row[n] for n in ("heat", "load", "site")} for row in tables.table(3).to_pylist()]
    asked: list[Any] = [*rows, {"load": 1.0, "heat": float("nan"), "site": None, "more": 7}, {"load": 1.0, "site": "north"}]
    with PredictionLog(tmp_path / "log") as log:
        ids = log.log(asked, said(5, "yes"))
        log.label(ids[0] or "", "no")
    config = config.model_copy(update={"source": reading(str(tmp_path / "log")).source})
    assert parse_config(config.model_dump(mode="json")) == config
    entry = ingest(store.sub("b"), config)
    assert entry is not None
    view = View(store.sub("b"), entry.view)
    assert list(view.read(view.rows()))[:3] == list(by_table.read(by_table.rows()))
    assert [s.label for s in view.samples] == ["no", None, None, None]
    assert ["no value, not even null, in heat" in r for r in quarantined(store.sub("b"), entry).values()] == [True]


def test_a_row_that_is_asked_twice_is_in_one_split_unless_half_the_world_asks_it(tmp_path: Path) -> None:
    rows: list[Any] = [{"heat": n, "load": 1, "site": None} for n in range(40)] * 2
    with PredictionLog(tmp_path / "log") as log:
        log.log(rows + [{"heat": -1, "load": 1, "site": None}] * 80, said(160, "yes"))
    config = tables.pipeline(tmp_path).model_copy(update={"source": reading(str(tmp_path / "log")).source})
    view = View(store := FolderStore(tmp_path / "store"), taken_view(store, config))
    splits = defaultdict[str, set[str]](set)
    for sample in view.samples:
        splits[sample.digest].add(sample.split)
    assert sorted(map(len, splits.values()))[:40] == [1] * 40
    assert {len(found) for found in splits.values()} == {1, 3}
    assert {split for found in splits.values() if len(found) == 1 for split in found} >= {"train", "holdout"}


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9), lambda x: st.lists(x, max_size=2), max_leaves=4
)


@settings(max_examples=20, deadline=None)
@given(st.dictionaries(st.sampled_from(["member", "slices", "version", "release", "confidence"]), anything), anything)
def test_whatever_stands_in_a_table_a_tick_goes_on(odd: dict[str, Any], label: Any) -> None:
    with in_memory() as folder:
        store, identity = FolderStore(Path(folder)), prediction_id(SHARDS[0], 0)
        row = {"id": identity, "member": f"{identity}.png", "at": NOW.isoformat()} | odd
        sink = io.BytesIO()
        with tarfile.open(fileobj=sink, mode="w") as tar:
            for name, data in {TABLE: json.dumps(row).encode(), f"{identity}.png": noise(0)}.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        store.create(f"log/{shard_key(SHARDS[0])}", sink.getvalue())
        store.create(f"log/{labels_key(SHARDS[0], NOW)}", pack_labels([(identity, label, NOW)]))
        view = View(store.sub("p"), taken_view(store.sub("p"), reading(store.url("log"), slice_columns=["release"])))
        assert view.window.samples + view.window.quarantined == 1


def test_check_tells_what_waits(folder_store: FolderStore) -> None:
    config = reading(folder_store.url("log"), label_wait_hours=1)
    ids = write_shard(folder_store, SHARDS[0], 2)
    write_labels(folder_store, [(ids[0], "cat"), (ids[1], "dog")])
    write_shard(folder_store, SHARDS[1], 1)
    config = config.model_copy(update={"store": folder_store.url("store")})
    lines = check(config)
    source, classes = next(x for x in lines if x.name == "source"), next(x for x in lines if x.name == "classes")
    assert source.words == "2 files, others wait for their labels"
    assert classes.passed
    assert "2 of 2 classes" in classes.words


def test_check_looks_at_the_first_of_a_long_log(folder_store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[check.__module__], "SHARDS", 2)
    for shard in SHARDS:
        write_labels(folder_store, [(identity, "cat") for identity in write_shard(folder_store, shard, 2)])
    config = reading(folder_store.url("log")).model_copy(update={"store": folder_store.url("store")})
    source, classes = (next(x for x in check(config) if x.name == name) for name in ("source", "classes"))
    assert source.words == "4 files in the first 2 objects of the log"
    assert classes.words.startswith("4 rows of labels, ")


def test_an_archive_that_is_no_shard_stops_the_tick(folder_store: FolderStore) -> None:
    folder_store.create("log/predictions/x.tar", b"\0" * 10_240)
    with pytest.raises(SourceError, match=r"x\.tar must hold predictions\.jsonl, got none"):
        ingest(folder_store.sub("p"), reading(folder_store.url("log")))


steps = st.lists(
    st.one_of(
        st.tuples(st.just("shard"), st.integers(0, 2), st.integers(1, 4)),
        st.tuples(st.just("label"), st.integers(0, 2), st.integers(0, 4)),
        st.tuples(st.just("tick"), st.just(0), st.integers(1, 4)),
        st.tuples(st.just("late"), st.integers(0, 2), st.just(0)),
    ),
    max_size=14,
)


@settings(max_examples=40, deadline=None)
@given(steps)
def test_each_prediction_is_in_one_window_once_whatever_comes_when(history: list[tuple[str, int, int]]) -> None:
    with in_memory() as folder:
        store, written, clock = FolderStore(Path(folder)), dict[str, list[str]](), time.time()
        pipe = store.sub("p")

        def tick(most: int) -> None:
            config = reading(store.url("log"), label_wait_hours=1)
            ingest(pipe, config.model_copy(update={"window": config.window.model_copy(update={"max_samples": most})}))

        for number, (step, which, count) in enumerate(history):
            shard = SHARDS[which]
            match step:
                case "shard" if shard not in written:
                    written[shard] = write_shard(store, shard, count)
                case "label" if shard in written:
                    identity = written[shard][count % len(written[shard])]
                    write_labels(store, [(identity, "cat" if number % 2 else "dog")], number)
                case "late" if shard in written:
                    os.utime(Path(folder) / "log" / shard_key(shard), (clock - 7_200, clock - 7_200))
                case "tick" if written:
                    tick(count)
        for shard in written:
            os.utime(Path(folder) / "log" / shard_key(shard), (clock - 7_200, clock - 7_200))
        for _ in range(16 if written else 0):
            tick(4)
        keys = Counter(s.key.rsplit("/", 1)[1] for entry in stream(pipe) for s in View(pipe, entry.view).samples)
        expected = {f"{identity}.png" for ids in written.values() for identity in ids}
        assert keys.keys() == expected
        assert set(keys.values()) <= {1}
