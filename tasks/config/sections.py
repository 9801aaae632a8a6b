"""The pipeline file: what to watch, which model, when to retrain, what may go live.

``PipelineConfig`` is frozen and forbids unknown keys. Every field says its meaning and unit, and the
same words make the JSON schema for editors and the comments of the file that ``everfresh init`` writes.
Credentials never stand here: boto3 reads them from its own chain (environment, profile, role).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from everfresh.tasks.config.base import Names, Section, Task, unique
from everfresh.tasks.config.evaluation import EvaluationConfig
from everfresh.tasks.config.gates import BetterGate, FloorGate, Gate, NoWorseGate, ServesGate
from everfresh.tasks.config.operation import AlertsConfig, ApprovalConfig, DeployConfig, ScheduleConfig, Zone
from everfresh.tasks.config.release import ReleaseConfig
from everfresh.tasks.config.retention import RetentionConfig
from everfresh.tasks.config.training import FineTuneConfig, Loss

Rung = Literal["recalibrate", "head", "full", "pretrained"]
LOSSES: dict[Task, tuple[Loss, ...]] = {
    "single_label": ("cross_entropy", "class_balanced", "focal"),
    "multi_label": ("bce", "focal"),
    "regression": ("mse", "mae", "huber"),
}
"""What each task can be trained with, the default first."""
SMOOTHED: tuple[Loss, ...] = ("cross_entropy", "class_balanced")
Trust = Literal["trusted", "suspect", "retired"]


HOST = re.compile(r"[A-Za-z0-9.:-]+")
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def _stripped(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if not name or name != " ".join(name.split()):
            raise ValueError(
                f"must be names without spaces around them, got {name!r}. Labels are compared after their spaces are trimmed"
            )
    return names


def _address(uri: str) -> str:
    scheme, separator, rest = uri.partition("://")
    bucket = rest.split("/")[0]
    if scheme == "s3" and bucket and not BUCKET.fullmatch(bucket):
        raise ValueError(f"must name a bucket of letters, digits, dots and dashes, got {bucket!r}. Correct it")
    whole = {"s3": bool(bucket), "file": rest.startswith("/")}.get(scheme, False) if separator else bool(uri)
    if not whole:
        raise ValueError(f"must be a folder, file:///… or s3://bucket/prefix, got {uri!r}. Change the address")
    return uri


def _http(url: str) -> str:
    if "@" in url:
        raise ValueError("must be http(s)://host:port, got one with a user in it. Let boto3 find the credentials")
    try:
        parts = urlsplit(url)
        whole = HOST.fullmatch(parts.hostname or "") and (parts.port is None or parts.port) and not parts.path.strip("/")
    except ValueError:  # a port that is none
        whole = False
    if not whole or parts.scheme not in {"http", "https"} or parts.query:
        raise ValueError(f"must be http(s)://host:port, got {url!r}. Leave bucket and path to the addresses")
    return url.rstrip("/")


Address = Annotated[str, AfterValidator(_address)]
Endpoint = Annotated[str, AfterValidator(_http)]


class ParentFolder(Section):
    """The label of a file is the name of the folder that holds it."""

    kind: Literal["parent_folder"] = "parent_folder"


class Sidecar(Section):
    """Labels, times and slices stand in a table beside the files."""

    kind: Literal["sidecar"] = "sidecar"
    path: str
    """The table, relative to the source: `.csv`, `.jsonl` or `.parquet`."""
    key_column: str = "key"
    """Column with the file's path relative to the source."""
    label_column: str = "label"
    """Column with the label; an empty cell means not labelled yet."""
    timestamp_column: str | None = None
    """Column with the time of each sample, ISO 8601."""
    slice_columns: Names = ()
    """Columns by which results are broken down (site, device, …)."""


class Unlabelled(Section):
    """No labels: drift is watched, nothing is trained."""

    kind: Literal["none"] = "none"


