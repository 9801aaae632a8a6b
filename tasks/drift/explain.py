"""The drift of one window on one page, for people: as HTML and as one picture.

Nothing is measured here. `drift.html` needs no script and no network, reads on a phone and prints on one sheet;
`drift.png` is the same page for places that show pictures, such as an artifact of a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from everfresh.tasks.charts import WIDTH
from everfresh.tasks.drift import phrases
from everfresh.tasks.drift.curves import class_shares, timeline
from everfresh.tasks.drift.pictures import column_panel, moved
from everfresh.tasks.drift.poster import Page, write_poster
from everfresh.tasks.drift.words import sentence
from everfresh.tasks.pages import Panel, p_words, percent, render, short
from everfresh.tasks.records import ColumnDrift, DriftPoint, DriftReport, SliceDrift

if TYPE_CHECKING:
    pass

PANELS = 6
"""Columns shown."""
SAMPLES = 8
"""Pictures of each kind shown."""
SLICES = 5
WINDOWS = 40
"""Windows on the timeline, this one included."""
_SHARES_WIDTH = 310
_FAMILIES = {
    "columns": "columns",
    "outputs": "the model's answers",
    "components": "embedding, by direction",
    "joint": "columns and answers together",
    "classifier": "classifier",
    "mmd": "embedding (MMD)",
    "novelty": "novelty",
    "concept": "errors at equal samples",
}

Values = tuple[NDArray[Any], NDArray[Any]]
Samples = Sequence[tuple[bytes, str]]


def page(
    report: DriftReport,
    history: Sequence[DriftPoint],
    values: Mapping[str, Values],
    unusual: Samples,
    typical: Samples,
    folder: Path,
    *,
    pipeline: str = "",
    beside: Sequence[str] = (),
) -> dict[str, Path]:
    """Write the page.

    Args:
        report: what was measured; its `words` head the page, made from it where it has none.
        history: windows so far, oldest first, this one last.
        values: of the columns compared, by name: reference (N,) and current (M,), numbers or categories.
        unusual: the window's most unusual samples, strangest first: encoded picture and caption of two short lines.
            Empty for a table.
        typical: likewise, of the reference.
        folder: where to write; made if it is not there.
        pipeline: its name, for the title.
        beside: names of files in the same folder that the page links to.

    Returns:
        ``drift.html`` and ``drift.png``, the latter under 400 kB.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = _page(report, history, values, unusual, typical, pipeline)
    files = {name: folder / name for name in ("drift.html", "drift.png")}
    files["drift.html"].write_text(render("drift.html.j2", page=found, beside=beside), encoding="utf-8")
    write_poster(found, files["drift.png"])
    return files


