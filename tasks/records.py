"""What the stages hand on: frozen records, written as JSON, read back by every later version.

Flows pass these records and keys, never arrays or modules, so any stage can run on another machine.
Times are aware UTC. Accuracies and their differences are shares, 0…1; higher drift means more drift.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from everfresh.tasks.config import Rung, Stage, Task, Trust
from everfresh.tasks.errors import StoreError

Split = Literal["train", "tune", "holdout"]
Share = Annotated[float, Field(ge=0, le=1)]
Through = Literal["form", "command", "expiry"]
"""How an answer came: by the form in Prefect's UI, by `everfresh approve`, or because nobody answered in time."""


def digest_of(*parts: Any) -> str:
    """32 hex digits that stand for `parts`, anything JSON can hold; equal parts give equal digests."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"cannot digest a {type(value).__name__}")


class Value(BaseModel):
    """Base of all that a record holds: frozen, strict about keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Record(Value):
    """Base of all records: a value with a version, written as JSON."""

    schema_version: int = 1

    def to_bytes(self) -> bytes:
        """The record as it stands in the store."""
        return self.model_dump_json(indent=1).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "a record") -> Self:
        """The record that stands in the store under `name`; fields that came later take their defaults.

        Raises:
            StoreError: the bytes are no such record: damaged, or written by a newer Everfresh.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"]) or "the whole"
            raise StoreError(
                f"{name} must be a {cls.__name__} in JSON, got {field}: {first['msg']}. "
                "Restore it from a copy if it was damaged; update Everfresh if a newer one wrote it."
            ) from None


class Part(Value):
    """One object that belongs to a record."""

    key: str
    """Key in the pipeline's store."""
    sha256: str
    size: int
    """Bytes."""


class Interval(Value):
    """An estimate with its interval."""

    value: float
    low: float
    high: float

    @property
    def width(self) -> float:
        return self.high - self.low


class Cursor(Value):
    """How far the source was read: the set of (key, version) seen, as one immutable object."""

    index: Part | None = None
    """Parquet with columns key, version; absent where the source declares that its keys grow."""
    last_key: str = ""
    """Highest key seen."""
    listing: str = ""
    """Digest of the whole listing at that time: an equal listing has nothing new."""


class Window(Record):
    """A view: an immutable set of samples with the labels known when it was closed."""

    view: str
    """Digest of the samples (key, content, label) and of the rejected keys."""
    samples: int = Field(ge=0)
    quarantined: int = Field(ge=0)
    labelled: int = Field(ge=0)
    splits: dict[Split, int]
    """Labelled samples of known classes, by split."""
    classes: dict[str, int]
    """Samples by label; of many different sets of classes the most frequent ones, of numbers the halves of their range."""
    pending: dict[str, int] = {}
    """Samples whose label is none of `model.classes`, by label: they wait until the class is added."""
    train_classes: dict[str, int] = {}
    """Training samples by label, known labels only."""
    chance: Share | None = None
    """How often one of the labels would be right for another sample; None where `classes` tell it."""
    manifest: Part
    shards: tuple[Part, ...]
    supersedes: str | None = None
    """The view of the same samples with fewer labels, if this one came later."""


class StreamEntry(Record):
    """The n-th window. Creating it commits the window and the source cursor in one object."""

    seq: int = Field(ge=1)
    view: str
    previous: str | None
    """View of the window before."""
    cursor_after: Cursor
    committed_at: AwareDatetime


class AliasMove(Record):
    """One move of an alias, which names the last one's release: of the champion, or of any other.

    Pins, bars and retirements stand in the champion's moves alone: so none of them can be lost to a move made meanwhile.
    """

    seq: int = Field(ge=1)
    id: str
    """Unique to the attempt, so that a lost reply is not taken for a lost move."""
    kind: Literal["publish", "adopt", "rollback", "pin", "unpin", "promote", "retire", "restore", "remove"]
    release: str
    """The release that the alias names from this move on; if the move removes the alias, the one that it named last."""
    version: int = Field(ge=0)
    """The number people say, counted over the releases that became champion; 0 while this one never was."""
    pinned: bool = False
    """While pinned, no challenger can become champion."""
    barred: tuple[str, ...] = ()
    """Releases that were rolled back and may not return by themselves."""
    retired: tuple[str, ...] = ()
    """Releases that no alias may name."""
    evaluation: str = ""
    """Key of the proof that a published challenger went live by; empty in other moves, and in those of before it was told."""
    by: str
    reason: str
    at: AwareDatetime

    @model_validator(mode="after")
    def _has_a_number(self) -> Self:
        if not self.version and self.kind not in {"promote", "remove"}:
            raise ValueError(f"version must be 1 or more in a move of the champion, got 0 in a {self.kind}")
        return self

    @property
    def label(self) -> str:
        """What people call the release: `v3`, or the first digits of its id if it never was champion."""
        return label(self.release, self.version)


