"""Keep processes running side by side: their lines in one place, started again when they die, ended together.

Every process, and what it starts in turn, carries a mark in its environment. Ending goes by that mark: a flow run that lost
its worker is found too, and nothing that somebody else started is. A watcher waits on a pipe that only the supervisor
holds open, so that `kill -9` of the supervisor ends all the same.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO

import psutil

from everfresh.tasks.errors import EverfreshError

MARK = "EVERFRESH_SUPERVISED_BY"
READY_WITHIN = 240.0
"""Seconds until a part must answer; ten are enough on an idle machine."""
GRACE = 10.0
"""Seconds that a part has to end by itself."""
STEADY = 30.0
"""A part that ran so many seconds did not die of its start; one that did waits longer each time."""
LONGEST_PAUSE = 30.0
LOG_BYTES = 10_000_000
"""Of one part's log, before a new one is begun; three old ones are kept."""


@dataclass(frozen=True)
class Part:
    """A process that is to run."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    ready: Callable[[], bool]
    """Whether it answers."""
    shows: Callable[[str], object] = lambda line: bool(line.strip())
    """Which of its lines stand on the terminal too; all are in its log."""


@dataclass
class _Running:
    part: Part
    log: logging.Logger
    process: subprocess.Popen[bytes]
    since: float = field(default_factory=time.monotonic)
    pause: float = 1.0
    again_at: float | None = None


class Stopped(Exception):
    """Told to stop while a part did not answer yet."""


class Supervisor:
    """Runs parts in the order in which they are started, and ends them the other way round.

    Args:
        logs: folder of the logs, `<name>.log` each.
        say: told every line that people should see, with the name of the part it is from.
        stop: set when it is time to end.
    """

    def __init__(self, logs: Path, say: Callable[[str, str], None], stop: threading.Event) -> None:
        self.logs, self.say, self.stop = logs, say, stop
        self.mark = uuid.uuid4().hex
        self.running: dict[str, _Running] = {}
        self._readers: list[threading.Thread] = []
        logs.mkdir(parents=True, exist_ok=True)
        self._watcher, self._held = _watch_over(self.mark)

    def start(self, *parts: Part) -> None:
        """Start parts side by side and wait until all of them answer.

        Raises:
            EverfreshError: one ended, or did not answer in time.
            Stopped: it was told to stop.
        """
        for part in parts:
            log = _log_to(self.logs / f"{part.name}.log")
            self.running[part.name] = _Running(part, log, self._spawn(part, log))
        deadline = time.monotonic() + READY_WITHIN
        for part in parts:
            process = self.running[part.name].process
            while not part.ready():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise self._not_ready(part, process.poll())
                if self.stop.wait(0.2):
                    raise Stopped
            self.say(part.name, f"ready, process {process.pid}")

    def keep(self) -> None:
        """Start again whatever dies, until told to stop."""
        while not self.stop.wait(0.2):
            for one in self.running.values():
                self._look_after(one)

    def end(self) -> None:
        """End all: asked first, those that depend on others before these; then killed, with all that they left behind."""
        for one in reversed(self.running.values()):
            if one.process.poll() is None:
                one.process.terminate()
            try:
                one.process.wait(GRACE)
            except subprocess.TimeoutExpired:
                one.process.kill()
                one.process.wait()
        end_marked(self.mark)
        for reader in self._readers:
            reader.join(GRACE)
        for one in self.running.values():
            for handler in one.log.handlers:
                handler.close()
        os.close(self._held)
        self._watcher.wait()

    def _look_after(self, one: _Running) -> None:
        now, code = time.monotonic(), one.process.poll()
        if code is None:
            return
        if one.again_at is None:
            one.pause = 1.0 if now - one.since > STEADY else min(2 * one.pause, LONGEST_PAUSE)
            one.again_at = now + one.pause
            self.say(one.part.name, f"{_ending(code)}; it is started again in {one.pause:.0f} s")
        elif now >= one.again_at:
            one.process, one.since, one.again_at = self._spawn(one.part, one.log), now, None
            self.say(one.part.name, f"started again, process {one.process.pid}")

    def _spawn(self, part: Part, log: logging.Logger) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(  # noqa: S603 - our own commands
            [*part.command],
            env={**part.environment, MARK: self.mark, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the supervisor, which ends them in order
        )
        assert process.stdout is not None  # noqa: S101 - for the type checker
        reader = threading.Thread(target=self._read, args=(part, log, process.stdout), daemon=True)
        reader.start()
        self._readers = [*filter(threading.Thread.is_alive, self._readers), reader]
        return process

    def _read(self, part: Part, log: logging.Logger, lines: IO[bytes]) -> None:
        with lines:
            for raw in lines:
                line = raw.decode(errors="replace").rstrip()
                log.info(line)
                if part.shows(line):
                    self.say(part.name, line)

    def _not_ready(self, part: Part, code: int | None) -> EverfreshError:
        path = self.logs / f"{part.name}.log"
        time.sleep(0.2)  # for its last lines
        last = [line for line in path.read_text(errors="replace").splitlines() if line.strip()][-1:]
        got = "no answer" if code is None else _ending(code)
        return EverfreshError(
            f"{part.name} must answer within {READY_WITHIN:.0f} s, got: {got}{f', last words {last[0]!r}' if last else ''}. "
            f"All of it stands in {path}."
        )


def end_marked(mark: str) -> None:
    """Kill all processes that carry a mark, until none is left."""
    while found := [process for process in psutil.process_iter() if _carries(process, mark)]:
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.05)  # what is killed goes soon; a zombie carries nothing any more


def _carries(process: psutil.Process, mark: str) -> bool:
    try:
        return bool(process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE)
    except (psutil.Error, OSError):  # another's, or gone
        return False


def _ending(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _log_to(path: Path) -> logging.Logger:
    """A logger that writes lines as they come to a file that is bounded, and nowhere else."""
    log = logging.Logger(f"everfresh-{path.stem}")  # not among the program's own: nobody configures it
    log.addHandler(RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=3, encoding="utf-8", errors="replace"))
    return log


WATCH = """
import sys
sys.stdin.read()
from everfresh.flows.supervise import end_marked
end_marked(sys.argv[1])
"""


def _watch_over(mark: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start the watcher; the end of the pipe that comes with it must stay open as long as the processes shall live."""
    reader, held = os.pipe()
    command, quiet = [sys.executable, "-c", WATCH, mark], subprocess.DEVNULL
    watcher = subprocess.Popen(command, stdin=reader, stdout=quiet, stderr=quiet, start_new_session=True)  # noqa: S603 - ours
    os.close(reader)
    return watcher, held
