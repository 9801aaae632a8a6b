"""What a store promises, proven by doing it under a scratch prefix that is removed afterwards."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from everfresh.tasks.errors import ObjectMissing, StoreError
from everfresh.tasks.store.base import Store, scratch
from everfresh.tasks.store.folder import FolderStore

WRITTEN = ("again", "race", "large", "sum", "clock")
"""Keys under the scratch prefix."""
WRITERS = 8
"""That want one key at the same time."""
LARGE = 17 << 20
"""Bytes of a file that goes up in three parts."""
CLOCKS_WITHIN = timedelta(minutes=5)
"""S3 refuses requests whose time is more than 15 minutes away."""


def proofs(store: Store) -> Iterator[tuple[str, Callable[[], str]]]:
    """Each promise's name and how it is proven: a call that returns what was seen, or raises ``StoreError``.

    In this order; what comes after one that failed may fail for the same reason. The last one removes all again.
    """
    scratch = store.sub(f"probe-{uuid.uuid4().hex[:12]}")
    yield "reach", lambda: _reach(store)
    yield "write", lambda: _write(scratch)
    yield "read", lambda: _read(scratch)
    yield "race", lambda: _race(scratch)
    yield "bytes", lambda: _bytes(scratch)
    yield "clock", lambda: _clock(scratch)
    yield "delete", lambda: _delete(scratch)


def _reach(store: Store) -> str:
    begun = time.monotonic()
    with suppress(ObjectMissing):  # a look alone would not tell a missing bucket from an empty one
        store.get("journal.json")
    return f"{store.url('')} answers in {1000 * (time.monotonic() - begun):.0f} ms"


def _write(store: Store) -> str:
    store.put("again", b"first")
    return "objects can be written"


def _read(store: Store) -> str:
    """What was written is read and listed at once, also when it was written over."""
    for data in (b"second", b"the third"):
        store.put("again", data)
        if (found := store.get("again")) != data:
            raise StoreError(f"store must give back what was just written, got {found!r} for {data!r}. Use one that does.")
    if [(item.key, item.size) for item in store.list()] != [("again", 9)]:
        raise StoreError("store must list what was just written, got a listing without it. Use one that does.")
    return "what was written is read and listed at once"


def _race(store: Store) -> str:
    barrier = threading.Barrier(WRITERS)

    def create(writer: int) -> bool:
        barrier.wait()
        return store.create("race", b"%d" % writer)

    with ThreadPoolExecutor(WRITERS) as pool:
        won = list(pool.map(create, range(WRITERS)))
    if sum(won) != 1 or store.get("race") != b"%d" % won.index(True) or store.create("race", b"late"):
        raise StoreError(
            f"store must refuse to write over an object (If-None-Match: *), got {sum(won)} winners of {WRITERS} writers. "
            "Use AWS S3 or a store that honours it: two runs could otherwise both make a champion, so publishing is refused."
        )
    return f"of {WRITERS} writers of one key one won"


def _bytes(store: Store) -> str:
    with scratch() as folder:
        path, back = folder / "there", folder / "back"
        path.write_bytes(os.urandom(LARGE))
        part = store.keep_file("large", path)
        store.fetch("large", back)
        if path.read_bytes() != back.read_bytes():
            raise StoreError("store must give back the bytes of a large file, got others. Check the network to it.")
    return f"{part.size >> 20} MiB went up and came back whole; {store.prove_checksum('sum')}"


def _clock(store: Store) -> str:
    store.put("clock", b"now")
    ours = datetime.now(UTC)
    moments = [store.now(), *(item.modified for item in store.list() if item.key == "clock")]
    off = max((moment - ours for moment in moments), key=abs)
    if abs(off) > CLOCKS_WITHIN:
        raise StoreError(
            f"store and this machine must have the same time within {CLOCKS_WITHIN.seconds // 60} minutes, got "
            f"{off.total_seconds():+.0f} s at the store. Set the wrong clock (NTP): requests would be refused, and ages wrong."
        )
    return f"{abs(off).total_seconds():.0f} s from this machine's"


def _delete(store: Store) -> str:
    """Each object goes that can; what stays is told."""
    stay, trouble = [], ""
    for key in WRITTEN:
        try:
            store.delete(key)
        except StoreError as error:
            trouble = f" ({error})"
        if store.exists(key):
            stay.append(store.url(key))
    if stay or trouble:
        left = f"that stay: {', '.join(stay)}" if stay else "that may not be"
        raise StoreError(
            f"store must let objects be deleted, got some {left}{trouble}. Allow s3:DeleteObject, and delete them."
        )
    if isinstance(store, FolderStore):
        with suppress(OSError):  # a file of somebody else
            store.root.rmdir()
    return "objects can be deleted; nothing is left behind"
