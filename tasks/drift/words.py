"""What a drift report says, in one sentence that a manager reads.

A shift moves many things at once, so the sentence leads with the one that explains the rest:

- the **classes**, if their estimated shares moved by about as much as a classifier can tell the window apart at all, and
  explain the columns too: a class that vanished drags properties, confidence and embedding with it;
- pictures **unlike any known**, if the classifier tells them apart far better than any property of the picture would:
  another origin is also brighter or paler, and that is not the point;
- else the **columns**, by corrected p and then effect: noise, darkness, new categories, missing values.

Estimated class shares assume that each class looks as it did; where pictures changed they are the champion's mistakes,
which is why they lead in the first case alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from everfresh.tasks.drift.phrases import CLEAR, class_words, column_words, made_by_model, missing_change, sd
from everfresh.tasks.pages import p_words, short
from everfresh.tasks.records import ClassShift, ColumnDrift, DriftReport

HOLDS = 0.01
"""Loss of accuracy that is none."""
MISTAKEN = 0.25
"""Loss of accuracy from which on other answers are the champion's mistakes and no other classes."""
MOST = 200
"""Letters of a sentence, about."""
_ADJECTIVES = {
    "brightness": ("darker", "brighter"),
    "contrast": ("flatter", "richer in contrast"),
    "sharpness": ("blurrier", "noisier or sharper"),
    "colourfulness": ("paler", "more colourful"),
    "aspect": ("narrower", "wider"),
    "pixels": ("smaller", "larger"),
}
_OF_PICTURES = frozenset(_ADJECTIVES)
_OF_MODEL = frozenset({"confidence", "prediction"})


def sentence(report: DriftReport, window: int | None = None) -> str:
    """Since when, what moved, what it costs and where most; or that nothing did.

    Args:
        report: what was measured.
        window: its number in the stream; a sentence that needs one says "this window" without.
    """
    this = f"window {window}" if window is not None else "this window"
    if not report.tested:
        return (
            f"{_capital(this)} has too few samples to tell: {report.current_samples:,} here, "
            f"{report.reference_samples:,} in the reference"
        )
    if not (report.exceeds or report.alarm):
        return _quiet(report, this)
    when = f"since window {report.since}" if report.since is not None and report.since != window else f"in {this}"
    said = f"{_capital(when)}, {what_moved(report)}"
    where = worst(report)
    for more in (accuracy(report), "" if where.removeprefix("worst for ") in said else where):
        if more and len(said) + len(more) + 2 <= MOST + 20:
            said = f"{said}; {more}"
    return said


def _quiet(report: DriftReport, this: str) -> str:
    if report.p_value < CLEAR:
        how = "is close to what the champion was proven on: no difference that matters"
    else:
        how = "is like what the champion was proven on"
    return f"{_capital(this)} {how} ({p_words(report.p_value)})"


def what_moved(report: DriftReport) -> str:
    """The thing that explains the rest, in a clause."""
    columns = list(_moved_columns(report))
    strongest = max((c.statistic for c in columns), default=0.0)
    apart = _apart(report)
    novel = any(f.name == "novelty" and f.p_value <= CLEAR for f in report.families)
    changed = next(iter(moved_classes(report)), None) if report.severity < MISTAKEN else None
    changes = [abs(c.estimated.value - c.reference) for c in report.classes]
    moved = max(sum(changes) / 2, *changes, 0.0)
    if changed and moved >= (1.0 if novel else 0.6) * strongest and moved >= (0.8 if novel else 0.5) * apart:
        return class_words(changed)
    unlike = f"{_noun(report)} {'look' if _pictures(report) else 'are'} {_how_new(novel)}{_told_apart(report)}"
    if _pictures(report) and novel and apart >= 0.5 and not _explained(columns, apart):
        also = next((c for c in columns if c.name in _OF_PICTURES and abs(c.effect) >= 0.5), None)
        return f"{unlike}, also {_adjective(also)}" if also else unlike
    if columns:
        return _columns_words(
            report, columns, ("" if not novel else " and unlike any known" if apart >= 0.5 else ", some unlike any known")
        )
    if changed and moved >= 0.5 * apart:
        return class_words(changed)
    if apart >= 0.2 or any(f.p_value <= CLEAR for f in report.families if f.name in {"classifier", "mmd", "novelty"}):
        return unlike
    return _model_words(report)


def _explained(columns: list[ColumnDrift], apart: float) -> bool:
    """Whether one property sets the pictures apart nearly as well as the classifier does.

    Embeddings notice grain and contrast most and brightness little: it must do nearly all of the work itself.
    """
    needed = {"sharpness": 0.6, "contrast": 0.6}
    return any(c.statistic >= needed.get(c.name, 0.9) * apart for c in columns)


def _moved_columns(report: DriftReport) -> Iterator[ColumnDrift]:
    """Columns of the data that moved, most important first; not those that the model makes."""
    model = {f"P({c.name})" for c in report.classes} | _OF_MODEL
    clear = [c for c in report.columns if c.p_value < CLEAR and c.name not in model and not made_by_model(c.name)]
    yield from sorted(clear, key=lambda c: (c.p_value, -_size(c)))


