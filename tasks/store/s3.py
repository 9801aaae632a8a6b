"""A store in an S3-compatible bucket. This is the only module that imports boto3."""

from __future__ import annotations

import hashlib
import os
import random
import re
import time
import uuid
import zlib
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everfresh.tasks.config import S3Config
from everfresh.tasks.errors import AccessRefused, ConfigError, DigestMismatch, ObjectMissing, StoreError
from everfresh.tasks.records import Part
from everfresh.tasks.store.base import CHUNK, HashingReader, Listed, Store, Unfinished, clean, file_digest, mismatch, undamaged
from everfresh.tasks.store.trouble import Conflict, Taken, refused, unreachable, without_user

if TYPE_CHECKING:
    from botocore.client import BaseClient

PART = 8 << 20
"""Bytes of one part of a large file; larger only where a file would have too many."""
MOST_PARTS = 9_000
"""S3 takes 10,000."""
CONFLICT_TRIES = 8
CONFLICT_PAUSE = 0.05
"""Seconds before the second try, give or take a half; doubled for each further one."""
TAGGED = {"put_object", "get_object", "head_object"}
"""Operations whose answer has an ETag on every S3 server."""
MD5 = re.compile(r"[0-9a-f]{32}")


class S3Store(Store):
    """Objects in an S3-compatible bucket; credentials come from boto3's own chain."""

    def __init__(self, bucket: str, prefix: str = "", settings: S3Config | None = None) -> None:
        self.bucket, self.prefix, self.settings = bucket, prefix, settings or S3Config()

    @property
    def _client(self) -> Any:
        return client(self.settings)

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{clean(key)}" if self.prefix else clean(key)

    def _call(self, operation: str, key: str, **arguments: Any) -> Any:
        arguments = {"Bucket": self.bucket, "Key": key, **arguments} if key else {"Bucket": self.bucket, **arguments}
        with self._speaking(operation, key or self.prefix):
            answer = getattr(self._client, operation)(**arguments)
        if operation in TAGGED and "ETag" not in answer:
            raise AccessRefused(
                f"store: what answers for s3://{self.bucket} must be an S3 server, got an answer without an ETag. "
                "Correct s3.endpoint or AWS_ENDPOINT_URL: a console or a proxy may stand there."
            )
        return answer

    @contextmanager
    def _speaking(self, operation: str, key: str) -> Iterator[None]:
        """Turn boto3's errors into ours."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError
        from s3transfer.exceptions import S3DownloadFailedError
        from urllib3.exceptions import HTTPError

        address = f"s3://{self.bucket}/{key}"
        try:
            yield
        except ClientError as error:
            raise refused(operation, address, error.response) from error
        except (BotoCoreError, Boto3Error, S3DownloadFailedError, HTTPError) as error:  # a refusal may break off, too
            raise unreachable(operation, address, error) from (None if "@" in str(error) else error)

    def get(self, key: str) -> bytes:
        before: bytes | None = None
        for _ in range(self._tries):
            answer = self._call("get_object", self._key(key))
            try:
                with self._speaking("get_object", self._key(key)):
                    data: bytes = answer["Body"].read()
            except StoreError as error:  # the connection broke in the middle; boto3 tries again only before that
                trouble: StoreError = error
                continue
            if _fits(answer, data) or (data == before and not self._tags_are_md5()):
                return data
            before = data
            trouble = self._damaged(key)
        raise trouble

    @property
    def _tries(self) -> int:
        return max(2, self.settings.max_attempts)

    def put(self, key: str, data: bytes) -> None:
        undamaged(lambda: self._call("put_object", self._key(key), Body=data, **self._whole(data)))

    def create(self, key: str, data: bytes) -> bool:
        for attempt in range(CONFLICT_TRIES):
            try:
                undamaged(lambda: self._call("put_object", self._key(key), Body=data, IfNoneMatch="*", **self._whole(data)))
            except Taken:
                return self.get(key) == data  # also the second try after a reply that was lost
            except Conflict:  # two wrote at once and this one was told to come back: it may still win
                if attempt + 1 == CONFLICT_TRIES:
                    raise
                time.sleep(CONFLICT_PAUSE * 2**attempt * random.uniform(0.5, 1.5))
            else:
                break
        return True

    def put_file(self, key: str, path: Path) -> Part:
        size = path.stat().st_size
        with path.open("rb") as file, self._speaking("upload", self._key(key)):
            reader = HashingReader(file)
            if size < PART:
                self.put(key, reader.read())
            else:
                self._client.upload_fileobj(
                    reader, self.bucket, self._key(key), ExtraArgs=self._written_with(), Config=self._transfer(size)
                )
        return reader.part(key)

    def verify(self, part: Part) -> None:
        if self.settings.verify == "read_back":
            self._compare(part)  # what differs was damaged on its way there, more likely than on its way back
            return
        size = self._call("head_object", self._key(part.key))["ContentLength"]  # the server has checked each part's CRC
        if size != part.size:
            raise DigestMismatch(f"store: {self.url(part.key)} must have {part.size} bytes, got {size}. Run again.")

    def prove(self, part: Part) -> None:
        undamaged(lambda: self._compare(part))

    def _compare(self, part: Part) -> None:
        """Read all of the part's bytes once and compare them with its digest."""
        for attempt in range(self._tries):
            digest = hashlib.sha256()
            answer = self._call("get_object", self._key(part.key))
            try:
                with self._speaking("get_object", self._key(part.key)):
                    for chunk in answer["Body"].iter_chunks(CHUNK):
                        digest.update(chunk)
            except StoreError:  # the connection broke in the middle
                if attempt + 1 == self._tries:
                    raise
                continue
            if (found := digest.hexdigest()) != part.sha256:
                raise DigestMismatch(mismatch(self.url(part.key), part.sha256, found))
            return

    def prove_checksum(self, key: str) -> str:
        if self.settings.verify == "checksum":
            kind, other, refuses = "CRC-32", "read_back", self._refuses_crc(key)
        else:
            wrong = b64encode(_md5(b"other").digest()).decode()
            kind, other, refuses = "MD5", "checksum", self._refuses("put_object", key, **self._encrypted(), ContentMD5=wrong)
        if not refuses:
            raise StoreError(
                f"s3.verify must be {other} at {self.url('')}, got {self.settings.verify}: bytes with a wrong {kind} are "
                f"taken. Set s3.verify to {other}."
            )
        return f"bytes with a wrong {kind} are refused"

    def _refuses_crc(self, key: str) -> bool:
        """Whether a wrong CRC-32 is refused, in a write at once and in one by parts."""
        wrong = b64encode(zlib.crc32(b"other").to_bytes(4)).decode()
        begun = self._call("create_multipart_upload", self._key(key), **self._written_with())["UploadId"]
        try:
            return self._refuses("put_object", key, **self._encrypted(), ChecksumCRC32=wrong) and self._refuses(
                "upload_part", key, UploadId=begun, PartNumber=1, ChecksumCRC32=wrong
            )
        finally:
            self._call("abort_multipart_upload", self._key(key), UploadId=begun)

    def _refuses(self, operation: str, key: str, **wrong: Any) -> bool:
        """Whether damaged bytes are refused as such."""
        try:
            self._call(operation, self._key(key), Body=b"these", **wrong)
        except DigestMismatch:
            return True
        return False

    def fetch(self, key: str, target: Path) -> None:
        before = ""
        trouble: StoreError = self._damaged(key)
        for _ in range(self._tries):
            head = self._call("head_object", self._key(key))
            try:
                self.download(key, target)
            except (AccessRefused, ObjectMissing):
                raise
            except StoreError as error:  # it was written over meanwhile, or the connection broke
                trouble = error
                continue
            found = file_digest(target)
            if self._fits_file(key, head, target) or (found == before and not self._tags_are_md5()):
                return
            before = found
        raise trouble

    def _damaged(self, key: str) -> DigestMismatch:
        return DigestMismatch(
            f"store: {self.url(key)} must have the MD5 that the store tells of it, got other bytes each time: they are damaged "
            "there or on their way. Check the network between here and it, or restore it from a copy."
        )

    def _tags_are_md5(self) -> bool:
        """Whether ETags that look like an MD5 are one here, found out by writing an object; so, where that is not allowed.

        On a server whose ETags are something else, bytes that are read twice alike are taken for what stands there.
        """
        place = (self._client, self.bucket)
        if place not in _tags:
            key = self._key(f"probe-{uuid.uuid4().hex[:12]}")
            _tags[place] = True
            with suppress(AccessRefused):
                _tags[place] = _fits(self._call("put_object", key, Body=b"probe", **self._encrypted()), b"probe")
                self._call("delete_object", key)
        return _tags[place]

    def _fits_file(self, key: str, head: Any, path: Path) -> bool:
        """As ``_fits``; the ETag of an object that came in parts is the MD5 of their MD5s."""
        etag, _, parts = str(head["ETag"]).strip('"').partition("-")
        if not MD5.fullmatch(etag) or _by_kms(head):
            return True
        with path.open("rb") as file:
            if not parts:
                return hashlib.file_digest(file, _md5).hexdigest() == etag
            try:
                step = self._call("head_object", self._key(key), PartNumber=1)["ContentLength"]
            except StoreError:
                return True  # a server that does not tell
            if not step or -(-head["ContentLength"] // step) != int(parts):
                return True  # parts of several sizes
            digests = _md5()
            for _ in range(int(parts)):
                digest, left = _md5(), step
                while left and (chunk := file.read(min(left, CHUNK))):
                    digest.update(chunk)
                    left -= len(chunk)
                digests.update(digest.digest())
        return digests.hexdigest() == etag

    def download(self, key: str, target: Path) -> None:
        try:
            with self._speaking("download", self._key(key)):
                self._client.download_file(self.bucket, self._key(key), str(target), Config=self._transfer(0))
        except OSError as error:
            raise StoreError(
                f"store: {self.url(key)} cannot be written to {target.parent} ({error.strerror or error}). "
                "Make room there, or set EVERFRESH_CACHE, or TMPDIR, to a disk that has some."
            ) from error

    def _whole(self, data: bytes) -> dict[str, str]:
        """Arguments of a write at once, with which the server refuses bytes that were damaged on their way."""
        if self.settings.verify == "checksum":
            return self._written_with()
        digest = b64encode(_md5(data).digest()).decode()  # the oldest of them, known to all stores
        return {**self._written_with(), "ContentMD5": digest}

    def _written_with(self) -> dict[str, str]:
        return {**self._encrypted(), **({"ChecksumAlgorithm": "CRC32"} if self.settings.verify == "checksum" else {})}

    def _encrypted(self) -> dict[str, str]:
        arguments = {"ServerSideEncryption": self.settings.encryption, "SSEKMSKeyId": self.settings.kms_key}
        return {name: value for name, value in arguments.items() if value is not None}

    def _transfer(self, size: int) -> Any:
        from boto3.s3.transfer import TransferConfig

        part = max(PART, -(-size // MOST_PARTS))
        config = TransferConfig(
            multipart_threshold=part,
            multipart_chunksize=part,
            max_concurrency=self.settings.threads,
            num_download_attempts=2,  # each of them is tried `max_attempts` times
        )
        config.max_in_memory_upload_chunks = self.settings.threads
        return config

    def exists(self, key: str) -> bool:
        try:
            self._call("head_object", self._key(key))
        except ObjectMissing:
            return False
        return True

    def list(self, prefix: str = "", after: str = "") -> Iterator[Listed]:
        root, start = self._start(prefix)
        arguments: dict[str, Any] = {"Prefix": start}
        if after:
            arguments["StartAfter"] = root + after
        yield from sorted(self._pages(root, arguments), key=lambda item: item.key)  # not every server sorts whole keys

    def folders(self) -> tuple[str, ...]:
        root, start = self._start("")
        found: list[str] = []
        arguments: dict[str, Any] = {"Prefix": start, "Delimiter": "/"}
        while True:
            page = self._call("list_objects_v2", "", **arguments)
            found += [each["Prefix"].removeprefix(root).rstrip("/") for each in page.get("CommonPrefixes", ())]
            if not page.get("IsTruncated"):
                return tuple(sorted(name for name in found if name and not name.startswith(".")))
            arguments["ContinuationToken"] = page["NextContinuationToken"]

    def _start(self, prefix: str) -> tuple[str, str]:
        """What all keys of the store begin with, and what those under a prefix do."""
        root = f"{self.prefix}/" if self.prefix else ""
        return root, f"{root}{clean(prefix)}/" if prefix else root

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

    def unfinished(self) -> Iterator[Unfinished]:
        root, start = self._start("")
        with self._speaking("list_multipart_uploads", start):
            for page in self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=start):
                for item in page.get("Uploads", ()):
                    if item["Key"].startswith(start):  # not every server filters
                        began = item["Initiated"].astimezone(UTC)
                        yield Unfinished(item["Key"].removeprefix(root), item["UploadId"], 0, began)

    def discard(self, item: Unfinished) -> None:
        with suppress(ObjectMissing):  # it has ended meanwhile
            self._call("abort_multipart_upload", self._key(item.key), UploadId=item.version)

    def now(self) -> datetime:
        from email.utils import parsedate_to_datetime

        headers = self._call("list_objects_v2", "", Prefix=self._start("")[1], MaxKeys=1)["ResponseMetadata"]["HTTPHeaders"]
        return parsedate_to_datetime(headers["date"]).astimezone(UTC) if "date" in headers else datetime.now(UTC)

    def sub(self, prefix: str) -> S3Store:
        return S3Store(self.bucket, self._key(prefix), self.settings)

    @property
    def identity(self) -> object:
        return self.url(""), self.settings

    def url(self, key: str) -> str:
        return f"s3://{self.bucket}/{self._key(key) if key else self.prefix}"


def _fits(answer: Any, data: bytes) -> bool:
    """Whether the bytes are those of the ETag, where that can be told: an object written at once has its MD5."""
    etag = str(answer.get("ETag", "")).strip('"')
    return not MD5.fullmatch(etag) or _by_kms(answer) or _md5(data).hexdigest() == etag


def _by_kms(answer: Any) -> bool:
    """Whether it is encrypted so that its ETag is no MD5."""
    return "kms" in str(answer.get("ServerSideEncryption", ""))


_tags: dict[tuple[Any, str], bool] = {}
"""Whether ETags are MD5s, by client and bucket."""
_md5 = partial(hashlib.md5, usedforsecurity=False)


@cache
def client(settings: S3Config) -> BaseClient:
    """The process's S3 client for these settings.

    Raises:
        ConfigError: boto3 cannot make anything of the endpoint or the profile.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    def made(addressing: str) -> Any:
        style: dict[str, Any] = {"addressing_style": addressing}
        if settings.verify == "checksum":
            style["payload_signing_enabled"] = False  # a CRC goes with each part; over plain http it would be hashed besides
        config = Config(
            retries={"mode": "standard", "total_max_attempts": settings.max_attempts},
            connect_timeout=settings.connect_timeout,
            read_timeout=settings.read_timeout,
            max_pool_connections=max(10, settings.threads),
            s3=style,
            # The newer default breaks stores that do not know it; where `verify` is `checksum`, each write asks for it.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        return boto3.client("s3", endpoint_url=settings.endpoint, region_name=settings.region, config=config)

    try:
        found = made(settings.addressing or "auto")
        if settings.addressing is None and ".amazonaws.com" not in found.meta.endpoint_url:
            found.close()
            found = made("path")
    except (ValueError, BotoCoreError) as error:
        raise ConfigError(
            f"s3: endpoint, region and profile must be ones that boto3 knows, got: {without_user(str(error))}. "
            "Correct s3.endpoint, s3.region, or AWS_ENDPOINT_URL, AWS_REGION and AWS_PROFILE in the environment."
        ) from None
    return found


os.register_at_fork(after_in_child=client.cache_clear)  # a child that used its parent's connections would read its answers
