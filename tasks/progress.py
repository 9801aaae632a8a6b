"""Progress bars on long work: shown on a terminal, silent in a log."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def bar(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Iterate over `items` with a bar on stderr, if that is a terminal. ``EVERFRESH_PROGRESS=0`` turns it off."""
    if not sys.stderr.isatty() or os.environ.get("EVERFRESH_PROGRESS") == "0":
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(items, label, total=total, console=Console(stderr=True), transient=True)
