"""``everfresh doctor`` on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from everfresh.flows.cli_shared import AsJson, tell_checks
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

    tell_checks(look(load_config(pipeline) if pipeline else None), as_json)