def label(release: str, version: int) -> str:
    """What people call a release: `v3`, or the first digits of its id where it never was champion."""
    return f"v{version}" if version else release[:12]


class Banked(Value):
    """A trusted window whose hold-out is compared on and whose training samples are replayed."""

    view: str
    seq: int
    """Its place in the stream; 0 for the validation samples of an adopted model."""
    regime: str
    """The component of the reference that it belongs to."""
    labelled: int = 0
    """Samples with a label."""


class Wish(Value):
    """What a person asks for who forces a tick."""

    reason: str = ""
    rung: Rung | None = None
    trust_labels: bool = False
    first_window: int | None = Field(default=None, ge=1)
    """First window whose samples are replayed; None for all of the bank."""
    last_window: int | None = Field(default=None, ge=1)
    """The window to retrain on; None for the newest one."""


class Tick(Record):
    """What one tick set out from. A rerun after a crash sets out from the same, so it ends the same."""

    seq: int = Field(ge=1)
    """Which window of the stream."""
    request: str = ""
    """Empty on a scheduled tick, a fresh id when a person forces one."""
    reason: str = ""
    rung: Rung | None = None
    """The one rung that a person asked for."""
    trust_labels: bool = False
    """A person has said that the window's labels are right."""
    replay_from: int = Field(default=0, ge=0)
    """First window whose samples a person wants replayed; 0 for all of the bank."""
    replay: str = ""
    """Id of the replay that it belongs to; empty when it is live."""
    view: str
    champion: str | None
    """Release that was champion then."""
    champion_move: int = Field(ge=0)
    """Sequence of the move that made it so; 0 when there was none."""
    reference: str | None
    bank: tuple[Banked, ...]
    """Earlier trusted windows, oldest first."""
    now: AwareDatetime
    """The store's clock at the start; ages are measured from it."""

    @property
    def replayed(self) -> tuple[Banked, ...]:
        """Windows of the bank whose training samples are learnt from again; all of it is compared on."""
        return tuple(b for b in self.bank if b.view != self.view and self.replay_from <= b.seq <= self.seq)

    def fulfils(self, wish: Wish) -> bool:
        """Whether it was forced in these words."""
        words = (self.reason, self.rung, self.trust_labels, self.replay_from)
        return bool(self.request) and words == (wish.reason, wish.rung, wish.trust_labels, wish.first_window or 0)


class Component(Value):
    """One accepted regime of the reference: samples that the champion never learnt from."""

    name: str
    views: tuple[str, ...]
    splits: tuple[Split, ...]
    """Which splits of these views; only those that the champion was neither trained nor tuned on."""


class Reference(Record):
    """What drift of one champion is compared against: one component for each accepted regime."""

    id: str
    release: str
    components: tuple[Component, ...]


class ColumnDrift(Value):
    """How one column of the monitoring frame moved."""

    name: str
    kind: Literal["numerical", "categorical"]
    statistic: float
    """Kolmogorov-Smirnov distance, or total variation distance for categories; 0…1."""
    effect: float
    """Difference of means in reference standard deviations; for categories the total variation distance."""
    p_value: Share
    """Corrected for all columns tested together."""
    reference_mean: float | None = None
    current_mean: float | None = None
    missing: tuple[Share, Share] = (0.0, 0.0)
    """Share of missing values, in the reference and here."""
    new_categories: tuple[str, ...] = ()
    """Values that the reference does not have, most frequent first, at most five."""


class LabelAgreement(Value):
    """Whether the window's labels agree with what is known."""

    samples: int
    champion: Interval
    """Champion's accuracy on the window's labels, 95 % interval."""
    neighbours: Share
    """Share of labels that agree with the nearest other samples of the same window."""
    chance: Share
    """What neighbours would reach if the labels were shuffled."""


class FamilyDrift(Value):
    """What one family of tests said."""

    name: str
    """``columns``, ``outputs``, ``components``, ``novelty``, ``joint``, ``classifier``, ``mmd`` or ``concept``."""
    p_value: Share
    """Of this family alone, not corrected for the others."""


