"""An evaluation on one page, for people: what the gates said and why, where it helps, and whom it fails.

Nothing is decided here, and what fails here fails no evaluation. `report.html` needs no script and no network, reads on
a phone and prints; `slices.png` is its most important picture, for an artifact of a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from everfresh.tasks.charts import data_uri, save
from everfresh.tasks.evaluation_page.drawings import reliability_picture, shown_slices, slices_picture
from everfresh.tasks.evaluation_page.flips import Flip, shown_flips
from everfresh.tasks.evaluation_page.numbers import Metric, SliceRow, calibrated, flips, metrics, slice_rows
from everfresh.tasks.evaluation_page.samples import joined
from everfresh.tasks.evaluation_page.words import MARKS, difference_words, named, points, sentence
from everfresh.tasks.gates import Judged, Trial
from everfresh.tasks.pages import Panel, percent, render, short
from everfresh.tasks.records import Candidate, Evaluation, Interval, Verdict

PAGE, SLICES = "report.html", "slices.png"
HERE, EARLIER = "this window's hold-out", "earlier hold-outs"
LISTED = 3
"""Flagged slices that the head names, of each set of samples."""


@dataclass(frozen=True)
class Gate:
    """One verdict, as the page shows it."""

    mark: str
    outcome: str
    name: str
    words: str
    resolves: str
    numbers: str


@dataclass(frozen=True)
class Table:
    """Scores of both models on one set of samples."""

    title: str
    rows: list[tuple[str, str, str, str]]
    """Name, challenger, champion, difference."""


@dataclass(frozen=True)
class Page:
    """All that stands on the page."""

    title: str
    badge: tuple[str, str]
    sentence: str
    warnings: list[tuple[str, str]]
    """Whom the challenger fails, and how."""
    facts: list[tuple[str, str]]
    gates: list[Gate]
    slices: list[tuple[str, Panel]]
    """Of which samples, and the picture."""
    tables: list[Table]
    answers: tuple[str, str] | None
    """The picture of both models' answers as a URI, and what it shows."""
    reliability: Panel | None
    lost: list[Flip]
    won: list[Flip]
    counts: tuple[int, int]
    """Negative and positive flips in all."""
    costs: list[tuple[str, ...]]
    notes: list[str]
    pictures: bool
    """Whether samples are pictures."""


