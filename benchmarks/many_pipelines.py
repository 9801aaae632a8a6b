"""Many pipelines with nothing new: whether any run is late, and what a tick costs.

    python benchmarks/many_pipelines.py [--pipelines 20] [--minutes 30] [--fleet 100] [--sqlite]

First, so many pipelines on one process worker, each with a `monitor` every five minutes, spread over the minutes as one would:
Prefect counts a run as late that has not begun 15 s after it was due. Then a fleet through one `everfresh monitor` of all of
them, and of a tenth, whose difference is the cost of one more. CPU is that of all processes of the stack, server included.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil
from on_stack import EVERFRESH, Deployed, events, moment, runs, write_pipeline
from stack_postgres import stack_for_good

from everfresh.flows.declared import as_parameter
from everfresh.flows.digits import Scanner
from everfresh.flows.stack import Stack
from everfresh.tasks.config import load_config

EVERY = 5
"""Minutes between two ticks of a pipeline."""
DAY = 24 * 60
MANY = 10_000
PARAMETERS = 524_288
"""Bytes of parameters that a Prefect server takes a run unless told otherwise."""
ROUNDS = 5
"""Of runs over a fleet, of which the least counts: what else the machine does only adds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipelines", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--fleet", type=int, default=100)
    parser.add_argument("--sqlite", action="store_true", help="as `make up` has it; else PostgreSQL")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="everfresh-many-") as folder,
        stack_for_good(Path(folder), sqlite=options.sqlite) as (stack, up),
    ):
        made = pipelines(Path(folder), max(options.pipelines, options.fleet))
        late = scheduled_ticks(stack, up, made[: options.pipelines], options.minutes)
        if options.fleet:
            fleet(made[: options.fleet])
    sys.exit(bool(late))


def pipelines(folder: Path, count: int) -> list[Deployed]:
    """Pipelines whose one window was treated: the first was, the others are copies of its store under other names."""
    place, made = str(folder / "data"), []
    for number in range(count):
        first, last = number % EVERY, 59
        schedule = {"monitor": f"{first}-{last}/{EVERY} * * * *", "retrain": None}
        one = write_pipeline(folder, place, f"p{number:03d}", schedule=schedule)
        if number == 0:
            one.arrive(1, 400, Scanner())
            subprocess.run([EVERFRESH, "run", str(one.file)], stdout=subprocess.DEVNULL, check=True)
        else:
            shutil.copytree(folder / "data/store/p000", folder / f"data/store/{one.name}")
            shutil.copytree(folder / "data/inbox-p000", folder / f"data/inbox-{one.name}", copy_function=shutil.copy2)
        made.append(one)
    return made


def scheduled_ticks(stack: Stack, up: psutil.Process, made: list[Deployed], minutes: float) -> int:
    """Deploy them, watch the schedule; prints the table and says how many runs were late."""
    for one in made:
        subprocess.run([EVERFRESH, "deploy", str(one.file)], stdout=subprocess.DEVNULL, check=True)
    time.sleep(60 - time.time() % 60)
    since, before = datetime.now(UTC), cpu_seconds(up)
    print(f"{len(made)} pipelines, every {EVERY} minutes, for {minutes:g} minutes from {since:%H:%M} UTC", flush=True)
    time.sleep(60 * minutes)
    until, used = datetime.now(UTC), cpu_seconds(up) - before
    time.sleep(60)  # for those that have just begun
    due = [r for one in made for r in runs(stack, one.name) if since <= moment(r["expected_start_time"]) < until]
    begun = [r for r in due if r["start_time"]]
    waits = sorted((moment(r["start_time"]) - moment(r["expected_start_time"])).total_seconds() for r in begun)
    names = {"name": ["prefect.flow-run.Late"]}
    late = len(events(stack, event=names, occurred={"since": since.isoformat()})) + len(due) - len(begun)
    failed = sum(r["state_type"] != "COMPLETED" for r in due)
    print("| due | late | not completed | begun after, median | at most | CPU s a tick, all processes | of 2 cores |")
    print("|---|---|---|---|---|---|---|")
    share = used / (60 * minutes * 2)
    middle, most = (waits[len(waits) // 2], waits[-1]) if waits else (0, 0)
    print(f"| {len(due)} | {late} | {failed} | {middle:.1f} s | {most:.1f} s | {used / max(len(due), 1):.2f} | {share:.1%} |")
    return late + failed


def cpu_seconds(up: psutil.Process) -> float:
    """Of the stack and all that it started and that has ended since."""
    total = 0.0
    for process in [up, *up.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def fleet(made: list[Deployed]) -> None:
    """One `monitor` run over all of them, and over a tenth; prints what one more costs, and what that makes of 10,000."""
    few = made[: max(1, len(made) // 10)]
    rounds = [[monitored(group) for group in (few, made)] for _ in range(ROUNDS)]  # in turn, so that both see the same machine
    least = [tuple(map(min, zip(*times, strict=True))) for times in zip(*rounds, strict=True)]
    measured = dict(zip((len(few), len(made)), least, strict=True))
    print(f"\nthe least of {ROUNDS} runs each:\n| pipelines in one run | wall s | CPU s |\n|---|---|---|")
    for count, (wall, cpu) in measured.items():
        print(f"| {count} | {wall:.1f} | {cpu:.1f} |")
    (a, (wall_a, cpu_a)), (b, (wall_b, cpu_b)) = measured.items()
    wall, cpu = (wall_b - wall_a) / (b - a), (cpu_b - cpu_a) / (b - a)
    fixed_wall, fixed_cpu = wall_a - a * wall, cpu_a - a * cpu
    size = sum(len(json.dumps(as_parameter(load_config(one.file)))) for one in made) // len(made)
    needed = math.ceil(MANY * size / PARAMETERS)
    total, cores = needed * fixed_wall + MANY * wall, (needed * fixed_cpu + MANY * cpu) / (60 * EVERY)
    print(
        f"\none more costs {1000 * wall:.0f} ms wall and {1000 * cpu:.0f} ms CPU; a run itself {fixed_wall:.1f} s and "
        f"{fixed_cpu:.1f} s.\n"
        f"Prefect takes {PARAMETERS:,} bytes of parameters a run, a pipeline needs {size:,}: {MANY:,} are {needed} fleets.\n"
        f"One after the other these take {total / 60:.1f} minutes; every {EVERY} minutes they need "
        f"{total / (60 * EVERY):.2f} such processes, and {cores:.2f} cores.\n"
        f"Each in a run of its own they would be {MANY * DAY // EVERY:,} runs a day, {MANY / (60 * EVERY):.0f} a second."
    )


def monitored(made: list[Deployed]) -> tuple[float, float]:
    """Wall and CPU seconds of `everfresh monitor` over pipelines."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(
        [EVERFRESH, "monitor", *(str(one.file) for one in made)], check=True, stdout=subprocess.DEVNULL, env=os.environ
    )
    wall, after = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
