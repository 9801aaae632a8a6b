"""A service under a steady load, in a process of its own, while releases come and go and the store is out of reach.

The process says on stdout which version answers, whenever that changes, and at the end of its input what it has seen.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.served import check, pictures, publish

from everfresh.tasks import alias
from everfresh.tasks.config import S3Config
from everfresh.tasks.ledger import champion_moves
from everfresh.tasks.serving import Champion, load_champion
from everfresh.tasks.store import Store

PIPELINES = {"prefect", "evidently", "pandas", "pyarrow", "sklearn", "matplotlib", "accelerate", "onnx", "onnxruntime"}
"""Libraries that no service needs."""
WITHIN = 120.0
"""Seconds in which a service must have followed a move."""


@dataclass
class Seen:
    """What a service saw."""

    calls: int
    """Calls of `predict`, each with four pictures."""
    errors: list[str]
    """Calls that failed, answers that are not of the release that they name, batches of two models."""
    p50: float
    p99: float
    """Of a call, milliseconds."""
    swaps: int
    """How often another release took over."""
    looks_failed: int
    """Looks at the store in a row that went wrong, at most."""
    loaded: list[str]
    """Libraries of the pipeline that its process has loaded."""


class Load:
    """Threads that ask a champion at a steady rate."""

    def __init__(self, champion: Champion, threads: int, pause: float) -> None:
        self.champion, self.pause = champion, pause
        self.times: list[float] = []
        self.errors: list[str] = []
        self.looks_failed = 0
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(threads)]

    def _ask(self) -> None:
        asked = pictures()
        while not self._ended.wait(self.pause):
            begun = time.perf_counter()
            try:
                answers = self.champion.predict(asked)
                self.times.append(time.perf_counter() - begun)
                check(answers)
            except Exception as error:
                self.errors.append(repr(error))
            self.looks_failed = max(self.looks_failed, self.champion.failures)

    def run(self) -> Seen:
        """Ask until stdin ends."""
        for thread in self._threads:
            thread.start()
        teller = threading.Thread(target=self._tell, daemon=True)
        teller.start()
        sys.stdin.read()
        self._ended.set()
        for thread in self._threads:
            thread.join()
        times = sorted(self.times)
        p50, p99 = (1_000 * times[int(share * (len(times) - 1))] for share in (0.5, 0.99))
        return Seen(
            len(times), self.errors, p50, p99, self.champion.swaps, self.looks_failed, sorted(PIPELINES & sys.modules.keys())
        )

    def _tell(self) -> None:
        said = -1
        while not self._ended.wait(0.01):
            if (now := self.champion.version) != said:
                said = now
                sys.stdout.write(f"{said}\n")
                sys.stdout.flush()


def serve(address: str, code: str, threads: int, pause: float, refresh: float) -> None:
    """The process: load, predict, refresh, until stdin ends."""
    import torch

    torch.set_num_threads(1)
    s3 = S3Config(connect_timeout=1, read_timeout=1, max_attempts=2)
    champion = load_champion(address, code=code, s3=s3, min_interval=refresh or 1.0)
    if refresh:
        champion.refresh_every(refresh)
    seen = Load(champion, threads, pause).run()
    champion.close()
    sys.stdout.write(json.dumps(vars(seen)) + "\n")
    sys.stdout.flush()


class Service:
    """The process from outside."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.version, self.told = process, -1, ""
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            with self._changed:
                if line.startswith("{"):
                    self.told = line
                else:
                    self.version = int(line)
                self._changed.notify_all()

    def wait_for(self, version: int) -> float:
        """Seconds until that version answers."""
        begun = time.monotonic()
        with self._changed:
            if not self._changed.wait_for(lambda: self.version == version, WITHIN):
                raise TimeoutError(f"v{self.version} answers, not v{version}")
        return time.monotonic() - begun

    def wait_for_any(self) -> None:
        """Until it answers at all."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.version >= 0, WITHIN):
                raise TimeoutError("no version answers")

    def end(self) -> Seen:
        """What it saw."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self._reader.join(WITHIN)
        return Seen(**json.loads(self.told))


@contextmanager
def running_service(
    address: str, code: str, environment: dict[str, str], *, threads: int = 3, pause: float = 0.02, refresh: float = 0.1
) -> Iterator[Service]:
    """A service in a process of its own; `refresh` are the seconds between two looks, 0 for none."""
    here = f"serve({address!r}, {code!r}, {threads}, {pause}, {refresh})"
    process = subprocess.Popen(
        [sys.executable, "-c", f"from support.steady import serve; {here}"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip
    service = Service(process)
    try:
        yield service
    finally:
        process.kill()
        process.wait()
        service._reader.join()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def moves(store: Store, releases: int, rollbacks: int, architecture: str, first: int = 2) -> Iterator[Callable[[], int]]:
    """Publications from version `first` on, rollbacks among them; each makes another version champion and gives its number."""
    draw = random.Random(0)
    kinds = ["publish"] * releases + ["rollback"] * rollbacks
    draw.shuffle(kinds)
    kinds.insert(0, kinds.pop(kinds.index("publish")))
    number = first - 1

    def publication(version: int) -> int:
        return publish(store, version, architecture=architecture).version

    def rollback() -> int:
        history = list(champion_moves(store))
        others = sorted({m.version for m in history} - {history[-1].version})
        move = alias.rollback(store, to=draw.choice(others), by="tests")
        alias.unpin(store, by="tests")
        return move.version

    for kind in kinds:
        if kind == "publish":
            number += 1
            yield lambda number=number: publication(number)  # type: ignore[misc]
        else:
            yield rollback
