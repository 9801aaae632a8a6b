"""The model card: what a person should know before using a release (after Mitchell et al., Model Cards, FAT* 2019)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from jinja2 import Environment, PackageLoader

from everfresh.tasks.config import PipelineConfig
from everfresh.tasks.records import Release, Scores, Verdict
from everfresh.tasks.slices import LABEL, WINDOW, Slice, by_slice, columns_of
from everfresh.tasks.targets import Targets
from everfresh.tasks.views import Sample, View

MOST_SLICES = 20
"""Slices that the card lists, the weakest ones."""


def card(
    config: PipelineConfig,
    release: Release,
    scores: Mapping[tuple[str, str], Scores],
    verdicts: Sequence[Verdict],
    origin: str,
    view: View,
    holdout: str,
) -> str:
    """The card in Markdown.

    Args:
        config: of the pipeline; its section `release` says what nobody can measure.
        release: its record, as far as it is written.
        scores: by model and set of samples; the release's own on its hold-out first.
        verdicts: of its gates.
        origin: how it was made, in words.
        view: the window whose hold-out it was scored on.
        holdout: ``holdout.jsonl``.
    """
    samples = [view.samples[int(row)] for row in view.rows("holdout", Targets.of(release.spec))]
    said = [json.loads(line)["predicted"] for line in holdout.splitlines()]
    environment = Environment(loader=PackageLoader("everfresh.tasks"), autoescape=False, keep_trailing_newline=True)  # noqa: S701 - Markdown
    return environment.get_template("card.md.j2").render(
        pipeline=config.name,
        told=config.release,
        release=release,
        rows=list(scores.items()),
        verdicts=verdicts,
        origin=origin,
        data=_data(release, view, samples),
        slices=_slices(release, samples, said),
        weakest=_weakest(release, next(iter(scores.values()))),
        files=sorted(release.files),
    )


def _data(release: Release, view: View, samples: Sequence[Sample]) -> list[str]:
    """What it was shown, a sentence each."""
    windows = ", ".join(str(b.seq) for b in release.bank)
    found = [
        f"Its own window has {view.window.samples} samples, {view.window.labelled} of them labelled.",
        f"Trusted windows so far, whose hold-outs it never learnt from: {windows or 'none'} (0: validation samples).",
    ]
    times = [s.timestamp for s in view.samples if s.timestamp is not None]
    if times:
        found.append(f"Taken from {min(times):%Y-%m-%d %H:%M} to {max(times):%Y-%m-%d %H:%M} UTC.")
    if release.spec.task == "single_label":
        counts = Counter(s.label for s in samples)
        found.append(f"Hold-out by class: {', '.join(f'{n} {counts[n]}' for n in release.spec.classes)}.")
    return found


def _slices(release: Release, samples: Sequence[Sample], said: Sequence[str]) -> list[Slice]:
    """Accuracy by slice of the metadata and by label, the weakest first."""
    targets = Targets.of(release.spec)
    if not samples:
        return []
    truth, predicted = targets.encode([s.label for s in samples]), targets.encode(said)
    right = predicted == truth if truth.ndim == 1 else targets.right(predicted, truth)
    columns = columns_of(samples, [str(release.seq)] * len(samples), labels=release.spec.task == "single_label")
    found = [s for s in by_slice(columns, np.asarray(right, dtype=bool)) if s.column not in {WINDOW}]
    return sorted(found, key=lambda s: (s.column == LABEL, s.accuracy.value))[:MOST_SLICES]


def _weakest(release: Release, own: Scores) -> str:
    if release.spec.task == "regression":
        weakest = [f"{name}: off by {v['mae']:.4g} in the mean of {v['samples']:.0f}" for name, v in own.per_class.items()]
    else:
        found = sorted((v["recall"], name, int(v["samples"])) for name, v in own.per_class.items() if v["samples"])[:3]
        weakest = [f"{name}: {recall:.0%} of {n} found" for recall, name, n in found]
    return "; ".join(weakest) or "no hold-out sample."
