"""The contract of a store, proven on a folder and on a real S3 server alike."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import threading
import traceback
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from everfresh.tasks.config import S3Config
from everfresh.tasks.errors import AccessRefused, AccountRefused, ConfigError, DigestMismatch, ObjectMissing, StoreError
from everfresh.tasks.ledger import champion_moves
from everfresh.tasks.records import Part
from everfresh.tasks.store import FolderStore, OverlayStore, S3Store, Store, cache_folder, open_store, s3


def keys(store: Store, prefix: str = "", after: str = "") -> list[str]:
    return [item.key for item in store.list(prefix, after)]


# --- objects ---------------------------------------------------------------------------------------------


def test_what_was_put_is_got_and_replaced_whole(store: Store) -> None:
    store.put("a/b.json", b"one")
    store.put("a/b.json", b"second")
    assert store.get("a/b.json") == b"second"


@pytest.mark.parametrize("data", [b"", b"\x00" * 3, b"x" * 100_000], ids=["empty", "zeros", "large"])
def test_any_bytes_survive(store: Store, data: bytes) -> None:
    store.put("blob", data)
    assert store.get("blob") == data


@pytest.mark.parametrize("read", ["get", "fetch"])
def test_a_missing_object_is_named(store: Store, tmp_path: Path, read: str) -> None:
    with pytest.raises(ObjectMissing, match=r"windows/none\.json"):
        store.get("windows/none.json") if read == "get" else store.fetch("windows/none.json", tmp_path / "x")
    assert not store.exists("windows/none.json")


@pytest.mark.parametrize("read", ["get", "fetch", "exists"])
def test_a_folder_of_objects_is_no_object(store: Store, tmp_path: Path, read: str) -> None:
    store.put("a/b", b"1")
    if read == "exists":
        assert not store.exists("a")
    else:
        with pytest.raises(ObjectMissing):
            store.get("a") if read == "get" else store.fetch("a", tmp_path / "x")


def test_delete_removes_and_does_not_mind_nothing(store: Store) -> None:
    store.put("a/b", b"1")
    store.delete("a/b")
    store.delete("a/b")
    store.delete("never/was")
    assert keys(store) == []


def test_create_writes_only_where_nothing_stands(store: Store) -> None:
    assert store.create("stream/1.json", b"first") is True
    assert store.create("stream/1.json", b"second") is False
    assert store.get("stream/1.json") == b"first"


def test_create_of_the_same_bytes_is_no_loss(store: Store) -> None:
    assert store.create("k", b"mine")
    assert store.create("k", b"mine")
    assert not store.create("k", b"other")


def test_create_after_put_is_refused_and_after_delete_granted(store: Store) -> None:
    store.put("k", b"put")
    assert not store.create("k", b"created")
    store.delete("k")
    assert store.create("k", b"created")


def test_of_eight_creators_of_one_key_exactly_one_wins_and_its_bytes_stand(store: Store) -> None:
    for attempt in range(2 if isinstance(store, FolderStore) else 1):  # S3 takes a second for each
        barrier = threading.Barrier(8)

        def create(writer: int, key: str = f"race/{attempt}", barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            return store.create(key, b"writer %d" % writer)

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(create, range(8)))
        assert sum(won) == 1
        assert store.get(f"race/{attempt}") == b"writer %d" % won.index(True)


def test_a_reader_never_sees_half_an_object(store: Store) -> None:
    versions = [bytes([i]) * 200_000 for i in range(6)]
    store.put("k", versions[0])
    seen: list[bytes] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.append(store.get("k"))

    reader = threading.Thread(target=read)
    reader.start()
    for data in versions:
        store.put("k", data)
    stop.set()
    reader.join()
    assert seen
    assert all(data in versions for data in seen)


# --- keys ------------------------------------------------------------------------------------------------

BAD_KEYS = ["", "/", "/a", "..", "../a", "a/../../b", "a/..", ".", "./a", "a/.", "a//b", "a/", "a\x00b"]


@pytest.mark.parametrize("key", BAD_KEYS)
@pytest.mark.parametrize("operation", ["get", "put", "create", "exists", "delete", "sub"])
def test_keys_that_climb_out_or_have_two_spellings_are_refused(tmp_path: Path, key: str, operation: str) -> None:
    arguments = (key, b"x") if operation in {"put", "create"} else (key,)
    for store in (FolderStore(tmp_path / "store"), S3Store("bucket", "prefix")):
        with pytest.raises(StoreError, match="a key must be a relative path") as caught:
            getattr(store, operation)(*arguments)
        assert repr(key) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["a b.txt", "ü/ñ.json", "a+b&c=d", "..a", "a..b", "x" * 200])
def test_unusual_keys_work(store: Store, key: str) -> None:
    store.put(key, b"1")
    assert store.get(key) == b"1"
    assert keys(store) == ([] if key.startswith(".") else [key])


# --- listing ---------------------------------------------------------------------------------------------

SCATTERED = ["a/b", "a-b", "a.b", "a/a/z", "a0", "a/b-c", "a/b/c", "b", "B", "a b"]


def test_a_listing_is_in_the_order_of_whole_keys(store: Store) -> None:
    wanted = [k for k in SCATTERED if k != "a/b"]  # a folder cannot hold both a/b and a/b/c
    for key in wanted:
        store.put(key, key.encode())
    assert keys(store) == sorted(wanted)
    assert [item.size for item in store.list()] == [len(k) for k in sorted(wanted)]


def test_a_listing_starts_after_a_key_that_need_not_exist(store: Store) -> None:
    for key in ["s/1", "s/2", "s/3", "t/1"]:
        store.put(key, b"x")
    assert keys(store, after="s/2") == ["s/3", "t/1"]
    assert keys(store, "s", after="s/2") == ["s/3"]
    assert keys(store, "s", after="s/15") == ["s/2", "s/3"]
    assert keys(store, "s", after="z") == []


def test_a_prefix_is_a_folder_not_a_beginning(store: Store) -> None:
    for key in ["a/1", "ab/1", "a.json", "a/b/2"]:
        store.put(key, b"x")
    assert keys(store, "a") == ["a/1", "a/b/2"]
    assert keys(store, "missing") == []
    assert keys(store, "a.json") == []


def test_hidden_objects_are_not_listed(store: Store) -> None:
    for key in [".hidden", "a/.part", ".git/x", "a/seen"]:
        store.put(key, b"x")
    assert keys(store) == ["a/seen"]


def test_a_version_changes_with_the_bytes_only(store: Store) -> None:
    store.put("k", b"one")
    (first,) = store.list()
    assert next(store.list()).version == first.version
    store.put("k", b"two")
    assert next(store.list()).version != first.version


def test_times_are_utc_and_the_stores_clock_agrees(store: Store) -> None:
    store.put("k", b"one")
    (item,) = store.list()
    assert item.modified.utcoffset() == timedelta(0)
    assert abs(store.now() - item.modified) < timedelta(seconds=30)
    assert abs(store.now() - datetime.now(UTC)) < timedelta(seconds=30)


def test_a_listing_goes_on_past_one_page(s3_store: S3Store) -> None:
    names = [f"k/{i:04d}" for i in range(1_005)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: s3_store.put(name, b""), names))
    assert keys(s3_store) == names
    assert keys(s3_store, "k", after="k/0002") == names[3:]


def test_files_that_vanish_while_a_folder_is_listed_are_left_out(
    folder_store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ["a", "b", "c"]:
        folder_store.put(key, b"x")
    listing = folder_store.list()
    assert next(listing).key == "a"
    folder_store.delete("b")
    assert [item.key for item in listing] == ["c"]


# --- deeper, addresses -----------------------------------------------------------------------------------


def test_a_deeper_store_sees_its_own_keys(store: Store) -> None:
    store.put("pipe/a/1", b"x")
    store.put("other/a/1", b"y")
    deeper = store.sub("pipe")
    assert keys(deeper) == ["a/1"]
    assert keys(deeper.sub("a")) == ["1"]
    deeper.put("b", b"z")
    assert store.get("pipe/b") == b"z"


def test_an_address_says_where_a_person_finds_the_object(folder_store: FolderStore) -> None:
    assert folder_store.sub("pipe").url("a/1") == str(folder_store.root / "pipe/a/1")
    assert folder_store.url("") == str(folder_store.root)
    assert S3Store("bucket", "prefix").sub("pipe").url("a/1") == "s3://bucket/prefix/pipe/a/1"
    assert S3Store("bucket", "prefix").url("") == "s3://bucket/prefix"


@pytest.mark.parametrize(
    ("uri", "url"),
    [
        ("/data/store", "/data/store/k"),
        ("file:///data/store", "/data/store/k"),
        ("s3://bucket", "s3://bucket/k"),
        ("s3://bucket/a/b/", "s3://bucket/a/b/k"),
        ("s3://bucket/a#b?c", "s3://bucket/a#b?c/k"),
    ],
)
def test_an_address_opens_its_store(uri: str, url: str) -> None:
    assert open_store(uri).url("k") == url


@pytest.mark.parametrize("uri", ["ftp://host/x", "gs://bucket", "s3://", "s3:///prefix", "file://host/path", "file://"])
def test_other_addresses_are_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="store must be a folder") as caught:
        open_store(uri)
    assert repr(uri) in str(caught.value)


# --- parts: bytes under a digest -------------------------------------------------------------------------


def test_a_kept_part_is_read_back(store: Store, tmp_path: Path) -> None:
    data = b"weights" * 1000
    part = store.keep("releases/1/model", data)
    assert part == Part(key="releases/1/model", sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    assert store.read(part) == data
    assert store.local(part).read_bytes() == data
    (tmp_path / "file").write_bytes(data)
    assert store.keep_file("again", tmp_path / "file").sha256 == part.sha256


def test_a_large_file_goes_up_in_pieces_and_comes_back_whole(s3_store: S3Store, tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(range(256)) * (9 << 12))  # 9 MiB, above boto3's threshold of 8
    part = s3_store.keep_file("large", path)
    assert s3_store.local(part).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("read", ["read", "local"])
def test_a_changed_byte_is_found_and_the_object_named(store: Store, read: str) -> None:
    part = store.keep("candidates/7/model", b"good bytes")
    store.put("candidates/7/model", b"bad bytes!")
    with pytest.raises(DigestMismatch, match="candidates/7/model") as caught:
        getattr(store, read)(part)
    assert part.sha256[:16] in str(caught.value)


@pytest.mark.parametrize("read", ["read", "local"])
def test_a_part_that_is_gone_is_named(store: Store, read: str) -> None:
    part = store.keep("candidates/7/model", b"bytes")
    store.delete("candidates/7/model")
    with pytest.raises(ObjectMissing, match="candidates/7/model"):
        getattr(store, read)(part)


@pytest.mark.parametrize("write", ["keep", "keep_file"])
def test_a_store_that_damages_what_it_takes_is_found_at_the_write(
    tmp_path: Path, write: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lossy(FolderStore):
        def put(self, key: str, data: bytes) -> None:
            super().put(key, data[:-1])

        def put_file(self, key: str, path: Path) -> Part:
            part = super().put_file(key, path)
            super().put(key, path.read_bytes()[:-1])
            return part

    (tmp_path / "file").write_bytes(b"whole")
    with pytest.raises(DigestMismatch, match="part-1"):
        getattr(Lossy(tmp_path / "lossy"), write)("part-1", b"whole" if write == "keep" else tmp_path / "file")


def test_a_remote_part_is_fetched_once_and_a_damaged_copy_again(s3_store: S3Store) -> None:
    part = s3_store.keep("k", b"whole")
    copy = s3_store.local(part)
    s3_store.delete("k")
    assert s3_store.local(part) == copy
    s3_store.put("k", b"whole")
    copy.write_bytes(b"damaged")
    assert s3_store.local(part).read_bytes() == b"whole"


def test_the_cache_holds_nothing_of_a_failed_fetch(s3_store: S3Store, tmp_path: Path) -> None:
    part = s3_store.keep("k", b"whole")
    s3_store.put("k", b"other")
    with pytest.raises(DigestMismatch):
        s3_store.local(part)
    assert [p for p in cache_folder().rglob("*") if p.is_file()] == []


def test_a_folder_store_leaves_no_temporary_files(folder_store: FolderStore) -> None:
    folder_store.put("a/b", b"1")
    folder_store.create("a/b", b"2")
    folder_store.create("a/c", b"2")
    assert sorted(p.name for p in (folder_store.root / "a").iterdir()) == ["b", "c"]


# --- trouble ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["put", "create", "delete"])
def test_an_object_in_the_way_of_a_folder_is_a_store_error(folder_store: FolderStore, operation: str) -> None:
    folder_store.put("a", b"file")
    if operation == "delete":
        folder_store.delete("a/b")  # nothing there is fine
    else:
        with pytest.raises(StoreError, match=f"cannot write {folder_store.root}/a/b"):
            getattr(folder_store, operation)("a/b", b"x")


def test_a_folder_in_the_way_of_an_object_is_a_store_error(folder_store: FolderStore) -> None:
    folder_store.put("a/b", b"file")
    with pytest.raises(StoreError, match=f"cannot write {folder_store.root}/a"):
        folder_store.put("a", b"x")
    with pytest.raises(StoreError, match=f"cannot delete {folder_store.root}/a"):
        folder_store.delete("a")


def test_a_disk_without_hard_links_is_a_store_error(folder_store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("os.link", refuse)
    with pytest.raises(StoreError, match=r"Operation not supported"):
        folder_store.create("k", b"x")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("operation", ["put", "create", "put_file"])
def test_a_disk_that_takes_no_more_is_a_sentence_and_the_old_object_stays(
    folder_store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, number: int
) -> None:
    (tmp_path / "new").write_bytes(b"new")
    folder_store.put("k", b"old")

    def refuse(_handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", refuse)
    key = "other" if operation == "create" else "k"
    words = rf"store: cannot write {folder_store.root}/{key} \({os.strerror(number)}\)\. Check that .* the disk is not full"
    with pytest.raises(StoreError, match=words):
        getattr(folder_store, operation)(key, tmp_path / "new" if operation == "put_file" else b"new")
    assert (folder_store.get("k"), [p.name for p in folder_store.root.iterdir()]) == (b"old", ["k"])


@pytest.mark.parametrize("operation", ["put", "create"])
def test_folders_above_a_new_object_are_synced_too(
    folder_store: FolderStore, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    sync, synced = os.fsync, set()

    def noted(handle: int) -> None:
        synced.add(Path(f"/proc/self/fd/{handle}").readlink())
        sync(handle)

    monkeypatch.setattr("os.fsync", noted)
    getattr(folder_store, operation)("a/b/k", b"x")
    root = folder_store.root
    assert {root.parent, root, root / "a", root / "a/b"} <= synced


@pytest.mark.parametrize("place", ["mkdir", "write"])
@pytest.mark.parametrize("operation", ["put", "create", "put_file"])
def test_a_disk_that_is_full_before_the_end_is_a_sentence_and_leaves_nothing(
    folder_store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, place: str
) -> None:
    (tmp_path / "new").write_bytes(b"new")
    real = Path.open

    def full(path: Path, mode: str = "r", *more: Any, **named: Any) -> Any:
        real(path, mode, *more, **named).close()
        return open("/dev/full", "wb") if "x" in mode else real(path, mode, *more, **named)  # noqa: PTH123

    def refuse(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open" if place == "write" else "mkdir", full if place == "write" else refuse)
        with pytest.raises(StoreError, match=r"store: cannot write .*/a/k \(No space left on device\)\. Check that"):
            getattr(folder_store, operation)("a/k", tmp_path / "new" if operation == "put_file" else b"new")
    assert [path for path in folder_store.root.rglob("*") if path.is_file()] == []


def test_a_full_cache_is_told_with_its_remedy_and_holds_nothing(s3_store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    part = s3_store.keep("k", b"x")
    monkeypatch.setattr("s3transfer.utils.OSUtils.open", lambda _self, _name, mode: open("/dev/full", mode, buffering=0))  # noqa: PTH123, SIM115
    with pytest.raises(StoreError, match=r"cannot be written to .*\(No space left on device\)\. Make room .* EVERFRESH_CACHE"):
        s3_store.local(part)
    assert [path for path in cache_folder().rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("operation", ["get", "list"])
def test_a_missing_bucket_is_a_store_error(s3_endpoint: str, operation: str) -> None:
    with pytest.raises(StoreError, match="no-such-bucket") as caught:
        list(getattr(S3Store("no-such-bucket"), operation)("k"))
    assert not isinstance(caught.value, ObjectMissing)


def test_wrong_credentials_are_a_store_error_that_names_no_secret(s3_store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)
    wrong = s3.client.__wrapped__(S3Config())
    monkeypatch.setattr(s3, "client", lambda _: wrong)
    with pytest.raises(StoreError, match="was refused") as caught:
        s3_store.put("k", b"x")
    assert "wrong-secret" not in str(caught.value)
    wrong.close()


def test_a_clock_that_is_an_hour_ahead_is_told_with_its_remedy(s3_store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: datetime.now(UTC) + timedelta(hours=1))
    for call in (lambda: s3_store.get("k"), lambda: s3_store.put("k", b"x"), lambda: list(s3_store.list())):
        with pytest.raises(AccountRefused, match=r"RequestTimeTooSkewed\): the clocks differ .*\. Set this machine's clock"):
            call()


class _Scripted:
    """An S3 client whose put_object gives prepared answers; another writer's bytes stand there."""

    def __init__(self, *codes: str) -> None:
        self.codes = list(codes)

    def put_object(self, **_: object) -> dict[str, object]:
        from botocore.exceptions import ClientError

        if code := self.codes.pop(0):
            raise ClientError({"Error": {"Code": code}}, "PutObject")
        return {"ETag": "1"}

    def get_object(self, **_: object) -> dict[str, object]:
        return {"Body": io.BytesIO(b"other"), "ETag": "1"}


