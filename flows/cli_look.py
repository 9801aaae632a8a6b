"""``everfresh status``, ``history`` and ``report``: what a store says of its pipelines, with their files or without."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from everfresh.flows.cli_shared import AsJson, show
from everfresh.tasks.config import PipelineConfig, S3Config, load_config
from everfresh.tasks.errors import ConfigError
from everfresh.tasks.store import Store, open_store, pipeline_store

app = typer.Typer()

Files = Annotated[list[Path] | None, typer.Argument(help="Pipeline files; none with --store.", show_default=False)]
Where = Annotated[str, typer.Option("--store", help="A whole store instead: a folder or s3://…; every pipeline under it.")]
Only = Annotated[list[str] | None, typer.Option("--name", help="With --store: this pipeline alone; repeat it for more.")]
Endpoint = Annotated[str, typer.Option("--endpoint", help="With --store: address of an S3-compatible server.")]


class Found(NamedTuple):
    """One pipeline to look at."""

    name: str
    store: Store
    config: PipelineConfig | None
    """None where no file was given."""


def chosen(files: Sequence[Path] | None, where: str, names: Sequence[str] | None, endpoint: str) -> list[Found]:
    """The pipelines that the arguments mean, in their order; those of a whole store by name.

    Raises:
        ConfigError: files and a store were given, or neither, or the store has no such pipeline.
    """
    if bool(files) == bool(where):
        raise ConfigError("Pipeline files or --store must be given, got both or neither. Leave one out.")
    if not where:
        if names or endpoint:
            raise ConfigError("--name and --endpoint must go with --store, got pipeline files. Leave them out.")
        configs = [load_config(path) for path in files or ()]
        return [Found(config.name, pipeline_store(config), config) for config in configs]
    from everfresh.tasks.catalogue import pipelines

    store = open_store(where, S3Config(endpoint=endpoint or None))
    known = pipelines(store)
    wanted = list(names or known)
    if missing := [name for name in wanted if name not in known] or ([] if known else ["any"]):
        there = ", ".join(known) or "none"
        raise ConfigError(f"--store {where} must hold the pipelines asked for, got none of {missing}. It holds: {there}.")
    return [Found(name, store.sub(name), None) for name in wanted]


@app.command()
def status(
    pipelines: Files = None, store: Where = "", name: Only = None, endpoint: Endpoint = "", as_json: AsJson = False
) -> None:
    """Where pipelines stand: champion, last window, drift, accuracy. With --store: all of a store, without their files.

    Example: everfresh status --store s3://models/everfresh
    """
    from everfresh.flows.look import facts, overview_table, status_table

    found = [facts(one.name, one.store, one.config) for one in chosen(pipelines, store, name, endpoint)]
    if as_json:
        show(found, as_json=True)
    elif store and len(found) > 1:
        show(overview_table(found), as_json=False)
    else:
        for one in found:
            show(status_table(one), as_json=False)


@app.command()
def history(
    pipelines: Files = None, store: Where = "", name: Only = None, endpoint: Endpoint = "", as_json: AsJson = False
) -> None:
    """Every tick: what came in, what drifted, what was decided and why, what it cost and bought."""
    from everfresh.flows.look import history as read
    from everfresh.flows.look import history_table, other_moves

    found = chosen(pipelines, store, name, endpoint)
    plain = []
    for one in found:
        (entries, moves), others = read(one.store), other_moves(one.store)
        if as_json:
            plain.append(_plain(entries, moves, others) | ({"pipeline": one.name} if len(found) > 1 else {}))
            continue
        if len(found) > 1:
            sys.stdout.write(f"{one.name}\n")
        if entries or moves:
            show(history_table(entries, moves, others), as_json=False)
        else:
            sys.stdout.write("no tick yet: `everfresh run` makes the first\n")
    if as_json:
        show(plain if len(found) > 1 else plain[0], as_json=True)


def _plain(entries: Sequence[Any], moves: Sequence[Any], others: dict[str, list[Any]]) -> dict[str, Any]:
    facts: dict[str, Any] = {"ticks": [e.model_dump(mode="json") for e in entries]}
    facts["moves"] = [m.model_dump(mode="json") for m in moves]
    if others:
        facts["aliases"] = {name: [m.model_dump(mode="json") for m in log] for name, log in others.items()}
    return facts


@app.command()
def report(
    pipelines: Files = None,
    store: Where = "",
    name: Only = None,
    endpoint: Endpoint = "",
    out: Annotated[Path | None, typer.Option("--out", help="The page to write; a folder if there are several.")] = None,
    without: Annotated[
        str, typer.Option("--without", help="A replay that never retrains: its accuracy stands for the model left alone.")
    ] = "",
) -> None:
    """Write one static page of HTML: drift, decisions, releases, accuracy with and without, cost against benefit.

    Example: everfresh report pipeline.yaml --out report.html
    """
    from everfresh.flows.report import page

    if without and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", without):
        raise ConfigError(f"--without must be the name of a replay, got {without!r}. See `everfresh replay --name`.")
    found = chosen(pipelines, store, name, endpoint)
    for one in found:
        target = (out or Path()) / f"{one.name}.html" if len(found) > 1 or out is None else out
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(page(one.name, one.store.url(""), one.store, one.store.now(), without), "utf-8")
        sys.stdout.write(f"wrote {target}\n")
