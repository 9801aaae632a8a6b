"""A store in an S3-compatible bucket. This is the only module that imports boto3."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everfresh.tasks.errors import AccessRefused, ObjectMissing, StoreError
from everfresh.tasks.store.base import Listed, Store, clean

if TYPE_CHECKING:
    from botocore.client import BaseClient

REFUSED = {"AccessDenied", "403", "InvalidObjectState", "KeyTooLongError", "InvalidAccessKeyId", "SignatureDoesNotMatch"}
"""Codes that another try does not change."""
CONFLICT_TRIES = 8
CONFLICT_PAUSE = 0.05
"""Seconds before the second try; doubled for each further one."""


class _Conflict(StoreError):
    """Another conditional write to the same key was under way."""


class S3Store(Store):
    """Objects in an S3-compatible bucket. Endpoint, region and credentials come from boto3's own chain."""

    def __init__(self, bucket: str, prefix: str = "") -> None:
        self.bucket = bucket
        self.prefix = prefix

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{clean(key)}" if self.prefix else clean(key)

    def _call(self, operation: str, key: str, **arguments: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        arguments = {"Bucket": self.bucket, "Key": key, **arguments} if key else {"Bucket": self.bucket, **arguments}
        try:
            return getattr(client(), operation)(**arguments)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in {"NoSuchKey", "404", "NotFound"}:
                raise ObjectMissing(f"s3://{self.bucket}/{key} does not exist.") from None
            if code in {"PreconditionFailed", "412"}:
                raise FileExistsError(key) from None
            if code in {"ConditionalRequestConflict", "409"}:
                raise _Conflict(
                    f"store: {operation} on s3://{self.bucket}/{key} met another writer again and again ({code})."
                ) from None
            raise (AccessRefused if code in REFUSED else StoreError)(
                f"store: {operation} on s3://{self.bucket}/{key} was refused ({code}). "
                "Check the bucket's name, the credentials and their rights, and AWS_ENDPOINT_URL."
            ) from error
        except BotoCoreError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> StoreError:
        return StoreError(
            f"store: s3://{self.bucket} cannot be reached ({error}). Check the network, AWS_ENDPOINT_URL and the credentials."
        )

    def get(self, key: str) -> bytes:
        from botocore.exceptions import BotoCoreError

        try:
            body: bytes = self._call("get_object", self._key(key))["Body"].read()
        except BotoCoreError as error:
            raise self._unreachable(error) from error
        return body

    def put(self, key: str, data: bytes) -> None:
        self._call("put_object", self._key(key), Body=data)

    def create(self, key: str, data: bytes) -> bool:
        for attempt in range(CONFLICT_TRIES):
            try:
                self._call("put_object", self._key(key), Body=data, IfNoneMatch="*")
            except FileExistsError:
                return False
            except _Conflict:  # two wrote at once and this one was told to come back: it may still win
                if attempt + 1 == CONFLICT_TRIES:
                    raise
                time.sleep(CONFLICT_PAUSE * 2**attempt)
            else:
                break
        return True

    def put_file(self, key: str, path: Path) -> None:
        self._transfer("upload_file", str(path), self._key(key))

    def fetch(self, key: str, target: Path) -> None:
        if not self.exists(key):
            raise ObjectMissing(f"{self.url(key)} does not exist.")
        self._transfer("download_file", self._key(key), str(target))

    def _transfer(self, operation: str, first: str, second: str) -> None:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        order = (first, self.bucket, second) if operation == "upload_file" else (self.bucket, first, second)
        try:
            getattr(client(), operation)(*order)
        except (Boto3Error, BotoCoreError, ClientError) as error:
            raise StoreError(
                f"store: {operation} of {first} failed ({error}). Check the network and the credentials."
            ) from error

    def exists(self, key: str) -> bool:
        try:
            self._call("head_object", self._key(key))
        except ObjectMissing:
            return False
        return True

    def list(self, prefix: str = "", after: str = "") -> Iterator[Listed]:
        root = f"{self.prefix}/" if self.prefix else ""
        start = f"{root}{clean(prefix)}/" if prefix else root
        arguments: dict[str, Any] = {"Prefix": start}
        if after:
            arguments["StartAfter"] = root + after
        yield from sorted(self._pages(root, arguments), key=lambda item: item.key)  # not every server sorts whole keys

    def _pages(self, root: str, arguments: dict[str, Any]) -> Iterator[Listed]:
        while True:
            page = self._call("list_objects_v2", "", **arguments)
            for item in page.get("Contents", ()):
                key = item["Key"].removeprefix(root)
                if not any(part.startswith(".") for part in key.split("/")) and not key.endswith("/"):
                    yield Listed(key, item["ETag"].strip('"'), item["Size"], item["LastModified"].astimezone(UTC))
            if not page.get("IsTruncated"):
                return
            arguments["ContinuationToken"] = page["NextContinuationToken"]

    def delete(self, key: str) -> None:
        self._call("delete_object", self._key(key))

    def now(self) -> datetime:
        from email.utils import parsedate_to_datetime

        headers = self._call("list_objects_v2", "", MaxKeys=1)["ResponseMetadata"]["HTTPHeaders"]
        return parsedate_to_datetime(headers["date"]).astimezone(UTC) if "date" in headers else datetime.now(UTC)

    def sub(self, prefix: str) -> S3Store:
        return S3Store(self.bucket, self._key(prefix))

    def url(self, key: str) -> str:
        return f"s3://{self.bucket}/{self._key(key) if key else self.prefix}"


@cache
def client() -> BaseClient:
    """The process's S3 client."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        config=Config(
            retries={"mode": "standard", "max_attempts": 5},
            connect_timeout=10,
            read_timeout=60,
            max_pool_connections=16,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