def test_a_conflict_with_another_writer_is_tried_again_not_taken_for_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    client = _Scripted("ConditionalRequestConflict", "ConditionalRequestConflict", "")
    monkeypatch.setattr(s3, "client", lambda _: client)
    assert S3Store("bucket").create("k", b"x") is True
    client.codes = ["ConditionalRequestConflict", "PreconditionFailed"]
    assert S3Store("bucket").create("k", b"x") is False


def test_a_conflict_that_does_not_end_is_a_store_error(monkeypatch: pytest.MonkeyPatch) -> None:
    client = _Scripted(*["ConditionalRequestConflict"] * 50)
    monkeypatch.setattr(s3, "client", lambda _: client)
    monkeypatch.setattr(s3, "CONFLICT_PAUSE", 0.0)
    with pytest.raises(StoreError, match="ConditionalRequestConflict"):
        S3Store("bucket").create("k", b"x")


def test_a_stream_that_breaks_off_is_a_store_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import ResponseStreamingError

    class Broken:
        def read(self) -> bytes:
            raise ResponseStreamingError(error="connection lost")

    class Client:
        def get_object(self, **_: object) -> dict[str, object]:
            return {"Body": Broken(), "ETag": "1"}

    monkeypatch.setattr(s3, "client", lambda _: Client())
    with pytest.raises(StoreError, match="s3://bucket/k had no answer"):
        S3Store("bucket").get("k")


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("AccessDenied", AccessRefused, "no right to do this. Allow s3:GetObject"),
        ("403", AccessRefused, "no right to do this. Allow s3:GetObject"),
        ("ExpiredToken", AccountRefused, "have expired. Renew them"),
        ("InvalidAccessKeyId", AccountRefused, "not known there. Correct AWS_ACCESS_KEY_ID"),
        ("SignatureDoesNotMatch", AccountRefused, "not the right one. Correct AWS_ACCESS_KEY_ID"),
        ("NoSuchBucket", AccountRefused, "no such bucket. Create it, or correct the address"),
        ("PermanentRedirect", AccountRefused, "another region. Set s3.region"),
        ("RequestTimeTooSkewed", AccountRefused, r"clocks differ .*. Set this machine's clock"),
        ("QuotaExceeded", AccessRefused, "quota is used up. Free some"),
        ("XMinioStorageFull", AccessRefused, "no space left. Free some"),
        ("507", AccessRefused, "no space left. Free some"),
        ("NotImplemented", AccessRefused, "does not offer this. Update the store"),
        ("SlowDown", StoreError, "is busy. Wait, and run again"),
        ("InternalError", StoreError, "has failed. Wait, and run again"),
        ("Strange", StoreError, "no reason that is known here. Check the bucket"),
    ],
)
def test_a_refusal_says_what_is_the_matter_and_what_to_do(
    code: str, kind: type[StoreError], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = _Scripted(code)
    monkeypatch.setattr(s3, "client", lambda _: client)
    with pytest.raises(StoreError, match=rf"put_object on s3://bucket/k was refused \({code}\): .*{words}") as caught:
        S3Store("bucket").put("k", b"x")
    assert type(caught.value) is kind


class _Tagged:
    """An S3 client of a server whose ETags look like MD5s."""

    def __init__(self, tag: Callable[[bytes], str], *, writable: bool = True) -> None:
        self.tag, self.writable, self.objects = tag, writable, {"k": b"bytes"}

    def put_object(self, **named: Any) -> dict[str, object]:
        from botocore.exceptions import ClientError

        if not self.writable:
            raise ClientError({"Error": {"Code": "AccessDenied"}}, "PutObject")
        self.objects[named["Key"]] = named["Body"]
        return {"ETag": f'"{self.tag(named["Body"])}"'}

    def get_object(self, **named: Any) -> dict[str, object]:
        return {"ETag": '"00000000000000000000000000000000"', "Body": io.BytesIO(self.objects[named["Key"]])}

    def delete_object(self, **named: Any) -> None:
        del self.objects[named["Key"]]


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@pytest.mark.parametrize(
    ("client", "taken"),
    [
        (_Tagged(lambda _: uuid.uuid4().hex), True),
        (_Tagged(md5), False),
        (_Tagged(lambda _: uuid.uuid4().hex, writable=False), False),
    ],
    ids=["ETags are no MD5", "ETags are MD5s", "nobody can tell"],
)
def test_bytes_that_do_not_fit_their_etag_are_taken_only_where_etags_are_no_md5(
    monkeypatch: pytest.MonkeyPatch, client: _Tagged, *, taken: bool
) -> None:
    monkeypatch.setattr(s3, "client", lambda _: client)
    if taken:
        assert S3Store("bucket").get("k") == b"bytes"
    else:
        with pytest.raises(DigestMismatch, match=r"s3://bucket/k must have the MD5 that the store tells of it, got other"):
            S3Store("bucket").get("k")
    assert list(client.objects) == ["k"]


# --- writes that never ended -----------------------------------------------------------------------------


def test_an_upload_that_never_ended_is_found_and_discarded(s3_store: S3Store) -> None:
    s3_store.put("a/whole", b"x")
    arguments = {"Bucket": s3_store.bucket, "Key": f"{s3_store.prefix}/a/half"}
    s3.client(S3Config()).create_multipart_upload(**arguments)
    (item,) = s3_store.unfinished()
    assert (item.key, list(s3_store.sub("b").unfinished())) == ("a/half", [])
    s3_store.discard(item)
    assert list(s3_store.unfinished()) == []
    assert keys(s3_store) == ["a/whole"]


def test_a_file_that_was_never_finished_is_found_and_discarded(folder_store: FolderStore) -> None:
    folder_store.put("a/whole", b"x")
    (folder_store.root / "a/.tmp-1234").write_bytes(b"half")
    (item,) = folder_store.unfinished()
    assert (item.key, item.size) == ("a/.tmp-1234", 4)
    folder_store.discard(item)
    assert list(folder_store.unfinished()) == []


# --- how S3 is spoken to ---------------------------------------------------------------------------------


@pytest.mark.parametrize("verify", ["read_back", "checksum"])
@pytest.mark.parametrize("encryption", [None, "AES256"])
def test_writes_are_encrypted_and_proven_as_the_pipeline_says(
    s3_store: S3Store, tmp_path: Path, verify: str, encryption: str | None
) -> None:
    settings = S3Config.model_validate({"verify": verify, "encryption": encryption})
    store = S3Store(s3_store.bucket, s3_store.prefix, settings)
    path = tmp_path / "large"
    path.write_bytes(bytes(range(256)) * (9 << 12))
    assert store.create("record", b"x")
    for part in (store.keep("small", b"bytes"), store.keep_file("large", path)):
        head = s3.client(settings).head_object(Bucket=store.bucket, Key=f"{store.prefix}/{part.key}")
        assert head.get("ServerSideEncryption") == encryption
        assert store.local(part).stat().st_size == part.size


def test_settings_reach_the_client(s3_endpoint: str) -> None:
    settings = S3Config(endpoint="http://127.0.0.1:9", region="eu-west-9", connect_timeout=3, read_timeout=4, max_attempts=2)
    client = s3.client(settings)
    assert s3_endpoint != client.meta.endpoint_url == "http://127.0.0.1:9"
    found = client.meta.config
    assert (client.meta.region_name, found.connect_timeout, found.read_timeout) == ("eu-west-9", 3, 4)
    assert (found.retries["total_max_attempts"], found.s3["addressing_style"]) == (2, "path")
    with pytest.raises(StoreError, match=r"s3://bucket/k had no answer .*\. Check the network and s3\.endpoint"):
        S3Store("bucket", settings=settings).get("k")
    client.close()


# --- overlay ---------------------------------------------------------------------------------------------


@pytest.fixture
def overlay(store: Store) -> OverlayStore:
    store.put("windows/1/window.json", b"live")
    store.put("aliases/champion/1.json", b"live")
    return OverlayStore(store, store.sub("replays/x"), ("stream", "windows"))


def test_an_overlay_shares_the_named_folders_and_keeps_the_rest_apart(store: Store, overlay: OverlayStore) -> None:
    assert overlay.get("windows/1/window.json") == b"live"
    assert not overlay.exists("aliases/champion/1.json")
    assert overlay.create("aliases/champion/1.json", b"replayed")
    assert store.get("aliases/champion/1.json") == b"live"
    assert store.get("replays/x/aliases/champion/1.json") == b"replayed"
    assert keys(overlay, "aliases") == ["aliases/champion/1.json"]
    assert keys(overlay, "windows") == ["windows/1/window.json"]


def test_an_overlay_counts_the_hint_beside_a_folder_as_part_of_it(store: Store, overlay: OverlayStore) -> None:
    store.put("stream.json", b"1")
    assert overlay.get("stream.json") == b"1"
    overlay.put("journal.json", b"2")
    assert not store.exists("journal.json")


def test_an_overlay_keeps_parts_and_reads_them_back(store: Store, overlay: OverlayStore) -> None:
    part = overlay.keep("candidates/1/model", b"bytes")
    assert overlay.read(part) == overlay.local(part).read_bytes() == b"bytes"
    assert "replays/x/candidates/1/model" in overlay.url(part.key)
    overlay.delete(part.key)
    assert not overlay.exists(part.key)


def test_an_overlay_cannot_be_left_by_a_key(overlay: OverlayStore) -> None:
    with pytest.raises(StoreError, match=r"'windows/\.\./aliases/x'"):
        overlay.put("windows/../aliases/x", b"x")


def test_a_store_that_keeps_its_promise_proves_it_and_keeps_nothing(store: Store) -> None:
    store.prove_create()
    assert list(store.list()) == []


def test_a_store_that_writes_over_objects_is_found_out(folder_store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FolderStore, "create", lambda self, key, data: self.put(key, data) or True)
    with pytest.raises(StoreError, match=r"must refuse to write over an object .* got an overwrite"):
        folder_store.prove_create()
    assert list(folder_store.list()) == []


def test_a_store_without_the_right_to_delete_is_told_which_right_is_missing(
    folder_store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: FolderStore, key: str) -> None:
        raise AccessRefused(f"store: delete_object on {key} was refused (AccessDenied). Allow s3:DeleteObject.")

    monkeypatch.setattr(FolderStore, "delete", refuse)
    with pytest.raises(AccessRefused, match=r"delete_object on probe-\w+ was refused .* Allow s3:DeleteObject"):
        folder_store.prove_create()
    monkeypatch.setattr(FolderStore, "create", lambda self, key, data: self.put(key, data) or True)
    with pytest.raises(StoreError, match="must refuse to write over an object"):  # the worse trouble
        folder_store.prove_create()


def test_a_promise_is_proven_once_a_process_and_store(folder_store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_store.prove_create()
    monkeypatch.setattr(FolderStore, "create", None)
    FolderStore(folder_store.root).prove_create()
    with pytest.raises(TypeError):
        folder_store.sub("other").prove_create()


# --- what answers is no S3 server, or not this one -------------------------------------------------------


class _Page(BaseHTTPRequestHandler):
    """A console: it answers every request with a page."""

    def do_GET(self) -> None:
        page = b"<html>sign in</html>"
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page)

    do_PUT = do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


def test_a_page_that_answers_everything_is_no_store(s3_endpoint: str, tmp_path: Path) -> None:
    assert s3_endpoint  # credentials
    with ThreadingHTTPServer(("127.0.0.1", 0), _Page) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        settings = S3Config(endpoint=f"http://127.0.0.1:{server.server_port}", max_attempts=1)
        store = S3Store("bucket", settings=settings)
        calls: list[Callable[[], object]] = [
            lambda: store.create("k", b"x"),
            lambda: store.put("k", b"x"),
            lambda: store.get("k"),
            lambda: store.exists("k"),
            lambda: store.fetch("k", tmp_path / "x"),
            lambda: champion_moves(store).last_seq(),
        ]
        for call in calls:
            with pytest.raises(AccessRefused, match=r"must be an S3 server, got an answer without an ETag\. Correct"):
                call()
        server.shutdown()
        serving.join()
    s3.client(settings).close()


def test_an_endpoint_with_a_password_is_told_without_it(s3_store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://bob:planted-pw@127.0.0.1:9")
    store = S3Store(s3_store.bucket, settings=S3Config(max_attempts=1, connect_timeout=3.5))
    with pytest.raises(StoreError, match=r"had no answer \(Could not connect .*://…@127\.0\.0\.1:9") as caught:
        store.get("k")
    assert "planted-pw" not in "".join(traceback.format_exception(caught.value))
    s3.client(store.settings).close()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("AWS_ENDPOINT_URL", "minio:9000", "Invalid endpoint: minio:9000"), ("AWS_PROFILE", "nope", "profile .nope. could not")],
)
def test_what_boto3_cannot_make_anything_of_is_a_config_error(
    s3_store: S3Store, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)
    store = S3Store(s3_store.bucket, settings=S3Config(connect_timeout=4.5 if name == "AWS_PROFILE" else 4.25))
    with pytest.raises(ConfigError, match=rf"s3: endpoint, region and profile must be .* {words}.*\. Correct s3\.endpoint"):
        store.get("k")


