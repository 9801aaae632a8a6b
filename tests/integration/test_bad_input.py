"""Whatever arrives, a window ends: good pictures in it, bad ones in quarantine with the reason, nothing lost."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from support.loop import pipeline
from support.mutate import Mutant, mutants, shows_the_digit
from support.pictures import digits, write_folder

from everfresh.tasks.images import decode
from everfresh.tasks.ingest import ingest
from everfresh.tasks.store import FolderStore
from everfresh.tasks.views import View


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
