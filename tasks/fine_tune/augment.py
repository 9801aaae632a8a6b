"""What is done to the pictures of a batch beside crops and flips: torchvision's policies, mixup and cutmix.

All of it is drawn from torch's generator, which an epoch seeds and a checkpoint keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor


def policy(kind: Literal["none", "rand", "trivial"]) -> Callable[[Tensor], Tensor] | None:
    """What changes colours and shapes of one picture (3, S, S) uint8; None for nothing.

    ``rand``: RandAugment, two operations of magnitude 9 of 30 (Cubuk et al. 2020); ``trivial``: TrivialAugment, one
    operation of random magnitude (Müller & Hutter 2021).
    """
    from torchvision.transforms import v2

    makers: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {"rand": v2.RandAugment, "trivial": v2.TrivialAugmentWide}
    return makers[kind]() if kind in makers else None


class Mix:
    """Mixes the pictures of a batch with each other, and their targets alike.

    Args:
        kind: ``mixup`` (Zhang et al. 2018), ``cutmix`` (Yun et al. 2019), or ``either``, one of the two a batch at random.
        alpha: of the Beta(α, α) distribution of the weight.
        classes: number of them.
    """

    def __init__(self, kind: Literal["mixup", "cutmix", "either"], alpha: float, classes: int) -> None:
        from torchvision.transforms import v2

        makers = {"mixup": [v2.MixUp], "cutmix": [v2.CutMix], "either": [v2.MixUp, v2.CutMix]}[kind]
        self.ways = [maker(alpha=alpha, num_classes=classes) for maker in makers]

    def __call__(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, S, S) float32, still 0…255, and targets (B, C), from pictures and class numbers (B,)."""
        way = self.ways[int(torch.randint(len(self.ways), ())) if len(self.ways) > 1 else 0]
        mixed: tuple[Tensor, Tensor] = way(pixels.float(), labels)
        return mixed
