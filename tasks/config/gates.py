"""The gates of the pipeline file: what a challenger must show before it goes live.

Any number of them, of any kind, in any order; the same kind may stand there twice with other numbers. Each leaves a verdict
with its numbers, whether it passed or not.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from everfresh.tasks.config.base import Names, Section, Task, unique
from everfresh.tasks.config.release import Export

METRICS: dict[Task, tuple[str, ...]] = {
    "single_label": ("accuracy", "precision", "recall", "f1"),
    "multi_label": ("accuracy", "precision", "recall", "f1", "micro_f1", "hamming_accuracy", "mean_average_precision"),
    "regression": ("accuracy", "mae", "rmse", "r2"),
}
"""What a floor can be set on."""
ERRORS = ("mae", "rmse")
"""Metrics of which less is better."""
TooFew = Literal["pass", "fail"]
Corruption = Literal["noise", "blur", "brightness", "darkness", "contrast", "jpeg", "pixelate"]


class _Gate(Section):
    """What all gates have in common."""

    LIMITS: ClassVar[tuple[str, ...]] = ()
    """Fields of which one at least must be given; the one that is usual holds only where none is written."""

    @model_validator(mode="before")
    @classmethod
    def _as_written(cls, raw: Any) -> Any:
        """A limit that is written brings no other one with it."""
        if isinstance(raw, dict) and any(raw.get(name) is not None for name in cls.LIMITS):
            return dict.fromkeys(cls.LIMITS) | raw
        return raw

    @model_validator(mode="after")
    def _has_a_limit(self) -> Self:
        if self.LIMITS and all(getattr(self, name) is None for name in self.LIMITS):
            names, all_ = f"{', '.join(self.LIMITS[:-1])} or {self.LIMITS[-1]}", "both" if len(self.LIMITS) == 2 else "all"
            raise ValueError(f"{names} must be given, got null for {all_}: nothing could fail. Give one")
        return self

    def misfit(self, task: Task, *, pictures: bool, columns: tuple[str, ...]) -> str:
        """Field, rule, value and remedy if the gate cannot judge such a model; empty if it can.

        Args:
            task: what the model is asked for.
            pictures: whether its samples are pictures, not rows.
            columns: slice columns of the source.
        """
        return ""


class FloorGate(_Gate):
    """The challenger's own score must reach a floor."""

    kind: Literal["floor"] = "floor"
    metric: Literal[
        "accuracy", "precision", "recall", "f1", "micro_f1", "hamming_accuracy", "mean_average_precision", "mae", "rmse", "r2"
    ] = "accuracy"
    """Which score. Accuracy is the share that is right (see `model.tolerance`); precision, recall and F1 are averaged over the
    classes that occur. `multi_label` has also `micro_f1`, `hamming_accuracy` and `mean_average_precision`, `regression` has
    `mae`, `rmse` (in the targets' units, averaged over them) and `r2`."""
    scope: Literal["window", "bank"] = "window"
    """`window`: this window's hold-out; `bank`: the earlier hold-outs, pooled."""
    minimum: float = Field(default=0.5, ge=0, le=1)
    """Lowest score that passes, 0…1."""
    maximum: float | None = Field(default=None, ge=0)
    """Highest error that passes, in the targets' units: of `mae` and `rmse`, which need it."""
    min_samples: int = Field(default=1, ge=1, le=10_000_000)
    """Samples below which it says nothing of the score."""
    too_few: TooFew = "fail"
    """What fewer count as. A floor is what nothing may go live without, so `fail`; where there is no earlier hold-out at
    all, the floor on the bank passes."""

    @model_validator(mode="after")
    def _right_way_round(self) -> Self:
        if (self.metric in ERRORS) != (self.maximum is not None):
            rule = "be given" if self.metric in ERRORS else "be null"
            raise ValueError(f"maximum must {rule} while metric is {self.metric}, got {self.maximum}. Change one of the two")
        return self

    def misfit(self, task: Task, *, pictures: bool, columns: tuple[str, ...]) -> str:
        """A metric of another task."""
        if self.metric in METRICS[task]:
            return ""
        return f"metric must be one of {', '.join(METRICS[task])} while model.task is {task}, got {self.metric}. Choose one"


