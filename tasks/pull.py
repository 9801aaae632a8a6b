"""Releases out of the store: is one whole, and a copy of one in a folder.

Nothing of a release is opened here, only read and compared with the digests in its record.
"""

from __future__ import annotations

import shutil
import uuid
from contextlib import suppress
from pathlib import Path, PurePosixPath

from everfresh.tasks.catalogue import REMOVED, Named
from everfresh.tasks.errors import DigestMismatch, ObjectMissing, ReleaseError, StoreError
from everfresh.tasks.ledger import find
from everfresh.tasks.records import Release, RemovedRelease
from everfresh.tasks.releases import RECORD, find_release, folder_of
from everfresh.tasks.signing import SIGNATURE
from everfresh.tasks.store import Store
from everfresh.tasks.store.base import bring, check_digest


def recorded(store: Store, goal: Named) -> Release:
    """The record of a release.

    Raises:
        ReleaseError: there is none, it was removed, or it is that of another release.
        StoreError: it is damaged.
    """
    key = f"releases/{goal.release}/{RECORD}"
    release = find(store, key, Release)
    if release is None:
        gone = find(store, f"releases/{goal.release}/{REMOVED}", RemovedRelease)
        why = f"; {gone.by} removed its weights at {gone.at:%Y-%m-%d %H:%M} ({gone.reason})" if gone else ""
        raise ReleaseError(f"{goal.label} must be in the store, got none at {store.url(key)}{why}. Choose another release.")
    if release.id != goal.release:
        raise ReleaseError(f"{store.url(key)} must be the record of {goal.release}, got that of {release.id}. Restore it.")
    return release


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
    try:
        find_release(store, release.id)
    except ReleaseError as error:
        found.append(str(error))
    return found


def pull(store: Store, goal: Named, target: Path) -> Release:
    """Copy a release to a folder, each file verified: the whole of it, or nothing.

    Args:
        store: of the pipeline.
        goal: the release.
        target: folder that is absent, empty, or holds this very release already.

    Raises:
        ReleaseError: there is no such release, something else stands in the folder, or a file would land outside it.
        StoreError: a file is missing or not as recorded, or the folder cannot be written.
    """
    release, target = recorded(store, goal), target.resolve()
    for name in release.files:
        _check_inside(goal, name)
    find_release(store, release.id)  # refuses one that is not signed as it must be
    if _holds(target, release):
        return release
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ReleaseError(f"pull: the target must be absent or an empty folder, got {target}. Choose another, or empty it.")
    partial = target.parent / f".{target.name}.{uuid.uuid4().hex}"
    try:
        partial.mkdir(parents=True)
        for name, part in release.files.items():
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            bring(store, part, path)
        (partial / RECORD).write_bytes(store.get(f"{folder_of(release.id)}/{RECORD}"))
        with suppress(ObjectMissing):
            (partial / SIGNATURE).write_bytes(store.get(f"{folder_of(release.id)}/{SIGNATURE}"))
        partial.rename(target)
    except OSError as error:
        if not _holds(target, release):  # another pull may have been first
            why = error.strerror or error
            raise StoreError(f"pull: {target} must take {goal.label}, got: {why}. Free space, or choose another.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return release


def _check_inside(goal: Named, name: str) -> None:
    path = PurePosixPath(name)
    odd = "\\" in name or "\0" in name or ":" in name
    if path.is_absolute() or not path.parts or ".." in path.parts or odd or name == RECORD:
        raise ReleaseError(
            f"pull: a file of {goal.label} must be named by a path inside its folder, got {name!r}. Do not use this release: "
            "its record was not written by Everfresh."
        )


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
