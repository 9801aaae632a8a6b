"""The section ``fine_tune``: how a challenger is trained, what becomes of what the champion has learnt, how a training runs."""

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
Loss = Literal["cross_entropy", "class_balanced", "focal", "bce", "mse", "mae", "huber"]


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
    """Shares of the new weights, 0…1, at which champion and challenger are mixed once `full` is trained (WiSE-FT): the one
    given, or of several the one, or the challenger itself, that does best on *tune*. Empty for no mixing. The champion has its
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


class FineTuneConfig(Section):
    """How a challenger is trained."""

    epochs: int = Field(default=8, ge=1, le=10_000)
    """Passes over the training samples in the rungs `full` and `pretrained`."""
    full_epochs: int | None = Field(default=None, ge=1, le=10_000)
    """Passes in a `full` that goes on from weights that know the task and may need fewer, as version 1 does not; null for as
    many as `epochs`."""
    batch_size: int = Field(default=32, ge=2, le=65_536)
    """Samples that pass through the network together."""
    accumulate: int = Field(default=1, ge=1, le=1_024)
    """Batches that one step learns from: its effective batch is `batch_size` times this."""
    learning_rate: Rate = 1e-3
    """Peak of the one-cycle schedule in `pretrained`; `full` takes a third of it. `auto` looks for it by a range test."""
    full_learning_rate: float | None = Field(default=None, gt=0, le=10)
    """Peak rate of `full`; null for a third of `learning_rate`, or what `keep.pull_back` makes of it."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor on the learning rate from each block to the one before it, from the head down; 1 for one rate."""
    probe_first: bool = False
    """Refit the head on frozen features before `pretrained`, if model.weights are given, and before a `full` that no head rung
    came before (LP-FT). For bodies whose features are good already: on poor ones the head grows too large to learn."""
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    """Decoupled weight decay (AdamW)."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Gradients longer than this are shortened to it; null leaves them."""
    loss: Loss | None = None
    """What is minimised: `cross_entropy`, `class_balanced` or `focal` for `single_label`, `bce` or `focal` for `multi_label`,
    `mse`, `mae` or `huber` for `regression`; null takes the first of the task's. It is of `full` and `pretrained`, as is all
    below but the replay and the seed; `head` has a loss of its own."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread over all classes, in `cross_entropy` and `class_balanced`."""
    balance_beta: float = Field(default=0.999, ge=0, lt=1)
    """Of `class_balanced`: 0 weighs all classes alike, towards 1 by the inverse of their number of samples."""
    focal_gamma: float = Field(default=2.0, ge=0, le=10)
    """Of `focal`: how much less a sample counts that is predicted well already; 0 for not at all."""
    huber_delta: float = Field(default=1.0, gt=0, le=100)
    """Of `huber`: from which distance on it grows linearly, in standard deviations of the training samples' targets."""
    augment: Literal["none", "crop", "crop_flip"] = "crop"
    """Random resized crops in `full` and `pretrained`, and flips where left and right do not matter."""
    policy: Literal["none", "rand", "trivial"] = "none"
    """Colours and shapes are changed as well: by `rand` (RandAugment) or `trivial` (TrivialAugment) of torchvision."""
    mix: MixConfig = MixConfig()
    """How samples are mixed with each other."""
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    """An epoch takes each sample once, or as many of each class, samples of rare ones repeatedly."""
    replay_max_samples: int = Field(default=5_000, ge=0, le=10_000_000)
    """Samples of earlier trusted windows that are trained on again; 0 trains on the new window only."""
    full_replay: float | None = Field(default=None, ge=0, le=1_000)
    """Earlier samples for each new one in `full`, at most; null for as many as `replay_max_samples` allows. With it a
    training costs the same however long the history; what it so forgets the head makes good, which is refitted afterwards on
    all that `replay_max_samples` allows."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d{1,3})?|mps)$")
    """Where `full` and `pretrained` train: `auto` (a GPU if there is one, else the CPU), `cpu`, `cuda`, `cuda:N` or `mps`."""
    checkpoint_every: int = Field(default=100, ge=1, le=1_000_000)
    """Steps between two checkpoints, of which a run keeps its newest two; a killed one loses at most so many."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of training, bf16 by autocast; `auto` measures a few steps and takes the fastest, `model.precision` in a
    training too small for that. A resumed run keeps what it began with."""
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    """Order of pictures and filters in memory; `auto` measures."""
    compile: Literal["auto"] | bool = "auto"
    """Whether torch.compile makes the training step; `auto` tries it where minutes of compiling can pay back."""
    workers: int | None = Field(default=None, ge=0, le=256)
    """Threads that read, decode and augment ahead of training; 0 does it in between; null takes as many as fit."""
    cache_mib: int = Field(default=512, ge=0, le=1_048_576)
    """Decoded pictures are kept in memory if all of them take at most so many MiB; 0 decodes them anew in each epoch."""
    seed: int = Field(default=0, ge=0, le=4_294_967_295)
    """Seed of weights, order and augmentation."""
    keep: KeepConfig = KeepConfig()
    """How it keeps what it had learnt."""
    schedule: CourseConfig = CourseConfig()
    """How it runs its course."""
