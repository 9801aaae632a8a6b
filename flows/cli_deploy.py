"""``everfresh deploy``: onto a Prefect server that stays up."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from everfresh.flows.cli_shared import AsJson, show
from everfresh.tasks.config import load_config
from everfresh.tasks.errors import ConfigError

app = typer.Typer()


@app.command()
def deploy(
    pipelines: Annotated[list[Path], typer.Argument(help="The pipeline files; several with --fleet.", show_default=False)],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Take away all that was deployed of this pipeline.")] = False,
    fleet: Annotated[
        str, typer.Option("--fleet", help="One scheduled `monitor` run for all of these pipelines, under this name.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Schedules, work pools, limits and automations on the Prefect server of PREFECT_API_URL, as the file says.

    Deploying twice changes nothing; what the file no longer says goes. The store and its releases are not touched.

    Example: everfresh deploy pipeline.yaml --dry-run && everfresh deploy pipeline.yaml
    """
    configs = [load_config(path) for path in pipelines]
    if len(configs) > 1 and not fleet:
        raise ConfigError(
            f"several pipelines must be deployed as a fleet, got {len(configs)} without --fleet. "
            "Name it, or deploy them one by one."
        )
    if fleet:
        from everfresh.flows.deploy_fleet import deploy_fleet

        changes = deploy_fleet(fleet, configs, dry_run=dry_run, delete=delete)
    else:
        from everfresh.flows.deploy import deploy as bring

        changes = bring(configs[0], dry_run=dry_run, delete=delete)
    if as_json:
        show([{"sign": c.sign, "what": c.what, "words": c.words} for c in changes], as_json=True)
        return
    for change in changes:
        show(f"{change.sign} {change.what}{f': {change.words}' if change.words else ''}", as_json=False)
    show(_closing(len(changes), dry_run, delete), as_json=False)


def _closing(count: int, dry_run: bool, delete: bool) -> str:
    if not count:
        return f"nothing to change: the server has {'nothing of it' if delete else 'what the file says'}"
    if dry_run:
        return f"{count} to change; without --dry-run it is done"
    from everfresh.flows.deploy import ui

    return f"{count} changed; see {ui()}/deployments"
