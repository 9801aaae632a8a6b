"""``everfresh``: moves of aliases that people make. They load neither torch nor, where no server is configured, Prefect."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from everfresh.flows.cli_shared import AsJson, Pipeline, Reason, Release, may_have_a_server, opened, show
from everfresh.tasks.config import PipelineConfig
from everfresh.tasks.errors import ConfigError
from everfresh.tasks.ledger import CHAMPION

app = typer.Typer()

Alias = Annotated[str, typer.Option("--alias", help="The alias to move: champion, challenger, shadow, or a new one.")]


@app.command()
def adopt(
    pipeline: Pipeline,
    weights: Annotated[str, typer.Option("--weights", help="State dict of the model that runs already: path or s3://….")],
    reference: Annotated[
        str, typer.Option("--reference", help="Its labelled validation pictures: a folder, one subfolder a class.")
    ],
    as_json: AsJson = False,
) -> None:
    """Make a model that already runs version 1, with its baseline."""
    from everfresh.tasks import publish
    from everfresh.tasks.ingest import freeze

    config, store = opened(pipeline)
    move = publish.adopt(store, config, weights, freeze(store, config, reference))
    told(move, as_json)
    if not as_json:
        from everfresh.flows.look import status as facts

        sys.stdout.write(f"its accuracy on the validation samples is {facts(config)['champion_accuracy']:.1%}\n")


@app.command()
def rollback(
    pipeline: Pipeline,
    to: Annotated[
        str | None, typer.Option("--to", help="Version to go back to, such as v3; the one before if not given.")
    ] = None,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Go back to an earlier release, bar the one that is left, and pin until `unpin`.

    Example: everfresh rollback pipeline.yaml --to v3 --reason "v4 takes every seven for a one"
    """
    from everfresh.tasks import alias

    version = None
    if to is not None:
        if not to.removeprefix("v").isdigit():
            raise ConfigError(f"--to must be a version such as v3, got {to!r}. See `everfresh history`.")
        version = int(to.removeprefix("v"))
    config, store = opened(pipeline)
    move = alias.rollback(store, version, reason=reason)
    told(move, as_json)
    _announce(config, move)


@app.command()
def promote(
    pipeline: Pipeline,
    release: Release,
    name: Alias = "champion",
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Let an alias name a release, on a person's word: every file is read and verified first, no gate is asked.

    It lifts the bar of a release that was rolled back, but neither a pin nor a retirement. The champion stays free to move: the
    next challenger that passes the gates replaces it.

    Example: everfresh promote pipeline.yaml v3 --alias shadow --reason "compare it for a week"
    """
    from everfresh.tasks import alias

    config, store = opened(pipeline)
    move = alias.promote(store, release, alias=name, reason=reason)
    told(move, as_json, name)
    if name == CHAMPION:
        _announce(config, move)


@app.command()
def unalias(
    pipeline: Pipeline,
    name: Annotated[str, typer.Argument(help="The alias, other than champion.", show_default=False)],
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Let an alias name nothing any more; its history stays.

    Example: everfresh unalias pipeline.yaml shadow --reason "the week is over"
    """
    from everfresh.tasks import alias

    told(alias.remove(opened(pipeline)[1], name, reason=reason), as_json, name)


@app.command()
def pin(pipeline: Pipeline, reason: Reason = "", as_json: AsJson = False) -> None:
    """Keep the champion where it is until `unpin`.

    Example: everfresh pin pipeline.yaml --reason "audit until Friday"
    """
    from everfresh.tasks import alias

    told(alias.pin(opened(pipeline)[1], reason=reason), as_json)


@app.command()
def unpin(pipeline: Pipeline, reason: Reason = "", as_json: AsJson = False) -> None:
    """Let challengers replace the champion again.

    Example: everfresh unpin pipeline.yaml
    """
    from everfresh.tasks import alias

    told(alias.unpin(opened(pipeline)[1], reason=reason), as_json)


@app.command()
def retire(pipeline: Pipeline, release: Release, reason: Reason = "", as_json: AsJson = False) -> None:
    """Withdraw a release: no alias may name it, by rollback or promotion, until `restore`. What an alias names cannot go.

    Example: everfresh retire pipeline.yaml v2 --reason "trained on pictures without a licence"
    """
    from everfresh.tasks import alias

    told(alias.retire(opened(pipeline)[1], release, reason=reason), as_json)


@app.command()
def restore(pipeline: Pipeline, release: Release, reason: Reason = "", as_json: AsJson = False) -> None:
    """Take the retirement of a release back.

    Example: everfresh restore pipeline.yaml v2
    """
    from everfresh.tasks import alias

    told(alias.restore(opened(pipeline)[1], release, reason=reason), as_json)


def told(move: Any, as_json: bool, name: str = "champion") -> None:
    """Print a move that was made."""
    if as_json:
        show(move.model_dump(mode="json"), as_json=True)
        return
    pinned = ", pinned" if move.pinned else ""
    who = "the champion" if name == "champion" else name
    what = "names no release" if move.kind == "remove" else f"is {move.label}{pinned} ({move.release[:12]})"
    sys.stdout.write(f"{move.kind}: {who} {what}\n")


def _announce(config: PipelineConfig, move: Any) -> None:
    """Emit the event of a move that a person made, if there is a server to hear it; the move stands without it."""
    if not may_have_a_server():
        return
    from prefect.settings import PREFECT_API_URL

    if PREFECT_API_URL.value():
        from everfresh.flows.alerts import announce

        announce(config, None, move)
