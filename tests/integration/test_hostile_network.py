"""The S3 store behind a network that breaks: an operation ends right or with a sentence, and no corrupt byte is returned."""

from __future__ import annotations

import random
import re
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.faults import copy, outcome
from support.loop import NothingNew, run_window, second_window
from support.proxy import Fault, Proxy, Request, Script, always, at, at_random, first_of, running_proxy
from support.proxy import calm as calm_script
from support.s3 import ACCESS_KEY, BUCKET, SECRET_KEY

from everfresh.tasks import alias
from everfresh.tasks.config import S3Config
from everfresh.tasks.errors import DigestMismatch, ObjectMissing, StoreError
from everfresh.tasks.ledger import champion_moves
from everfresh.tasks.records import AliasMove, Part
from everfresh.tasks.store import S3Store, Store

SMALL, OTHER = b'{"seq": 1}' * 300, b'{"seq": 2}' * 300
LARGE = random.Random(0).randbytes(20 << 20)
"""Goes up in three parts."""
IMPATIENT, PATIENT = 0.4, 10.0
"""Seconds without a byte until a request counts as failed."""
ENDS_WITHIN = 30.0
"""Seconds for one operation of which every request stalls."""

UNHEARD: tuple[Fault, ...] = ("reset", "500", "503", "429")
"""The server has not done it."""
UNKNOWN: tuple[Fault, ...] = ("lost", "late 500", "garbage", "stall", "duplicate", "twice")
"""The server has done it, and the client is not told so, or twice."""
ANY = UNHEARD + UNKNOWN
SOME = tuple(fault for fault in ANY if fault != "stall")
"""For operations that others stand for: each stall takes its time."""
SLOW = {"stall", "pause", "drip"}
UPLOAD: tuple[Fault, ...] = ("upload cut", "drip")
DOWNLOAD: tuple[Fault, ...] = ("cut", "pause", "drip")


def hostile_store(proxy: Proxy, fault: Fault | None = None, **settings: Any) -> S3Store:
    """An empty store behind the proxy, impatient where the fault is one of time."""
    timeout = IMPATIENT if fault in SLOW else PATIENT
    told = {"endpoint": proxy.endpoint, "max_attempts": 4, "read_timeout": timeout} | settings
    return S3Store(BUCKET, f"hostile-{uuid.uuid4().hex[:12]}", S3Config.model_validate(told))


@pytest.fixture(scope="module")
def proxy(s3_endpoint: str) -> Iterator[Proxy]:
    """A proxy in front of the real server; calm but for ``with proxy.injecting(…)``."""
    with running_proxy(s3_endpoint) as running:
        yield running


