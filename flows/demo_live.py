"""``everfresh demo-live``: the digits' pipeline on the local stack, where nobody touches it.

The pipeline is deployed with a schedule of a minute, scans of an ageing scanner arrive in the bucket, and all else happens
by itself: `monitor` ticks and finds drift, its event starts `retrain`, that sends the fine-tuning to the GPU pool's worker, and
a release stands in the S3 server. What is printed is read back from the server and the bucket, nothing is known beforehand.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.schemas.events import ReceivedEvent
from rich.console import Console
from rich.tree import Tree

from everfresh.flows.digits import SCHEDULE, Arrival, arrive
from everfresh.flows.stack import Stack
from everfresh.flows.watch import Run, Watch
from everfresh.tasks.config import PipelineConfig, load_config
from everfresh.tasks.errors import EverfreshError
from everfresh.tasks.journal import scheduled
from everfresh.tasks.ledger import champion_moves, stream
from everfresh.tasks.records import JournalEntry
from everfresh.tasks.store import Store, open_store, pipeline_store

ARRIVALS = tuple(SCHEDULE[number - 1] for number in (1, 2, 7, 8, 9, 11, 12))
"""Two clean windows, then the scanner as it is half worn and worse."""
LOOKS_EVERY = 2.0
QUIET_FLOWS = {"monitor"}
"""Whose runs are told when they end, not when they begin."""


def run_live(stack: Stack, seed: int, minutes: float) -> None:
    """Play the stream into the bucket until the release that answers the drift stands there, and show how it came about.

    Args:
        stack: where it runs; its environment is this process's.
        seed: order of the digits, split and training; each has a place of its own in the bucket.
        minutes: after so many without the release it is an error.

    Raises:
        EverfreshError: it did not come.
    """
    console = Console(width=None if os.isatty(1) else 170, highlight=False)
    pipeline = pipeline_file(stack, seed)
    config = load_config(pipeline)
    store, begun = pipeline_store(config), datetime.now(UTC)
    inbox = open_store(f"s3://{stack.bucket}/demo-{seed}/inbox")
    first = champion_moves(store).entry(1)
    since = begun if first is None else min(begun, first.at) - timedelta(minutes=15)
    if stream(store).last_seq() == 0:
        upload(inbox, ARRIVALS[0], seed)
        console.print(f"{ARRIVALS[0].samples} scans stand in {inbox.url('')}")
    deploy(pipeline, console)
    with get_client(sync_client=True) as client:
        if first is None:
            _start(client, config, "version 1")
        live = Live(Watch(client, config.name), store, console, since)
        answer = play(live, inbox, seed, begun + timedelta(minutes=minutes))
        console.print("\n[bold]Which run led to which[/bold]", run_graph(live, answer))
    _closing_words(console, stack, pipeline, datetime.now(UTC) - begun)


@dataclass
class Answer:
    """The release that answers the drift, and the runs that made it."""

    entry: JournalEntry
    retrain: Run
    fine_tune: Run
    alert: ReceivedEvent | None


class Live:
    """Tells what is new at the server, each thing once."""

    def __init__(self, watch: Watch, store: Store, console: Console, since: datetime) -> None:
        self.watch, self.store, self.console, self.since = watch, store, console, since
        self.runs: list[Run] = []
        self.events: list[ReceivedEvent] = []
        self._told: set[Any] = set()

    def look(self) -> None:
        """Ask the server, and tell what has not been told."""
        self.runs, self.events = self.watch.runs(self.since), self.watch.events(self.since)
        lines: list[tuple[datetime, Any, str]] = [(event.occurred, event.id, _event_line(event)) for event in self.events]
        for run in self.runs:
            if run.started and run.flow not in QUIET_FLOWS:
                where = f" in pool {run.pool}" if run.pool else ""
                lines.append((run.started, (run.id, "begun"), f"[cyan]run[/cyan]    {run.flow} begins{where}, by {run.by}"))
            if run.ended:
                said = f": {run.message}" if run.state != "Completed" and run.message else ""
                words = f"[cyan]run[/cyan]    {run.flow} {run.state.lower()}, by {run.by}: {run.name}{said}"
                lines.append((run.ended, (run.id, run.state, run.ended), words))
        for at, id, words in sorted(lines, key=lambda line: line[0]):
            if id not in self._told:
                self._told.add(id)
                self.console.print(f"{at.astimezone():%H:%M:%S}  {words}", soft_wrap=True)

    def answer(self) -> Answer | None:
        """The release that drift brought about, if it stands in the store and came from the GPU pool."""
        for entry in scheduled(self.store):
            if entry.version is None or entry.decision.action != "retrain" or not entry.release:
                continue
            made = _modified(self.store, f"candidates/{entry.release}")
            for run in self.runs:
                children = [r for r in self.runs if r.parent == run.id and r.pool == "gpu" and r.state == "Completed"]
                child = next((r for r in children if _within(r, made)), None)
                alive = run.flow == "retrain" and run.state in {"Running", "Completed"}  # it may go on with later windows
                if alive and child and _within(run, entry.finished_at):
                    return Answer(entry, run, child, self._alert(run))
        return None

    def _alert(self, run: Run) -> ReceivedEvent | None:
        before = [e for e in self.events if e.event == "everfresh.drift.detected" and run.started and e.occurred <= run.started]
        return before[-1] if before else None


def play(live: Live, inbox: Store, seed: int, deadline: datetime) -> Answer:
    """Let one window after the other arrive, each once the last has been taken in and version 1 stands."""
    while True:
        live.look()
        if (answer := live.answer()) is not None:
            return answer
        if datetime.now(UTC) > deadline:
            raise EverfreshError(
                "the release that answers the drift must stand in the bucket by now, got none. `run/stack/logs/` and the "
                "runs in the Prefect UI say why; the same command goes on where it was."
            )
        seen, published = stream(live.store).last_seq(), champion_moves(live.store).last_seq()
        busy = any(run.flow == "retrain" and not run.over for run in live.runs)
        if published and not busy and seen < len(ARRIVALS) and upload(inbox, ARRIVALS[seen], seed):
            arrival = ARRIVALS[seen]
            words = f"[yellow]scans[/yellow]  {arrival.samples} arrive as window {seen + 1} ({arrival.name})"
            live.console.print(f"{datetime.now():%H:%M:%S}  {words}")  # noqa: DTZ005 - the reader's own clock
        time.sleep(LOOKS_EVERY)


def upload(inbox: Store, arrival: Arrival, seed: int) -> bool:
    """Put a window's files into the bucket; False if they are there already."""
    with tempfile.TemporaryDirectory() as folder:
        arrive(Path(folder), arrival, seed)
        scans = sorted(Path(folder).rglob("*.png"))
        if inbox.exists(scans[-1].relative_to(folder).as_posix()):
            return False
        for scan in scans:
            inbox.create(scan.relative_to(folder).as_posix(), scan.read_bytes())
    return True


