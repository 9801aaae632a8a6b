"""The cheapest rung: the last layer, refitted on embeddings that are there already.

Multinomial logistic regression for one of several classes, one for each class of a set, ridge regression (Hoerl & Kennard,
1970) for values. How strongly it is regularised is chosen on *tune*.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from everfresh.tasks import models
from everfresh.tasks.config import FineTuneConfig
from everfresh.tasks.embeddings import Embedder
from everfresh.tasks.errors import DataError
from everfresh.tasks.fine_tune.objective import Objective
from everfresh.tasks.fine_tune.pool import Pool, labels_of
from everfresh.tasks.records import ModelSpec

HEAD_STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Inverse regularisation C that the head is fitted with; the lowest log loss on *tune* is taken, without *tune* the middle."""
RIDGES = (0.1, 1.0, 10.0, 100.0, 1_000.0)
"""Penalties of a regression's head, on standardised embeddings; the lowest squared error on *tune* is taken."""


Linear = tuple[Tensor, Tensor]
"""Weight (K, D) and bias (K,) of the last layer on plain embeddings."""


def refit_head(embedder: Embedder, train: Pool, tune: Pool, kept: Pool, seed: int) -> ModelSpec:
    """Fit the head on embeddings, in place. Regularisation is chosen by the loss on new and earlier *tune* alike.

    Raises:
        DataError: all training samples have one label.
    """
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    targets = train.targets
    embedder.spec = models.with_linear_head(embedder.module, embedder.spec, seed)
    features = torch.cat([embedder.embeddings(v, r) for v, r in train.parts]).double().numpy()
    truth = train.labels
    labels = truth.numpy()
    if len(np.unique(labels, axis=0)) < 2:
        what, only = "samples of at least two classes", targets.names[int(labels[0])] if labels.ndim == 1 else ""
        if labels.ndim == 2:
            what, only = "at least two different labels", targets.texts(labels[:1] - (targets.task == "multi_label") / 2)[0]
        raise DataError(
            f"fine_tune: the head needs {what}, got only {only!r}. Collect more, or raise fine_tune.replay_max_samples."
        )
    head = models.linear_head(embedder.module, embedder.spec)
    biased = head.bias is not None
    centre, scale = features.mean(axis=0) * biased, features.std(axis=0) + 1e-6
    standardised = (features - centre) / scale
    sets = [[(embedder.embeddings(v, r), labels_of(v, r, targets)) for v, r in pool.parts if len(r)] for pool in (tune, kept)]
    fitted = {"single_label": _classes, "multi_label": _sets, "regression": _values}[targets.task]
    objective = Objective(targets, FineTuneConfig(), truth)
    best: tuple[float, Tensor, Tensor] | None = None
    strengths: Sequence[float] = RIDGES[::-1] if targets.task == "regression" else HEAD_STRENGTHS
    if not any(sets):  # nothing to choose by
        strengths = (strengths[len(strengths) // 2],)
    for strength in strengths:
        # One thread: the same bits on any number of cores, and no threads that spin for each other on busy ones.
        with warnings.catch_warnings(), threadpool_limits(1):
            warnings.simplefilter("ignore", ConvergenceWarning)
            weight, bias = fitted(standardised, labels, strength, centre, scale, len(targets.names), biased=biased)
        losses = [_loss(weight, bias, group, objective) for group in sets if group]
        loss = float(np.mean(losses)) if losses else 0.0
        if best is None or loss < best[0]:
            best = (loss, weight, bias)
    with torch.no_grad():
        head.weight.copy_(best[1])  # type: ignore[index]
        if biased:
            head.bias.copy_(best[2])  # type: ignore[index]
    return embedder.spec


def _loss(weight: Tensor, bias: Tensor, group: Sequence[tuple[Tensor, Tensor]], objective: Objective) -> float:
    """The task's own loss; of values in units of the training samples' spread."""
    scores = torch.cat([x @ weight.T + bias for x, _ in group])
    scores = objective.standardised(scores) if objective.targets.task == "regression" else scores
    return float(objective.own(scores, torch.cat([y for _, y in group])))


def _classes(x: Any, labels: Any, strength: float, centre: Any, scale: Any, outputs: int, *, biased: bool) -> Linear:
    from sklearn.linear_model import LogisticRegression

    fit = LogisticRegression(C=strength, max_iter=300, fit_intercept=biased).fit(x, labels)
    return as_linear(fit, centre, scale, outputs)


def _sets(x: Any, labels: Any, strength: float, centre: Any, scale: Any, outputs: int, *, biased: bool) -> Linear:
    """A logistic regression for each class. One that is always or never there gets the odds of that alone."""
    from sklearn.linear_model import LogisticRegression

    weight, bias = torch.zeros(outputs, x.shape[1]), torch.zeros(outputs)
    for place, there in enumerate(labels.T > 0):
        if there.all() or not there.any():
            bias[place] = float(np.log((there.sum() + 0.5) / (len(there) - there.sum() + 0.5)))
            continue
        fit = LogisticRegression(C=strength, max_iter=300, fit_intercept=biased).fit(x, there.astype(int))
        rows = fit.coef_ / scale
        weight[place] = torch.from_numpy(rows[0])
        bias[place] = float((fit.intercept_ - rows @ centre)[0]) if biased else 0.0
    return weight, bias


def _values(x: Any, labels: Any, penalty: float, centre: Any, scale: Any, outputs: int, *, biased: bool) -> Linear:
    from sklearn.linear_model import Ridge

    fit = Ridge(alpha=penalty, fit_intercept=biased, solver="cholesky").fit(x, labels.astype(np.float64))
    rows = np.reshape(fit.coef_, (outputs, -1)) / scale
    offsets = fit.intercept_ - rows @ centre if biased else np.zeros(outputs)
    return torch.from_numpy(rows).float(), torch.from_numpy(np.reshape(offsets, outputs)).float()


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
