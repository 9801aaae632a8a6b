"""``everfresh compare`` as people and their scripts use it: a sentence, a table, an exit code."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.cli import Everfresh


def orders(rows: int, seed: int, dearer: float = 0.0) -> pa.Table:
    rng = np.random.default_rng(seed)
    price = rng.lognormal(3 + dearer, 1, rows)
    return pa.table({"price": price, "store": rng.integers(1, 9, rows), "country": rng.choice(["de", "fr"], rows)})


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, Path]:
    made = {"january": orders(3000, 0), "february": orders(800, 1), "march": orders(800, 2, dearer=0.5)}
    for name, table in made.items():
        pq.write_table(table, tmp_path / f"{name}.parquet")
    return {name: tmp_path / f"{name}.parquet" for name in made}


def test_quiet_and_drifted_tables_are_told_by_words_and_exit_code(everfresh: Everfresh, tables: dict[str, Path]) -> None:
    quiet = everfresh("compare", tables["january"], tables["february"], "--categorical", "store")
    assert quiet.returncode == 0, quiet.stderr
    assert quiet.stdout.startswith("quiet: february.parquet looks like january.parquet")
    drifted = everfresh("compare", tables["january"], tables["march"])
    assert drifted.returncode == 3
    assert drifted.stdout.startswith("ALARM: march.parquet differs from january.parquet (p ≤ 0.001)")
    assert "price is higher" in drifted.stdout.splitlines()[0]
    ignored = everfresh("compare", tables["january"], tables["march"], "--ignore", "price")
    assert ignored.returncode == 0


def test_json_and_page(everfresh: Everfresh, tables: dict[str, Path], tmp_path: Path) -> None:
    page = tmp_path / "new" / "drift.html"
    done = everfresh("compare", tables["january"], tables["march"], "--json", "--html", page, "--max-samples", "500")
    assert done.returncode == 3
    found = json.loads(done.stdout)
    assert found["alarm"]
    assert found["columns"][0]["name"] == "price"
    assert found["rows"] == [3000, 800]
    assert found["reference_samples"] == found["current_samples"] == 500
    assert {q["name"] for q in found["quality"]} == {"price", "store", "country"}
    assert "estimated_accuracy" not in found
    assert b"Unpacking the report" in page.read_bytes()
    assert len(gzip.compress(page.read_bytes())) > 100_000


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["january", "nothing"], 1, "must be a table or a folder of Parquet files, got nothing there"),
        (["january", "february", "--ignore", "prize"], 1, "must be there, got 'prize'. The reference has 'price'"),
        (["january", "february", "--rate", "0"], 2, "greater than or equal to 0.0001"),
        (["january"], 2, "current"),
    ],
)
def test_wrong_use_is_told(
    arguments: list[str], code: int, words: str, everfresh: Everfresh, tables: dict[str, Path], tmp_path: Path
) -> None:
    known = {**tables, "nothing": tmp_path / "nothing.parquet"}
    done = everfresh("compare", *(known.get(a, a) for a in arguments))
    assert done.returncode == code
    assert words.lower() in " ".join(done.stderr.lower().split())
    assert "Traceback" not in done.stderr


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Ten times the rows, 300 MB of them, cost less than 80 MB more at the peak."""
    code = """
import re, sys
from pathlib import Path
from everfresh.tasks.config import DriftConfig
from everfresh.tasks.drift.table import compare_tables
reference, current = map(Path, sys.argv[1:])
assert compare_tables(reference, current, DriftConfig(max_samples=1000, permutations=99, false_alarm_rate=0.05)).report.tested
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""
    rng = np.random.default_rng(0)
    peaks = {}
    for name, rows in (("one", 130_000), ("ten", 1_300_000)):
        table = pa.table({f"c{n}": rng.normal(size=rows).astype(np.float32) for n in range(60)})
        pq.write_table(table, tmp_path / name, use_dictionary=False, row_group_size=rows)
        path = (tmp_path / name).rename(tmp_path / f"{name}.parquet")
        done = subprocess.run([sys.executable, "-c", code, str(path), str(path)], capture_output=True, text=True, check=True)
        peaks[name] = int(done.stdout) / 1000
    assert peaks["ten"] - peaks["one"] < 80
