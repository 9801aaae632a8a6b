"""A real Prefect server for tests: one a session, on loopback, with a home of its own and without telemetry."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

STARTS_WITHIN = 120.0
"""Seconds; it takes about ten on an idle machine."""
STOPS_WITHIN = 15.0
EVENTS_WITHIN = 30.0
"""Seconds; events are sent and stored in the background."""


@dataclass(frozen=True)
class PrefectServer:
    """Where the server is reached."""

    home: Path
    port: int

    @property
    def ui(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def api(self) -> str:
        return f"{self.ui}/api"

    def environment(self) -> dict[str, str]:
        """The variables with which a process of its own finds the server."""
        return {**os.environ, **_own(self.home), "PREFECT_API_URL": self.api}

    def call(self, path: str, **body: Any) -> Any:
        """What the server answers to a POST of JSON."""
        request = urllib.request.Request(
            f"{self.api}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def events(self, pipeline: str, name: str) -> list[dict[str, Any]]:
        """The events of a pipeline under one name; waits until there is one."""
        resource = {"id": [f"everfresh.pipeline.{pipeline}"]}
        deadline = time.monotonic() + EVENTS_WITHIN
        while True:
            found = self.call("events/filter", filter={"event": {"name": [name]}, "resource": resource})["events"]
            if found or time.monotonic() > deadline:
                return found
            time.sleep(0.2)

    def every_event(self, pipeline: str) -> list[str]:
        """Names of all events of a pipeline that have arrived, newest first."""
        resource = {"id": [f"everfresh.pipeline.{pipeline}"]}
        return [e["event"] for e in self.call("events/filter", filter={"resource": resource})["events"]]

    def logs(self, run: str) -> list[str]:
        """What a flow run and its tasks have said and the server has stored so far, oldest first."""
        runs = {"flow_run_id": {"any_": [run]}}
        return [line["message"] for line in self.call("logs/filter", logs=runs, sort="TIMESTAMP_ASC")]

    def artifacts(self, key: str) -> list[dict[str, Any]]:
        """The artifacts under a key, newest first."""
        return self.call("artifacts/filter", artifacts={"key": {"any_": [key]}}, sort="UPDATED_DESC")


def _own(home: Path) -> dict[str, str]:
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def running_server(home: Path, **extra: str) -> Iterator[PrefectServer]:
    """Start a server, with an environment beside its own, and wait until it is healthy; end it by its id."""
    port = free_port()
    server = PrefectServer(home, port)
    home.mkdir(parents=True, exist_ok=True)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    environment = {**inherited, **_own(home), "PREFECT_SERVER_UI_API_URL": server.api, **extra}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    output = home / "server.log"
    with output.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)
        try:
            _wait(server, process, output)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(STOPS_WITHIN)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(server: PrefectServer, process: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{server.api}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    tail = output.read_text(errors="replace")[-2000:]
    raise RuntimeError(f"the Prefect server did not come up within {STARTS_WITHIN:.0f} s:\n{tail}")


_KEY = pytest.StashKey[PrefectServer]()


def session_server(config: pytest.Config, folders: pytest.TempPathFactory) -> PrefectServer:
    """The session's one server, whichever folder of tests asks first; it ends with the session."""
    if _KEY not in config.stash:
        running = running_server(folders.mktemp("prefect"))
        config.stash[_KEY] = running.__enter__()
        config.add_cleanup(lambda: running.__exit__(None, None, None))
    return config.stash[_KEY]
