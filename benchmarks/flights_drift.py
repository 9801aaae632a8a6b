"""Drift on a table that is no picture: the flights from New York in 2013, month by month, beside the harm it does.

    FLIGHTS=nyc_flights_2013.parquet python benchmarks/flights_drift.py [--splits 3000]

A gradient-boosting model learns from one half of January–March to tell flights that arrive more than 15 minutes late; the
other half is the reference. Each month after is a window: our verdict over its columns together with the model's score,
Evidently's preset with its defaults over the same sampled rows, and the model's AUC, which neither of them is shown.
Then random splits within the reference, where nothing has changed: how often each of them raises an alarm. Exits 1 if
ours does more often than declared (beyond the 99 % interval).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import binomtest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

from everfresh.tasks.config import DriftConfig
from everfresh.tasks.drift.beside import differences
from everfresh.tasks.drift.report import _tables, quietly
from everfresh.tasks.drift.table import compare_frames, how_it_moved

FEATURES = ["sched_dep_time", "carrier", "origin", "dest", "distance", "hour"]
LATE = 15
RATE = 0.05
"""Of the splits, where 1 % would need thousands of them."""
WINDOW = 500
ASKED = 200
"""Evidently is asked about so many of the splits."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=3000)
    options = parser.parse_args()
    path = os.environ.get("FLIGHTS")
    if not path or not Path(path).is_file():
        sys.exit("FLIGHTS must be the path of nyc_flights_2013.parquet, got " + repr(path))
    warnings.simplefilter("ignore")
    table = pq.read_table(path)
    months = table.column("month").to_numpy()
    rng = np.random.default_rng(2013)
    first = rng.permutation(np.flatnonzero(months <= 3))
    learnt, kept = np.sort(first[: len(first) // 2]), np.sort(first[len(first) // 2 :])
    score = model(table, learnt)
    table = table.append_column("score", pa.array(score)).select([*FEATURES, "arr_delay", "score"])
    reference = table.take(kept)
    late = table.column("arr_delay").to_numpy() > LATE
    print(f"reference: {len(kept):,} flights of January–March, AUC there {roc_auc_score(late[kept], score[kept]):.3f}\n")
    print("| month | p | alarm | what moved, most first | AUC | Evidently's preset | our seconds | Evidently's |")
    print("|---|---|---|---|---|---|---|---|")
    for month in range(4, 13):
        rows = np.flatnonzero(months == month)
        print(month_line(month, reference, table.take(rows), roc_auc_score(late[rows], score[rows])), flush=True)
    sys.exit(splits(reference, options.splits, rng))


def model(table: pa.Table, learnt: np.ndarray) -> np.ndarray:
    """Score (N,) of every flight: probability to arrive late, by what is known before it starts."""
    values = np.stack(
        [
            np.unique(c.cast(pa.string()).to_numpy(), return_inverse=True)[1]
            if pa.types.is_dictionary(c.type)
            else c.to_numpy()
            for c in (table.column(name) for name in FEATURES)
        ],
        axis=1,
    ).astype(float)
    late = table.column("arr_delay").to_numpy() > LATE
    codes = [FEATURES.index(name) for name in ("carrier", "origin", "dest")]
    learner = HistGradientBoostingClassifier(categorical_features=codes, random_state=0).fit(values[learnt], late[learnt])
    return learner.predict_proba(values)[:, 1]


def month_line(month: int, reference: pa.Table, current: pa.Table, auc: float) -> str:
    begun = time.perf_counter()
    drift, first, second = compare_frames(reference, current, DriftConfig(), month)
    ours = time.perf_counter() - begun
    begun = time.perf_counter()
    verdict = preset(*_tables(first, second))
    theirs = time.perf_counter() - begun
    config, report = DriftConfig(), drift.report
    moved = "; ".join(how_it_moved(c) for c in report.columns if c.p_value <= config.false_alarm_rate) or "nothing"
    p, rings = config.p_words(report.p_value).removeprefix("= "), "ALARM" if report.alarm else "quiet"
    return f"| {month} | {p} | {rings} | {moved} | {auc:.3f} | {verdict} | {ours:.1f} | {theirs:.1f} |"


def preset(reference: pd.DataFrame, current: pd.DataFrame) -> str:
    """Verdict of Evidently's preset with its defaults."""
    with quietly():
        from evidently import DataDefinition, Dataset, Report
        from evidently.presets import DataDriftPreset

        numbers = [name for name in reference if reference[name].dtype.kind == "f"]
        texts = [name for name in reference if name not in numbers]
        definition = DataDefinition(numerical_columns=numbers, categorical_columns=texts)
        pair = [Dataset.from_pandas(table, data_definition=definition) for table in (current, reference)]
        found = Report([DataDriftPreset()]).run(*pair).dict()["metrics"][0]["value"]
    verdict = "drifted" if found["share"] >= 0.5 else "not drifted"
    return f"{verdict} ({found['count']:.0f} of {reference.shape[1]} columns)"


def splits(reference: pa.Table, count: int, rng: np.random.Generator) -> bool:
    """Print how often an alarm rings where nothing has changed; whether ours does too often."""
    config = DriftConfig(false_alarm_rate=RATE, permutations=199, min_effect=0)
    rings = {"ours": 0, "Evidently, any column": 0, "Evidently, half of the columns": 0}
    for number in range(count):
        rows = rng.permutation(len(reference))[: 3 * WINDOW]
        drift, first, second = compare_frames(
            reference.take(np.sort(rows[WINDOW:])), reference.take(np.sort(rows[:WINDOW])), config, number
        )
        rings["ours"] += drift.report.alarm
        if number < ASKED:
            beside = differences(*_tables(first, second), drift.report.columns, RATE)
            rings["Evidently, any column"] += any(d.theirs for d in beside.columns)
            rings["Evidently, half of the columns"] += beside.theirs
    print(f"\n{count:,} random splits within the reference (Evidently: {ASKED}), {2 * WINDOW:,} against {WINDOW} rows:")
    for name, found in rings.items():
        asked = count if name == "ours" else min(count, ASKED)
        interval = binomtest(found, asked).proportion_ci(0.99)
        declared = f", declared {RATE:.0%}" if name == "ours" else ""
        print(f"{name}: {found / asked:.1%} alarms ({interval.low:.1%} … {interval.high:.1%}{declared})")
    return binomtest(rings["ours"], count).proportion_ci(0.99).low > RATE


if __name__ == "__main__":
    main()
