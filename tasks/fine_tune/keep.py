"""What a network has learnt, kept while it learns something new.

- EMA: a running mean of the weights is what is evaluated and released.
- L2-SP: weights are drawn to where they started instead of to zero (Li, Grandvalet & Davoine, ICML 2018).
- Distillation: the start, in eval mode, says what it sees on the same augmented pictures, and the scores of the classes that it
  knows stay near that (Hinton et al. 2015; Li & Hoiem, Learning without Forgetting, ECCV 2016).
- WiSE-FT: start and challenger are mixed, weights and batch-norm statistics alike (Wortsman et al., CVPR 2022).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from everfresh.tasks.records import ModelSpec

State = Mapping[str, Tensor]
"""Weights and buffers by name."""


def copied(module: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers as they are now."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


class Average:
    """A running mean of weights and buffers: ``m ← d m + (1 - d) w`` after each step; whole numbers are taken over.

    Args:
        module: whose weights; the mean begins with them.
        decay: d, 0…1; in step t at most (1 + t) / (10 + t), so that the start is soon forgotten.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = copied(module)

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take the weights after a step, its number counted from 0, into the mean."""
        decay = min(self.decay, (1 + step) / (10 + step))
        now = module.state_dict()
        real = [name for name, tensor in now.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.state[n] for n in real], [now[n] for n in real], 1 - decay)
        for name in now.keys() - set(real):
            self.state[name].copy_(now[name])


class Anchor:
    """Draws weights to where they started: the gradient of λ ‖w - start‖².

    Args:
        module: at its start.
        strength: λ, in units of 1 / weight².
        without: path of a part that was drawn at random and is drawn to zero, as a new head is; empty for none.
    """

    def __init__(self, module: nn.Module, strength: float, without: str = "") -> None:
        self.strength = strength
        self.start = {name: weight.detach().clone() for name, weight in module.named_parameters()}
        for name, weight in self.start.items():
            if without and name.startswith(f"{without}."):
                weight.zero_()

    @torch.no_grad()
    def pull(self, module: nn.Module) -> None:
        """Add to the gradients of those weights that have one."""
        for name, weight in module.named_parameters():
            if weight.grad is not None:
                weight.grad.add_(weight - self.start[name], alpha=2 * self.strength)


@dataclass
class Teacher:
    """A network that knows some of the classes.

    Args:
        module: the network, its outputs in the order of its own classes.
        theirs: places of the common classes among its outputs.
        ours: places of the same among the challenger's.
        weight: of the distance in the loss.
        temperature: that scores are divided by.
    """

    module: nn.Module
    theirs: Tensor
    ours: Tensor
    weight: float
    temperature: float

    @classmethod
    def of(
        cls, module: nn.Module, theirs: tuple[str, ...], ours: tuple[str, ...], weight: float, temperature: float
    ) -> Teacher:
        """A network with classes `theirs`, as the teacher of one with classes `ours`."""
        common = [name for name in theirs if name in ours]
        their, our = (torch.tensor([names.index(name) for name in common]) for names in (theirs, ours))
        return cls(module.eval().requires_grad_(False), their, our, weight, temperature)

    def to(self, device: str, layout: torch.memory_format) -> Teacher:
        """On the device and in the layout of the challenger."""
        self.module = self.module.to(device=device, memory_format=layout)  # type: ignore[call-overload]
        self.theirs, self.ours = self.theirs.to(device), self.ours.to(device)
        return self

    @torch.no_grad()
    def scores(self, pixels: Tensor) -> Tensor:
        """What it sees: scores (B, K) of the common classes."""
        return self.module(pixels)[:, self.theirs]  # type: ignore[no-any-return]

    def distance(self, scores: Tensor, seen: Tensor) -> Tensor:
        """Weight · T² · KL(teacher ‖ challenger), mean over the batch, of scores (B, C) and what `scores` returned."""
        ours, theirs = ((s.float() / self.temperature).log_softmax(dim=1) for s in (scores[:, self.ours], seen))
        apart = nn.functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        return self.weight * self.temperature**2 * apart


@dataclass(frozen=True)
class Start:
    """What the weights that a training begins with have learnt."""

    body: bool = False
    """All but the head are no random draw."""
    head: bool = False
    """Nor is the head."""
    mixed: bool = False
    """It is worth mixing with: a champion's weights, for the same classes, or the candidate's that was made of them."""
    knows: tuple[nn.Module, ModelSpec] | None = None
    """A network that knows some of the classes, for distillation."""
    pulled: float = 0.0
    """How far they were pulled back to the configured weights, 0…1."""
    origin: State | None = None
    """What the outcome may be mixed with, if not with these weights themselves."""

    def teacher(self, classes: tuple[str, ...], weight: float, temperature: float) -> Teacher | None:
        """The same as the teacher of a network with these classes; None if it knows none of them."""
        if self.knows is None or not set(self.knows[1].classes) & set(classes):
            return None
        return Teacher.of(self.knows[0], self.knows[1].classes, classes, weight, temperature)


def pull_back(module: nn.Module, towards: State, share: float, head: str) -> None:
    """Pull all but the head at the path `head` a share of the way, 0…1, to other weights; what those lack stays.

    At 1 it is exactly those (shrink and perturb, Ash & Adams, NeurIPS 2020, where the weights shrink towards a start that is
    good already).
    """
    now = module.state_dict()
    known = {
        name: tensor
        for name, tensor in now.items()
        if not name.startswith(f"{head}.") and name in towards and towards[name].shape == tensor.shape
    }
    module.load_state_dict(now | between(known, {name: towards[name] for name in known}, share))


def between(start: State, end: State, share: float) -> dict[str, Tensor]:
    """Weights and buffers at a share of the way from one state to another, 0…1; at 0 and 1 exactly the ends.

    Whole numbers, such as the steps that batch norm has counted, are those of the nearer end.
    """
    return {
        name: torch.lerp(start[name], tensor, share) if tensor.is_floating_point() else (start[name] if share < 0.5 else tensor)
        for name, tensor in end.items()
    }
