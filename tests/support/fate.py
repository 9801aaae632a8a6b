"""A store under whose user something happens: at the n-th write the process dies, or at the n-th operation somebody acts.

Between two writes of one process nothing changes in the store: a death there is a death before the next write.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from everfresh.tasks.store import FolderStore, S3Store

Moment = Literal["before", "within", "after"]
MOMENTS: tuple[Moment, ...] = ("before", "within", "after")
WRITES = ("put", "create", "put_file", "delete")
OPERATIONS = (*WRITES, "get", "download", "prove", "local", "exists", "list", "unfinished", "discard", "now")


class Died(BaseException):
    """The process is gone, as after ``os._exit``: no ``except``, ``finally`` or ``with`` may touch the store any more."""


class Fate:
    """Counts what is done to the store that it is mixed into.

    Args:
        at: number of the write, or of the operation if there is an `event`, at which it happens, from 1; 0 for never.
        when: before it took place, after it, or within: then half a temporary file is left.
        event: what happens; the process dies if None.
    """

    def be(self, at: int = 0, when: Moment = "before", event: Callable[[], None] | None = None) -> None:
        """Set the fate."""
        self.at, self.when, self.event = at, when, event
        self.count, self.dead = 0, False

    def _operate(self, name: str, *arguments: Any, **named: Any) -> Any:
        if self.dead:
            raise Died
        counts = name in WRITES or self.event is not None
        self.count += counts
        here = counts and self.count == self.at
        if here and self.when != "after":
            if self.when == "within" and name != "delete":
                self._leave_half(arguments[0])
            self._happen()
        try:
            return getattr(super(), name)(*arguments, **named)
        finally:  # an object that is missing is an answer too
            if here and self.when == "after":
                self._happen()

    def _happen(self) -> None:
        if self.event is None:
            self.dead = True
            raise Died
        self.event()

    def _leave_half(self, key: str) -> None:
        """Of a bucket nothing is left."""


class FatedBucket(Fate, S3Store):
    """A bucket with a fate."""


class Fated(Fate, FolderStore):
    """A folder with a fate; `root` is where it stands."""

    def __init__(self, root: Path, at: int = 0, when: Moment = "before", event: Callable[[], None] | None = None) -> None:
        super().__init__(root)
        self.be(at, when, event)

    def _leave_half(self, key: str) -> None:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(".tmp-of-the-dead").write_bytes(b"half of wh")


def _counted(name: str) -> Callable[..., Any]:
    def operation(self: Fate, *arguments: Any, **named: Any) -> Any:
        return self._operate(name, *arguments, **named)

    return operation


for _name in OPERATIONS:
    setattr(Fate, _name, _counted(_name))
