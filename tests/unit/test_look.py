"""``everfresh status`` and ``history``: read from the store alone."""

from __future__ import annotations

import io
import json
from datetime import timedelta
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table
from support.entries import NOON, entry, keep, move

from everfresh.flows.artifacts import headline
from everfresh.flows.look import history, history_table, overview_table, set_aside, share, status, status_table
from everfresh.tasks import approvals
from everfresh.tasks.alias import pin
from everfresh.tasks.config import ImageFolder, ModelConfig, PipelineConfig
from everfresh.tasks.ledger import champion_moves, stream
from everfresh.tasks.records import Cost, Cursor, Decision, Interval, StreamEntry, Tick, TriedRung
from everfresh.tasks.store import Store, pipeline_store


@pytest.fixture
def config(tmp_path: Path) -> PipelineConfig:
    return PipelineConfig(name="p", store=str(tmp_path / "store"), source=ImageFolder(), model=ModelConfig(classes=("a", "b")))


@pytest.fixture
def pipeline(config: PipelineConfig) -> Store:
    return pipeline_store(config)


def shown(table: Table) -> str:
    sink = io.StringIO()
    Console(width=250, file=sink).print(table)
    return sink.getvalue()


def test_an_empty_pipeline_has_an_empty_status(config: PipelineConfig) -> None:
    facts = status(config)
    assert {k for k, v in facts.items() if v not in (None, 0, [], False)} == {"pipeline", "store", "right_is"}
    assert "–" in shown(status_table(facts))


def test_status_names_champion_last_window_and_what_waits(config: PipelineConfig, pipeline: Store) -> None:
    for seq in (1, 2):
        stream(pipeline).append(
            seq, StreamEntry(seq=seq, view=f"view{seq}", previous=None, cursor_after=Cursor(), committed_at=NOON)
        )
    champion_moves(pipeline).append(1, move(1))
    pin(pipeline, reason="audit")
    keep(pipeline, entry(1, alarm=True, estimated_accuracy=0.8125))
    facts = status(config)
    assert (facts["champion"], facts["pinned"], facts["windows"], facts["windows_waiting"]) == ("v1", True, 2, 1)
    assert (facts["last_window"], facts["drift_alarm"], facts["last_decision"]) == (1, True, "nothing")
    assert "81.2%" in shown(status_table(facts))
    assert "goes on with the window that was taken in" in shown(status_table(facts))
    assert json.loads(json.dumps(facts)) == facts


def test_status_tells_what_waits_for_a_person_and_how_to_answer(config: PipelineConfig, pipeline: Store) -> None:
    tick = Tick(seq=3, view="v", champion=None, champion_move=0, reference=None, bank=(), now=NOON)
    asked = approvals.ask(pipeline, tick, "before_publishing", "Release v2?", "words", 72, "a" * 32)
    facts = status(config)
    until = asked.expires_at
    assert facts["approvals"] == [
        {"id": asked.id, "stage": "before_publishing", "window": 3, "title": "Release v2?", "until": until.isoformat()}
    ]
    assert json.loads(json.dumps(facts)) == facts
    words = (
        f"window 3, before publishing, until {until:%Y-%m-%d %H:%M} UTC: Release v2? (question {asked.id}; answer with `ever"
    )
    assert words in shown(status_table(facts))
    assert "everfresh run" not in shown(status_table(facts))
    assert "waits for a person" in shown(overview_table([facts]))
    approvals.answer(pipeline, asked, approved=True, by="ann", reason="", through="command")
    assert status(config)["approvals"] == []
    assert "waits for a person" not in shown(status_table(status(config)))


def test_history_is_in_order_of_windows_and_holds_forced_ticks(pipeline: Store) -> None:
    keep(pipeline, entry(2), entry(1), entry(1, request="abc", started_at=NOON + timedelta(hours=5)))
    champion_moves(pipeline).append(1, move(1))
    entries, moves = history(pipeline)
    assert [(e.seq, e.request) for e in entries] == [(1, ""), (1, "abc"), (2, "")]
    assert [m.seq for m in moves] == [1]


