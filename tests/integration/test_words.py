"""A run that fails on S3 ends with one sentence that says what to do, and nothing of a credential ever comes out."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from support.cli import Everfresh
from support.prefect_server import PrefectServer
from support.proxy import at, running_proxy
from support.s3 import ACCESS_KEY, BUCKET, READER_KEY, READER_SECRET, SECRET_KEY, environment
from support.stream import Pipeline, make_pipeline

from everfresh.tasks.store import S3Store

TOKEN = "tests-Qv8-planted-session-token"
CREDENTIALS = (ACCESS_KEY, SECRET_KEY, READER_KEY, READER_SECRET, "AKIANOBODY0000000000", "tests-Zz-wrong-secret", TOKEN)


def on_s3(folder: Path, **s3: object) -> Pipeline:
    """A pipeline whose store is a prefix of its own in the tests' bucket."""
    made = make_pipeline(folder, "words", s3={"max_attempts": 1, "connect_timeout": 2, **s3})
    made.rewrite(store=f"s3://{BUCKET}/words-{uuid.uuid4().hex[:8]}")
    return made


def silent(*outputs: str | bytes) -> None:
    """Fail if one of the credentials stands in an output."""
    for output in outputs:
        data = output.encode() if isinstance(output, str) else output
        assert [name for name in CREDENTIALS if name.encode() in data] == []


TROUBLES = {
    "wrong secret": (
        (ACCESS_KEY, "tests-Zz-wrong-secret"),
        {},
        r"was refused (SignatureDoesNotMatch): the secret key is not the right one. Correct AWS_ACCESS_KEY_ID",
    ),
    "unknown key": (
        ("AKIANOBODY0000000000", SECRET_KEY),
        {},
        r"was refused (InvalidAccessKeyId): the access key is not known there. Correct AWS_ACCESS_KEY_ID",
    ),
    "no server": (
        (ACCESS_KEY, SECRET_KEY),
        {"endpoint": "http://127.0.0.1:9"},
        "had no answer (Could not connect to the endpoint URL",
    ),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_store_that_cannot_be_read_is_one_sentence(
    everfresh: Everfresh, s3_endpoint: str, tmp_path: Path, trouble: str
) -> None:
    keys, settings, words = TROUBLES[trouble]
    made = on_s3(tmp_path / "p", **settings)
    for command in (["status"], ["--debug", "status"]):
        done = everfresh(*command, made.file, **environment(s3_endpoint, *keys))
        assert done.returncode == 1
        silent(done.stdout, done.stderr)
        if command == ["status"]:
            (sentence,) = done.stderr.splitlines()
            assert sentence.startswith(f"everfresh: store: get_object on s3://{BUCKET}/")
            assert words in sentence


def test_a_bucket_that_is_not_there_is_one_sentence(everfresh: Everfresh, s3_endpoint: str, tmp_path: Path) -> None:
    made = on_s3(tmp_path / "p")
    made.rewrite(store="s3://no-such-bucket-here/p")
    done = everfresh("history", made.file, **environment(s3_endpoint))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "was refused (NoSuchBucket): there is no such bucket. Create it, or correct the address." in done.stderr


def test_who_may_only_read_is_told_which_rights_are_missing(everfresh: Everfresh, s3_endpoint: str, tmp_path: Path) -> None:
    made = on_s3(tmp_path / "p")
    made.arrives(1, samples=60)
    reader = environment(s3_endpoint, READER_KEY, READER_SECRET)
    done = everfresh("run", made.file, **reader)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert "was refused (AccessDenied): the credentials have no right to do this. Allow s3:GetObject, s3:PutObject" in last
    checked = everfresh("check", made.file, **reader)
    assert "ok   store reach: " in checked.stdout
    assert "FAIL store write: store: put_object on s3://" in checked.stdout
    silent(done.stdout, done.stderr, checked.stdout, checked.stderr)


def test_credentials_that_expire_amid_a_run_are_one_sentence_and_nothing_of_them_is_left(
    everfresh: Everfresh, server: PrefectServer, s3_endpoint: str, tmp_path: Path
) -> None:
    """Nor of a session token that the server refuses: in no output, object, log or database of a run that failed."""
    made = on_s3(tmp_path / "p")
    made.arrives(1, samples=60)
    cache = {"EVERFRESH_CACHE": str(tmp_path / "cache")}
    with running_proxy(s3_endpoint) as proxy, proxy.injecting(at("400 expired", nth=12, times=9999)):
        expired = everfresh("run", made.file, **environment(proxy.endpoint), **cache)
        assert "400 expired" in proxy.happened
    refused = everfresh("--debug", "run", made.file, **environment(s3_endpoint), **cache, AWS_SESSION_TOKEN=TOKEN)
    runs = [expired, refused]
    assert [done.returncode for done in runs] == [1, 1]
    assert "Traceback" not in expired.stderr
    assert "the credentials have expired. Renew them: log in again" in expired.stderr.splitlines()[-1]
    store = made.store
    assert isinstance(store, S3Store)
    objects = [store.get(item.key) for item in store.list()]
    files = [path.read_bytes() for place in (server.home, tmp_path) for path in place.rglob("*") if path.is_file()]
    silent(*(part for done in runs for part in (done.stdout, done.stderr)), *objects, *files)


def test_planted_credentials_are_in_no_output_object_cache_log_or_database(
    everfresh: Everfresh, server: PrefectServer, s3_endpoint: str, tmp_path: Path
) -> None:
    made = on_s3(tmp_path / "p", max_attempts=3)
    made.arrives(1, samples=200)
    variables = environment(s3_endpoint) | {"EVERFRESH_CACHE": str(tmp_path / "cache")}
    ran = everfresh("--debug", "run", made.file, **variables)
    assert ran.returncode == 0, ran.stderr
    shown = everfresh("status", made.file, "--json", **variables)
    rolled = everfresh("rollback", made.file, **variables)
    assert (shown.returncode, rolled.returncode) == (0, 1)
    silent(*(part for done in (ran, shown, rolled) for part in (done.stdout, done.stderr)))
    store = made.store
    assert isinstance(store, S3Store)
    objects = [store.get(item.key) for item in store.list()]
    files = [path.read_bytes() for place in (server.home, tmp_path) for path in place.rglob("*") if path.is_file()]
    assert len(objects) > 10
    assert any(b"SQLite format 3" in data[:16] for data in files)
    silent(*objects, *files)
