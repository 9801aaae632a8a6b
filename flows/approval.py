"""A person in the loop: where the config says so, a tick asks before it trains or publishes, and waits without a worker.

The truth is in the store (`tasks/approvals.py`). A deployed run is suspended with a form in Prefect's UI, and starts again
from the beginning once that is filled in: all that was done is found done. Any other run ends, saying how to answer; the next
one goes on. While a question is open nobody asks it again.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Literal
from uuid import UUID

from prefect import get_client
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas import FlowRun
from prefect.client.schemas.responses import SetStateStatus
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput, read_flow_run_input
from pydantic import Field

from everfresh.flows.alerts import announce
from everfresh.flows.markdown import plain
from everfresh.tasks import approvals
from everfresh.tasks.config import PipelineConfig, Stage
from everfresh.tasks.errors import ObjectMissing
from everfresh.tasks.records import Answer, Candidate, Decision, DriftReport, Evaluation, Question, Tick
from everfresh.tasks.steps import open_pipeline
from everfresh.tasks.store import Store

log = logging.getLogger(__name__)
UNNAMED = "somebody in the Prefect UI"


class Waiting(Exception):
    """A question is open; the tick goes on once it is answered."""

    def __init__(self, question: Question) -> None:
        super().__init__(
            f"window {question.seq} waits for a person: {question.title} `everfresh approve` shows and answers it, until "
            f"{question.expires_at:%Y-%m-%d %H:%M} UTC; the next run goes on."
        )
        self.question = question


class Approval(RunInput):
    """The form."""

    answer: Literal["approve", "reject"] = Field(title="Answer", description="Rejected, the champion stays as it is.")
    reason: str = Field(default="", title="Reason", description="Why; it stands in the journal.")
    by: str = Field(default="", title="Your name", description="For the journal: Prefect's own server knows no users.")


def collect(config: PipelineConfig) -> None:
    """Write down what was answered in forms: from here on all reads the store, whichever run this is.

    Of questions that are too old too: Prefect takes an answer in time only, and the run may have begun late.
    """
    if config.approval.ask is None:
        return
    store = open_pipeline(config)
    for question in approvals.unanswered(store):
        if (run := _host(store, question)) is not None:
            _read(store, question, run)


def before_training(config: PipelineConfig, tick: Tick, drift: DriftReport | None, decision: Decision) -> Decision:
    """The decision, or that nothing is done because a person does not want the training.

    Who forces a tick has just said that they want it, and is not asked.
    """
    asked = config.approval.ask == "before_training" and not tick.replay and not tick.request
    if not asked or decision.action == "nothing":
        return decision
    said = _asked(config, tick, "before_training", _training_title(decision), _about_training(config, tick, drift, decision))
    return decision if said.approved else approvals.declined(decision, said)


def before_publishing(
    config: PipelineConfig, tick: Tick, drift: DriftReport | None, challenger: Candidate, evaluation: Evaluation
) -> bool:
    """Whether a challenger that the gates let pass may go live."""
    if config.approval.ask != "before_publishing" or tick.replay:
        return True
    title = f"May the {challenger.rung} challenger of window {tick.seq} go live?"
    words = _about_publishing(config, tick, drift, challenger, evaluation)
    return _asked(config, tick, "before_publishing", title, words, evaluation.key).approved


def _asked(config: PipelineConfig, tick: Tick, stage: Stage, title: str, words: list[str], proof: str = "") -> Answer:
    """The answer to a question.

    Raises:
        Waiting: there is none yet.
    """
    store = open_pipeline(config)
    question = approvals.ask(store, tick, stage, title, "\n\n".join(words), config.approval.hours, proof)
    said = approvals.answer_to(store, question)
    if said is None:
        announce(config, tick, question)
        said = _suspended(config, store, question)
    if said is None:
        raise Waiting(question)
    log.info("%s", said.sentence)
    return said


def _suspended(config: PipelineConfig, store: Store, question: Question) -> Answer | None:
    """Suspend this run, if it can be and no other one holds the form.

    It ends here, and begins anew once the form is filled in: then `collect` has read it.
    """
    run = _this_run()
    host = _host(store, question)
    if run is None or run.deployment_id is None or run.parent_task_run_id is not None:
        return None
    if host is not None and host != run.id and _is_paused(host):
        return None
    if _key(question) in (run.empirical_policy.pause_keys or ()):  # it would not be suspended again
        log.warning("the run was resumed without an answer")
        return None
    store.put(_form(question), json.dumps({"run": str(run.id)}).encode())
    name = f"{config.name} · window {question.seq} · waits for an answer {question.stage.replace('_', ' ')}"
    with get_client(sync_client=True) as client:
        client.update_flow_run(run.id, name=name)
    create_markdown_artifact(question.words, key=f"{config.name}-approval", description=question.title)
    left = math.ceil((question.expires_at - store.now()).total_seconds())
    form = Approval.with_initial_data(description=question.words)
    suspend_flow_run(wait_for_input=form, timeout=max(1, left), key=_key(question))
    return _read(store, question, run.id)


def _this_run() -> FlowRun | None:
    context = FlowRunContext.get()
    return context.flow_run if context else None


def _key(question: Question) -> str:
    """The question's name for Prefect, which takes no underscore there."""
    return question.id.replace("_", "-")


