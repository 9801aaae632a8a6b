"""Whatever arrives, a window ends: good pictures in it, bad ones in quarantine with the reason, nothing lost."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.loop import CLASSES, SIDE, NothingNew, pipeline, run_window, second_window
from support.mutate import Mutant, mutants, shows_the_digit
from support.pictures import digits, write_folder

from everfresh.tasks import journal
from everfresh.tasks.images import decode, examine
from everfresh.tasks.ingest import ingest
from everfresh.tasks.store import FolderStore
from everfresh.tasks.views import View, split_of


@pytest.fixture(scope="module")
def made() -> list[Mutant]:
    """All mutants, among which at least 200 must go into quarantine."""
    found = mutants()
    assert len({mutant.name for mutant in found}) == len(found)
    assert Counter(mutant.outcome for mutant in found)["quarantined"] >= 200
    return found


def test_each_of_hundreds_of_damaged_files_is_set_aside_with_its_reason_and_none_harms_a_good_one(
    folder_store: FolderStore, tmp_path: Path, made: list[Mutant]
) -> None:
    good = digits(60, start=100)
    config = pipeline(tmp_path)
    write_folder(tmp_path / "inbox", {m.name: m.data for m in made} | good)
    entry = ingest(folder_store, config)
    assert entry is not None
    view = View(folder_store, entry.view)
    taken = dict(zip([s.key for s in view.samples], view.read(view.rows()), strict=True))
    rows = [json.loads(line) for line in folder_store.get(f"quarantine/{entry.view}/quarantine.jsonl").decode().splitlines()]
    aside = {row["key"]: row for row in rows}

    assert (len(taken), len(aside)) == (view.window.samples, view.window.quarantined) == (len(view.samples), len(rows))
    assert sorted([*taken, *aside]) == sorted([*good, *(m.name for m in made)])
    assert {key: taken.get(key) for key in good} == good
    for mutant in made:
        if mutant.outcome != "either":
            assert (mutant.name in aside) is (mutant.outcome == "quarantined"), mutant.name
        if mutant.name in aside:
            row = aside[mutant.name]
            kept = folder_store.get(f"quarantine/{entry.view}/{row['sha256']}")
            assert (kept, row["size"]) == (mutant.data, len(mutant.data))
            assert re.search(mutant.reason, row["reason"]), (mutant.name, row["reason"])
            assert len(row["reason"]) < 200
        elif mutant.outcome == "taken":
            assert shows_the_digit(decode(taken[mutant.name])), mutant.name
    assert ingest(folder_store, config) is None


def test_small_files_of_huge_pictures_are_judged_before_they_are_unpacked(tmp_path: Path, made: list[Mutant]) -> None:
    bombs = {mutant.name: mutant.data for mutant in made if mutant.name.startswith("bombs/")}
    assert max(map(len, bombs.values())) < 300_000
    folder = write_folder(tmp_path, {"bombs/first": digits(1).popitem()[1]} | bombs)
    code = f"""
import resource
from pathlib import Path
from everfresh.tasks.errors import DataError
from everfresh.tasks.images import examine
examine(Path({str(folder / "bombs/first")!r}).read_bytes())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in Path({str(folder / "bombs")!r}).glob("*.*"):
    try:
        examine(path.read_bytes())
    except DataError:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    grown = [int(line) for line in done.stdout.split()]
    assert len(grown) == len(bombs)
    assert max(grown) < 32 << 10  # KiB; the smallest bomb would take 64 MB


# --- windows of nothing but trouble ----------------------------------------------------------------------


def fresh(count: int, classes: tuple[str, ...] = CLASSES, *, splits: str = "train tune holdout") -> dict[str, bytes]:
    """Digits that no other window of these tests holds, of some classes and splits."""
    window = pipeline(Path()).window
    share = window.seed, window.holdout_fraction, window.tune_fraction
    found = digits(400, start=800, classes=classes, side=SIDE)
    wanted = (key for key, data in found.items() if split_of(examine(data).group, *share) in splits.split())
    return {key: found[key] for _, key in zip(range(count), wanted, strict=False)}