Labels = Annotated[ParentFolder | Sidecar | Unlabelled, Field(discriminator="kind")]


class ImageFolder(Section):
    """Image files under a folder or a store prefix."""

    kind: Literal["folder"] = "folder"
    path: Address = "inbox"
    """Folder or `s3://bucket/prefix` with JPEG, PNG, WebP, BMP, GIF or TIFF files."""
    labels: Labels = ParentFolder()
    """Where labels come from: `parent_folder`, `sidecar` or `none`."""
    timezone: Zone | None = None
    """IANA zone of times that name none, such as `Europe/Berlin`."""
    ordered: bool = False
    """True only if new keys always sort after all earlier ones: the listing then starts at the last key."""


class TarShards(Section):
    """Image files inside tar archives, read in the order in which the archives are named."""

    kind: Literal["shards"] = "shards"
    paths: tuple[Address, ...] = Field(min_length=1)
    """Tar files, or folders or `s3://` prefixes that hold them; members are `…/label/name.jpg`."""
    labels: Labels = ParentFolder()
    """Where labels come from: `parent_folder`, `sidecar` or `none`."""
    timezone: Zone | None = None
    """IANA zone of times that name none."""


class TableRows(Section):
    """Rows of tables: each row of a Parquet or CSV file is a sample, fed by the columns of `model.features`."""

    kind: Literal["rows"] = "rows"
    paths: tuple[Address, ...] = Field(min_length=1)
    """Parquet or CSV files, or folders or `s3://` prefixes of them. New rows come in new files: a file must not change."""
    label_column: str | None = None
    """Column with the label; an empty cell means not labelled. Null: no labels, drift is watched, nothing is trained."""
    timestamp_column: str | None = None
    """Column with the time of each row, a timestamp or ISO 8601."""
    slice_columns: Names = ()
    """Columns by which results are broken down."""
    group_columns: Names = ()
    """Rows equal in these are of one thing (a patient, a device) and share a split; none: rows equal in features and time."""
    missing: Literal["quarantine", "impute"] = "quarantine"
    """Rows that lack a feature: set aside, or taken with the training mean for a number and no category for a category."""
    timezone: Zone | None = None
    """IANA zone of times that name none."""

    @property
    def annotations(self) -> Sidecar:
        """Which columns say what of a row, as a sidecar's do of a file."""
        return Sidecar(
            path="",
            label_column=self.label_column or "",
            timestamp_column=self.timestamp_column,
            slice_columns=self.slice_columns,
        )

    @property
    def labels(self) -> Sidecar | Unlabelled:
        """Where labels come from."""
        return self.annotations if self.label_column is not None else Unlabelled()


class LoggedPredictions(Section):
    """What a service was asked, as its `PredictionLog` wrote it: pictures or rows, their times and slices, labels that came."""

    kind: Literal["predictions"] = "predictions"
    path: Address
    """Address of the log: a folder or `s3://bucket/prefix` of its own."""
    label_wait_hours: float = Field(default=24, ge=0, le=8_760)
    """Predictions wait for their labels at most so long after they were written; 0: they are taken at once, with the labels
    of then. Labels that come later are not used."""
    slice_columns: Names = ()
    """Slices by which results are broken down, among those that the service logs; `release` is the version that answered."""

    @property
    def timezone(self) -> None:
        """Its times name theirs."""
        return

    @property
    def labels(self) -> Sidecar:
        """What is told of a prediction, as a sidecar's columns tell it of a file."""
        return Sidecar(path="", timestamp_column="at", slice_columns=self.slice_columns)


Source = Annotated[ImageFolder | TarShards | TableRows | LoggedPredictions, Field(discriminator="kind")]


