"""How a release is read, and signed: the one place that says which record may be believed.

A record is refused if it is another release's, names a file outside its folder, or, where ``EVERFRESH_VERIFYING_KEY`` names
a public key, has no signature of that key over itself and all its files, or is of another pipeline or a replay. The bytes of
the files are compared with its SHA-256 when they are loaded. Replays serve nobody: they neither sign nor ask for signatures.
"""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath
from typing import NamedTuple

from everfresh.tasks.errors import ObjectMissing, ReleaseError
from everfresh.tasks.records import Release
from everfresh.tasks.signing import SIGNATURE, SIGNING_KEY, VERIFYING_KEY, key_of, public_half, refused, sign, verify
from everfresh.tasks.store import OverlayStore, Store, scratch

RECORD = "release.json"
"""Name of the record, written after all the files that it names."""


def folder_of(release: str) -> str:
    """Where the files of a release stand."""
    return f"releases/{release}"


class Believed(NamedTuple):
    """A release that may be believed, and the bytes that this was found out of."""

    release: Release
    record: bytes
    signature: bytes | None
    """None where it has none, or none is asked for."""


def find_release(store: Store, release: str) -> Release | None:
    """The release of that id, if there is one and it may be believed.

    Raises:
        ReleaseError: it is another's, names files outside its folder, or is not signed as it must be.
        StoreError: it is damaged.
    """
    found = believed(store, release)
    return None if found is None else found.release


def believed(store: Store, release: str) -> Believed | None:
    """As `find_release`, with the bytes that were read."""
    try:
        data = store.get(f"{folder_of(release)}/{RECORD}")
    except ObjectMissing:
        return None
    found = _checked(store, release, data)
    if (key := key_of(VERIFYING_KEY)) is None or isinstance(store, OverlayStore):
        return Believed(found, data, None)
    name = store.url(folder_of(release))
    if (signature := signature_of(store, release)) is None:
        raise refused(name, key, "none")
    verify(name, _digests(found, data), signature, key)
    if found.pipeline and not store.url("").rstrip("/").endswith(f"/{found.pipeline}"):
        raise ReleaseError(
            f"{name} must be a release of the pipeline at that address, got one that was signed as a release of "
            f"{found.pipeline}. Do not load it: somebody copied it there, or the pipeline's folder has another name by now."
        )
    return Believed(found, data, signature)


def signature_of(store: Store, release: str) -> bytes | None:
    """The signature of a release, if it has one."""
    try:
        return store.get(f"{folder_of(release)}/{SIGNATURE}")
    except ObjectMissing:
        return None


def sign_release(store: Store, release: str, *, checked: Release | None = None) -> bool:
    """Sign a release that stands, with the key that ``EVERFRESH_SIGNING_KEY`` names; False if it names none.

    A signature by that key that holds stays as it is, so two runs that publish the same release agree.

    Args:
        store: where it stands.
        release: its id.
        checked: what its record must say, where somebody has made or checked it.

    Raises:
        ConfigError: the key cannot be used.
        ReleaseError: the record says other things than `checked`.
    """
    if (key := key_of(SIGNING_KEY)) is None:
        return False
    place = f"{folder_of(release)}/{SIGNATURE}"
    data = store.get(f"{folder_of(release)}/{RECORD}")
    found = _checked(store, release, data)
    if checked is not None and found != checked:
        raise ReleaseError(
            f"{store.url(f'{folder_of(release)}/{RECORD}')} must be the record that was checked, got another. "
            "Nothing was signed. Find out who wrote over it, and restore it from a copy."
        )
    digests = _digests(found, data)
    signature = sign(release, digests, key)
    if store.create(place, signature):
        return True
    with scratch() as folder:
        (folder / "public.pem").write_bytes(public_half(key))
        try:
            verify(release, digests, store.get(place), folder / "public.pem")
        except ReleaseError:
            store.put(place, signature)
    return True


def _digests(release: Release, record: bytes) -> dict[str, str]:
    """SHA-256 of all that a signature covers: the record and the files that it names."""
    return {name: part.sha256 for name, part in release.files.items()} | {RECORD: hashlib.sha256(record).hexdigest()}


def _checked(store: Store, release: str, data: bytes) -> Release:
    name = store.url(f"{folder_of(release)}/{RECORD}")
    found = Release.from_bytes(data, name)
    if found.id != release:
        raise ReleaseError(
            f"{name} must be the record of the release {release}, got that of {found.id}. Somebody copied it there: restore "
            "it from a copy, or roll back."
        )
    for file, part in found.files.items():
        plain = PurePosixPath(file).name == file and file not in {"", "..", RECORD, SIGNATURE} and not set(file) & set("\\:\0")
        if not plain or part.key != f"{folder_of(release)}/{file}":
            raise ReleaseError(
                f"{name} must name files of its own folder alone, got {file!r} at {part.key!r}. Do not load it: restore it "
                "from a copy, or roll back."
            )
    return found
