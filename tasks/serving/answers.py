"""What a release said of some samples, and that it was this release."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a release said of one sample."""

    label: str
    """A class; of sets of classes their names joined by ``|``, of values their decimals joined by ``;``."""
    confidence: float | None
    """How probably it is right, 0…1, by the model's own probabilities; None of values."""
    probabilities: dict[str, float]
    """By class, 0…1; of values the values."""
    release: str
    version: int
    """The number that people say; 0 if it never was champion."""


@dataclass(frozen=True, slots=True)
class Predictions(Sequence[Prediction]):
    """What one release said of the samples of one call, in their order."""

    labels: tuple[str, ...]
    """(N,) as in :class:`Prediction`."""
    confidence: NDArray[np.float64] | None
    """(N,) how probably each is right, 0…1; None of values."""
    probabilities: NDArray[np.float64]
    """(N, C) by class, 0…1: softmax, or of sets of classes sigmoid; of a regression the values."""
    names: tuple[str, ...]
    """(C,) of the classes or values."""
    release: str
    """Its id: the name of its folder in the store."""
    version: int
    """The number that people say; 0 if it never was champion."""

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> Prediction: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Prediction]: ...
    def __getitem__(self, index: int | slice) -> Prediction | Sequence[Prediction]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return Prediction(
            label=self.labels[index],
            confidence=None if self.confidence is None else float(self.confidence[index]),
            probabilities=dict(zip(self.names, self.probabilities[index].tolist(), strict=True)),
            release=self.release,
            version=self.version,
        )
