"""``everfresh deploy``: make the Prefect server have what the pipeline file says, no more and no fewer.

What is there is compared with what is declared (`flows/declared.py`, `flows/automations.py`) in plain values, and only what
differs is written: deploying twice changes nothing. Prefect replaces a deployment's schedules and deletes its scheduled
runs when it is written; a scheduler that reads the old ones at that moment can put some back (prefect#18894), so runs of
schedules that are no longer there are looked for and removed at every deploy.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar, get_args
from uuid import UUID

from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient as Client
from prefect.client.schemas.actions import (
    DeploymentScheduleCreate,
    DeploymentUpdate,
    GlobalConcurrencyLimitCreate,
    GlobalConcurrencyLimitUpdate,
    WorkPoolCreate,
)
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    DeploymentFilterName,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.events.schemas.automations import Automation, AutomationCore
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL

from everfresh.flows import automations, declared
from everfresh.flows.declared import Declared
from everfresh.tasks.config import PipelineConfig, parse_config
from everfresh.tasks.config.operation import DeployConfig
from everfresh.tasks.errors import ConfigError, EverfreshError

log = logging.getLogger(__name__)
T = TypeVar("T")
Sign = Literal["+", "~", "-"]
MOST_RUNS = 200
"""That Prefect hands out at once."""
KINDS = get_args(DeployConfig.model_fields["kind"].annotation)
SHOWN = 60
"""Characters of a value in the table of changes."""
ABSENT = object()
"""Where a key is not there at all, which null is not."""


@dataclass(frozen=True)
class Change:
    """One thing that the server has otherwise than declared."""

    sign: Sign
    what: str
    """Such as ``deployment retrain/digits``."""
    words: str
    """What of it differs."""
    make: Callable[[Client], object]
    """Makes it as declared."""


def deploy(config: PipelineConfig, *, dry_run: bool = False, delete: bool = False, fleet: str = "") -> list[Change]:
    """Bring the server to what a pipeline declares, and say what differed.

    A pipeline that a fleet on the server looks at has no schedule of its own for `monitor`; the fleet's copy of its config is
    brought up to date.

    Args:
        config: the pipeline.
        dry_run: say it only.
        delete: what is declared is nothing: all of this pipeline goes; pools and limits that others may use stay.
        fleet: the one that is being deployed with it, if any; see `flows/deploy_fleet.py`.

    Raises:
        EverfreshError: it is to go and a run of it is under way, or the server refuses something.
        ConfigError: no server is named, a cron expression is none, a notification block or a job variable is not there,
            a pool is of another kind, a fleet has the name, goes on looking at a pipeline that is to go, or has otherwise
            what it has in common with its pipelines.
    """
    with get_client(sync_client=True) as client:
        reach()
        found = fleets(client)
        within = next((name for name, pipelines in found.items() if config.name in pipelines), "")
        if config.name in found:
            raise ConfigError(f"name must not be that of a fleet, got {config.name}. Give the pipeline or the fleet another.")
        if within and delete and not fleet:
            raise ConfigError(
                f"{config.name} must not be in fleet {within}, which goes on looking at it. Deploy that one without it first."
            )
        told = list(_its_fleet(client, within, config)) if within and not fleet else []
        if within or fleet:
            config = declared.in_a_fleet(config)
        if delete:
            return bring(client, config, {}, {}, dry_run=dry_run)
        changes = bring(client, config, declared.deployments(config), declared.limits(config), dry_run=dry_run)
        _make(client, told if not dry_run else [])
        return changes + told


def bring(
    client: Client, config: PipelineConfig, wanted: Mapping[str, Declared], limits: Mapping[str, int], *, dry_run: bool
) -> list[Change]:
    """Make the server have these deployments under the config's name, with pools, limits and automations, and no others."""
    for name, facts in wanted.items():
        _crons(config, name, facts)
    ids = {**_pending(wanted, config), **_ids(client, config)}
    planned = automations.wanted(config, ids, ui()) if wanted else []  # what is wrong is told before anything is made
    before = [
        *(_pools(client, config) if wanted else ()),
        *_limits(client, config, limits),
        *_deployments(client, config, wanted),
    ]
    if not wanted:
        _none_under_way(client, config)
    if dry_run:
        return [*before, *_automations(client, config, planned)]
    _make(client, before)
    actions = automations.wanted(config, _ids(client, config), ui()) if wanted else []
    _make(client, after := list(_automations(client, config, actions)))
    _drop_strays(client, config)
    return before + after


