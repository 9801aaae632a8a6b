"""A log of predictions as a source: its shards are archives whose samples have a time, slices, and a label once it came.

A shard is taken once each of its predictions has a label, or ``label_wait_hours`` after it was written, by the store's own
clock, with the labels that have come by then. All its samples go in together, so that those which are labelled fast do not
stand for the others; and none goes in twice, for labels that come later make no new sample. For the same reason shards are
taken in the order of their time: one that is not due holds back those that came after it, until its own wait is over.
"""

from __future__ import annotations

import tarfile
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from everfresh.tasks.config import LoggedPredictions, PipelineConfig
from everfresh.tasks.errors import SourceError
from everfresh.tasks.labels import Annotation, Unusable, annotation_in
from everfresh.tasks.predictions import TABLE, newest_labels, rows_in
from everfresh.tasks.records import label
from everfresh.tasks.sources import Source, SourceFile
from everfresh.tasks.store import Listed
from everfresh.tasks.vectors import text


def open_source(config: PipelineConfig, after: str = "") -> Source:
    """The source of a pipeline that is no table."""
    return PredictionSource(config) if isinstance(config.source, LoggedPredictions) else Source(config, after)


class PredictionSource(Source):
    """The shards of a log of predictions, listed once."""

    def __init__(self, config: PipelineConfig) -> None:
        super().__init__(config)
        if not isinstance(config.source, LoggedPredictions):
            raise TypeError(config.source.kind)
        self._wait = timedelta(hours=config.source.label_wait_hours)
        self._sidecar = config.source.labels
        self._said: dict[str, Annotation] = {}
        self.most_shards: int | None = None
        """After so many shards no more is looked at; None for all."""
        self.more = False
        """Whether that left some out."""

    @cached_property
    def _labels(self) -> dict[str, list[tuple[int, Listed]]]:
        """Objects with labels, by shard."""
        found: dict[str, list[tuple[int, Listed]]] = defaultdict(list)
        for place, item in self.listed:
            if item.key.endswith(".jsonl"):
                found[PurePosixPath(item.key).parent.name].append((place, item))
        return found

    @cached_property
    def _now(self) -> datetime:
        return self._stores[0].now()

    def _waits(self, item: Listed) -> bool:
        return bool(self._wait) and self._now - item.modified < self._wait

    def files(self, seen: set[tuple[str, str]]) -> Iterator[SourceFile]:
        """Every sample of the shards that are due, up to the first that is not: it and those after it are held back.

        One that no label names is not opened before its time.
        """
        taken, opened = {key for key, _ in seen}, 0
        for place, item in sorted(self.listed, key=lambda listed: listed[1].key):
            if not item.key.endswith(".tar") or f"{item.key}/" in taken:
                continue
            if opened == self.most_shards:
                self.more = True
                return
            if self._waits(item) and not self._labels.get(PurePosixPath(item.key).stem):
                self.holds_back = True
                return
            members = list(self._members(place, item))
            said, whole = self._read(place, item, members)
            if not whole and self._waits(item):
                self.holds_back = True
                return
            self._said |= said
            opened += 1
            yield from members

    def seen_after(self, seen: set[tuple[str, str]]) -> set[tuple[str, str]]:
        """The same without the samples of shards that were taken whole: a shard is written once, so its name is enough."""
        taken = {key for key, _ in seen if key.endswith("/")}
        return {(key, version) for key, version in seen if key in taken or f"{key.rpartition('/')[0]}/" not in taken}

    def _is_sample(self, name: str) -> bool:
        return name != TABLE

    def _read(self, place: int, item: Listed, members: list[SourceFile]) -> tuple[dict[str, Annotation], bool]:
        """What is known of each sample of a shard, and whether all have a label."""
        said: dict[str, Annotation] = {}
        labels = newest_labels(
            (i.key, self._stores[p].get(i.key)) for p, i in self._labels.get(PurePosixPath(item.key).stem, [])
        )
        rows = {str(row.get("member")): row for row in rows_in(self._table(place, item), f"{item.key}/{TABLE}")}
        for member in members:
            row = rows.get(member.key.removeprefix(f"{item.key}/"))
            if row is None:
                said[member.key] = Unusable(reason=f"has no row in {TABLE}")
                continue
            slices = row["slices"] if isinstance(row.get("slices"), dict) else {}
            cells = {**slices, "release": _release(row), "label": self._label(labels.get(row["id"])), "at": row["at"]}
            said[member.key] = annotation_in(cells, self._sidecar, None, self.targets)
        return said, all(row["id"] in labels for row in rows.values())

    def _label(self, value: Any) -> Any:
        """A label as a table of rows would have it: 7 is the class 7, however its writer calls the number."""
        if self.targets.task == "regression":
            return value
        if isinstance(value, list):
            return [str(name) if isinstance(name := text(item), int | float) else item for item in value]
        return text(value)

    def _table(self, place: int, item: Listed) -> bytes:
        with tarfile.open(self.local(place, item), "r:") as tar:
            try:
                file = tar.extractfile(TABLE)
            except KeyError:
                file = None
            if file is None:
                raise SourceError(f"source.path: {item.key} must hold {TABLE}, got none. It is no shard of a log; remove it.")
            return file.read()

    def annotations(self) -> dict[str, Annotation]:
        """Labels so far, times and slices of the samples that `files` gave."""
        return self._said


def _release(row: dict[str, Any]) -> str:
    version = row.get("version")
    return label(str(row.get("release")), version if isinstance(version, int) else 0)
