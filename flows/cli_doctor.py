"""``everfresh doctor`` on the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from everfresh.flows.cli_shared import FAILED, AsJson, show
from everfresh.tasks.config import load_config

app = typer.Typer()


@app.command()
def doctor(
    pipeline: Annotated[
        Path | None, typer.Argument(help="Also its store, pools, deployments and automations.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Is what the loop runs on well? Server, workers, store, clock, GPU, versions, disk; each failure with its remedy.

    Exit code 1: something must be done.
    """
    from everfresh.flows.doctor import doctor as look

    lines = []
    for line in look(load_config(pipeline) if pipeline else None):
        lines.append({"check": line.name, "passed": line.passed, "words": line.words})
        if not as_json:
            sys.stdout.write(f"{'ok  ' if line.passed else 'FAIL'} {line.name}: {line.words}\n")
    if as_json:
        show(lines, as_json=True)
    if not all(line["passed"] for line in lines):
        raise typer.Exit(FAILED)