def reach() -> None:
    """Refuse to deploy onto a server that ends with this process."""
    if not PREFECT_API_URL.value():
        raise ConfigError(
            "PREFECT_API_URL must name a Prefect server that stays up, got none: what is deployed has to live somewhere. "
            "Start one with `make up` or `prefect server start`, then `export PREFECT_API_URL=http://127.0.0.1:4200/api`."
        )


def ui() -> str:
    """Address of the Prefect UI, for links."""
    api: str = PREFECT_API_URL.value() or ""
    return str(PREFECT_UI_URL.value() or api.removesuffix("/api")).rstrip("/")


def _make(client: Client, changes: Sequence[Change]) -> None:
    for change in changes:
        try:
            change.make(client)
        except ObjectAlreadyExists:  # another deploy was faster
            continue
        except ObjectNotFound:
            if change.sign != "-":
                raise EverfreshError(f"{change.what}: must still be on the Prefect server, got none. Deploy again.") from None
        except PrefectHTTPStatusError as refused:
            answer = f"{refused.response.status_code} {refused.response.text[:300]}"
            raise EverfreshError(
                f"{change.what}: the Prefect server must take it, got {answer}. "
                "What was changed before it stays; correct the file and deploy again."
            ) from refused


# --- pools and limits -------------------------------------------------------------------------------------


def _pools(client: Client, config: PipelineConfig) -> Iterator[Change]:
    """Pools that are not there; one that is belongs to whoever made it."""
    for name, template in declared.pools(config).items():
        try:
            kind = client.read_work_pool(name).type
            if kind != config.deploy.kind and kind in KINDS:
                raise ConfigError(
                    f"deploy.kind must be the type of pool {name}, got {config.deploy.kind} and a pool of type {kind}: what "
                    f"becomes of a run that does not begin depends on it. Set deploy.kind: {kind}, or name another pool."
                )
        except ObjectNotFound:
            pool = WorkPoolCreate(name=name, type=config.deploy.kind, base_job_template=template)
            words = f"{config.deploy.kind}; start a worker with `prefect worker start --pool {name}`"
            yield Change("+", f"work pool {name}", words, partial(Client.create_work_pool, work_pool=pool))


def _limits(client: Client, config: PipelineConfig, wanted: Mapping[str, int]) -> Iterator[Change]:
    for name, slots in wanted.items():
        try:
            had = client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            new = GlobalConcurrencyLimitCreate(name=name, limit=slots, active=True, active_slots=0)
            yield Change(
                "+", f"limit {name}", f"{slots}", partial(Client.create_global_concurrency_limit, concurrency_limit=new)
            )
            continue
        if had.limit != slots:
            update = GlobalConcurrencyLimitUpdate(limit=slots)
            yield Change(
                "~",
                f"limit {name}",
                f"{had.limit} → {slots}",
                partial(Client.update_global_concurrency_limit, name=name, concurrency_limit=update),
            )
    own = declared.publish_limit(config)
    if own not in wanted:
        try:
            client.read_global_concurrency_limit_by_name(own)
        except ObjectNotFound:
            return
        yield Change("-", f"limit {own}", "", partial(Client.delete_global_concurrency_limit_by_name, name=own))


# --- deployments ------------------------------------------------------------------------------------------


def existing(client: Client, config: PipelineConfig) -> dict[str, DeploymentResponse]:
    """Deployments of a pipeline that are on the server, by the name of their flow."""
    named = DeploymentFilter(name=DeploymentFilterName(any_=[config.name]))
    found = {}
    for one in _pages(partial(client.read_deployments, deployment_filter=named)):
        name = client.read_flow(one.flow_id).name
        if name in {*declared.FLOWS, declared.FLEET} and "everfresh" in one.tags:
            found[name] = one
    return found


def fleets(client: Client) -> dict[str, list[str]]:
    """The pipelines that each fleet on the server looks at."""
    every = _pages(partial(client.read_deployments, flow_filter=FlowFilter(name=FlowFilterName(any_=[declared.FLEET]))))
    return {one.name: [str(each.get("name")) for each in one.parameters.get("configs", ())] for one in every}


def _none_under_way(client: Client, config: PipelineConfig) -> None:
    """Raises EverfreshError if a run would lose, in the middle of its work, the limits it needs and who watches over it."""
    busy = FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING, StateType.CANCELLING])
    only = DeploymentFilter(id=DeploymentFilterId(any_=[one.id for one in existing(client, config).values()]))
    read = partial(client.read_flow_runs, flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=busy)))
    if runs := _pages(partial(read, deployment_filter=only)):
        raise EverfreshError(
            f"runs of {config.name} must be over before it is taken away, got {len(runs)} under way, such as {runs[0].name}. "
            f"Wait for it, or `prefect flow-run cancel {runs[0].id}`; then delete again."
        )


