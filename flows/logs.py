"""Logs as JSON lines where ``EVERFRESH_LOG=json``: what a line is about stands in fields, for a search over many runs.

Fields: ``at``, ``level``, ``logger``, ``message``; ``pipeline``, ``window``, ``release`` (the candidate that is made or
proven, which is the release's id), ``run``, ``run_name`` and ``task`` where they are known; ``traceback`` of an error.
They are read from Prefect's contexts when the line is written, so that stages log plain words and know nothing of it.
Prefect's own lines on the console take the same form from the flow's first line on; the lines in its UI stay words.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from everfresh.tasks.errors import ConfigError

KINDS = ("plain", "json")
IDS = ("pipeline", "window", "release", "run", "run_name", "task")
_about: ContextVar[dict[str, Any] | None] = ContextVar("everfresh_about", default=None)


def structured() -> bool:
    """Whether lines are JSON.

    Raises:
        ConfigError: the variable says something else.
    """
    kind = os.environ.get("EVERFRESH_LOG") or "plain"
    if kind not in KINDS:
        raise ConfigError(f"EVERFRESH_LOG must be plain or json, got {kind!r}. Set one of them, or unset it.")
    return kind == "json"


@contextmanager
def about(**ids: Any) -> Iterator[None]:
    """Lines within are about this, where Prefect's contexts do not say it."""
    token = _about.set({**(_about.get() or {}), **ids})
    try:
        yield
    finally:
        _about.reset(token)


def formatter() -> logging.Formatter:
    """That of our lines on the terminal."""
    return JsonLines() if structured() else logging.Formatter("%(message)s")


def take_over_console() -> None:
    """Let Prefect's console write JSON lines too, where asked for; its own handler breaks lines at the terminal's width."""
    if not structured():
        return
    from prefect.logging.handlers import PrefectConsoleHandler

    ours = logging.getLogger("everfresh")
    if ours.level == logging.NOTSET:
        ours.setLevel(logging.INFO)  # else the root's, which leaves out all that is no warning
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, PrefectConsoleHandler)]:
        plain = logging.StreamHandler(handler.stream)
        plain.setLevel(handler.level)
        plain.setFormatter(JsonLines())
        root.removeHandler(handler)
        root.addHandler(plain)


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record with what it is about."""
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        said = {name: value for name in IDS if (value := getattr(record, name, None)) is not None}
        known = _of_prefect() | (_about.get() or {}) | said
        line |= {name: known[name] for name in IDS if name in known}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def _of_prefect() -> dict[str, Any]:
    """What the running flow and task are called, and what they were given; nothing outside of a run."""
    contexts = sys.modules.get("prefect.context")  # not imported for a line: it takes seconds
    if contexts is None:
        return {}
    found: dict[str, Any] = {}
    flow, task = contexts.FlowRunContext.get(), contexts.TaskRunContext.get()
    if flow is not None:
        run = flow.flow_run
        found |= _given(flow.parameters or {}) | ({"run": str(run.id), "run_name": run.name} if run else {})
    if task is not None:
        found |= _given(task.parameters) | {"task": task.task.name}
    return found


def _given(parameters: dict[str, Any]) -> dict[str, Any]:
    """The ids among the parameters of a flow or a step."""
    paths = {"pipeline": ("config", "name"), "window": ("tick", "seq"), "release": ("candidate", "key")}
    ids = {name: getattr(parameters.get(of), field, None) for name, (of, field) in paths.items()}
    return {name: value for name, value in ids.items() if value is not None}