def write_page(
    evaluation: Evaluation,
    trial: Trial,
    folder: Path,
    *,
    pipeline: str,
    seq: int,
    version: int | None,
    tried: Sequence[Candidate],
    answers: tuple[Path, str] | None = None,
) -> dict[str, Path]:
    """Write the page.

    Args:
        evaluation: the record, but for its `files`.
        trial: both models, and what they said of the held-out samples.
        folder: where to write; made if it is not there.
        pipeline: its name, for the title.
        seq: of the window.
        version: number of the champion's release; None without one.
        tried: the rungs on whose weights the challenger builds, cheapest first, itself last.
        answers: PNG of both models' answers on the window, and what it shows.

    Returns:
        ``report.html``, and ``slices.png`` where the samples have slices.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = _page(evaluation, trial, pipeline, seq, version, tried, answers)
    files = {PAGE: folder / PAGE}
    files[PAGE].write_text(render("evaluation.html.j2", page=page), encoding="utf-8")
    if page.slices:
        files[SLICES] = save(page.slices[0][1].figure, folder / SLICES)
    return files


def _page(
    evaluation: Evaluation,
    trial: Trial,
    pipeline: str,
    seq: int,
    version: int | None,
    tried: Sequence[Candidate],
    answers: tuple[Path, str] | None,
) -> Page:
    window, bank, challenger = trial.window, trial.bank, tried[-1]
    whole = joined(window, bank)
    sets = [(name, part, slice_rows(part)) for name, part in ((HERE, window), (EARLIER, bank))]
    lost, won = flips(whole)
    models = (trial.challenger, trial.champion)
    return Page(
        title=f"Everfresh · {short(pipeline, 60)} · window {seq} · {challenger.rung} against {named(version)}",
        badge=("Passed", "green") if evaluation.passed else ("Rejected", "red"),
        sentence=sentence(evaluation, challenger.rung, version),
        warnings=[line for name, _, rows in sets for line in warnings(rows, name)],
        facts=_facts(evaluation, len(lost), len(won)),
        gates=[_gate(v) for v in evaluation.verdicts],
        slices=[(name, panel) for name, part, rows in sets if (panel := _slices(part, rows))],
        tables=[
            Table(title, [_metric(m) for m in metrics(judged, on, evaluation.key)])
            for title, judged, on in (
                (f"Scores on {HERE}, {len(window.labels):,} samples", window, evaluation.window),
                (f"Scores on {EARLIER}, {len(bank.labels):,} samples", bank, evaluation.bank),
            )
            if on is not None and len(judged.labels)
        ],
        answers=(data_uri(answers[0]), answers[1]) if answers else None,
        reliability=_reliability(window),
        lost=shown_flips(whole, lost, *models, explained=4),
        won=shown_flips(whole, won, *models, explained=2),
        counts=(len(lost), len(won)),
        costs=[*(_cost(c) for c in tried[:-1]), _cost(challenger, evaluation.window.gain, f"{len(lost):,} / {len(won):,}")],
        notes=_notes(evaluation, challenger),
        pictures=not challenger.spec.features,
    )


# --- words ---------------------------------------------------------------------------------------------------------


def warnings(rows: Sequence[SliceRow], where: str) -> list[tuple[str, str]]:
    """Whom the challenger fails beyond chance: columns of the source first, then labels and windows, the worst first."""
    flagged = sorted((row for row in rows if row.flagged), key=lambda row: (row.built_in, row.gap))
    found = []
    for row in flagged[:LISTED]:
        was = f"; the champion {percent(row.champion.value)}" if row.champion else ""
        found.append(
            (
                f"{short(row.column, 24)} = {short(row.value, 24) or '(none)'}",
                f": {percent(row.challenger.value)} right, all others {percent(row.others)} ({points(row.gap)}, "
                f"{row.samples:,} samples of {where}{was})",
            )
        )
    if len(flagged) > LISTED:
        found.append(("", f"and {len(flagged) - LISTED} more of {where}"))
    return found


def _facts(evaluation: Evaluation, lost: int, won: int) -> list[tuple[str, str]]:
    here = evaluation.window
    facts = [(f"challenger right, of {here.challenger.samples:,}", f"{here.challenger.accuracy:.1%}")]
    if here.champion is not None:
        facts.append(("champion right", f"{here.champion.accuracy:.1%}"))
    if here.gain is not None:
        facts.append(("gain, 95 % interval", difference_words(here.gain, share=True)))
    if evaluation.bank is not None and evaluation.bank.gain is not None:
        facts.append(("gain on earlier hold-outs", difference_words(evaluation.bank.gain, share=True)))
    if here.champion is not None:
        facts.append(("negative / positive flips", f"{lost:,} / {won:,}"))
    return facts


def _gate(verdict: Verdict) -> Gate:
    return Gate(
        mark=MARKS[verdict.outcome],
        outcome=verdict.outcome,
        name=short(verdict.gate, 30),
        words=verdict.words.removeprefix(f"{verdict.gate}: "),
        resolves=verdict.resolves,
        numbers=" · ".join(f"{short(name, 30).replace('_', ' ')} {value:.4g}" for name, value in verdict.numbers.items()),
    )


def _metric(metric: Metric) -> tuple[str, str, str, str]:
    share = metric.name not in ("loss", "mae", "rmse", "r2", "ece")
    name = {"ece": "ECE", "f1": "F1", "mae": "MAE", "rmse": "RMSE", "r2": "R²"}.get(metric.name, metric.name.replace("_", " "))
    champion, difference = metric.champion, metric.difference
    return (
        name,
        _value(metric.challenger, share),
        "–" if champion is None else _value(champion, share),
        "–" if difference is None else difference_words(difference, share=share),
    )


def _value(found: Interval, share: bool) -> str:
    said = [f"{v:.1%}" if share else f"{v:.3g}" for v in (found.value, found.low, found.high)]
    return said[0] if found.low == found.high else f"{said[0]} ({said[1]} … {said[2]})"


def _cost(candidate: Candidate, proven: Interval | None = None, flipped: str = "–") -> tuple[str, ...]:
    gain = "–" if candidate.gain is None else f"{candidate.gain * 100:+.1f}".replace("-", "−")
    return (
        candidate.rung,
        f"{candidate.cost.device_seconds:.1f}",
        candidate.device,
        f"{candidate.reached:.1%}",
        gain,
        "–" if proven is None else difference_words(proven, share=True),
        flipped,
    )


def _notes(evaluation: Evaluation, challenger: Candidate) -> list[str]:
    notes = [
        "Neither model learnt from any of these samples. Intervals hold 95 %: Wilson's for shares, else the bootstrap over "
        "samples, paired for differences.",
        "Red slices: fewer right answers than chance gives, by Fisher's exact test against the other samples, at 5 % over all "
        "slices together (Holm).",
    ]
    if evaluation.champion is not None:
        notes.append(
            "A negative flip was right before and is wrong now, on any held-out sample. The surest mistakes come first."
        )
    if challenger.spec.features:
        notes.append("Reasons: integrated gradients from a row of means. A hint, no proof.")
    else:
        notes.append("Lit: where each model looked for its own answer (Grad-CAM, or gradients by pixel). A hint, no proof.")
    if evaluation.trust != "trusted":
        notes.append(f"The window's labels are {evaluation.trust}.")
    notes.append(f"Evaluation {evaluation.key}, candidate {evaluation.candidate}, against move {evaluation.champion_move}.")
    return notes


# --- drawings ------------------------------------------------------------------------------------------------------


def _slices(judged: Judged, rows: list[SliceRow]) -> Panel | None:
    groups = shown_slices(rows)
    if not groups:
        return None
    shown = [row for group in groups for row in group]
    said = "; ".join(
        f"{short(row.column)} {short(row.value)} {percent(row.challenger.value)}{' (worse beyond chance)' * row.flagged}"
        for row in shown
    )
    drawn = slices_picture(groups, float(judged.right().mean()), len(rows) - len(shown))
    return Panel(drawn, f"Accuracy of the challenger by slice, worst first. {said}")


def _reliability(window: Judged) -> Panel | None:
    if window.targets.task == "regression" or not len(window.labels):
        return None
    models = [("challenger", calibrated(window, window.challenger))]
    if window.champion is not None:
        models.insert(0, ("champion now", calibrated(window, window.champion)))
    said: Mapping[str, float] = {name: found.error for name, found in models}
    each = ", ".join(f"{name} {error:.3f}" for name, error in said.items())
    return Panel(reliability_picture(models), f"How often each model is right against how sure it is; ECE: {each}")
