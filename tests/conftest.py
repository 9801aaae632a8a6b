"""Fixtures for all tests: a real S3 server, a store of each kind, and nothing of the machine's own settings."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `support` is imported by all test folders

from support.s3 import BUCKET, environment, running_server

from everfresh.tasks.config import S3Config
from everfresh.tasks.store import FolderStore, S3Store, Store, s3


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has a cache of its own."""
    monkeypatch.setenv("EVERFRESH_CACHE", str(tmp_path / "everfresh-cache"))


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real S3 server; boto3's environment points at it from the first use to the end."""
    with running_server(tmp_path_factory.mktemp("s3")) as endpoint, pytest.MonkeyPatch.context() as patch:
        for name, value in environment(endpoint).items():
            patch.setenv(name, value)
        patch.delenv("AWS_PROFILE", raising=False)
        patch.setattr("boto3.DEFAULT_SESSION", None)
        s3.client.cache_clear()
        s3.client(S3Config()).create_bucket(Bucket=BUCKET)
        yield endpoint
        s3.client(S3Config()).close()
        s3.client.cache_clear()


@pytest.fixture
def folder_store(tmp_path: Path) -> FolderStore:
    """An empty store in a folder."""
    return FolderStore(tmp_path / "store")


@pytest.fixture
def s3_store(s3_endpoint: str) -> S3Store:
    """An empty store in S3."""
    return S3Store(BUCKET, f"test-{uuid.uuid4().hex[:12]}")


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest) -> Store:
    """An empty store; the test runs once with each kind."""
    found: Store = request.getfixturevalue(f"{request.param}_store")
    return found
