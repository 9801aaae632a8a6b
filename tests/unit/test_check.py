"""`everfresh check`: what cannot work is told before the first run, with the remedy."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from support.loop import pipeline
from support.pictures import digits, table, write_folder, write_tar

from everfresh.flows.check import Checked, check
from everfresh.tasks.config import PipelineConfig, S3Config, TarShards
from everfresh.tasks.errors import AccessRefused, StoreError
from everfresh.tasks.gates.evidence import resolved_above, resolved_below, resolved_drop
from everfresh.tasks.ingest import ingest
from everfresh.tasks.sources import Source
from everfresh.tasks.store import FolderStore, Listed, S3Store, Store
from everfresh.tasks.store.prove import proofs
from everfresh.tasks.views import View


def classes(config: PipelineConfig) -> Checked:
    return line_of(config, "classes")


def line_of(config: PipelineConfig, name: str) -> Checked:
    return next(line for line in check(config) if line.name == name)


def with_table(folder: Path, labels: Sequence[str]) -> PipelineConfig:
    files = {key.split("/")[1]: data for key, data in digits(len(labels), classes=("zero", "one", "two")).items()}
    write_folder(folder / "inbox", files)
    rows = [{"key": key, "label": label} for key, label in zip([*files, "gone.png"], [*labels, labels[0]], strict=True)]
    (folder / "inbox" / "labels.csv").write_bytes(table(rows, "csv"))
    source = {"kind": "folder", "path": str(folder / "inbox"), "labels": {"kind": "sidecar", "path": "labels.csv"}}
    return pipeline(folder, source=source)


def test_a_table_of_labels_is_held_against_classes_and_files(tmp_path: Path) -> None:
    line = classes(with_table(tmp_path, ["zero", "one", "cat"]))
    assert line.passed
    assert line.words == (
        "4 rows of labels of which 1 have no file, 2 of 3 classes; not in model.classes, will wait as pending: cat"
    )


def test_labels_of_which_none_is_a_class_fail(tmp_path: Path) -> None:
    line = classes(with_table(tmp_path, ["klass0", "klass1"]))
    assert not line.passed
    assert "labels must be among model.classes, got none that is" in line.words


@pytest.mark.parametrize(("names", "passed"), [(("zero", "one"), True), (("nine",), False)])
def test_folders_are_labels_too(tmp_path: Path, names: tuple[str, ...], *, passed: bool) -> None:
    config = pipeline(tmp_path)
    write_folder(tmp_path / "inbox", digits(4, classes=names))
    assert classes(config).passed is passed


def test_a_folders_name_is_the_label_that_a_window_gives_it(tmp_path: Path) -> None:
    pictures = list(digits(3).values())
    write_folder(tmp_path / "inbox", {" a  b /1.png": pictures[0], "bell\a/2.png": pictures[1], "3.png": pictures[2]})
    config = pipeline(tmp_path, model={"classes": ["a b", "c"]})
    assert classes(config).words == (
        "1 files are in no folder that names a label, 1 of 2 classes; 1 would go into quarantine: bell\a/2.png "
        "has a label or slice with control characters, 'bell\\x07'"
    )
    store = FolderStore(tmp_path / "windows")
    entry = ingest(store, config)
    assert entry is not None
    assert {sample.label for sample in View(store, entry.view).samples} == {"a b", None}


def test_a_picture_at_the_top_of_an_archive_has_no_label(tmp_path: Path) -> None:
    zero, one = digits(2).values()
    write_tar(tmp_path / "in/a.tar", {"1.png": zero, "./2.png": one})
    config = pipeline(tmp_path)
    config = config.model_copy(update={"source": TarShards(kind="shards", paths=(str(tmp_path / "in"),))})
    assert classes(config).words == "2 files are in no folder that names a label, no label is there yet"


def test_a_row_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    line = classes(with_table(tmp_path, ["zero", "one", "x" * 201]))
    assert "1 would go into quarantine: " in line.words
    assert "has a label or slice of 201 characters" in line.words


# --- the store -------------------------------------------------------------------------------------------

PROMISES = ["reach", "write", "read", "race", "bytes", "clock", "delete"]


def proven(store: Store) -> dict[str, str]:
    """What each promise gave: what was seen, or the sentence of its failure."""
    found = {}
    for name, attempt in proofs(store):
        try:
            found[name] = f"ok {attempt()}"
        except StoreError as error:
            found[name] = str(error)
    return found


def test_a_good_store_keeps_each_promise_and_nothing_is_left(store: Store) -> None:
    found = proven(store)
    assert list(found) == PROMISES
    assert all(words.startswith("ok ") for words in found.values()), found
    assert [*store.list(), *store.unfinished()] == []
    if isinstance(store, FolderStore):
        assert list(store.root.iterdir()) == []


@pytest.mark.parametrize(("verify", "kind"), [("read_back", "MD5"), ("checksum", "CRC-32")])
def test_a_server_that_refuses_damaged_bytes_is_told(s3_store: S3Store, verify: str, kind: str) -> None:
    settings = S3Config.model_validate({"verify": verify, "encryption": "AES256"})
    words = S3Store(s3_store.bucket, s3_store.prefix, settings).prove_checksum("k")
    assert words == f"bytes with a wrong {kind} are refused"
    assert list(s3_store.unfinished()) == []


@pytest.mark.parametrize(
    ("verify", "takes", "words"),
    [
        (
            "checksum",
            "ChecksumCRC32",
            r"must be read_back at .*, got checksum: .* a wrong CRC-32 are taken\. Set s3",
        ),
        ("read_back", "ContentMD5", r"must be checksum at .*, got read_back: .* a wrong MD5 are taken\. Set s3"),
    ],
)
def test_a_server_that_takes_damaged_bytes_is_found_out(
    s3_store: S3Store, monkeypatch: pytest.MonkeyPatch, verify: str, takes: str, words: str
) -> None:
    call = S3Store._call

    def blind(self: S3Store, operation: str, key: str, **named: Any) -> Any:
        return call(self, operation, key, **{name: value for name, value in named.items() if name != takes})

    monkeypatch.setattr(S3Store, "_call", blind)
    with pytest.raises(StoreError, match=rf"s3\.verify {words}"):
        S3Store(s3_store.bucket, s3_store.prefix, S3Config.model_validate({"verify": verify})).prove_checksum("k")


def test_a_refusal_for_another_reason_proves_nothing_of_checksums(s3_store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    call = S3Store._call

    def refusing(self: S3Store, operation: str, key: str, **named: Any) -> Any:
        if "ContentMD5" in named:
            raise AccessRefused("no right")
        return call(self, operation, key, **named)

    monkeypatch.setattr(S3Store, "_call", refusing)
    with pytest.raises(AccessRefused, match="no right"):
        s3_store.prove_checksum("k")


class Overwriting(FolderStore):
    def create(self, key: str, data: bytes) -> bool:
        self.put(key, data)
        return True


class Stale(FolderStore):
    def get(self, key: str) -> bytes:
        data = super().get(key)
        return b"first" if data == b"second" else data


class Forgetful(FolderStore):
    def list(self, prefix: str = "", after: str = "") -> Iterator[Listed]:
        return iter(())


class Slow(FolderStore):
    def now(self) -> datetime:
        return super().now() - timedelta(hours=1)


class Keeping(FolderStore):
    def delete(self, key: str) -> None:
        pass


class Damaging(FolderStore):
    def fetch(self, key: str, target: Path) -> None:
        target.write_bytes(self.get(key)[:-1])


@pytest.mark.parametrize(
    ("kind", "promise", "words"),
    [
        (Overwriting, "race", r"must refuse to write over an object \(If-None-Match: \*\), got 8 winners of 8 .* Use AWS S3"),
        (Stale, "read", r"must give back what was just written, got b'first' for b'second'\. Use one that does"),
        (Forgetful, "read", r"must list what was just written, got a listing without it\. Use one that does"),
        (Slow, "clock", r"must have the same time within 5 minutes, got -3600 s at the store\. Set the wrong clock"),
        (Keeping, "delete", r"must let objects be deleted, got some that stay: .*/again, .*/race, .*\. Allow"),
        (Damaging, "bytes", r"must give back the bytes of a large file, got others\. Check the network"),
    ],
)
def test_a_store_that_breaks_a_promise_is_found_out(kind: type[FolderStore], promise: str, words: str, tmp_path: Path) -> None:
    kind.sub = lambda self, prefix: kind(self.root / prefix)  # type: ignore[method-assign]
    found = proven(kind(tmp_path / "store"))
    assert re.search(words, found[promise]), found
    assert {name for name, seen in found.items() if not seen.startswith("ok ")} == {promise}


def test_a_store_out_of_reach_is_one_line(tmp_path: Path) -> None:
    lines = list(islice(check(pipeline(tmp_path, store="/proc/nowhere/store")), 4))
    found = [(line.name, line.passed) for line in lines]
    assert found == [("config", True), ("store reach", True), ("store write", False), ("store delete", True)]


def test_a_bucket_that_is_not_there_is_not_reached(s3_endpoint: str, tmp_path: Path) -> None:
    assert s3_endpoint
    config = pipeline(tmp_path, store="s3://no-such-bucket-here/p")
    lines = [line for line in check(config) if line.name.startswith("store")]
    assert [(line.name, line.passed) for line in lines] == [("store reach", False)]
    assert "(NoSuchBucket): there is no such bucket. Create it, or correct the address." in lines[0].words


def test_on_a_full_disk_check_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    lines = [line for line in check(pipeline(tmp_path)) if line.name.startswith("store")]
    assert [(line.name, line.passed) for line in lines] == [
        ("store reach", True), ("store write", False), ("store delete", True),
    ]  # fmt: skip
    assert "No space left on device" in lines[1].words
    assert list(tmp_path.glob("store/digits/*")) == []


def test_where_one_object_may_not_be_deleted_the_others_go_and_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete = FolderStore.delete

    def refusing(store: FolderStore, key: str) -> None:
        if key == "again":
            raise AccessRefused(f"store: cannot delete {key} (Permission denied).")
        delete(store, key)

    monkeypatch.setattr(FolderStore, "delete", refusing)
    line = line_of(pipeline(tmp_path), "store delete")
    (left,) = (path for path in tmp_path.glob("store/digits/*/*"))
    assert not line.passed
    assert line.words == (
        f"store must let objects be deleted, got some that stay: {left} (store: cannot delete again (Permission denied).). "
        "Allow s3:DeleteObject, and delete them."
    )


def test_trouble_that_nobody_foresaw_is_a_line_and_the_others_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "inbox", digits(3))
    monkeypatch.setattr(Source, "read", lambda *_: 1 / 0)
    monkeypatch.setattr(FolderStore, "list", lambda *_, **__: {}["x"])
    config = pipeline(tmp_path, model={"architecture": "support.networks:raises"})
    lines = {line.name: line for line in check(config)}
    assert [name for name, line in lines.items() if not line.passed] == ["store read", "store clock", "source", "weights"]
    assert lines["source"].words == "KeyError: 'x'. `everfresh --debug check` shows where this comes from."
    assert lines["store delete"].passed
    assert lines["gates"].passed
    monkeypatch.setenv("EVERFRESH_DEBUG", "1")
    with pytest.raises(KeyError):
        list(check(config))


# --- source and gates ------------------------------------------------------------------------------------


def test_pictures_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    config = pipeline(tmp_path)
    write_folder(tmp_path / "inbox", {**digits(3), "zero/bad.png": b"text"})
    words = line_of(config, "source").words
    assert words.startswith("4 files; of 4 looked at 1 would go into quarantine: zero/bad.png is not a picture")


def test_a_file_too_large_is_told_without_being_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = pipeline(tmp_path)
    write_folder(tmp_path / "inbox", digits(2))
    with (tmp_path / "inbox/zero/large.tif").open("wb") as file:
        file.truncate(10 << 30)
    words = line_of(config, "source").words
    assert words == (
        "3 files; of 3 looked at 1 would go into quarantine: zero/large.tif is 10,737,418,240 bytes, more than 268,435,456"
    )


def test_a_file_that_may_not_be_read_waits_and_is_not_said_to_go_into_quarantine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, get = pipeline(tmp_path), FolderStore.get
    write_folder(tmp_path / "inbox", {f"zero/{n}.png": data for n, data in enumerate(digits(3).values())})

    def refusing(store: FolderStore, key: str) -> bytes:
        if key in refused:
            raise AccessRefused(f"store: cannot read {key} (Permission denied).")
        return get(store, key)

    monkeypatch.setattr(FolderStore, "get", refusing)
    refused = {"zero/1.png"}
    line = line_of(config, "source")
    assert (line.passed, line.words) == (
        True, "3 files; of 3 looked at 1 may not be read and would wait: zero/1.png, store: cannot read zero/1.png "
        "(Permission denied).",
    )  # fmt: skip
    ordered = pipeline(tmp_path, source={"ordered": True})
    assert line_of(ordered, "source") == Checked("source", False, "store: cannot read zero/1.png (Permission denied).")
    refused = {f"zero/{n}.png" for n in range(3)}
    line = line_of(config, "source")
    assert not line.passed
    assert "files must be readable, got 3 looked at of which none is, zero/0.png among them. Grant the right" in line.words


def test_trouble_of_the_store_fails_and_is_not_said_to_go_into_quarantine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(source: Source, file: object) -> bytes:
        raise StoreError("store: no answer. Check the network.")

    write_folder(tmp_path / "inbox", digits(3))
    monkeypatch.setattr(Source, "read", read)
    assert line_of(pipeline(tmp_path), "source") == Checked("source", False, "store: no answer. Check the network.")


def test_a_source_is_listed_once_and_its_trouble_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed, original = [], Source._list
    monkeypatch.setattr(Source, "_list", lambda source, path: listed.append(path) or original(source, path))
    config = with_table(tmp_path, ["zero", "one"])
    assert {"source", "classes"} <= {line.name for line in check(config)}
    assert len(listed) == 1
    lost = pipeline(tmp_path, source={"path": str(tmp_path / "nowhere")})
    names = [line.name for line in check(lost) if not line.passed]
    assert names == ["source"]
    assert len(listed) == 2


def test_a_gate_that_no_window_can_pass_fails(tmp_path: Path) -> None:
    gates = [{"kind": "better", "confidence": 0.999}]
    window = {"max_samples": 20, "holdout_fraction": 0.2}
    line = line_of(pipeline(tmp_path, gates=gates, window=window), "gates")
    assert not line.passed
    assert "a hold-out must have at least 10 samples for a confidence of 0.999, got 4 of the largest window" in line.words
    line = line_of(pipeline(tmp_path, gates=[{"kind": "better", "confidence": 0.8}]), "gates")
    assert line.passed
    assert "better needs 3 more hits than misses, so windows of about 9 samples or more (window.min_samples is 1)" in line.words
    gates = [{"kind": "negative_flips", "min_samples": 5, "too_few": "fail"}]
    line = line_of(pipeline(tmp_path, gates=gates, window=window), "gates")
    assert "gates.negative_flips: a hold-out must have at least 5 samples for min_samples: 5, got 4 of the" in line.words
    assert line_of(pipeline(tmp_path, gates=[gates[0] | {"too_few": "pass"}], window=window), "gates").passed
    bank = [{"kind": "no_worse", "min_samples": 100, "too_few": "fail"}]
    assert line_of(pipeline(tmp_path, gates=bank, window=window), "gates").passed  # it grows from window to window


def test_what_the_gates_will_be_able_to_tell_is_said(tmp_path: Path) -> None:
    kinds = ("floor", "no_worse", "slices", "negative_flips", "calibration", "robustness", "latency", "size")
    gates: list[dict[str, Any]] = [{"kind": kind} for kind in kinds]
    gates[2] |= {"columns": ["label"], "minimum": 0.7, "max_drop": 0.05}
    line = line_of(pipeline(tmp_path, gates=gates, window={"max_samples": 2000, "holdout_fraction": 0.25}), "gates")
    assert line.words.partition("; ")[2] == (
        "on a full window's 500 held-out samples floor sees accuracy to ±4.4%, no_worse sees differences of 2.8% on as many "
        f"samples of the bank, slices sees an accuracy of {resolved_below(20, 0.7, 0.002):.1%} and a drop of "
        f"{resolved_drop(20, 0.05, 0.002, 0.1):.1%} in one of 25 slices of 20, negative_flips sees a share of "
        f"{resolved_above(500, 0.05, 0.05):.1%}, calibration looks at 100 samples or more, robustness sees a drop of "
        f"{resolved_drop(200, 0.05, 0.05 / 7, 0.1):.1%} under one corruption"
    )
    small = line_of(pipeline(tmp_path, gates=gates, window={"max_samples": 40, "holdout_fraction": 0.25}), "gates")
    assert "slices is undecided below 20 samples, negative_flips is undecided below 20 samples" in small.words


# --- Prefect ---------------------------------------------------------------------------------------------


class Failing(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(503)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def failing() -> Iterator[str]:
    """Address of a server that has nothing but trouble."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        Thread(target=server.serve_forever).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("url", "shown", "reason"),
    [
        ("http://me:hunter2@HERE/api", "http://HERE/api", "it answers 503 Service Unavailable"),
        ("http://me:hun%40ter2@HERE/api", "http://HERE/api", "it answers 503 Service Unavailable"),
        ("http://hunter2@127.0.0.1:9/api", "http://127.0.0.1:9/api", r"\[Errno 111\] Connection refused"),
        ("http://me:hunter2:hun@ter3@HERE/api", "http://HERE/api", "it answers 503 Service Unavailable"),
        ("http://me:hun/ter2@HERE/api", "http://HERE/api", "it is no address of http or https"),
        ("me:hunter2@HERE/api", "HERE/api", "it is no address of http or https"),
        ("ftp://me:hunter2@HERE/api", "ftp://HERE/api", "it is no address of http or https"),
    ],
)
def test_a_user_in_the_address_of_prefect_is_never_shown(
    failing: str, tmp_path: Path, url: str, shown: str, reason: str
) -> None:
    with temporary_settings({PREFECT_API_URL: url.replace("HERE", failing)}):
        line = line_of(pipeline(tmp_path), "prefect")
    assert not line.passed
    place = re.escape(shown.replace("HERE", failing))
    assert re.fullmatch(rf"PREFECT_API_URL must lead to a Prefect server, got {place} \({reason}\)\. Start one .*", line.words)


def test_a_healthy_server_is_named_without_its_user(failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Failing, "do_GET", lambda self: (self.send_response(200), self.end_headers()))
    with temporary_settings({PREFECT_API_URL: f"http://me:hunter2@{failing}/api"}):
        assert line_of(pipeline(tmp_path), "prefect") == Checked("prefect", True, f"http://{failing}/api: healthy")
