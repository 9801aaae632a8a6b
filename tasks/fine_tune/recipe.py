"""How far each weight moves in a step: parameter groups and the schedule of the learning rate."""

from __future__ import annotations

import math
from typing import Any

from torch import nn


def groups(module: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Parameters with weight decay, and those without: norms and biases."""
    matrices = [p for p in module.parameters() if p.ndim > 1]
    vectors = [p for p in module.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]


def rate(peak: float, step: int, steps: int) -> float:
    """Learning rate of a step: linear warm-up over the first tenth, cosine to zero."""
    warm = max(1, steps // 10)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
