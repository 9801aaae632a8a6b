"""Tell others what happened: Prefect events, for automations to act on. Each happening is told once, and none is lost.

Prefect's own `emit_event` queues in the process, and what the queue holds when server or process dies is gone. So an event
is posted and answered for. One that the server did not take waits in the store under ``unsent/`` for the next tick of any
flow, under the id that is made from the happening: told twice, Prefect knows it again. One that the server refuses as it
is, and would refuse for ever, is put aside under ``unsent/refused/`` with a warning.
"""

from __future__ import annotations

import json
import logging
import uuid
from contextlib import suppress
from typing import Any, Literal

import httpx
from prefect import get_client
from prefect.context import FlowRunContext
from prefect.events.related import tags_as_related_resources
from prefect.events.schemas.events import Event, RelatedResource, Resource
from prefect.exceptions import PrefectException

from everfresh.tasks.config import PipelineConfig
from everfresh.tasks.errors import ObjectMissing
from everfresh.tasks.records import AliasMove, Decision, DriftReport, JournalEntry, Question, Tick
from everfresh.tasks.steps import open_pipeline
from everfresh.tasks.store import Store

log = logging.getLogger(__name__)
TOLD = "alerts"
UNSENT = "unsent"
"""Not within the history of `TOLD`, which no role may delete from (infra/policies/)."""
REFUSED = f"{UNSENT}/refused"
FAULTS_OF_THE_EVENT = {400, 413, 422}
"""Answers that tell of the event; all others tell of the server, the address or the password, and pass."""
ANSWERS_WITHIN = 20.0
"""Seconds; an event is no reason to hold up a training longer."""
Happening = DriftReport | Decision | Question | JournalEntry | AliasMove
Answer = Literal["taken", "refused", "none"]
Posted = dict[str, Any]
"""An event as it goes over the wire. Whether it is a right one the server says, which may be another version of Prefect."""
Related = dict[str, str]
"""Roles of what else is involved, and its id."""


def announce(config: PipelineConfig, tick: Tick | None, what: Happening | None) -> None:
    """Emit the events of what was measured, decided, asked, done or moved by hand, as far as ``alerts.events`` names them.

    `monitor` and `retrain` see the same drift, and a rerun after a crash sees it again: what was told stands under
    ``alerts/`` and is not told twice.
    """
    if what is None or (tick is not None and tick.replay):
        return
    store = open_pipeline(config)
    for name, words, payload, related in _events(config, tick, what):
        told = f"{TOLD}/{name}-{_identity(tick, what)}.json"
        if name not in config.alerts.events or store.exists(told):
            continue
        if tick is not None:
            related = {"window": str(tick.seq), **related}
        payload = {"pipeline": config.name, "window": tick.seq if tick else None, "words": words, **payload}
        event = Event(
            event=f"everfresh.{name}",
            resource=_about(config.name),
            payload=payload,
            related=[*_run(), *(_resource(config, role, id) for role, id in related.items())],
            id=uuid.uuid5(uuid.NAMESPACE_URL, store.url(told)),
        )
        posted = event.model_dump(mode="json")
        _file(store, told.removeprefix(f"{TOLD}/"), posted, _send(posted))


def deliver(config: PipelineConfig) -> None:
    """Send the events that an earlier run could not send, as of when they happened."""
    store = open_pipeline(config)
    for key in [waiting.key for waiting in store.list(UNSENT) if not waiting.key.startswith(f"{REFUSED}/")]:
        with suppress(ObjectMissing):  # a run that began with this one was quicker
            event = json.loads(store.get(key))
            answer = _send(event)
            if answer == "none":
                return
            _file(store, key.removeprefix(f"{UNSENT}/"), event, answer)
            store.delete(key)


def tell_failure(pipeline: str | None, words: str) -> None:
    """Tell that a deployed run ends failed; nothing of it stands in the store, which may be what failed.

    A `fine-tune` is left to the `retrain` that asked for it, and who runs a flow by hand reads it on the terminal.

    Args:
        pipeline: its name, or that of a fleet.
        words: the cause in one sentence.
    """
    context = FlowRunContext.get()
    if pipeline is None or context is None or context.flow_run is None or context.flow_run.deployment_id is None:
        return
    if context.flow is not None and context.flow.name == "fine-tune":
        return
    run = context.flow_run
    event = Event(
        event="everfresh.run.failed",
        resource=_about(pipeline),
        payload={"pipeline": pipeline, "words": f"{run.name}: {words}", "run": str(run.id)},
        related=_run(),
        id=uuid.uuid5(run.id, str(run.run_count)),
    )
    _send(event.model_dump(mode="json"))


def _about(pipeline: str) -> Resource:
    return Resource({"prefect.resource.id": f"everfresh.pipeline.{pipeline}", "prefect.resource.name": pipeline})


def _file(store: Store, name: str, event: Posted, answer: Answer) -> None:
    """Write an event down where it belongs after that answer."""
    if answer == "taken":
        place, what = TOLD, event["payload"]
    else:
        place, what = REFUSED if answer == "refused" else UNSENT, event
    store.create(f"{place}/{name}", json.dumps(what, indent=1).encode() + b"\n")


