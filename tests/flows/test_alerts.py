"""Events that wait for the next tick: one that the server refuses, and two ticks that begin together."""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier
from uuid import uuid4

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from support.prefect_server import PrefectServer
from support.stream import Pipeline, make_pipeline

from everfresh.flows.alerts import announce, deliver
from everfresh.tasks.records import Question


def asked(number: int) -> Question:
    now = datetime.now(UTC)
    return Question(
        id=f"{number:08d}-tick-before_training", seq=number, request="", stage="before_training", title="May it train?",
        words="-", asked_at=now, expires_at=now,
    )  # fmt: skip


def waiting(folder: Path, *numbers: int) -> Pipeline:
    """A pipeline whose events no server has taken."""
    made = make_pipeline(folder, f"waiting-{uuid4().hex[:8]}")
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        for number in numbers:
            announce(made.config, None, asked(number))
    assert len(list(made.store.list("unsent"))) == len(numbers)
    return made


def names(made: Pipeline, folder: str) -> list[str]:
    return [item.key.removeprefix(f"{folder}/") for item in made.store.list(folder)]


def test_an_event_that_the_server_refuses_is_put_aside_and_holds_up_no_other(
    tmp_path: Path, server: PrefectServer, caplog: pytest.LogCaptureFixture
) -> None:
    made = waiting(tmp_path, 7)
    labels = {"prefect.resource.id": f"everfresh.pipeline.{made.name}", **{f"label-{n}": "-" for n in range(501)}}
    long = {"event": "everfresh.approval.asked", "resource": labels, "payload": {}}  # Prefect takes 500
    made.store.create("unsent/a-first.json", json.dumps(long).encode())
    with caplog.at_level(logging.WARNING):
        deliver(made.config)
    assert "everfresh.approval.asked was refused by Prefect (" in caplog.text
    assert "The maximum number of labels per resource is 500" in caplog.text
    assert names(made, "alerts") == ["approval.asked-00000007-tick-before_training.json"]
    assert names(made, "unsent") == ["refused/a-first.json"]
    caplog.clear()
    deliver(made.config)
    assert caplog.text == ""
    assert [event["payload"]["window"] for event in server.events(made.name, "everfresh.approval.asked")] == [None]


def test_a_server_that_refuses_everybody_keeps_an_event_waiting(tmp_path: Path, server: PrefectServer) -> None:
    """A wrong address answers 404: that tells nothing of the event."""
    made = waiting(tmp_path, 7)
    with temporary_settings({PREFECT_API_URL: f"{server.api}/elsewhere"}):
        deliver(made.config)
    assert names(made, "unsent") == ["approval.asked-00000007-tick-before_training.json"]


def test_ticks_that_begin_together_deliver_each_event_once_and_none_fails(tmp_path: Path, server: PrefectServer) -> None:
    made = waiting(tmp_path, *range(1, 6))
    ready = Barrier(4)

    def tick() -> None:
        ready.wait()
        deliver(made.config)

    with ThreadPoolExecutor(4) as pool:  # a thread of its own does not inherit Prefect's settings
        for done in [pool.submit(copy_context().run, tick) for _ in range(4)]:
            done.result()
    assert names(made, "unsent") == []
    assert len(names(made, "alerts")) == 5
