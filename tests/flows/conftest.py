"""A real Prefect server, and a pipeline that two windows went through."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.prefect_server import PrefectServer, session_server
from support.stream import AGED, Pipeline, make_pipeline


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """The session's Prefect server; the flows of this process report to it."""
    import torch
    from prefect.logging.handlers import APILogHandler
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, PREFECT_LOGGING_EXTRA_LOGGERS, temporary_settings

    running = session_server(request.config, tmp_path_factory)
    own = {PREFECT_API_URL: running.api, PREFECT_HOME: running.home, PREFECT_LOGGING_EXTRA_LOGGERS: "everfresh"}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the pictures are tiny; more threads would only wait for each other
    with temporary_settings(own):
        yield running
        APILogHandler().flush()
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def played(server: PrefectServer, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A pipeline after a clean window and an aged one. Look, do not touch: take `pipeline` to change something."""
    from everfresh.flows.retrain import retrain

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVERFRESH_CACHE", str(tmp_path_factory.mktemp("cache")))
        made = make_pipeline(tmp_path_factory.mktemp("played") / "p", "played", drift={"report": True})
        made.arrives(1, samples=200)
        retrain(made.config)
        made.arrives(2, AGED)
        retrain(made.config)
    return made


@pytest.fixture
def pipeline(played: Pipeline, tmp_path: Path) -> Pipeline:
    """A copy of the played pipeline under a name of its own, quick: the head alone, no report by Evidently."""
    name = f"copy-{uuid.uuid4().hex[:8]}"
    return played.copy(tmp_path / "pipeline", name, drift={"report": False}, policy={"ladder": ["head"]})