def flat(files: dict[str, bytes], folder: str = "") -> dict[str, bytes]:
    """The same in one folder."""
    return {folder + key.replace("/", "-"): data for key, data in files.items()}


NONE, NO_TRAIN = "0 labelled training samples of 0 classes cannot train one", "no labelled sample to train on"
NONE_SINCE, WAIT = (
    "0 labelled samples since the last training, of 1",
    "20 samples wait, their labels are not in model.classes: in",
)
# What arrives; what the entry says if it is the first window, and if there is a champion.
WINDOWS: dict[str, tuple[Callable[[], dict[str, bytes]], str, str]] = {
    "only bad files": (lambda: {"zero/1.png": b"words", "one/2.png": b""}, NONE, NONE_SINCE),
    "one class": (lambda: fresh(20, ("zero",)), "training samples of 1 classes cannot train one", "retrain"),
    "one sample": (lambda: fresh(1, splits="holdout"), NONE, NO_TRAIN),
    "one sample to train on": (lambda: fresh(1, splits="train"), "1 labelled training samples of 1 classes", "retrain"),
    "nothing to prove on": (lambda: fresh(20, splits="train"), "bootstrap", "retrain"),
    "nothing to train on": (lambda: fresh(20, splits="tune holdout"), NONE, NO_TRAIN),
    "no labels": (lambda: flat(fresh(20)), NONE, NONE_SINCE),
    "all pending": (lambda: flat(fresh(20), "in/"), WAIT, WAIT),
    "one picture, two labels": (lambda: {f"{c}/1.png": fresh(1).popitem()[1] for c in CLASSES}, NONE, NONE_SINCE),
}


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
def test_a_window_of_trouble_ends_with_an_entry_that_says_what_was_done_and_why(
    tmp_path: Path, window: str, first: bool
) -> None:
    make, *expected = WINDOWS[window]
    files = make()
    if first:
        config, store = pipeline(tmp_path), FolderStore(tmp_path / "store")
    else:
        store, config = second_window(tmp_path)
        shutil.rmtree(tmp_path / "inbox")
    write_folder(tmp_path / "inbox", files)
    made = run_window(store, config)
    entry = journal.latest(store)
    assert entry == made.entry
    assert (entry.samples + entry.quarantined, entry.seq) == (len(files), 1 if first else 2)
    assert expected[not first] in "; ".join([entry.decision.action, *entry.decision.reasons])
    assert entry.decision.action != "nothing" or not entry.tried
    assert (entry.version is None) is bool(entry.decision.action == "nothing" or entry.failed_gates)
    if window == "nothing to prove on":
        assert "holdout" in entry.failed_gates
    assert journal.pending(store) is None
    with pytest.raises(NothingNew):
        run_window(store, config)


# --- a clock that is set back ----------------------------------------------------------------------------


class SetBack(FolderStore):
    """A store whose clock is an hour late."""

    def now(self) -> datetime:
        return datetime.now(UTC) - timedelta(hours=1)


def test_a_clock_that_is_set_back_between_two_ticks_loses_nothing_and_no_age_is_negative(tmp_path: Path) -> None:
    store, config = second_window(tmp_path, policy={"triggers": [{"kind": "age", "days": 0.001}], "ladder": ["head"]})
    behind = SetBack(store.root)
    made = run_window(behind, config)
    assert made.entry.samples == 60
    assert made.decision.action == "nothing"
    assert "after the store's clock, which went back" in made.decision.reasons[0]
    write_folder(tmp_path / "inbox", fresh(30))
    forced = run_window(behind, config, request="by-hand")
    assert forced.entry.cost.seconds > 0
    again = run_window(store, config)
    assert (again.entry.seq, again.entry.samples) == (3, 30)
    assert journal.pending(store) is None
