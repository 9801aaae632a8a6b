"""Processes race for the next move, a tick against a person, two pipelines: no gap, no fork, no strange champion."""

from __future__ import annotations

import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import pytest
from support.faults import DIED, WRITES, copy, outcome, play_until
from support.loop import second_window
from support.races import WITHIN, person, race, sweeper, tick, whole_stream
from support.s3 import BUCKET
from support.warm import in_child

from everfresh.tasks.alias import check_release
from everfresh.tasks.ledger import champion_moves, find, stream
from everfresh.tasks.records import Evaluation, Release
from everfresh.tasks.store import FolderStore, Store, open_store
from everfresh.tasks.views import View

SPAWN = get_context("spawn")


def play(uri: str, environment: dict[str, str], rounds: int, processes: int) -> None:
    barrier, won = SPAWN.Barrier(processes), SPAWN.Queue()
    racers = [SPAWN.Process(target=race, args=(uri, environment, rounds, n, barrier, won)) for n in range(processes)]
    for racer in racers:
        racer.start()
    winners = sorted(won.get(timeout=2 * WITHIN) for _ in range(rounds))
    for racer in racers:
        racer.join(WITHIN)
    assert [racer.exitcode for racer in racers] == [0] * processes
    assert won.empty()
    assert [number for number, _ in winners] == list(range(rounds))  # exactly one a round
    store = open_store(uri)
    history = list(champion_moves(store))
    assert [(m.seq, m.id) for m in history] == [(n + 1, name) for n, name in winners]
    assert len([i for i in store.list("aliases") if i.key.startswith("aliases/champion/")]) == rounds  # losers leave nothing
    sys.stdout.write(
        f"{rounds} rounds of {processes} processes on {uri.split(':')[0]}, {len({m.by for m in history})} have won\n"
    )


def aws() -> dict[str, str]:
    """The variables with which another process finds the S3 server."""
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


@pytest.fixture(params=["folder", "s3"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Address of an empty store that other processes can open."""
    if request.param == "folder":
        return str(tmp_path / "common")
    store: Store = request.getfixturevalue("s3_store")
    return store.url("")


@pytest.mark.slow
def test_of_sixteen_processes_one_wins_each_round_on_a_folder(tmp_path: Path) -> None:
    play(str(tmp_path / "store"), {}, 200, 16)


@pytest.mark.slow
def test_of_eight_processes_one_wins_each_round_on_s3(s3_endpoint: str) -> None:
    assert s3_endpoint
    play(f"s3://{BUCKET}/races", aws(), 50, 8)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_tick_and_a_person_at_once_leave_one_history_of_proven_moves(address: str, tmp_path: Path, seed: int) -> None:
    second_window(tmp_path)
    store = open_store(address)
    copy(FolderStore(tmp_path / "store"), store)
    with ThreadPoolExecutor(2) as pool:
        working = pool.submit(in_child, tick, tmp_path, address, aws())
        disturbing = pool.submit(in_child, person, address, aws(), seed, 2.5)
        assert [working.result(), disturbing.result()] == [0, 0]
    moves = list(champion_moves(store))
    assert [m.seq for m in moves] == list(range(1, len(moves) + 1))
    for before, move in pairwise(moves):
        check_release(store, move)
        if move.kind == "publish":
            release = find(store, f"releases/{move.release}/release.json", Release)
            assert release is not None
            proof = find(store, f"evaluations/{release.evaluation}/record.json", Evaluation)
            assert proof is not None
            assert (proof.champion_move, before.pinned) == (before.seq, False)


def test_two_ticks_at_once_make_one_window_and_one_champion(address: str, tmp_path: Path) -> None:
    second_window(tmp_path / "one")
    shutil.copytree(tmp_path / "one/inbox", tmp_path / "two/inbox")
    store = open_store(address)
    copy(FolderStore(tmp_path / "one/store"), store)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(in_child, tick, tmp_path / name, address, aws()) for name in ("one", "two")]
        assert [one.result() for one in both] == [0, 0]
    assert [entry.seq for entry in stream(store)] == [1, 2]
    moves = list(champion_moves(store))
    assert [(m.kind, m.version) for m in moves] == [("publish", 1), ("publish", 2)]
    check_release(store, moves[-1])


@pytest.mark.parametrize("at", [6, 14, 22])
def test_a_rerun_loses_nothing_to_a_sweep_of_its_old_debris(tmp_path: Path, at: int) -> None:
    store, _ = second_window(tmp_path)
    assert in_child(play_until, tmp_path, str(store.root), {}, at, "before", WRITES) == DIED
    for path in store.root.rglob("*"):
        os.utime(path, (0, 0))
    with ThreadPoolExecutor(2) as pool:
        sweeping = pool.submit(in_child, sweeper, str(store.root), 4)
        assert in_child(tick, tmp_path, str(store.root), {}) == 0
        assert sweeping.result() == 0
    last = champion_moves(store).last()
    assert last is not None
    assert (last.kind, last.version) == ("publish", 2)
    check_release(store, last)
    for entry in stream(store):
        view = View(store, entry.view)
        assert len(list(view.read(view.rows()))) == view.window.samples


def test_two_pipelines_in_one_place_do_not_touch_each_other(address: str, tmp_path: Path) -> None:
    expected = {}
    for name in ("one", "two"):
        second_window(tmp_path / name)
        copy(FolderStore(tmp_path / name / "store"), open_store(address).sub(name))
        shutil.copytree(tmp_path / name, tmp_path / f"{name}-alone")
        alone = FolderStore(tmp_path / f"{name}-alone" / "store")
        assert in_child(whole_stream, tmp_path / f"{name}-alone", str(alone.root), {}) == 0
        expected[name] = outcome(alone)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(in_child, whole_stream, tmp_path / name, f"{address}/{name}", aws()) for name in expected]
        assert [one.result() for one in both] == [0, 0]
    assert {name: outcome(open_store(address).sub(name)) for name in expected} == expected
