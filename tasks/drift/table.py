"""Whether two tables are from one distribution, without a model: how their columns are tested stands in `columns`.

Memory and time do not grow with the tables beyond one streaming pass over each (`quality`): what is tested is a
seeded sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from everfresh.tasks.config import DriftConfig
from everfresh.tasks.drift import quality, shift
from everfresh.tasks.drift.columns import frame_of, frames_of, kinds_of
from everfresh.tasks.drift.frame import Frame
from everfresh.tasks.drift.quality import ColumnQuality
from everfresh.tasks.records import ColumnDrift, DriftReport, Interval, Record, digest_of

__all__ = ["TableDrift", "compare_frames", "compare_tables", "frame_of", "how_it_moved", "words"]

MIN_SAMPLES = 10
"""With fewer rows on either side nothing is tested."""


class TableDrift(Record):
    """What was found between two tables."""

    report: DriftReport
    """There is no model, so its accuracies say nothing."""
    rows: tuple[int, int]
    """All rows of the reference and of the current table; the report counts those that were sampled."""
    quality: tuple[ColumnQuality, ...]
    """Over all rows."""
    left_out: dict[str, str]
    """Columns of which the values were not tested, and why."""


def compare_tables(
    reference: pa.Table | Path,
    current: pa.Table | Path,
    config: DriftConfig,
    seed: int = 0,
    *,
    categorical: Sequence[str] = (),
    ignore: Sequence[str] = (),
) -> TableDrift:
    """Whether two tables are from one distribution, at the declared rate for all columns together.

    Args:
        reference: the table, or the path of a Parquet, CSV or JSONL file or of a folder of Parquet files.
        current: the same columns.
        config: rate, sample, permutations, effect floor.
        seed: of sample and permutations.
        categorical: columns of numbers that are codes.
        ignore: columns to leave out.

    Raises:
        DataError: a table cannot be read, or their columns differ.
    """
    return compare_frames(reference, current, config, seed, categorical=categorical, ignore=ignore)[0]


def compare_frames(
    reference: pa.Table | Path,
    current: pa.Table | Path,
    config: DriftConfig,
    seed: int = 0,
    *,
    categorical: Sequence[str] = (),
    ignore: Sequence[str] = (),
) -> tuple[TableDrift, Frame, Frame]:
    """As `compare_tables`, with the two samples, for who wants to draw them."""
    kinds = kinds_of(quality.schema_of(reference), quality.schema_of(current), categorical=categorical, ignore=ignore)
    ours = quality.scan(reference, config.max_samples, [seed, 1], list(kinds))
    theirs = quality.scan(current, config.max_samples, [seed, 2], list(kinds), ours)
    kept = [name for name in categorical if name in kinds]
    first, second, left_out = frames_of(ours.sample, theirs.sample, categorical=kept)
    names = [source.name if isinstance(source, Path) else "table" for source in (reference, current)]
    report = _report(names, first, second, config, seed)
    drift = TableDrift(report=report, rows=(ours.rows, theirs.rows), quality=quality.compared(ours, theirs), left_out=left_out)
    return drift, first, second


def _report(names: Sequence[str], reference: Frame, current: Frame, config: DriftConfig, seed: int) -> DriftReport:
    tested = min(len(reference), len(current)) >= MIN_SAMPLES
    found = (
        shift.compare(names[0], reference, current, components=config.components, permutations=config.permutations, seed=seed)
        if tested
        else shift.Shift(names[0], 1.0, (), reference, {})
    )
    auc = shift.classifier_auc(reference, current, seed) if tested else None
    score = max(found.score, 2 * (auc or 0.5) - 1)
    exceeds = found.p_value <= config.false_alarm_rate and score >= config.min_effect
    return DriftReport(
        key=digest_of("compare", 1, *names, config, seed),
        view=names[1],
        reference=names[0],
        reference_samples=len(reference),
        current_samples=len(current),
        exceeds=exceeds,
        alarm=exceeds,
        tested=tested,
        p_value=found.p_value,
        score=score,
        auc=auc,
        families=found.families,
        nearest=names[0],
        columns=found.columns,
        reference_accuracy=0.0,
        estimated_accuracy=Interval(value=0.0, low=0.0, high=1.0),
        severity=0.0,
        labels=None,
        words=words(names, found.columns, found.p_value, config, tested=tested, alarm=exceeds),
        files={},
    )


def words(
    names: Sequence[str], columns: Sequence[ColumnDrift], p_value: float, config: DriftConfig, *, tested: bool, alarm: bool
) -> str:
    """What was found, in one sentence."""
    if not tested:
        return f"{names[1]} was not tested against {names[0]}: both need at least {MIN_SAMPLES} rows."
    p = f"p {config.p_words(p_value)}"
    if not alarm:
        small = ", though by too little to matter" if p_value <= config.false_alarm_rate else ""
        return f"{names[1]} looks like {names[0]}{small}: {p} over {len(columns)} columns together."
    moved = [c for c in columns if c.p_value <= config.false_alarm_rate]
    most = "; ".join(how_it_moved(c) for c in moved[:3]) or "no single column, all of them together"
    return f"{names[1]} differs from {names[0]} ({p}) in {len(moved)} of {len(columns)} columns: {most}."


def how_it_moved(column: ColumnDrift) -> str:
    """One column in words."""
    before, here = column.missing
    if abs(here - before) >= max(0.02, column.statistic / 2):
        return f"{column.name} is missing in {here:.0%} of the rows ({before:.0%} before)"
    if column.new_categories:
        return f"{column.name} has new values such as {', '.join(column.new_categories[:2])} ({column.statistic:.0%} moved)"
    if column.kind == "categorical":
        return f"{column.statistic:.0%} of {column.name} has other values"
    if not np.isfinite(column.effect) or abs(column.effect) < 0.1:
        return f"{column.name} has another spread"
    return f"{column.name} is {'higher' if column.effect > 0 else 'lower'} ({column.effect:+.1f} SD)"