def test_the_history_table_tells_each_tick_in_a_row() -> None:
    tried = TriedRung(rung="head", candidate="c", weights_sha256="d", tune_accuracy=0.9, cost=Cost(seconds=3.2))
    entries = [
        entry(1, decision=Decision(action="bootstrap", reasons=("there is no champion yet",)), version=1, champion_version=1),
        entry(2, score=0.41, alarm=True, quarantined=2, estimated_accuracy=0.5, measured_accuracy=0.4, tried=(tried,),
              decision=Decision(action="retrain", reasons=("x",), triggers=("drift", "performance")),
              failed_gates=("better",), gain=Interval(value=-0.01, low=-0.1, high=0.1), champion_version=1, trust="suspect"),
        entry(2, request="abc", score=0.05, champion_version=1),
    ]  # fmt: skip
    rows = [line for line in shown(history_table(entries, [])).splitlines() if line.startswith("│")]
    assert [part in rows[0] for part in ("bootstrap: there is no champion yet", "passed", "v1 new")] == [True] * 3
    for part in (
        "2 suspect",
        "10 (+2 bad)",
        "ALARM 0.41",
        "50.0%",
        "40.0%",
        "drift, performance",
        "head 3s",
        "better",
        "-1.0%",
    ):
        assert part in rows[1]
    assert "2 forced" in rows[2]
    assert "quiet 0.05" in rows[2]


def test_the_history_table_shows_what_people_did_between_the_ticks() -> None:
    moves = [move(1), move(2, "rollback", 1, pinned=True).model_copy(update={"at": NOON + timedelta(minutes=90)})]
    rows = [line for line in shown(history_table([entry(1), entry(2)], moves)).splitlines() if line.startswith("│")]
    assert [("rollback by ann: audit" in row) for row in rows] == [False, True, False]


@pytest.mark.parametrize(("value", "words"), [(None, "–"), (0.0, "0.0%"), (0.93456, "93.5%"), (1.0, "100.0%")])
def test_a_share_reads_as_percent(value: float | None, words: str) -> None:
    assert share(value) == words


def test_a_forced_tick_shows_its_reason_and_an_alarm_without_answer_all_of_them() -> None:
    quiet = Decision(action="nothing", reasons=("drift alarm, loss -8.0%, below 2.0%", "no drop of 5.0 points"))
    forced = Decision(action="retrain", reasons=("forced by a person: scanner replaced",), triggers=("force",))
    table = shown(history_table([entry(1, alarm=True, decision=quiet), entry(1, request="abc", decision=forced)], []))
    assert "below 2.0%; no drop" in table
    assert "scanner replaced" in table


def test_files_that_were_set_aside_are_named_with_their_reason(config: PipelineConfig, pipeline: Store) -> None:
    rows = [{"key": f"cat/{n}.png", "reason": "is empty (0 bytes)", "sha256": "0", "size": 0} for n in range(7)]
    pipeline.put("quarantine/view2/quarantine.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    lines = list(set_aside(config, [entry(1), entry(2, quarantined=7)]))
    assert lines[0] == "set aside in window 2: 'cat/0.png' is empty (0 bytes)"
    assert len(lines) == 6
    assert lines[-1].startswith("all 7 with their reasons: ")
    assert Path(lines[-1].removeprefix("all 7 with their reasons: ")).exists()


def test_history_tells_of_each_rung_what_it_cost_and_gained_or_that_it_was_not_tried() -> None:
    tried = TriedRung(rung="head", candidate="c", weights_sha256="d", tune_accuracy=0.9, tune_gain=0.25, cost=Cost(seconds=3.2))
    table = history_table([entry(2, tried=(tried,), not_tried=("full",), unfit={"recalibrate": "no tune sample"})], [])
    assert "head 3s +25%, recalibrate no answer, full not tried" in shown(table)
    asked = tried.model_copy(update={"failed_gates": ("better",)})
    assert "→ head 3s +25%" in shown(history_table([entry(2, tried=(asked,))], []))
    assert "full no answer" in shown(history_table([entry(2, unfit={"full": "model.mean must be …"})], []))


def test_a_tick_in_a_few_words_names_the_rung_that_the_gates_saw() -> None:
    asked = TriedRung(rung="head", candidate="c", weights_sha256="d", tune_accuracy=0.9, failed_gates=(), cost=Cost())
    aside = asked.model_copy(update={"rung": "full", "failed_gates": None})
    retrain = Decision(action="retrain", reasons=("x",), ladder=("head", "full"))
    made = entry(2, tried=(aside, asked), decision=retrain, champion_version=1)
    assert headline(made.model_copy(update={"version": 2})) == "released v2, made by head"
    assert headline(made.model_copy(update={"failed_gates": ("better",)})) == "head rejected by better; v1 stays"
    none = made.model_copy(update={"tried": (), "unfit": {"full": "no such pictures"}})
    assert headline(none) == "no rung has an answer (full: no such pictures); v1 stays"