# --- troubles of a folder --------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["get", "exists", "create", "put", "prove", "local"])
def test_a_name_that_no_disk_takes_is_a_store_error(folder_store: FolderStore, operation: str) -> None:
    key = "x" * 300
    folder_store.put("k", b"x")
    argument = Part(key=key, sha256="0" * 64, size=1) if operation in {"prove", "local"} else key
    with pytest.raises(StoreError, match="File name too long"):
        getattr(folder_store, operation)(argument, *[b"x"] * (operation in {"create", "put"}))


def test_a_folder_where_an_object_shall_be_created_is_told(folder_store: FolderStore) -> None:
    folder_store.put("a/b", b"x")
    with pytest.raises(StoreError, match=r"cannot write .*/a \(Is a directory\)"):
        folder_store.create("a", b"x")


def test_a_disk_that_cannot_sync_a_folder_still_creates(folder_store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = os.fsync

    def refuse_folders(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(handle)

    monkeypatch.setattr("os.fsync", refuse_folders)
    assert folder_store.create("k", b"x")


def test_a_cache_that_cannot_be_made_is_told_with_its_remedy(s3_store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    part = s3_store.keep("k", b"x")
    monkeypatch.setenv("EVERFRESH_CACHE", "/proc/nowhere/cache")
    with pytest.raises(StoreError, match=r"must have a folder that can be written, got /proc/nowhere/.*Set EVER"):
        s3_store.local(part)
