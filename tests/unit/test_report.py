"""``everfresh report`` and `--store`: pages and tables from a store alone."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.entries import NOON, entry, keep, move
from typer.testing import CliRunner

from everfresh.flows.cli import app
from everfresh.flows.report import frozen, met, met_by, page, retrainings
from everfresh.tasks.catalogue import pipelines
from everfresh.tasks.ledger import champion_moves
from everfresh.tasks.records import AliasMove, Cost, Decision, Interval, JournalEntry, TriedRung
from everfresh.tasks.store import FolderStore, Store

AT = datetime(2026, 2, 1, tzinfo=UTC)
RETRAIN = Decision(action="retrain", reasons=("<b>drift</b> & loss",), triggers=("drift",))


FIRST = move(1).model_copy(update={"release": "r1"})


def back(hours: float, seq: int = 3) -> AliasMove:
    """A person goes back to version 1."""
    return FIRST.model_copy(update={"seq": seq, "kind": "rollback", "at": NOON + timedelta(hours=hours)})


def released(seq: int, version: int, gain: float, right: float, **fields: Any) -> JournalEntry:
    """A tick that made a champion, after one that was `gain` worse."""
    tried = TriedRung(rung="head", candidate=f"c{seq}", weights_sha256="0" * 64, tune_accuracy=right, cost=Cost(seconds=3))
    return entry(
        seq, decision=RETRAIN, alarm=True, score=0.4, tried=(tried,), version=version, release=f"r{version}",
        champion=f"r{version}", champion_version=version, challenger_accuracy=right, measured_accuracy=right - gain,
        gain=Interval(value=gain, low=gain - 0.05, high=gain + 0.05), **fields,
    )  # fmt: skip


@pytest.fixture
def played() -> list[JournalEntry]:
    quiet = {"champion": "r1", "champion_version": 1, "estimated_accuracy": 0.9, "score": 0.01}
    first = entry(1, champion="r1", champion_version=1, version=1, release="r1", challenger_accuracy=0.92)
    return [first, entry(2, **quiet), released(3, 2, 0.2, 0.85), entry(4, champion="r2", champion_version=2, samples=30)]


def test_version_1_is_told_where_it_was_measured_and_nowhere_else(played: list[JournalEntry]) -> None:
    assert frozen(played, [FIRST]) == [0.92, 0.9, pytest.approx(0.65), None]


def test_a_retraining_is_worth_its_gain_on_what_its_release_met(played: list[JournalEntry]) -> None:
    [only] = retrainings(played, [FIRST])
    assert (only.entry.seq, only.without, only.served, only.right_more) == (3, pytest.approx(0.65), 1, pytest.approx(6))
    assert met(played[3]) is None


def test_a_forced_retraining_on_an_old_window_is_worth_something_on_newer_ones_only() -> None:
    one = {"champion": "r1", "champion_version": 1, "estimated_accuracy": 0.9}
    at = NOON + timedelta(hours=12.5)
    forced = released(9, 2, 0.2, 0.85, request="f", started_at=at, finished_at=at + timedelta(minutes=5))
    two = {"champion": "r2", "champion_version": 2, "estimated_accuracy": 0.8}
    entries = [*(entry(n, **one) for n in range(8, 10)), forced, *(entry(n, **one) for n in range(10, 13)), entry(13, **two)]
    assert met_by(entries, [FIRST]) == [None, *["r1"] * 5, "r2"]
    [only] = retrainings(entries, [FIRST])
    assert (only.served, only.right_more) == (1, pytest.approx(2))
    assert frozen(entries, [FIRST]) == [None, 0.9, pytest.approx(0.65), 0.9, 0.9, 0.9, None]


def test_a_window_after_a_rollback_by_hand_was_met_by_the_one_gone_back_to(played: list[JournalEntry]) -> None:
    last = entry(4, champion="r1", champion_version=1, measured_accuracy=0.7)
    for hours, champion, right, served in ((3.5, "r1", 0.7, 0), (4.5, "r2", None, 1)):
        entries, moves = [*played[:3], last], [FIRST, back(hours)]
        assert met_by(entries, moves)[3] == champion
        assert frozen(entries, moves)[3] == right
        assert retrainings(entries, moves)[0].served == served


def test_ticks_within_one_second_are_in_the_order_of_their_windows() -> None:
    at = {"started_at": NOON, "finished_at": NOON}
    entries = [entry(n, champion=f"r{n}", champion_version=n, version=n, release=f"r{n}", **at) for n in (1, 2, 3)]
    assert met_by(entries, [FIRST]) == [None, "r1", "r2"]


def test_version_1_that_was_adopted_is_told_of_the_first_window_too() -> None:
    adopted = FIRST.model_copy(update={"kind": "adopt"})
    assert frozen([released(1, 2, 0.2, 0.85)], [adopted]) == [pytest.approx(0.65)]


def test_the_page_fetches_nothing_and_shows_words_of_others_as_they_are(tmp_path: Path, played: list[JournalEntry]) -> None:
    store = FolderStore(tmp_path).sub("p")
    keep(store, *played)
    champion_moves(store).append(1, FIRST)
    html = page("p", "here", store, AT)
    assert not re.search(r"(src|href)=|url\(|@import|<script", html)
    assert "&lt;b&gt;drift&lt;/b&gt; &amp; loss" in html
    assert "released v2" in html
    assert "≈ +6" in html
    assert html.count("<circle") == len([e for e in played if met(e) is not None]) + 3 + 1 + 2  # version 1, alarm, releases


def test_the_page_of_a_thousand_ticks_takes_seconds(tmp_path: Path) -> None:
    store = FolderStore(tmp_path).sub("p")
    keep(store, *(entry(n, measured_accuracy=0.9, score=0.1, champion="r1", champion_version=1) for n in range(1, 1001)))
    begun = time.process_time()
    html = page("p", "here", store, AT)
    assert html.count("<tr>") >= 1000
    assert time.process_time() - begun < 20


def test_a_page_without_a_tick_says_what_to_do(tmp_path: Path) -> None:
    assert "everfresh run" in page("p", "here", FolderStore(tmp_path).sub("p"), AT)


def test_a_whole_store_is_looked_at_without_files_of_pipelines(tmp_path: Path, played: list[JournalEntry]) -> None:
    store: Store = FolderStore(tmp_path)
    store.put("other/notes.txt", b"no pipeline")
    for name in ("a", "a-b"):
        keep(store.sub(name), *played)
        champion_moves(store.sub(name)).append(1, move(1))
    assert pipelines(store) == ["a", "a-b"]
    shown = CliRunner().invoke(app, ["status", "--store", str(tmp_path)]).output
    assert re.search(r"^a-b +│? *v1", shown.replace("│", ""), re.MULTILINE), shown
    assert CliRunner().invoke(app, ["history", "--store", str(tmp_path), "--name", "a"]).output.count("v2") >= 1
    made = CliRunner().invoke(app, ["report", "--store", str(tmp_path), "--out", str(tmp_path / "pages")])
    assert made.exit_code == 0, made.output
    assert sorted(p.name for p in (tmp_path / "pages").iterdir()) == ["a-b.html", "a.html"]
