"""Small networks of a user's own, for `model.architecture: support.networks:…`."""

from __future__ import annotations

from torch import nn


def plain(classes: int) -> nn.Module:
    """Pools, flattens and ends in a linear layer."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))


def without_bias(classes: int) -> nn.Module:
    """Ends in a linear layer without bias, as MaxViT does."""
    body = [nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(8, classes, bias=False))


class Pooled(nn.Module):
    """Its head is a block of pooling, flattening and a linear layer."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, stride=2)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))

    def forward(self, pixels):  # type: ignore[no-untyped-def]
        return self.head(self.body(pixels))


class Convolutional(nn.Module):
    """Its head is a block whose second convolution makes the scores, pooled afterwards."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, stride=2)
        self.head = nn.Sequential(nn.Dropout(), nn.ReLU(), nn.Conv2d(8, classes, 1), nn.AdaptiveAvgPool2d(1))

    def forward(self, pixels):  # type: ignore[no-untyped-def]
        return self.head(self.body(pixels)).flatten(1)


def no_layers(classes: int) -> nn.Module:
    """Nothing to replace."""
    return nn.Flatten()


def no_module(classes: int) -> int:
    """Not a network."""
    return classes


def raises(_classes: int) -> nn.Module:
    """Somebody's bug."""
    raise ValueError("no")


def takes_nothing() -> nn.Module:
    """Has no place for the number of classes."""
    return nn.Identity()