class BetterGate(_Gate):
    """The challenger must beat the champion on this window's hold-out."""

    kind: Literal["better"] = "better"
    min_gain: float = Field(default=0.0, ge=0, le=1)
    """Gain of accuracy, 0…1, that the point estimate must exceed."""
    confidence: float = Field(default=0.8, ge=0.5, lt=1)
    """One-sided confidence that the gain is above zero."""
    test: Literal["mcnemar", "bootstrap"] = "mcnemar"
    """`mcnemar`: exact, right at any number of samples; `bootstrap`: of the paired samples, easier to pass at few."""
    too_few: TooFew = "fail"
    """What a hold-out too small to show any gain counts as. `fail`: the champion stays until there is proof; later windows
    bring their own samples."""


class NoWorseGate(_Gate):
    """The challenger must not be worse than the champion on the bank of earlier hold-outs, pooled."""

    scope: ClassVar[Literal["bank"]] = "bank"
    kind: Literal["no_worse"] = "no_worse"
    margin: float = Field(default=0.02, ge=0, le=1)
    """Loss of accuracy, 0…1, that the point estimate may not exceed."""
    confidence: float = Field(default=0.95, ge=0.5, lt=1)
    """Confidence of the paired interval; it fails if the whole interval lies below zero, on however few samples."""
    min_samples: int = Field(default=20, ge=1, le=10_000_000)
    """Samples of the bank below which the margin is not asked for. The point estimate errs often on few: a challenger that is
    as good is refused in two of five cases at 30, in one of nine at 300. A higher one spares those, and some that lose."""
    too_few: TooFew = "pass"
    """What fewer count as, if no loss is certain. `pass`: `floor` and `better` hold back what is not proven at all."""


class SlicesGate(_Gate):
    """No slice may be served badly, be left behind, or lose what it had. Fails if one is shown to, at the confidence."""

    LIMITS: ClassVar[tuple[str, ...]] = ("minimum", "max_gap", "max_drop")
    kind: Literal["slices"] = "slices"
    columns: Names | None = Field(default=None, min_length=1)
    """Slice columns of the source, `label` (of single labels) and `window`; null for all that the source has."""
    scope: Literal["window", "bank"] = "window"
    """`window`: this window's hold-out; `bank`: the earlier hold-outs, pooled."""
    minimum: float | None = Field(default=None, gt=0, lt=1)
    """Lowest accuracy of a slice, 0…1; null for no floor."""
    max_gap: float | None = Field(default=None, ge=0, lt=1)
    """Largest difference of accuracy between two slices of a column, 0…1; null for any."""
    max_drop: float | None = Field(default=0.05, ge=0, lt=1)
    """Largest loss of accuracy of a slice against the champion, 0…1; null for any, and where another limit is written alone."""
    confidence: float = Field(default=0.95, ge=0.5, lt=1)
    """With which a fair challenger passes, all slices and limits together; what fails is shown with it."""
    min_samples: int = Field(default=20, ge=5, le=10_000_000)
    """Slices with fewer samples are left aside: they could show next to nothing, and each costs the others power."""
    too_few: TooFew = "pass"
    """What it counts as if all slices are too small. `pass`: `floor` and `better` hold back what is not proven at all, and
    `fail` would hold back every challenger of a stream of small windows."""

    def misfit(self, task: Task, *, pictures: bool, columns: tuple[str, ...]) -> str:
        """A column that the source does not have, or none at all."""
        known = (*columns, *(("label",) if task == "single_label" else ()), "window")
        if self.columns is None and not columns:
            return f"columns must be among {', '.join(known)} while the source names no slice_columns, got null. Name some"
        if unknown := [c for c in self.columns or () if c not in known]:
            return f"columns must be among {', '.join(known)}, got {unknown[0]}. Correct it, or add it to the slice_columns"
        return ""


