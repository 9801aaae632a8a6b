"""A person in the loop: asked once, answered once, by whoever is first; the tick waits, and goes on where it was."""

from __future__ import annotations

import json
from typing import Any

import pytest
from prefect import get_client
from support.prefect_server import PrefectServer
from support.stream import AGED, Pipeline

from everfresh.flows.retrain import retrain
from everfresh.tasks import approvals
from everfresh.tasks.approvals import answer, waiting
from everfresh.tasks.errors import ConfigError, DataError
from everfresh.tasks.ledger import champion_moves, find, stream
from everfresh.tasks.records import Candidate, JournalEntry, Question

ALWAYS = {"ladder": ["head"], "triggers": [{"kind": "new_samples", "count": 1}]}


def asking(pipeline: Pipeline, stage: str) -> None:
    """The pipeline, asking at a stage, with a window that it wants to train on."""
    pipeline.rewrite(policy=ALWAYS, approval={"ask": stage}, gates=[{"kind": "floor", "minimum": 0.3}])
    pipeline.arrives(3, AGED)


def asked(pipeline: Pipeline) -> Question:
    [question] = waiting(pipeline.store)
    return question


def says(pipeline: Pipeline, approved: bool) -> None:
    answer(pipeline.store, asked(pipeline), approved=approved, by="ada", reason="I looked", through="command")


def tick(pipeline: Pipeline) -> JournalEntry:
    [entry] = retrain(pipeline.config)
    return entry


def test_training_waits_for_a_person_and_is_asked_about_once(pipeline: Pipeline, server: PrefectServer) -> None:
    asking(pipeline, "before_training")
    assert retrain(pipeline.config) == []
    question = asked(pipeline)
    assert (question.seq, question.stage, (question.expires_at - question.asked_at).days) == (3, "before_training", 3)
    for words in ("effect", "accuracy", "| head | ", " s, median of ", "`floor`"):
        assert words in question.words, question.words
    pipeline.arrives(4, AGED)
    assert retrain(pipeline.config) == []  # nothing is taken in past a window that waits
    assert (asked(pipeline), stream(pipeline.store).last_seq()) == (question, 3)
    assert len(server.events(pipeline.name, "everfresh.approval.asked")) == 1
    says(pipeline, approved=True)
    entry = tick(pipeline)
    assert [t.rung for t in entry.tried] == ["head"]
    assert [(a.by, a.approved, a.reason) for a in entry.answers] == [("ada", True, "I looked")]
    assert waiting(pipeline.store) == []


def test_a_training_that_is_rejected_is_a_decision_for_nothing_and_the_next_window_asks_again(pipeline: Pipeline) -> None:
    asking(pipeline, "before_training")
    retrain(pipeline.config)
    says(pipeline, approved=False)
    entry = tick(pipeline)
    assert (entry.decision.action, entry.tried, entry.version) == ("nothing", (), None)
    assert entry.decision.reasons[-1] == "but ada rejected the training: I looked"
    pipeline.arrives(4, AGED)
    assert retrain(pipeline.config) == []
    assert asked(pipeline).seq == 4


def test_what_a_person_rejects_does_not_go_live(pipeline: Pipeline) -> None:
    asking(pipeline, "before_publishing")
    before = champion_moves(pipeline.store).last_seq()
    assert retrain(pipeline.config) == []
    assert "| floor | passed |" in asked(pipeline).words
    says(pipeline, approved=False)
    entry = tick(pipeline)
    assert (entry.failed_gates, entry.version, champion_moves(pipeline.store).last_seq()) == (("approval",), None, before)
    assert entry.answers[0].sentence == "ada rejected the release: I looked"


def test_a_question_that_nobody_answers_counts_as_rejected(pipeline: Pipeline) -> None:
    asking(pipeline, "before_publishing")
    assert retrain(pipeline.config) == []
    question = asked(pipeline)
    passed = question.model_copy(update={"expires_at": question.asked_at})  # three days went by
    pipeline.store.put(f"approvals/{question.id}/asked.json", passed.to_bytes())
    entry = tick(pipeline)
    assert (entry.failed_gates, entry.version) == (("approval",), None)
    assert [(a.by, a.through) for a in entry.answers] == [("nobody", "expiry")]


