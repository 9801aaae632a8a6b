"""One tick, end to end: ingest, detect drift, decide, fine-tune, evaluate, publish."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from prefect import flow, get_run_logger

from everfresh.flows import artifacts
from everfresh.flows.alerts import announce
from everfresh.flows.fine_tune import fine_tune
from everfresh.tasks import steps
from everfresh.tasks.config import PipelineConfig, Rung
from everfresh.tasks.decide import best, next_rung
from everfresh.tasks.errors import ChampionMoved, DataError, DeviceError, EverfreshError, ModelError, TrainingError
from everfresh.tasks.journal import tried_rung
from everfresh.tasks.records import (
    AliasMove,
    Candidate,
    Decision,
    DriftReport,
    Evaluation,
    JournalEntry,
    Tick,
    TriedRung,
)


@flow(name="retrain", flow_run_name="{config.name}", persist_result=False, validate_parameters=True)
def retrain(
    config: PipelineConfig,
    force: bool = False,
    reason: str = "",
    rung: Rung | None = None,
    trust_labels: bool = False,
    drain: bool = False,
) -> list[JournalEntry]:
    """Take in what is new and answer it.

    Args:
        config: the pipeline.
        force: retrain on the newest window whatever the policy says; once, if the policy just did so by itself.
        reason: why it is forced, for the journal.
        rung: the one rung to try when forced; the policy's ladder otherwise.
        trust_labels: a person says that the labels of the forced window are right, whatever contradicts them.
        drain: go on until nothing is new, instead of one window.

    Returns:
        A journal entry for each window that was treated; none if there was nothing to do.
    """
    done = []
    tick = steps.next_window(config)
    while tick is not None:
        done.append(run_tick(config, tick))
        tick = steps.next_window(config, take_in=drain)
    retrained = bool(done and done[-1].tried) and rung is None and not trust_labels
    if force and retrained:
        get_run_logger().info("window %d was just retrained on by the policy: nothing is forced on top", done[-1].seq)
    elif force and (tick := steps.forced_window(config, uuid.uuid4().hex[:12], reason, rung, trust_labels)) is not None:
        done.append(run_tick(config, tick))
    if done:
        artifacts.name_run(config, done)
    else:
        get_run_logger().info(
            "nothing to do: %s", "there is no window yet to retrain on" if force else "nothing is new in the source"
        )
    return done


def run_tick(config: PipelineConfig, tick: Tick, beside: Sequence[Rung] = ()) -> JournalEntry:
    """The stages in order, for one window; `beside` names rungs to measure that decide nothing."""
    drift = steps.detect_drift(config, tick)
    decision = steps.decide_action(config, tick, drift)
    artifacts.drift_table(config, tick, drift)
    announce(config, tick, drift)
    tried, unfit, failure = climb(config, tick, decision)
    evaluation, published = prove(config, tick, drift, best(tried))
    others = measure(config, tick, drift, beside, tried) if decision.action == "retrain" else []
    entry = steps.sum_up(config, tick, drift, decision, tried, evaluation, published, str(failure or ""), unfit, others)
    announce(config, tick, entry)  # before the tick is over: a run that dies in between is made good by the next
    entry = steps.end_tick(config, tick, entry)
    artifacts.tick_summary(config, tick, entry, evaluation)
    get_run_logger().info("window %d: %s", tick.seq, artifacts.headline(entry))
    if failure:
        raise failure
    return entry


def climb(
    config: PipelineConfig, tick: Tick, decision: Decision
) -> tuple[list[Candidate], dict[Rung, str], EverfreshError | None]:
    """Try rungs until one is enough on *tune*, past those that have no answer; the hold-out is not looked at here.

    A window that cannot be trained on fails this run, but not those after it.
    """
    tried: list[Candidate] = []
    unfit: dict[Rung, str] = {}
    try:
        while rung := next_rung(decision, tried, unfit):
            made = fine_tune(config, tick, rung, tried[-1] if tried else None)
            if isinstance(made, str):
                unfit[rung] = made
            else:
                tried.append(made)
    except (DataError, TrainingError) as error:
        return tried, unfit, error
    return tried, unfit, None


def measure(
    config: PipelineConfig, tick: Tick, drift: DriftReport | None, rungs: Sequence[Rung], tried: Sequence[Candidate]
) -> list[TriedRung]:
    """What each rung costs and gains, tried by the ladder or not; `full` goes on from the head and counts its cost."""
    made = {candidate.rung: candidate for candidate in tried}
    found = []
    for rung in rungs:
        try:
            candidate = made.get(rung) or fine_tune(config, tick, rung, made.get("head") if rung == "full" else None)
        except (DataError, DeviceError, ModelError, TrainingError) as error:
            get_run_logger().info("rung %s cannot be measured: %s", rung, error)
            continue
        if isinstance(candidate, str):
            continue
        made[rung] = candidate
        before = next((other.cost for other in made.values() if other.key == candidate.start), None)
        found.append(tried_rung(candidate, steps.evaluate(config, tick, candidate, drift), before))
    return found


def prove(
    config: PipelineConfig, tick: Tick, drift: DriftReport | None, challenger: Candidate | None
) -> tuple[Evaluation | None, AliasMove | None]:
    """Evaluate and publish; again if the champion moved in between."""
    if challenger is None:
        return None, None
    evaluation = steps.evaluate(config, tick, challenger, drift)
    artifacts.evaluation_report(config, tick, challenger, evaluation)
    while evaluation.passed:
        try:
            return evaluation, steps.publish(config, tick, drift, challenger, evaluation)
        except ChampionMoved:
            evaluation = steps.evaluate(config, tick, challenger, drift, against=steps.last_move(config, tick))
            artifacts.evaluation_report(config, tick, challenger, evaluation)
    return evaluation, None
