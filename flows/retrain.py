"""One tick, end to end: ingest, detect drift, decide, fine-tune, evaluate, publish."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence

from prefect import flow, get_run_logger
from prefect.runtime import flow_run

from everfresh.flows import approval, artifacts, run_names
from everfresh.flows.alerts import announce, deliver
from everfresh.flows.declared import publish_limit
from everfresh.flows.dispatch import fine_tuned
from everfresh.flows.leases import leased
from everfresh.flows.logs import about
from everfresh.flows.outcome import in_one_sentence
from everfresh.tasks import steps
from everfresh.tasks.config import PipelineConfig, Rung
from everfresh.tasks.decide import best, next_rung
from everfresh.tasks.errors import ChampionMoved, ConfigError, DataError, DeviceError, EverfreshError, ModelError, TrainingError
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
    Wish,
)


@flow(name="retrain", flow_run_name="{config.name}", persist_result=False, validate_parameters=True)
@in_one_sentence
def retrain(
    config: PipelineConfig,
    force: bool = False,
    reason: str = "",
    rung: Rung | None = None,
    trust_labels: bool = False,
    drain: bool = False,
    first_window: int | None = None,
    last_window: int | None = None,
) -> list[JournalEntry]:
    """Take in what is new and answer it.

    Where `config.approval` asks a person, the run waits there: suspended if it is a deployment's, else it ends.

    Args:
        config: the pipeline.
        force: retrain on the newest window whatever the policy says; once, if the policy just did so by itself.
        reason: why it is forced, for the journal.
        rung: the one rung to try when forced; the policy's ladder otherwise.
        trust_labels: a person says that the labels of the forced window are right, whatever contradicts them.
        drain: go on until nothing is new, instead of one window.
        first_window: when forced, replay no window before this one; the gates look at all of them still.
        last_window: when forced, retrain on this window instead of the newest one.

    Returns:
        A journal entry for each window that was treated; none if there was nothing to do, or a person is asked.
    """
    wish = _wish(force, reason, rung, trust_labels, first_window, last_window)
    deliver(config)
    approval.collect(config)
    done, waits = _treat(config, _ticks(config, drain))
    if wish is not None and _left_to_force(wish, done):
        forced, waits_too = _treat(config, _forced(config, wish))
        done, waits = done + forced, waits_too or waits
    entries = [entry for _, entry in done]
    run_names.name_retraining(config, entries, waits=waits)
    if not entries and not waits:
        get_run_logger().info(
            "nothing to do: %s", "there is no window yet to retrain on" if force else "nothing is new in the source"
        )
    return entries


def _wish(
    force: bool, reason: str, rung: Rung | None, trust_labels: bool, first_window: int | None, last_window: int | None
) -> Wish | None:
    """What a person forces, if they do.

    Raises:
        ConfigError: what only a forced run can have is given without it, or the range of windows is none.
    """
    if not force and (rung or trust_labels or first_window or last_window):
        raise ConfigError(
            "rung, trust_labels, first_window and last_window must go with force, got no force. Add it, or leave them out."
        )
    if first_window and last_window and first_window > last_window:
        raise ConfigError(f"first_window must not be after last_window, got {first_window} and {last_window}. Swap them.")
    if not force:
        return None
    return Wish(reason=reason, rung=rung, trust_labels=trust_labels, first_window=first_window, last_window=last_window)


def _ticks(config: PipelineConfig, drain: bool) -> Iterator[Tick]:
    """Forced ticks that a person has answered by now, then the window that waits, then what is new."""
    while (tick := steps.answered_window(config)) is not None:
        yield tick
    tick = steps.next_window(config)
    while tick is not None:
        yield tick
        tick = steps.next_window(config, take_in=drain)


def _forced(config: PipelineConfig, wish: Wish) -> Iterator[Tick]:
    """The forced tick; a rerun of the same flow run forces the same one."""
    request = uuid.uuid5(uuid.NAMESPACE_OID, flow_run.id or uuid.uuid4().hex).hex[:12]
    if (tick := steps.forced_window(config, request, wish)) is not None:
        yield tick


def _left_to_force(wish: Wish, done: Sequence[tuple[Tick, JournalEntry]]) -> bool:
    """Whether nothing has done yet what is wished for: this very tick after an answer, or just now the policy by itself."""
    if any(tick.fulfils(wish) for tick, _ in done):
        return False
    alike = wish.rung is None and not wish.trust_labels and wish.first_window is None and wish.last_window is None
    if alike and done and done[-1][1].tried:
        get_run_logger().info("window %d was just retrained on by the policy: nothing is forced on top", done[-1][0].seq)
        return False
    return True


def _treat(config: PipelineConfig, ticks: Iterator[Tick]) -> tuple[list[tuple[Tick, JournalEntry]], bool]:
    """Run ticks until there is none left or a person is asked; the latter is told by the flag."""
    done = []
    for tick in ticks:
        try:
            with about(window=tick.seq):
                done.append((tick, run_tick(config, tick)))
        except approval.Waiting as question:
            get_run_logger().info("%s", question)
            return done, True
    return done, False


def run_tick(config: PipelineConfig, tick: Tick, beside: Sequence[Rung] = ()) -> JournalEntry:
    """The stages in order, for one window; `beside` names rungs to measure that decide nothing.

    Raises:
        Waiting: a person is asked, and has not answered yet.
    """
    drift = steps.detect_drift(config, tick)
    decision = steps.decide_action(config, tick, drift)
    artifacts.drift_table(config, tick, drift)
    artifacts.decision_words(config, tick, decision)
    announce(config, tick, drift)
    announce(config, tick, decision)
    decision = approval.before_training(config, tick, drift, decision)
    tried, unfit, failure = climb(config, tick, decision)
    evaluation, published = prove(config, tick, drift, best(tried))
    others = measure(config, tick, drift, beside, tried) if decision.action == "retrain" else []
    entry = steps.sum_up(config, tick, drift, decision, tried, evaluation, published, str(failure or ""), unfit, others)
    announce(config, tick, entry)  # before the tick is over: a run that dies in between is made good by the next
    entry = steps.end_tick(config, tick, entry)
    artifacts.tick_summary(config, tick, entry, evaluation)
    get_run_logger().info("window %d: %s", tick.seq, artifacts.headline(entry), extra={"release": entry.release})
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
            made = fine_tuned(config, tick, rung, tried[-1] if tried else None)
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
            candidate = made.get(rung) or fine_tuned(config, tick, rung, made.get("head") if rung == "full" else None)
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
    """Evaluate and publish, if a person who is asked agrees; again if the champion moved in between."""
    if challenger is None:
        return None, None
    evaluation = steps.evaluate(config, tick, challenger, drift)
    artifacts.evaluation_report(config, tick, challenger, evaluation)
    while evaluation.passed and approval.before_publishing(config, tick, drift, challenger, evaluation):
        try:
            with leased(publish_limit(config)):
                return evaluation, steps.publish(config, tick, drift, challenger, evaluation)
        except ChampionMoved:
            evaluation = steps.evaluate(config, tick, challenger, drift, against=steps.last_move(config, tick))
            artifacts.evaluation_report(config, tick, challenger, evaluation)
    return evaluation, None
