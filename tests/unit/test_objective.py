"""Losses are the formulas of their papers, and a regression is trained in standard deviations but predicts in units."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from everfresh.tasks.config import FineTuneConfig
from everfresh.tasks.fine_tune.objective import Objective, class_weights
from everfresh.tasks.targets import Targets

ONE, SETS = Targets(("a", "b", "c")), Targets(("a", "b", "c"), "multi_label")
VALUES = Targets(("x", "y"), "regression", 0.5)


def drawn(seed: int = 0, rows: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores (N, 3), class numbers, sets and values (N, 2)."""
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(rng.normal(size=(rows, 3))).float()
    sets = torch.from_numpy(rng.integers(0, 2, (rows, 3))).float()
    return scores, torch.from_numpy(rng.integers(0, 3, rows)), sets, torch.from_numpy(rng.normal(50, [3, 9], (rows, 2))).float()


def loss(
    targets: Targets, scores: torch.Tensor, truth: torch.Tensor, all_of: torch.Tensor | None = None, **config: Any
) -> float:
    return float(Objective(targets, FineTuneConfig(**config), truth if all_of is None else all_of).loss(scores, truth))


def test_cross_entropy_is_that_of_torch_to_the_bit() -> None:
    scores, numbers, _, _ = drawn()
    for smooth in (0.0, 0.1):
        expected = float(F.cross_entropy(scores, numbers, label_smoothing=smooth))
        assert loss(ONE, scores, numbers, label_smoothing=smooth) == expected


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999])
def test_class_balanced_weighs_by_the_effective_number_of_samples(beta: float) -> None:
    scores, _, _, _ = drawn()
    numbers = torch.tensor([0] * 8 + [1] * 3 + [2])
    raw = [(1 - beta) / (1 - beta**n) for n in (8, 3, 1)]
    weights = [w / sum(raw) * 3 for w in raw]
    each = [-weights[int(y)] * float(s.log_softmax(0)[int(y)]) for s, y in zip(scores, numbers, strict=True)]
    assert loss(ONE, scores, numbers, loss="class_balanced", balance_beta=beta) == pytest.approx(np.mean(each), rel=1e-5)


def test_a_class_without_samples_weighs_nothing() -> None:
    assert class_weights(torch.tensor([0, 0, 2]), 4, 0.999)[[1, 3]].tolist() == [0, 0]


@given(st.integers(0, 99), st.sampled_from([0.0, 0.5, 2.0]))
def test_focal_counts_a_sample_less_the_better_it_is_predicted(seed: int, gamma: float) -> None:
    scores, numbers, sets, _ = drawn(seed)
    chosen = scores.softmax(1)[torch.arange(12), numbers]
    expected = float((-((1 - chosen) ** gamma) * chosen.log()).mean())
    assert loss(ONE, scores, numbers, loss="focal", focal_gamma=gamma) == pytest.approx(expected, rel=1e-4)
    true = torch.where(sets > 0, scores.sigmoid(), 1 - scores.sigmoid())
    expected = float((-((1 - true) ** gamma) * true.log()).mean())
    assert loss(SETS, scores, sets, loss="focal", focal_gamma=gamma) == pytest.approx(expected, rel=1e-4)


def test_losses_of_bf16_scores_are_added_up_in_fp32() -> None:
    scores, numbers, sets, _ = drawn(0)
    for task, truth, kinds in ((ONE, numbers, ("cross_entropy", "class_balanced", "focal")), (SETS, sets, ("bce", "focal"))):
        for kind in kinds:
            objective = Objective(task, FineTuneConfig(loss=kind), truth)
            with torch.autocast("cpu", torch.bfloat16):
                assert objective.loss(scores.bfloat16(), truth).dtype == torch.float32, kind


