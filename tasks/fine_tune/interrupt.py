"""A training run that is told to stop finishes its step, writes a checkpoint, and only then ends."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Stop:
    """Whether somebody asked the run to end."""

    def __init__(self) -> None:
        self.asked: int | None = None
        """The signal, if one came."""


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Note SIGINT and SIGTERM instead of ending at once; a second signal ends at once all the same.

    After the block the process ends as it would have: by whatever handler stood there before, else with 128 + the signal's
    number. Signals reach the main thread alone: elsewhere nothing changes, nor where they are ignored.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, frame: FrameType | None) -> None:
        again, stop.asked = stop.asked is not None, number
        if again:
            _act(number, frame, before[number])

    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if stop.asked is not None:  # also where something failed meanwhile: whoever catches that must not go on
            _act(stop.asked, None, before[stop.asked])
            sys.exit(128 + stop.asked)  # that handler only took note too


def _act(number: int, frame: FrameType | None, handler: Any) -> None:
    if callable(handler):
        handler(number, frame)
    else:
        sys.exit(128 + number)
