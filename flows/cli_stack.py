"""``everfresh up`` and ``demo-live``: the local stack on the command line."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()
COLOURS = {"server": "blue", "cpu-worker": "green", "gpu-worker": "magenta", "s3": "yellow"}
Folder = Annotated[Path, typer.Option("--folder", help="Where the stack lives: data, logs, stack.json.")]


@app.command()
def up(
    folder: Folder = Path("run/stack"),
    postgres: Annotated[
        str | None, typer.Option("--postgres", help="postgresql://user@host:port/database for Prefect's server, not SQLite.")
    ] = None,
) -> None:
    """Run it all on this machine: Prefect server, a CPU and a "GPU" worker, a real S3 server; Ctrl-C ends all."""
    from everfresh.flows.stack import run_stack

    run_stack(folder, postgres, _Terminal())


@app.command()
def demo_live(
    folder: Folder = Path("run/stack"),
    seed: Annotated[int, typer.Option("--seed", help="Order of the digits, split and training.", min=0)] = 0,
    minutes: Annotated[float, typer.Option("--minutes", help="It fails if it takes longer.", min=1)] = 30,
) -> None:
    """On the stack of `everfresh up`: deploys the digits' pipeline, lets drift arrive, and shows which run led to which."""
    from everfresh.flows.stack import read_stack

    stack = read_stack(folder)
    os.environ.update(stack.environment)  # before Prefect reads its settings
    from everfresh.flows.demo_live import run_live

    run_live(stack, seed, minutes)


class _Terminal:
    """Lines of several threads, each whole, with the name of whose they are."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, name: str, line: str) -> None:
        label = f"{name:>10} │ "
        with self.lock:
            sys.stdout.write(typer.style(label, fg=COLOURS.get(name, "cyan")) if sys.stdout.isatty() else label)
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