def _send(event: Posted) -> Answer:
    """What the server says to an event; one that is gone, or refuses, is a warning and no failure of the run."""
    try:
        with get_client(sync_client=True, httpx_settings={"timeout": ANSWERS_WITHIN}) as client:
            client.request("POST", "/events", json=[event])
    except (httpx.HTTPError, PrefectException, RuntimeError, OSError) as error:
        if isinstance(error, httpx.HTTPStatusError) and error.response.status_code in FAULTS_OF_THE_EVENT:
            log.warning("%s was refused by Prefect (%s) and is not sent again", event["event"], error)
            return "refused"
        log.warning("%s could not be told to Prefect (%s); the next tick tries again", event["event"], error)
        return "none"
    return "taken"


def _run() -> list[RelatedResource]:
    """The run in which it happened, its deployment and its tags; nothing of a move by hand."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return []
    run = context.flow_run
    made = [{"prefect.resource.role": "flow-run", "prefect.resource.id": f"prefect.flow-run.{run.id}"}]
    made[0]["prefect.resource.name"] = run.name
    made.append({"prefect.resource.role": "flow", "prefect.resource.id": f"prefect.flow.{run.flow_id}"})
    if run.deployment_id is not None:
        made.append({"prefect.resource.role": "deployment", "prefect.resource.id": f"prefect.deployment.{run.deployment_id}"})
    return [*map(RelatedResource.model_validate, made), *tags_as_related_resources(run.tags)]


def _resource(config: PipelineConfig, role: str, id: str) -> RelatedResource:
    """Something of the pipeline that is involved: a window, a release, an evaluation."""
    return RelatedResource.model_validate(
        {
            "prefect.resource.role": role,
            "prefect.resource.id": f"everfresh.{role}.{config.name}.{id}",
            "prefect.resource.name": f"{config.name} · {role} {id}",
        }
    )


def _identity(tick: Tick | None, what: Happening) -> str:
    match what:
        case DriftReport():
            return f"{what.view}-{what.reference}"  # measured again after other windows, it is the same happening
        case Decision():
            return f"{tick.seq:08d}-{tick.request or 'tick'}" if tick else uuid.uuid4().hex
        case JournalEntry():
            return f"{what.seq:08d}-{what.request or 'tick'}"
        case Question() | AliasMove():
            return what.id


def _events(config: PipelineConfig, tick: Tick | None, what: Happening) -> list[tuple[str, str, dict[str, Any], Related]]:
    """What happened: the event's name, one sentence for people, the facts, and what else is involved."""
    where = f"{config.name}, window {tick.seq}" if tick else config.name
    match what:
        case DriftReport(alarm=True):
            numbers = what.model_dump(mode="json", include={"p_value", "score", "severity", "nearest", "key"})
            return [
                (
                    "drift.detected",
                    f"{where}: {_clause(what.words or what.verdict)}, {what.loss}.",
                    numbers,
                    {"drift": what.key},
                )
            ]
        case Decision(action="retrain"):
            facts = what.model_dump(mode="json", include={"action", "reasons", "triggers", "ladder"})
            return [("retraining.decided", f"{where}: retraining, because {_clause('; '.join(what.reasons))}.", facts, {})]
        case Question():
            context = FlowRunContext.get()
            run = str(context.flow_run.id) if context and context.flow_run else None
            facts = what.model_dump(mode="json", include={"id", "stage", "expires_at"}) | {"run": run}
            return [("approval.asked", " ".join(what.title.split()), facts, {})]
        case JournalEntry():
            return _of_tick(where, what)
        case AliasMove(kind="rollback" | "promote"):
            name, did = ("champion.rolled-back", "went back") if what.kind == "rollback" else ("champion.promoted", "was moved")
            words = (
                f"{where}: the champion {did} to {what.label} by {what.by}: {_clause(what.reason or 'no reason was given')}."
            )
            facts = what.model_dump(mode="json", include={"version", "by", "reason"})
            return [(name, words, facts, {"release": what.release})]
        case _:
            return []


def _of_tick(where: str, entry: JournalEntry) -> list[tuple[str, str, dict[str, Any], Related]]:
    from everfresh.flows.artifacts import headline

    facts = entry.model_dump(mode="json", include={"decision", "failed_gates", "champion_version", "quarantined", "version"})
    related = {"evaluation": entry.evaluation, "release": entry.release if entry.version is not None else None}
    involved = {role: id for role, id in related.items() if id}
    aside = f"{entry.quarantined:,} of {entry.samples + entry.quarantined:,} samples cannot be used and were set aside"
    happened = {
        "data.quarantined": aside if entry.quarantined > 0 else "",
        "gate.rejected": headline(entry) if entry.failed_gates else "",
        "release.published": headline(entry) if entry.version is not None else "",
    }
    return [(name, f"{where}: {words}.", facts, involved) for name, words in happened.items() if words]


def _clause(words: str) -> str:
    """Words as part of a sentence, on one line."""
    return " ".join(words.split()).rstrip(".")