def _form(question: Question) -> str:
    return f"{approvals.FOLDER}/{question.id}/form.json"


def _host(store: Store, question: Question) -> UUID | None:
    """The run that was suspended with the form; only a hint, for that run may be gone."""
    with suppress(ObjectMissing, ValueError, KeyError):
        return UUID(json.loads(store.get(_form(question)))["run"])
    return None


def _is_paused(run: UUID) -> bool:
    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(run).state
        except ObjectNotFound:
            return False
    return state is not None and state.is_paused()


def _read(store: Store, question: Question, run: UUID) -> Answer | None:
    """Write down what a run's form was filled in with; None where it was not."""
    value: Any = read_flow_run_input(f"suspended-{_key(question)}-response", flow_run_id=run)
    if not value:
        return None
    said = Approval.model_validate(value)
    by = said.by.strip() or UNNAMED
    return approvals.answer(
        store, question, approved=said.answer == "approve", by=by, reason=said.reason.strip(), through="form"
    )


def release_form(store: Store, question: Question, said: Answer) -> bool:
    """Let the run that holds a question's form go on, after it was answered elsewhere; False if there is none that can."""
    run = _host(store, question)
    if run is None or not _is_paused(run):
        return False
    value = {"answer": "approve" if said.approved else "reject", "reason": said.reason, "by": said.by}
    with get_client(sync_client=True) as client:
        return client.resume_flow_run(run, run_input=value).status == SetStateStatus.ACCEPT


def _training_title(decision: Decision) -> str:
    first = "a first model" if decision.action == "bootstrap" else "a challenger"
    return f"May {first} be trained?"


def _about_training(config: PipelineConfig, tick: Tick, drift: DriftReport | None, decision: Decision) -> list[str]:
    costs = approvals.expected_cost(open_pipeline(config), tick, decision.ladder)
    rows = [
        f"| {rung} | {'not trained lately' if cost is None else f'{cost[1]:.1f} s, median of {cost[0]}'} |"
        for rung, cost in costs.items()
    ]
    return [
        f"## {config.name} · window {tick.seq}: {_training_title(decision)}",
        "\n".join(f"- {plain(reason)}" for reason in decision.reasons),
        *_drift_words(config, drift),
        "\n".join(["| rung, tried in this order as far as needed | expected |", "|---|---|", *rows]),
        f"Gates that a challenger must pass: {', '.join(f'`{gate.kind}`' for gate in config.gates) or 'none'}.",
        *_consequence(config),
    ]


def _drift_words(config: PipelineConfig, drift: DriftReport | None) -> Iterator[str]:
    if drift is None:
        yield "There is no champion yet, so no drift was measured."
        return
    if drift.words:
        yield f"{plain(drift.words)}."
    yield (
        f"{drift.verdict.capitalize()}: p {config.drift.p_words(drift.p_value)} against {plain(drift.nearest)}, effect "
        f"{drift.score:.2f}, {drift.loss} (the champion has {drift.reference_accuracy:.1%} on its reference)."
    )
    rows = [f"| {plain(c.name)} | {c.effect:+.2f} | {config.drift.p_words(c.p_value)} |" for c in drift.columns[:5]]
    if rows:
        yield "\n".join(["| most drifted | effect (SD) | p, corrected |", "|---|---|---|", *rows])


def _about_publishing(
    config: PipelineConfig, tick: Tick, drift: DriftReport | None, challenger: Candidate, evaluation: Evaluation
) -> list[str]:
    gates = [f"| {plain(v.gate)} | {v.outcome} | {plain(v.words.removeprefix(f'{v.gate}: '))} |" for v in evaluation.verdicts]
    gain = evaluation.window.gain
    better = "no champion to compare with" if gain is None else f"{gain.value:+.1%} [{gain.low:+.1%}, {gain.high:+.1%}]"
    return [
        f"## {config.name} · window {tick.seq}: may the {challenger.rung} challenger go live?",
        f"Right on {evaluation.window.challenger.accuracy:.1%} of {evaluation.window.challenger.samples} held-out samples; "
        f"gain over the champion: {better}. It took {challenger.cost.seconds:.1f} s on {challenger.device}.",
        "\n".join(["| gate | verdict | why |", "|---|---|---|", *gates]),
        *_drift_words(config, drift),
        *_consequence(config),
    ]


def _consequence(config: PipelineConfig) -> Iterator[str]:
    yield f"Without an answer within {config.approval.hours:g} hours it is as if rejected: nothing changes, nothing is lost."
