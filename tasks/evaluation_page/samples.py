"""Held-out samples and what both models said of them, as an evaluation page reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from everfresh.tasks.gates import Judged
from everfresh.tasks.slices import MISSING
from everfresh.tasks.targets import Targets

ROWS = 4_096
"""Samples whose probabilities are in memory at once."""


def confidence(targets: Targets, scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N,) how probably each prediction is right, as the model sees it; NaN of values, which say nothing of it."""
    if targets.task == "regression":
        return np.full(len(scores), np.nan)
    parts = (torch.from_numpy(scores[start : start + ROWS]) for start in range(0, len(scores), ROWS))
    return np.concatenate([np.zeros(0), *(targets.confidence(targets.probabilities(part)) for part in parts)])


def joined(first: Judged, second: Judged) -> Judged:
    """The samples of both, the first's before."""
    both = first.champion is not None and second.champion is not None
    shift = len(first.views)
    return Judged(
        labels=np.concatenate([first.labels, second.labels]),
        challenger=torch.cat([first.challenger, second.challenger]),
        champion=torch.cat([part.champion for part in (first, second) if part.champion is not None]) if both else None,
        shared=np.concatenate([first.shared, second.shared]),
        targets=first.targets,
        views=first.views + second.views,
        places=first.places + tuple((view + shift, row) for view, row in second.places),
        columns={
            name: np.concatenate([part.columns.get(name, np.full(len(part.labels), MISSING)) for part in (first, second)])
            for name in first.columns | second.columns  # type: ignore[operator]
        },
    )


def read(judged: Judged, rows: Sequence[int]) -> Iterator[bytes]:
    """Bytes of the samples at `rows`."""
    for view, row in (judged.places[i] for i in rows):
        yield from judged.views[view].read([row])
