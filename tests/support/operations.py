"""A deployment with a real worker that runs it, as a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.prefect_server import PrefectServer

PREFECT = str(Path(sys.executable).with_name("prefect"))
WITHIN = 240.0
"""Seconds in which a run reaches the state that is waited for."""


@contextmanager
def working(server: PrefectServer, pool: str, folder: Path, **extra: str) -> Iterator[None]:
    """A process worker on a pool, with an environment beside the server's; it ends with what was asked of it."""
    environment = server.environment() | {"OMP_NUM_THREADS": "1", "PREFECT_LOGGING_EXTRA_LOGGERS": "everfresh"} | extra
    command = [PREFECT, "worker", "start", "--pool", pool, "--type", "process", "--create-pool-if-not-found"]
    with (folder / "worker.log").open("wb") as log:
        worker = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)
        try:
            yield
        finally:
            worker.terminate()
            try:
                worker.wait(30)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()


def reaches(server: PrefectServer, wanted: str, /, **runs: Any) -> dict[str, Any]:
    """The one flow run that a filter means, once it is in a state; waits for it."""
    deadline = time.monotonic() + WITHIN
    while True:
        found = server.call("flow_runs/filter", flow_runs=runs)
        if [run for run in found if run["state"]["name"] == wanted]:
            [run] = found
            return dict(run)
        if time.monotonic() > deadline:
            raise TimeoutError(f"no run became {wanted} within {WITHIN:.0f} s, got {[(r['name'], r['state']) for r in found]}")
        time.sleep(0.5)
