"""``everfresh``: what there is to see and to do about releases."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from everfresh.flows.cli_shared import FAILED, MEANT, AsJson, Pipeline, Release, opened, show
from everfresh.tasks.errors import ConfigError

app = typer.Typer()


@app.command()
def releases(
    pipeline: Pipeline,
    everything: Annotated[bool, typer.Option("--all", help="Also those whose weights `sweep` has removed.")] = False,
    as_json: AsJson = False,
) -> None:
    """All releases: version, when and how each was made, accuracy, who names it, size.

    A release that never was champion has no version; its id stands for it.

    Example: everfresh releases pipeline.yaml
    """
    from everfresh.flows.look import release_facts, releases_table

    facts = release_facts(opened(pipeline)[1], everything=everything)
    if as_json:
        show(facts, as_json=True)
    elif facts:
        show(releases_table(facts), as_json=False)
    else:
        sys.stdout.write("no release yet: `everfresh run` makes the first\n")


@app.command()
def verify(
    pipeline: Pipeline,
    release: Annotated[str | None, typer.Argument(help=MEANT)] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every release, and whatever an alias names.")] = False,
    as_json: AsJson = False,
) -> None:
    """Read every file of a release and compare it with its digest; the champion if none is named. Exit code 1: not whole.

    Example: everfresh verify pipeline.yaml --all
    """
    from everfresh.tasks.catalogue import named, named_or_standing
    from everfresh.tasks.pull import problems

    store = opened(pipeline)[1]
    if everything and release is not None:
        raise ConfigError(f"verify: --all must stand alone, got {release} too. Leave one out.")
    found = []
    for goal in named_or_standing(store) if everything else [named(store, release or "champion")]:
        wrong = problems(store, goal)
        found.append({"release": goal.release, "version": goal.version or None, "whole": not wrong, "problems": wrong})
        if not as_json:
            sys.stdout.write(f"{'FAIL' if wrong else 'ok  '} {goal.label} ({goal.release[:12]})\n")
            sys.stdout.writelines(f"     {words}\n" for words in wrong)
    if as_json:
        show(found, as_json=True)
    if not all(one["whole"] for one in found):
        raise typer.Exit(FAILED)


@app.command()
def pull(
    pipeline: Pipeline,
    release: Release,
    target: Annotated[Path, typer.Argument(help="A folder that is absent or empty.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Copy a release to a folder, each file verified: the whole of it, or nothing. The same release twice is fine.

    Example: everfresh pull pipeline.yaml champion model/
    """
    from everfresh.tasks.catalogue import named
    from everfresh.tasks.pull import pull as copy

    store = opened(pipeline)[1]
    goal = named(store, release)
    files = copy(store, goal, target).files
    if as_json:
        show(
            {"release": goal.release, "version": goal.version or None, "target": str(target), "files": sorted(files)},
            as_json=True,
        )
    else:
        size = sum(part.size for part in files.values())
        sys.stdout.write(f"pull: {goal.label} ({goal.release[:12]}) stands in {target}: {len(files)} files, {size:,} bytes\n")


@app.command()
def diff(
    pipeline: Pipeline,
    one: Release,
    other: Release,
    weights: Annotated[bool, typer.Option(help="Also compare the weights, layer by layer.")] = True,
    as_json: AsJson = False,
) -> None:
    """What is between two releases: lineage, configuration, data, metrics, and how far the weights are apart by layer.

    Each release's metrics are on the hold-out of its own window; where the one was proven against the other, the gain on the
    same samples stands beside. Releases whose weights were removed are compared without them.

    Example: everfresh diff pipeline.yaml v3 v4
    """
    from everfresh.flows.look import difference_lines
    from everfresh.tasks.catalogue import named
    from everfresh.tasks.difference import difference

    store = opened(pipeline)[1]
    found = difference(store, named(store, one), named(store, other), weights=weights)
    if as_json:
        show(found, as_json=True)
    else:
        sys.stdout.writelines(f"{line}\n" for line in difference_lines(found))


@app.command()
def sweep(
    pipeline: Pipeline,
    delete: Annotated[bool, typer.Option("--delete", help="Delete it; without this it is only shown.")] = False,
    older_than: Annotated[
        float, typer.Option("--older-than", help="Hours; what is younger, or was in use then, may be in use still.", min=0)
    ] = 24.0,
    keep_releases: Annotated[
        int | None, typer.Option("--keep-releases", help="So many newest releases stay; else as the file says.", min=1)
    ] = None,
    keep_days: Annotated[
        float | None, typer.Option("--keep-days", help="Releases younger than that stay; else as the file says.", min=0.01)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show, or delete, what is no longer needed: objects that no record names, and the weights of old releases.

    Releases go only if `retention:` in the pipeline file, or an option, says how many stay; an option replaces its own line of
    the file, the others hold. What an alias names stays in any case, and so does what a tick under way sets out from. Of a
    release that goes, record, card, metrics and lineage stay.

    Example: everfresh sweep pipeline.yaml --keep-releases 10 --keep-days 30, and again with --delete
    """
    from everfresh.tasks.config import RetentionConfig
    from everfresh.tasks.retention import clear
    from everfresh.tasks.store import Unfinished

    config, store = opened(pipeline)
    given = {name: v for name, v in {"keep_releases": keep_releases, "keep_days": keep_days}.items() if v is not None}
    age, rule = timedelta(hours=older_than), RetentionConfig(**config.retention.model_dump() | given)
    cleared = clear(store, rule, age, config.model.weights, delete=delete)
    old, found = cleared.old, cleared.debris
    kinds = {item.key: "unfinished" if isinstance(item, Unfinished) else "object" for item in found}
    kinds |= {item.key: "release" for item in old}
    if as_json:
        show([{"key": i.key, "kind": kinds[i.key], "size": i.size, "deleted": delete} for i in (*old, *found)], as_json=True)
        return
    _tell_releases(cleared.plan, store, rule.asked, delete)
    for item in found:
        what = "unfinished write of " if kinds[item.key] == "unfinished" else ""
        sys.stdout.write(f"{'deleted' if delete else 'debris '} {what}{store.url(item.key)}\n")
    hint = "" if delete or not (found or old) else "; `--delete` removes them"
    sys.stdout.write(f"{len(found) + len(old)} objects, {cleared.size:,} bytes{hint}\n")


def _tell_releases(planned: Any, store: Any, asked: bool, delete: bool) -> None:
    """Which releases stay, each with its reason, and which go, with their bytes."""
    for name, why in planned.kept.items() if asked else ():
        sys.stdout.write(f"stays   {name}: {why}\n")
    for entry in planned.going:
        here = delete and store.exists(f"releases/{entry.release.id}/release.json")
        verb = "stays  " if here else "removed" if delete else "goes   "
        why = ": an alias names it by now" if here else ""
        sys.stdout.write(f"{verb} {entry.label} ({entry.release.id[:12]}), {entry.size:,} bytes{why}\n")
    if planned.spent:
        size = sum(item.size for challenger in planned.spent for item in planned.objects[challenger])
        verb = "removed" if delete else "goes   "
        sys.stdout.write(f"{verb} {len(planned.spent)} challengers that never became a release, {size:,} bytes\n")
