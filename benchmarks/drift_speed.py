"""What our drift tests cost against Evidently's preset: 10,000 + 10,000 rows × (512 embedding + 30 columns).

    python benchmarks/drift_speed.py [--pairs 3] [--rows 10000]

Each side runs in a process of its own, in turn, A B A B …; a process loads its libraries first, works once on a small
part of the table so that nothing is made for the first time under the clock, and then is timed. Ours is the whole of
``shift.compare`` over the bounded sample that the pipeline takes of 10,000 rows (``drift.max_samples`` = 5,000) and over
all 10,000; Evidently's is ``Report([DataDriftPreset()]).run`` over the same 542 columns and all rows, without its HTML.
The floor is what sorting each column of both tables once takes. Then the readable report (34 columns, HTML and JSON), and
how ours grows with 10 × the window, the pass that reads it from Parquet and counts what is wrong with it included.

Promises are judged on processor seconds of one thread: those of an idle machine, which others on a shared one do not move.
Seconds of the clock stand beside them.

Promised: at most 1/20 of Evidently's seconds and 2 GB; the report adds at most 5 s; 10 × the window < 2 × the time.
Exits 1 if one is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SHARED = """
import json, os, re, resource, sys, tempfile, time, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import numpy as np, pandas as pd, pyarrow as pa, pyarrow.parquet as pq
reference, current = Path(sys.argv[1]), Path(sys.argv[2])
def done(**more):
    peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
    print(json.dumps({"peak": peak / 1e6, **more}))
def timed(work):
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    return {"seconds": time.perf_counter() - clock, "cpu": time.process_time() - cpu}
"""
FRAMES = """
from everfresh.tasks.config import DriftConfig
from everfresh.tasks.drift import shift
from everfresh.tasks.drift.columns import frames_of
config = DriftConfig()
def frames(most=None):
    rows = [pq.read_table(p) for p in (reference, current)]
    return frames_of(*(t.slice(0, most) if most else t for t in rows))[:2]
def compare(pair):
    shift.compare("r", *pair, components=config.components, permutations=config.permutations, seed=0)
"""
OURS = (
    SHARED
    + FRAMES
    + """
compare(frames(300))
pair = frames(int(sys.argv[3]))
done(**timed(lambda: compare(pair)))
"""
)
EVIDENTLY = (
    SHARED
    + """
os.environ["DO_NOT_TRACK"] = "1"
from evidently import DataDefinition, Dataset, Report
from evidently.presets import DataDriftPreset
def table(path):
    rows = pq.read_table(path)
    vectors = np.stack(rows.column("embedding").to_pylist())
    return pd.concat([rows.drop_columns(["embedding"]).to_pandas(), pd.DataFrame(vectors).add_prefix("e")], axis=1)
pair = [table(p) for p in (current, reference)]
texts = [c for c in pair[0] if pair[0][c].dtype.kind not in "fi"]
definition = DataDefinition(numerical_columns=[c for c in pair[0] if c not in texts], categorical_columns=texts)
def run(rows):
    with np.errstate(all="ignore"):
        Report([DataDriftPreset()]).run(*(Dataset.from_pandas(t[:rows], data_definition=definition) for t in pair))
small = [c for c in pair[0]][:34]
Report([DataDriftPreset(columns=small)]).run(*(Dataset.from_pandas(t[:300], data_definition=definition) for t in pair))
done(**timed(lambda: run(None)), columns=pair[0].shape[1])
"""
)
FLOOR = (
    SHARED
    + """
tables = [pq.read_table(p) for p in (reference, current)]
columns = [np.concatenate([np.asarray(t.column(n).to_numpy(zero_copy_only=False), dtype=float) for t in tables])
           for n, f in zip(tables[0].schema.names, tables[0].schema) if pa.types.is_floating(f.type)]
vectors = np.concatenate([np.stack(t.column("embedding").to_pylist()) for t in tables]).astype(float)
columns += [np.ascontiguousarray(c) for c in vectors.T]
done(**timed(lambda: [np.argsort(c, kind="stable") for c in columns]), columns=len(columns))
"""
)
REPORT = (
    SHARED
    + FRAMES
    + """
pair = frames()
columns = shift.compare("r", *frames(300), components=4, permutations=99, seed=0).columns
import torch, sklearn.neighbors, scipy.stats
from everfresh.tasks.drift.report import quietly, write_report
def load():
    with quietly():
        import evidently, evidently.presets
loading = timed(load)
with tempfile.TemporaryDirectory() as folder:
    small = [f.take(np.arange(100)) for f in pair]
    write_report(*small, Path(folder) / "first", columns=columns)
    found = timed(lambda: write_report(*pair, Path(folder) / "second", columns=columns))
done(**found, loading=loading["cpu"])
"""
)
WHOLE = (
    SHARED
    + """
from everfresh.tasks.config import DriftConfig
from everfresh.tasks.drift import quality
from everfresh.tasks.drift.table import compare_tables
small = [pq.ParquetFile(p).read_row_group(0).slice(0, 300) for p in (reference, current)]
compare_tables(*small, DriftConfig())
names = quality.schema_of(reference).names
scanning = timed(lambda: quality.scan(current, DriftConfig().max_samples, 0, names))
done(**timed(lambda: compare_tables(reference, current, DriftConfig())), scanning=scanning["cpu"])
"""
)
WRITE = (
    SHARED
    + """
