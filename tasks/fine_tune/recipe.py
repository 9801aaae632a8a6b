"""How far each weight moves in a step: blocks of a network, what is frozen, parameter groups, rates, steps that fit.

All of it is a function of the step, so a run that goes on from a checkpoint needs nothing but the number of its steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

LONGER = 1.1
"""A training is planned anew once it would take so many times its budget."""
FALLEN = 0.95
"""Of the first loss of a range test: how low a later one must be, smoothed, to tell of a rate."""
MARGIN = 0.95
"""Of the budget: what a new plan fills."""


@dataclass(frozen=True)
class Block:
    """A part of a network that learns at one rate."""

    name: str
    modules: tuple[nn.Module, ...]
    weights: tuple[nn.Parameter, ...]


def blocks(module: nn.Module, head: str) -> list[Block]:
    """The parts of a network from the input to the head, which is the last.

    They are its children in the order in which they are defined; of a plain sequence, or of a child that holds more than half
    of the weights, its own children. What has vectors only (norms) goes with the part before it, and weights that hang on
    none (class tokens, positions) with the first. So ResNet-18 has a stem, eight residual blocks and a head.

    Args:
        module: the network.
        head: path of its head.
    """
    last = module.get_submodule(head)
    inside = {id(p) for p in last.parameters()}
    whole = sum(p.numel() for p in module.parameters() if id(p) not in inside)
    found: list[tuple[str, list[nn.Module], list[nn.Parameter]]] = []
    taken = set(inside)
    for name, part in _parts(module, "", last, whole):
        weights = [p for p in part.parameters() if id(p) not in taken]
        taken |= {id(p) for p in weights}
        if found and all(p.ndim <= 1 for p in weights):
            found[-1][1].append(part)
            found[-1][2].extend(weights)
        elif weights:
            found.append((name, [part], weights))
    loose = [p for p in module.parameters() if id(p) not in taken]
    if loose:
        name, parts, weights = found[0] if found else ("", [], [])
        found[:1] = [(name, parts, [*loose, *weights])]
    body = [Block(name, tuple(parts), tuple(weights)) for name, parts, weights in found]
    return [*body, Block(head, (last,), tuple(last.parameters()))]


def _parts(module: nn.Module, path: str, head: nn.Module, whole: int) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        place = f"{path}{name}"
        if child is head:
            continue
        large = 2 * sum(p.numel() for p in child.parameters()) > whole
        if any(m is head for m in child.modules()) or type(child) in (nn.Sequential, nn.ModuleList):
            large = True
        if large and any(True for _ in child.children()):
            yield from _parts(child, f"{place}.", head, whole)
        else:
            yield place, child


def groups(module: nn.Module, decay: float, layer_decay: float = 1.0, head: str = "") -> list[dict[str, Any]]:
    """Parameters with weight decay, and those without (norms and biases), of each rate; `share` is that of the peak.

    Args:
        module: the network.
        decay: weight decay of the former.
        layer_decay: factor on the rate from a block to the one before it; 1 for one rate.
        head: path of its head.
    """
    if layer_decay == 1:
        rates = [(1.0, list(module.parameters()))]
    else:
        parts = blocks(module, head)
        rates = [(layer_decay ** (len(parts) - 1 - number), list(part.weights)) for number, part in enumerate(parts)]
    found = []
    for share, weights in rates:
        matrices, vectors = [p for p in weights if p.ndim > 1], [p for p in weights if p.ndim <= 1]
        found += [
            {"params": matrices, "weight_decay": decay, "share": share},
            {"params": vectors, "weight_decay": 0.0, "share": share},
        ]
    return [group for group in found if group["params"]]


def rate(peak: float, step: int, steps: int, warm_up: float = 0.1) -> float:
    """Learning rate of a step: linear warm-up over a share of the steps, cosine to zero."""
    warm = max(1, int(steps * warm_up))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def frozen(step: int, steps: int, parts: int, share: float, until: float, *, gradually: bool = False) -> int:
    """How many of the blocks before the head, from the input on, do not learn in a step.

    Args:
        step: its number, from 0.
        steps: of the training.
        parts: blocks before the head.
        share: of them that begin frozen.
        until: share of the steps after which none is.
        gradually: let go one by one until then, the last ones first, instead of all at once.
    """
    first, end = round(share * parts), until * steps
    if step >= end:
        return 0
    return math.ceil(first * (1 - step / end)) if gradually else first


def hold(parts: Sequence[Block], count: int) -> None:
    """Freeze the first so many blocks: no gradient, and statistics of batch norm as they are; let the others learn."""
    for number, part in enumerate(parts):
        for weight in part.weights:
            weight.requires_grad_(number >= count)
        if number < count:
            for module in part.modules:
                module.eval()


def suggested(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """The learning rate that a range test suggests: a tenth of the one at which the smoothed loss is lowest (Smith 2017).

    Args:
        rates: that rise, of its steps.
        losses: of its steps, before the weights moved at that rate.

    Returns:
        None if the smoothed loss never fell by a twentieth: what has hardly anything left to learn says nothing of rates.
    """
    smooth: list[float] = []
    for loss in losses:
        smooth.append(loss if not smooth else 0.7 * smooth[-1] + 0.3 * loss)
    if not smooth or not min(smooth) < FALLEN * smooth[0]:
        return None
    return rates[smooth.index(min(smooth))] / 10


def fitting(done: int, steps: int, durations: Sequence[float], left: float) -> int:
    """Steps of a training that ends within its budget: those planned, or fewer, at least one more than are done.

    Args:
        done: steps so far.
        steps: planned.
        durations: seconds of some late steps; their median counts.
        left: seconds of the budget.
    """
    each = max(1e-9, median(durations))
    if (steps - done) * each <= left * LONGER:
        return steps
    return min(steps, done + max(1, int(MARGIN * max(0.0, left) / each)))


def effective(parts: int, samples: int, whole: int) -> int:
    """Parts that a batch is taken in, where a whole one is taken in `parts`; at least two samples in each, for batch norm."""
    return max(1, min(-(-parts * samples // whole), samples // 2))


def balanced(labels: Tensor, samples: int, draw: torch.Generator | None = None) -> Tensor:
    """Rows (N,) of an epoch with as many of each class that occurs, in random order, drawn from `draw`.

    The counts of two classes differ by at most one, and so do the counts of two samples of one class.
    """
    present = torch.unique(labels)
    present = present[torch.randperm(len(present), generator=draw)]  # who gets the odd ones
    chosen = []
    for place, label in enumerate(present.tolist()):
        rows = (labels == label).nonzero().flatten()
        count = samples // len(present) + (place < samples % len(present))
        passes = [rows[torch.randperm(len(rows), generator=draw)] for _ in range(-(-count // len(rows)))]
        chosen.append(torch.cat([*passes, rows[:0]])[:count])
    order = torch.cat(chosen)
    return order[torch.randperm(len(order), generator=draw)]
