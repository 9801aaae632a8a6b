"""Progress: told to whoever listens, item by item, and to nobody after that."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from everfresh.tasks import steps
from everfresh.tasks.progress import bar, listening


def test_each_item_is_told_once_it_is_done() -> None:
    told: list[tuple[str, int, int | None]] = []
    with listening(lambda *what: told.append(what)):
        for number, _ in enumerate(bar("ab", "letters")):
            assert len(told) == number
        list(bar(iter("cd"), "unknown"))
        list(bar(iter("e"), "counted", total=1))
    assert told == [
        ("letters", 1, 2), ("letters", 2, 2), ("unknown", 1, None), ("unknown", 2, None), ("counted", 1, 1),
    ]  # fmt: skip
    assert list(bar([1, 2], "after")) == [1, 2]
    assert len(told) == 5


def raises(*_: Any, **__: Any) -> None:
    raise ConnectionError("no server")


def artifact(monkeypatch: pytest.MonkeyPatch, create: Callable[..., Any]) -> Any:
    monkeypatch.setattr("prefect.artifacts.create_progress_artifact", create)
    return steps._Artifact("p-progress", "p · window 1 · full")


def test_short_work_makes_no_artifact(monkeypatch: pytest.MonkeyPatch) -> None:
    told = artifact(monkeypatch, raises)
    told("train", 1, 2)
    told("train", 2, 2)


def test_a_server_out_of_reach_ends_no_training(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(steps, "UPDATE_SECONDS", 0)
    told = artifact(monkeypatch, raises)
    with caplog.at_level(logging.WARNING):
        told("train", 1, 2)
    assert "the progress could not be told to Prefect" in caplog.text