def _page(
    report: DriftReport,
    history: Sequence[DriftPoint],
    values: Mapping[str, Values],
    unusual: Samples,
    typical: Samples,
    pipeline: str,
) -> Page:
    points = list(history)[-WINDOWS:]
    here = points[-1] if points and points[-1].drift == report.key else None
    window = here.seq if here else None
    classes = class_shares(report.classes, _SHARES_WIDTH if points else WIDTH // 2) if report.classes else None
    line = timeline(points, report.since, WIDTH - (_SHARES_WIDTH if classes else 0)) if points else None
    columns = shown_columns(report, values)
    return Page(
        title=" · ".join(
            part
            for part in (
                "Everfresh",
                short(pipeline, 60),
                f"window {window}" if window is not None else "",
                f"{here.at:%Y-%m-%d %H:%M} UTC" if here else "",
            )
            if part
        ),
        badge=_badge(report),
        sentence=report.words or sentence(report, window),
        facts=_facts(report),
        timeline=Panel(line, _timeline_alt(points)) if line else None,
        classes=Panel(classes, _classes_alt(report)) if classes else None,
        columns_title="What moved, most important first" if any(_clear(c) for c in columns) else "No column moved clearly",
        columns=[Panel(column_panel(c, *values[c.name]), f"{phrases.named(c)}: {moved(c)}") for c in columns],
        counts=(report.reference_samples, report.current_samples),
        unusual=tuple(unusual[:SAMPLES]),
        typical=tuple(typical[:SAMPLES]),
        slices=[_slice_row(s) for s in report.slices if s.reference_accuracy - s.estimated_accuracy >= 0.005][:SLICES],
        notes=_notes(report),
    )


def shown_columns(report: DriftReport, values: Mapping[str, Values]) -> list[ColumnDrift]:
    """Columns to draw: those that moved, readable ones first, up to six; if few did, three all the same."""
    drawn = [c for c in report.columns if c.name in values and all(len(v) for v in values[c.name])]
    varied = [c for c in drawn if _varies(values[c.name])]
    clear = [c for c in varied if _clear(c)]
    clear = sorted(clear, key=lambda c: (phrases.made_by_model(c.name), c.name.startswith("embedding ")))  # stable
    rest = sorted((c for c in varied if c not in clear), key=lambda c: phrases.made_by_model(c.name))
    return clear[:PANELS] if len(clear) >= 3 else [*clear, *rest][:3]


def _clear(column: ColumnDrift) -> bool:
    return column.p_value < phrases.CLEAR


def _varies(pair: Values) -> bool:
    return any(len(np.unique(part[:1000])) > 1 for part in pair) or pair[0][0] != pair[1][0]


def _badge(report: DriftReport) -> tuple[str, str]:
    """The verdict in two words, and which colour it has."""
    if not report.tested:
        return "Not tested", "grey"
    if report.alarm:
        return "Drift alarm", "red"
    return ("Drift, no alarm", "amber") if report.exceeds else ("Quiet", "green")


def _facts(report: DriftReport) -> list[tuple[str, str]]:
    """The few numbers that matter, by name."""
    guess = report.estimated_accuracy
    facts = [("accuracy proven", f"{report.reference_accuracy:.2f}")]
    if report.labels:
        real = report.labels.champion
        facts.append(
            (f"measured now on {report.labels.samples:,} labels", f"{real.value:.2f} ({real.low:.2f}–{real.high:.2f})")
        )
    facts.append(("estimated now without labels", f"{guess.value:.2f} ({guess.low:.2f}–{guess.high:.2f})"))
    if report.tested:
        facts.append(("chance if nothing had moved", p_words(report.p_value)))
    return facts


def _slice_row(part: SliceDrift) -> tuple[str, str, str, str]:
    column = "predicted" if part.column == "prediction" else short(part.column, 16)
    return (
        f"{column} {short(part.value, 18) or '(none)'}",
        f"{part.samples:,}",
        f"{part.reference_accuracy:.2f} → {part.estimated_accuracy:.2f}",
        f"{(part.estimated_accuracy - part.reference_accuracy) * 100:+.0f}".replace("-", "−"),
    )


def _notes(report: DriftReport) -> list[str]:
    """Small print: what stands behind the verdict."""
    notes = [
        f"{report.current_samples:,} samples of this window against {report.reference_samples:,} of "
        f"{short(report.nearest, 30)}, which the champion never learnt from."
    ]
    if report.families:
        each = ", ".join(
            f"{_FAMILIES.get(f.name, short(f.name))} {p_words(f.p_value)[2:].lstrip('= ')}" for f in report.families
        )
        notes.append(f"p by family of tests: {each}; all together {p_words(report.p_value)}.")
    if report.auc is not None:
        notes.append(f"A classifier tells window from reference with AUC {report.auc:.2f} (0.5 is chance, 1 always).")
    if report.classes:
        notes.append(
            "Class shares hold if each class looks as it did; where pictures changed they are the champion's mistakes."
        )
    notes.append("SD: standard deviations of the reference. Columns' p are corrected for how many were looked at.")
    return notes


def _timeline_alt(points: Sequence[DriftPoint]) -> str:
    said = ", ".join(f"{p.seq}: {p.estimated_loss * 100:.0f}{' (alarm)' if p.alarm else ''}" for p in points[-12:])
    return f"Estimated loss of accuracy in points by window. {said}".replace("-", "−")


def _classes_alt(report: DriftReport) -> str:
    each = ", ".join(f"{short(c.name)} {percent(c.reference)} → {percent(c.estimated.value)}" for c in report.classes[:10])
    return f"Share of each class, reference → this window. {each}"
