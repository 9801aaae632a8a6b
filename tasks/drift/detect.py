"""Measure how far a window is from what the champion was proven on, and what that would cost.

A window is quiet if it fits one component of the reference, or a mixture of them: the p-value is the largest over
these comparisons. Nothing is decided here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from everfresh.tasks.config import DriftConfig, PipelineConfig
from everfresh.tasks.drift import shift
from everfresh.tasks.drift.frame import Frame, build
from everfresh.tasks.drift.shift import Shift
from everfresh.tasks.embeddings import Embedder
from everfresh.tasks.errors import ObjectMissing
from everfresh.tasks.ledger import attempt_folder, find, settle
from everfresh.tasks.records import DriftReport, Interval, LabelAgreement, Part, Reference, Release, Tick, digest_of
from everfresh.tasks.store import Store
from everfresh.tasks.views import View, seeded_choice

MIN_SAMPLES = 10
"""With fewer samples on either side nothing is tested."""
SHOWN = 12
"""Pictures on each side of the contact sheet."""


def detect(store: Store, config: PipelineConfig, tick: Tick) -> DriftReport:
    """Compare the tick's window with the reference of the tick's champion; record and return what was measured.

    Raises:
        ObjectMissing: the tick has no champion, or its release or reference is gone.
    """
    release = find(store, f"releases/{tick.champion}/release.json", Release)
    reference = find(store, f"references/{tick.reference}/record.json", Reference)
    if release is None or reference is None:
        raise ObjectMissing(
            f"drift: the release {tick.champion} and its reference must be in the store, got none. "
            "Let a first window train version 1, or adopt a model."
        )
    key = digest_of("drift", 3, tick.view, reference.id, release.id, config.model.precision, config.drift)
    if (known := find(store, f"drift/{key}/record.json", DriftReport)) is not None:
        return known
    embedder = Embedder.open(
        store, release.spec, release.files["model.safetensors"], config.model.precision, code=config.model.architecture
    )
    most, view = config.drift.max_samples, View(store, tick.view)
    rows = _unlearnt(view, release)
    current = build(embedder, [(view, rows[seeded_choice(len(rows), most, key)])])
    components = {c.name: _component(store, embedder, c.views, c.splits, most, tick.view) for c in reference.components}
    shifts = compare_all(components, current, config.drift, seed=int(key, 16))
    nearest = max(shifts, key=_fit)
    tested = bool(nearest.columns)
    accuracy, estimate = shift.estimated_accuracy(nearest.reference, current, seed=int(key, 16))
    report = DriftReport(
        key=key,
        view=tick.view,
        reference=reference.id,
        reference_samples=len(nearest.reference),
        current_samples=len(current),
        alarm=nearest.p_value <= config.drift.false_alarm_rate,
        tested=tested,
        p_value=nearest.p_value,
        score=nearest.score,
        regime=max((s for s in shifts if s.name in components), key=_fit).name if tested else _closest(components, current),
        nearest=nearest.name,
        columns=nearest.columns,
        reference_accuracy=accuracy,
        estimated_accuracy=estimate,
        severity=accuracy - estimate.value,
        labels=agreement(current.take(_outside_holdout(current))),
        files=_explain(store, f"drift/{key}", nearest, current) if config.drift.report else {},
    )
    return settle(store, f"drift/{key}/record.json", report)


def _fit(found: Shift) -> tuple[float, float]:
    return found.p_value, -found.score


def _closest(components: Mapping[str, Frame], current: Frame) -> str:
    """The component with the nearest mean embedding, for a window that is too small to test."""
    if not len(current):
        return next(iter(components))
    centre = current.embeddings.mean(axis=0)
    gaps = {name: float(np.linalg.norm(f.embeddings.mean(axis=0) - centre)) for name, f in components.items() if len(f)}
    return min(gaps, key=lambda name: gaps[name]) if gaps else next(iter(components))


def compare_all(components: Mapping[str, Frame], current: Frame, config: DriftConfig, seed: int) -> list[Shift]:
    """The window against each component and, where there are several, against their best mixture.

    A component with too few samples is left out: any window would fit it.
    """
    references = {name: frame for name, frame in components.items() if len(frame) >= MIN_SAMPLES}
    if len(current) < MIN_SAMPLES or not references:
        return [Shift(name, 1.0, (), frame, {}) for name, frame in components.items()]
    if (mixed := shift.mixture(references, current, seed)) is not None and len(mixed) >= MIN_SAMPLES:
        references["mixture"] = mixed
    return [
        shift.compare(name, frame, current, components=config.components, permutations=config.permutations, seed=seed)
        for name, frame in references.items()
    ]


def agreement(current: Frame) -> LabelAgreement | None:
    """How far the window's labels agree with the champion and with their own neighbours; None without labels."""
    rows = np.flatnonzero(current.labels >= 0)
    if len(rows) < MIN_SAMPLES:
        return None
    labels, embeddings = current.labels[rows], current.embeddings[rows]
    hits = current.correct[rows]
    wilson = binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    shares = np.bincount(labels) / len(labels)
    return LabelAgreement(
        samples=len(rows),
        champion=Interval(value=float(hits.mean()), low=float(wilson.low), high=float(wilson.high)),
        neighbours=_neighbour_agreement(embeddings, labels),
        chance=float((shares**2).sum()),
    )


