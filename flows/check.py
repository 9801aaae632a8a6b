"""``everfresh check``: does the pipeline fit the real source, store, weights and Prefect API? Found out by trying."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from everfresh.tasks.config import ParentFolder, PipelineConfig
from everfresh.tasks.errors import EverfreshError, SourceError
from everfresh.tasks.ingest import Source
from everfresh.tasks.store import pipeline_store


@dataclass(frozen=True)
class Checked:
    """One line of the check."""

    name: str
    passed: bool
    words: str


def check(config: PipelineConfig) -> Iterator[Checked]:
    """Try each part for real; yields one line each, failures with their remedy. Nothing is left behind."""
    yield Checked("config", True, f"{config.name}: valid")
    parts: dict[str, Callable[[PipelineConfig], str]] = {
        "store": _store,
        "source": _source,
        "weights": _weights,
        "prefect": _prefect,
    }
    for name, attempt in parts.items():
        try:
            yield Checked(name, True, attempt(config))
        except EverfreshError as error:
            yield Checked(name, False, str(error))


def _store(config: PipelineConfig) -> str:
    store = pipeline_store(config)
    store.prove_create()
    return f"{store.url('')}: written, created if absent, read, deleted"


def _source(config: PipelineConfig) -> str:
    source = Source(config)
    files = list(source.files(set()))
    found = f"{len(files)} files"
    if isinstance(config.source.labels, ParentFolder):
        labels = Counter(f.key.split("/")[-2] if "/" in f.key else "(none)" for f in files)
    else:
        annotations = source.annotations()
        labels = Counter(a.label for a in annotations.values() if a.label is not None)
        lost = len(annotations.keys() - {f.key for f in files})
        found += f", {len(annotations)} rows of labels" + (f" of which {lost} have no file" if lost else "")
    if not labels:
        return found
    unknown = sorted(set(labels) - set(config.model.classes))
    found += f", {len(labels) - len(unknown)} of {len(config.model.classes)} classes"
    if unknown:
        found += f"; not in model.classes, will wait as pending: {', '.join(unknown[:8])}"
    if len(unknown) == len(labels):
        raise SourceError(f"source: labels must be among model.classes, got none that is ({found}). Correct one of the two.")
    return found


def _weights(config: PipelineConfig) -> str:
    from everfresh.tasks import models

    module, spec = models.start(config.model, config.fine_tune.seed, config.s3)
    return f"{spec.architecture}: {models.parameters(module):,} weights, embedding of {spec.embedding_dim}"


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