rows, seed = int(sys.argv[3]), int(sys.argv[4])
rng = np.random.default_rng(seed)
made = {f"n{i}": rng.normal(size=rows) for i in range(24)}
made |= {f"c{i}": pa.array(rng.choice([f"k{k}" for k in range(3 + 2 * i)], rows)) for i in range(6)}
schema = None
with pq.ParquetWriter(reference, pa.schema([*((n, pa.array(v[:1]).type) for n, v in made.items()),
                                            ("embedding", pa.list_(pa.float32(), 512))]), use_dictionary=False) as out:
    mixing = np.random.default_rng(99).normal(size=(64, 512))
    for start in range(0, rows, 10_000):  # embeddings lie near a plane, as real ones do
        size = min(10_000, rows - start)
        vectors = (rng.normal(size=(size, 64)) @ mixing + rng.normal(size=(size, 512))).astype(np.float32)
        part = {n: v[start : start + size] for n, v in made.items()}
        out.write_table(pa.table(part | {"embedding": pa.FixedSizeListArray.from_arrays(vectors.ravel(), 512)}))
"""
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--rows", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="everfresh-speed-") as folder:
        files = {name: Path(folder) / f"{name}.parquet" for name in ("reference", "current", "ten")}
        for seed, (name, path) in enumerate(files.items()):
            spawn(WRITE, path, path, options.rows * (10 if name == "ten" else 1), seed)
        sys.exit(not all(list(measure(files, options.pairs, options.rows))))


def measure(files: dict[str, Path], pairs: int, rows: int) -> list[bool]:
    """Print every figure; whether each promise is kept."""
    reference, current, ten = files.values()
    ours, theirs, grown = {"sample": [], "all": []}, [], {"one": [], "ten": []}
    for number in range(pairs):
        ours["sample"].append(spawn(OURS, reference, current, min(rows, 5_000)))
        if number == 0:  # minutes each: once
            theirs.append(spawn(EVIDENTLY, reference, current))
        ours["all"].append(spawn(OURS, reference, current, rows))
        grown["one"].append(spawn(WHOLE, reference, current))
        grown["ten"].append(spawn(WHOLE, reference, ten))
    floor = spawn(FLOOR, reference, current)
    report = [spawn(REPORT, reference, current) for _ in range(pairs)]
    base = middle(theirs, "cpu")
    print(f"{rows:,} + {rows:,} rows × 542 columns; {pairs} interleaved runs, Evidently's once; {os.cpu_count()} cores\n")
    print("| | processor seconds, median (least … most) | of the clock | peak memory | of Evidently's |\n|---|---|---|---|---|")
    line("Evidently's preset, all rows", theirs, base)
    line("our tests, 5,000 + 5,000 sampled as the pipeline does", ours["sample"], base)
    line("our tests, all rows", ours["all"], base)
    line(f"floor: sorting the {floor['columns']} columns of numbers", [floor], base)
    line("two Parquet files to the verdict", grown["one"], base)
    line("the same, the window 10 × as large", grown["ten"], base)
    line("Evidently's readable report, HTML and JSON", report, base)
    passes = [middle(runs, "scanning") for runs in grown.values()]
    print(f"\nloading Evidently, once a process: {middle(report, 'loading'):.1f} s")
    print(f"one pass over the window: {passes[0]:.2f} s, over 10 × it {passes[1]:.2f} s\n")
    peak = max(run["peak"] for runs in (*ours.values(), *grown.values()) for run in runs)
    growth = statistics.median(b["cpu"] / a["cpu"] for a, b in zip(grown["one"], grown["ten"], strict=True))
    return [
        promise("our tests / Evidently's preset", middle(ours["sample"], "cpu") / base, 1 / 20),
        promise("the same, all rows tested", middle(ours["all"], "cpu") / base, 1 / 20),
        promise("peak memory of ours, GB", peak, 2),
        promise("seconds that the readable report adds", middle(report, "cpu"), 5),
        promise("time for 10 × the window", growth, 2),
    ]  # fmt: skip


def spawn(code: str, *arguments: object) -> dict[str, float]:
    """Run a side in a process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1"}, check=True
    )
    return json.loads(done.stdout) if done.stdout else {}


def middle(runs: list[dict[str, float]], name: str) -> float:
    return statistics.median(run[name] for run in runs)


def line(name: str, runs: list[dict[str, float]], base: float) -> None:
    seconds = [run["cpu"] for run in runs]
    spread = f" ({min(seconds):.2f} … {max(seconds):.2f})" if len(runs) > 1 else ""
    peak, median = max(run["peak"] for run in runs), statistics.median(seconds)
    print(f"| {name} | {median:.2f}{spread} | {middle(runs, 'seconds'):.1f} | {peak:.2f} GB | 1/{base / median:.1f} |")


def promise(name: str, value: float, most: float) -> bool:
    kept = value <= most
    print(f"{'kept  ' if kept else 'BROKEN'} {name}: {value:.3g}, at most {most:.3g}")
    return kept


if __name__ == "__main__":
    main()
