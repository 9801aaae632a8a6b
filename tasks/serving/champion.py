"""The champion in a service: loaded once, followed from then on, asked from any number of threads.

A model is never changed once it answers: a newer release is read, verified, built and tried beside it, and then takes its
place in one assignment. So no answer waits for a refresh, and no batch is made with two models. Whatever goes wrong on the
way, the last good model answers on, and says since when it may be out of date.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from everfresh.tasks.config import S3Config
from everfresh.tasks.errors import ReleaseError
from everfresh.tasks.ledger import CHAMPION, moves
from everfresh.tasks.records import AliasMove
from everfresh.tasks.serving.answers import Predictions
from everfresh.tasks.store import Store, open_store

if TYPE_CHECKING:
    from everfresh.tasks.serving.model import Model
    from everfresh.tasks.serving.samples import Sample

log = logging.getLogger(__name__)

CACHE_BYTES = 4 << 30
LONGEST_PAUSE = 30.0
"""Seconds between two looks at most, however many went wrong, unless the interval is longer."""


def load_champion(
    address: str | Path,
    *,
    alias: str = CHAMPION,
    code: str = "",
    device: str = "cpu",
    file: str = "model.safetensors",
    s3: S3Config | None = None,
    min_interval: float = 1.0,
    cache_bytes: int = CACHE_BYTES,
) -> Champion:
    """The model that an alias names, ready to predict in this process; where a server forks, each worker loads its own.

    Args:
        address: of the pipeline in its store, ``s3://bucket/prefix/pipeline`` or a folder.
        alias: ``champion``, or another one.
        code: ``package.module:callable`` where the architecture is your own: only code of that package is run.
        device: of torch, such as ``cpu`` or ``cuda``.
        file: of the release; ``model.pt2`` needs no code of the network, and is for pictures on the CPU.
        s3: how S3 is spoken to; from boto3's own environment if None.
        min_interval: seconds between two looks for a newer release, however often ``refresh`` is called.
        cache_bytes: most bytes of weights that are kept in the local cache, see ``EVERFRESH_CACHE``.

    Raises:
        ReleaseError: the alias names nothing yet.
        StoreError: the store cannot be reached, or bytes are not what was recorded.
        ModelError: the release cannot be built here.
    """
    store = open_store(str(address), s3)
    return Champion(store, alias=alias, code=code, device=device, file=file, min_interval=min_interval, cache_bytes=cache_bytes)


class Champion:
    """The model that an alias names; made by :func:`load_champion`. A context, at whose end it no longer refreshes itself."""

    def __init__(
        self,
        store: Store,
        *,
        alias: str = CHAMPION,
        code: str = "",
        device: str = "cpu",
        file: str = "model.safetensors",
        min_interval: float = 1.0,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._process = os.getpid()
        self._alias, self._moves, self._min_interval = alias, moves(store, alias), min_interval
        self._options: dict[str, Any] = {"code": code, "device": device, "cache_bytes": cache_bytes, "file": file}
        head = self._moves.last()
        self._model = self._load(head)
        self._known = self._model.move
        self._good = datetime.now(UTC)
        self._next_look = time.monotonic() + min_interval
        self._looking = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self.last_error: str | None = None
        """Why the last look went wrong; None if it did not."""
        self.stale_since: datetime | None = None
        """The last time it was known to be the champion, if it is not known now; None while all is well."""
        self.failures = 0
        """Looks in a row that went wrong."""
        self.swaps = 0
        """How often another release took over."""

    def _load(self, move: AliasMove | None) -> Model:
        if move is None or move.kind == "remove":
            raise ReleaseError(
                f"the alias {self._alias} at {self._moves.store.url('')} must name a release, got none. Run the pipeline or "
                "`everfresh promote`, or correct the address: it ends in the pipeline's name."
            )
        from everfresh.tasks.serving.model import Model

        return Model(self._moves.store, move, **self._options)

    def _check_process(self) -> None:
        """Threads that compute or look, and locks that they hold, are not copied by a fork: a child would wait for ever."""
        if os.getpid() != self._process:
            raise ReleaseError(
                f"a champion must answer in the process that loaded it, {self._process}, got a fork of it, {os.getpid()}. "
                "Call load_champion in each worker, after the fork."
            )

    @property
    def release(self) -> str:
        """Id of the release that answers."""
        return self._model.move.release

    @property
    def version(self) -> int:
        """The number that people say of the release that answers; 0 if it never was champion."""
        return self._model.move.version

    def predict(self, samples: Iterable[Sample]) -> Predictions:
        """What the champion says of some samples; all are answered by the same release, which the answers name.

        Args:
            samples: bytes of pictures or rows, PIL pictures, uint8 tensors (3, H, W) or one (N, 3, H, W), or rows as values by
                column.

        Raises:
            DataError: one of them is none that it can be asked about; says which.
            ReleaseError: this process is a fork of the one that loaded the champion.
        """
        self._check_process()
        model = self._model  # once: it may be another one before this call ends
        return model.predict(samples)

    def refresh(self) -> bool:
        """Look for a newer release and let it take over; one small request where there is none.

        Never holds up a prediction, and raises nothing of what goes wrong: ``last_error`` and ``stale_since`` tell it, and the
        last good model answers on. Does nothing if the last look is younger than ``min_interval``, which failures double each
        time, or if another thread is looking.

        Returns:
            Whether another release answers from now on.

        Raises:
            ReleaseError: this process is a fork of the one that loaded the champion.
        """
        self._check_process()
        if time.monotonic() < self._next_look or not self._looking.acquire(blocking=False):
            return False
        try:
            changed = self._follow()
        except Exception as error:  # also of somebody else's code: the service goes on
            self._note(error)
            return False
        else:
            if self.failures:
                log.info("the %s is followed again, after %d looks that went wrong", self._alias, self.failures)
            self.failures, self.last_error, self.stale_since = 0, None, None
            self._good = datetime.now(UTC)
            return changed
        finally:
            pause = self._min_interval * 2 ** min(self.failures, 16)
            self._next_look = time.monotonic() + min(pause, max(LONGEST_PAUSE, self._min_interval))
            self._looking.release()

    def _follow(self) -> bool:
        following = self._moves.entry(self._known.seq + 1)
        head = self._known if following is None else self._moves.last() or following
        changed = head.kind == "remove" or head.release != self._model.move.release
        if changed:
            self._model = self._load(head)
            self.swaps += 1
            log.info("%s answers from now on", self._model.move.label)
        self._known = head
        return changed

    def _note(self, error: Exception) -> None:
        self.failures += 1
        self.last_error = f"{type(error).__name__}: {error}"
        self.stale_since = self._good
        if self.failures == 1:
            log.warning("%s answers on: the %s cannot be followed: %s", self._model.move.label, self._alias, error)

    def refresh_every(self, seconds: float) -> Self:
        """Refresh in a thread of its own until ``close``.

        Args:
            seconds: between two looks.

        Raises:
            ReleaseError: this process is a fork of the one that loaded the champion.
        """
        self._check_process()
        self.close()
        self._closing.clear()
        self._thread = threading.Thread(target=self._keep_fresh, args=(seconds,), name="everfresh-refresh", daemon=True)
        self._thread.start()
        return self

    def _keep_fresh(self, seconds: float) -> None:
        while not self._closing.wait(seconds):
            self.refresh()

    def close(self) -> None:
        """Stop refreshing; predictions go on with the model of now."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