def pipeline_file(stack: Stack, seed: int) -> Path:
    """Write the demo's pipeline beside the stack: that of `make run`, with `live.yaml` laid over it."""
    templates = files("everfresh.flows").joinpath("templates")
    raw: dict[str, Any] = yaml.safe_load(templates.joinpath("digits.yaml").read_text("utf-8").replace("$SEED", str(seed)))
    for section, values in yaml.safe_load(templates.joinpath("live.yaml").read_text("utf-8")).items():
        raw[section] = raw.get(section, {}) | values
    place = f"s3://{stack.bucket}/demo-{seed}"
    raw |= {"store": f"{place}/store", "source": {"kind": "folder", "path": f"{place}/inbox"}}
    path = Path(stack.logs).parent / f"digits-{seed}.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False, allow_unicode=True), "utf-8")
    return path


def deploy(pipeline: Path, console: Console) -> None:
    """`everfresh deploy`, as a person would.

    Raises:
        EverfreshError: it failed.
    """
    console.print(f"$ everfresh deploy {os.path.relpath(pipeline)}")
    command = [str(Path(sys.executable).with_name("everfresh")), "deploy", str(pipeline)]
    done = subprocess.run(command, check=False)  # noqa: S603 - our own words
    if done.returncode:
        raise EverfreshError(f"`everfresh deploy {pipeline}` must succeed, got exit code {done.returncode}. It says why above.")


def _start(client: SyncPrefectClient, config: PipelineConfig, reason: str) -> None:
    """The first training is asked for by hand: without a champion nothing can drift."""
    deployment = client.read_deployment_by_name(f"retrain/{config.name}")
    client.create_flow_run_from_deployment(deployment.id, parameters={"reason": reason}, name=f"{config.name} · {reason}")


def _modified(store: Store, folder: str) -> datetime | None:
    """When the record of a folder was written, by the store's clock."""
    return next((item.modified for item in store.list(folder) if item.key.endswith(f"{folder}/record.json")), None)


def _within(run: Run, moment: datetime | None) -> bool:
    slack = timedelta(seconds=2)  # two clocks, and one that counts in seconds
    started, ended = run.started, run.ended or datetime.now(UTC)
    return moment is not None and started is not None and started - slack <= moment <= ended + slack


def _event_line(event: ReceivedEvent) -> str:
    if event.event.startswith("prefect.automation"):
        return f"[magenta]acts[/magenta]   {event.resource.get('prefect.resource.name') or event.resource.id}"
    words = event.payload.get("words") or ", ".join(f"{k} {v}" for k, v in event.payload.items() if _plain(v))
    return f"[green]event[/green]  {event.event}: {words}"


def _plain(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def run_graph(live: Live, answer: Answer) -> Tree:
    """From the tick of the schedule to the release, one below the other."""
    entry, alert = answer.entry, answer.alert
    emitter = next((r for r in live.runs if alert and f"prefect.flow-run.{r.id}" in {x.id for x in alert.related}), None)
    tree = Tree("schedule of monitor" if emitter and emitter.by == "schedule" else "")
    node = tree.add(_run_words(live, emitter)) if emitter else tree
    node = node.add(f"[green]{alert.event}[/green], window {alert.payload.get('window')}") if alert else node
    node = node.add(f"[magenta]{answer.retrain.by}[/magenta]")
    node = node.add(_run_words(live, answer.retrain))
    node = node.add(_run_words(live, answer.fine_tune))
    release = live.store.url(f"releases/{entry.release}/release.json")
    node.add(f"[bold]release v{entry.version}[/bold] answers window {entry.seq}: {release}")
    return tree


def _run_words(live: Live, run: Run) -> str:
    seconds = ((run.ended or datetime.now(UTC)) - run.started).total_seconds() if run.started else 0
    return f"[cyan]{run.flow}[/cyan] {run.name}: {run.state}, {seconds:.0f} s, by {live.watch.worker(run) or 'no worker'}"


def _closing_words(console: Console, stack: Stack, pipeline: Path, took: timedelta) -> None:
    here = os.path.relpath(Path(stack.logs).parent)
    console.print(
        f"\nNobody touched it: {took.total_seconds() / 60:.1f} minutes. It goes on: the schedule ticks every minute.\n\n"
        "Look next at\n"
        f"  runs, events, artifacts  {stack.ui}\n"
        f"  every tick               source {here}/env; everfresh history {os.path.relpath(pipeline)}\n"
        f"  stop it                  source {here}/env; everfresh deploy --delete {os.path.relpath(pipeline)}",
        soft_wrap=True,
    )