def test_a_form_that_was_filled_in_in_time_counts_though_the_run_goes_on_late(pipeline: Pipeline) -> None:
    asking(pipeline, "before_publishing")
    assert retrain(pipeline.config) == []
    question = asked(pipeline)
    filled = {"answer": "approve", "reason": "fine", "by": "ada"}
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(retrain, parameters={"config": pipeline.config})
        client.create_flow_run_input(run.id, f"suspended-{question.id.replace('_', '-')}-response", json.dumps(filled))
    pipeline.store.put(f"approvals/{question.id}/form.json", json.dumps({"run": str(run.id)}).encode())
    passed = question.model_copy(update={"expires_at": question.asked_at})
    pipeline.store.put(f"approvals/{question.id}/asked.json", passed.to_bytes())
    entry = tick(pipeline)
    assert [(a.by, a.approved, a.through) for a in entry.answers] == [("ada", True, "form")]
    assert entry.version == 3


def test_a_forced_tick_waits_too_and_any_later_run_goes_on_with_it(pipeline: Pipeline) -> None:
    pipeline.rewrite(approval={"ask": "before_publishing"}, gates=[{"kind": "floor", "minimum": 0.3}])
    assert retrain(pipeline.config, force=True, reason="new lens") == []
    assert asked(pipeline).request
    assert retrain(pipeline.config) == []  # unanswered, it holds up nobody
    says(pipeline, approved=True)
    entry = tick(pipeline)
    assert (entry.seq, bool(entry.request), entry.version) == (2, True, 3)
    assert retrain(pipeline.config) == []


def test_a_proof_that_is_made_again_is_asked_about_again(pipeline: Pipeline) -> None:
    asking(pipeline, "before_publishing")
    retrain(pipeline.config)
    says(pipeline, approved=True)
    first = approvals.pending(pipeline.store)
    from everfresh.tasks import alias

    alias.promote(pipeline.store, "v1", reason="the champion moves meanwhile")
    assert retrain(pipeline.config) == []
    assert asked(pipeline).id != first[0].id
    says(pipeline, approved=True)
    assert tick(pipeline).version == 3


def test_forcing_is_consent_to_the_training(pipeline: Pipeline) -> None:
    pipeline.rewrite(approval={"ask": "before_training"})
    [entry] = retrain(pipeline.config, force=True)
    assert entry.tried
    assert entry.answers == ()


def test_a_range_of_windows_limits_what_is_replayed_not_what_is_compared(pipeline: Pipeline) -> None:
    pipeline.rewrite(policy=ALWAYS)
    pipeline.arrives(3, AGED)
    retrain(pipeline.config)
    views = [entry.view for entry in stream(pipeline.store)]
    [entry] = retrain(pipeline.config, force=True, first_window=2, last_window=2)
    made = find(pipeline.store, f"candidates/{entry.tried[0].candidate}/record.json", Candidate)
    assert made is not None
    assert (entry.seq, made.view, made.replay) == (2, views[1], ())
    assert {b.view for b in entry.bank} == set(views)
    [entry] = retrain(pipeline.config, force=True, first_window=2)
    made = find(pipeline.store, f"candidates/{entry.tried[0].candidate}/record.json", Candidate)
    assert made is not None
    assert (entry.seq, made.view, made.replay) == (3, views[2], (views[1],))


@pytest.mark.parametrize(
    ("chosen", "error", "words"),
    [
        ({"first_window": 2}, ConfigError, "must go with force, got no force"),
        ({"force": True, "first_window": 3, "last_window": 2}, ConfigError, "must not be after last_window, got 3 and 2"),
        ({"force": True, "last_window": 9}, DataError, "must be a window that was treated, got 9 and 2 of them"),
    ],
)
def test_a_range_that_is_none_is_refused(
    pipeline: Pipeline, chosen: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        retrain(pipeline.config, **chosen)