def _neighbour_agreement(embeddings: np.ndarray, labels: np.ndarray) -> float:
    """Share of samples whose label is the most frequent one among their five nearest others."""
    from sklearn.neighbors import KNeighborsClassifier

    votes = KNeighborsClassifier(n_neighbors=min(5, len(labels) - 1), metric="cosine").fit(embeddings, labels)
    return float((votes.predict(None) == labels).mean())  # None: each sample without itself


def _unlearnt(view: View, release: Release) -> NDArray[np.int64]:
    """Rows that the champion never learnt from: all of a new window, the hold-out of one that it was trained on."""
    learnt = any(b.view == view.window.view for b in release.bank)
    return np.array([i for i, s in enumerate(view.samples) if not learnt or s.split == "holdout"], dtype=np.int64)


def _outside_holdout(current: Frame) -> NDArray[np.int64]:
    """Rows whose labels may move a decision: the hold-out's are for the gates alone, else what triggers biases them."""
    rows = [i for i, (view, row) in enumerate(current.places) if view.samples[row].split != "holdout"]
    return np.array(rows, dtype=np.int64)


def _component(
    store: Store, embedder: Embedder, views: tuple[str, ...], splits: tuple[str, ...], most: int, current: str
) -> Frame:
    """The samples of one regime; the current window itself, if a person forces a tick on it again, is left out."""
    picks = []
    for name in [v for v in views if v != current] or views:
        view = View(store, name)
        rows = np.array([i for i, s in enumerate(view.samples) if s.split in splits], dtype=np.int64)
        picks.append((view, rows[seeded_choice(len(rows), max(1, most // len(views)), name)]))
    return build(embedder, picks)


def _explain(store: Store, folder: str, nearest: Shift, current: Frame) -> dict[str, Part]:
    """Evidently's report and the two pictures, written under a fresh attempt."""
    from everfresh.tasks.drift import pictures
    from everfresh.tasks.drift.report import write_report

    if not nearest.columns:
        return {}
    attempt = attempt_folder(folder)
    with tempfile.TemporaryDirectory(prefix="everfresh-") as temporary:
        here = Path(temporary)
        files = write_report(nearest.reference, current, here)
        files["columns.png"] = here / "columns.png"
        shown = {
            **nearest.values,
            **{c: (v, current.categorical[c]) for c, v in nearest.reference.categorical.items() if c in current.categorical},
        }
        pictures.columns_picture(nearest.columns, shown, files["columns.png"])
        files["contact.png"] = here / "contact.png"
        strange, typical = shift.unusual(nearest.reference, current, SHOWN)
        pictures.contact_sheet(
            [(current.picture(int(r)), _caption(current, int(r))) for r in strange],
            [(nearest.reference.picture(int(r)), _caption(nearest.reference, int(r))) for r in typical],
            files["contact.png"],
        )
        return {name: store.keep_file(f"{attempt}/{name}", path) for name, path in files.items()}


def _caption(frame: Frame, row: int) -> str:
    label = frame.classes[frame.labels[row]] if frame.labels[row] >= 0 else "no label"
    return f"{label}\n→ {frame.categorical['prediction'][row]} {frame.confidence[row]:.0%}"
