"""The process dies before and after each write of a retraining, a publication and a rollback; a rerun makes it good."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.faults import DIED, READS, WRITES, copy, outcome, play_until, prepare, whole
from support.s3 import BUCKET
from support.warm import in_child

from everfresh.tasks.store import FolderStore, S3Store, Store


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with a champion, in whose inbox a window waits."""
    folder = tmp_path_factory.mktemp("waiting") / "p"
    assert in_child(prepare, folder) == 0
    return folder


def grid(waiting: Path, tmp_path: Path, names: tuple[str, ...], bucket: str = "", *, both: bool = True) -> int:
    """Die at every operation of these names, before and after it; returns how many points there were.

    Unless `both`, before every other one and after those between them.

    The store is in the folder of each point, or under a prefix of a bucket.
    """
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}

    def place(name: str) -> tuple[Path, Store, Callable[..., int]]:
        """A copy of the pipeline, its store, and how it is played."""
        folder = tmp_path / name
        shutil.copytree(waiting, folder)
        store: Store = FolderStore(folder / "store")
        if bucket:
            store, before = S3Store(bucket, f"{tmp_path.name}-{name}"), store
            copy(before, store)

        def play(*how: int | str) -> int:
            return in_child(play_until, folder, store.url(""), environment, *how, names)

        return folder, store, play

    folder, store, play = place("calm")
    assert play(0, "never") == 0
    operations = (folder / "operations").read_text().splitlines()
    expected = outcome(store)
    releases = {whole(FolderStore(waiting / "store")), *(m["release"] for m in expected[:-1] if "move" in m)}

    def point(where: tuple[int, str]) -> str:
        number, when = where
        folder, store, play = place(f"{when}-{number}")
        label = f"{when} {operations[number - 1]}"
        try:
            if (status := play(number, when)) != DIED:
                return f"{label}: did not die, but ended with {status}"
            if whole(store) not in releases:
                return f"{label}: a strange champion"
            if play(0, "never") != 0:
                return f"{label}: the rerun failed"
            if outcome(store) != expected:
                return f"{label}: another end"
            return "" if whole(store) in releases else f"{label}: the sweep took too much"
        finally:
            shutil.rmtree(folder)

    points = [(n, when) for n in range(1, len(operations) + 1) for when in ("before", "after")]
    if not both:
        points = [(n, when) for n, when in points if (when == "before") is bool(n % 2)]
    with ThreadPoolExecutor(2) as pool:
        wrong = [words for words in pool.map(point, points) if words]
    assert wrong == []
    sys.stdout.write(f"{'S3' if bucket else 'folder'}: {len(points)} points, {2 * len(points)} runs\n")
    return len(points)


def test_a_death_at_any_write_is_made_good(waiting: Path, tmp_path: Path) -> None:
    assert grid(waiting, tmp_path, WRITES, both=False) > 25


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_death_before_and_after_any_write_is_made_good(waiting: Path, tmp_path: Path) -> None:
    assert grid(waiting, tmp_path, WRITES) > 50


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_death_at_any_operation_is_made_good(waiting: Path, tmp_path: Path) -> None:
    assert grid(waiting, tmp_path, WRITES + READS) > 300


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("names", "points"), [(WRITES, 50), (WRITES + READS, 300)], ids=["write", "operation"])
def test_a_death_is_made_good_on_s3(
    waiting: Path, tmp_path: Path, s3_endpoint: str, names: tuple[str, ...], points: int
) -> None:
    assert s3_endpoint
    assert grid(waiting, tmp_path, names, BUCKET) > points
