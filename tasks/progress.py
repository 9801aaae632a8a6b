"""Progress of long work: a bar on a terminal, and whoever else listens; silent in a log."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
Listener = Callable[[str, int, int | None], None]
"""Is told the label, how many items are done, and of how many if that is known."""
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Within, each item of each bar is told to `listener` too."""
    before = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(before)


def bar(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Iterate over `items` with a bar on stderr, if that is a terminal. ``EVERFRESH_PROGRESS=0`` turns it off."""
    total = len(items) if total is None and isinstance(items, Sized) else total
    listener = _listener.get()
    for done, item in enumerate(_shown(items, label, total), 1):
        yield item
        if listener:
            listener(label, done, total)


def _shown(items: Iterable[T], label: str, total: int | None) -> Iterable[T]:
    if not sys.stderr.isatty() or os.environ.get("EVERFRESH_PROGRESS") == "0":
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, label, total=total, console=Console(stderr=True), transient=True)
