"""The live demo with Prefect on PostgreSQL, its server killed in the middle and started again: nothing lost or run twice.

    python benchmarks/stack_postgres.py [--seed 0] [--postgres-too]

Needs PostgreSQL's programs (Debian: `apt-get install postgresql`); its server runs in a folder of its own as an ordinary
process, by the user `postgres` where this one is root. Prefect's server dies by SIGKILL once the run that answers the drift
has begun; with `--postgres-too` the database dies with it.
"""

from __future__ import annotations

import argparse
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import psutil
from on_stack import EVERFRESH, events, eventually, moment, part, running_stack, runs

from everfresh.flows.stack import Stack
from everfresh.tasks.config import load_config
from everfresh.tasks.journal import scheduled
from everfresh.tasks.ledger import champion_moves
from everfresh.tasks.store import pipeline_store

OUTAGE = 60.0
"""Seconds in which a tick may be missing around the kill: while nobody hears the schedule, none is made."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--postgres-too", action="store_true")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="everfresh-pg-") as folder,
        postgres(Path(folder)) as database,
        running_stack(place := Path(folder) / "stack", "--postgres", database.url) as (stack, up),
    ):
        killer = threading.Thread(target=kill_in_the_middle, args=(stack, up, database if options.postgres_too else None))
        killer.start()
        failed = subprocess.run([EVERFRESH, "demo-live", "--folder", str(place), "--seed", str(options.seed)]).returncode
        killer.join()
        faults = ["the demo failed"] if failed else check(stack, place / f"digits-{options.seed}.yaml")
    print("; ".join(faults) or "nothing lost, nothing run twice")
    sys.exit(bool(faults))


class Postgres:
    """A database server in a folder."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.url = f"postgresql://everfresh@127.0.0.1:{port}/prefect"
        self.user = "postgres" if os.geteuid() == 0 else None

    def run(self, program: str, *arguments: str) -> None:
        """One of its programs, to its end."""
        done = subprocess.run([_program(program), *arguments], user=self.user, cwd="/", capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{program}: {done.stderr or done.stdout}")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-h 127.0.0.1 -p {self.port} -k {self.folder}"
        self.run("pg_ctl", "-D", str(self.folder / "data"), "-l", str(self.folder / "log"), "-w", "-o", options, "start")

    def kill(self) -> None:
        """SIGKILL, with all of its processes."""
        server = psutil.Process(int((self.folder / "data" / "postmaster.pid").read_text().split()[0]))
        for process in [server, *server.children(recursive=True)]:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs([server], timeout=10)


@contextmanager
def postgres(folder: Path) -> Iterator[Postgres]:
    """A fresh database `prefect`, of a server that ends with the block."""
    folder.chmod(0o711)
    place = folder / "postgres"
    place.mkdir()
    if os.geteuid() == 0:
        shutil.chown(place, pwd.getpwnam("postgres").pw_uid)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Postgres(place, port)
    server.run("initdb", "-D", str(place / "data"), "-U", "everfresh", "--auth=trust", "-E", "UTF8", "--locale=C")
    server.start()
    try:
        server.run("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "everfresh", "prefect")
        yield server
    finally:
        server.run("pg_ctl", "-D", str(place / "data"), "-m", "immediate", "-w", "stop")


@contextmanager
def stack_for_good(folder: Path, *, sqlite: bool = False) -> Iterator[tuple[Stack, psutil.Process]]:
    """A stack in a folder with Prefect's server on PostgreSQL, or on what `make up` has."""
    with ExitStack() as opened:
        database = () if sqlite else ("--postgres", opened.enter_context(postgres(folder)).url)
        yield opened.enter_context(running_stack(folder / "stack", *database))


def _program(name: str) -> str:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    path = str(found[-1]) if found else shutil.which(name)
    if path is None:
        raise SystemExit(f"PostgreSQL's {name} is needed, got none. Debian: apt-get install postgresql")
    return path


def kill_in_the_middle(stack: Stack, up: psutil.Process, database: Postgres | None) -> None:
    """SIGKILL of the server, once the run that answers the drift trains."""

    def training() -> bool:
        found = [r for r in runs(stack, "digits") if (r["created_by"] or {}).get("type") == "AUTOMATION"]
        return any(r["state_type"] == "RUNNING" for r in found)

    eventually(training, 1_800, "the run that answers the drift", every=0.2)
    time.sleep(3)
    part(up, "server").kill()
    print(f"{time.strftime('%H:%M:%S')}  SIGKILL of Prefect's server{' and PostgreSQL' if database else ''}", flush=True)
    if database:
        database.kill()
        time.sleep(5)
        database.start()


def check(stack: Stack, pipeline: Path) -> list[str]:
    """What was lost, or happened twice."""
    store = pipeline_store(load_config(pipeline))
    entries, moves = list(scheduled(store)), list(champion_moves(store))
    faults = []
    if [e.seq for e in entries] != list(range(1, len(entries) + 1)):
        faults.append(f"windows in the journal: {[e.seq for e in entries]}")
    if len({m.release for m in moves}) != len(moves):
        faults.append("a release was published twice")
    told = [e for e in events(stack, any_resource={"id": ["everfresh.pipeline.digits"]}) if e["event"].startswith("everfresh.")]
    published = [e["payload"]["window"] for e in told if e["event"] == "everfresh.release.published"]
    if sorted(published) != [e.seq for e in entries if e.version]:
        faults.append(f"release.published was told of windows {sorted(published)}")
    found = [r for r in runs(stack, "digits") if r["auto_scheduled"] and r["state_type"] not in {"SCHEDULED"}]
    twice = [key for key, n in Counter((r["deployment_id"], r["expected_start_time"]) for r in found).items() if n > 1]
    faults += [f"a tick ran twice: {key}" for key in twice]
    due = sorted({moment(r["expected_start_time"]) for r in found})
    faults += [
        f"no tick between {a:%H:%M:%S} and {b:%H:%M:%S}" for a, b in pairwise(due) if (b - a).total_seconds() > 60 + OUTAGE
    ]
    print(f"{len(entries)} windows, {len(moves)} releases, {len(told)} events, {len(found)} ticks")
    return faults


if __name__ == "__main__":
    main()
