"""Scores of predictions by task, and paired differences between two models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, confusion_matrix, f1_score, precision_recall_fscore_support, r2_score
from torch import Tensor

from everfresh.tasks.records import Interval, Scores, digest_of
from everfresh.tasks.targets import Targets

RESAMPLES = 2_000


def score(scores: Tensor, truth: NDArray[Any], targets: Targets) -> Scores:
    """Accuracy, loss and what else the task is measured by, of a model's scores (N, K) against encoded labels (N, …)."""
    match targets.task:
        case "single_label":
            return _of_classes(scores, truth, targets.names)
        case "multi_label":
            return _of_sets(scores, truth, targets)
        case "regression":
            return _of_values(scores.double().numpy(), truth.astype(np.float64), targets)


def _of_classes(scores: Tensor, labels: NDArray[np.int64], classes: Sequence[str]) -> Scores:
    if not len(labels):
        empty = tuple((0,) * len(classes) for _ in classes)
        return Scores(samples=0, accuracy=0, loss=0, precision=0, recall=0, f1=0, per_class={}, confusion=empty)
    predicted = scores.argmax(dim=1).numpy()
    numbers = np.arange(len(classes))
    parts = precision_recall_fscore_support(labels, predicted, labels=numbers, zero_division=0.0)
    precision, recall, f1, support = (np.asarray(p) for p in parts)
    occurs = support > 0
    return Scores(
        samples=len(labels),
        accuracy=float((predicted == labels).mean()),
        loss=float(torch.nn.functional.cross_entropy(scores, torch.from_numpy(labels))),
        precision=float(precision[occurs].mean()),
        recall=float(recall[occurs].mean()),
        f1=float(f1[occurs].mean()),
        per_class=_by_class(classes, precision, recall, f1, support),
        confusion=tuple(tuple(int(n) for n in row) for row in confusion_matrix(labels, predicted, labels=numbers)),
    )


def _of_sets(scores: Tensor, truth: NDArray[np.float32], targets: Targets) -> Scores:
    """Of sets of classes: macro averages over the classes that occur, and over all decisions at once.

    ``hamming_accuracy`` is the share of right decisions; ``mean_average_precision`` the area under precision over recall,
    averaged over the classes that occur.
    """
    if not len(truth):
        return Scores(samples=0, accuracy=0, loss=0, precision=0, recall=0, f1=0, per_class={})
    there, said = truth > 0.5, (scores > 0).numpy()
    precision, recall, f1, support = (
        np.asarray(p) for p in precision_recall_fscore_support(there, said, average=None, zero_division=0.0)
    )
    occurs = support > 0
    ranked = scores.double().numpy()
    areas = [float(average_precision_score(there[:, i], ranked[:, i])) for i in np.flatnonzero(occurs)]
    return Scores(
        samples=len(truth),
        accuracy=float(targets.right(scores.numpy(), truth).mean()),
        loss=float(torch.nn.functional.binary_cross_entropy_with_logits(scores, torch.from_numpy(truth))),
        precision=_mean(precision[occurs]),
        recall=_mean(recall[occurs]),
        f1=_mean(f1[occurs]),
        per_class=_by_class(targets.names, precision, recall, f1, support),
        metrics={
            "micro_f1": float(f1_score(there, said, average="micro", zero_division=0.0)),
            "hamming_accuracy": float((there == said).mean()),
            "mean_average_precision": _mean(np.array(areas)),
        },
    )


def _of_values(said: NDArray[np.float64], truth: NDArray[np.float64], targets: Targets) -> Scores:
    """Of values: errors in units, averaged over the targets; ``r2`` is the share of the variance that is explained."""
    if not len(truth):
        return Scores(samples=0, accuracy=0, loss=0, per_class={}, metrics={"mae": 0.0, "rmse": 0.0, "r2": 0.0})
    error = said - truth  # (N, T)
    mae, rmse = np.abs(error).mean(axis=0), np.sqrt((error**2).mean(axis=0))
    each = [float(r2_score(truth[:, i], said[:, i])) if len(truth) > 1 else 0.0 for i in range(truth.shape[1])]
    return Scores(
        samples=len(truth),
        accuracy=float(targets.right(said, truth).mean()),
        loss=float((error**2).mean()),
        per_class={
            name: {"mae": float(mae[i]), "rmse": float(rmse[i]), "r2": each[i], "samples": float(len(truth))}
            for i, name in enumerate(targets.names)
        },
        metrics={"mae": float(mae.mean()), "rmse": float(rmse.mean()), "r2": float(np.mean(each))},
    )


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else 0.0


def _by_class(names: Sequence[str], *columns: NDArray[np.float64]) -> dict[str, dict[str, float]]:
    keys = ("precision", "recall", "f1", "samples")
    return {name: {k: float(c[i]) for k, c in zip(keys, columns, strict=True)} for i, name in enumerate(names)}


def paired_gain(challenger: NDArray[np.float64], champion: NDArray[np.float64], confidence: float, seed: str) -> Interval:
    """Mean of paired differences (N,) with its percentile bootstrap interval."""
    if not len(challenger):
        return Interval(value=0.0, low=-1.0, high=1.0)
    difference = challenger - champion
    rng = seeded_rng("gain", seed)
    # The difference takes three values only: resampling their counts is resampling the samples.
    values, counts = np.unique(difference, return_counts=True)
    means = rng.multinomial(len(difference), counts / len(difference), RESAMPLES) @ values / len(difference)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value=float(difference.mean()), low=float(low), high=float(high))


def seeded_rng(*seed: str) -> np.random.Generator:
    """Random numbers that some words stand for."""
    return np.random.default_rng(int(digest_of(*seed), 16))
