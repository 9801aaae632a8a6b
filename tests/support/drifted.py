"""Drift reports of what may happen to a window."""

from __future__ import annotations

from typing import Any

from everfresh.tasks.records import ClassShift, ColumnDrift, DriftReport, FamilyDrift, Interval, LabelAgreement, SliceDrift

PROPERTIES = ("brightness", "contrast", "sharpness", "colourfulness", "aspect", "pixels", "confidence")
HOSTILE = "<script>alert('$x_$')</script>\n\x00\u202e" + "long " * 30


def column(name: str, effect: float = 0.0, p: float = 1.0, ks: float | None = None, **more: Any) -> ColumnDrift:
    """A column; its distance is about what a shift of so many deviations makes."""
    distance = min(1.0, abs(effect) * 0.38) if ks is None else ks
    return ColumnDrift(**{"name": name, "kind": "numerical", "statistic": distance, "effect": effect, "p_value": p, **more})


def picture_columns(*moved: ColumnDrift) -> tuple[ColumnDrift, ...]:
    return (*moved, *(column(name) for name in PROPERTIES if name not in {c.name for c in moved}))


def share(name: str, reference: float, value: float) -> ClassShift:
    return ClassShift(
        name=name, reference=reference, estimated=Interval(value=value, low=max(0.0, value - 0.03), high=min(1.0, value + 0.03))
    )


def part(value: str, before: float, now: float, of: str = "prediction") -> SliceDrift:
    return SliceDrift(column=of, value=value, samples=20, reference_accuracy=before, estimated_accuracy=now)


def measured(value: float) -> LabelAgreement:
    return LabelAgreement(
        samples=200, champion=Interval(value=value, low=value - 0.05, high=value + 0.05), neighbours=0.9, chance=0.1
    )


def report(*columns: ColumnDrift, now: float = 0.71, **changes: Any) -> DriftReport:
    """A window that exceeds since window 12, unless told otherwise."""
    return DriftReport(
        **{
            "key": "k",
            "view": "v",
            "reference": "r",
            "reference_samples": 400,
            "current_samples": 200,
            "exceeds": True,
            "alarm": True,
            "p_value": 0.001,
            "score": 0.5,
            "nearest": "window 1",
            "columns": columns,
            "reference_accuracy": 0.93,
            "estimated_accuracy": Interval(value=now, low=max(0.0, now - 0.06), high=min(1.0, now + 0.06)),
            "severity": 0.93 - now,
            "labels": None,
            "since": 12,
            "files": {},
            **changes,
        }
    )


def family(name: str, p: float) -> FamilyDrift:
    return FamilyDrift(name=name, p_value=p)


NOISE = report(
    *picture_columns(column("sharpness", 2.4, 0.002, 0.89), column("contrast", 0.6, 0.002, 0.49)),
    auc=1.0,
    families=(family("novelty", 0.002),),
    classes=(share("giraffe", 0.14, 0.9), share("dog", 0.1, 0.01)),  # the champion's mistakes, not the world's classes
    slices=(part("giraffe", 0.9, 0.5),),
)
KNOCKOUT = report(
    *picture_columns(column("P(dog)", -0.4, 0.002, 0.2)),
    now=0.92,
    auc=0.58,
    families=(family("novelty", 0.9), family("classifier", 0.002)),
    classes=(share("dog", 0.1, 0.01), share("house", 0.17, 0.2)),
)
DOMAIN = report(
    *picture_columns(column("brightness", 2.5, 0.002, 0.8), column("confidence", -0.6, 0.002)),
    auc=0.99,
    families=(family("novelty", 0.002),),
    classes=(share("guitar", 0.11, 0.75), share("person", 0.23, 0.04)),
    labels=measured(0.22),
    slices=(part("person", 1.0, 0.27),),
)
QUIET = report(*picture_columns(), exceeds=False, alarm=False, p_value=0.4, since=None, now=0.92)
