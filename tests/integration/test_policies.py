"""The policies of `infra/policies/`, held against a real S3 server: each role can do its work and nothing beyond it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from support.loop import open_tick, run_window, second_window
from support.prefect_server import PrefectServer
from support.s3 import BUCKET, ROLES, environment

from everfresh.flows.alerts import announce, deliver
from everfresh.flows.look import history, status
from everfresh.tasks import alias, drift, fine_tune, journal, sweep
from everfresh.tasks.config import PipelineConfig, S3Config
from everfresh.tasks.errors import AccessRefused, ObjectMissing
from everfresh.tasks.ledger import champion_moves
from everfresh.tasks.records import Question
from everfresh.tasks.serving import load_champion
from everfresh.tasks.store import S3Store, Store, pipeline_store, s3
from everfresh.tasks.store.prove import proofs

FOLDERS = (
    "aliases/champion", "alerts", "approvals", "candidates/c", "candidates/c/attempts/a", "drift/d", "embeddings/e/v",
    "evaluations/e", "journal", "packages/p", "quarantine/v", "references/r", "releases/r", "stream", "ticks", "timeline",
    "unsent", "windows/v", "replays/n/candidates/c", "replays/n/journal",
)  # fmt: skip
WRITES = {
    "reader": set(),
    "worker": {"candidates/c", "candidates/c/attempts/a", "embeddings/e/v", "replays/n/candidates/c"},
    "publisher": set(FOLDERS),
}
DELETES = {
    "reader": set(),
    "worker": {"candidates/c/attempts/a"},
    "publisher": {
        "candidates/c", "candidates/c/attempts/a", "drift/d", "evaluations/e", "packages/p", "quarantine/v", "references/r",
        "releases/r", "unsent", "windows/v", "replays/n/candidates/c",
    },
}  # fmt: skip
READS_NOT = {
    "reader": {"candidates/c", "candidates/c/attempts/a", "drift/d", "embeddings/e/v", "evaluations/e", "packages/p",
               "quarantine/v", "references/r", "unsent", "windows/v", "replays/n/candidates/c"},
    "worker": set(),
    "publisher": set(),
}  # fmt: skip
CODE = "everfresh.tasks.models:small_cnn"
As = Callable[[str], AbstractContextManager[None]]


@pytest.fixture
def acting_as(s3_endpoint: str) -> As:
    """Everything in the block is done with the keys of that role."""

    @contextmanager
    def act(role: str) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment(s3_endpoint, *ROLES[role]).items():
                patch.setenv(name, value)
            patch.setattr("boto3.DEFAULT_SESSION", None)
            s3.client.cache_clear()
            yield
        s3.client.cache_clear()

    return act


@pytest.fixture
def pipeline(s3_endpoint: str, tmp_path: Path) -> tuple[PipelineConfig, Store]:
    """A pipeline on S3 with a champion, in whose inbox a window of aged digits waits."""
    folder, config = second_window(tmp_path)
    config = config.model_copy(update={"store": f"s3://{BUCKET}/policies-{uuid.uuid4().hex[:8]}"})
    store = pipeline_store(config)
    for item in folder.list():
        store.put(item.key, folder.get(item.key))
    return config, store


def attempt(done: Callable[[], object]) -> bool:
    """Whether it was allowed; any other failure is one of the test."""
    try:
        done()
    except AccessRefused:
        return False
    return True


@pytest.mark.parametrize("role", sorted(ROLES))
def test_a_role_reads_writes_and_deletes_what_its_policy_says(role: str, acting_as: As, s3_store: S3Store) -> None:
    for folder in FOLDERS:
        s3_store.put(f"{folder}/there", b"before")
    with acting_as(role):
        mine = S3Store(BUCKET, s3_store.prefix)
        read = {folder for folder in FOLDERS if attempt(lambda f=folder: mine.get(f"{f}/there"))}
        wrote = {folder for folder in FOLDERS if attempt(lambda f=folder: mine.put(f"{f}/there", b"after"))}
        created = {folder for folder in FOLDERS if attempt(lambda f=folder: mine.create(f"{f}/new", b"new"))}
        gone = {folder for folder in FOLDERS if attempt(lambda f=folder: mine.delete(f"{f}/there"))}
    assert read == set(FOLDERS) - READS_NOT[role]
    assert wrote == created == WRITES[role]
    assert gone == DELETES[role]
    left = {item.key.removesuffix("/there") for item in s3_store.list() if item.key.endswith("/there")}
    assert left == set(FOLDERS) - DELETES[role]
    assert {f for f in left if s3_store.get(f"{f}/there") == b"after"} == WRITES[role] - DELETES[role]


@pytest.mark.parametrize("role", sorted(ROLES))
def test_what_is_missing_is_told_from_what_is_forbidden(role: str, acting_as: As, s3_store: S3Store) -> None:
    """Logs are read by probing for the next number: that must be answered with 404, which needs the right to list."""
    with acting_as(role), pytest.raises(ObjectMissing):
        S3Store(BUCKET, s3_store.prefix).get("aliases/champion/000000001.json")


def test_a_name_cannot_be_chosen_to_get_around_a_policy(acting_as: As, s3_store: S3Store) -> None:
    """`*` of a policy stands for slashes too: an alias called `candidates` is an alias all the same."""
    s3_store.put("aliases/candidates/1.json", b"before")
    for role in ("worker", "publisher"):
        with acting_as(role):
            mine = S3Store(BUCKET, s3_store.prefix)
            assert not attempt(lambda mine=mine: mine.delete("aliases/candidates/1.json"))
            assert role == "publisher" or not attempt(lambda mine=mine: mine.put("aliases/candidates/1.json", b"x"))
    assert s3_store.get("aliases/candidates/1.json") == b"before"


@pytest.mark.parametrize("role", sorted(ROLES))
def test_no_role_changes_the_bucket_or_makes_itself_greater(role: str, acting_as: As, s3_endpoint: str) -> None:
    from botocore.exceptions import ClientError

    with acting_as(role):
        mine = s3.client(S3Config())
        for forbidden in (
            lambda: mine.delete_bucket(Bucket=BUCKET),
            lambda: mine.put_bucket_policy(Bucket=BUCKET, Policy='{"Version": "2012-10-17", "Statement": []}'),
            lambda: mine.put_object(Bucket=f"{BUCKET}-other", Key="k", Body=b""),
            lambda: mine.put_object_acl(Bucket=BUCKET, Key="k", ACL="public-read"),
        ):
            with pytest.raises(ClientError, match="AccessDenied"):
                forbidden()


def test_a_worker_trains_a_publisher_goes_live_a_reader_follows(pipeline: tuple[PipelineConfig, Store], acting_as: As) -> None:
    """The real stages, each with the keys of its role."""
    config, owner = pipeline
    with acting_as("publisher"):
        tick = open_tick(pipeline_store(config), config)
        drift.detect(pipeline_store(config), config, tick)
    with acting_as("worker"):
        mine = pipeline_store(config)
        made = fine_tune.fine_tune(mine, config, tick, "full", None)
        for step in (lambda: alias.pin(mine, reason="mine"), lambda: journal.idle(mine)):
            with pytest.raises(AccessRefused):
                step()
    assert made.rung == "full"
    assert champion_moves(owner).last_seq() == 1
    with acting_as("publisher"):
        outcome = run_window(pipeline_store(config), config)
        assert outcome.move is not None
        assert outcome.move.version == 2
        assert sweep.sweep(pipeline_store(config), timedelta(0)) is not None
        assert [name for name, proof in proofs(pipeline_store(config)) if not attempt(proof)] == []
    with acting_as("reader"):
        assert load_champion(f"{config.store}/{config.name}", code=CODE).version == 2
        assert status(config)["champion"] == "v2"
        assert len(history(pipeline_store(config))[0]) == 2
        with pytest.raises(AccessRefused):
            alias.pin(pipeline_store(config), reason="mine")
    assert champion_moves(owner).last_seq() == 2


def test_a_publisher_tells_what_waited_while_the_server_was_down(
    pipeline: tuple[PipelineConfig, Store], acting_as: As, server: PrefectServer
) -> None:
    """The first thing that monitor and retrain do: were it refused, no tick would begin again."""
    config, owner = pipeline
    now = datetime.now(UTC)
    asked = Question(
        id="00000002-tick-before_training", seq=2, request="", stage="before_training", title="May it train?", words="-",
        asked_at=now, expires_at=now,
    )  # fmt: skip
    with acting_as("publisher"):
        with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
            announce(config, None, asked)
        name = f"approval.asked-{asked.id}.json"
        assert [item.key for item in owner.list("unsent")] == [f"unsent/{name}"]
        with temporary_settings({PREFECT_API_URL: server.api}):
            deliver(config)
    assert list(owner.list("unsent")) == []
    assert [item.key for item in owner.list("alerts")] == [f"alerts/{name}"]
