"""A signature over the files of a release, in the format of OpenSSF model signing (https://github.com/sigstore/model-transparency).

It is a Sigstore bundle over an in-toto statement of every file's SHA-256, made with an elliptic-curve key. The digests are
those of the release's record, so signing and verifying read no file again, and ``model_signing verify key`` accepts the folder
all the same. The private key is named by ``EVERFRESH_SIGNING_KEY`` where releases are made, the public one by
``EVERFRESH_VERIFYING_KEY`` wherever one is loaded: both are paths of PEM files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from everfresh.tasks.errors import ConfigError, ReleaseError
from everfresh.tasks.store import scratch

SIGNATURE = "model.sig"
"""Name of the signature beside the files that it covers."""
SIGNING_KEY, VERIFYING_KEY = "EVERFRESH_SIGNING_KEY", "EVERFRESH_VERIFYING_KEY"
DIGESTS = re.compile(r": Expected 'Digest\(.*?\)', Actual 'Digest\(.*?\)'(?=\W)")
"""What the library tells of a file that differs, after its name: pages of bytes."""


def asked() -> bool:
    """Whether the environment names a key."""
    return bool(os.environ.get(SIGNING_KEY) or os.environ.get(VERIFYING_KEY))


def key_of(variable: str) -> Path | None:
    """The file of a key that the environment names; None if it names none.

    Raises:
        ConfigError: there is no such file.
    """
    named = os.environ.get(variable)
    if not named:
        return None
    if not (path := Path(named).expanduser()).is_file():
        raise ConfigError(f"{variable} must be the path of a PEM file, got {named}, which is none. Correct it, or unset it.")
    return path


def sign(name: str, digests: Mapping[str, str], key: Path) -> bytes:
    """The signature over some files.

    Args:
        name: of the release, which the signature tells but does not cover.
        digests: SHA-256 of each file, by its name.
        key: PEM file of a private key on P-256, P-384 or P-521, without a password.

    Raises:
        ConfigError: the key cannot be used, or the extra `signing` is not installed.
    """
    library = _library()
    try:
        config = library.signing.Config().use_elliptic_key_signer(private_key=key)
    except Exception as error:  # cryptography raises many kinds
        raise _unusable(SIGNING_KEY, key, error) from error
    with scratch() as folder:
        config.set_hashing_config(_recorded(name, digests)).sign(folder, folder / SIGNATURE)
        return (folder / SIGNATURE).read_bytes()


def verify(name: str, digests: Mapping[str, str], signature: bytes, key: Path) -> None:
    """Make sure that a signature is over just these files.

    Args:
        name: of the release, for the error.
        digests: SHA-256 of each file, by its name.
        signature: as :func:`sign` makes it.
        key: PEM file of the public key.

    Raises:
        ReleaseError: it is none, another key's, or over other files.
        ConfigError: the key cannot be used, or the extra `signing` is not installed.
    """
    library = _library()
    try:
        config = library.verifying.Config().use_elliptic_key_verifier(public_key=key)
    except Exception as error:  # cryptography raises many kinds
        raise _unusable(VERIFYING_KEY, key, error) from error
    with scratch() as folder:
        (folder / SIGNATURE).write_bytes(signature)
        try:
            config.set_hashing_config(_recorded(name, digests)).verify(folder, folder / SIGNATURE)
        except Exception as error:  # of JSON, protobuf, cryptography: none is for us to tell apart
            told = DIGESTS.sub("", " ".join(str(error).split()))
            reason = told[:300].rstrip(".") or type(error).__name__
            raise refused(name, key, f"one that does not hold ({reason})") from error


def tried() -> str:
    """What the keys of this environment do, found out by signing and verifying; empty where it names none.

    Raises:
        ConfigError: a key cannot be used.
        ReleaseError: the two are no pair, so that what is signed here would be refused here.
    """
    private, public = key_of(SIGNING_KEY), key_of(VERIFYING_KEY)
    probe = {"probe": "0" * 64}
    signature = sign("a probe", probe, private) if private else None
    if public and signature:
        verify("a probe", probe, signature, public)
    done = [f"signed with {private}"] * bool(private) + [f"refused unless signed for {public}"] * bool(public)
    return f"releases are {', '.join(done)}" if done else ""


def refused(name: str, key: Path, got: str) -> ReleaseError:
    """The error about a release whose signature is not what it must be."""
    return ReleaseError(
        f"{name} must have a signature {SIGNATURE} over its files by the key {key} of {VERIFYING_KEY}, got {got}. Do not load "
        "it: choose a release that is signed, or find out who changed this one."
    )


def public_half(private: Path) -> bytes:
    """PEM of the public key that belongs to a private one.

    Raises:
        ConfigError: the key cannot be used.
    """
    from cryptography.hazmat.primitives import serialization as pem

    try:
        key = pem.load_pem_private_key(private.read_bytes(), None).public_key()
    except Exception as error:  # cryptography raises many kinds
        raise _unusable(SIGNING_KEY, private, error) from error
    return key.public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)


def _unusable(variable: str, key: Path, error: Exception) -> ConfigError:
    half = "private" if variable == SIGNING_KEY else "public"
    told = " ".join(str(error).split())[:200].rstrip(".")
    return ConfigError(
        f"{variable} must be a PEM file of a {half} key on P-256, P-384 or P-521, without a password, got {key} "
        f"({type(error).__name__}: {told}). Make a pair with openssl, see docs/consumers.md."
    )


def _library() -> Any:
    try:
        import model_signing
    except ImportError as error:
        raise ConfigError(
            f"{SIGNING_KEY} and {VERIFYING_KEY} need the extra signing, which cannot be imported ({error}). "
            "Install it with: pip install 'everfresh[signing]'."
        ) from error
    return model_signing


def _recorded(name: str, digests: Mapping[str, str]) -> Any:
    """What the library hashes files by, with the digests that are known already in place of the files."""
    from model_signing import hashing, manifest
    from model_signing._hashing.hashing import Digest

    told = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": [SIGNATURE]}
    kind = manifest.SerializationType.from_args(told)
    items = [kind.new_item(n, Digest("sha256", bytes.fromhex(d))) for n, d in digests.items()]

    class Recorded(hashing.Config):
        def hash(self, *_: Any, **__: Any) -> Any:
            return manifest.Manifest(name, items, kind)

    return Recorded()  # type: ignore[no-untyped-call]