class ClassShift(Value):
    """How much of the window is of one class, by the champion's soft outputs corrected for its confusions (BBSE)."""

    name: str
    reference: Share
    """Share of the reference's labels."""
    estimated: Interval
    """Share in this window, 95 % interval."""


class SliceDrift(Value):
    """One slice of the window: a predicted class, or a value of a metadata column."""

    column: str
    value: str
    samples: int
    reference_accuracy: Share
    """On the reference's samples of this slice; on all of them where it has too few."""
    estimated_accuracy: Share
    """Without labels, in this window."""


class DriftPoint(Record):
    """One window on the timeline of drift; what later windows know of it."""

    seq: int = Field(ge=1)
    drift: str
    """Key of the report."""
    release: str
    """The champion that it was measured for."""
    exceeds: bool
    alarm: bool
    p_value: Share
    reference_accuracy: Share
    estimated_accuracy: Interval
    measured_accuracy: float | None = None
    """On the window's labels, where there are enough."""
    at: AwareDatetime

    @property
    def estimated_loss(self) -> float:
        """Of accuracy, without labels."""
        return self.reference_accuracy - self.estimated_accuracy.value


class DriftReport(Record):
    """How far the window is from the champion's reference. It measures; `decide` decides."""

    key: str
    view: str
    reference: str
    reference_samples: int
    current_samples: int
    exceeds: bool = False
    """The window fits no component of the reference and no mixture of them, and by more than the effect floor."""
    moved: bool = False
    """It exceeds by its samples alone, whatever their labels say."""
    alarm: bool
    """It exceeds, and so did as many of the last windows as the pipeline asks for, and no cooldown is on."""
    tested: bool = True
    """False if window or reference had too few samples; then `p_value` is 1 and says nothing."""
    p_value: Share
    """Of all families together."""
    score: float = Field(ge=0)
    """Largest effect of the best fitting comparison, 0…1: column distance, or 2 AUC - 1 of the domain classifier."""
    auc: Share | None = None
    """Held-out area under the ROC curve of a classifier that tells the window from the reference; 0.5 is chance."""
    families: tuple[FamilyDrift, ...] = ()
    regime: str = ""
    """The single component that fits best; a quiet window belongs to it."""
    nearest: str
    """The component (or `mixture`) that fits best."""
    columns: tuple[ColumnDrift, ...]
    """Most drifted first, in that comparison."""
    classes: tuple[ClassShift, ...] = ()
    """Estimated shares of the classes, most changed first."""
    slices: tuple[SliceDrift, ...] = ()
    """Largest estimated loss first."""
    reference_accuracy: Share
    estimated_accuracy: Interval
    """Accuracy on this window estimated without its labels."""
    severity: float
    """Loss of `accuracy` against the reference; negative if it gains."""
    labels: LabelAgreement | None
    since: int | None = None
    """First window of the unbroken run of exceeding windows that this one ends; None if it does not exceed."""
    words: str = ""
    """What happened, in a sentence that anybody can read."""
    files: dict[str, Part]
    """Reports and pictures by name."""

    @property
    def measured(self) -> bool:
        """Whether enough labels have come for them to tell the accuracy more narrowly than the estimate does."""
        return self.labels is not None and self.labels.champion.width <= self.estimated_accuracy.width

    @property
    def accuracy(self) -> Interval:
        """Of the champion on this window: measured on labels, or estimated without, whichever is known more narrowly."""
        return self.labels.champion if self.labels is not None and self.measured else self.estimated_accuracy

    @property
    def loss(self) -> str:
        """The severity in words."""
        return f"{'measured' if self.measured else 'estimated'} loss of accuracy {self.severity:+.1%}"

    @property
    def verdict(self) -> str:
        """In a few words."""
        if not self.tested:
            return "drift not tested, too few samples"
        return "drift alarm" if self.alarm else "drift, but no alarm yet or so soon again" if self.exceeds else "no drift"

    @model_validator(mode="before")
    @classmethod
    def _older(cls, values: Any) -> Any:
        """Reports of before windows were remembered: what alarmed had moved, at once."""
        if isinstance(values, dict):
            values = {"moved": values.get("alarm", False), "exceeds": values.get("alarm", False), **values}
        return values


