"""What the Prefect server does by itself about a pipeline: tells people, starts `retrain` on drift, clears up after crashes.

All of it is a list of automations made from the config alone, so that deploying twice changes nothing. They act on events
of two kinds: ours, `everfresh.<name>` about the resource `everfresh.pipeline.<name>`, and Prefect's about flow runs. Two
things are absent rather than present, and need a *proactive* trigger: the sign of life of a run, and the tick of a schedule.

A reactive trigger with `within` fires at the first event and is deaf until `within` is over; that is the debouncing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise, takewhile
from uuid import UUID
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from prefect import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ActionTypes, ChangeFlowRunState, DoNothing, RunDeployment, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound

from everfresh.flows.fine_tune import UNTRAINABLE
from everfresh.tasks.config import PipelineConfig
from everfresh.tasks.config.operation import HEARTBEATS, Notice
from everfresh.tasks.errors import ConfigError

TRIES = 3
"""How often one run begins; one that crashes each time stays crashed."""
LONGEST_RUN = timedelta(days=30)
"""So long after its first crash it is still known that a run was started again for it."""
GRACE = timedelta(minutes=5)
"""A tick may be late by so much before it counts as missed."""
FIRST_SIGN = {"process": timedelta(minutes=2), "docker": timedelta(minutes=15), "kubernetes": timedelta(minutes=30)}
"""From the moment a worker takes a run to its first line of code: imports, and for containers an image to pull."""
LAST_YEAR = 2060
"""Of the ticks that are looked at; a schedule that never ticks would be looked for for ever."""
FIRST_TICKS = 5_000
"""More than any day has, and enough for all years of a schedule that ticks on a few days of each."""
HEARTBEAT, RUNNING, CRASHED = "prefect.flow-run.heartbeat", "prefect.flow-run.Running", "prefect.flow-run.Crashed"
SIGNS_OF_LIFE = {HEARTBEAT} | {
    f"prefect.flow-run.{state}"
    for state in (
        "Scheduled", "Late", "AwaitingRetry", "AwaitingConcurrencySlot", "Pending", "Submitting", "InfrastructurePending",
        "Running", "Retrying", "Paused", "Suspended", "Resuming", "Cancelling", "Cancelled", "Completed", "Failed", UNTRAINABLE,
    )
}  # fmt: skip
"""What ends the waiting for one. A crash does not: SQLite may drop an event at the trigger that has begun to wait for it (it
reads before it writes, "database is locked"), and then for every automation; this one is to start the run again."""
ANY_RUN = "prefect.flow-run.*"


def wanted(config: PipelineConfig, deployments: Mapping[str, UUID], ui: str) -> list[AutomationCore]:
    """The automations that the server should have for a pipeline, no more and no fewer.

    Args:
        config: the pipeline.
        deployments: their ids by full name, such as `retrain/digits`; alerts about one that is not there are left out.
        ui: address of the Prefect UI, for links in messages.

    Raises:
        ConfigError: if `alerts.notify` names a block that the server does not have.
    """
    return automations(config, deployments, ui, channels(config))


def channels(config: PipelineConfig) -> dict[str, UUID]:
    """Ids of the notification blocks that `alerts.notify` names, looked up on the server."""
    found = {}
    with get_client(sync_client=True) as client:
        for named in config.alerts.notify:
            kind, name = named.split("/")
            try:
                found[named] = client.read_block_document_by_name(name, kind, include_secrets=False).id
            except ObjectNotFound:
                raise ConfigError(
                    f"alerts.notify must name blocks that the Prefect server has, got {named}. Make it with "
                    f"`everfresh channel {name}`, or see `prefect block ls`."
                ) from None
    return found


def automations(
    config: PipelineConfig, deployments: Mapping[str, UUID], ui: str, notify: Mapping[str, UUID]
) -> list[AutomationCore]:
    """The same as `wanted`, with the ids of the notification blocks given: nothing is asked of a server."""
    ids = {flow: deployments[full] for flow in _FLOWS if (full := f"{flow}/{config.name}") in deployments}
    made = [*_lost(config), *_reruns(config, ids), *_retraining(config, ids), *_notices(config, ids, ui, list(notify.values()))]
    return [made_one.model_copy(update={"tags": ["everfresh", f"pipeline:{config.name}"]}) for made_one in made]


_FLOWS = ("monitor", "retrain", "rollback", "sweep")
"""Whose runs are started again and told of; a `fine-tune` that ends badly is the business of the `retrain` that asked."""


def _named(config: PipelineConfig, what: str) -> str:
    return f"everfresh · {config.name} · {what}"


def _of(*ids: UUID) -> ResourceSpecification:
    """Runs of these deployments."""
    resources = [f"prefect.deployment.{id}" for id in ids]
    return ResourceSpecification.model_validate({"prefect.resource.role": "deployment", "prefect.resource.id": resources})


def _any_of(config: PipelineConfig) -> ResourceSpecification:
    """All runs of the pipeline; those without a deployment too, which begin inside of another and die with it."""
    tag = f"prefect.tag.pipeline:{config.name}"
    return ResourceSpecification.model_validate({"prefect.resource.role": "tag", "prefect.resource.id": tag})


def _lost(config: PipelineConfig) -> Iterator[AutomationCore]:
    """Runs of which nothing is heard any more: nobody is left to say so.

    A deadline that has begun before a run ends may strike after it: what has ended cannot crash, and the server refuses that.
    """
    silence = timedelta(seconds=HEARTBEATS * config.deploy.heartbeat_seconds)
    first = max(silence, FIRST_SIGN[config.deploy.kind])
    for what, description, after, within, words in (
        (
            "no sign of life",
            f"A run that is silent for {HEARTBEATS} heartbeats counts as crashed.",
            {HEARTBEAT},
            silence,
            f"No sign of life for {silence.total_seconds():.0f} s: its machine or worker died.",
        ),
        (
            "never begun",
            "A run that a worker took and did not begin counts as crashed.",
            {f"prefect.flow-run.{state}" for state in ("Pending", "Submitting", "InfrastructurePending")},
            first,
            f"The worker that took it did not begin it within {first.total_seconds():.0f} s.",
        ),
    ):
        yield AutomationCore(
            name=_named(config, what),
            description=description,
            trigger=EventTrigger(
                match={"prefect.resource.id": ANY_RUN},
                match_related=_any_of(config),
                for_each={"prefect.resource.id"},
                after=after,
                expect=SIGNS_OF_LIFE,
                posture=Posture.Proactive,
                within=within,
            ),
            actions=[ChangeFlowRunState(state=StateType.CRASHED, name=None, message=words, force=False)],
        )


def _reruns(config: PipelineConfig, ids: Mapping[str, UUID]) -> Iterator[AutomationCore]:
    """A crash is of the machine, not of the work: the same run is started again, with what it was called with.

    Once for each time that it had begun, so that one that cannot even begin does not crash in a circle.
    """
    if not ids:
        return
    yield AutomationCore(
        name=_named(config, "run crashed ones again"),
        description=f"A run that crashed is started again, until it has begun {TRIES} times.",
        trigger=EventTrigger(
            match={"prefect.resource.id": ANY_RUN, "prefect.run-count": [str(n) for n in range(TRIES)]},
            match_related=_of(*ids.values()),
            for_each={"prefect.resource.id", "prefect.run-count"},
            expect={CRASHED},
            within=LONGEST_RUN,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.SCHEDULED, name="AwaitingRetry", message="It crashed and is started again, where it was.",
                force=False,
            )
        ],
    )  # fmt: skip


def _retraining(config: PipelineConfig, ids: Mapping[str, UUID]) -> Iterator[AutomationCore]:
    if not config.alerts.retrain or "retrain" not in ids:
        return
    minutes = config.alerts.debounce_minutes
    yield AutomationCore(
        name=_named(config, "retrain on drift"),
        description=f"A drift alert starts retrain, at most once in {minutes:g} minutes; the policy decides as always.",
        trigger=_on(config, "drift.detected", timedelta(minutes=minutes)),
        actions=[RunDeployment(source="selected", deployment_id=ids["retrain"], parameters=None, job_variables=None)],
    )


def _on(config: PipelineConfig, name: Notice, within: timedelta = timedelta(0)) -> EventTrigger:
    """One of our own events."""
    return EventTrigger(
        match={"prefect.resource.id": f"everfresh.pipeline.{config.name}"}, expect={f"everfresh.{name}"}, within=within
    )


def _notices(config: PipelineConfig, ids: Mapping[str, UUID], ui: str, blocks: list[UUID]) -> Iterator[AutomationCore]:
    """A message for each happening of `alerts.notify_on`; a missed tick is told in the event log where there is no channel."""
    for notice in config.alerts.notify_on:
        if notice == "schedule.missed":
            yield from _missed(config, ids, ui, blocks)
        elif notice == "run.failed":
            yield from _failed(config, ids, ui, blocks)
        elif blocks and (trigger := _trigger(config, notice, ids)) is not None:
            body = _body(config, notice, ids, ui)
            yield AutomationCore(
                name=_named(config, f"tell {notice}"),
                description=f"Tells {', '.join(config.alerts.notify)}.",
                trigger=trigger,
                actions=_tell(blocks, f"{config.name} · {_SUBJECTS[notice]}", body),
            )


_SUBJECTS: dict[Notice, str] = {
    "drift.detected": "drift",
    "data.quarantined": "samples in quarantine",
    "retraining.decided": "retraining",
    "approval.asked": "your approval is asked for",
    "gate.rejected": "challenger rejected",
    "release.published": "new champion",
    "champion.rolled-back": "rolled back",
    "champion.promoted": "promoted",
    "run.failed": "a run failed",
    "run.crashed": "a run crashed",
    "schedule.missed": "a schedule has not ticked",
}


RETRAINED: tuple[Notice, ...] = ("drift.detected", "data.quarantined", "gate.rejected")
"""What a person may answer with a retraining."""


def _trigger(config: PipelineConfig, notice: Notice, ids: Mapping[str, UUID]) -> EventTrigger | None:
    if not notice.startswith("run."):
        return _on(config, notice)
    if not ids:
        return None
    return EventTrigger(
        match={"prefect.resource.id": ANY_RUN, "prefect.state-type": "CRASHED"},
        match_related=_of(*ids.values()),
        expect={ANY_RUN},
    )


def _body(config: PipelineConfig, notice: Notice, ids: Mapping[str, UUID], ui: str) -> str:
    """One sentence, then where to look and what to press; `{{ }}` is filled in by the server."""
    if notice.startswith("run."):
        name, id = "event.resource['prefect.resource.name']", "event.resource['prefect.resource.id']"
        again = f" {{% if event.resource['prefect.run-count'] | int < {TRIES} %}}It is started again by itself.{{% endif %}}"
        words = f"{{{{ {name} }}}}: {{{{ event.resource['prefect.state-message'] }}}}{again if notice == 'run.crashed' else ''}"
        return f"{words}\n\nThe run: {ui}/runs/flow-run/{{{{ {id}.split('.')[-1] }}}}"
    page = f"{ui}/artifacts/key/{config.name}-"
    if notice == "approval.asked":
        links = {
            "What to know": f"{page}approval",
            "The form, Resume": f"{ui}/runs/flow-run/{{{{ event.payload.run }}}}",
            "Or answer with": "`everfresh approve` and the pipeline's file",
            "Open until": "{{ event.payload.expires_at }}",
        }
    else:
        links = {"The report": f"{page}{'drift' if notice == 'drift.detected' else 'tick'}"}
    if "retrain" in ids and notice in RETRAINED:
        links["Retrain with one click"] = f"{ui}/deployments/deployment/{ids['retrain']}/run"
    return "{{ event.payload.words }}\n\n" + "\n".join(f"{name}: {link}" for name, link in links.items())


def _failed(config: PipelineConfig, ids: Mapping[str, UUID], ui: str, blocks: list[UUID]) -> Iterator[AutomationCore]:
    """Flows tell of their failures themselves; what fails before they begin, or beside them, Prefect's states tell.

    An event of Prefect about a run is looked at by the triggers with `after` too, which read before they write: on SQLite
    that meets "database is locked" when the server is busy, and after four tries the event is dropped for every automation.
    """
    if not blocks or not ids:
        return
    subject, where = f"{config.name} · {_SUBJECTS['run.failed']}", f"The run: {ui}/runs/flow-run/"
    yield AutomationCore(
        name=_named(config, "tell run.failed"),
        description=f"Tells {', '.join(config.alerts.notify)}.",
        trigger=_on(config, "run.failed"),
        actions=_tell(blocks, subject, f"{{{{ event.payload.words }}}}\n\n{where}{{{{ event.payload.run }}}}"),
    )
    yield AutomationCore(
        name=_named(config, "tell run.failed unbegun"),
        description=f"Tells {', '.join(config.alerts.notify)} of a flow that could not begin.",
        trigger=EventTrigger(
            match={"prefect.resource.id": ANY_RUN, "prefect.state-type": "FAILED", "prefect.state-message": list(OF_PREFECT)},
            match_related=_of(*ids.values()),
            expect={ANY_RUN},
        ),
        actions=_tell(blocks, subject, _body(config, "run.failed", ids, ui)),
    )


OF_PREFECT = ("Flow run encountered an exception*", "Flow could not be retrieved*", "Validation of flow parameters failed*")
"""How Prefect words a failure that is not ours; then it stands before our flow began."""


def _tell(blocks: list[UUID], subject: str, body: str) -> list[ActionTypes]:
    return [SendNotification(block_document_id=block, subject=subject, body=body) for block in blocks]


def _missed(config: PipelineConfig, ids: Mapping[str, UUID], ui: str, blocks: list[UUID]) -> Iterator[AutomationCore]:
    for flow in ("monitor", "retrain", "sweep"):
        cron = getattr(config.schedule, flow)
        if cron is None or flow not in ids:
            continue
        within = longest_gap(cron, config.schedule.timezone) + GRACE
        minutes = within.total_seconds() / 60
        words = f"{flow} of {config.name} has not run for {minutes:,.0f} minutes, although its schedule is {cron}."
        remedy = f"Is its worker alive? {ui}/work-pools/work-pool/{config.deploy.pool}"
        yield AutomationCore(
            name=_named(config, f"tell schedule.missed {flow}"),
            description=f"Tells {', '.join(config.alerts.notify) or 'the event log'}.",
            trigger=EventTrigger(
                match={"prefect.resource.id": ANY_RUN},
                match_related=_of(ids[flow]),
                expect={RUNNING, HEARTBEAT},
                posture=Posture.Proactive,
                within=within,
            ),
            actions=_tell(blocks, f"{config.name} · {_SUBJECTS['schedule.missed']}", f"{words}\n\n{remedy}") or [DoNothing()],
        )


def longest_gap(cron: str, timezone: str) -> timedelta:
    """The longest time between two ticks of a schedule: nights, weekends and months without any are no alarm.

    From a fixed day on, so that it is the same whenever it is asked: between its first ticks, and over the days of a year.
    """
    start = datetime(2027, 1, 1, tzinfo=UTC).astimezone(ZoneInfo(timezone))
    try:
        within_years = takewhile(lambda tick: tick.year < LAST_YEAR, CronSim(cron, start))
    except CronSimError as error:
        raise ConfigError(
            f"schedule must be cron expressions, got {cron!r}: {error}. Every night at three is '0 3 * * *'"
        ) from None
    ticks = [tick.astimezone(UTC) for tick in islice(within_years, FIRST_TICKS)]
    gaps = [later - sooner for sooner, later in pairwise(ticks)]
    if len(ticks) == FIRST_TICKS:
        days = [start + timedelta(days=day) for day in range(1, 367)]
        last = [next(CronSim(cron, day, reverse=True)).astimezone(UTC) for day in days]
        first = [next(CronSim(cron, day - timedelta(seconds=1))).astimezone(UTC) for day in days]
        gaps += [later - sooner for sooner, later in zip(last, first, strict=True)]
    return max(gaps, default=timedelta(days=366))