def _its_fleet(client: Client, name: str, config: PipelineConfig) -> Iterator[Change]:
    """The config of a pipeline as its fleet looks at it."""
    one = client.read_deployment_by_name(f"{declared.FLEET}/{name}")
    configs, now = one.parameters["configs"], declared.as_parameter(config)
    had = next(each for each in configs if each["name"] == config.name)
    if not (differing := "; ".join(differences(had, now, "config"))):
        return
    before = parse_config(had, label=f"fleet {name}")
    for field, value in declared.COMMON.items():
        if value(before) != value(config):
            raise ConfigError(
                f"{field} must be that of fleet {name}, got {value(config)!r} and {value(before)!r} there. "
                f"Deploy all of its pipelines with --fleet {name}, or the fleet without this one."
            )
    parameters = one.parameters | {"configs": [now if each is had else each for each in configs]}
    update = DeploymentUpdate(parameters=parameters)
    make = partial(Client.update_deployment, deployment_id=one.id, deployment=update)
    yield Change("~", f"deployment {declared.FLEET}/{name}", differing, make)


def _ids(client: Client, config: PipelineConfig) -> dict[str, UUID]:
    return {_full(name, config): one.id for name, one in existing(client, config).items()}


def _pending(wanted: Mapping[str, Declared], config: PipelineConfig) -> dict[str, UUID]:
    """Ids for deployments that a dry run does not make; they stand in links and triggers, which are compared."""
    return {_full(name, config): UUID(int=0) for name in wanted}


def _full(name: str, config: PipelineConfig) -> str:
    """A deployment as automations know it: what watches over one `monitor` watches over that of a fleet."""
    return f"{'monitor' if name == declared.FLEET else name}/{config.name}"


def _deployments(client: Client, config: PipelineConfig, wanted: Mapping[str, Declared]) -> Iterator[Change]:
    had, told = existing(client, config), set[str]()
    for name, facts in wanted.items():
        active = name not in had or _is_on(had[name])
        make = partial(_write, config=config, name=name, facts=facts, active=active)
        what = f"deployment {name}/{config.name}"
        if facts["schedules"] and (not active or (name in had and had[name].paused)):
            log.warning("%s: its schedule was switched off by hand and stays so; the switch is on its page in the UI", what)
        if name not in had:
            yield Change("+", what, ", ".join([f"pool {facts['work pool']}", *facts["schedules"]]), make)
        elif differing := list(differences(as_declared(had[name]), facts)):
            new = [words for words in differing if words not in told]  # the config is a parameter of each
            yield Change("~", what, "; ".join(new) or "the same change of config", make)
            told.update(differing)
    for name, one in had.items():
        if name not in wanted:
            yield Change("-", f"deployment {name}/{config.name}", "", partial(Client.delete_deployment, deployment_id=one.id))


def as_declared(one: DeploymentResponse) -> Declared:
    """A deployment of the server in the same plain values."""
    crons = [s.schedule for s in one.schedules if isinstance(s.schedule, CronSchedule)]
    others = [repr(s.schedule) for s in one.schedules if not isinstance(s.schedule, CronSchedule)]
    limit, options = one.global_concurrency_limit, one.concurrency_options
    return {
        "entrypoint": one.entrypoint,
        "description": one.description,
        "tags": one.tags,
        "parameters": one.parameters,
        "form": one.parameter_openapi_schema,
        "schedules": [f"{cron.cron} {cron.timezone}" for cron in crons] + others,
        "one at a time": options.collision_strategy.value if options and limit and limit.limit == 1 else None,
        "work pool": one.work_pool_name,
        "job variables": one.job_variables,
    }


def differences(had: Any, wanted: Any, path: str = "") -> Iterator[str]:
    """Where two plain values differ, one line a leaf: ``parameters.config.policy: 1 → 2``."""
    if isinstance(had, Mapping) and isinstance(wanted, Mapping) and path != "form":
        for key in [*wanted, *(key for key in had if key not in wanted)]:
            yield from differences(had.get(key, ABSENT), wanted.get(key, ABSENT), f"{path}.{key}".lstrip("."))
    elif path == "form":
        if had != wanted:
            yield "form of custom runs"
    elif had != wanted:
        yield f"{path}: {_short(had)} → {_short(wanted)}"