def _size(column: ColumnDrift) -> float:
    """Effects of both kinds on about one scale: moving two fifths of the samples is like one SD."""
    if column.kind == "categorical":
        return 2.5 * column.statistic
    return max(abs(column.effect) if math.isfinite(column.effect) else 0.0, 2.5 * missing_change(column))


def _columns_words(report: DriftReport, columns: list[ColumnDrift], new: str) -> str:
    if not (_pictures(report) and columns[0].name in _OF_PICTURES):
        return " and ".join(column_words(c) for c in columns[:2])
    shown = _properties(columns)
    words = f"pictures are {' and '.join(_adjective(c) for c in shown)}"
    grain = any(c.name in {"sharpness", "contrast"} for c in shown)
    return words if grain else f"{words}{new}"


def _properties(columns: list[ColumnDrift]) -> list[ColumnDrift]:
    """The one or two properties to name. Darker pictures have less contrast, and flatter ones smaller steps: causes first."""
    by_name = {c.name: c for c in columns if c.name in _OF_PICTURES}
    order = list(by_name)
    for cause, effect in (("contrast", "sharpness"), ("brightness", "contrast"), ("brightness", "sharpness")):
        if (
            cause in by_name
            and effect in by_name
            and order.index(effect) < order.index(cause)
            and _causes(by_name[cause], by_name[effect])
        ):
            order.remove(cause)
            order.insert(order.index(effect), cause)
    first = by_name[order[0]]
    others = [by_name[n] for n in order[1:] if abs(by_name[n].effect) >= 0.5 * abs(first.effect)]
    flat = {"contrast", "brightness"} & {first.name}
    return [first, *[c for c in others if not (flat and c.name == "sharpness" and c.effect * first.effect > 0)][:1]]


def _causes(cause: ColumnDrift, effect: ColumnDrift) -> bool:
    return cause.effect * effect.effect > 0 and abs(cause.effect) >= 0.6 * abs(effect.effect)


def _adjective(column: ColumnDrift) -> str:
    if abs(column.effect) < 0.2 or not math.isfinite(column.effect):
        return f"of other {column.name}"
    return f"{_ADJECTIVES[column.name][column.effect > 0]} ({sd(column.effect)})"


def moved_classes(report: DriftReport) -> Iterator[ClassShift]:
    """Classes whose share changed beyond its interval, most changed first."""
    clear = [c for c in report.classes if not c.estimated.low <= c.reference <= c.estimated.high]
    yield from sorted(clear, key=lambda c: -abs(c.estimated.value - c.reference))


def _model_words(report: DriftReport) -> str:
    """Nothing of the data itself stands out: what the model makes of it, or only that all together moved."""
    if any(f.name == "concept" and f.p_value <= CLEAR for f in report.families):
        return "the champion errs more than such samples explain"
    sure = next((c for c in report.columns if c.name == "confidence" and c.p_value < CLEAR), None)
    if sure and math.isfinite(sure.effect) and abs(sure.effect) >= 0.2:
        return f"the champion is {'more' if sure.effect > 0 else 'less'} sure of its answers ({sd(sure.effect)})"
    if any(c.p_value < CLEAR and (c.name == "prediction" or c.name.startswith(("P(", "prediction:"))) for c in report.columns):
        return "the champion's answers are mixed differently"
    return f"the {_noun(report)} have changed as a whole ({p_words(report.p_value)})"


def accuracy(report: DriftReport) -> str:
    """What it costs: measured where enough labels have come, else estimated."""
    kind, now = "measured" if report.measured else "estimated", min(1.0, max(0.0, report.accuracy.value))
    if report.reference_accuracy - now < HOLDS:
        return f"{kind} accuracy holds ({report.reference_accuracy:.2f} → {now:.2f})"
    return f"{kind} accuracy {report.reference_accuracy:.2f} → {now:.2f}"


def worst(report: DriftReport) -> str:
    """The slice that loses most, if anything is lost and it loses more than the whole does."""
    if not report.slices or report.reference_accuracy - report.accuracy.value < HOLDS:
        return ""
    first = max(report.slices, key=lambda s: s.reference_accuracy - s.estimated_accuracy)
    whole = report.reference_accuracy - report.estimated_accuracy.value  # slices are estimated, labels or not
    if first.reference_accuracy - first.estimated_accuracy < max(0.02, whole):
        return ""
    if first.column in {"prediction", "predicted class"}:
        return f"worst for class {short(first.value)}"
    return f"worst for {short(first.column)} {short(first.value) or '(none)'}"


def _apart(report: DriftReport) -> float:
    """How well the window can be told from the reference, 0…1: 2 AUC − 1, else by the embedding's own columns."""
    if report.auc is not None:
        return max(0.0, 2 * report.auc - 1)
    return max((c.statistic for c in report.columns if c.name.startswith("embedding ") and c.p_value < CLEAR), default=0.0)


def _how_new(novel: bool) -> str:
    return "unlike any known" if novel else "different from the known ones"


def _told_apart(report: DriftReport) -> str:
    return f" (a classifier tells them apart with AUC {report.auc:.2f})" if report.auc is not None and report.auc > 0.6 else ""


def _pictures(report: DriftReport) -> bool:
    return len(_OF_PICTURES & {c.name for c in report.columns}) >= 2


def _noun(report: DriftReport) -> str:
    return "pictures" if _pictures(report) else "samples"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
