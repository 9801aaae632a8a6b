"""Measure how far a window is from what the champion was proven on, and what that would cost.

A window exceeds if it fits no regime of the reference and no mixture of them, by more than the effect floor; whether that
is an alarm depends on the windows before it. Nothing is decided here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from everfresh.tasks.config import DriftConfig, PipelineConfig
from everfresh.tasks.drift import harm
from everfresh.tasks.drift.frame import PREDICTION, Answers, Frame, build
from everfresh.tasks.drift.regimes import MIN_SAMPLES, closest, compare_all
from everfresh.tasks.drift.shift import Shift, classifier_auc
from everfresh.tasks.drift.words import sentence
from everfresh.tasks.errors import ObjectMissing
from everfresh.tasks.ledger import attempt_folder, find, settle
from everfresh.tasks.records import (
    Component,
    DriftPoint,
    DriftReport,
    FamilyDrift,
    Interval,
    LabelAgreement,
    Part,
    Reference,
    Release,
    Tick,
    digest_of,
)
from everfresh.tasks.releases import find_release
from everfresh.tasks.store import Store, scratch
from everfresh.tasks.targets import Targets
from everfresh.tasks.views import View, seeded_choice

if TYPE_CHECKING:
    from everfresh.tasks.embeddings import Embedder

SHOWN = 12
"""Pictures on each side of the contact sheet."""
REGIMES_HELD = 4
"""Regimes of `max_samples` that a reference may hold; more of them share as many samples."""
TIMELINE, REMEMBERED = "timeline", 100
"""Where the measurements so far stand, and of how many windows they are looked at."""
CONCEPT_SHARE = 0.2
"""Of the false-alarm rate, for errors at equal input where labels tell of them; the other tests share the rest."""


def detect(store: Store, config: PipelineConfig, tick: Tick) -> DriftReport:
    """Compare the tick's window with the reference of the tick's champion; record and return what was measured.

    Raises:
        ObjectMissing: the tick has no champion, or its release or reference is gone.
    """
    release = find_release(store, tick.champion) if tick.champion else None
    reference = find(store, f"references/{tick.reference}/record.json", Reference)
    if release is None or reference is None:
        raise ObjectMissing(
            f"drift: the release {tick.champion} and its reference must be in the store, got none. "
            "Let a first window train version 1, or adopt a model."
        )
    past = timeline(store, tick.seq)
    rules = config.drift.model_dump(mode="json", exclude={"workspace"})  # a path of this machine
    right = [config.model.tolerance] if config.model.tolerance else []
    same = digest_of("drift", 5, tick.view, reference.id, release.id, config.model.precision, rules, *right)
    key = digest_of(same, [(p.seq, p.release, p.exceeds, p.alarm) for p in past])  # whether it alarms depends on these
    report = find(store, f"drift/{key}/record.json", DriftReport)
    report = report or _measure(store, config, tick, release, reference, past, key, seed=int(same, 16))
    if not tick.request:
        settle(store, f"{TIMELINE}/{tick.seq:08d}-{release.id}.json", point(report, tick))
    return report


def timeline(store: Store, before: int) -> tuple[DriftPoint, ...]:
    """What was measured of the last REMEMBERED windows before one, oldest first; one point a window and champion."""
    keys = (i.key for i in store.list(TIMELINE, after=f"{TIMELINE}/{max(0, before - REMEMBERED):08d}"))
    found = [DriftPoint.from_bytes(store.get(k), k) for k in takewhile(lambda k: k < f"{TIMELINE}/{before:08d}", keys)]
    return tuple(sorted(found, key=lambda p: (p.seq, p.at)))


def point(report: DriftReport, tick: Tick) -> DriftPoint:
    """A report as the timeline keeps it."""
    return DriftPoint(
        seq=tick.seq,
        drift=report.key,
        release=tick.champion or "",
        exceeds=report.exceeds,
        alarm=report.alarm,
        p_value=report.p_value,
        reference_accuracy=report.reference_accuracy,
        estimated_accuracy=report.estimated_accuracy,
        measured_accuracy=report.labels.champion.value if report.labels else None,
        at=tick.now,
    )


def _measure(
    store: Store,
    config: PipelineConfig,
    tick: Tick,
    release: Release,
    reference: Reference,
    past: Sequence[DriftPoint],
    key: str,
    seed: int,
) -> DriftReport:
    from everfresh.tasks.embeddings import Embedder  # loads torch, which comparing tables does without

    embedder = Embedder.open(
        store, release.spec, release.files["model.safetensors"], config.model.precision, code=config.model.architecture
    )
    most, view = config.drift.max_samples, View(store, tick.view)
    rows = _unlearnt(view, release)
    targets = replace(Targets.of(release.spec), tolerance=config.model.tolerance or 0.0)
    current = build(embedder, [(view, rows[seeded_choice(len(rows), most, f"{seed:x}")])], targets)
    most = min(most, max(MIN_SAMPLES, REGIMES_HELD * most // len(reference.components)))
    components = {c.name: _component(store, embedder, targets, c, most, tick.view) for c in reference.components}
    shifts = compare_all(components, current, config.drift, seed)
    single = [s for s in shifts if s.name in components]
    nearest = max(shifts, key=_fit)
    report = judge(nearest, current, config.drift, seed, labelled=_outside_holdout(current))
    report = report.model_copy(
        update={
            "key": key,
            "view": tick.view,
            "reference": reference.id,
            "regime": max(single, key=_fit).name if report.tested else closest(components, current),
            **alarm(report.exceeds, tick.seq, past, release.id, config.drift),
        }
    )
    report = report.model_copy(update={"words": sentence(report, tick.seq)})
    files = _explain(store, config, tick, report, past, nearest, current) if config.drift.report and report.tested else {}
    return settle(store, f"drift/{key}/record.json", report.model_copy(update={"files": files}))


def judge(nearest: Shift, current: Frame, config: DriftConfig, seed: int, *, labelled: NDArray[np.int64]) -> DriftReport:
    """All that one comparison says, whatever came before: effects, p-values and the estimated harm.

    Args:
        nearest: the comparison with what fits best.
        current: the window.
        config: rate, effect floor and permutations.
        seed: of all that is drawn.
        labelled: rows of the window whose labels may be looked at.
    """
    reference = nearest.reference
    accuracy, estimate = harm.estimated_accuracy(reference, current, seed)
    auc = classifier_auc(reference, current, seed) if nearest.columns else None
    rate = config.false_alarm_rate
    enough = max(config.permutations, math.ceil(1 / (rate * CONCEPT_SHARE)))
    concept = harm.concept(reference, current.take(labelled), seed, enough) if nearest.columns else None
    labels = agreement(current.take(labelled))
    score = max(nearest.score, 2 * (auc or 0.5) - 1)
    share = CONCEPT_SHARE if concept is not None else 0.0
    moved = nearest.p_value <= rate * (1 - share) and score >= config.min_effect
    change = abs(labels.champion.value - accuracy) if labels else 0.0
    turned = concept is not None and concept <= rate * share and change >= config.min_effect
    families = nearest.families + ((FamilyDrift(name="concept", p_value=concept),) if concept is not None else ())
    p_values = [nearest.p_value / (1 - share), *([] if concept is None else [concept / share])]
    report = DriftReport(
        key="",
        view="",
        reference="",
        reference_samples=len(reference),
        current_samples=len(current),
        exceeds=moved or turned,
        moved=moved,
        alarm=moved or turned,
        tested=bool(nearest.columns),
        p_value=min(1.0, *p_values),
        score=score,
        auc=auc,
        families=families,
        nearest=nearest.name,
        columns=nearest.columns,
        classes=harm.class_shift(reference, current, seed) if nearest.columns else (),
        slices=harm.slices(reference, current) if nearest.columns else (),
        reference_accuracy=accuracy,
        estimated_accuracy=estimate,
        severity=0.0,
        labels=labels,
        files={},
    )
    return report.model_copy(update={"severity": accuracy - report.accuracy.value})


def alarm(exceeds: bool, seq: int, past: Sequence[DriftPoint], release: str, config: DriftConfig) -> dict[str, Any]:
    """Whether a window alarms after those before it, and since when windows exceed without a break.

    Windows that an earlier champion met do not count towards an alarm about this one.
    """
    mine = {p.seq: p for p in past if p.release == release}
    recent = [mine[s].exceeds for s in range(seq - config.within + 1, seq) if s in mine]
    silent = any(mine[s].alarm for s in range(seq - config.cooldown_windows, seq) if s in mine)
    since, seen = seq, {p.seq: p.exceeds for p in past}
    while seen.get(since - 1):
        since -= 1
    return {
        "alarm": exceeds and sum(recent) + 1 >= config.alarm_after and not silent,
        "since": since if exceeds else None,
    }


def _fit(found: Shift) -> tuple[float, float]:
    return found.p_value, -found.strength


def agreement(current: Frame) -> LabelAgreement | None:
    """How far the window's labels agree with the champion and with their own neighbours; None without labels."""
    rows = np.flatnonzero(current.labels >= 0)
    if len(rows) < MIN_SAMPLES:
        return None
    labels, embeddings = current.labels[rows], current.embeddings[rows]
    hits, answers = current.correct[rows], None if current.answers is None else current.answers.take(rows)
    wilson = binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    return LabelAgreement(
        samples=len(rows),
        champion=Interval(value=float(hits.mean()), low=float(wilson.low), high=float(wilson.high)),
        neighbours=_neighbour_agreement(embeddings, labels) if answers is None else _neighbours_right(embeddings, answers),
        chance=float(((np.bincount(labels) / len(labels)) ** 2).sum())
        if answers is None
        else answers.targets.chance(answers.truth),
    )