class Decision(Record):
    """What to do about a window, and why."""

    action: Literal["nothing", "retrain", "bootstrap"]
    reasons: tuple[str, ...]
    """One sentence each; also what spoke for doing nothing."""
    triggers: tuple[str, ...] = ()
    """Kinds of the triggers that fired."""
    ladder: tuple[Rung, ...] = ()
    """Rungs that may be tried, in order."""
    left_out: dict[Rung, str] = {}
    """Rungs of the policy that cannot be adequate here, and why."""
    target: float = 0.0
    """Tune accuracy at which a rung is enough."""
    believed_from: float = 0.0
    """Tune accuracy from which a challenger makes labels believable that nothing else speaks for; below it no dearer rung is
    tried. 0 where something does."""


class Cost(Value):
    """What a step took."""

    seconds: float = 0.0
    """Wall time."""
    device_seconds: float = 0.0
    """Wall time on the training device times the number of devices."""
    samples: int = 0
    """Samples trained on, times epochs."""
    waiting_seconds: float = 0.0
    """Of them, until pictures were read, decoded and augmented."""
    memory_bytes: int = 0
    """Peak on the training device; 0 on the CPU."""

    @property
    def images_per_second(self) -> float:
        """Samples trained on in a second of wall time."""
        return self.samples / self.seconds if self.seconds else 0.0

    @property
    def waiting(self) -> float:
        """Share of the wall time in which the device waited for data."""
        return min(1.0, self.waiting_seconds / self.seconds) if self.seconds else 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            seconds=self.seconds + other.seconds,
            device_seconds=self.device_seconds + other.device_seconds,
            samples=self.samples + other.samples,
            waiting_seconds=self.waiting_seconds + other.waiting_seconds,
            memory_bytes=max(self.memory_bytes, other.memory_bytes),
        )


class Feature(Value):
    """One column of a row that the model is fed."""

    name: str
    categories: tuple[str, ...] = ()
    """Its values, each an input of its own (one-hot); empty for a number."""
    mean: float = 0.0
    """That is subtracted from a number."""
    std: float = 1.0
    """That divides a number."""

    @property
    def width(self) -> int:
        """Inputs that it takes."""
        return len(self.categories) or 1


class ModelSpec(Value):
    """All that is needed, beside the weights, to build the model and feed it."""

    architecture: str
    classes: tuple[str, ...]
    """Names of the outputs: of a regression the values."""
    head: str
    """Path of the module that turns the embedding into class scores."""
    native_head: bool
    """True if that module is the architecture's own; else a linear layer on the pooled features stands there."""
    embedding_dim: int
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    task: Task = "single_label"
    tolerance: float = 0.0
    """Wrong classes of a set, or distance in the target's units, up to which a prediction is right."""
    features: tuple[Feature, ...] = ()
    """What a row is fed as, in order; empty where samples are pictures. Size, mean and std above are then not used."""

    @property
    def inputs(self) -> int:
        """Numbers that a row becomes; 0 where samples are pictures."""
        return sum(f.width for f in self.features)


class Training(Value):
    """What the options of a training came to."""

    steps: int
    """That were made, each over an effective batch."""
    learning_rate: float
    """At its peak, before any layer-wise factor."""
    blocks: int
    """Parts of the network that rates and freezing go by, head included."""
    best_epoch: int | None = None
    """Whose weights were taken, where *tune* ended the training; null for the last."""
    share: Share | None = None
    """Of the new weights in the mixture with the start that *tune* chose; null where none was tried."""
    shortened: bool = False
    """Whether fewer steps were made than configured, because no more fitted into the budget of seconds."""


class Layout(Value):
    """How a training computed: the same weights and pictures, other arithmetic or order in memory."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the forward pass; bf16 by autocast, weights and updates stay fp32."""
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"
    compiled: bool = False
    """By torch.compile; a last, smaller batch goes without."""
    why: str = ""
    """Pinned, default, measured, or measured before on this machine."""
    measured: dict[str, float] = {}
    """Milliseconds a step, forward and backward, by name of the setting."""

    @property
    def name(self) -> str:
        """Precision, memory format, and whether it is compiled."""
        return f"{self.precision} {self.memory_format}{' compiled' if self.compiled else ''}"

    @property
    def eager(self) -> Layout:
        """The same without compilation."""
        return self.model_copy(update={"compiled": False})