class NegativeFlipsGate(_Gate):
    """Few samples may be wrong now that the champion has right. Fails if more are shown at the confidence."""

    LIMITS: ClassVar[tuple[str, ...]] = ("maximum", "relative")
    kind: Literal["negative_flips"] = "negative_flips"
    scope: Literal["window", "bank"] = "window"
    """`window`: this window's hold-out; `bank`: the earlier hold-outs, pooled."""
    maximum: float | None = Field(default=0.05, ge=0, lt=1)
    """Largest share of samples, 0…1, right before and wrong now; null for any, and where `relative` is
    written alone."""
    relative: float | None = Field(default=None, gt=0, le=100)
    """The same as a multiple of what two models that err independently, as often as these, would have; below 1, they share
    their errors."""
    confidence: float = Field(default=0.95, ge=0.5, lt=1)
    """One-sided confidence with which a limit must be shown to be exceeded; 0.5 is about the point estimate."""
    min_samples: int = Field(default=20, ge=1, le=10_000_000)
    """Samples below which it says nothing."""
    too_few: TooFew = "pass"
    """What fewer count as. `pass`: `floor` and `better` hold back what is not proven at all, and `fail` would hold back every
    challenger of a stream of small windows."""


class CalibrationGate(_Gate):
    """Confidences must mean what they say. Fails if the calibration error is shown to exceed a limit, at the confidence."""

    LIMITS: ClassVar[tuple[str, ...]] = ("maximum", "max_increase")
    kind: Literal["calibration"] = "calibration"
    scope: Literal["window", "bank"] = "window"
    """`window`: this window's hold-out; `bank`: the earlier hold-outs, pooled."""
    maximum: float | None = Field(default=None, ge=0, lt=1)
    """Largest expected calibration error (ECE), 0…1, less what chance makes of none at so many samples; null for any."""
    max_increase: float | None = Field(default=0.05, ge=0, lt=1)
    """Largest increase of it over the champion's, 0…1; null for any, and where `maximum` is written alone."""
    bins: int = Field(default=15, ge=2, le=1_000)
    """Of confidence at most, with as many samples in each, and at least 25."""
    confidence: float = Field(default=0.95, ge=0.5, lt=1)
    """One-sided confidence with which a limit must be shown to be exceeded; 0.5 is about the point estimate."""
    min_samples: int = Field(default=100, ge=20, le=10_000_000)
    """Samples below which it says nothing: with fewer, most of the error is chance."""
    too_few: TooFew = "pass"
    """What fewer count as. `pass`: calibration needs more samples than small windows have, and can be mended without a new
    model (rung `recalibrate`)."""

    def misfit(self, task: Task, *, pictures: bool, columns: tuple[str, ...]) -> str:
        """Values have no confidence."""
        if task != "regression":
            return ""
        return "kind must not be calibration while model.task is regression, got calibration: values have none. Remove it"


