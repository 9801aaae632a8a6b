"""``everfresh check``: does the pipeline fit the real source, store, weights and Prefect API? Found out by trying."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from everfresh.tasks import signing
from everfresh.tasks.config import BetterGate, ImageFolder, ParentFolder, PipelineConfig, TableRows
from everfresh.tasks.errors import (
    AccessRefused,
    AccountRefused,
    ConfigError,
    DataError,
    EverfreshError,
    ModelError,
    ObjectMissing,
    SourceError,
)
from everfresh.tasks.ingest import annotation_of, examined
from everfresh.tasks.labels import Annotation, Unusable
from everfresh.tasks.ledger import champion_moves
from everfresh.tasks.logged import PredictionSource, open_source
from everfresh.tasks.releases import find_release
from everfresh.tasks.rows import Row, Tables
from everfresh.tasks.sources import Source, SourceFile
from everfresh.tasks.store import pipeline_store
from everfresh.tasks.store.prove import proofs
from everfresh.tasks.targets import Targets

LOOKED_AT = 20
"""Files of the source that are read and decoded."""
SHARDS = 10
"""Objects of a log of predictions that are fetched."""
ROWS = 200
"""Rows of each table that are looked at."""
AFTER_WRITE = {"read", "race", "bytes", "clock"}
"""Promises of the store that rest on writing."""
USER = re.compile(r"^([\w+.-]+://)?.*@", re.DOTALL)
"""What stands before the host in an address: a user, perhaps with a password."""


@dataclass(frozen=True)
class Checked:
    """One line of the check."""

    name: str
    passed: bool
    words: str


def check(config: PipelineConfig) -> Iterator[Checked]:
    """Try each part for real; yields one line each, failures with their remedy. Nothing is left behind."""
    yield Checked("config", True, f"{config.name}: valid")
    store = list(of_store(config))
    yield from store
    yield from _source(config)
    parts: dict[str, Callable[[PipelineConfig], str]] = {
        "weights": _weights,
        "device": of_device,
        **({"champion": _champion} if all(line.passed for line in store) else {}),
        "gates": _gates,
        **({"signing": lambda _config: signing.tried()} if signing.asked() else {}),
        "prefect": _prefect,
    }
    for name, attempt in parts.items():
        yield tried(name, lambda attempt=attempt: attempt(config))  # type: ignore[misc]


def tried(name: str, attempt: Callable[[], str]) -> Checked:
    """The line of one attempt: what it says, or why it failed."""
    try:
        return Checked(name, True, attempt())
    except EverfreshError as error:
        return Checked(name, False, str(error))
    except Exception as error:  # a bug, or one in somebody's code: the other lines are told all the same
        if os.environ.get("EVERFRESH_DEBUG"):
            raise
        words = " ".join(str(error).split()) or "no more is known"
        return Checked(name, False, f"{type(error).__name__}: {words}. `everfresh --debug check` shows where this comes from.")


def of_store(config: PipelineConfig) -> Iterator[Checked]:
    """A line for each promise of the store; where it cannot be reached or written, the rest would say the same.

    What was begun there is removed all the same.
    """
    useless: set[str] = set()
    for name, attempt in proofs(pipeline_store(config)):
        if name in useless:
            continue
        line = tried(f"store {name}", attempt)
        yield line
        if not line.passed:
            useless |= {"reach": {"write", *AFTER_WRITE, "delete"}, "write": AFTER_WRITE}.get(name, set())


def _source(config: PipelineConfig) -> Iterator[Checked]:
    """What the source holds and how it is labelled; where it cannot be listed, both would say the same."""
    if isinstance(config.source, TableRows):
        yield from _tables(config)
        return
    found: list[tuple[Source, list[SourceFile]]] = []

    def listed() -> str:
        source = open_source(config)
        if isinstance(source, PredictionSource):
            source.most_shards = SHARDS
        found.append((source, list(source.files(set()))))
        return _files(config, *found[0])

    yield tried("source", listed)
    if found:
        yield tried("classes", lambda: _classes(config, *found[0]))


def _tables(config: PipelineConfig) -> Iterator[Checked]:
    """The same of a source of rows, told from the first rows of each file."""
    found: list[Row] = []

    def read() -> str:
        tables = Tables(config)
        waiting = tables.waiting(set())
        found.extend(row for file, rows in waiting for row in tables.read(file, rows[:ROWS]))
        words = [f"{len(waiting)} files, {sum(len(rows) for _, rows in waiting):,} rows"]
        unusable = [f"{row.key} {row.annotation.reason}" for row in found if isinstance(row.annotation, Unusable)]
        if unusable:
            words.append(f"of {len(found)} looked at {len(unusable)} would go into quarantine: {unusable[0]}")
        if other := tables.other_values:
            words.append(f"{other.total()} values are none of the declared categories: {next(iter(other))}")
        return "; ".join(words)

    line = tried("source", read)
    yield line
    if line.passed:
        labels = Counter(row.annotation.label for row in found if row.annotation.label is not None)
        yield tried("classes", lambda: _known(config, labels))


def _files(config: PipelineConfig, source: Source, files: list[SourceFile]) -> str:
    """Whether files can be used, told from some; what becomes of one that cannot is what ingest does with it."""
    looked_at = files[:: max(1, len(files) // LOOKED_AT)][:LOOKED_AT]
    unusable, refused = [], []
    for file in looked_at:
        try:
            examined(source.read(file), config)
        except ObjectMissing:
            unusable.append(f"{file.key} vanished between listing and reading")
        except DataError as error:
            unusable.append(f"{file.key} {error}")
        except AccessRefused as error:
            if isinstance(error, AccountRefused) or (isinstance(config.source, ImageFolder) and config.source.ordered):
                raise
            refused.append(f"{file.key}, {error}")
    if refused and len(refused) == len(looked_at):
        raise SourceError(
            f"source: files must be readable, got {len(refused)} looked at of which none is, {looked_at[0].key} among them. "
            "Grant the right to read them, or remove them."
        )
    first = f" in the first {SHARDS} objects of the log" if isinstance(source, PredictionSource) and source.more else ""
    found = [f"{len(files)} files" + first + (", others wait for their labels" if source.holds_back else "")]
    if unusable:
        found.append(f"of {len(looked_at)} looked at {len(unusable)} would go into quarantine: {unusable[0]}")
    if refused:
        found.append(f"of {len(looked_at)} looked at {len(refused)} may not be read and would wait: {refused[0]}")
    return "; ".join(found)


def _classes(config: PipelineConfig, source: Source, files: list[SourceFile]) -> str:
    """Whether labels are what the model is asked for; a file has the label that ingest gives it."""
    annotations, found = source.annotations(), ""
    if isinstance(config.source.labels, ParentFolder):
        annotations = {file.key: _annotation(file, config) for file in files}
        if bare := sum(a == Annotation() for a in annotations.values()):
            found = f"{bare} files are in no folder that names a label, "
    else:
        lost = len(annotations.keys() - {f.key for f in files})
        found = f"{len(annotations)} rows of labels" + (f" of which {lost} have no file" if lost else "") + ", "
    found += _known(config, Counter(a.label for a in annotations.values() if a.label is not None), found)
    if unusable := [f"{key} {a.reason}" for key, a in annotations.items() if isinstance(a, Unusable)]:
        found += f"; {len(unusable)} would go into quarantine: {unusable[0]}"
    if len(unusable) == len(annotations) and unusable and config.model.task != "single_label":
        raise SourceError(f"source: labels must be those of model.task {config.model.task}, got none that is ({found}).")
    return found


def _known(config: PipelineConfig, labels: Counter[str], before: str = "") -> str:
    """Which labels the model can be trained on.

    Raises:
        SourceError: there are labels, and none is; `before` is told too.
    """
    targets = Targets.wanted(config.model)
    unknown = sorted(label for label in labels if label not in targets)
    known = len(labels) - len(unknown)
    what = f"{known} of {len(targets.names)} classes" if targets.task == "single_label" else f"{known} different labels"
    found = what if labels else "no label is there yet"
    if unknown:
        found += f"; not in model.classes, will wait as pending: {', '.join(unknown[:8])}"
    if labels and not known:
        raise SourceError(
            f"source: labels must be among model.classes, got none that is ({before}{found}). Correct one of the two."
        )
    return found


def _annotation(file: SourceFile, config: PipelineConfig) -> Annotation:
    try:
        return annotation_of(file, {}, config)
    except DataError as error:
        return Unusable(reason=str(error))


def _weights(config: PipelineConfig) -> str:
    from everfresh.tasks import architectures, models

    module, spec = models.start(config.model, config.fine_tune.seed, config.s3)
    words = f"{spec.architecture}: {models.parameters(module):,} weights, embedding of {spec.embedding_dim}"
    usual = architectures.input_of(spec.architecture, config.model.weights)
    if usual is not None and usual != (spec.mean, spec.std):
        words += (
            f"; published ones were trained with model.mean {list(usual[0])} and model.std {list(usual[1])}, "
            f"here they are {list(spec.mean)} and {list(spec.std)}"
        )
    return words


def of_device(config: PipelineConfig) -> str:
    """Whether the device that is asked for is there."""
    from everfresh.tasks.fine_tune import device

    device.use(config.fine_tune.device)
    return f"{config.fine_tune.device}; this machine has {', '.join(device.present())}"


def _champion(config: PipelineConfig) -> str:
    """Whether it can be gone on from with this file."""
    from everfresh.tasks.fine_tune.stage import other_form, same_task

    store = pipeline_store(config)
    head = champion_moves(store).last()
    release = find_release(store, head.release) if head else None
    if head is None or release is None:
        return "none yet"
    same_task(Targets.wanted(config.model), release.spec)
    if why := other_form(config, release.spec):
        if "pretrained" not in config.policy.ladder:
            raise ModelError(why)
        return why
    gone = [name for name in release.spec.classes if name not in config.model.outputs]
    lost = f"; it knows {len(gone)} classes that model.classes lacks: {', '.join(gone[:5])}" if gone else ""
    return f"v{head.version} can be gone on from{lost}"


def _gates(config: PipelineConfig) -> str:
    """Whether the hold-out of a window can ever be large enough for what the gates ask, and what they will be able to tell."""
    from everfresh.tasks.gates.gain import wins_needed
    from everfresh.tasks.gates.outlook import outlook

    window, words = config.window, [", ".join(gate.kind for gate in config.gates)]
    samples = int(window.max_samples * window.holdout_fraction)
    for gate in config.gates:
        least = wins_needed(gate.confidence) if isinstance(gate, BetterGate) else getattr(gate, "min_samples", 0)
        here = getattr(gate, "scope", "window") == "window" and getattr(gate, "too_few", "pass") == "fail"
        if here and least > 1 and math.ceil(least / window.holdout_fraction) > window.max_samples:
            asked = f"a confidence of {gate.confidence:g}" if isinstance(gate, BetterGate) else f"min_samples: {least}"
            raise ConfigError(
                f"gates.{gate.kind}: a hold-out must have at least {least} samples for {asked}, got {samples} of the largest "
                "window: no challenger could ever pass. Raise window.max_samples or lower "
                f"{'the confidence' if isinstance(gate, BetterGate) else 'min_samples'}."
            )
        if isinstance(gate, BetterGate):
            needed = math.ceil(least / window.holdout_fraction)
            words.append(f"better needs {least} more hits than misses, so windows of about {needed} samples or more")
            words[-1] += f" (window.min_samples is {window.min_samples})" if needed > window.min_samples else ""
    if tell := [told for told in (outlook(gate, samples) for gate in config.gates) if told]:
        words.append(f"on a full window's {samples:,} held-out samples {', '.join(tell)}")
    return "; ".join(words)


def _prefect(_config: PipelineConfig) -> str:
    return prefect_api()


def without_user(address: str) -> str:
    """An address as it may be shown: without user and password."""
    return USER.sub(r"\1", address)


def api_url() -> str | None:
    """Address of the Prefect API, of the environment, a profile or a file: the one that runs and `deploy` use."""
    from prefect.settings import PREFECT_API_URL

    url: str | None = PREFECT_API_URL.value()
    return url


def prefect_api() -> str:
    """Whether the Prefect API can be reached.

    Raises:
        EverfreshError: it cannot.
    """
    url = api_url()
    if not url:
        home = os.environ.get("PREFECT_HOME", str(Path("~/.prefect").expanduser()))
        return f"no PREFECT_API_URL: each run starts a temporary server (about 10 s) and keeps its history in {home}"
    import httpx

    shown = without_user(url)
    try:
        httpx.get(f"{url.rstrip('/')}/health", timeout=5).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:  # most of which repeat the address, with its user
        match error:
            case httpx.HTTPStatusError(response=answer):
                words = f"it answers {answer.status_code} {answer.reason_phrase}"
            case httpx.InvalidURL() | httpx.UnsupportedProtocol():
                words = "it is no address of http or https"
            case _:
                words = without_user(str(error))
        raise EverfreshError(
            f"PREFECT_API_URL must lead to a Prefect server, got {shown} ({words}). "
            "Start one with `prefect server start`, or unset it."
        ) from None
    return f"{shown}: healthy"
