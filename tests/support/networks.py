"""Small networks of a user's own, for `model.architecture: support.networks:…`."""

from __future__ import annotations

import torch
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


class Fails(nn.Module):
    """Somebody's bug that shows in training only, forwards or backwards."""

    def __init__(self, classes: int, backwards: bool) -> None:
        super().__init__()
        self.body, self.backwards = plain(classes), backwards

    def forward(self, pixels):  # type: ignore[no-untyped-def]
        if not self.training:
            return self.body(pixels)
        if not self.backwards:
            raise ZeroDivisionError("of mine")
        return _NoWayBack.apply(self.body(pixels))


class _NoWayBack(torch.autograd.Function):
    @staticmethod
    def forward(_context, scores):  # type: ignore[no-untyped-def]
        return scores.clone()

    @staticmethod
    def backward(_context, _gradient):  # type: ignore[no-untyped-def]
        raise KeyError("of mine")


def fails_forwards(classes: int) -> nn.Module:
    """Raises in its first training step."""
    return Fails(classes, backwards=False)


def fails_backwards(classes: int) -> nn.Module:
    """Raises when the gradient of its first training step is taken."""
    return Fails(classes, backwards=True)


def fails_always(_classes: int) -> nn.Module:
    """Takes no picture."""
    return nn.Sequential(nn.Flatten(), nn.Linear(5, 5), nn.Linear(5, 3))


def too_many_scores(classes: int) -> nn.Module:
    """Scores of each of its places, not of the picture."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(2), nn.Linear(4, classes))


def normed(classes: int) -> nn.Module:
    """Batch norm on one value a sample and channel, which cannot do with a batch of one."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3), nn.Linear(3, classes))


def body_alone(classes: int) -> nn.Module:
    """Ends in a convolution that stands alone, and pools."""
    return nn.Sequential(nn.Conv2d(3, classes, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Choosy(nn.Module):
    """Asks its numbers which way to go, so no graph can be made of it."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = plain(classes)

    def forward(self, pixels):  # type: ignore[no-untyped-def]
        return self.body(-pixels if pixels.mean() > 1e3 else pixels)


def choosy(classes: int) -> nn.Module:
    """Has control flow that depends on the data."""
    return Choosy(classes)


class OfTwo(nn.Module):
    """Takes batches of two, whatever it is given."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body, self.classes = plain(classes), classes

    def forward(self, pixels):  # type: ignore[no-untyped-def]
        return self.body(pixels).reshape(2, self.classes)


def of_two(classes: int) -> nn.Module:
    """Knows one size of batch alone."""
    return OfTwo(classes)
