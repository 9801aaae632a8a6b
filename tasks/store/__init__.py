"""Objects under keys, in a local folder or in S3: one interface, the same guarantees.

All safety of Everfresh rests on one primitive, ``create``: write an object only if none stands there.
A folder does it with an exclusive hard link to a finished file; S3 with ``If-None-Match: *``. Everything
else is immutable once a record names it, so a reader needs no lock.

Keys are relative POSIX paths without ``.`` and ``..``; ``sub`` gives a store whose keys start deeper.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from everfresh.tasks.config import PipelineConfig, S3Config
from everfresh.tasks.errors import ConfigError
from everfresh.tasks.store.base import Listed, Store, Unfinished, cache_folder, file_digest, scratch
from everfresh.tasks.store.folder import FolderStore
from everfresh.tasks.store.overlay import OverlayStore
from everfresh.tasks.store.s3 import S3Store

__all__ = [
    "FolderStore",
    "Listed",
    "OverlayStore",
    "S3Store",
    "Store",
    "Unfinished",
    "cache_folder",
    "file_digest",
    "open_store",
    "pipeline_store",
    "scratch",
]


def open_store(uri: str, s3: S3Config | None = None) -> Store:
    """The store at a folder, ``file://`` or ``s3://bucket/prefix``; nothing is touched yet.

    Raises:
        ConfigError: the scheme is none of these.
    """
    scheme, separator, rest = uri.partition("://")
    bucket, _, prefix = rest.partition("/")
    if not separator:
        with suppress(RuntimeError):  # there is no such user
            return FolderStore(Path(uri).expanduser())
    if scheme == "s3" and bucket:
        return S3Store(bucket, prefix.strip("/"), s3)
    if scheme == "file" and rest.startswith("/"):
        return FolderStore(Path(rest))
    raise ConfigError(f"store must be a folder, file:///… or s3://bucket/prefix, got {uri!r}. Change the address.")


def pipeline_store(config: PipelineConfig, replay: str = "") -> Store:
    """The store of one pipeline; with `replay`, what is made lands under ``replays/<id>/``."""
    live = open_store(config.store, config.s3).sub(config.name)
    if not replay:
        return live
    return OverlayStore(live, live.sub(f"replays/{replay}"), ("stream", "windows", "quarantine", "embeddings"))
