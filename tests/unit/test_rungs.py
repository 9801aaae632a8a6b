"""What a replay with all rungs tells, and that one look at the hold-out keeps the gates' declared rate."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from support.loop import pipeline

from everfresh.flows import retrain
from everfresh.flows.rungs import accounts, advice, rungs_table
from everfresh.tasks.config import BetterGate
from everfresh.tasks.decide import best
from everfresh.tasks.errors import ModelError
from everfresh.tasks.gates import Judged, Trial, judge
from everfresh.tasks.metrics import paired_gain
from everfresh.tasks.records import (
    Candidate,
    Comparison,
    Cost,
    Decision,
    Interval,
    JournalEntry,
    ModelSpec,
    Part,
    Scores,
    Tick,
    TriedRung,
)
from everfresh.tasks.targets import Targets

NOW = datetime(2024, 5, 1, tzinfo=UTC)
NOTHING = Scores(samples=0, accuracy=0, loss=0, precision=0, recall=0, f1=0, per_class={}, confusion=())


def rung(name: Any, seconds: float, gain: float, *failed: str) -> TriedRung:
    return TriedRung(
        rung=name, candidate=name, weights_sha256="", tune_accuracy=0.5, tune_gain=gain / 2,
        gain=Interval(value=gain, low=gain, high=gain), failed_gates=failed,
        cost=Cost(seconds=seconds, device_seconds=seconds),
    )  # fmt: skip


def entry(*beside: TriedRung, tried: tuple[TriedRung, ...] = (), action: Any = "retrain") -> JournalEntry:
    return JournalEntry(
        seq=1, request="", view="v", samples=1, quarantined=0, labelled=1, champion="r", champion_version=1, trust="trusted",
        decision=Decision(action=action, reasons=("x",)), tried=tried, beside=beside, bank=(), samples_since_training=0,
        windows_since_training=0, cost=Cost(), started_at=NOW, finished_at=NOW,
    )  # fmt: skip


HEAD, FULL, FROM_START = rung("head", 1, 0.2), rung("full", 9, 0.205), rung("pretrained", 50, 0.1)
UNASKED = HEAD.model_copy(update={"failed_gates": None, "gain": None})


def test_each_rung_is_accounted_for_over_all_retrainings() -> None:
    entries = [
        entry(action="bootstrap"),
        entry(HEAD, FULL, FROM_START, tried=(UNASKED, FULL)),
        entry(rung("head", 1, 0.1, "better"), rung("full", 9, 0.3), tried=(rung("head", 1, 0.1, "better"),)),
    ]
    own, recalibrated, head, full, pretrained = accounts(entries)
    assert (own.answers, own.passed, own.seconds, own.bought) == (2, 1, 11, pytest.approx(0.1025))
    assert (recalibrated.answers, recalibrated.holdout, recalibrated.seconds) == (0, 0, 0)
    assert (head.answers, head.passed, head.seconds) == (2, 1, 2)
    assert (head.tune, head.holdout, head.bought) == (pytest.approx(0.075), pytest.approx(0.15), pytest.approx(0.1))
    assert (full.passed, full.bought) == (2, pytest.approx(0.2525))
    assert (pretrained.answers, pretrained.bought) == (1, pytest.approx(0.05))
    console = Console(width=120)
    with console.capture() as shown:
        console.print(rungs_table(entries))
    assert "What each rung costs and gains over 2 retrainings" in shown.get()
    assert "+25.2%" in shown.get()


def test_the_cheapest_of_those_that_are_as_good_is_advised() -> None:
    assert "head alone +20.0 points a retraining for 1.0 device-seconds" in advice(
        [entry(HEAD, FULL, FROM_START, tried=(UNASKED, FULL))]
    )
    assert "policy: {ladder: [head]}" in advice([entry(HEAD, FULL, tried=(UNASKED, FULL))])
    assert "Keep the ladder" in advice([entry(HEAD, FULL, tried=(HEAD,))])
    dear = advice([entry(rung("head", 1, 0.1), FULL, tried=(rung("head", 1, 0.1),))])
    assert "policy: {ladder: [full]}" in dear
    assert "No rung bought anything" in advice([entry(rung("head", 1, 0.2, "better"), tried=(rung("head", 1, 0.2, "better"),))])
    assert advice([entry(action="nothing")]) == "Nothing was retrained: there is no rung to advise."


def test_a_rung_that_cannot_be_made_does_not_end_a_replay(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    def gone(*_: Any) -> Candidate:
        raise ModelError("model.weights must be a file that exists, got photo.safetensors, which is none. Put it there.")

    monkeypatch.setattr(retrain, "fine_tuned", gone)
    monkeypatch.setattr(retrain, "get_run_logger", lambda: logging.getLogger("run"))
    caplog.set_level(logging.INFO)
    tick = Tick(seq=2, request="", view="v", champion="r", champion_move=1, reference=None, bank=(), now=NOW)
    assert retrain.measure(pipeline(tmp_path), tick, None, ("pretrained",), []) == []
    assert "rung pretrained cannot be measured: model.weights must be a file that exists" in caplog.text


# --- one look at the hold-out ------------------------------------------------------------------------------------------


def candidate(name: Any, tune: float) -> Candidate:
    part = Part(key="k", sha256="0" * 64, size=1)
    spec = ModelSpec(
        architecture="x", classes=("a", "b"), head="fc", native_head=False, embedding_dim=4, image_size=8, mean=(0, 0, 0),
        std=(1, 1, 1),
    )  # fmt: skip
    return Candidate(
        key=name, rung=name, view="v", replay=(), champion="r", start=None, request="", spec=spec, encoder="e", weights=part,
        trained_on=1, tune_accuracy=tune, tune_samples=30, kept_accuracy=None, cost=Cost(), device="cpu",
    )  # fmt: skip


def passes(gate: BetterGate, right: np.ndarray, champion: np.ndarray) -> bool:
    """Whether the gate lets a challenger through that is `right` (N,) where the champion is `champion` (N,)."""
    ours, theirs = (torch.eye(2, dtype=torch.float64)[1 - hits.astype(int)] for hits in (right, champion))
    judged = Judged(np.zeros(len(right), dtype=np.int64), ours, theirs, np.ones(len(right), dtype=bool), Targets(("a", "b")))
    here = Comparison(challenger=NOTHING, champion=NOTHING, gain=paired_gain(*judged.pairs(), 0.95, "x"))
    return judge(gate, Trial(judged, here, judged, None)).passed


def test_the_best_of_four_rungs_on_tune_passes_by_chance_no_more_often_than_declared() -> None:
    """No correction is needed for the rungs tried: one challenger is proven, and *tune* alone chose it.

    Were all four put to the gate, one of them would pass far more often.
    """
    rng, gate, runs, held = np.random.default_rng(0), BetterGate(confidence=0.8), 250, 120
    chosen, any_of_them = 0, 0
    for _ in range(runs):
        # Champion and four rungs are right on 70 % of all samples, each of them independently: equally good.
        tune, champion = rng.random((4, 30)) < 0.7, rng.random(held) < 0.7
        holdout = rng.random((4, held)) < 0.7
        tried = [
            candidate(name, hits.mean()) for name, hits in zip(("recalibrate", "head", "full", "pretrained"), tune, strict=True)
        ]
        passed = [passes(gate, right, champion) for right in holdout]
        chosen += passed[tried.index(best(tried))]  # type: ignore[arg-type]
        any_of_them += any(passed)
    margin = 3 * (0.2 * 0.8 / runs) ** 0.5
    assert chosen / runs <= 0.2 + margin
    assert chosen / runs > 0.1  # the gate is not just shut
    assert any_of_them / runs > 0.2 + margin
