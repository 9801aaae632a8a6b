"""Scores of class predictions, and paired differences between two models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch import Tensor

from everfresh.tasks.records import Interval, Scores, digest_of

RESAMPLES = 2_000


def score(scores: Tensor, labels: NDArray[np.int64], classes: Sequence[str]) -> Scores:
    """Accuracy, loss, and precision, recall and F1 by class, of class scores (N, C) against labels (N,)."""
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
        per_class={
            name: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "samples": float(support[i]),
            }
            for i, name in enumerate(classes)
        },
        confusion=tuple(tuple(int(n) for n in row) for row in confusion_matrix(labels, predicted, labels=numbers)),
    )


def paired_gain(challenger: NDArray[np.float64], champion: NDArray[np.float64], confidence: float, seed: str) -> Interval:
    """Mean of paired differences (N,) with its percentile bootstrap interval."""
    if not len(challenger):
        return Interval(value=0.0, low=-1.0, high=1.0)
    difference = challenger - champion
    rng = np.random.default_rng(int(digest_of("gain", seed), 16))
    # The difference takes three values only: resampling their counts is resampling the samples.
    values, counts = np.unique(difference, return_counts=True)
    means = rng.multinomial(len(difference), counts / len(difference), RESAMPLES) @ values / len(difference)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value=float(difference.mean()), low=float(low), high=float(high))
