"""A store that lies over another."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from everfresh.tasks.errors import StoreError
from everfresh.tasks.records import Part
from everfresh.tasks.store.base import Listed, Store, Unfinished


class OverlayStore(Store):
    """A store that reads what `below` has and writes to `above`, but for the folders in `shared`.

    A replay runs the same steps on it: it reads the live stream and windows, and what it makes lands
    under ``replays/<id>/``, out of the live alias's way.
    """

    def __init__(self, below: Store, above: Store, shared: tuple[str, ...]) -> None:
        self.below, self.above, self.shared = below, above, shared

    def _pick(self, key: str) -> Store:
        return self.below if key.split("/", 1)[0].removesuffix(".json") in self.shared else self.above

    def get(self, key: str) -> bytes:
        return self._pick(key).get(key)

    def put(self, key: str, data: bytes) -> None:
        self._pick(key).put(key, data)

    def create(self, key: str, data: bytes) -> bool:
        return self._pick(key).create(key, data)

    def put_file(self, key: str, path: Path) -> Part:
        return self._pick(key).put_file(key, path)

    def verify(self, part: Part) -> None:
        self._pick(part.key).verify(part)

    def prove(self, part: Part) -> None:
        self._pick(part.key).prove(part)

    def fetch(self, key: str, target: Path) -> None:
        self._pick(key).fetch(key, target)

    def download(self, key: str, target: Path) -> None:
        self._pick(key).download(key, target)

    def exists(self, key: str) -> bool:
        return self._pick(key).exists(key)

    def list(self, prefix: str = "", after: str = "") -> Iterator[Listed]:
        return self._pick(prefix).list(prefix, after)

    def delete(self, key: str) -> None:
        self._pick(key).delete(key)

    def unfinished(self) -> Iterator[Unfinished]:
        return self.above.unfinished()

    def discard(self, item: Unfinished) -> None:
        self.above.discard(item)

    def now(self) -> datetime:
        return self.below.now()

    def sub(self, prefix: str) -> Store:
        raise StoreError("a replay's store has no deeper view")

    def url(self, key: str) -> str:
        return self._pick(key).url(key)

    def local(self, part: Part) -> Path:
        return self._pick(part.key).local(part)
