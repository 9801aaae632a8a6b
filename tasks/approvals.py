"""Approvals: what a person is asked before a model is trained or goes live, and the one answer.

Question and answer stand in the store, each created if absent: who answers first, in the browser, on the command line or
by letting the time pass, is right for everybody, and whichever run comes next goes on from there. What is approved is one
thing: the training of one window, or one proof against one champion; a proof that has to be made again is asked about again.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from statistics import median

from everfresh.tasks.config import Rung, Stage
from everfresh.tasks.errors import ReleaseError
from everfresh.tasks.journal import scheduled
from everfresh.tasks.ledger import find, settle
from everfresh.tasks.records import Answer, Decision, JournalEntry, Question, Through, Tick
from everfresh.tasks.store import Store

FOLDER = "approvals"
SCHEDULED = "tick"
"""In the name of a question, in the place of the request of a tick that nobody forced."""
RECENT = 20
"""Ticks before this one whose costs tell what a rung is expected to cost."""


def ask(store: Store, tick: Tick, stage: Stage, title: str, words: str, hours: float, proof: str = "") -> Question:
    """Write a question down; a rerun gets what the first run asked.

    Args:
        store: of the pipeline.
        tick: that waits.
        stage: what it waits to do.
        title: the question in a sentence.
        words: what the person should know, in Markdown.
        hours: that it stays open.
        proof: key of the evaluation that is asked about, before publishing.
    """
    named, now = identity(tick, stage, proof), store.now()
    question = Question(
        id=named,
        seq=tick.seq,
        request=tick.request,
        stage=stage,
        title=title,
        words=words,
        asked_at=now,
        expires_at=now + timedelta(hours=hours),
    )
    return settle(store, f"{FOLDER}/{named}/asked.json", question)


def identity(tick: Tick, stage: Stage, proof: str = "") -> str:
    """What a question is called."""
    return f"{tick.seq:08d}-{tick.request or SCHEDULED}-{stage}{f'-{proof[:12]}' if proof else ''}"


def answer(store: Store, question: Question, *, approved: bool, by: str, reason: str, through: Through) -> Answer:
    """Answer a question; returns the answer of whoever was first."""
    said = Answer(stage=question.stage, approved=approved, by=by, reason=reason, through=through, at=store.now())
    return settle(store, f"{FOLDER}/{question.id}/answer.json", said)


def answer_to(store: Store, question: Question) -> Answer | None:
    """The answer to a question, None while it is open. One that nobody has answered in time counts as rejected from now on."""
    given = find(store, f"{FOLDER}/{question.id}/answer.json", Answer)
    if given is None and store.now() >= question.expires_at:
        reason = f"no answer came until {question.expires_at:%Y-%m-%d %H:%M} UTC"
        given = answer(store, question, approved=False, by="nobody", reason=reason, through="expiry")
    return given


def given(store: Store, tick: Tick, proof: str = "") -> tuple[Answer, ...]:
    """The answers to what was asked of a tick: before training, and about this proof."""
    asked = [identity(tick, "before_training"), *([identity(tick, "before_publishing", proof)] if proof else [])]
    found = (find(store, f"{FOLDER}/{named}/answer.json", Answer) for named in asked)
    return tuple(one for one in found if one is not None)


def pending(store: Store) -> list[Question]:
    """The last question of each tick that is not over, answered or not, oldest first."""
    last: dict[tuple[int, str], Question] = {}
    over = scheduled(store).last_seq()
    for item in store.list(FOLDER):
        seq, request = item.key.split("/")[1].split("-")[:2]
        if item.key.endswith("/asked.json") and (request != SCHEDULED or int(seq) > over):  # reads what is open, not history
            question = Question.from_bytes(store.get(item.key), store.url(item.key))
            before = last.get((question.seq, question.request))
            if before is None or before.asked_at <= question.asked_at:
                last[question.seq, question.request] = question
    return [q for q in last.values() if not store.exists(f"journal/{q.seq:08d}-{q.request or 'tick'}.json")]


def waiting(store: Store) -> list[Question]:
    """The questions that are open, oldest first."""
    return [q for q in unanswered(store) if store.now() < q.expires_at]


def unanswered(store: Store) -> list[Question]:
    """The questions without an answer that is written down, those that are too old for one too; oldest first."""
    return [q for q in pending(store) if not store.exists(f"{FOLDER}/{q.id}/answer.json")]


def answered(store: Store) -> Tick | None:
    """The oldest tick that a person forced, and that can go on because its question is answered or too old."""
    for question in pending(store):
        if question.request and answer_to(store, question) is not None:
            return find(store, f"ticks/{question.seq:08d}-{question.request}.json", Tick)
    return None


def pick(questions: Sequence[Question], window: int | None) -> Question:
    """The one open question that a person means.

    Raises:
        ReleaseError: there is none, or there are several.
    """
    meant = [q for q in questions if window in {None, q.seq}]
    where = "" if window is None else f" of window {window}"
    if not meant:
        raise ReleaseError(f"approve: a question{where} must be open, got none. `everfresh approve` shows what waits.")
    if len(meant) > 1:
        names = ", ".join(f"{q.seq} ({q.stage}{', forced' if q.request else ''})" for q in meant)
        raise ReleaseError(f"approve: one question{where} must be meant, got {names}. Name one by its window or its id.")
    return meant[0]


def declined(decision: Decision, said: Answer) -> Decision:
    """What is decided where a person does not want the training."""
    return Decision(action="nothing", reasons=(*decision.reasons, f"but {said.sentence}"))


def expected_cost(store: Store, tick: Tick, ladder: Sequence[Rung]) -> dict[Rung, tuple[int, float] | None]:
    """How often each rung was trained in the ticks before, and its seconds in the median; None where it never was."""
    journal = scheduled(store)
    recent = [journal.entry(seq) for seq in range(max(1, tick.seq - RECENT), tick.seq)]
    return {rung: _spent(rung, [entry for entry in recent if entry is not None]) for rung in ladder}


def _spent(rung: Rung, entries: Sequence[JournalEntry]) -> tuple[int, float] | None:
    seconds = [tried.cost.seconds for entry in entries for tried in entry.tried if tried.rung == rung]
    return (len(seconds), median(seconds)) if seconds else None
