"""Releases out of the store: is one whole, and a copy of one in a folder.

Nothing of a release is opened here, only read and compared with the digests in its record, and that with its signature where
there is a key to verify it by.
"""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from everfresh.tasks.catalogue import REMOVED, Named
from everfresh.tasks.errors import DigestMismatch, ObjectMissing, ReleaseError, StoreError
from everfresh.tasks.ledger import find
from everfresh.tasks.records import Release, RemovedRelease
from everfresh.tasks.releases import RECORD, Believed, believed, folder_of, signature_of
from everfresh.tasks.signing import SIGNATURE
from everfresh.tasks.store import Store
from everfresh.tasks.store.base import bring, check_digest


def recorded(store: Store, goal: Named) -> Release:
    """The record of a release that may be believed.

    Raises:
        ReleaseError: there is none, its weights were removed, or it may not be believed: see `find_release`.
        StoreError: it is damaged.
    """
    return _recorded(store, goal).release


def _recorded(store: Store, goal: Named) -> Believed:
    if (found := believed(store, goal.release)) is not None:
        return found
    gone = find(store, f"{folder_of(goal.release)}/{REMOVED}", RemovedRelease)
    why = f"; {gone.by} removed its weights at {gone.at:%Y-%m-%d %H:%M} ({gone.reason})" if gone else ""
    raise ReleaseError(
        f"{goal.label} must be in the store, got none at {store.url(f'{folder_of(goal.release)}/{RECORD}')}{why}. "
        "Choose another release."
    )


def problems(store: Store, goal: Named) -> list[str]:
    """What is wrong with a release, a sentence each; none if every file is there as recorded.

    Raises:
        StoreError: the store cannot be reached.
    """
    try:
        release = recorded(store, goal)
    except (ReleaseError, ObjectMissing) as error:
        return [str(error)]
    found = []
    for name, part in release.files.items():
        try:
            store.prove(part)
        except (DigestMismatch, ObjectMissing) as error:
            found.append(f"{name}: {error}")
    return found


def pull(store: Store, goal: Named, target: Path) -> Release:
    """Copy a release to a folder, each file verified: the whole of it, or nothing.

    Args:
        store: of the pipeline.
        goal: the release.
        target: folder that is absent, empty, or holds this very release already; that one gets a signature made since.

    Raises:
        ReleaseError: there is no such release, it may not be believed, or something else stands in the folder.
        StoreError: a file is missing or not as recorded, or the folder cannot be written.
    """
    found, target = _recorded(store, goal), target.resolve()
    release, signature = found.release, found.signature or signature_of(store, goal.release)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        if _holds(target, release):
            _put_signature(target, signature)
            return release
        raise ReleaseError(f"pull: the target must be absent or an empty folder, got {target}. Choose another, or empty it.")
    partial = target.parent / f".{target.name}.{uuid.uuid4().hex}"
    try:
        partial.mkdir(parents=True)
        for name, part in release.files.items():
            bring(store, part, partial / name)
        (partial / RECORD).write_bytes(found.record)
        _put_signature(partial, signature)
        partial.rename(target)
    except OSError as error:
        if not _holds(target, release):  # another pull may have been first
            why = error.strerror or error
            raise StoreError(f"pull: {target} must take {goal.label}, got: {why}. Free space, or choose another.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return release


def _put_signature(folder: Path, signature: bytes | None) -> None:
    """Put the signature that a release has into its folder, in one step; not all are signed.

    Raises:
        StoreError: the folder cannot be written.
    """
    path = folder / SIGNATURE
    if signature is None or (path.exists() and path.read_bytes() == signature):
        return
    partial = folder / f".{uuid.uuid4().hex}"
    try:
        partial.write_bytes(signature)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StoreError(f"pull: {path} must be written, got: {error.strerror or error}. Free space.") from error


def _holds(target: Path, release: Release) -> bool:
    """Whether a folder holds this release whole already."""
    try:
        if Release.from_bytes((target / RECORD).read_bytes()) != release:
            return False
        for name, part in release.files.items():
            check_digest(target / name, part, name)
    except (OSError, StoreError):
        return False
    return True