def _neighbour_agreement(embeddings: np.ndarray, labels: np.ndarray) -> float:
    """Share of samples whose label is the most frequent one among their five nearest others."""
    from sklearn.neighbors import KNeighborsClassifier

    votes = KNeighborsClassifier(n_neighbors=min(5, len(labels) - 1), metric="cosine").fit(embeddings, labels)
    return float((votes.predict(None) == labels).mean())  # None: each sample without itself


def _neighbours_right(embeddings: np.ndarray, answers: Answers) -> float:
    """Share of samples for which the mean label of their five nearest others would be right; of sets their majority."""
    from sklearn.neighbors import NearestNeighbors

    nearest = NearestNeighbors(n_neighbors=min(5, len(embeddings) - 1), metric="cosine").fit(embeddings)
    mean = answers.truth[nearest.kneighbors(return_distance=False)].mean(axis=1)  # (N, K); each sample without itself
    return float(answers.targets.right(mean - 0.5 if answers.targets.task == "multi_label" else mean, answers.truth).mean())


def _unlearnt(view: View, release: Release) -> NDArray[np.int64]:
    """Rows that the champion never learnt from: all of a new window, the hold-out of one that it was trained on."""
    learnt = any(b.view == view.window.view for b in release.bank)
    return np.array([i for i, s in enumerate(view.samples) if not learnt or s.split == "holdout"], dtype=np.int64)


