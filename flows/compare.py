"""``everfresh compare``: two tables, one verdict, the columns that moved, and what is wrong with their values."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from everfresh.tasks.config import DriftConfig
from everfresh.tasks.drift.quality import ColumnQuality
from everfresh.tasks.drift.table import TableDrift, compare_frames, how_it_moved

MODEL_ONLY = {
    "key", "exceeds", "regime", "nearest", "classes", "slices", "reference_accuracy", "estimated_accuracy", "severity",
    "labels", "since", "files", "schema_version",
}  # fmt: skip
"""Fields of a drift report that say nothing where there is no model."""


def compare(
    reference: Path,
    current: Path,
    *,
    rate: float,
    max_samples: int,
    seed: int,
    categorical: Sequence[str],
    ignore: Sequence[str],
    page: Path | None,
) -> tuple[TableDrift, DriftConfig]:
    """Compare two files, and write Evidently's page of the same samples if it is asked for.

    Raises:
        DataError: a file cannot be read, or their columns differ.
    """
    permutations = max(999, math.ceil(5 / rate))
    config = DriftConfig(false_alarm_rate=rate, max_samples=max_samples, permutations=permutations)
    drift, first, second = compare_frames(reference, current, config, seed, categorical=categorical, ignore=ignore)
    if page is not None:
        from everfresh.tasks.drift.report import write_report

        with tempfile.TemporaryDirectory(prefix="everfresh-") as folder:
            files = write_report(first, second, Path(folder), columns=drift.report.columns, rate=rate)
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_bytes(files["evidently.html"].read_bytes() if files else b"<p>No column varies.</p>\n")
    return drift, config


def as_json(drift: TableDrift) -> dict[str, Any]:
    """What was found, as plain values."""
    plain = drift.report.model_dump(mode="json", exclude=MODEL_ONLY)
    counters = [q.model_dump(mode="json") for q in drift.quality]
    return {**plain, "rows": list(drift.rows), "quality": counters, "left_out": drift.left_out}


def column_table(drift: TableDrift, config: DriftConfig) -> Table:
    """All columns, most drifted first, with what is wrong with their values."""
    table = Table(header_style="bold", pad_edge=False)
    for name in ("", "column", "distance", "p, corrected", "what moved", "values"):
        table.add_column(name, justify="right" if name == "distance" else "left")
    wrong = {q.name: _wrong(q, drift.rows) for q in drift.quality}
    for c in drift.report.columns:
        moved = c.p_value <= config.false_alarm_rate
        words = how_it_moved(c).removeprefix(f"{c.name} ") if moved else "–"
        left = drift.left_out.get(c.name)
        table.add_row(
            "●" if moved else "",
            c.name,
            f"{c.statistic:.3f}",
            config.p_words(c.p_value).removeprefix("= "),
            f"only whether it is there: {left}" if left and not moved else words,
            wrong.pop(c.name, ""),
        )
    for name, words in wrong.items():
        if words and not drift.report.tested:
            table.add_row("", name, "", "", "", words)
    return table


def _wrong(q: ColumnQuality, rows: tuple[int, int]) -> str:
    """What a person would want to know of a column's values, over all rows."""
    shares = [count / max(1, all_) for count, all_ in zip(q.missing, rows, strict=True)]
    found = [f"missing {shares[0]:.1%} → {shares[1]:.1%}"] if any(q.missing) else []
    found += [f"{q.infinite[1]:,} infinite"] if q.infinite[1] else []
    found += [f"{q.below:,} below the reference's range"] if q.below else []
    found += [f"{q.above:,} above it" if q.below else f"{q.above:,} above the reference's range"] if q.above else []
    found += [f"{q.new:,} new ({', '.join(q.new_values[:3])}{' …' if len(q.new_values) > 3 else ''})"] if q.new else []
    return ", ".join(found)


def headline(drift: TableDrift) -> str:
    """The verdict, the sentence, and on how many rows it stands."""
    report = drift.report
    verdict = "ALARM" if report.alarm else "quiet" if report.tested else "not tested"
    counts = [
        f"{taken:,}{f' of {rows:,}' if rows > taken else ''}"
        for taken, rows in zip((report.reference_samples, report.current_samples), drift.rows, strict=True)
    ]
    return f"{verdict}: {report.words} ({counts[0]} rows against {counts[1]})"
