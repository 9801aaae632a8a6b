"""Rows of a small table whose rule can turn: the loop without pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from torch import nn

from everfresh.tasks.config import PipelineConfig, parse_config

CLASSES = ("no", "yes")
SITES = ("north", "south")
FEATURES: list[Any] = ["load", "heat", {"name": "site", "categories": list(SITES)}]


def mlp(classes: int, features: int) -> nn.Module:
    """The network of a user who has a table."""
    return nn.Sequential(nn.Linear(features, 16), nn.ReLU(), nn.Linear(16, classes))


def table(count: int, seed: int = 0, *, start: int = 0, moved: bool = False, **columns: Any) -> pa.Table:
    """Rows in order of time, an hour apart: yes where load exceeds heat.

    Where the world has `moved`, to a site that nobody declared, load reads 40 higher than it is.
    """
    rng = np.random.default_rng(seed)
    load, heat = rng.normal(100, 20, count), rng.normal(100, 20, count)
    yes = load > heat
    times = np.datetime64("2026-01-01", "s") + (start + np.arange(count)) * np.timedelta64(3600, "s")
    made = {
        "load": load + 40 * moved,
        "heat": heat,
        "site": rng.choice(["east"] if moved else SITES, count),
        "broken": np.where(yes, "yes", "no"),
        "time": pa.array(times, pa.timestamp("us", "UTC")),
        "line": rng.choice(["a", "b"], count),
    }
    return pa.table(made | columns)


def write(path: Path, rows: pa.Table, **options: Any) -> Path:
    """As a Parquet or CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(rows, path)
    else:
        pq.write_table(rows, path, **options)
    return path


def pipeline(folder: Path, **changes: Any) -> PipelineConfig:
    """A pipeline over the tables of ``<folder>/inbox``; a mapping changes single fields of a section."""
    raw: dict[str, Any] = {
        "name": "tables",
        "store": str(folder / "store"),
        "source": {
            "kind": "rows",
            "paths": [str(folder / "inbox")],
            "label_column": "broken",
            "timestamp_column": "time",
            "slice_columns": ["line"],
        },
        "window": {"holdout_fraction": 0.3, "tune_fraction": 0.15},
        "model": {"architecture": "support.tables:mlp", "weights": None, "classes": CLASSES, "features": FEATURES},
        "evaluation": {"report": False},
        "drift": {"report": False, "permutations": 199, "components": 4},
        "release": {"formats": []},  # which cost seconds; tests of them say so
        "policy": {"bootstrap": "pretrained", "ladder": ["head", "full"]},
        "fine_tune": {"epochs": 12, "batch_size": 16, "learning_rate": 0.02},
    }
    for name, change in changes.items():
        raw[name] = raw.get(name, {}) | change if isinstance(change, dict) else change
    return parse_config(raw)
