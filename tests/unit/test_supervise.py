"""The supervisor over real processes: lines, restarts, and that nothing is left when it ends or is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from everfresh.flows.supervise import Part, Stopped, Supervisor
from everfresh.tasks.errors import EverfreshError

WITHIN = 60.0
SERVES = "import sys, time, pathlib; pathlib.Path(sys.argv[1]).touch(); print('I am here', flush=True); time.sleep(600)"
LEAVES_ONE_BEHIND = (
    "import subprocess, sys, time; "
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True); " + SERVES
)


def eventually(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + WITHIN
    while not true():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


def part(folder: Path, name: str, code: str = SERVES) -> Part:
    sign = folder / f"{name}.sign"
    return Part(name, [sys.executable, "-c", code, str(sign)], dict(os.environ), sign.exists)


def marked(mark: str) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("EVERFRESH_SUPERVISED_BY") == mark:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def test_a_part_that_dies_is_reported_and_started_again_and_all_end_with_what_they_left_behind(tmp_path: Path) -> None:
    said: list[tuple[str, str]] = []
    stop = threading.Event()
    supervisor = Supervisor(tmp_path / "logs", lambda name, line: said.append((name, line)), stop)
    keeping = threading.Thread(target=supervisor.keep)
    try:
        supervisor.start(part(tmp_path, "a", LEAVES_ONE_BEHIND), part(tmp_path, "b"))
        keeping.start()
        first = supervisor.running["a"].process.pid
        os.kill(first, signal.SIGKILL)
        eventually(lambda: any("started again, process" in line for name, line in said if name == "a"))
        assert supervisor.running["a"].process.pid != first
        assert ("a", "killed by SIGKILL; it is started again in 2 s") in said
        eventually(lambda: (tmp_path / "logs" / "a.log").read_text().count("I am here") == 2)
        assert ("b", "I am here") in said
        assert len(marked(supervisor.mark)) >= 3
    finally:
        stop.set()
        keeping.join(WITHIN)
        supervisor.end()
    assert marked(supervisor.mark) == []


def test_a_part_that_ends_before_it_answers_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path / "logs", lambda name, line: None, threading.Event())
    dies = part(tmp_path, "c", "import sys; sys.exit('the port is taken')")
    try:
        with pytest.raises(EverfreshError, match=r"c must answer .* ended with code 1, last words 'the port is taken'"):
            supervisor.start(dies)
    finally:
        supervisor.end()


def test_who_is_told_to_stop_does_not_wait_for_a_part_that_never_answers(tmp_path: Path) -> None:
    stop = threading.Event()
    supervisor = Supervisor(tmp_path / "logs", lambda name, line: None, stop)
    never = part(tmp_path, "n", SERVES.replace(".touch()", ""))
    telling = threading.Timer(1, stop.set)
    telling.start()
    begun = time.monotonic()
    try:
        with pytest.raises(Stopped):
            supervisor.start(never)
    finally:
        supervisor.end()
    assert time.monotonic() - begun < WITHIN
    assert marked(supervisor.mark) == []


def test_kill_9_of_the_supervisor_ends_everything(tmp_path: Path) -> None:
    code = f"""
import os, sys, threading
from pathlib import Path
from everfresh.flows.supervise import Part, Supervisor
sign = Path({str(tmp_path / "sign")!r})
supervisor = Supervisor(Path({str(tmp_path)!r}), lambda name, line: None, threading.Event())
command = [sys.executable, "-c", {LEAVES_ONE_BEHIND!r}, str(sign)]
supervisor.start(Part("d", command, dict(os.environ), sign.exists))
print(supervisor.mark, flush=True)
supervisor.keep()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    mark = process.stdout.readline().strip()
    assert len(marked(mark)) == 2
    process.kill()
    process.wait()
    process.stdout.close()
    eventually(lambda: not marked(mark))