@pytest.fixture(autouse=True)
def _swift(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other at once: how long they wait in between is botocore's matter."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.01)


# --- each operation, each fault --------------------------------------------------------------------------


@dataclass(frozen=True)
class Operation:
    """An operation on the object ``k``."""

    do: Callable[[S3Store, Path], Any]
    right: Callable[[Any, S3Store, Path], bool]
    """Whether it ended right, by its result, the store and the local folder."""
    hit: dict[str, str]
    """The request that the fault befalls."""
    before: bytes | None = None
    """What stands there before."""
    faults: tuple[Fault, ...] = ANY


def stands(data: bytes) -> Callable[[Any, S3Store, Path], bool]:
    return lambda _, store, __: store.get("k") == data


def put_file(data: bytes) -> Callable[[S3Store, Path], None]:
    def do(store: S3Store, folder: Path) -> None:
        (folder / "up").write_bytes(data)
        store.put_file("k", folder / "up")

    return do


def keep_file(store: S3Store, folder: Path) -> None:
    (folder / "up").write_bytes(LARGE)
    store.keep_file("k", folder / "up")


def fetch(store: S3Store, folder: Path) -> None:
    store.fetch("k", folder / "down")


def fetched(data: bytes) -> Callable[[Any, S3Store, Path], bool]:
    return lambda _, __, folder: (folder / "down").read_bytes() == data


def missing(store: S3Store) -> bool:
    try:
        store.get("k")
    except ObjectMissing:
        return True
    return False


def create(store: S3Store, _folder: Path) -> bool:
    return store.create("k", SMALL)


PUT, GET, HEAD, DELETE = ({"method": name} for name in ("PUT", "GET", "HEAD", "DELETE"))
START, END = {"method": "POST", "query": "uploads"}, {"method": "POST", "query": "uploadId="}
PART, PIECE = {"method": "PUT", "query": "partNumber=2"}, {"method": "GET"}

OPERATIONS = {
    "put": Operation(lambda s, _: s.put("k", SMALL), stands(SMALL), PUT, OTHER, ANY + UPLOAD),
    "create": Operation(create, lambda won, s, _: won and s.get("k") == SMALL, PUT, None, ANY + UPLOAD),
    "create what stands": Operation(create, lambda won, s, _: not won and s.get("k") == OTHER, PUT, OTHER, SOME),
    "get": Operation(lambda s, _: s.get("k"), lambda got, *_: got == SMALL, GET, SMALL, ANY + DOWNLOAD),
    "get, and none is there": Operation(lambda s, _: missing(s), lambda got, *_: got is True, GET, None, SOME),
    "put_file": Operation(put_file(SMALL), stands(SMALL), PUT, OTHER, ANY + UPLOAD),
    "put_file, its start": Operation(put_file(LARGE), stands(LARGE), START, OTHER, ("reset", "lost", "cut")),
    "put_file, a part": Operation(put_file(LARGE), stands(LARGE), PART, OTHER, ("503", "lost", "duplicate", "upload cut")),
    "put_file, its end": Operation(
        put_file(LARGE), stands(LARGE), END, OTHER, ("reset", "lost", "late 500", "stall", "duplicate", "cut", "200")
    ),
    "keep_file, its proof": Operation(keep_file, stands(LARGE), GET, OTHER, ("503", "lost", *DOWNLOAD)),
    "fetch": Operation(fetch, fetched(SMALL), GET, SMALL, ANY + DOWNLOAD),
    "fetch, a part": Operation(fetch, fetched(LARGE), PIECE, LARGE, ("503", "cut", "pause")),
    "list": Operation(lambda s, _: [i.key for i in s.list()], lambda got, *_: got == ["k"], GET, SMALL, ANY + DOWNLOAD),
    "exists": Operation(lambda s, _: s.exists("k"), lambda got, *_: got is True, HEAD, SMALL),
    "exists, and none does": Operation(lambda s, _: s.exists("k"), lambda got, *_: got is False, HEAD, None, SOME),
    "delete": Operation(lambda s, _: s.delete("k"), lambda _, s, __: not s.exists("k"), DELETE, SMALL, SOME),
    "now": Operation(
        lambda s, _: s.now(), lambda time, *_: abs(time - datetime.now(UTC)) < timedelta(seconds=30), GET, None, SOME
    ),
}


def sentence(error: StoreError) -> None:
    """The message must name the bucket and a remedy; nothing of the traceback has the credentials."""
    assert f"s3://{BUCKET}" in str(error)
    assert re.search(r"[.:;] (Check|Wait|Run|Try|Use|Restore)\b", str(error)), error
    whole = "".join(traceback.format_exception(error))
    assert not [secret for secret in (ACCESS_KEY, SECRET_KEY, "Signature=") if secret in whole]


def prepared(store: S3Store, name: str) -> Operation:
    operation = OPERATIONS[name]
    if operation.before is not None:
        store.put("k", operation.before)
    return operation


ONCE = [(name, fault) for name, operation in OPERATIONS.items() for fault in operation.faults]


@pytest.mark.parametrize(("name", "fault"), ONCE, ids=[f"{name}: {fault}" for name, fault in ONCE])
def test_a_fault_that_passes_leaves_an_operation_right(proxy: Proxy, tmp_path: Path, name: str, fault: Fault) -> None:
    store = hostile_store(proxy, fault)
    operation = prepared(store, name)
    with proxy.injecting(at(fault, **operation.hit)):
        result = operation.do(store, tmp_path)
    assert proxy.happened == [fault]
    assert operation.right(result, store, tmp_path)


FATAL = {"reset", "500", "503", "429", "lost", "late 500", "garbage", "cut"}
ALWAYS: list[tuple[str, Fault]] = [(name, fault) for name, fault in ONCE if fault in FATAL and "," not in name]
ALWAYS += [("put", "stall"), ("get", "stall"), ("fetch", "stall")]


@pytest.mark.parametrize(("name", "fault"), ALWAYS, ids=[f"{name}: {fault}" for name, fault in ALWAYS])
def test_a_fault_that_stays_is_a_sentence_without_secrets(proxy: Proxy, tmp_path: Path, name: str, fault: Fault) -> None:
    store = hostile_store(proxy, fault, max_attempts=2)
    operation = prepared(store, name)
    started = time.monotonic()
    with proxy.injecting(always(fault)), pytest.raises(StoreError) as caught:
        operation.do(store, tmp_path)
    assert time.monotonic() - started < ENDS_WITHIN
    assert set(proxy.happened) == {fault}
    sentence(caught.value)


@pytest.mark.parametrize("fault", ["cut", "pause"])
@pytest.mark.parametrize("read", ["get", "download"])
def test_an_answer_that_breaks_off_while_it_says_that_nothing_is_there_is_a_store_error(
    proxy: Proxy, tmp_path: Path, read: str, fault: Fault
) -> None:
    """botocore reads the body of a refusal where it does not expect trouble."""
    store = hostile_store(proxy, fault)
    with proxy.injecting(always(fault)), pytest.raises(StoreError):
        store.get("k") if read == "get" else store.download("k", tmp_path / "down")
    assert set(proxy.happened) == {fault}


@pytest.mark.parametrize("fault", ["duplicate", "twice"])
def test_where_every_message_comes_twice_all_operations_end_right(proxy: Proxy, tmp_path: Path, fault: Fault) -> None:
    store = hostile_store(proxy)
    for name in (name for name in OPERATIONS if "," not in name):
        store.delete("k")
        operation = prepared(store, name)
        with proxy.injecting(always(fault)):
            result = operation.do(store, tmp_path)
        assert fault in proxy.happened
        assert operation.right(result, store, tmp_path), name


# --- bytes that change on the way ------------------------------------------------------------------------

WRITES: dict[str, Callable[[S3Store, Path], Any]] = {
    "put": lambda store, _: store.put("k", SMALL),
    "put_file": put_file(SMALL),
    "create": create,
    "keep": lambda store, _: store.keep("k", SMALL),
}
FLIPS = [(name, verify) for verify in ("read_back", "checksum") for name in WRITES if verify == "checksum" or "put" not in name]


@pytest.mark.parametrize("times", [1, 1000], ids=["once", "always"])
@pytest.mark.parametrize(("name", "verify"), FLIPS)
def test_a_byte_that_changes_on_its_way_up_is_found(proxy: Proxy, tmp_path: Path, name: str, verify: str, times: int) -> None:
    """A bare put is proven by the server or not at all; what a record names is read back."""
    store = hostile_store(proxy, verify=verify)
    with proxy.injecting(at("upload flipped", times=times, method="PUT")):
        try:
            WRITES[name](store, tmp_path)
        except StoreError as error:
            sentence(error)
        else:
            assert store.get("k") == SMALL
    assert "upload flipped" in proxy.happened


@pytest.mark.parametrize("verify", ["read_back", "checksum"])
def test_a_byte_that_changes_in_a_part_of_a_large_file_is_found(proxy: Proxy, tmp_path: Path, verify: str) -> None:
    store = hostile_store(proxy, verify=verify)
    (tmp_path / "up").write_bytes(LARGE)
    with proxy.injecting(at("upload flipped", **PART)):
        try:
            part = store.keep_file("k", tmp_path / "up")
        except StoreError as error:
            sentence(error)
        else:
            assert store.local(part).read_bytes() == LARGE
    assert proxy.happened == ["upload flipped"]


READS: dict[str, Callable[[S3Store, Part, Path], bytes | None]] = {
    "get": lambda store, part, _: store.get(part.key),
    "read": lambda store, part, _: store.read(part),
    "local": lambda store, part, _: store.local(part).read_bytes(),
    "fetch": lambda store, part, folder: store.fetch(part.key, folder / "down") or (folder / "down").read_bytes(),
    "prove": lambda store, part, _: store.prove(part),
}


@pytest.mark.parametrize("flip", ["flipped", "flipped alike"])
@pytest.mark.parametrize("read", READS)
def test_a_byte_that_changes_on_its_way_down_is_read_again_and_never_returned(
    proxy: Proxy, tmp_path: Path, read: str, flip: Fault
) -> None:
    store = hostile_store(proxy)
    part = store.keep("k", SMALL)
    with proxy.injecting(always(flip, method="GET")), pytest.raises(DigestMismatch) as caught:
        READS[read](store, part, tmp_path)
    assert set(proxy.happened) == {flip}
    sentence(caught.value)
    with proxy.injecting(at(flip, method="GET")):
        found = READS[read](store, part, tmp_path)
    assert proxy.happened == [flip]
    assert found == (None if read == "prove" else SMALL)
    assert [item.key for item in store.list()] == ["k"]


@pytest.mark.parametrize("read", ["fetch", "local", "prove"])
def test_a_byte_of_a_large_file_that_is_always_the_same_wrong_one_is_never_taken(
    proxy: Proxy, tmp_path: Path, read: str
) -> None:
    (tmp_path / "up").write_bytes(LARGE)
    store = hostile_store(proxy, max_attempts=2)
    part = store.keep_file("k", tmp_path / "up")
    with proxy.injecting(always("flipped alike", method="GET")), pytest.raises(DigestMismatch) as caught:
        READS[read](store, part, tmp_path)
    sentence(caught.value)


# --- who was first ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [*ANY, "upload cut"])
def test_of_two_creators_on_a_bad_line_the_one_told_so_has_its_bytes_there(proxy: Proxy, fault: Fault) -> None:
    store = hostile_store(proxy, fault)
    with proxy.injecting(at(fault, times=2, method="PUT")), ThreadPoolExecutor(2) as pool:
        won = list(pool.map(lambda data: store.create("k", data), (SMALL, OTHER)))
    assert proxy.happened == [fault, fault]
    assert sorted(won) == [False, True]
    assert store.get("k") == (SMALL if won[0] else OTHER)


def move(store: Store, who: str) -> AliasMove:
    return AliasMove(seq=1, id=who, kind="publish", release="r1", version=1, by=who, reason="", at=store.now())


@pytest.mark.parametrize("fault", [*ANY, "upload cut"])
def test_a_move_on_a_bad_line_is_made_once(proxy: Proxy, fault: Fault) -> None:
    store = hostile_store(proxy, fault)
    moves, mine, late = champion_moves(store), move(store, "me"), move(store, "late")
    with proxy.injecting(at(fault, method="PUT", path="champion/")):
        assert moves.append(1, mine)
    assert proxy.happened == [fault]
    with proxy.injecting(at(fault, method="PUT", path="champion/")):
        assert not moves.append(1, late)
    with proxy.injecting(at(fault, method="PUT", path="champion/")):
        pinned = alias.pin(store, by="ana")
    assert proxy.happened == [fault]
    assert list(moves) == [mine, pinned]


@pytest.mark.parametrize("fault", ["reset", "500", "lost"])
def test_a_move_whose_hint_does_not_get_through_is_made(proxy: Proxy, fault: Fault) -> None:
    store = hostile_store(proxy)
    moves, mine = champion_moves(store), move(store, "me")
    with proxy.injecting(always(fault, path="champion.json")):
        assert moves.append(1, mine)
    assert set(proxy.happened) == {fault}
    assert (moves.last_seq(), moves.last()) == (1, mine)


def test_a_store_that_is_deaf_to_if_none_match_gets_no_window_and_no_move(proxy: Proxy, tmp_path: Path) -> None:
    """Whatever stands there already, and in each process anew: the server may have been updated, or a proxy put before it."""
    calm, config = second_window(tmp_path)
    store = hostile_store(proxy)
    copy(calm, S3Store(BUCKET, store.prefix))
    words = r"must refuse to write over an object \(If-None-Match: \*\), got an overwrite\. Use AWS S3"
    before = [item.key for item in store.list()]
    with proxy.injecting(always("deaf", method="PUT")):
        for change in (alias.pin, lambda store: run_window(store, config)):
            with pytest.raises(StoreError, match=words):
                change(store)
    assert "deaf" in proxy.happened
    assert [item.key for item in store.list() if not item.key.startswith(("windows/", "quarantine/"))] == [
        key for key in before if not key.startswith(("windows/", "quarantine/"))
    ]
    assert alias.pin(store).kind == "pin"
    with proxy.injecting(calm_script):
        assert alias.unpin(store).kind == "unpin"
    assert not [request for request in proxy.seen if "probe-" in request.path]  # proven once


# --- files that do not get through -----------------------------------------------------------------------


@pytest.mark.parametrize(("old", "abort"), [(None, True), (OTHER, False)], ids=["new", "replaced, the abort fails too"])
@pytest.mark.parametrize(("fault", "hit"), [("reset", START), ("upload cut", PART), ("503", PART), ("500", END)])
def test_of_a_file_that_does_not_get_through_nothing_is_seen(
    proxy: Proxy, tmp_path: Path, fault: Fault, hit: dict[str, str], abort: bool, old: bytes | None
) -> None:
    store = hostile_store(proxy, max_attempts=2)
    if old is not None:
        store.put("k", old)
    scripts = [always(fault, **hit), *([] if abort else [always("reset", method="DELETE")])]
    with proxy.injecting(first_of(*scripts)), pytest.raises(StoreError) as caught:
        put_file(LARGE)(store, tmp_path)
    assert fault in proxy.happened
    assert [(item.key, item.size) for item in store.list()] == ([("k", len(old))] if old else [])
    assert store.exists("k") == (old is not None)
    assert bool(list(store.unfinished())) is (not abort and hit is not START)
    sentence(caught.value)


# --- a whole window --------------------------------------------------------------------------------------

FAULTS: list[Fault] = [*ANY, *UPLOAD, *DOWNLOAD, "upload flipped", "flipped"]
RERUNS = 40


def unlisted(script: Script) -> Script:
    """No changed byte in a listing: S3 has no checksum for it, only TLS guards it."""

    def but(request: Request) -> Fault | None:
        fault = script(request)
        return None if fault == "flipped" and "list-type" in request.query else fault

    return but


@pytest.mark.parametrize(
    ("attempts", "share", "verify"),
    [(4, 0.1, "checksum"), (1, 0.05, "read_back")],
    ids=["tries again", "gives up, and is run again"],
)
def test_a_window_on_a_network_that_breaks_all_the_time_ends_as_on_a_disk(
    proxy: Proxy, tmp_path: Path, attempts: int, share: float, verify: str
) -> None:
    calm, config = second_window(tmp_path)
    store = hostile_store(proxy, verify=verify, read_timeout=0.5, max_attempts=attempts)
    near = S3Store(BUCKET, store.prefix)  # the same objects, without the proxy
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda item: near.put(item.key, calm.get(item.key)), calm.list()))
    run_window(calm, config)
    given_up = 0
    with proxy.injecting(unlisted(at_random(FAULTS, share, seed=attempts))):
        while given_up < RERUNS:
            try:
                run_window(store, config)
            except StoreError as error:
                sentence(error)
                given_up += 1
            except NothingNew:
                break
    assert len(proxy.happened) > 5
    assert given_up or attempts > 1
    assert outcome(near) == outcome(calm)
