"""A log of predictions as it stands in a store: what a service was asked, what it said, and the labels that came later.

::

    predictions/<day>/<shard>.tar     predictions.jsonl, then the bytes of each input
    labels/<shard>/<time>-<id>.jsonl  labels for predictions of that shard, one a line

Each object is written once and whole, so a reader needs no lock and sees no half. A prediction's id names its shard, so a
label finds its place without a look, and whoever reads a shard finds its labels without reading all others. Labels may come
in any order, more than once and from several writers: the newest, by the writers' clocks, counts.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from everfresh.tasks.errors import DataError, SourceError

TABLE = "predictions.jsonl"
SHARD = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{12}")
ID = re.compile(rf"({SHARD.pattern})-\d{{6,}}")
MAGIC = {
    b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp", b"BM": ".bmp", b"GIF8": ".gif", b"II*\0": ".tif",
    b"MM\0*": ".tif", b"{": ".json",
}  # fmt: skip
"""How an input begins, and what its file is called for people who unpack a shard."""

Label = str | float | Sequence[str] | Sequence[float]
"""A class; a set of them; a value, or several."""


@dataclass(frozen=True, slots=True)
class Logged:
    """One prediction."""

    id: str
    data: bytes
    """The input: bytes of a picture, or of a row."""
    at: datetime
    """Aware, UTC."""
    prediction: str
    confidence: float | None
    release: str
    version: int
    slices: Mapping[str, str] = field(default_factory=dict)

    @property
    def member(self) -> str:
        """Its name within the shard."""
        return self.id + next((suffix for magic, suffix in MAGIC.items() if self.data.startswith(magic)), ".bin")


def new_shard(now: datetime) -> str:
    """A name of its own for a shard that begins now, UTC; names sort by time."""
    return f"{now:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:12]}"


def prediction_id(shard: str, number: int) -> str:
    """The id of the n-th prediction of a shard."""
    return f"{shard}-{number:06d}"


def shard_of(identity: str) -> str:
    """The shard that holds a prediction.

    Raises:
        DataError: it is no id of a prediction.
    """
    found = ID.fullmatch(identity)
    if found is None:
        raise DataError(f"the id of a prediction must be one that log() returned, got {str(identity)[:80]!r}")
    return found[1]


def shard_key(shard: str) -> str:
    """Where a shard stands."""
    return f"predictions/{shard[:8]}/{shard}.tar"


def labels_key(shard: str, now: datetime) -> str:
    """A place of its own for labels of a shard."""
    return f"labels/{shard}/{now:%Y%m%dT%H%M%S.%fZ}-{uuid.uuid4().hex[:12]}.jsonl"


def pack(logged: Sequence[Logged]) -> bytes:
    """The bytes of a shard."""
    rows = [
        {
            "id": item.id, "member": item.member, "at": item.at.isoformat(), "prediction": item.prediction,
            "confidence": item.confidence, "release": item.release, "version": item.version, "slices": dict(item.slices),
        }
        for item in logged
    ]  # fmt: skip
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        _add(tar, TABLE, _lines(rows), 0)
        for item in logged:
            _add(tar, item.member, item.data, int(item.at.timestamp()))
    return sink.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes, modified: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime = len(data), modified
    tar.addfile(info, io.BytesIO(data))


def _lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def pack_labels(labels: Iterable[tuple[str, Label, datetime]]) -> bytes:
    """The bytes of some labels: id, label, and when it was given."""
    return _lines({"id": identity, "label": label, "at": at.isoformat()} for identity, label, at in labels)


def rows_in(data: bytes, name: str) -> list[dict[str, Any]]:
    """The lines of a table, or of labels; each must name a prediction and a time.

    Raises:
        SourceError: it is damaged; names the line.
    """
    rows = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            shard_of(row["id"])
            if datetime.fromisoformat(row["at"]).tzinfo is None:
                raise ValueError("no zone")
        except (ValueError, KeyError, TypeError, RecursionError, DataError) as error:
            raise SourceError(
                f"source.path: line {number} of {name} must be a JSON object with id and at, got {line[:60]!r} "
                f"({type(error).__name__}). Restore it from a copy, or remove it."
            ) from None
        rows.append(row)
    return rows


def newest_labels(objects: Iterable[tuple[str, bytes]]) -> dict[str, Any]:
    """The label of each prediction that has one, of objects by name, in whatever order they come.

    Raises:
        SourceError: one of them is damaged.
    """
    found: dict[str, tuple[tuple[datetime, str, int], Any]] = {}
    for name, data in objects:
        for number, row in enumerate(rows_in(data, name)):
            stamp = (datetime.fromisoformat(row["at"]), name, number)
            if row["id"] not in found or found[row["id"]][0] < stamp:
                found[row["id"]] = stamp, row.get("label")
    return {identity: label for identity, (_, label) in found.items()}
