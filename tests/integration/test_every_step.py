"""The process dies before and after each write of a retraining, a publication and a rollback; a rerun makes it good."""

from __future__ import annotations

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.faults import DIED, READS, WRITES, in_child, outcome, play_until, prepare, whole

from everfresh.tasks.store import FolderStore


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with a champion, in whose inbox a window waits."""
    folder = tmp_path_factory.mktemp("waiting") / "p"
    assert in_child(prepare, folder) == 0
    return folder


def grid(waiting: Path, tmp_path: Path, names: tuple[str, ...]) -> int:
    """Die at every operation of these names, before and after it; returns how many points there were."""
    calm = tmp_path / "calm"
    shutil.copytree(waiting, calm)
    assert in_child(play_until, calm, str(calm / "store"), 0, "never", names) == 0
    operations = (calm / "operations").read_text().splitlines()
    expected = outcome(FolderStore(calm / "store"))
    releases = {whole(FolderStore(waiting / "store")), *(m["release"] for m in expected[:-1] if "move" in m)}

    def point(place: tuple[int, str]) -> str:
        number, when = place
        # The same folder for all would be simpler, but paths stand in the pipeline.
        folder = tmp_path / f"{when}-{number}"
        shutil.copytree(waiting, folder)
        store = FolderStore(folder / "store")
        label = f"{when} {operations[number - 1]}"
        try:
            status = in_child(play_until, folder, str(store.root), number, when, names)
            if status != DIED:
                return f"{label}: did not die, but ended with {status}"
            if whole(store) not in releases:
                return f"{label}: a strange champion"
            if in_child(play_until, folder, str(store.root), 0, "never", names) != 0:
                return f"{label}: the rerun failed"
            if outcome(store) != expected:
                return f"{label}: another end"
            return "" if whole(store) in releases else f"{label}: the sweep took too much"
        finally:
            shutil.rmtree(folder)

    places = [(n, when) for n in range(1, len(operations) + 1) for when in ("before", "after")]
    with ThreadPoolExecutor(2) as pool:
        wrong = [words for words in pool.map(point, places) if words]
    assert wrong == []
    sys.stdout.write(f"{len(places)} points, {2 * len(places)} runs\n")
    return len(places)


def test_a_death_at_any_write_is_made_good(waiting: Path, tmp_path: Path) -> None:
    assert grid(waiting, tmp_path, WRITES) > 50


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_death_at_any_operation_is_made_good(waiting: Path, tmp_path: Path) -> None:
    assert grid(waiting, tmp_path, WRITES + READS) > 300
