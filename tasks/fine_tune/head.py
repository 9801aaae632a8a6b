"""The cheapest rung: the last layer, refitted on embeddings that are there already."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from everfresh.tasks import models
from everfresh.tasks.embeddings import Embedder
from everfresh.tasks.errors import DataError
from everfresh.tasks.fine_tune.pool import Pool, labels_of
from everfresh.tasks.records import ModelSpec

HEAD_STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Inverse regularisation C that the head is fitted with; the lowest log loss on *tune* is taken."""


def refit_head(embedder: Embedder, train: Pool, tune: Pool, kept: Pool, seed: int) -> ModelSpec:
    """Fit the head on embeddings, in place. Regularisation is chosen by log loss on new and earlier *tune* alike."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    classes = train.classes
    embedder.spec = models.with_linear_head(embedder.module, embedder.spec, seed)
    features = torch.cat([embedder.embeddings(v, r) for v, r in train.parts]).double().numpy()
    labels = train.labels.numpy()
    if len(np.unique(labels)) < 2:
        raise DataError(
            f"fine_tune: the head needs samples of at least two classes, got only {classes[int(labels[0])]!r}. "
            "Collect more, or raise fine_tune.replay_max_samples."
        )
    head = models.linear_head(embedder.module, embedder.spec)
    biased = head.bias is not None
    centre, scale = features.mean(axis=0) * biased, features.std(axis=0) + 1e-6
    sets = [[(embedder.embeddings(v, r), labels_of(v, r, classes)) for v, r in pool.parts if len(r)] for pool in (tune, kept)]
    best: tuple[float, Tensor, Tensor] | None = None
    for strength in HEAD_STRENGTHS:
        # One thread: the same bits on any number of cores, and no threads that spin for each other on busy ones.
        with warnings.catch_warnings(), threadpool_limits(1):
            warnings.simplefilter("ignore", ConvergenceWarning)
            fit = LogisticRegression(C=strength, max_iter=300, fit_intercept=biased).fit((features - centre) / scale, labels)
        weight, bias = as_linear(fit, centre, scale, len(classes))
        losses = [_log_loss(weight, bias, group) for group in sets if group]
        loss = float(np.mean(losses)) if losses else strength
        if best is None or loss < best[0]:
            best = (loss, weight, bias)
    with torch.no_grad():
        head.weight.copy_(best[1])  # type: ignore[index]
        if biased:
            head.bias.copy_(best[2])  # type: ignore[index]
    return embedder.spec


def _log_loss(weight: Tensor, bias: Tensor, group: Sequence[tuple[Tensor, Tensor]]) -> float:
    scores = torch.cat([x @ weight.T + bias for x, _ in group])
    return float(nn.functional.cross_entropy(scores, torch.cat([y for _, y in group])))


def as_linear(fit: Any, centre: Any, scale: Any, classes: int) -> tuple[Tensor, Tensor]:
    """Weight (C, D) and bias (C,) of a logistic regression on standardised features.

    Classes unseen are never predicted: they score the mean of the others, less 20 where there is a bias.
    """
    coefficients, intercepts = fit.coef_, fit.intercept_
    if len(fit.classes_) == 2:  # one row for two classes
        coefficients, intercepts = np.vstack([-coefficients, coefficients]) / 2, np.hstack([-intercepts, intercepts]) / 2
    rows = coefficients / scale
    offsets = np.zeros(len(rows)) if not fit.fit_intercept else intercepts - rows @ centre
    weight = np.tile(rows.mean(axis=0), (classes, 1))
    bias = np.full(classes, offsets.mean() - (20.0 if fit.fit_intercept else 0.0))
    weight[fit.classes_], bias[fit.classes_] = rows, offsets
    return torch.from_numpy(weight).float(), torch.from_numpy(bias).float()