class S3Config(Section):
    """How S3 is spoken to, by the store, the source and the weights alike. Credentials never stand here."""

    endpoint: Endpoint | None = None
    """Address of an S3-compatible server, such as `https://minio.example:9000`; null for AWS or `AWS_ENDPOINT_URL`."""
    region: str | None = Field(default=None, pattern=r"^[A-Za-z0-9-]{2,40}$")
    """Region of the buckets; null to take it from the environment or the profile."""
    addressing: Literal["path", "virtual"] | None = None
    """`path`: host/bucket/key; `virtual`: bucket.host/key; null: `path` where an endpoint is named, `virtual` on AWS."""
    encryption: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    """Server-side encryption that each write asks for; null leaves it to the bucket's default."""
    kms_key: str | None = None
    """Key for `aws:kms`, as its id, alias or ARN; null for the account's own."""
    verify: Literal["read_back", "checksum"] = "read_back"
    """How a file that was written is proven: `read_back` reads it all again, on any store; `checksum` lets the server
    check a CRC-32 of each part, which costs less where the server does so (`everfresh check` finds out)."""
    connect_timeout: float = Field(default=10, gt=0, le=600)
    """Seconds until a server that does not answer counts as out of reach."""
    read_timeout: float = Field(default=60, gt=0, le=3_600)
    """Seconds without a byte until a request counts as failed."""
    max_attempts: int = Field(default=5, ge=1, le=20)
    """A request is tried so often, with random pauses that grow, before it counts as failed."""
    threads: int = Field(default=8, ge=1, le=64)
    """Parts of 8 MiB of one large file that travel at the same time."""

    @model_validator(mode="after")
    def _key_is_used(self) -> Self:
        if self.kms_key is not None and not (self.encryption or "").startswith("aws:kms"):
            raise ValueError(
                f"kms_key must come with encryption aws:kms, got encryption {self.encryption}: the key would not be used. "
                "Set encryption, or remove the key"
            )
        return self


class WindowConfig(Section):
    """How new samples become a window, and how a window is split."""

    min_samples: int = Field(default=1, ge=1, le=10_000_000)
    """A window waits until at least so many new files are there."""
    max_samples: int = Field(default=5_000, ge=1, le=10_000_000)
    """A window takes at most so many files; the rest makes the next window."""
    order: Literal["key", "modified", "shuffled", "time"] = "key"
    """Order in which waiting files are taken; `shuffled` is seeded and keeps the order of archives and tables; `time`, for
    rows alone, is that of `source.timestamp_column` over all waiting files."""
    holdout_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of samples that only the gates ever see."""
    tune_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of samples for the choice of regularisation and of rung."""
    bank_max_samples: int = Field(default=2_000, ge=1, le=1_000_000)
    """Upper bound of the bank of earlier hold-outs, in samples; a seeded sample stands for the rest."""
    seed: int = Field(default=0, ge=0, le=4_294_967_295)
    """Seed of the split and of the shuffle. Leave it and the two fractions as they are once windows exist."""

    @model_validator(mode="after")
    def _leaves_training_data(self) -> Self:
        if self.holdout_fraction + self.tune_fraction > 0.9:
            raise ValueError(
                f"holdout_fraction + tune_fraction must be at most 0.9, got "
                f"{self.holdout_fraction + self.tune_fraction:g}. Leave at least a tenth to train on"
            )
        if self.min_samples > self.max_samples:
            raise ValueError(
                f"min_samples must not exceed max_samples, got {self.min_samples} > {self.max_samples}. Raise max_samples"
            )
        return self