class Candidate(Record):
    """A challenger: weights that one rung made from a window."""

    key: str
    rung: Rung
    view: str
    replay: tuple[str, ...]
    """Earlier views trained on again."""
    champion: str | None
    start: str | None
    """The candidate or release whose weights it started from; null for the configured start."""
    request: str
    spec: ModelSpec
    encoder: str
    """Digest of the backbone, the transforms and the precision that make its embeddings."""
    weights: Part
    trained_on: int
    tune_accuracy: Share
    """On the window's tune samples."""
    tune_samples: int
    kept_accuracy: Share | None
    """On the tune samples of the earlier windows; null if there are none."""
    champion_accuracy: Share | None = None
    """The champion's on the samples that `reached` is of; null without a champion or such samples."""
    champion_kept_accuracy: Share | None = None
    """The champion's on the tune samples of the earlier windows; null without a champion or such samples."""
    training: Training | None = None
    """Null where no network was trained."""
    recipe: dict[str, Any] = {}
    """The section `fine_tune` that it was trained with; empty where no network was, and in older records."""
    cost: Cost
    device: str
    layout: Layout | None = None
    """How it was trained; null for the head rung and for older records."""
    files: dict[str, Part] = {}
    seed: int = 0
    code: str = ""
    """Digest of the code that trained it."""
    versions: dict[str, str] = {}

    @property
    def measured(self) -> bool:
        """Whether there was a *tune* sample, of the window or of earlier ones."""
        return self.tune_samples > 0 or self.kept_accuracy is not None

    @property
    def reached(self) -> float:
        """Accuracy on *tune*: the window's, or that of the earlier windows where the window has no tune sample."""
        return self.tune_accuracy if self.tune_samples or self.kept_accuracy is None else self.kept_accuracy

    @property
    def forgot(self) -> float:
        """Accuracy lost on the tune samples of the earlier windows against the champion; 0 where that is not known."""
        if self.kept_accuracy is None or self.champion_kept_accuracy is None:
            return 0.0
        return self.champion_kept_accuracy - self.kept_accuracy

    @property
    def gain(self) -> float | None:
        """Of accuracy on *tune* over the champion; None where that is not known."""
        return None if self.champion_accuracy is None else self.reached - self.champion_accuracy


class Scores(Value):
    """Scores of one model on one set of samples."""

    samples: int
    accuracy: Share
    """Share of right predictions."""
    loss: float
    """Mean cross-entropy, binary cross-entropy of a set, or squared error of values."""
    precision: Share | None = None
    recall: Share | None = None
    f1: Share | None = None
    """Macro averages over the classes that occur; None of values."""
    per_class: dict[str, dict[str, float]]
    """Precision, recall, f1 and samples by class; error and samples by value."""
    confusion: tuple[tuple[int, ...], ...] = ()
    """Rows are true classes, columns predicted ones, in the order of the model's classes; empty of sets and values."""
    metrics: dict[str, float] = {}
    """What else the task is measured by: see `gates.floor.metric`."""

    def get(self, metric: str) -> float:
        """One score by its name in the pipeline file."""
        found = self.metrics[metric] if metric in self.metrics else getattr(self, metric)
        return float(found)


class Comparison(Value):
    """Challenger against champion on the same samples."""

    challenger: Scores
    champion: Scores | None
    gain: Interval | None
    """Difference of accuracy, challenger minus champion, with its 95 % paired interval."""


class Verdict(Value):
    """What one gate said."""

    gate: str
    passed: bool
    """Whether it lets the challenger go live; an undecided one does as the gate's `too_few` says."""
    numbers: dict[str, float]
    words: str
    outcome: Literal["passed", "failed", "undecided"] = "passed"
    """Undecided: there was too little to look at for either. Where it is not given, `passed` says it."""
    resolves: str = ""
    """What the gate can tell at this number of samples, in words; empty where that says nothing."""

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, values: Any) -> Any:
        """Those of before a gate could be undecided, and all that are not, need no outcome."""
        if isinstance(values, dict) and "passed" in values:
            values = {"outcome": "passed" if values["passed"] else "failed", **values}
        return values


class Evaluation(Record):
    """The challenger proven, or not, against the champion that it would replace."""

    key: str
    candidate: str
    champion: str | None
    champion_move: int
    """The move that made this champion: a publish is only valid right after it."""
    window: Comparison
    bank: Comparison | None
    bank_views: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    trust: Trust = "trusted"
    """Whether the window's labels agree with anything known; a suspect window's challenger does not pass."""
    passed: bool
    files: dict[str, Part] = {}

    @property
    def failed_gates(self) -> tuple[str, ...]:
        """Names of the gates that said no."""
        return tuple(v.gate for v in self.verdicts if not v.passed)