def _short(value: Any) -> str:
    text = "nothing" if value is None or value == [] or value is ABSENT else value if isinstance(value, str) else repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _write(client: Client, config: PipelineConfig, name: str, facts: Declared, active: bool) -> UUID:
    strategy = facts["one at a time"]
    return client.create_deployment(
        flow_id=client.create_flow(declared.flow_of(name)),
        name=config.name,
        entrypoint=facts["entrypoint"],
        description=facts["description"],
        tags=facts["tags"],
        parameters=facts["parameters"],
        parameter_openapi_schema=facts["form"],
        enforce_parameter_schema=True,
        schedules=[DeploymentScheduleCreate(schedule=tick, active=active) for tick in _crons(config, name, facts)],
        concurrency_limit=1 if strategy else None,
        concurrency_options=ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy(strategy)) if strategy else None,
        work_pool_name=facts["work pool"],
        job_variables=facts["job variables"],
    )


def _crons(config: PipelineConfig, name: str, facts: Declared) -> list[CronSchedule]:
    zone = config.schedule.timezone
    try:
        return [CronSchedule(cron=each.removesuffix(f" {zone}"), timezone=zone) for each in facts["schedules"]]
    except ValueError as error:
        raise ConfigError(
            f"schedule.{name} must be a cron expression, got {facts['schedules'][0]!r}. Every night at three is '0 3 * * *'."
        ) from error


def _is_on(one: DeploymentResponse) -> bool:
    """Whether a deployment ticks as far as people go: one whose schedules a person has switched off stays so."""
    return not one.schedules or any(schedule.active for schedule in one.schedules)


def _drop_strays(client: Client, config: PipelineConfig) -> None:
    """Delete scheduled runs of schedules that are no longer there; one that has begun, or waits for another, is work."""
    waiting = FlowRunFilter(
        state=FlowRunFilterState(
            type=FlowRunFilterStateType(any_=[StateType.SCHEDULED]), name=FlowRunFilterStateName(any_=["Scheduled", "Late"])
        )
    )
    for one in existing(client, config).values():
        known = {schedule.id for schedule in one.schedules}
        only = DeploymentFilter(id=DeploymentFilterId(any_=[one.id]))
        runs = _pages(partial(client.read_flow_runs, flow_run_filter=waiting, deployment_filter=only))
        for run in runs:
            maker = run.created_by if run.auto_scheduled and run.run_count == 0 else None
            if maker and maker.type == "SCHEDULE" and maker.id not in known:
                client.delete_flow_run(run.id)


def _pages(read: Callable[..., list[T]]) -> list[T]:
    """All that a filter of the client finds; it hands out so many at once."""
    found: list[T] = []
    while page := read(limit=MOST_RUNS, offset=len(found)):
        found += page
        if len(page) < MOST_RUNS:
            break
    return found


# --- automations ------------------------------------------------------------------------------------------


def _automations(client: Client, config: PipelineConfig, wanted: list[AutomationCore]) -> Iterator[Change]:
    had: dict[str, Automation] = {}
    surplus: list[Automation] = []  # a name may be there twice: two deploys at once, or a request that was sent again
    for one in all_automations(client):
        if one.name.startswith(f"everfresh · {config.name} · "):
            surplus += [one] if had.setdefault(one.name, one) is not one else []
    for new in wanted:
        what, old = f"automation {new.name}", had.pop(new.name, None)
        if old is None:
            yield Change("+", what, new.description, partial(Client.create_automation, automation=new))
        elif differing := "; ".join(differences(_plain(old), _plain(new))):
            yield Change("~", what, differing, partial(Client.update_automation, automation_id=old.id, automation=new))
    for gone in sorted([*had.values(), *surplus], key=lambda gone: gone.name):
        yield Change("-", f"automation {gone.name}", "", partial(Client.delete_automation, automation_id=gone.id))


def all_automations(client: Client) -> Iterator[Automation]:
    """Every automation of the server, page by page: the client's own call stops at the first 200."""
    offset = 0
    while True:
        answer = client.request("POST", "/automations/filter", json={"offset": offset, "limit": MOST_RUNS, "sort": "NAME_ASC"})
        found = [Automation.model_validate(one) for one in answer.json()]
        yield from found
        if len(found) < MOST_RUNS:
            return
        offset += MOST_RUNS


def _plain(automation: AutomationCore) -> dict[str, Any]:
    """An automation without what only the server knows, and whether a person has switched it off; sets come in order."""
    plain: dict[str, Any] = _compared(automation.model_dump(mode="json", exclude={"id", "created", "updated", "enabled"}))
    return plain


def _compared(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _compared(inner) for key, inner in value.items() if key != "id"}
    if isinstance(value, list):
        return sorted(value) if all(isinstance(inner, str) for inner in value) else [_compared(inner) for inner in value]
    return value
