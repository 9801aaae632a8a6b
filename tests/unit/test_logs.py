"""Log lines as JSON, with what they are about."""

from __future__ import annotations

import json
import logging
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everfresh.flows.logs import JsonLines, about, formatter
from everfresh.tasks.errors import ConfigError


def record(message: str, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("everfresh.tasks.x", logging.INFO, "x.py", 1, message, (), None)
    made.__dict__.update(extra)
    return made


@given(st.text())
def test_any_message_is_one_line_that_reads_back(message: str) -> None:
    written = JsonLines().format(record(message))
    assert "\n" not in written
    assert json.loads(written)["message"] == message


def test_a_line_is_about_the_innermost_and_what_it_says_itself_counts_most() -> None:
    with about(pipeline="p", window=1):
        with about(window=2):
            inner = json.loads(JsonLines().format(record("x", release="r")))
        outer = json.loads(JsonLines().format(record("x", release=None)))
    assert (inner["pipeline"], inner["window"], inner["release"]) == ("p", 2, "r")
    assert outer["window"] == 1
    assert "release" not in outer
    assert "pipeline" not in json.loads(JsonLines().format(record("x")))


def test_an_error_brings_its_traceback_in_the_same_line() -> None:
    try:
        raise ValueError("no")
    except ValueError:
        written = JsonLines().format(record("x", exc_info=sys.exc_info()))
    assert "ValueError: no" in json.loads(written)["traceback"]
    assert "\n" not in written


def test_the_variable_chooses_and_refuses_what_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVERFRESH_LOG", raising=False)
    assert formatter().format(record("words")) == "words"
    monkeypatch.setenv("EVERFRESH_LOG", "json")
    assert isinstance(formatter(), JsonLines)
    monkeypatch.setenv("EVERFRESH_LOG", "yaml")
    with pytest.raises(ConfigError, match="EVERFRESH_LOG must be plain or json, got 'yaml'"):
        formatter()
