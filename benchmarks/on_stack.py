"""What the benchmarks of the running system share: a stack of their own, pipelines on it, and questions to its server."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import yaml

from everfresh.flows.digits import Scanner, scan
from everfresh.flows.stack import Stack, read_stack
from everfresh.tasks.store import Store, open_store

EVERFRESH = str(Path(sys.executable).with_name("everfresh"))
COMES_UP_WITHIN = 600.0
T = TypeVar("T")


@contextmanager
def running_stack(folder: Path, *options: str) -> Iterator[tuple[Stack, psutil.Process]]:
    """`everfresh up` in a folder; this process's environment points at it, and it ends with the block."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the stack ends with this process then too
    folder.mkdir(parents=True, exist_ok=True)
    said = (folder / "up.log").open("wb")
    command = [EVERFRESH, "up", "--folder", str(folder), *options]
    up = subprocess.Popen(command, stdout=said, stderr=said, stdin=subprocess.DEVNULL)
    try:
        eventually(lambda: (folder / "stack.json").exists() or up.poll() is not None, COMES_UP_WITHIN, "the stack")
        if up.poll() is not None:
            raise SystemExit((folder / "up.log").read_text())
        stack = read_stack(folder)
        os.environ.update(stack.environment)
        yield stack, psutil.Process(up.pid)
    finally:
        up.terminate()
        up.wait()
        said.close()


def eventually(found: Callable[[], T], within: float, what: str, every: float = 0.5) -> T:
    """The first answer that is not false."""
    deadline = time.monotonic() + within
    while True:
        if answer := found():
            return answer
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come within {within:.0f} s")
        time.sleep(every)


def part(up: psutil.Process, name: str) -> psutil.Process:
    """The process of a part: `server`, `cpu-worker`, `gpu-worker` or `s3`."""
    sign = {"server": ["server", "start"], "s3": ["mini"]}.get(name, ["--name", name])
    return next(p for p in up.children() if all(word in p.cmdline() for word in sign))


def kill_machine(process: psutil.Process) -> int:
    """SIGKILL a process and all that it runs, as when its machine dies; says how many there were."""
    victims = [process, *process.children(recursive=True)]
    for victim in victims:
        with suppress(psutil.NoSuchProcess):
            victim.kill()
    return len(victims)


def call(stack: Stack, path: str, **body: Any) -> Any:
    """What the server answers to a POST of JSON."""
    return stack.ask(path, body)


def every_page(stack: Stack, path: str, **body: Any) -> list[dict[str, Any]]:
    """All rows of a filter, page by page."""
    rows: list[dict[str, Any]] = []
    while page := call(stack, path, **body, limit=200, offset=len(rows)):
        rows += page
        if len(page) < 200:
            break
    return rows


def runs(stack: Stack, pipeline: str) -> list[dict[str, Any]]:
    """All flow runs of a pipeline, by when they were due."""
    tag = {"tags": {"all_": [f"pipeline:{pipeline}"]}}
    return every_page(stack, "flow_runs/filter", flow_runs=tag, sort="EXPECTED_START_TIME_ASC")


def events(stack: Stack, **wanted: Any) -> list[dict[str, Any]]:
    """All events under a filter, newest first."""
    answer = call(stack, "events/filter", filter=wanted, limit=50)
    found = answer["events"]
    while answer["next_page"]:
        answer = stack.ask(answer["next_page"].removeprefix(f"{stack.api}/"))
        found += answer["events"]
    return found


def moment(text: str) -> datetime:
    """A time as the server writes it."""
    return datetime.fromisoformat(text)


@dataclass(frozen=True)
class Deployed:
    """A pipeline of digits that is deployed on a stack."""

    name: str
    file: Path
    inbox: Store

    def arrive(self, number: int, samples: int, scanner: Scanner, seed: int = 0) -> None:
        """Digits come in, drawn anew for each window; each page has a spot of dust of its own, so that no two are equal."""
        from PIL import Image
        from sklearn.datasets import load_digits

        draw, data = np.random.default_rng([seed, number]), load_digits()
        chosen = draw.choice(len(data.target), samples, replace=False)
        pages = scan(data.images[chosen] / 16, scanner)
        for page, index in zip(pages, chosen, strict=True):
            dusty = np.clip(page.astype(int) + draw.integers(0, 24, page.shape), 0, 255).astype(np.uint8)
            out = io.BytesIO()
            Image.fromarray(dusty).save(out, "PNG")
            self.inbox.create(f"{number:04d}/{data.target[index]}/{index:04d}.png", out.getvalue())


def deploy(folder: Path, place: str, name: str, **sections: Any) -> Deployed:
    """Write a pipeline file, the demo's with sections laid over it, and `everfresh deploy` it.

    Args:
        folder: of the file.
        place: address under which store and inbox stand.
        name: of the pipeline.
        sections: laid over those of the demo, one level deep.
    """
    made = write_pipeline(folder, place, name, **sections)
    subprocess.run([EVERFRESH, "deploy", str(made.file)], check=True, stdout=subprocess.DEVNULL)
    return made


def write_pipeline(folder: Path, place: str, name: str, **sections: Any) -> Deployed:
    """The same without deploying it."""
    text = files("everfresh.flows").joinpath("templates/digits.yaml").read_text("utf-8").replace("$SEED", "0")
    raw: dict[str, Any] = yaml.safe_load(text) | {"name": name, "store": f"{place}/store"}
    raw["source"] = {"kind": "folder", "path": f"{place}/inbox-{name}"}
    raw["evaluation"], raw["release"] = {"report": False}, {"formats": []}
    raw["drift"] = {"report": False, "permutations": 199}
    for section, value in sections.items():
        raw[section] = raw.get(section, {}) | value if isinstance(value, dict) else value
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(raw, sort_keys=False), "utf-8")
    return Deployed(name, file, open_store(f"{place}/inbox-{name}"))
