"""Ticks: where one starts, and what it leaves in the journal.

A tick writes down what it sets out from before it does anything, and its journal entry when all is done. Between
the two every result stands under a key that digests its inputs; so a tick that died is taken up by the next run
from the same start, does the missing work only, and ends the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import takewhile

from everfresh.tasks.config import Rung, Trust
from everfresh.tasks.errors import DataError, ObjectMissing
from everfresh.tasks.ledger import Log, champion_moves, find, settle, stream
from everfresh.tasks.records import (
    AliasMove,
    Answer,
    Banked,
    Candidate,
    Cost,
    Decision,
    DriftReport,
    Evaluation,
    JournalEntry,
    Release,
    StreamEntry,
    Tick,
    TriedRung,
    Window,
    Wish,
)
from everfresh.tasks.store import Store


def scheduled(store: Store) -> Log[JournalEntry]:
    """The journal of scheduled ticks: one entry a window, in order."""
    return Log(store, "journal", JournalEntry, suffix="-tick")


def forced(store: Store, seq: int) -> list[JournalEntry]:
    """Entries of the ticks that people forced on one window."""
    prefix = f"journal/{seq:08d}-"
    listed = store.list("journal", after=prefix)  # from this window on: reading does not grow with history
    keys = [i.key for i in takewhile(lambda i: i.key.startswith(prefix), listed) if not i.key.endswith("-tick.json")]
    return sorted((JournalEntry.from_bytes(store.get(key)) for key in keys), key=lambda e: e.started_at)


def latest(store: Store) -> JournalEntry | None:
    """The entry of the tick that ended last on the newest window that was treated, scheduled or forced."""
    last = scheduled(store).last()
    return None if last is None else [last, *forced(store, last.seq)][-1]


def pending(store: Store) -> StreamEntry | None:
    """The oldest window that has no journal entry yet."""
    return stream(store).entry(scheduled(store).last_seq() + 1)


def window_of(store: Store, view: str) -> Window:
    """The record of a view.

    Raises:
        DataError: it is not in the store.
    """
    if (window := find(store, f"windows/{view}/window.json", Window)) is None:
        raise DataError(
            f"window {view} must be in the store, got none at {store.url(f'windows/{view}/window.json')}. Restore it."
        )
    return window


def outlook(
    store: Store,
    entry: StreamEntry,
    *,
    request: str = "",
    reason: str = "",
    rung: Rung | None = None,
    trust_labels: bool = False,
    replay_from: int = 0,
    replay: str = "",
) -> Tick:
    """What a tick over a window would set out from now; one that is forced on a past window compares on the bank of today."""
    move = champion_moves(store).last()
    release = find(store, f"releases/{move.release}/release.json", Release) if move else None
    last = latest(store) if request else previous(store, entry.seq)
    return Tick(
        seq=entry.seq,
        request=request,
        reason=reason,
        rung=rung,
        trust_labels=trust_labels,
        replay_from=replay_from,
        replay=replay,
        view=entry.view,
        champion=move.release if move else None,
        champion_move=move.seq if move else 0,
        reference=release.reference if release else None,
        bank=_bank(last, release),
        now=store.now(),
    )


def _bank(last: JournalEntry | None, release: Release | None) -> tuple[Banked, ...]:
    """The bank after the tick before; with the validation samples of an adopted champion, whenever it was adopted."""
    known = last.bank if last else release.bank if release else ()
    adopted = tuple(b for b in release.bank if b.seq == 0 and b not in known) if release else ()
    return adopted + known


def unfinished(store: Store, seq: int, wish: Wish) -> Tick | None:
    """A tick that was forced in the same words on the same window and died before its journal entry.

    One that was forced in other words stays dead: who asks for a cheaper rung must not get the one that ran out of memory.
    """
    prefix = f"ticks/{seq:08d}-"
    listed = takewhile(lambda i: i.key.startswith(prefix), store.list("ticks", after=prefix))
    ticks = [Tick.from_bytes(store.get(i.key)) for i in listed if not i.key.endswith("-tick.json")]
    asked = [t for t in ticks if t.fulfils(wish)]
    return next((t for t in asked if not store.exists(key_of(t))), None)


def requested(store: Store, request: str) -> Tick | None:
    """The tick that was begun for a request, whatever window was the newest then."""
    found = (find(store, item.key, Tick) for item in store.list("ticks") if item.key.endswith(f"-{request}.json"))
    return next(found, None)


def key_of(tick: Tick) -> str:
    """Where the journal entry of a tick stands once it is over."""
    return f"journal/{tick.seq:08d}-{tick.request or 'tick'}.json"


def begin(store: Store, tick: Tick) -> Tick:
    """Write down what a tick sets out from; a rerun gets what the first run wrote."""
    return settle(store, f"ticks/{tick.seq:08d}-{tick.request or 'tick'}.json", tick)


def previous(store: Store, seq: int, request: str = "") -> JournalEntry | None:
    """The journal entry that a tick builds on: of the window before, or of its own window if it is forced.

    That is the scheduled one, or the last that a person forced after it.
    """
    seq = seq if request else seq - 1
    others = [entry for entry in forced(store, seq) if entry.request != request]
    return others[-1] if others else scheduled(store).entry(seq)


def sum_up(
    store: Store,
    tick: Tick,
    drift: DriftReport | None,
    decision: Decision,
    tried: Sequence[Candidate],
    evaluation: Evaluation | None,
    published: AliasMove | None,
    trust: Trust,
    bank: tuple[Banked, ...],
    failure: str = "",
    unfit: Mapping[Rung, str] | None = None,
    beside: Sequence[TriedRung] = (),
    answers: Sequence[Answer] = (),
) -> JournalEntry:
    """The journal entry that will end a tick."""
    window, unfit = window_of(store, tick.view), {**decision.left_out, **(unfit or {})}
    last = previous(store, tick.seq, tick.request)
    head = champion_moves(store).last()
    return JournalEntry(
        seq=tick.seq,
        request=tick.request,
        view=tick.view,
        samples=window.samples,
        quarantined=window.quarantined,
        labelled=window.labelled,
        drift=drift.key if drift else None,
        alarm=drift.alarm if drift else False,
        score=drift.score if drift else None,
        severity=drift.severity if drift else None,
        estimated_accuracy=drift.estimated_accuracy.value if drift else None,
        measured_accuracy=drift.labels.champion.value if drift and drift.labels else None,
        decision=decision,
        tried=tuple(tried_rung(c, evaluation) for c in tried),
        not_tried=tuple(rung for rung in decision.ladder if rung not in unfit and rung not in {c.rung for c in tried}),
        unfit=unfit,
        beside=tuple(beside),
        evaluation=evaluation.key if evaluation else None,
        failed_gates=(*evaluation.failed_gates, *_refused(answers)) if evaluation else (),
        gain=evaluation.window.gain if evaluation else None,
        challenger_accuracy=evaluation.window.challenger.accuracy if evaluation else None,
        release=published.release if published else None,
        version=published.version if published else None,
        champion=head.release if head else None,
        champion_version=head.version if head else None,
        trust=trust,
        failure=failure,
        answers=tuple(answers),
        bank=bank,
        samples_since_training=0 if tried else window.labelled + (last.samples_since_training if last else 0),
        windows_since_training=0 if tried else 1 + (last.windows_since_training if last else 0),
        cost=sum((c.cost for c in tried), Cost()),
        started_at=tick.now,
        finished_at=store.now(),
    )


def _refused(answers: Sequence[Answer]) -> tuple[str, ...]:
    """The gate that a person is, if they said no to the release."""
    return tuple("approval" for said in answers if said.stage == "before_publishing" and not said.approved)


def tried_rung(candidate: Candidate, evaluation: Evaluation | None, before: Cost | None = None) -> TriedRung:
    """A rung as the journal tells it.

    Args:
        candidate: what it made.
        evaluation: of this tick; tells of this candidate only if it is this one's.
        before: what the rung that it went on from has cost, where that is to be counted too.
    """
    proof = evaluation if evaluation and evaluation.candidate == candidate.key else None
    return TriedRung(
        rung=candidate.rung,
        candidate=candidate.key,
        weights_sha256=candidate.weights.sha256,
        tune_accuracy=candidate.tune_accuracy,
        tune_gain=candidate.gain,
        gain=proof.window.gain if proof else None,
        failed_gates=proof.failed_gates if proof else None,
        cost=candidate.cost + (before or Cost()),
    )


def end(store: Store, tick: Tick, entry: JournalEntry) -> JournalEntry:
    """Write the entry; returns that of another run if it was first."""
    if tick.request:
        return settle(store, key_of(tick), entry)
    journal = scheduled(store)
    journal.append(tick.seq, entry)
    return journal.entry(tick.seq) or entry


def idle(store: Store) -> None:
    """Note that a tick found nothing to do."""
    store.put("state.json", json.dumps({"idle_at": store.now().isoformat()}).encode())


def idle_since(store: Store) -> str | None:
    """When a tick last found nothing to do, ISO 8601; None if never."""
    try:
        found: str = json.loads(store.get("state.json"))["idle_at"]
    except (ObjectMissing, ValueError, KeyError):
        return None
    return found
