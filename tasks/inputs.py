"""What a model is fed: the one place that knows of which kind its samples are, pictures or rows of a table."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from everfresh.tasks.images import normalise, to_tensor
from everfresh.tasks.records import ModelSpec
from everfresh.tasks.vectors import to_vector


def shape(spec: ModelSpec) -> tuple[int, ...]:
    """Of one sample, as `decode` makes it."""
    return (spec.inputs,) if spec.features else (3, spec.image_size, spec.image_size)


def size(spec: ModelSpec) -> int:
    """Bytes of one sample in memory, as `decode` makes it."""
    return math.prod(shape(spec)) * (4 if spec.features else 1)


def decode(data: bytes, spec: ModelSpec) -> Tensor:
    """One sample: a picture as (3, S, S) uint8, or a row as (D,) float32.

    Raises:
        DataError: the bytes are no such sample.
    """
    return to_vector(data, spec.features) if spec.features else to_tensor(data, spec.image_size)


def prepare(batch: Tensor, spec: ModelSpec, layout: torch.memory_format = torch.preserve_format) -> Tensor:
    """The model's input of decoded samples, float32: pictures (B, 3, S, S) in a memory layout, rows (B, D) as they are."""
    return batch if spec.features else normalise(batch, spec.mean, spec.std).to(memory_format=layout)


def noise(spec: ModelSpec, count: int) -> Tensor:
    """Some inputs that show nothing, drawn from a seed of their own."""
    generator = torch.Generator().manual_seed(0)
    if spec.features:
        return torch.randn((count, spec.inputs), generator=generator)
    return prepare(torch.randint(0, 256, (count, *shape(spec)), generator=generator).to(torch.uint8), spec)