def _outside_holdout(current: Frame) -> NDArray[np.int64]:
    """Rows whose labels may move a decision: the hold-out's are for the gates alone, else what triggers biases them."""
    rows = [i for i, (view, row) in enumerate(current.places) if view.samples[row].split != "holdout"]
    return np.array(rows, dtype=np.int64)


def _component(store: Store, embedder: Embedder, targets: Targets, component: Component, most: int, current: str) -> Frame:
    """The samples of one regime; the current window itself, if a person forces a tick on it again, is left out."""
    picks, views = [], component.views
    for name in [v for v in views if v != current] or views:
        view = View(store, name)
        rows = np.array([i for i, s in enumerate(view.samples) if s.split in component.splits], dtype=np.int64)
        picks.append((view, rows[seeded_choice(len(rows), max(1, most // len(views)), name)]))
    return build(embedder, picks, targets)


def _explain(
    store: Store,
    config: PipelineConfig,
    tick: Tick,
    report: DriftReport,
    past: Sequence[DriftPoint],
    nearest: Shift,
    current: Frame,
) -> dict[str, Part]:
    """The page that explains the drift and Evidently's report, written under a fresh attempt."""
    from everfresh.tasks.drift.explain import page
    from everfresh.tasks.drift.report import Shelf, write_report

    reference = nearest.reference
    attempt = attempt_folder(f"drift/{report.key}")
    shared = reference.categorical.keys() & current.categorical.keys()
    values = nearest.values | {c: (reference.categorical[c], current.categorical[c]) for c in shared}
    strange, typical = unusual(reference, current, 0 if config.model.features else SHOWN)  # a row is no picture to show
    with scratch() as here:
        shelf = None
        if (workspace := config.drift.workspace) and not tick.replay:
            shelf = Shelf(Path(workspace), config.name, f"window {tick.seq} {report.key}", tick.now)
        rate = config.drift.false_alarm_rate
        files = write_report(reference, current, here, columns=report.columns, rate=rate, shelf=shelf)
        files |= page(
            report,
            [*past, point(report, tick)],
            values,
            [(current.picture(int(r)), _caption(current, int(r))) for r in strange],
            [(reference.picture(int(r)), _caption(reference, int(r))) for r in typical],
            here,
            pipeline=config.name,
            beside=sorted(files),
        )
        return {name: store.keep_file(f"{attempt}/{name}", path) for name, path in files.items()}


def _caption(frame: Frame, row: int) -> str:
    if (answers := frame.answers) is not None:
        said, true = answers.scores[[row]], answers.truth[[row]] - (answers.targets.task == "multi_label") / 2
        label = answers.targets.texts(true)[0] if frame.labels[row] >= 0 else "no label"
        return f"{label}\n→ {answers.targets.texts(said)[0]}"
    label = frame.classes[frame.labels[row]] if frame.labels[row] >= 0 else "no label"
    return f"{label}\n→ {frame.categorical['prediction'][row]} {frame.confidence[row]:.0%}"


def unusual(reference: Frame, current: Frame, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the most unusual current and the most typical reference samples, by distance to nearest references.

    The typical ones are of all predicted classes in turn: the tightest class would take all places.
    """
    from sklearn.neighbors import NearestNeighbors

    scale = reference.embeddings.std(axis=0) + 1e-9
    ours, theirs = reference.embeddings / scale, current.embeddings / scale
    neighbours = min(5, len(ours) - 1)
    index = NearestNeighbors(n_neighbors=neighbours + 1).fit(ours)
    away = index.kneighbors(theirs, neighbours)[0].mean(axis=1)
    inside = index.kneighbors(ours)[0][:, 1:].mean(axis=1)
    closest_first = np.argsort(inside, kind="stable")
    seen: Counter[str] = Counter()
    turns = []
    for row in closest_first:
        predicted = str(reference.categorical[PREDICTION][row]) if PREDICTION in reference.categorical else ""
        turns.append(seen[predicted])
        seen[predicted] += 1
    return np.argsort(-away, kind="stable")[:count], closest_first[np.argsort(turns, kind="stable")][:count]
