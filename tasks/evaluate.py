"""Evaluate: the challenger against the champion on the same held-out samples, and what the gates say of it.

Two sets: this window's hold-out, and the bank of earlier ones, pooled and bounded. Neither model ever learnt from
them. Floors look at all of the challenger's classes; the two models are compared on the classes that both know. Every
verdict is recorded with its numbers, passed or not. Gates compare in fp32, the precision that is served.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest
from torch import Tensor

from everfresh.tasks.charts import classes_picture, confusion_picture, values_picture
from everfresh.tasks.config import BetterGate, FloorGate, NoWorseGate, PipelineConfig, ServesGate
from everfresh.tasks.embeddings import Embedder
from everfresh.tasks.errors import ObjectMissing
from everfresh.tasks.ledger import attempt_folder, champion_moves, find, settle
from everfresh.tasks.metrics import paired_gain, score
from everfresh.tasks.records import (
    AliasMove,
    Candidate,
    Comparison,
    DriftReport,
    Evaluation,
    Part,
    Release,
    Tick,
    Verdict,
    digest_of,
)
from everfresh.tasks.store import Store, scratch
from everfresh.tasks.targets import Targets
from everfresh.tasks.trust import judge_labels, suspicion
from everfresh.tasks.views import View, seeded_choice

NO_HOLDOUT = "holdout: the window has no labelled hold-out sample, so nothing is proven"


@dataclass(frozen=True)
class Judged:
    """What two models said of the same samples."""

    labels: NDArray[Any]
    """(N, …) as `Targets.encode` makes them."""
    challenger: Tensor
    """(N, K) scores."""
    champion: Tensor | None
    shared: NDArray[np.bool_]
    """(N,) whether both models know the label's classes."""
    targets: Targets
    """What the challenger is asked for; the champion is judged by it too."""

    def pairs(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of the shared samples: 1 where the challenger is right, 1 where the champion is."""
        if self.champion is None:
            raise ValueError("there is no champion to pair with")
        ours, theirs = (self.targets.right(s.numpy(), self.labels) for s in (self.challenger, self.champion))
        return ours[self.shared].astype(np.float64), theirs[self.shared].astype(np.float64)


def evaluate(
    store: Store, config: PipelineConfig, tick: Tick, candidate: Candidate, drift: DriftReport | None = None, *, against: int
) -> Evaluation:
    """Prove a challenger, or not.

    Args:
        store: of the pipeline.
        config: of the pipeline.
        tick: names the window and the bank.
        candidate: the challenger.
        drift: what was measured of the window, its labels' agreement among it; None without a champion.
        against: sequence of the alias move that made the champion to beat; 0 if there is none.

    Raises:
        ObjectMissing: a record or file that this builds on is gone.
    """
    move = champion_moves(store).entry(against)
    champion = find(store, f"releases/{move.release}/release.json", Release) if move else None
    if move and champion is None:
        raise ObjectMissing(
            f"{store.url(f'releases/{move.release}/release.json')} must exist: v{move.version} is champion. Restore it."
        )
    bank = tuple(b.view for b in tick.bank if b.view != tick.view)
    key = digest_of(
        "evaluation", 4, candidate.key, champion.id if champion else None, against, config.gates, tick.view, bank,
        config.window.bank_max_samples, drift.key if drift else None, tick.trust_labels,
    )  # fmt: skip
    if (known := find(store, f"evaluations/{key}/record.json", Evaluation)) is not None:
        return known
    ours = Embedder.open(store, candidate.spec, candidate.weights, code=config.model.architecture)
    theirs = (
        Embedder.open(store, champion.spec, champion.files["model.safetensors"], code=config.model.architecture)
        if champion
        else None
    )
    window = _judge(ours, theirs, [View(store, tick.view)], 10**9)
    earlier = _judge(ours, theirs, [View(store, v) for v in bank], config.window.bank_max_samples)
    here, there = compare(window, key), compare(earlier, key) if len(earlier.labels) else None
    verdicts = [judge(gate, window, here, earlier, there) for gate in config.gates if not isinstance(gate, ServesGate)]
    seen = here.challenger.accuracy if len(window.labels) else None
    trust = judge_labels(View(store, tick.view).window, drift, seen, vouched=tick.trust_labels)
    if trust != "trusted":
        verdicts.append(Verdict(gate="labels", passed=False, numbers={}, words=suspicion(drift)))
    if not len(window.labels):
        verdicts.append(Verdict(gate="holdout", passed=False, numbers={}, words=NO_HOLDOUT))
    if move:
        verdicts += _alias_verdicts(move, candidate)
    evaluation = Evaluation(
        key=key,
        candidate=candidate.key,
        champion=champion.id if champion else None,
        champion_move=against,
        window=here,
        bank=there,
        bank_views=bank,
        verdicts=tuple(verdicts),
        trust=trust,
        passed=all(v.passed for v in verdicts),
        files=_pictures(store, f"evaluations/{key}", here, window),
    )
    return settle(store, f"evaluations/{key}/record.json", evaluation)


def compare(judged: Judged, seed: str) -> Comparison:
    """Scores of both models, and the paired difference of accuracy with its 95 % bootstrap interval."""
    challenger = score(judged.challenger, judged.labels, judged.targets)
    if judged.champion is None:
        return Comparison(challenger=challenger, champion=None, gain=None)
    return Comparison(
        challenger=challenger,
        champion=score(judged.champion, judged.labels, judged.targets),
        gain=paired_gain(*judged.pairs(), 0.95, seed),
    )


def judge(
    gate: FloorGate | BetterGate | NoWorseGate, window: Judged, here: Comparison, earlier: Judged, there: Comparison | None
) -> Verdict:
    """One gate's verdict, with its numbers."""
    match gate:
        case FloorGate():
            return _floor(gate, here if gate.scope == "window" else there)
        case BetterGate():
            return _better(gate, window, here)
        case NoWorseGate():
            return _no_worse(gate, earlier, there)


def _floor(gate: FloorGate, on: Comparison | None) -> Verdict:
    if on is None:
        return Verdict(gate="floor", passed=True, numbers={}, words="floor: there is no earlier hold-out yet")
    value, samples = on.challenger.get(gate.metric), on.challenger.samples
    if gate.maximum is not None:
        reached = value <= gate.maximum
        sign = "≤" if reached else ">"
        return Verdict(
            gate="floor",
            passed=samples > 0 and reached,
            numbers={"value": value, "maximum": gate.maximum, "samples": float(samples)},
            words=f"floor: {gate.metric} {value:.4g} {sign} {gate.maximum:g} on {samples} {gate.scope} samples",
        )
    passed = samples > 0 and value >= gate.minimum
    sign = "≥" if value >= gate.minimum else "<"
    return Verdict(
        gate="floor",
        passed=passed,
        numbers={"value": value, "minimum": gate.minimum, "samples": float(samples)},
        words=f"floor: {gate.metric} {value:.1%} {sign} {gate.minimum:.1%} on {samples} {gate.scope} samples",
    )


def _better(gate: BetterGate, window: Judged, here: Comparison) -> Verdict:
    if here.gain is None or window.champion is None:
        return Verdict(gate="better", passed=True, numbers={}, words="better: there is no champion to beat")
    challenger, champion = window.pairs()
    won, lost = int((challenger > champion).sum()), int((challenger < champion).sum())
    p_value = float(binomtest(won, won + lost, 0.5, "greater").pvalue) if won + lost else 1.0
    passed = here.gain.value > gate.min_gain and p_value <= 1 - gate.confidence
    return Verdict(
        gate="better",
        passed=passed,
        numbers={"gain": here.gain.value, "low": here.gain.low, "high": here.gain.high, "p_value": p_value}
        | {"won": float(won), "lost": float(lost), "samples": float(len(champion))},
        words=(
            f"better: {here.gain.value:+.1%} on this window's hold-out ({won} won, {lost} lost of {len(champion)}; "
            f"p = {p_value:.2g}, needs more than {gate.min_gain:+.1%} at p ≤ {1 - gate.confidence:.2g})"
        ),
    )


def _no_worse(gate: NoWorseGate, earlier: Judged, there: Comparison | None) -> Verdict:
    if there is None or earlier.champion is None:
        return Verdict(gate="no_worse", passed=True, numbers={}, words="no_worse: there is nothing earlier to compare on")
    right, before = earlier.pairs()
    gain = paired_gain(right, before, gate.confidence, "no_worse")
    passed = gain.value >= -gate.margin and gain.high >= 0
    return Verdict(
        gate="no_worse",
        passed=passed,
        numbers={"gain": gain.value, "low": gain.low, "high": gain.high, "margin": gate.margin, "samples": float(len(right))},
        words=(
            f"no_worse: {gain.value:+.1%} [{gain.low:+.1%}, {gain.high:+.1%}] on {len(right)} earlier hold-out samples, "
            f"may lose {gate.margin:.1%}"
        ),
    )


def _alias_verdicts(move: AliasMove, candidate: Candidate) -> list[Verdict]:
    """A pinned champion stays, a release that was rolled back or retired does not return by itself."""
    verdicts = []
    if move.pinned:
        words = f"pinned: v{move.version} is pinned ({move.reason}); `everfresh unpin` lets it move"
        verdicts.append(Verdict(gate="pinned", passed=False, numbers={}, words=words))
    if candidate.key in move.barred:
        words = "barred: this very release was rolled back; force a retraining to make another"
        verdicts.append(Verdict(gate="barred", passed=False, numbers={}, words=words))
    if candidate.key in move.retired:
        words = "retired: this very release was retired; `everfresh restore` takes that back"
        verdicts.append(Verdict(gate="retired", passed=False, numbers={}, words=words))
    return verdicts


def _judge(ours: Embedder, theirs: Embedder | None, views: Sequence[View], most: int) -> Judged:
    """Both models on the hold-outs of some views, at most `most` samples in all, drawn by a seed."""
    targets = Targets.of(ours.spec)
    picks = [(view, row) for view in views for row in view.rows("holdout", targets)]
    chosen = seeded_choice(len(picks), most, "bank", [v.window.view for v in views])
    rows: dict[str, list[int]] = {}
    for index in chosen:
        view, row = picks[int(index)]
        rows.setdefault(view.window.view, []).append(int(row))
    none = torch.zeros(0, len(targets.names))
    labels, challenger, champion = [targets.encode([])], [none], [none]
    for view in views:
        wanted = np.array(rows.get(view.window.view, []), dtype=np.int64)
        labels.append(targets.encode([view.samples[int(r)].label for r in wanted]))
        challenger.append(ours.scores(view, wanted)[1])
        if theirs is not None:
            champion.append(_in_order(theirs.scores(view, wanted)[1], theirs.spec.classes, targets.names))
    truth = np.concatenate(labels)
    if theirs is None:
        return Judged(truth, torch.cat(challenger), None, np.ones(len(truth), dtype=bool), targets)
    known = np.array([name in theirs.spec.classes for name in targets.names])
    shared = np.asarray(known[truth] if truth.ndim == 1 else ~(truth[:, ~known] > 0).any(axis=1))
    return Judged(truth, torch.cat(challenger), torch.cat(champion), shared, targets)


def _in_order(scores: Tensor, have: Sequence[str], want: Sequence[str]) -> Tensor:
    """Scores (N, C) of a model with other classes, in the order wanted; classes it does not know score lowest."""
    if tuple(have) == tuple(want):
        return scores
    floor = scores.min(dim=1, keepdim=True).values - 20.0
    columns = [scores[:, [have.index(name)]] if name in have else floor for name in want]
    return torch.cat(columns, dim=1)


def _pictures(store: Store, folder: str, here: Comparison, window: Judged) -> dict[str, Part]:
    """How both models do on the window's hold-out: confusions, F1 by class of sets, or values against the labels'."""
    targets = window.targets
    with scratch() as temporary:
        match targets.task:
            case "single_label":
                path = temporary / "confusion.png"
                confusion_picture(
                    here.champion.confusion if here.champion else None, here.challenger.confusion, targets.names, path
                )
            case "multi_label":
                path = temporary / "classes.png"
                classes_picture(here.champion.per_class if here.champion else None, here.challenger.per_class, path)
            case "regression":
                path = temporary / "values.png"
                before = None if window.champion is None else window.champion.numpy()
                values_picture(before, window.challenger.numpy(), window.labels, targets, path)
        return {path.name: store.keep_file(f"{attempt_folder(folder)}/{path.name}", path)}
