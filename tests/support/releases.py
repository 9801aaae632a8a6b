"""Releases that take a millisecond: real records and real files, of models that nobody trained."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime

from everfresh.tasks.ledger import champion_moves, settle, version_of
from everfresh.tasks.records import AliasMove, ModelSpec, Release, digest_of
from everfresh.tasks.store import Store

SPEC = ModelSpec(
    architecture="resnet18", classes=("a", "b"), head="fc", native_head=True, embedding_dim=512, image_size=8,
    mean=(0, 0, 0), std=(1, 1, 1),
)  # fmt: skip
FILES = {"model.safetensors": b"weights #", "card.md": b"card #", "lineage.json": b'{"seed": #}'}
"""Files of every release; `#` becomes its number."""


def release_id(number: int) -> str:
    """Of the n-th release."""
    return digest_of("release", number)


def put_release(
    store: Store,
    number: int,
    *,
    parent: str | None = None,
    at: datetime | None = None,
    files: Mapping[str, bytes] = FILES,
    pipeline: str = "",
) -> Release:
    """A whole release, which is nobody's champion yet."""
    key = release_id(number)
    own = {name: data.replace(b"#", str(number).encode()) for name, data in files.items()}
    parts = {name: store.keep(f"releases/{key}/{name}", data) for name, data in own.items()}
    release = Release(
        id=key, pipeline=pipeline, spec=SPEC, files=parts,
        evaluation="", holdout_view="", bank=(), reference="", parent=parent, rung="head",
        seq=number, accuracy=0.9, created_at=at or store.now(),
    )  # fmt: skip
    return settle(store, f"releases/{key}/release.json", release)


def publish(store: Store, number: int, *, at: datetime | None = None) -> AliasMove:
    """The n-th release, champion as a tick makes it: bars and retirements stay."""
    moves = champion_moves(store)
    head = moves.last()
    release = put_release(store, number, parent=head.release if head else None, at=at)
    move = AliasMove(
        seq=head.seq + 1 if head else 1, id=uuid.uuid4().hex, kind="publish", release=release.id,
        version=version_of(moves, release.id), barred=head.barred if head else (), retired=head.retired if head else (),
        by="tick", reason=f"window {number}", at=at or store.now(),
    )  # fmt: skip
    assert moves.append(move.seq, move)
    return move
