"""Sections within ``fine_tune``: what becomes of what the champion has learnt, and how a training runs its course."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from everfresh.tasks.config.base import Section


def _is_auto(value: Any) -> str:
    return "auto" if value == "auto" else "number"


Rate = Annotated[
    Annotated[float, Field(gt=0, le=10), Tag("number")] | Annotated[Literal["auto"], Tag("auto")], Discriminator(_is_auto)
]
"""A learning rate, or `auto`."""


def _rising(shares: tuple[float, ...]) -> tuple[float, ...]:
    if shares and (list(shares) != sorted(set(shares)) or not 0 <= shares[0] <= shares[-1] <= 1):
        raise ValueError(f"must be numbers from 0 to 1 that rise, got {list(shares)}. Write such as [0.25, 0.5, 0.75]")
    return shares


class KeepConfig(Section):
    """How a network that is fine-tuned keeps what it had learnt. All but `ema` need a start: the champion, or its new head."""

    pull_back: float = Field(default=0.0, ge=0, le=1)
    """How far `full` pulls all but the head back to the configured weights before it begins, 0…1 of the way; the head is then
    refitted, and the learning rate rises from a third to the whole of `learning_rate` with it. A network that goes on from
    where it was ends worse than a fresh one (Ash & Adams, NeurIPS 2020); needs model.weights."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay a step of a running mean of the weights, which is then evaluated and released (EMA); null for the last weights.
    In step t it is at most (1 + t) / (10 + t), so that the start is soon forgotten."""
    l2_sp: float = Field(default=0.0, ge=0, le=100)
    """Strength λ of the penalty λ ‖w - start‖², which takes the place of the weight decay (L2-SP)."""
    distill: float = Field(default=0.0, ge=0, le=100)
    """Weight, in the loss, of the distance from the start's softened scores of the classes that it knows (distillation)."""
    temperature: float = Field(default=2.0, gt=0, le=100)
    """That the scores are divided by before `distill` compares them."""
    interpolate: Annotated[tuple[float, ...], AfterValidator(_rising)] = ()
    """Shares of the new weights, 0…1, at which start and challenger are mixed once trained (WiSE-FT): the one given, or the one
    of several that does best on *tune*; 1 is the challenger itself. Empty for no mixing. The start is the champion, with its
    new head if the head rung came before, wherever `pull_back` made the training begin."""


class CourseConfig(Section):
    """How a training runs its course."""

    warm_up: float = Field(default=0.1, ge=0, le=0.9)
    """Share of the steps in which the learning rate rises to its peak; over the rest it falls to zero as a cosine does."""
    freeze: float = Field(default=0.0, ge=0, le=1)
    """Share of the blocks, from the input on, that begin frozen; the head never is. Frozen batch norm keeps its statistics."""
    freeze_until: float = Field(default=1.0, gt=0, le=1)
    """Share of the steps after which nothing is frozen any more."""
    thaw: Literal["at_once", "gradually"] = "at_once"
    """Whether frozen blocks are let go together at `freeze_until`, or one by one until then, the last ones first."""
    patience: int | None = Field(default=None, ge=1, le=10_000)
    """End after so many epochs that did no better on *tune*, and take the best epoch's weights; null for all epochs."""
    device_seconds: float | None = Field(default=None, gt=0, le=10_000_000)
    """Budget, seconds on the training device: a training that would take longer is planned with fewer steps; null for none."""

    @model_validator(mode="after")
    def _thaws(self) -> Self:
        if self.thaw == "gradually" and not self.freeze:
            raise ValueError(
                "thaw must be at_once while freeze is 0, got gradually: nothing is frozen. Set freeze, or remove thaw"
            )
        return self


class MixConfig(Section):
    """How the samples of a batch are mixed with each other, pictures and targets."""

    kind: Literal["none", "mixup", "cutmix", "either"] = "none"
    """`mixup`: weighted sums of two pictures; `cutmix`: a patch of another picture; `either`: one of the two a batch."""
    alpha: float = Field(default=0.2, gt=0, le=100)
    """Of the Beta(α, α) distribution that the weight is drawn from: small leaves most batches nearly as they are."""
