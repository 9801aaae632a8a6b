"""Recalibrate: a temperature and new class shares, folded into the head; nothing is trained, nothing gets worse on *tune*."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.loop import arrive, open_tick, pipeline, run_window, second_window
from torch import Tensor, nn

from everfresh.tasks.embeddings import Embedder
from everfresh.tasks.errors import RungUnfit
from everfresh.tasks.fine_tune import fine_tune
from everfresh.tasks.fine_tune.recalibrate import fit, fold, log_ratio
from everfresh.tasks.ledger import find
from everfresh.tasks.records import Release
from everfresh.tasks.store import FolderStore
from everfresh.tasks.views import View


def normals(shares: list[float], count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points (N, 2) of normal classes, their labels, and the scores that are right for equal shares."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(len(shares), count, p=shares)
    centres = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    points = centres[labels] + torch.from_numpy(rng.normal(size=(count, 2))).float()
    scores = points @ centres.T - 0.5 * (centres**2).sum(dim=1)
    return points, torch.from_numpy(labels), scores


def loss(scores: Tensor, labels: Tensor) -> float:
    return float(nn.functional.cross_entropy(scores.double(), labels))


def test_a_prior_shift_is_recovered() -> None:
    shares = [0.8, 0.15, 0.05]
    _, labels, scores = normals(shares, 4_000, 0)
    ratio = log_ratio(np.bincount(labels.numpy(), minlength=3), np.array([1_000, 1_000, 1_000]))
    torch.testing.assert_close(ratio, torch.tensor(shares).mul(3).log(), atol=0.05, rtol=0)
    temperature, strength, gain = fit([(scores, labels)], ratio)
    assert temperature == pytest.approx(1, abs=0.1)
    assert strength == 1.0
    assert gain > 0.1
    _, later, unseen = normals(shares, 4_000, 1)
    right = ((unseen / temperature + strength * ratio).argmax(dim=1) == later).float().mean()
    assert right > (unseen.argmax(dim=1) == later).float().mean() + 0.05


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_a_temperature_is_recovered(factor: float) -> None:
    _, labels, scores = normals([1 / 3] * 3, 4_000, 0)
    temperature, _, gain = fit([(scores * factor, labels)], torch.zeros(3))
    assert temperature == pytest.approx(factor, rel=0.15)
    assert gain > 0.01 or factor == 1.0


def test_earlier_windows_with_the_shares_of_old_hold_the_strength_back() -> None:
    _, labels, scores = normals([0.8, 0.15, 0.05], 2_000, 0)
    _, old, usual = normals([1 / 3] * 3, 2_000, 1)
    ratio = log_ratio(np.bincount(labels.numpy(), minlength=3), np.array([500, 500, 500]))
    _, strength, gain = fit([(scores, labels), (usual, old)], ratio)
    assert 0 < strength < 1
    assert gain > 0


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 12), classes=st.integers(2, 5), size=st.floats(0.01, 100))
def test_the_log_loss_on_tune_is_never_higher_than_before(seed: int, count: int, classes: int, size: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    scores = size * torch.randn(count, classes, generator=draw)
    labels = torch.randint(classes, (count,), generator=draw)
    ratio = torch.randn(classes, generator=draw)
    temperature, strength, gain = fit([(scores, labels)], ratio)
    assert gain >= 0
    after = loss(scores.double() / temperature + strength * ratio, labels)
    assert after == pytest.approx(loss(scores, labels) - gain, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), temperature=st.floats(0.05, 20), bias=st.booleans())
def test_folded_into_the_head_it_gives_the_same_scores(seed: int, temperature: float, bias: bool) -> None:
    torch.manual_seed(seed)
    head, points, offset = nn.Linear(4, 3, bias=bias), torch.randn(5, 4), torch.randn(3)
    wanted = head(points) / temperature + (offset if bias else 0)
    fold(head, temperature, offset)
    torch.testing.assert_close(head(points), wanted, rtol=1e-4, atol=1e-4)


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=2, max_size=6))
def test_shares_are_finite_and_a_missing_class_leans_to_the_old_ones(counts: list[tuple[int, int]]) -> None:
    now, usual = (np.array(c) for c in zip(*counts, strict=True))
    ratio = log_ratio(now, usual)
    assert torch.isfinite(ratio).all()
    torch.testing.assert_close(log_ratio(0 * now, usual), torch.zeros(len(now)))


# --- as a rung ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def shifted(tmp_path: Path) -> Any:
    """A champion of equal shares meets a window that is nearly all of one class."""
    config = pipeline(tmp_path, policy={"triggers": [{"kind": "new_samples", "count": 1}]})
    store = FolderStore(tmp_path / "store")
    arrive(config, 60)
    run_window(store, config)
    arrive(config, 60, start=300, classes=("zero",))
    arrive(config, 12, start=300, classes=("one", "two"))
    return store, config, open_tick(store, config)


def test_a_recalibrated_champion_is_a_plain_model_with_the_same_backbone(shifted: Any) -> None:
    store, _, tick = shifted
    made = fine_tune(*shifted, "recalibrate")
    release = find(store, f"releases/{tick.champion}/release.json", Release)
    assert release is not None
    assert (made.rung, made.start, made.device, made.spec) == ("recalibrate", release.id, "cpu", release.spec)
    assert made.weights.sha256 != release.files["model.safetensors"].sha256
    before = Embedder.open(store, release.spec, release.files["model.safetensors"])
    after = Embedder.open(store, made.spec, made.weights)
    assert before.encoder == after.encoder == made.encoder
    view = View(store, tick.view)
    rows = view.rows("tune", made.spec.classes)
    labels = torch.tensor([made.spec.classes.index(view.samples[int(r)].label or "") for r in rows])
    assert loss(after.scores(view, rows)[1], labels) < loss(before.scores(view, rows)[1], labels)
    assert made.champion_accuracy is not None
    assert made.gain == pytest.approx(made.tune_accuracy - made.champion_accuracy)
    assert fine_tune(*shifted, "recalibrate") == made


def test_without_a_champion_there_is_nothing_to_recalibrate(tmp_path: Path) -> None:
    config = pipeline(tmp_path)
    arrive(config, 20)
    store = FolderStore(tmp_path / "store")
    with pytest.raises(RungUnfit, match="there is no champion yet"):
        fine_tune(store, config, open_tick(store, config), "recalibrate")


def test_new_classes_take_a_head(tmp_path: Path) -> None:
    store, config = second_window(tmp_path)
    tick = open_tick(store, config)
    more = config.model_copy(update={"model": config.model.model_copy(update={"classes": ("zero", "one", "two", "three")})})
    with pytest.raises(RungUnfit, match=r"model\.classes has changed"):
        fine_tune(store, more, tick, "recalibrate")


def test_a_head_that_is_a_convolution_cannot_be_recalibrated(shifted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _, tick = shifted
    release = find(store, f"releases/{tick.champion}/release.json", Release)
    assert release is not None
    made = Embedder.open(store, release.spec, release.files["model.safetensors"])
    made.spec = made.spec.model_copy(update={"native_head": True})
    from everfresh.tasks.fine_tune.pool import Pool
    from everfresh.tasks.fine_tune.recalibrate import recalibrate
    from everfresh.tasks.targets import Targets

    nothing = Pool((), Targets.of(made.spec))
    with pytest.raises(RungUnfit, match="small_cnn is no linear layer yet; refitting it makes it one"):
        recalibrate(made, nothing, nothing, nothing, {})


def test_where_nothing_helps_it_says_so(shifted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from everfresh.tasks.fine_tune import recalibrate

    monkeypatch.setattr(recalibrate, "LEAST_GAIN", 10.0)
    with pytest.raises(RungUnfit, match="neither a temperature nor new class shares lower the log loss on tune"):
        fine_tune(*shifted, "recalibrate")
