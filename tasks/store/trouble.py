"""What an S3 server's refusals mean, and what to do about each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from everfresh.tasks.errors import AccessRefused, AccountRefused, DigestMismatch, ObjectMissing, StoreError

WRONG = "Correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or the machine's role"
RENEW = "Renew them: log in again, or fetch a new session token"
FULL = "Free some, raise the quota, or let `everfresh sweep` remove debris; what was written stays and a rerun goes on"
REGION = "Set s3.region to the bucket's region"
LATER = "Wait, and run again: it goes on where it was"
CLOCK = "Set this machine's clock (NTP)"
FEATURE = "Update the store, or use one that can; `everfresh check` shows what it can do"

ALL, ONE, NOW = AccountRefused, AccessRefused, StoreError
"""What is refused: everything, this, or this for the moment."""
# Code: what is refused, what is the matter, what to do.
KNOWN: dict[str, tuple[type[StoreError], str, str]] = {
    "AccessDenied": (ONE, "the credentials have no right to do this", "Allow s3:GetObject, s3:PutObject, s3:DeleteObject, "
        "s3:AbortMultipartUpload on the prefix, s3:ListBucket, s3:ListBucketMultipartUploads on the bucket, and the use of the "
        "key where it is encrypted by one"),
    "AllAccessDisabled": (ALL, "the account is closed", "Ask its owner"),
    "InvalidAccessKeyId": (ALL, "the access key is not known there", WRONG),
    "SignatureDoesNotMatch": (ALL, "the secret key is not the right one", WRONG),
    "ExpiredToken": (ALL, "the credentials have expired", RENEW),
    "ExpiredTokenException": (ALL, "the credentials have expired", RENEW),
    "TokenRefreshRequired": (ALL, "the credentials have expired", RENEW),
    "InvalidToken": (ALL, "the session token is not valid", RENEW),
    "RequestTimeTooSkewed": (ALL, "the clocks differ by more than the store allows", CLOCK),
    "RequestExpired": (ALL, "the clocks differ by more than the store allows", CLOCK),
    "NoSuchBucket": (ALL, "there is no such bucket", "Create it, or correct the address"),
    "InvalidBucketName": (ALL, "this cannot be the name of a bucket", "Correct the address"),
    "PermanentRedirect": (ALL, "the bucket is in another region", REGION),
    "AuthorizationHeaderMalformed": (ALL, "the bucket is in another region", REGION),
    "IllegalLocationConstraintException": (ALL, "the bucket is in another region", REGION),
    "KeyTooLongError": (ONE, "the key is longer than the store allows", "Shorten the prefix or the names in the source"),
    "InvalidObjectState": (ONE, "the object is in an archive tier", "Restore it first"),
    "MethodNotAllowed": (ONE, "the store does not offer this, or the object is read-only", FEATURE),
    "NotImplemented": (ONE, "the store does not offer this", FEATURE),
    "QuotaExceeded": (ONE, "the quota is used up", FULL),
    "QuotaExceededException": (ONE, "the quota is used up", FULL),
    "InsufficientCapacity": (ONE, "there is no space left", FULL),
    "InsufficientStorage": (ONE, "there is no space left", FULL),
    "XMinioStorageFull": (ONE, "there is no space left", FULL),
    "507": (ONE, "there is no space left", FULL),
    "KMS.NotFoundException": (ONE, "the key is not there", "Correct s3.kms_key"),
    "KMS.DisabledException": (ONE, "the key is disabled", "Enable it"),
    "SecondLevelDomainForbidden": (ALL, "the store wants the bucket in the host's name", "Set s3.addressing to virtual"),
    "InvalidRequest": (ONE, "the store wants it otherwise", "With object lock, set s3.verify to checksum"),
    "400": (ALL, "the credentials may have expired", "Renew them, check s3.region and s3.endpoint"),
    "EntityTooLarge": (ONE, "the object is larger than the store allows", FEATURE),
    "SlowDown": (NOW, "the store is busy", LATER),
    "ServiceUnavailable": (NOW, "the store is busy", LATER),
    "503": (NOW, "the store is busy", LATER),
    "TooManyRequests": (NOW, "the store is busy", LATER),
    "429": (NOW, "the store is busy", LATER),
    "InternalError": (NOW, "the store has failed", LATER),
    "500": (NOW, "the store has failed", LATER),
    "RequestTimeout": (NOW, "the connection was too slow", LATER),
}  # fmt: skip
KNOWN["403"] = KNOWN["Forbidden"] = KNOWN["AccessDenied"]
KNOWN["301"] = KNOWN["PermanentRedirect"]
OTHER = (
    NOW,
    "it gives no reason that is known here",
    "Check the bucket's name, the credentials, their rights and s3.endpoint",
)
DAMAGED = {"BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}
MISSING = {"NoSuchKey", "NoSuchUpload", "404", "NotFound"}
CREDENTIALS = ("Credential", "Token", "SSO", "Login", "Profile")
"""Names of boto3's errors that are about credentials hold one of these."""


class Taken(StoreError):
    """An object stands where it must be absent."""


class Conflict(StoreError):
    """Another conditional write to the same key was under way."""


def refused(operation: str, address: str, answer: Mapping[str, Any]) -> StoreError:
    """The error for an answer that refuses."""
    code = str(answer.get("Error", {}).get("Code", "unknown"))
    if code in MISSING:
        return ObjectMissing(f"{address} does not exist.")
    if code in {"PreconditionFailed", "412"}:
        return Taken(f"{address} exists already.")
    if code in {"ConditionalRequestConflict", "OperationAborted", "409"}:
        return Conflict(f"store: {operation} on {address} met another writer again and again ({code}). {LATER}.")
    if code in DAMAGED:
        return DigestMismatch(
            f"store: {operation} on {address} was refused ({code}): the bytes were damaged on their way. {LATER}."
        )
    kind, matter, remedy = KNOWN.get(code, OTHER)
    return kind(f"store: {operation} on {address} was refused ({code}): {matter}. {remedy}.")


def without_user(words: str) -> str:
    """The words with the user and password of every address in them left out."""
    return re.sub(r"://[^/@\s]+@", "://…@", words)


def unreachable(operation: str, address: str, error: Exception) -> StoreError:
    """The error where no answer came."""
    kind, words = type(error).__name__, without_user(" ".join(str(error).split()).rstrip("."))
    if any(part in kind for part in CREDENTIALS):
        return AccountRefused(
            f"store: {operation} on {address} needs credentials, got none that can be used ({words}). "
            "Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or log in again."
        )
    return StoreError(
        f"store: {operation} on {address} had no answer ({words}). "
        "Check the network and s3.endpoint or AWS_ENDPOINT_URL; then run again: it goes on where it was."
    )
