"""Many processes want the next move at once: one gets it, and the history has neither gap nor fork."""

from __future__ import annotations

import os
import sys
from multiprocessing import get_context
from pathlib import Path

import pytest
from support.races import WITHIN, race
from support.s3 import BUCKET

from everfresh.tasks.ledger import champion_moves
from everfresh.tasks.store import open_store

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


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "rounds"), [(16, 200)])
def test_of_sixteen_processes_one_wins_each_round_on_a_folder(tmp_path: Path, processes: int, rounds: int) -> None:
    play(str(tmp_path / "store"), {}, rounds, processes)


@pytest.mark.slow
def test_of_eight_processes_one_wins_each_round_on_s3(s3_endpoint: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    assert s3_endpoint
    play(f"s3://{BUCKET}/races", environment, 50, 8)
