"""``everfresh deploy``: onto a Prefect server that stays up."""

from __future__ import annotations

from typing import Annotated

import typer

from everfresh.flows.cli_shared import AsJson, Pipeline, show
from everfresh.tasks.config import load_config

app = typer.Typer()


@app.command()
def deploy(
    pipeline: Pipeline,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Take away all that was deployed of this pipeline.")] = False,
    as_json: AsJson = False,
) -> None:
    """Schedules, work pools, limits and automations on the Prefect server of PREFECT_API_URL, as the file says.

    Deploying twice changes nothing; what the file no longer says goes. The store and its releases are not touched.

    Example: everfresh deploy pipeline.yaml --dry-run && everfresh deploy pipeline.yaml
    """
    config = load_config(pipeline)
    from everfresh.flows.deploy import deploy as bring

    changes = bring(config, dry_run=dry_run, delete=delete)
    if as_json:
        show([{"sign": c.sign, "what": c.what, "words": c.words} for c in changes], as_json=True)
        return
    for change in changes:
        show(f"{change.sign} {change.what}{f': {change.words}' if change.words else ''}", as_json=False)
    show(_closing(len(changes), dry_run), as_json=False)


def _closing(count: int, dry_run: bool) -> str:
    if not count:
        return "nothing to change: the server has what the file says"
    if dry_run:
        return f"{count} to change; without --dry-run it is done"
    from everfresh.flows.deploy import ui

    return f"{count} changed; see {ui()}/deployments"
