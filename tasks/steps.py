"""The stages as Prefect tasks: each wrapped once, with the house's policy for retries.

A step takes the config and records, opens the store, and calls the plain function; heavy modules are imported when
the step runs, so a tick with nothing to do loads neither torch nor Evidently. Nothing is cached or persisted by
Prefect: results stand in the store under digests of their inputs, which serves reruns on any machine.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar, cast
from uuid import UUID

from prefect import Task, task
from prefect.cache_policies import NO_CACHE

from everfresh.tasks import alias, approvals, decide, ingest, journal
from everfresh.tasks.config import PipelineConfig, Rung
from everfresh.tasks.errors import AccessRefused, DataError, DigestMismatch, ObjectMissing, RungUnfit, StoreError
from everfresh.tasks.ledger import champion_moves, stream
from everfresh.tasks.progress import listening
from everfresh.tasks.records import (
    AliasMove,
    Candidate,
    Decision,
    DriftReport,
    Evaluation,
    JournalEntry,
    StreamEntry,
    Tick,
    TriedRung,
    Wish,
)
from everfresh.tasks.releases import find_release
from everfresh.tasks.store import Store, pipeline_store
from everfresh.tasks.trust import judge_labels

log = logging.getLogger(__name__)
UPDATE_SECONDS = 10.0
"""Between two updates of a progress artifact."""
P = ParamSpec("P")
R = TypeVar("R")


def _worth_retrying(_task: Any, _run: Any, state: Any) -> bool:
    """Whether a failure may pass by itself: the store was out of reach, not: the data is wrong."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, StoreError) and not isinstance(error, ObjectMissing | AccessRefused | DigestMismatch)