class Column(Section):
    """One column of a row that the model is fed: a number, or one of declared categories. A bare name is a number."""

    name: str = Field(min_length=1)
    """As it stands in the table."""
    categories: Annotated[Names, AfterValidator(_stripped)] = ()
    """Its values, each an input of its own (one-hot), any other one all zeros; empty for a number."""
    mean: float | None = None
    """That is subtracted from a number; null: of the samples that version 1 is trained on, 0 for an adopted model."""
    std: float | None = Field(default=None, gt=0)
    """That divides a number; null: of the samples that version 1 is trained on, 1 for an adopted model."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.categories and (self.mean, self.std) != (None, None):
            raise ValueError(
                f"must be a number or have categories, got {len(self.categories)} categories and a mean or std. Remove one"
            )
        return self


def _number_of(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


AnyColumn = Annotated[Column, BeforeValidator(_number_of, json_schema_input_type=Column | str)]


def _columns_differ(columns: tuple[Column, ...]) -> tuple[Column, ...]:
    unique(tuple(c.name for c in columns))
    if taken := [c.name for c in columns if c.name in {"confidence", "prediction"}]:
        raise ValueError(f"must not be confidence or prediction, which are the model's own, got {taken[0]}. Rename the column")
    return columns


class ModelConfig(Section):
    """The model and how a picture, or a row of a table, becomes its input."""

    architecture: str = Field(default="resnet50", pattern=r"^[a-z][a-z0-9_]*$|^timm/[a-z][\w.]*$|^[\w.]+:[A-Za-z_]\w*$")
    """A torchvision classifier by name, `timm/<name>`, or your own `package.module:callable(num_classes)`; for rows of a
    table `callable(num_classes, features)`, where `features` is how many numbers it is fed."""
    weights: str | None = "DEFAULT"
    """Start: a name under which torchvision or timm publishes weights (`DEFAULT`), a file, a store key (`file://…`, `s3://…`),
    a release (`…/releases/<id>/model.safetensors`), or null for random weights."""
    task: Task = "single_label"
    """What is asked for: `single_label`, one of the classes; `multi_label`, any set of them; `regression`, numbers."""
    classes: Annotated[Names, AfterValidator(_stripped)] = ()
    """Class names, as they stand in the labels, two or more; the order is the model's output order. A label of
    `multi_label` is a JSON list of them, or their names joined by `|`; `|` alone is the set without any."""
    targets: Annotated[Names, AfterValidator(_stripped)] = ()
    """Names of the values of a `regression`, in the model's output order. A label is their decimals, joined by `;`."""
    tolerance: float | None = Field(default=None, ge=0)
    """When a prediction counts as right: `regression` needs it, in the targets' units, each value at most so far away;
    of `multi_label` so many classes may be wrong, 0 if null."""
    image_size: int = Field(default=224, ge=8, le=4096)
    """Side of the square input, pixels: shorter side resized, centre cropped."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean that is subtracted, by channel, in units of 0…1."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation that divides, by channel, in units of 0…1."""
    features: Annotated[tuple[AnyColumn, ...], AfterValidator(_columns_differ)] = ()
    """Columns that the model is fed where the source is `rows`, in order; the three fields above are then not used."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of embedding, and of training where `fine_tune.precision` finds none clearly faster; gates always compare in
    the precision that is served, fp32."""

    @model_validator(mode="after")
    def _own_for_rows(self) -> Self:
        if self.features and ":" not in self.architecture:
            raise ValueError(
                f"architecture must be your own package.module:callable where there are features, got {self.architecture!r}, "
                "which takes pictures. Write one that returns a torch.nn.Module for (num_classes, features)"
            )
        return self

    @field_validator("std")
    @classmethod
    def _positive(cls, std: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(std) <= 0:
            raise ValueError(f"must be positive in each channel, got {std}. Use the std the weights were trained with")
        return std

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the model's outputs, in their order."""
        return self.targets if self.task == "regression" else self.classes

    @model_validator(mode="after")
    def _task_is_told(self) -> Self:
        regression = self.task == "regression"
        mine, other = ("targets", "classes") if regression else ("classes", "targets")
        if named := getattr(self, other):
            raise ValueError(f"{other} must be empty while task is {self.task}, got {len(named)} names. Write {mine}")
        if (regression and not self.tolerance) or (self.task == "single_label" and self.tolerance):
            rule = "be more than 0, in the target's units," if regression else "be null"
            raise ValueError(f"tolerance must {rule} while task is {self.task}, got {self.tolerance}. Change one of the two")
        if self.task == "multi_label":
            if joined := [name for name in self.classes if "|" in name or name.startswith("[")]:
                raise ValueError(
                    f"classes must not hold | or begin with [ while task is multi_label, got {joined[0]!r}. Rename it"
                )
            if self.tolerance and (self.tolerance % 1 or self.tolerance >= len(self.classes)):
                raise ValueError(
                    f"tolerance must be a whole number of classes, fewer than there are, got {self.tolerance:g}. Lower it"
                )
        return self


Season = Literal["hour", "weekday"]


class DriftConfig(Section):
    """How a window is compared with the champion's reference."""

    false_alarm_rate: float = Field(default=0.01, gt=0, le=0.5)
    """Share of quiet windows that may alarm."""
    max_samples: int = Field(default=5_000, ge=20, le=1_000_000)
    """At most so many samples of a window and of a reference component are looked at."""
    permutations: int = Field(default=999, ge=99, le=100_000)
    """Permutations behind each p-value; the smallest possible p is 1 / (permutations + 1). More are made where part of the
    false-alarm rate goes to the labels."""
    components: int = Field(default=16, ge=0, le=512)
    """Leading principal components of the embedding that are tested."""
    min_effect: float = Field(default=0.05, ge=0, le=1)
    """An alarm needs an effect of at least this: a column's distance, or 2 AUC - 1 of the domain classifier, 0…1."""
    alarm_after: int = Field(default=1, ge=1, le=100)
    """Alarm once so many of the last `within` windows exceeded, this one included."""
    within: int = Field(default=1, ge=1, le=100)
    """Windows that `alarm_after` looks back on, this one included; those of an earlier champion do not count."""
    cooldown_windows: int = Field(default=0, ge=0, le=100)
    """Windows after an alarm during which the same champion gets no other."""
    seasonal: tuple[Season, ...] = ()
    """Compare with reference samples of the same `hour` and/or `weekday` as the window's, UTC; needs sample times."""
    report: bool = True
    """Write the page that explains the drift, and Evidently's HTML and JSON report beside our own numbers."""
    workspace: str | None = None
    """Folder of an Evidently workspace, relative to this file: each report becomes a snapshot of the team's own UI."""

    @model_validator(mode="after")
    def _alarm_is_reachable(self) -> Self:
        if self.alarm_after > self.within:
            raise ValueError(
                f"alarm_after must be at most within = {self.within}, got {self.alarm_after}: no window could ever alarm. "
                "Raise within"
            )
        return self

    @model_validator(mode="after")
    def _rate_is_reachable(self) -> Self:
        if self.false_alarm_rate * (self.permutations + 1) < 1:
            raise ValueError(
                f"permutations must be at least 1 / false_alarm_rate - 1 = {1 / self.false_alarm_rate - 1:.0f}, got "
                f"{self.permutations}: no window could ever alarm. Raise permutations"
            )
        return self

    def p_words(self, p: float) -> str:
        """A p-value as people read it: the least that so many permutations can show is a bound, not a value."""
        return f"{'≤' if p * (self.permutations + 1) <= 1.5 else '='} {p:.2g}"


class OnDrift(Section):
    """Retrain when the alarm rings and the loss of accuracy, measured or estimated, is at least this."""

    kind: Literal["drift"] = "drift"
    min_severity: float = Field(default=0.02, ge=0, le=1)
    """Loss of accuracy, 0…1, below which an alarm is reported but not acted on."""


class OnNewSamples(Section):
    """Retrain when so many labelled samples have come since the last training."""

    kind: Literal["new_samples"] = "new_samples"
    count: int = Field(ge=1)
    """Labelled samples since the last training."""


class OnAge(Section):
    """Retrain when the champion is older than this."""

    kind: Literal["age"] = "age"
    days: float = Field(gt=0)
    """Age of the champion in days, by the store's clock, when a window comes in."""


class OnPerformance(Section):
    """Retrain when the accuracy measured on the window's labels has dropped by this much."""

    kind: Literal["performance"] = "performance"
    max_drop: float = Field(default=0.05, gt=0, le=1)
    """Drop of measured accuracy against the champion's baseline, 0…1; must exceed its 95 % interval too."""


Trigger = Annotated[OnDrift | OnNewSamples | OnAge | OnPerformance, Field(discriminator="kind")]


class PolicyConfig(Section):
    """When to retrain, and how much effort to spend."""

    triggers: tuple[Trigger, ...] = (OnDrift(), OnPerformance())
    """Any one of them is enough: `drift`, `performance`, `new_samples`, `age`; a person can always force."""
    cooldown_windows: int = Field(default=0, ge=0, le=10_000)
    """Windows after a training during which only a person can start another."""
    bootstrap: Rung = "full"
    """How version 1 is trained when there is no champion yet; there is nothing to recalibrate then."""
    ladder: Annotated[tuple[Rung, ...], AfterValidator(unique)] = Field(default=("recalibrate", "head", "full"), min_length=1)
    """Rungs in the order in which they are tried, cheapest first: `recalibrate`, `head`, `full`, `pretrained`. The first is
    left out unless class shares have moved."""
    adequate_drop: float = Field(default=0.03, ge=0, le=1)
    """A rung is enough when its tune accuracy is at most this far below the champion's baseline, 0…1."""


class PipelineConfig(Section):
    """One model kept fresh."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    """Name of the pipeline: lower case, digits, dashes. It is the folder of this pipeline in the store."""
    store: Address
    """Where everything is kept: a folder, `file://…` or `s3://bucket/prefix`."""
    source: Source
    """Where data arrives."""
    s3: S3Config = S3Config()
    """How S3 is spoken to."""
    window: WindowConfig = WindowConfig()
    """How new samples become a window."""
    model: ModelConfig
    """The model."""
    drift: DriftConfig = DriftConfig()
    """How drift is measured."""
    policy: PolicyConfig = PolicyConfig()
    """When to retrain."""
    fine_tune: FineTuneConfig = FineTuneConfig()
    """How to train."""
    gates: tuple[Gate, ...] = Field(default=(FloorGate(), BetterGate(), NoWorseGate()), min_length=1)
    """What a challenger must pass to go live, any number of each: `floor`, `better`, `no_worse`, `slices`, `negative_flips`,
    `calibration`, `robustness`, `latency`, `size`, `serves`."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """What is shown of each proof."""
    release: ReleaseConfig = ReleaseConfig()
    """What a release holds, and what its card says."""
    retention: RetentionConfig = RetentionConfig()
    """Which old releases stay."""
    schedule: ScheduleConfig = ScheduleConfig()
    """When it runs by itself."""
    alerts: AlertsConfig = AlertsConfig()
    """What is told to others."""
    approval: ApprovalConfig = ApprovalConfig()
    """Where a person is asked."""
    deploy: DeployConfig = DeployConfig()
    """Where it runs by itself."""

    @model_validator(mode="after")
    def _task_fits(self) -> Self:
        task, loss, names = self.model.task, self.fine_tune.loss, self.model.outputs
        mine, least = ("targets", 1) if task == "regression" else ("classes", 2)
        if not names:
            raise ValueError(f"model.{mine}: is required while model.task is {task}. Add it; `everfresh init` shows an example")
        if len(names) < least:
            raise ValueError(f"model.{mine}: must hold at least {least}, got {len(names)}. Add some")
        if loss is not None and loss not in LOSSES[task]:
            raise ValueError(
                f"fine_tune.loss must be one of {', '.join(LOSSES[task])} while model.task is {task}, got {loss}. Choose one"
            )
        if self.fine_tune.label_smoothing and (loss or LOSSES[task][0]) not in SMOOTHED:
            raise ValueError(
                f"fine_tune.label_smoothing must be 0 while fine_tune.loss is {loss or LOSSES[task][0]}, got "
                f"{self.fine_tune.label_smoothing:g}. It belongs to {' and '.join(SMOOTHED)}"
            )
        tune = self.fine_tune
        one_only = {
            "keep.distill": ("0", tune.keep.distill),
            "mix.kind": ("none", "" if tune.mix.kind == "none" else tune.mix.kind),
            "sampling": ("shuffled", "" if tune.sampling == "shuffled" else tune.sampling),
        }
        for name, (off, value) in one_only.items():
            if value and task != "single_label":
                raise ValueError(
                    f"fine_tune.{name} must be {off} while model.task is {task}, got {value}: it is for one of several classes"
                )
        columns = self.source.labels.slice_columns if isinstance(self.source.labels, Sidecar) else ()
        for number, gate in enumerate(self.gates):
            if misfit := gate.misfit(task, pictures=not self.model.features, columns=columns):
                raise ValueError(f"gates.{number}.{misfit}")
        return self

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        if isinstance(self.source.labels, Unlabelled) and self.policy.triggers:
            raise ValueError(
                "policy.triggers must be empty while source.labels is none, got "
                f"{', '.join(t.kind for t in self.policy.triggers)}: nothing can be trained without labels. "
                "Write `triggers: []` to watch only, or say where labels are"
            )
        if self.policy.bootstrap == "recalibrate":
            raise ValueError(
                "policy.bootstrap must not be recalibrate, got recalibrate: version 1 has no champion to start from. "
                "Choose head, full or pretrained"
            )
        if self.model.features and (self.fine_tune.policy, self.fine_tune.mix.kind) != ("none", "none"):
            raise ValueError(
                "fine_tune.policy and fine_tune.mix.kind must be none while model.features is given, got "
                f"{self.fine_tune.policy} and {self.fine_tune.mix.kind}: only pictures can be changed so. Remove them"
            )
        if self.model.weights is None and self.fine_tune.keep.pull_back:
            raise ValueError(
                f"fine_tune.keep.pull_back must be 0 while model.weights is null, got {self.fine_tune.keep.pull_back:g}: it "
                "pulls towards them. Give weights, or remove it"
            )
        if self.model.weights is None and self.policy.bootstrap == "head":
            raise ValueError(
                "policy.bootstrap must not be head while model.weights is null, got head on random features. "
                "Give weights, or bootstrap with pretrained"
            )
        for number, gate in enumerate(self.gates):
            if isinstance(gate, ServesGate) and (lacking := set(gate.formats or ()) - {"safetensors", *self.release.formats}):
                raise ValueError(
                    f"gates.{number}.formats must be safetensors or among release.formats, got {', '.join(sorted(lacking))}. "
                    "Add it to release.formats, or remove it"
                )
        rows = isinstance(self.source, TableRows)
        if rows != bool(self.model.features) and not isinstance(self.source, LoggedPredictions):
            raise ValueError(
                f"model.features must name columns if and only if source.kind is rows, got {len(self.model.features)} with "
                f"{self.source.kind}. {'Name what the model is fed' if rows else 'Remove them, or set source.kind'}"
            )
        if self.window.order == "time" and not (isinstance(self.source, TableRows) and self.source.timestamp_column):
            raise ValueError(
                f"window.order must not be time while there is no source.timestamp_column, got time with {self.source.kind}. "
                "Choose key, or name the column of a source of rows"
            )
        if isinstance(self.source, ImageFolder) and self.source.ordered and self.window.order != "key":
            raise ValueError(
                f"window.order must be key while source.ordered is true, got {self.window.order}: files that a full window "
                "leaves behind would never be looked at again. Set source.ordered to false, or window.order to key"
            )
        return self
