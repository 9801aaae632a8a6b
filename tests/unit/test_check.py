"""`everfresh check`: what cannot work is told before the first run, with the remedy."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from support.loop import pipeline
from support.pictures import digits, table, write_folder

from everfresh.flows.check import Checked, check
from everfresh.tasks.config import PipelineConfig, S3Config
from everfresh.tasks.errors import AccessRefused, StoreError
from everfresh.tasks.store import FolderStore, Listed, S3Store, Store
from everfresh.tasks.store.prove import proofs


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


@pytest.mark.parametrize("verify", ["read_back", "checksum"])
def test_a_server_that_refuses_a_wrong_checksum_is_told(s3_store: S3Store, verify: str) -> None:
    words = S3Store(s3_store.bucket, s3_store.prefix, S3Config.model_validate({"verify": verify})).prove_checksum("k")
    assert words == f"bytes with a wrong CRC-32 or MD5 are refused, s3.verify is {verify}"
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
        if "ChecksumCRC32" in named:
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
        (Keeping, "delete", r"must let objects be deleted, got one that stays: .*\. Allow"),
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
    assert found == [("config", True), ("store reach", True), ("store write", False), ("source", False)]


# --- source and gates ------------------------------------------------------------------------------------


def test_pictures_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    config = pipeline(tmp_path)
    write_folder(tmp_path / "inbox", {**digits(3), "zero/bad.png": b"text"})
    words = line_of(config, "source").words
    assert words.startswith("4 files; of 4 looked at 1 would go into quarantine: zero/bad.png is not a picture")


def test_a_gate_that_no_window_can_pass_fails(tmp_path: Path) -> None:
    gates = [{"kind": "better", "confidence": 0.999}]
    window = {"max_samples": 20, "holdout_fraction": 0.2}
    line = line_of(pipeline(tmp_path, gates=gates, window=window), "gates")
    assert not line.passed
    assert "a hold-out must have at least 10 samples for a confidence of 0.999, got 4 of the largest window" in line.words
    line = line_of(pipeline(tmp_path, gates=[{"kind": "better", "confidence": 0.8}]), "gates")
    assert line.passed
    assert "better needs 3 more hits than misses, so windows of about 9 samples or more (window.min_samples is 1)" in line.words