class RobustnessGate(_Gate):
    """Pictures with noise, out of focus, too bright … must be recognised still. Fails if shown otherwise, at the confidence."""

    LIMITS: ClassVar[tuple[str, ...]] = ("minimum", "max_drop")
    kind: Literal["robustness"] = "robustness"
    corruptions: Annotated[tuple[Corruption, ...], AfterValidator(unique)] = Field(
        default=("noise", "blur", "brightness", "darkness", "contrast", "jpeg", "pixelate"), min_length=1
    )
    """Which."""
    severities: Annotated[tuple[Annotated[int, Field(ge=1, le=5)], ...], AfterValidator(unique)] = Field(
        default=(2,), min_length=1
    )
    """How strong, 1…5, as in ImageNet-C."""
    scope: Literal["window", "bank"] = "window"
    """`window`: this window's hold-out; `bank`: the earlier hold-outs, pooled."""
    minimum: float | None = Field(default=None, gt=0, lt=1)
    """Lowest accuracy under any of them, 0…1; null for no floor."""
    max_drop: float | None = Field(default=0.05, ge=0, lt=1)
    """Largest loss of accuracy under any of them against the champion's under the same, 0…1; null for any, and where
    `minimum` is written alone."""
    confidence: float = Field(default=0.95, ge=0.5, lt=1)
    """With which a fair challenger passes, all corruptions and limits together; what fails is shown with it."""
    max_samples: int = Field(default=200, ge=1, le=100_000)
    """Pictures at most, drawn by a seed; each goes through both models once a corruption."""
    min_samples: int = Field(default=20, ge=5, le=10_000_000)
    """Pictures below which it says nothing."""
    too_few: TooFew = "pass"
    """What fewer count as. `pass`: `floor` and `better` hold back what is not proven at all, and `fail` would hold back every
    challenger of a stream of small windows."""

    @model_validator(mode="after")
    def _draws_enough(self) -> Self:
        if self.min_samples > self.max_samples:
            raise ValueError(
                f"min_samples must not exceed max_samples, got {self.min_samples} > {self.max_samples}. Raise max_samples"
            )
        return self

    def misfit(self, task: Task, *, pictures: bool, columns: tuple[str, ...]) -> str:
        """Rows have no pixels."""
        if pictures:
            return ""
        return "kind must not be robustness while model.features is given, got robustness: it corrupts pictures. Remove it"


class LatencyGate(_Gate):
    """The challenger must not be slower than the champion on this machine, or than a limit."""

    LIMITS: ClassVar[tuple[str, ...]] = ("max_ratio", "max_ms")
    kind: Literal["latency"] = "latency"
    max_ratio: float | None = Field(default=1.25, gt=0, le=1_000)
    """Largest time of a forward pass as a multiple of the champion's; null for any, and where `max_ms` is written alone."""
    max_ms: float | None = Field(default=None, gt=0, le=1e7)
    """Longest forward pass of a batch in milliseconds, on this machine; null for any."""
    batch_size: int = Field(default=8, ge=1, le=4_096)
    """Samples of a batch."""
    rounds: int = Field(default=40, ge=10, le=10_000)
    """Rounds at most, in each of which both models are timed; it stops as soon as the medians are clear."""
    confidence: float = Field(default=0.95, ge=0.5, lt=1)
    """With which a median must lie on one side of its limit."""
    too_few: TooFew = "pass"
    """What it counts as if the rounds have not made that clear. `pass`: the machine is too noisy or the two are too near the
    limit, which another window would not change."""


class SizeGate(_Gate):
    """The challenger's weights must not be larger than the champion's, or than a limit."""

    LIMITS: ClassVar[tuple[str, ...]] = ("max_ratio", "max_megabytes")
    kind: Literal["size"] = "size"
    max_ratio: float | None = Field(default=1.1, gt=0, le=1_000)
    """Largest size of the weights as a multiple of the champion's; null for any, and where `max_megabytes` is written alone."""
    max_megabytes: float | None = Field(default=None, gt=0, le=1e7)
    """Largest size of the weights in megabytes (10⁶ bytes); null for any."""


class ServesGate(_Gate):
    """The files of the release, loaded again in a fresh process, must predict what the challenger does."""

    kind: Literal["serves"] = "serves"
    tolerance: float = Field(default=1e-3, gt=0, le=1)
    """Largest difference of a score that passes: relative to the largest recorded one (at least 1), or to a value's range."""
    formats: tuple[Literal["safetensors", Export], ...] | None = None
    """Which files; null for all that the release has."""


Gate = Annotated[
    FloorGate
    | BetterGate
    | NoWorseGate
    | SlicesGate
    | NegativeFlipsGate
    | CalibrationGate
    | RobustnessGate
    | LatencyGate
    | SizeGate
    | ServesGate,
    Field(discriminator="kind"),
]