def step(name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """The house's task: no result cache, two retries where the store was out of reach."""
    return task(
        name=name,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=2,
        retry_delay_seconds=[1, 10],
        retry_condition_fn=_worth_retrying,
    )


class _Artifact:
    """A progress artifact of the running task, brought up to date every `UPDATE_SECONDS`; short work makes none.

    The server may be out of reach: work is never ended by that.
    """

    def __init__(self, key: str, description: str) -> None:
        self.key, self.description = key, description
        self.told = time.monotonic()
        self.made: UUID | None = None

    def __call__(self, label: str, done: int, total: int | None) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        ended = total is not None and done >= total and self.made is not None
        if not total or (time.monotonic() - self.told < UPDATE_SECONDS and not ended):
            return
        share, words = 100 * done / total, f"{self.description}: {label} {done:,} of {total:,}"
        try:
            if self.made is None:
                self.made = cast(UUID, create_progress_artifact(share, key=self.key, description=words))
            else:
                update_progress_artifact(self.made, share, words)
        except Exception:  # of the client's many kinds; none is worth a training
            log.warning("the progress could not be told to Prefect", exc_info=True)
        self.told = time.monotonic()


def open_pipeline(config: PipelineConfig, tick: Tick | None = None) -> Store:
    """The store of a pipeline, or of the replay that a tick belongs to."""
    return pipeline_store(config, tick.replay if tick else "")


@step("next window")
def next_window(config: PipelineConfig, *, take_in: bool = True) -> Tick | None:
    """Where the next tick sets out from: the oldest window without a journal entry, else what is new in the source."""
    store = open_pipeline(config)
    entry = journal.pending(store) or (ingest.ingest(store, config) if take_in else None)
    if entry is None:
        if take_in:
            journal.idle(store)
        return None
    return journal.begin(store, journal.outlook(store, entry))


@step("new window")
def watched_window(config: PipelineConfig) -> Tick | None:
    """What is new in the source as a window to look at, with the champion of now; nothing is begun."""
    store = open_pipeline(config)
    entry = ingest.ingest(store, config)
    return None if entry is None else journal.outlook(store, entry)


@step("forced window")
def forced_window(config: PipelineConfig, request: str, wish: Wish) -> Tick | None:
    """Where a tick sets out from that a person forces, on the newest window that was treated or on one that they name.

    One that was forced in the same words and died before its end is gone on with; a request that was treated is over.
    """
    store = open_pipeline(config)
    if (begun := journal.requested(store, request)) is not None:
        return None if store.exists(journal.key_of(begun)) else begun
    newest = journal.scheduled(store).last_seq()
    if wish.last_window is not None and wish.last_window > newest:
        raise DataError(
            f"last_window must be a window that was treated, got {wish.last_window} and {newest} of them. "
            "See `everfresh history`; leave it out for the newest one."
        )
    entry = stream(store).entry(wish.last_window or newest)
    if entry is None:
        return None
    if (died := journal.unfinished(store, entry.seq, wish)) is not None:
        return died
    wanted = journal.outlook(
        store,
        entry,
        request=request,
        reason=wish.reason,
        rung=wish.rung,
        trust_labels=wish.trust_labels,
        replay_from=wish.first_window or 0,
    )
    return journal.begin(store, wanted)


@step("answered window")
def answered_window(config: PipelineConfig) -> Tick | None:
    """Where a tick that a person forced goes on, once it was answered what it asked."""
    return approvals.answered(open_pipeline(config))


@step("replayed window")
def replayed_window(config: PipelineConfig, replay: str, rung: Rung | None, last: int | None) -> Tick | None:
    """Where the next tick of a replay sets out from, up to window `last`."""
    store = pipeline_store(config, replay)
    entry: StreamEntry | None = journal.pending(store)
    if entry is None or (last is not None and entry.seq > last):
        return None
    return journal.begin(store, journal.outlook(store, entry, rung=rung, replay=replay))


@step("detect drift")
def detect_drift(config: PipelineConfig, tick: Tick) -> DriftReport | None:
    """Measure drift against the champion's reference; None while there is no champion."""
    if tick.champion is None:
        return None
    from everfresh.tasks import drift

    found = drift.detect(open_pipeline(config, tick), config, tick)
    log.info(
        "%s: p %s against %s; accuracy %.1f%% on the reference, %.1f%% estimated here",
        found.verdict,
        config.drift.p_words(found.p_value),
        found.nearest,
        100 * found.reference_accuracy,
        100 * found.estimated_accuracy.value,
    )
    return found


@step("decide")
def decide_action(config: PipelineConfig, tick: Tick, drift: DriftReport | None) -> Decision:
    """Apply the policy to what was measured."""
    store = open_pipeline(config, tick)
    champion = champion_moves(store).entry(tick.champion_move)
    release = find_release(store, champion.release) if champion else None
    decision = decide.decide(
        config.policy,
        tick,
        journal.window_of(store, tick.view),
        drift,
        journal.previous(store, tick.seq, tick.request),
        champion,
        release.created_at if release else None,
    )
    log.info("%s: %s", decision.action, "; ".join(decision.reasons))
    return decision


@step("fine-tune")
def fine_tune(config: PipelineConfig, tick: Tick, rung: Rung, start: Candidate | None) -> Candidate | str:
    """Train one challenger, or say why the rung has none to give."""
    from everfresh.tasks import fine_tune as stage

    with listening(_Artifact(f"{config.name}-progress", f"{config.name} · window {tick.seq} · {rung}")):
        try:
            made = stage.fine_tune(open_pipeline(config, tick), config, tick, rung, start)
        except RungUnfit as why:
            log.info("rung %s has no answer: %s", rung, why)
            return str(why)
    log.info("rung %s: %.1f%% on tune, %.1f s", rung, 100 * made.tune_accuracy, made.cost.seconds)
    return made


@step("evaluate")
def evaluate(
    config: PipelineConfig, tick: Tick, candidate: Candidate, drift: DriftReport | None, *, against: int | None = None
) -> Evaluation:
    """Prove the challenger against the champion of the tick, or against that of move `against`."""
    from everfresh.tasks import evaluate as stage

    store = open_pipeline(config, tick)
    proof = stage.evaluate(store, config, tick, candidate, drift, against=tick.champion_move if against is None else against)
    for verdict in proof.verdicts:
        log.info("%s %s %s", candidate.rung, "passed" if verdict.passed else "failed", verdict.words)
    return proof


@step("champion's last move")
def last_move(config: PipelineConfig, tick: Tick) -> int:
    """Sequence of the alias's last move."""
    return champion_moves(open_pipeline(config, tick)).last_seq()


@step("publish")
def publish(
    config: PipelineConfig, tick: Tick, drift: DriftReport | None, candidate: Candidate, evaluation: Evaluation
) -> AliasMove:
    """Make the proven challenger champion."""
    from everfresh.tasks import publish as stage

    store = open_pipeline(config, tick)
    bank = decide.bank_after(tick, journal.window_of(store, tick.view), drift, evaluation.trust)
    return stage.publish(store, config, tick, candidate, evaluation, bank)


@step("sum-up")
def sum_up(
    config: PipelineConfig,
    tick: Tick,
    drift: DriftReport | None,
    decision: Decision,
    tried: Sequence[Candidate],
    evaluation: Evaluation | None,
    published: AliasMove | None,
    failure: str,
    unfit: Mapping[Rung, str],
    beside: Sequence[TriedRung],
) -> JournalEntry:
    """What the journal will say of the tick."""
    store = open_pipeline(config, tick)
    window = journal.window_of(store, tick.view)
    trust = evaluation.trust if evaluation else judge_labels(window, drift, None, vouched=tick.trust_labels)
    bank = decide.bank_after(tick, window, drift, trust)
    asked = config.approval.ask is not None and not tick.replay
    answers = approvals.given(store, tick, evaluation.key if evaluation else "") if asked else ()
    return journal.sum_up(
        store, tick, drift, decision, tried, evaluation, published, trust, bank, failure, unfit, beside, answers
    )


@step("journal")
def end_tick(config: PipelineConfig, tick: Tick, entry: JournalEntry) -> JournalEntry:
    """Write the journal entry: the tick is over."""
    return journal.end(open_pipeline(config, tick), tick, entry)


@step("rollback")
def rollback(config: PipelineConfig, to: int | None, reason: str, request: str) -> AliasMove:
    """Move the champion back, once for a request."""
    return alias.rollback(open_pipeline(config), to, reason=reason, request=request)


@step("sweep")
def sweep(config: PipelineConfig, older_than_hours: float, delete: bool) -> int:
    """Remove, or count, debris and what retention lets go."""
    from everfresh.tasks.retention import clear

    found = clear(
        open_pipeline(config), config.retention, timedelta(hours=older_than_hours), config.model.weights, delete=delete
    )
    count = len(found.old) + len(found.debris)
    log.info("%d objects, %s bytes %s", count, f"{found.size:,}", "removed" if delete else "could go")
    return count
