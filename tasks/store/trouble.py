"""What an S3 server's refusals mean, and what to do about each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from everfresh.tasks.errors import AccessRefused, DigestMismatch, ObjectMissing, StoreError

WRONG = "Correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or the machine's role"
RENEW = "Renew them: log in again, or fetch a new session token"
FULL = "Free some, raise the quota, or let `everfresh sweep` remove debris; what was written stays and a rerun goes on"
REGION = "Set s3.region to the bucket's region"
LATER = "Wait, and run again: it goes on where it was"
CLOCK = "Set this machine's clock (NTP)"
FEATURE = "Update the store, or use one that can; `everfresh check` shows what it can do"

# Code: whether another try is in vain, what is the matter, what to do.
KNOWN: dict[str, tuple[bool, str, str]] = {
    "AccessDenied": (True, "the credentials have no right to do this", "Allow s3:GetObject, s3:PutObject, s3:DeleteObject, "
        "s3:AbortMultipartUpload on the prefix, s3:ListBucket, s3:ListBucketMultipartUploads on the bucket, and the use of the "
        "key where it is encrypted by one"),
    "AllAccessDisabled": (True, "the account is closed", "Ask its owner"),
    "InvalidAccessKeyId": (True, "the access key is not known there", WRONG),
    "SignatureDoesNotMatch": (True, "the secret key is not the right one", WRONG),
    "ExpiredToken": (True, "the credentials have expired", RENEW),
    "ExpiredTokenException": (True, "the credentials have expired", RENEW),
    "TokenRefreshRequired": (True, "the credentials have expired", RENEW),
    "InvalidToken": (True, "the session token is not valid", RENEW),
    "RequestTimeTooSkewed": (True, "the clocks differ by more than the store allows", CLOCK),
    "RequestExpired": (True, "the clocks differ by more than the store allows", CLOCK),
    "NoSuchBucket": (True, "there is no such bucket", "Create it, or correct the address"),
    "InvalidBucketName": (True, "this cannot be the name of a bucket", "Correct the address"),
    "PermanentRedirect": (True, "the bucket is in another region", REGION),
    "AuthorizationHeaderMalformed": (True, "the bucket is in another region", REGION),
    "IllegalLocationConstraintException": (True, "the bucket is in another region", REGION),
    "KeyTooLongError": (True, "the key is longer than the store allows", "Shorten the prefix or the names in the source"),
    "InvalidObjectState": (True, "the object is in an archive tier", "Restore it first"),
    "MethodNotAllowed": (True, "the store does not offer this, or the object is read-only", FEATURE),
    "NotImplemented": (True, "the store does not offer this", FEATURE),
    "QuotaExceeded": (True, "the quota is used up", FULL),
    "QuotaExceededException": (True, "the quota is used up", FULL),
    "InsufficientCapacity": (True, "there is no space left", FULL),
    "InsufficientStorage": (True, "there is no space left", FULL),
    "XMinioStorageFull": (True, "there is no space left", FULL),
    "507": (True, "there is no space left", FULL),
    "KMS.NotFoundException": (True, "the key is not there", "Correct s3.kms_key"),
    "KMS.DisabledException": (True, "the key is disabled", "Enable it"),
    "SecondLevelDomainForbidden": (True, "the store wants the bucket in the host's name", "Set s3.addressing to virtual"),
    "InvalidRequest": (True, "the store wants it otherwise", "With object lock, set s3.verify to checksum"),
    "400": (True, "the credentials may have expired", "Renew them, check s3.region and s3.endpoint"),
    "EntityTooLarge": (True, "the object is larger than the store allows", FEATURE),
    "SlowDown": (False, "the store is busy", LATER),
    "ServiceUnavailable": (False, "the store is busy", LATER),
    "503": (False, "the store is busy", LATER),
    "TooManyRequests": (False, "the store is busy", LATER),
    "429": (False, "the store is busy", LATER),
    "InternalError": (False, "the store has failed", LATER),
    "500": (False, "the store has failed", LATER),
    "RequestTimeout": (False, "the connection was too slow", LATER),
}  # fmt: skip
KNOWN["403"] = KNOWN["Forbidden"] = KNOWN["AccessDenied"]
KNOWN["301"] = KNOWN["PermanentRedirect"]
OTHER = (
    False,
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
    final, matter, remedy = KNOWN.get(code, OTHER)
    return (AccessRefused if final else StoreError)(
        f"store: {operation} on {address} was refused ({code}): {matter}. {remedy}."
    )


def without_user(words: str) -> str:
    """The words with the user and password of every address in them left out."""
    return re.sub(r"://[^/@\s]+@", "://…@", words)


def unreachable(operation: str, address: str, error: Exception) -> StoreError:
    """The error where no answer came."""
    kind, words = type(error).__name__, without_user(" ".join(str(error).split()).rstrip("."))
    if any(part in kind for part in CREDENTIALS):
        return AccessRefused(
            f"store: {operation} on {address} needs credentials, got none that can be used ({words}). "
            "Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or log in again."
        )
    return StoreError(
        f"store: {operation} on {address} had no answer ({words}). "
        "Check the network and s3.endpoint or AWS_ENDPOINT_URL; then run again: it goes on where it was."
    )