class Package(Record):
    """The files of a release that hold the model, loaded and tried by a fresh process before anything goes live."""

    release: str
    files: dict[str, Part]
    verdicts: tuple[Verdict, ...]
    """Of the gates `serves`."""
    signature: str = ""
    """Over all the rest, by whoever signs releases; empty where nobody does."""


class Release(Record):
    """What the rest of the company loads. Written last: where it stands, everything it names is complete."""

    id: str
    """The candidate's key."""
    pipeline: str = ""
    """Name of the pipeline, of a replay ``<name>/replays/<id>``; empty in releases of before it was written down."""
    spec: ModelSpec
    files: dict[str, Part]
    evaluation: str
    """Key of the evaluation that it passed; empty for an adopted model."""
    holdout_view: str
    bank: tuple[Banked, ...]
    """Windows whose hold-outs it was never trained on, its own included."""
    reference: str
    parent: str | None
    rung: Rung | Literal["adopted"]
    seq: int
    """Window after which it was made; 0 for an adopted model."""
    accuracy: Share
    """On the hold-out of its own window."""
    created_at: AwareDatetime


class RemovedRelease(Record):
    """What stays of a release whose weights went. Once it stands, no alias may ever name the release again."""

    release: Release
    """As it was, with those of its files that stay."""
    version: int = Field(ge=0)
    """Its number; 0 if it never was champion."""
    gone: dict[str, str]
    """SHA-256 of the files that went, by name."""
    by: str
    reason: str
    at: AwareDatetime


class Question(Record):
    """What a person is asked. The tick waits until it is answered, or too old."""

    id: str
    """Its folder under ``approvals/``."""
    seq: int = Field(ge=1)
    request: str
    """Of the tick that waits."""
    stage: Stage
    title: str
    """In one sentence."""
    words: str
    """All that the person should know, in Markdown."""
    asked_at: AwareDatetime
    expires_at: AwareDatetime
    """By the store's clock; from then on it counts as rejected."""


class Answer(Record):
    """What became of a question, said by whoever was first."""

    stage: Stage
    approved: bool
    by: str
    reason: str
    through: Through
    at: AwareDatetime

    @property
    def sentence(self) -> str:
        """Who said what, and why."""
        verb = "approved" if self.approved else "rejected"
        what = "the training" if self.stage == "before_training" else "the release"
        return f"{self.by} {verb} {what}{f': {self.reason}' if self.reason else ''}"


class TriedRung(Value):
    """One rung of the ladder as the journal tells it."""

    rung: Rung
    candidate: str
    weights_sha256: str
    tune_accuracy: Share
    tune_gain: float | None = None
    """Over the champion on *tune*; null where that is not known."""
    gain: Interval | None = None
    """Over the champion on this window's hold-out, where that was looked at: of the challenger, and of all in a replay."""
    failed_gates: tuple[str, ...] | None = None
    """Gates that said no; null where none was asked."""
    cost: Cost


class JournalEntry(Record):
    """One tick: what came in, what drifted, what was decided and why, what it cost and bought."""

    seq: int
    request: str
    view: str
    samples: int
    quarantined: int
    labelled: int
    drift: str | None = None
    """Key of the drift report."""
    alarm: bool = False
    score: float | None = None
    severity: float | None = None
    estimated_accuracy: float | None = None
    measured_accuracy: float | None = None
    decision: Decision
    tried: tuple[TriedRung, ...] = ()
    not_tried: tuple[Rung, ...] = ()
    unfit: dict[Rung, str] = {}
    """Rungs that were left out or had no answer, and why."""
    beside: tuple[TriedRung, ...] = ()
    """What a replay with all rungs found of each of them, cheapest first; nothing of it was decided on."""
    evaluation: str | None = None
    failed_gates: tuple[str, ...] = ()
    gain: Interval | None = None
    """On this window's hold-out, challenger minus champion."""
    challenger_accuracy: float | None = None
    """On this window's hold-out."""
    release: str | None = None
    version: int | None = None
    """Number of the release that this tick made champion."""
    champion: str | None
    """Champion after the tick."""
    champion_version: int | None
    trust: Trust
    failure: str = ""
    """Why training could not go on, if it could not; the next window is not held up by it."""
    answers: tuple[Answer, ...] = ()
    """What people said who were asked; one that says no before publishing makes `failed_gates` hold `approval`."""
    bank: tuple[Banked, ...]
    """Trusted windows after this tick, oldest first, bounded."""
    samples_since_training: int
    windows_since_training: int
    cost: Cost
    started_at: AwareDatetime
    finished_at: AwareDatetime
