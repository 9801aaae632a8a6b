"""SIGKILL of the CPU worker, the GPU worker and the server at random moments of a retraining, on the local stack.

    python benchmarks/stack_chaos.py [--kills 4] [--seed 0] [--victims cpu-worker gpu-worker server] [--sqlite]

Prefect's server is on PostgreSQL, as for good (`benchmarks/stack_postgres.py` says what that needs); with `--sqlite` on what
`make up` has, where a busy server drops events of its own.

A worker dies with all that it runs, as when its machine dies; the stack starts it again. Each window has to be retrained on
by policy, its rung goes to the GPU pool, and every challenger passes. After each kill must hold: exactly one release for the
window and one journal entry, no run that counts as running and has been silent for three heartbeats of 30 s, and the
schedule has started a run that was due after the kill.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
from on_stack import Deployed, deploy, events, eventually, kill_machine, moment, part, runs
from stack_postgres import stack_for_good

from everfresh.flows.digits import Scanner
from everfresh.flows.stack import Stack
from everfresh.tasks.config import load_config
from everfresh.tasks.journal import scheduled
from everfresh.tasks.ledger import champion_moves
from everfresh.tasks.store import Store, pipeline_store

HEARTBEAT, HEARTBEATS = 30, 3
SLACK = 60.0
"""Seconds over three heartbeats within which the server must have noticed: its own look is not instant."""
WITHIN = 1_800.0
SAMPLES = 90
SECTIONS = {
    "window": {"min_samples": SAMPLES},
    "policy": {"ladder": ["full"], "triggers": [{"kind": "new_samples", "count": 1}]},
    "gates": [{"kind": "floor", "minimum": 0.01, "min_samples": 1}],
    "schedule": {"retrain": "* * * * *"},
    "deploy": {"pool": "cpu", "gpu_pool": "gpu", "heartbeat_seconds": HEARTBEAT},
}


@dataclass(frozen=True)
class Trial:
    """What one kill did."""

    number: int
    victim: str
    after: float
    """Seconds into the retraining."""
    hit: str
    """Flows that were running."""
    seconds: float
    """From the kill to the journal entry."""
    faults: tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=4, help="of each victim")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--victims", nargs="+", default=["cpu-worker", "gpu-worker", "server"])
    parser.add_argument("--sqlite", action="store_true")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    victims = options.victims * options.kills
    draw.shuffle(victims)
    with (
        tempfile.TemporaryDirectory(prefix="everfresh-chaos-") as folder,
        stack_for_good(Path(folder), sqlite=options.sqlite) as (stack, up),
    ):
        made = deploy(Path(folder), f"s3://{stack.bucket}/chaos", "chaos", **SECTIONS)
        chaos = Chaos(stack, up, made, draw)
        length = chaos.undisturbed()
        print(f"undisturbed: version 1, then a retraining of {length:.0f} s", flush=True)
        print("| kill | victim | after, s | running | released after, s | result |\n|---|---|---|---|---|---|", flush=True)
        trials = []
        for number, victim in enumerate(victims, 1):
            trial = chaos.trial(number, victim, length)
            trials.append(trial)
            result = "; ".join(trial.faults) or "one release, no zombie, schedule ticks"
            print(f"| {number} | {victim} | {trial.after:.1f} | {trial.hit} | {trial.seconds:.0f} | {result} |", flush=True)
        faults = chaos.at_the_end()
    bad = sum(bool(trial.faults) for trial in trials)
    print(f"{len(trials) - bad} of {len(trials)} kills left everything right; at the end: {'; '.join(faults) or 'right'}")
    sys.exit(bool(bad or faults))


@dataclass
class Chaos:
    """One pipeline on one stack, killed again and again."""

    stack: Stack
    up: psutil.Process
    made: Deployed
    draw: random.Random
    window: int = 0

    @property
    def store(self) -> Store:
        return pipeline_store(load_config(self.made.file))

    def undisturbed(self) -> float:
        """Version 1 and one retraining; says how long that took."""
        for _ in range(2):
            begun = self._retraining()
            self._treated()
        ended = next(e.finished_at for e in scheduled(self.store) if e.seq == self.window)
        return (ended - begun).total_seconds()

    def trial(self, number: int, victim: str, length: float) -> Trial:
        """A window, a kill at a random moment of its retraining, and what came of it."""
        over = True
        while over:  # it was faster than that moment: the next one
            begun, after = self._retraining(), self.draw.uniform(0, length)
            time.sleep(max(0.0, after - (datetime.now(UTC) - begun).total_seconds()))
            over = scheduled(self.store).last_seq() >= self.window
        hit = ", ".join(sorted(self._running())) or "nothing"
        kill_machine(part(self.up, victim))
        killed = datetime.now(UTC)
        try:
            self._treated()
            self._ticks(killed)
            faults = self._faults(killed)
        except TimeoutError as late:
            faults = (str(late),)
        seconds = (datetime.now(UTC) - killed).total_seconds()
        finished = [e.finished_at for e in scheduled(self.store) if e.seq == self.window]
        if finished:
            seconds = (finished[-1] - killed).total_seconds()
        return Trial(number, victim, after, hit, seconds, faults)

    def at_the_end(self) -> tuple[str, ...]:
        """What the whole history must be: a release and an entry a window, and no run left that nobody runs."""
        entries = list(scheduled(self.store))
        moves = list(champion_moves(self.store))
        faults = []
        if [e.seq for e in entries] != list(range(1, self.window + 1)):
            faults.append(f"windows in the journal: {[e.seq for e in entries]}")
        if [m.release for m in moves] != [e.release for e in entries]:
            faults.append(f"{len(moves)} moves for {len(entries)} windows")
        return (*faults, *self._zombies())

    def _retraining(self) -> datetime:
        """Scans arrive; when a run begins that was due after they were there."""
        self.window += 1
        amount = 400 if self.window == 1 else SAMPLES
        self.made.arrive(self.window, amount, Scanner(self.draw.uniform(0.4, 1), self.draw.uniform(0, 0.8)))
        here = datetime.now(UTC)
        return eventually(lambda: self._started(here), WITHIN, "the next retrain", every=0.2)

    def _started(self, since: datetime) -> datetime | None:
        found = [moment(r["start_time"]) for r in self._runs() if r["auto_scheduled"] and r["start_time"]]
        return min((started for started in found if started > since), default=None)

    def _runs(self) -> Sequence[dict[str, Any]]:
        try:
            return runs(self.stack, self.made.name)
        except OSError:  # the server was the victim and comes back
            return []

    def _running(self) -> set[str]:
        flows = {"cpu": "retrain", "gpu": "fine-tune"}
        return {flows[r["work_pool_name"]] for r in self._runs() if r["state_type"] == "RUNNING" and r["work_pool_name"]}

    def _treated(self) -> None:
        eventually(lambda: scheduled(self.store).last_seq() >= self.window, WITHIN, f"window {self.window} in the journal")

    def _ticks(self, since: datetime) -> None:
        def completed() -> bool:
            late = [r for r in self._runs() if r["auto_scheduled"] and moment(r["expected_start_time"]) > since]
            return any(r["state_type"] == "COMPLETED" for r in late)

        eventually(completed, WITHIN, "a tick after the kill")

    def _faults(self, killed: datetime) -> tuple[str, ...]:
        rest = timedelta(seconds=HEARTBEAT * HEARTBEATS + SLACK) - (datetime.now(UTC) - killed)
        time.sleep(max(0.0, rest.total_seconds()))
        moves = list(champion_moves(self.store))
        mine = [e for e in scheduled(self.store) if e.seq == self.window]
        releases = [m for m in moves if m.release == mine[0].release] if mine else []
        wrong = [] if len(mine) == len(releases) == 1 else [f"{len(mine)} entries and {len(releases)} releases"]
        return (*wrong, *self._zombies())

    def _zombies(self) -> list[str]:
        """Runs that count as begun and have been silent for longer than they may."""
        silent = datetime.now(UTC) - timedelta(seconds=HEARTBEAT * HEARTBEATS + SLACK)
        suspects = [r for r in self._runs() if r["state_type"] in {"RUNNING", "PENDING", "CANCELLING"}]
        suspects = [r for r in suspects if moment(r["state"]["timestamp"]) < silent]
        return [f"{r['name']} is {r['state_name']} and silent" for r in suspects if not self._heard(r["id"], silent)]

    def _heard(self, run: str, since: datetime) -> bool:
        about = {"id": [f"prefect.flow-run.{run}"]}
        return bool(events(self.stack, resource=about, occurred={"since": since.isoformat()}))


if __name__ == "__main__":
    main()
