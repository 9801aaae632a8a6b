"""The log of a service's predictions: written behind its back, whole or not at all, never in its way.

Predictions gather in memory and are written as one object each some seconds, in a thread of its own; see
:mod:`everfresh.tasks.predictions` for what stands in the store. A process that dies loses what it had not written yet, at
most. While the store is down memory fills up to a bound; what comes then is dropped and counted.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from everfresh.tasks.config import S3Config
from everfresh.tasks.errors import DataError, StoreError
from everfresh.tasks.predictions import (
    Label,
    Logged,
    labels_key,
    new_shard,
    pack,
    pack_labels,
    prediction_id,
    shard_key,
    shard_of,
)
from everfresh.tasks.serving.answers import Predictions
from everfresh.tasks.serving.samples import Sample, as_bytes, raw_size
from everfresh.tasks.store import open_store

log = logging.getLogger(__name__)

LABEL_BYTES = 200
"""About what a label takes in memory; predictions take as much beside their input."""
Slices = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Sealed:
    """An object that waits to be written."""

    key: str
    content: Callable[[], bytes]
    size: int
    predictions: int
    labels: int


class PredictionLog:
    """Where a service writes what it was asked and what it said; a context, at whose end the rest is written.

    Args:
        address: a place of its own, ``s3://bucket/prefix`` or a folder; ``source.path`` of the pipeline that reads it.
        s3: how S3 is spoken to; from boto3's own environment if None.
        flush_every: seconds between two writes.
        shard_bytes: an object is written early once it holds so many bytes.
        most_bytes: most bytes that wait in memory; what comes beyond is dropped and counted.
    """

    def __init__(
        self,
        address: str | Path,
        *,
        s3: S3Config | None = None,
        flush_every: float = 10.0,
        shard_bytes: int = 16 << 20,
        most_bytes: int = 256 << 20,
    ) -> None:
        self._store, self._flush_every = open_store(str(address), s3), flush_every
        self._shard_bytes, self._most_bytes = shard_bytes, most_bytes
        self._start_empty()
        _after_fork(self)
        self.written = 0
        """Predictions that stand in the store."""
        self.dropped = 0
        """Predictions that there was no room for."""
        self.labels_written = 0
        self.labels_dropped = 0
        self.last_error: str | None = None
        """Why the last write went wrong; None if it did not."""

    def _start_empty(self) -> None:
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._shard, self._open, self._open_bytes = "", list[Logged](), 0
        self._labels: dict[str, list[tuple[str, Label, datetime]]] = {}
        self._sealed: deque[_Sealed] = deque()
        self._waiting = 0

    @property
    def waiting_bytes(self) -> int:
        """Bytes in memory that were not written yet."""
        return self._waiting

    def log(
        self, samples: Sequence[Sample], predictions: Predictions, *, slices: Slices | Sequence[Slices] | None = None
    ) -> list[str | None]:
        """Take note of predictions; never waits for the store, only until pictures and tensors are PNG.

        Args:
            samples: that were asked about; bytes cost nothing.
            predictions: what :meth:`Champion.predict` said of them.
            slices: by which results are to be broken down (site, device …): of all, or one mapping each.

        Returns:
            An id for each, to label it with later; None for one that was dropped.

        Raises:
            DataError: there are not as many of one as of the other, or one is no sample.
        """
        each = [slices or {}] * len(samples) if slices is None or isinstance(slices, Mapping) else list(slices)
        if not len(samples) == len(predictions) == len(each):
            raise DataError(
                f"samples, predictions and slices must be as many, got {len(samples)}, {len(predictions)} and {len(each)}"
            )
        now = datetime.now(UTC)
        contents = self._contents(samples)
        with self._lock:
            return [
                self._take(data, predictions, index, now, some)
                for index, (data, some) in enumerate(zip(contents, each, strict=True))
            ]

    def _contents(self, samples: Sequence[Sample]) -> list[bytes | None]:
        """What is kept of each sample; None where there is no room for it, so that nothing is encoded to be dropped."""
        room, contents = self._most_bytes - self._waiting, list[bytes | None]()
        for sample in samples:
            data = as_bytes(sample) if raw_size(sample) + LABEL_BYTES <= room else None
            room -= 0 if data is None else len(data) + LABEL_BYTES
            contents.append(data)
        return contents

    def _take(self, data: bytes | None, said: Predictions, index: int, now: datetime, slices: Slices) -> str | None:
        size = len(data or b"") + LABEL_BYTES
        if data is None or self._waiting + size > self._most_bytes:
            self.dropped += 1
            return None
        self._start()
        if not self._open:
            self._shard = new_shard(now)
        identity = prediction_id(self._shard, len(self._open))
        confidence = None if said.confidence is None else float(said.confidence[index])
        texts = {str(name): str(value) for name, value in slices.items()}
        self._open.append(Logged(identity, data, now, said.labels[index], confidence, said.release, said.version, texts))
        self._open_bytes += size
        self._waiting += size
        if self._open_bytes >= self._shard_bytes:
            self._seal()
            self._wake.set()
        return identity

    def label(self, identity: str, label: Label) -> bool:
        """Say what is right for a prediction; the newest label of each counts. Returns at once.

        Any process may do so, also one that never predicted.

        Args:
            identity: that :meth:`log` returned.
            label: a class, a list of classes, a value or a list of values.

        Returns:
            False if there was no room for it.

        Raises:
            DataError: it is no id of a prediction, or no label.
        """
        shard, now, label = shard_of(identity), datetime.now(UTC), _plain(label)
        with self._lock:
            if self._waiting + LABEL_BYTES > self._most_bytes:
                self.labels_dropped += 1
                return False
            self._start()
            self._labels.setdefault(shard, []).append((identity, label, now))
            self._waiting += LABEL_BYTES
        return True

    def flush(self) -> bool:
        """Write all that waits, now; False if the store did not take it, which is then tried again later."""
        with self._writing:
            with self._lock:
                self._seal()
            while self._sealed:
                item = self._sealed[0]
                try:
                    self._store.create(item.key, item.content())
                except StoreError as error:
                    if self.last_error is None:
                        log.warning("predictions wait in memory: %s", error)
                    self.last_error = str(error)
                    return False
                with self._lock:
                    self._sealed.popleft()
                    self._waiting -= item.size
                    self.written += item.predictions
                    self.labels_written += item.labels
            self.last_error = None
        return True

    def _seal(self) -> None:
        """Let what has come so far be objects to write, predictions before their labels."""
        if self._open:
            logged, size = self._open, self._open_bytes
            self._sealed.append(_Sealed(shard_key(self._shard), lambda: pack(logged), size, len(logged), 0))
            self._open, self._open_bytes = [], 0
        for shard, labels in self._labels.items():
            content = pack_labels(labels)
            key = labels_key(shard, labels[-1][2])
            self._sealed.append(_Sealed(key, lambda content=content: content, LABEL_BYTES * len(labels), 0, len(labels)))  # type: ignore[misc]
        self._labels = {}

    def _start(self) -> None:
        """The thread that writes; it begins with the first prediction of a process, or after `close`. Under the lock."""
        if self._thread is None or not self._thread.is_alive():
            self._wake, self._closing = threading.Event(), threading.Event()  # its own: one that ends hears not of the next
            signals = self._wake, self._closing
            thread = threading.Thread(target=self._keep_writing, args=signals, name="everfresh-predictions", daemon=True)
            thread.start()
            self._thread = thread
            atexit.register(self.close)

    def _keep_writing(self, wake: threading.Event, closing: threading.Event) -> None:
        while not closing.is_set():
            wake.wait(self._flush_every)
            wake.clear()
            try:
                self.flush()
            except Exception:  # a bug must not end the log without a word
                log.exception("predictions could not be written")

    def close(self) -> None:
        """Write the rest and end; what the store does not take now is lost, and said so. Who logs again begins again."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is None:
                return
            with suppress(Exception):
                atexit.unregister(self.close)
            self._closing.set()
            self._wake.set()
        thread.join()
        if not self.flush():
            lost = sum(item.predictions for item in self._sealed)
            log.error("%d predictions are lost: %s", lost, self.last_error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _after_fork(log: PredictionLog) -> None:
    """Let a child process begin with an empty log: its parent writes what it holds."""
    this = weakref.ref(log)

    def forget() -> None:
        if (mine := this()) is not None:
            mine._start_empty()

    os.register_at_fork(after_in_child=forget)


def _plain(label: Any) -> Label:
    """A label as JSON has it; numbers of numpy and torch are numbers, and whole ones and truths stay what they are."""
    try:
        if isinstance(label, Sequence) and not isinstance(label, str):
            return [_plain(item) for item in label]  # type: ignore[return-value]
        label = label.item() if hasattr(label, "item") else label
        return label if isinstance(label, str | int) else float(label)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(f"a label must be a text, a number or a list of such, got {type(label).__name__}") from None
