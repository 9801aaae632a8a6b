"""How good weights are on *tune*: what options of a training choose by. The hold-out is for the gates alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from everfresh.tasks.fine_tune.objective import Objective
from everfresh.tasks.fine_tune.pool import Pool
from everfresh.tasks.inputs import decode, prepare
from everfresh.tasks.records import ModelSpec

BATCH = 64


class Tune:
    """*Tune* samples of the window and of earlier ones, decoded once.

    Args:
        tune: of the window.
        kept: of earlier windows; together at least one sample.
        spec: how they are decoded and normalised.
        objective: when a prediction is right.
    """

    def __init__(self, tune: Pool, kept: Pool, spec: ModelSpec, objective: Objective) -> None:
        self.spec, self.objective = spec, objective
        self.sets = [(_decoded(pool, spec), pool.labels) for pool in (tune, kept) if len(pool)]

    @torch.no_grad()
    def score(self, module: nn.Module, device: str) -> tuple[float, float]:
        """Accuracy, the mean of the window's and that of earlier ones as `decide.best` has it, and minus the task's own loss;
        the higher pair is better.
        """
        module.eval()
        found = []
        for pixels, labels in self.sets:
            batches = (prepare(part.to(device), self.spec) for part in torch.split(pixels, BATCH))
            scores = torch.cat([module(batch).float().cpu() for batch in batches])
            right = self.objective.right(scores, labels).float().mean()
            found.append((float(right), -float(self.objective.own(scores, labels))))
        return sum(a for a, _ in found) / len(found), sum(loss for _, loss in found) / len(found)


def _decoded(pool: Pool, spec: ModelSpec) -> Tensor:
    """Samples (N, …) of a pool."""
    return torch.stack([decode(data, spec) for v, r in pool.parts if len(r) for data in v.read(int(i) for i in r)])
