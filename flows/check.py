"""``everfresh check``: does the pipeline fit the real source, store, weights and Prefect API? Found out by trying."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from everfresh.tasks.config import BetterGate, ParentFolder, PipelineConfig
from everfresh.tasks.errors import ConfigError, DataError, EverfreshError, SourceError, StoreError
from everfresh.tasks.images import examine
from everfresh.tasks.ingest import Source
from everfresh.tasks.store import pipeline_store
from everfresh.tasks.store.prove import proofs

LOOKED_AT = 20
"""Files of the source that are read and decoded."""


@dataclass(frozen=True)
class Checked:
    """One line of the check."""

    name: str
    passed: bool
    words: str


def check(config: PipelineConfig) -> Iterator[Checked]:
    """Try each part for real; yields one line each, failures with their remedy. Nothing is left behind."""
    yield Checked("config", True, f"{config.name}: valid")
    yield from _store(config)
    parts: dict[str, Callable[[PipelineConfig], str]] = {
        "source": _source,
        "classes": _classes,
        "weights": _weights,
        "gates": _gates,
        "prefect": _prefect,
    }
    for name, attempt in parts.items():
        yield _tried(name, lambda attempt=attempt: attempt(config))  # type: ignore[misc]


def _tried(name: str, attempt: Callable[[], str]) -> Checked:
    try:
        return Checked(name, True, attempt())
    except EverfreshError as error:
        return Checked(name, False, str(error))


def _store(config: PipelineConfig) -> Iterator[Checked]:
    """A line for each promise of the store; where it cannot be reached or written, the rest would say the same."""
    needed = {"reach", "write"}
    for name, attempt in proofs(pipeline_store(config)):
        line = _tried(f"store {name}", attempt)
        yield line
        if name in needed and not line.passed:
            return


def _source(config: PipelineConfig) -> str:
    source = Source(config)
    files = list(source.files(set()))
    found = f"{len(files)} files"
    unusable = []
    for file in files[:: max(1, len(files) // LOOKED_AT)][:LOOKED_AT]:
        try:
            examine(source.read(file))
        except (DataError, StoreError) as error:
            unusable.append(f"{file.key} {error}")
    if unusable:
        found += f"; of {min(len(files), LOOKED_AT)} looked at {len(unusable)} would go into quarantine: {unusable[0]}"
    return found


def _classes(config: PipelineConfig) -> str:
    source = Source(config)
    files = list(source.files(set()))
    found = ""
    if isinstance(config.source.labels, ParentFolder):
        labels = Counter(f.key.split("/")[-2] if "/" in f.key else "(none)" for f in files)
    else:
        annotations = source.annotations()
        labels = Counter(a.label for a in annotations.values() if a.label is not None)
        lost = len(annotations.keys() - {f.key for f in files})
        found = f"{len(annotations)} rows of labels" + (f" of which {lost} have no file" if lost else "") + ", "
    if not labels:
        return f"{found}no label is there yet"
    unknown = sorted(set(labels) - set(config.model.classes))
    found += f"{len(labels) - len(unknown)} of {len(config.model.classes)} classes"
    if unknown:
        found += f"; not in model.classes, will wait as pending: {', '.join(unknown[:8])}"
    if len(unknown) == len(labels):
        raise SourceError(f"source: labels must be among model.classes, got none that is ({found}). Correct one of the two.")
    return found


def _weights(config: PipelineConfig) -> str:
    from everfresh.tasks import models

    module, spec = models.start(config.model, config.fine_tune.seed, config.s3)
    return f"{spec.architecture}: {models.parameters(module):,} weights, embedding of {spec.embedding_dim}"


def _gates(config: PipelineConfig) -> str:
    """Whether the hold-out of a window can ever be large enough for what the gates ask."""
    words, window = ", ".join(gate.kind for gate in config.gates), config.window
    for gate in config.gates:
        if isinstance(gate, BetterGate):
            # All that differ must favour the challenger: p is a half to their number.
            wins = math.ceil(math.log2(1 / (1 - gate.confidence)))
            needed = math.ceil(wins / window.holdout_fraction)
            if needed > window.max_samples:
                raise ConfigError(
                    f"gates.better: a hold-out must have at least {wins} samples for a confidence of {gate.confidence:g}, got "
                    f"{window.max_samples * window.holdout_fraction:.0f} of the largest window: no challenger could ever pass. "
                    "Raise window.max_samples or lower the confidence."
                )
            words += f"; better needs {wins} more hits than misses, so windows of about {needed} samples or more"
            if needed > window.min_samples:
                words += f" (window.min_samples is {window.min_samples})"
    return words


def _prefect(_config: PipelineConfig) -> str:
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        home = os.environ.get("PREFECT_HOME", str(Path("~/.prefect").expanduser()))
        return f"no PREFECT_API_URL: each run starts a temporary server (about 10 s) and keeps its history in {home}"
    import httpx

    try:
        httpx.get(f"{url.rstrip('/')}/health", timeout=5).raise_for_status()
    except httpx.HTTPError as error:
        raise EverfreshError(
            f"PREFECT_API_URL must lead to a Prefect server, got {url} ({error}). "
            "Start one with `prefect server start`, or unset it."
        ) from error
    return f"{url}: healthy"
