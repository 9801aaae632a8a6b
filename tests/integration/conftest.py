"""The console script against a real Prefect server, and a pipeline that it took two windows through."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from support.cli import SECRET, Everfresh
from support.prefect_server import PrefectServer, session_server
from support.stream import AGED, Pipeline, make_pipeline


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PrefectServer:
    """The session's Prefect server."""
    return session_server(request.config, tmp_path_factory)


@pytest.fixture(scope="session")
def everfresh(server: PrefectServer, tmp_path_factory: pytest.TempPathFactory) -> Everfresh:
    """The console script as a user's shell starts it: a server, a cache, a secret."""
    own = {
        "EVERFRESH_CACHE": str(tmp_path_factory.mktemp("cache")),
        "AWS_ACCESS_KEY_ID": "planted",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "OMP_NUM_THREADS": "1",  # the pictures are tiny; more threads would only wait for each other
    }
    return Everfresh(server.environment() | own)


@pytest.fixture(scope="session")
def played(everfresh: Everfresh, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A pipeline after `everfresh run` over a clean window and an aged one. Look, do not touch: take a copy."""
    made = make_pipeline(
        tmp_path_factory.mktemp("by-hand") / "p", "by-hand", drift={"report": True}, evaluation={"report": True}
    )
    made.arrives(1, samples=200)
    first = everfresh("run", made.file)
    made.arrives(2, AGED)
    second = everfresh("run", made.file)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    return made


@pytest.fixture
def pipeline(played: Pipeline, tmp_path: Path) -> Pipeline:
    """A copy of the played pipeline under a name of its own, quick: the head alone, no report and no page."""
    name = f"copy-{uuid.uuid4().hex[:8]}"
    return played.copy(
        tmp_path / "pipeline", name, drift={"report": False}, evaluation={"report": False}, policy={"ladder": ["head"]}
    )