@pytest.mark.parametrize("kind", ["cross_entropy", "class_balanced", "focal"])
def test_shares_of_the_classes_serve_as_labels_too(kind: str) -> None:
    scores, numbers, _, _ = drawn()
    objective = Objective(ONE, FineTuneConfig(loss=kind), numbers)  # type: ignore[arg-type]
    hard, soft = objective.loss(scores, numbers), objective.loss(scores, F.one_hot(numbers, 3).float())
    torch.testing.assert_close(hard, soft)


@pytest.mark.parametrize(
    ("kind", "each"),
    [
        ("mse", lambda e: e**2),
        ("mae", np.abs),
        ("huber", lambda e: np.where(np.abs(e) <= 0.7, e**2 / 2, 0.7 * (np.abs(e) - 0.35))),
    ],
)
def test_values_are_measured_in_standard_deviations_of_the_training_samples(kind: str, each: Any) -> None:
    scores, _, _, values = drawn()
    standard = (values.numpy() - values.numpy().mean(0)) / values.numpy().std(0)
    expected = each(scores[:, :2].numpy() - standard).mean()
    assert loss(VALUES, scores[:, :2], values, loss=kind, huber_delta=0.7) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("targets", "place", "kind"),
    [(ONE, 1, "cross_entropy"), (ONE, 1, "class_balanced"), (ONE, 1, "focal"), (SETS, 2, "bce"), (SETS, 2, "focal")]
    + [(VALUES, 3, k) for k in ("mse", "mae", "huber")],
)
def test_parts_of_a_batch_add_up_in_their_shares(targets: Targets, place: int, kind: Any) -> None:
    scores, truth = drawn()[0][:, : len(targets.names)], drawn()[place]
    objective = Objective(targets, FineTuneConfig(loss=kind), truth)
    parts = objective.loss(scores[:5], truth[:5]) * 5 / 12 + objective.loss(scores[5:], truth[5:]) * 7 / 12
    torch.testing.assert_close(objective.loss(scores, truth), parts)


@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e4), st.booleans())
def test_a_last_layer_moved_into_deviations_and_back_predicts_the_same(centre: float, spread: float, biased: bool) -> None:
    torch.manual_seed(0)
    head, features = nn.Linear(5, 2, bias=biased), torch.randn(40, 5)
    with torch.no_grad():
        head.weight.mul_(spread)
        if biased:
            head.bias.add_(centre)
    truth = centre + spread * torch.randn(40, 2)
    before = head(features).detach()
    objective = Objective(VALUES, FineTuneConfig(), truth)
    objective.enter(head, drawn=False)
    inside = head(features).detach()
    expected = (before - objective.centre) / objective.scale
    size = float(objective.centre.abs().max() / objective.scale.min()) + 1
    torch.testing.assert_close(inside, expected, rtol=1e-3, atol=1e-5 * size)
    assert objective.right(inside, truth).shape == (40,)
    objective.leave(head)
    torch.testing.assert_close(head(features), before, rtol=1e-4, atol=1e-5 * (abs(centre) + spread))


def test_a_layer_that_was_drawn_starts_in_deviations_and_ends_in_units() -> None:
    torch.manual_seed(0)
    head, features = nn.Linear(5, 2), torch.randn(64, 5)
    truth = torch.tensor([300.0, -4.0]) + torch.tensor([0.01, 7.0]) * torch.randn(64, 2)
    drawn_weights = head.weight.detach().clone()
    objective = Objective(VALUES, FineTuneConfig(), truth)
    objective.enter(head, drawn=True)
    assert torch.equal(head.weight, drawn_weights)
    standard = head(features).detach()
    objective.leave(head)
    torch.testing.assert_close(head(features), standard * truth.std(0, correction=0) + truth.mean(0), rtol=1e-4, atol=1e-4)


def test_a_target_that_never_varies_breaks_nothing() -> None:
    truth = torch.tensor([[1.0, 5.0], [2.0, 5.0]])
    assert loss(VALUES, torch.zeros(2, 2), truth) == pytest.approx(0.5)
