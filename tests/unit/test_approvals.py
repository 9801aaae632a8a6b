"""Approvals: one question, one answer, whoever gives it; and what a person types."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.stream import make_pipeline
from typer.testing import CliRunner

from everfresh.flows.cli import app
from everfresh.flows.cli_approval import window_range
from everfresh.flows.declared import form
from everfresh.tasks import approvals
from everfresh.tasks.errors import ConfigError, ReleaseError
from everfresh.tasks.records import Banked, Question, Tick, Wish
from everfresh.tasks.store import FolderStore

NOW = datetime(2024, 5, 1, tzinfo=UTC)
ENDS = st.none() | st.integers(1, 10**6)


def tick(seq: int = 3, request: str = "", **changes: Any) -> Tick:
    fields = {"view": "v", "champion": "r", "champion_move": 1, "reference": None, "bank": (), "now": NOW}
    return Tick(seq=seq, request=request, **{**fields, **changes})


def ask(store: FolderStore, of: Tick, hours: float = 1.0, proof: str = "") -> Question:
    stage = "before_publishing" if proof else "before_training"
    return approvals.ask(store, of, stage, "May it?", "words", hours, proof)


def test_the_first_answer_counts_and_a_question_is_asked_once(folder_store: FolderStore) -> None:
    asked = ask(folder_store, tick())
    assert ask(folder_store, tick(), hours=9) == asked
    first = approvals.answer(folder_store, asked, approved=False, by="ada", reason="no", through="form")
    assert approvals.answer(folder_store, asked, approved=True, by="bob", reason="", through="command") == first
    assert approvals.answer_to(folder_store, asked) == first
    assert approvals.given(folder_store, tick()) == (first,)
    assert approvals.waiting(folder_store) == []


def test_what_is_too_old_is_rejected_by_nobody_and_stays_so(folder_store: FolderStore) -> None:
    asked = ask(folder_store, tick(), hours=1e-9)
    assert approvals.waiting(folder_store) == []
    said = approvals.answer_to(folder_store, asked)
    assert said is not None
    assert (said.approved, said.by, said.through) == (False, "nobody", "expiry")
    assert approvals.answer(folder_store, asked, approved=True, by="late", reason="", through="command") == said


def test_only_the_last_question_of_a_tick_that_is_not_over_waits(folder_store: FolderStore) -> None:
    ask(folder_store, tick(), proof="a" * 32)
    again = ask(folder_store, tick(), proof="b" * 32)
    other = ask(folder_store, tick(4, "f1"), proof="a" * 32)
    assert approvals.waiting(folder_store) == [again, other]
    folder_store.put("journal/00000003-tick.json", b"{}")
    assert approvals.waiting(folder_store) == [other]


def test_questions_of_windows_that_are_over_are_not_read(folder_store: FolderStore) -> None:
    for seq in range(1, 6):
        ask(folder_store, tick(seq))
        folder_store.put(f"journal/{seq:08d}-tick.json", b"{}")
        folder_store.put(f"approvals/{seq:08d}-tick-before_training/asked.json", b"not even a question")
    open_one = ask(folder_store, tick(6))
    assert approvals.waiting(folder_store) == [open_one]


def test_who_answers_second_is_told_who_was_first(tmp_path: Path) -> None:
    made = make_pipeline(tmp_path, "asked")
    asked = ask(made.store, tick())
    approvals.answer(made.store, asked, approved=True, by="ada", reason="fine", through="form")
    told = CliRunner().invoke(app, ["approve", str(made.file), "3", "--reject"])
    assert told.exit_code == 1
    assert "window 3 must be unanswered, but ada approved the training: fine" in str(told.exception)


def test_a_question_is_picked_by_its_window(folder_store: FolderStore) -> None:
    asked = [ask(folder_store, tick(3)), ask(folder_store, tick(4)), ask(folder_store, tick(4, "f1"))]
    assert approvals.pick(asked[:1], None) == asked[0]
    assert approvals.pick(asked, 3) == asked[0]
    for window, words in ((None, "one question must be meant, got 3"), (4, "one question of window 4"), (5, "got none")):
        with pytest.raises(ReleaseError, match=words):
            approvals.pick(asked, window)


@given(ENDS, ENDS)
def test_a_range_reads_as_it_is_written(first: int | None, last: int | None) -> None:
    words = f"{first or ''}-{last or ''}"
    if words != "-" and (first or 1) <= (last or 10**6):
        assert window_range(words) == (first, last)
        assert window_range(str(first or last)) == (first or last, first or last)
    else:
        with pytest.raises(ConfigError, match=f"got '{words}'"):
            window_range(words)


@pytest.mark.parametrize("words", ["", "0", "0-3", "3-0", "a", "1-2-3", "1,2", "--3", "1.5"])
def test_what_is_no_range_is_refused(words: str) -> None:
    with pytest.raises(ConfigError, match=r"--windows must be a range of windows such as 3-9"):
        window_range(words)


@given(st.lists(st.integers(1, 30), unique=True), st.integers(0, 30), st.integers(1, 30))
def test_replayed_is_what_lies_within_the_range(seqs: list[int], first: int, last: int) -> None:
    bank = tuple(Banked(view=f"v{seq}", seq=seq, regime="r") for seq in seqs)
    forced = tick(last, "f", view=f"v{last}", bank=bank, replay_from=first)
    assert {b.seq for b in forced.replayed} == {seq for seq in seqs if first <= seq < last}
    assert forced.fulfils(Wish(first_window=first or None))
    assert not forced.fulfils(Wish(first_window=first + 1))


def test_the_form_of_a_custom_run_is_short_and_typed() -> None:
    from everfresh.flows.retrain import retrain

    fields = form(retrain)["properties"]
    assert [*fields][-1] == "config"
    assert "properties" not in fields["config"]
    assert {name: field["type"] for name, field in fields.items()} == {
        "force": "boolean", "reason": "string", "rung": "string", "trust_labels": "boolean", "drain": "boolean",
        "first_window": "integer", "last_window": "integer", "config": "object",
    }  # fmt: skip
    assert fields["rung"]["enum"] == ["recalibrate", "head", "full", "pretrained"]
    assert (fields["first_window"]["title"], fields["reason"]["title"]) == ("First window", "Reason")
    assert all(field["description"][0].isupper() for field in fields.values())
