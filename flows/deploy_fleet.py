"""``everfresh deploy a.yaml b.yaml … --fleet NAME``: one scheduled `monitor-all` in the place of a `monitor` for each.

To Prefect a fleet is a pipeline of the fleet's name with one flow; what its pipelines have in common, schedule, pool and
environment, is the fleet's. All else of each pipeline is deployed as ever. The fleet is made first: a pipeline loses the
schedule of its own when another has it already, and in between is looked at twice rather than never.
"""

from __future__ import annotations

from collections.abc import Sequence

from prefect import get_client

from everfresh.flows import declared
from everfresh.flows.deploy import Change, bring, deploy, existing, fleets, reach
from everfresh.tasks.config import PipelineConfig, parse_config
from everfresh.tasks.errors import ConfigError

OF_RUNS = ("run.failed", "run.crashed", "schedule.missed")
"""Notices of the fleet's own runs; what happens to a pipeline is told by the pipeline's automations."""


def deploy_fleet(name: str, configs: Sequence[PipelineConfig], *, dry_run: bool = False, delete: bool = False) -> list[Change]:
    """Bring the server to one `monitor-all` for all pipelines and to the rest of each, and say what differed.

    Args:
        name: of the fleet.
        configs: of its pipelines, all of them: one that is left out is no longer looked at.
        dry_run: say it only.
        delete: the fleet goes, and all of its pipelines.

    Raises:
        ConfigError: the pipelines differ in what one run has once, the name is a pipeline's, one is in another fleet, or
            the fleet is to go and one of its pipelines is not named.
    """
    head = stands_for(name, configs)
    with get_client(sync_client=True) as client:
        reach()
        had = fleets(client)
        _take_in(name, configs, had)
        gone = sorted({*had.get(name, ())} - {config.name for config in configs})
        if delete and gone:
            raise ConfigError(
                f"--delete must be given all pipelines of fleet {name}, got it without {', '.join(gone)}, which nothing would "
                "look at any more. Name their files too, or deploy the fleet anew without those that are to go."
            )
        if name not in had and existing(client, head):
            raise ConfigError(f"--fleet must be a name that no pipeline has, got {name}. Give the fleet another.")
        changes = bring(client, head, {} if delete else declared.fleet(head, configs), {}, dry_run=dry_run)
    changes += [_left(name, pipeline) for pipeline in gone]
    for config in configs:
        changes += deploy(config, dry_run=dry_run, delete=delete, fleet=name)
    return changes


def stands_for(name: str, configs: Sequence[PipelineConfig]) -> PipelineConfig:
    """A config that has what the pipelines have in common, under the fleet's name, and tells all whom they tell.

    Raises:
        ConfigError: they do not have it in common, one is there twice, or the name is none.
    """
    first, names = configs[0], [config.name for config in configs]
    if twice := {each for each in names if names.count(each) > 1}:
        raise ConfigError(
            f"pipelines of a fleet must have names of their own, got {', '.join(sorted(twice))} twice. Rename one."
        )
    for field, value in declared.COMMON.items():
        for other in configs:
            if value(other) != value(first):
                raise ConfigError(
                    f"{field} must be the same in all pipelines of a fleet, got {value(first)!r} in {first.name} and "
                    f"{value(other)!r} in {other.name}. One run looks at all: make them equal, or deploy two fleets."
                )
    alerts = {
        "notify": list(dict.fromkeys(block for config in configs for block in config.alerts.notify)),
        "notify_on": [notice for notice in OF_RUNS if any(notice in config.alerts.notify_on for config in configs)],
    }
    deploy_section = first.deploy.model_dump(mode="json", exclude={"gpu_pool", "gpu_slots", "gpu_job_variables"})
    schedule = first.schedule.model_dump(mode="json", include={"monitor", "timezone"})
    raw = declared.as_parameter(first) | {"name": name, "alerts": alerts, "deploy": deploy_section, "schedule": schedule}
    return parse_config(raw, label="--fleet")


def _take_in(name: str, configs: Sequence[PipelineConfig], had: dict[str, list[str]]) -> None:
    """Raises ConfigError if another fleet looks at one of them."""
    for other, pipelines in had.items():
        both = sorted({config.name for config in configs} & {*pipelines})
        if other != name and both:
            raise ConfigError(f"{both[0]} must be in one fleet, got {other} beside {name}. Deploy {other} without it first.")


def _left(name: str, pipeline: str) -> Change:
    words = "nothing looks at it by itself now; `everfresh deploy` with its file gives it a schedule of its own"
    return Change("-", f"pipeline {pipeline} of fleet {name}", words, lambda _client: None)
