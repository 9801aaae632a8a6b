"""The rung below the head: nothing is trained, scores are cooled and moved to the class shares of now.

If only the shares of the classes have changed, the champion's scores are right again once the log ratio of new to old
shares is added (Saerens, Latinne & Decaestecker, Neural Computation 2002); if it is too sure or not sure enough, once they
are divided by a temperature (Guo et al., ICML 2017). Both fold into the linear head, so what comes out is a plain model::

    scores = (W x + b) / T + strength · log(new shares / old shares)

Temperature and strength are fitted by log loss on *tune*, new and earlier alike: two numbers, which few samples can tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from everfresh.tasks import models
from everfresh.tasks.embeddings import Embedder
from everfresh.tasks.errors import RungUnfit
from everfresh.tasks.fine_tune.pool import Pool, labels_of
from everfresh.tasks.records import ModelSpec

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of the log ratio of shares; below 1 where the earlier windows, with the shares of old, are to be kept as well."""
COLDEST, HOTTEST = 0.05, 20.0
"""Temperatures that are looked at."""
LEANING = 10.0
"""Samples' worth by which new shares lean to the old ones: a class that a small window lacks has not died out."""
LEAST_GAIN = 1e-4
"""Log loss that must be gained, in nats, for the rung to be an answer at all."""


def recalibrate(embedder: Embedder, train: Pool, tune: Pool, kept: Pool, usual: Mapping[str, int]) -> ModelSpec:
    """Fold temperature and new class shares into the head, in place.

    Args:
        embedder: of the champion.
        train: its first part is the window's, whose labels tell the new shares.
        tune: of the window.
        kept: tune samples of earlier windows.
        usual: labelled samples by class, in the windows that the champion was made from.

    Raises:
        RungUnfit: the head is not linear, there is nothing to fit on, or nothing is gained on *tune*.
    """
    if embedder.spec.native_head:
        raise RungUnfit(f"the head of {embedder.spec.architecture} is no linear layer yet; refitting it makes it one")
    head = models.linear_head(embedder.module, embedder.spec)
    groups = [
        (
            torch.cat([embedder.scores(v, r)[1] for v, r in pool.parts]),
            torch.cat([labels_of(v, r, pool.targets) for v, r in pool.parts]),
        )
        for pool in (tune, kept)
        if len(pool)
    ]  # scores (N, C), class numbers (N,)
    if not groups:
        raise RungUnfit("there is no tune sample to fit a temperature on")
    view, rows = train.parts[0]
    names = train.targets.names
    counts = np.bincount(labels_of(view, rows, train.targets).numpy(), minlength=len(names))
    ratio = log_ratio(counts, np.array([usual.get(name, 0) for name in names]))
    temperature, strength, gain = fit(groups, ratio if head.bias is not None else torch.zeros_like(ratio))
    if gain < LEAST_GAIN:
        raise RungUnfit("neither a temperature nor new class shares lower the log loss on tune")
    fold(head, temperature, strength * ratio)
    return embedder.spec


def log_ratio(counts: NDArray[np.int64], usual: NDArray[np.int64]) -> Tensor:
    """Log of new to usual class shares (C,) from samples by class; both are smoothed, so it is finite."""
    before = (usual + 1) / (usual.sum() + len(usual))
    now = (counts + LEANING * before) / (counts.sum() + LEANING)
    return torch.from_numpy(np.log(now / before)).float()


def fit(groups: Sequence[tuple[Tensor, Tensor]], ratio: Tensor) -> tuple[float, float, float]:
    """Temperature and strength with the lowest log loss, the mean over groups, and how much lower it is than before.

    Args:
        groups: scores (N, C) and class numbers (N,) of each; none empty.
        ratio: (C,) log of new to old class shares.
    """
    from scipy.optimize import minimize_scalar

    def loss(temperature: float, strength: float) -> float:
        moved = [(s.double() / temperature + strength * ratio, y) for s, y in groups]
        return float(np.mean([float(nn.functional.cross_entropy(s, y)) for s, y in moved]))

    best = (loss(1.0, 0.0), 1.0, 0.0)
    before = best[0]
    for strength in STRENGTHS if bool(ratio.any()) else STRENGTHS[:1]:
        # Log loss is convex in 1 / T.
        found = minimize_scalar(lambda cold, s=strength: loss(1 / cold, s), bounds=(1 / HOTTEST, 1 / COLDEST), method="bounded")
        best = min(best, (float(found.fun), 1 / float(found.x), strength))
    return best[1], best[2], before - best[0]


def fold(head: nn.Linear, temperature: float, offset: Tensor) -> None:
    """Make a linear layer give its scores / `temperature` + `offset` (C,), which it can only add where it has a bias."""
    with torch.no_grad():
        head.weight.div_(temperature)
        if head.bias is not None:
            head.bias.div_(temperature).add_(offset)
