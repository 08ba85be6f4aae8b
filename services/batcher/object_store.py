"""The object store: images and batch files in a bucket of any S3, through the `minio` client.

    images/<2 digits>/<account_id>/<image_id>                       an image as stored
    batches/<batch_id>/<attempt>/{input,output,error}.jsonl         what a batch sent and got

The client is synchronous, so each call runs in a thread of a bounded pool of its own, with a timeout on the wire. It is
tried a second time over a fresh connection, as the server may close an idle one; a third try is up to the caller.

An absent object is ObjectMissing, which ends a job, and is said only when the bucket is there and the object is not.
All else is StoreUnavailable, with the cause in its detail: what patience mends (no connection, a timeout, 5xx) and what
it does not (a wrong key, a bucket gone), since no request is to blame for either.
"""

import asyncio
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import urllib3
from minio import Minio
from minio.error import InvalidResponseError, MinioException, S3Error
from urllib3.exceptions import HTTPError

from services.chassis.errors import StoreUnavailable

CHUNK_BYTES = 1024 * 1024
TRIES_MAX = 2
CONNECT_TIMEOUT_SECONDS_MAX = 5.0
PART_BYTES = 16 * 1024 * 1024
PRESIGNED_SECONDS_MAX = 7 * 24 * 3600
MISSING_CODES = frozenset({"NoSuchKey", "NoSuchObject"})
OWNED_CODES = frozenset({"BucketAlreadyOwnedByYou", "BucketAlreadyExists"})

Answer = TypeVar("Answer")


class ObjectMissing(KeyError):
    """There is no object of this key."""


def image_key(account_id: str, image_id: str) -> str:
    """Where an account's image lies. The two digits of a hash spread accounts over prefixes, which S3 scales by."""
    spread = hashlib.sha256(account_id.encode()).hexdigest()[:2]
    return f"images/{spread}/{account_id}/{image_id}"


def batch_key(batch_id: str, attempt: int, part: str) -> str:
    """Where a file of a batch lies. part: input, output or error."""
    return f"batches/{batch_id}/{attempt}/{part}.jsonl"


class ObjectStore:
    """One bucket. endpoint: an http or https URL; public_endpoint: what outsiders reach it by, for presigned URLs."""

    def __init__(
        self,
        endpoint: str,
        access_key: str,
        secret_key: str,
        bucket: str,
        *,
        region: str = "us-east-1",
        public_endpoint: str | None = None,
        timeout_seconds: float = 30.0,
        concurrency: int = 16,
    ) -> None:
        self._bucket = bucket
        self._region = region
        self._http = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=min(timeout_seconds, CONNECT_TIMEOUT_SECONDS_MAX), read=timeout_seconds),
            maxsize=concurrency,
            retries=urllib3.Retry(total=TRIES_MAX - 1, redirect=0, allowed_methods=None),
        )
        self._client = _client(endpoint, access_key, secret_key, region, self._http)
        self._public = _client(public_endpoint or endpoint, access_key, secret_key, region, self._http)
        self._threads = ThreadPoolExecutor(concurrency, "object-store")

    async def ensure_bucket(self) -> None:
        """Makes the bucket unless it is there."""
        await self._run(self._make_bucket)

    async def reachable(self) -> bool:
        """Whether the store answers and has the bucket."""
        try:
            return await self._run(lambda: self._client.bucket_exists(self._bucket))
        except StoreUnavailable:
            return False

    async def put(self, key: str, data: bytes, media_type: str = "application/octet-stream") -> None:
        """Stores bytes under a key, whole or not at all; what was there is replaced."""
        await self._run(
            lambda: self._client.put_object(self._bucket, key, BytesIO(data), len(data), content_type=media_type)
        )

    async def put_file(self, key: str, path: Path, media_type: str = "application/jsonl") -> None:
        """Stores a file under a key, sent in parts of 16 MiB, so that memory does not grow with it."""
        await self._run(lambda: self._send_file(key, path, media_type))

    async def get(self, key: str) -> bytes:
        """Reads an object whole. Raises ObjectMissing."""
        return await self._run(lambda: self._read(key), reads=key)

    async def stream_to_file(self, key: str, path: Path) -> int:
        """Copies an object into a file, which appears only when it is whole; answers its size in bytes."""
        return await self._run(lambda: self._copy(key, path), reads=key)

    async def exists(self, key: str) -> bool:
        """Whether there is an object of this key."""
        try:
            await self._run(lambda: self._client.stat_object(self._bucket, key), reads=key)
        except ObjectMissing:
            return False
        return True

    async def delete(self, key: str) -> None:
        """Removes an object; that it is gone already is fine."""
        await self._run(lambda: self._client.remove_object(self._bucket, key))

    def presigned_get(self, key: str, expires_seconds: int) -> str:
        """An address that anybody may read the object from, for that long (S3 allows seven days). Asks nobody."""
        expires = timedelta(seconds=min(expires_seconds, PRESIGNED_SECONDS_MAX))
        return self._public.presigned_get_object(self._bucket, key, expires)

    async def close(self) -> None:
        """Lets go of connections and threads, after the calls under way."""
        await asyncio.to_thread(self._threads.shutdown)
        self._http.clear()

    async def _run(self, call: Callable[[], Answer], reads: str = "") -> Answer:
        """Runs a call in the pool, and gives its errors their two names. reads: the key that it reads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._judged, call, reads)

    def _judged(self, call: Callable[[], Answer], reads: str) -> Answer:
        try:
            return call()
        except (MinioException, HTTPError) as error:
            # An answer that the client can't read may mean the same: rclone sends its errors as text/xml.
            may_be_missing = isinstance(error, InvalidResponseError) or getattr(error, "code", "") in MISSING_CODES
            if reads and may_be_missing and self._lacks(reads):
                raise ObjectMissing(reads) from error
            raise StoreUnavailable(f"object store: {error}") from error

    def _lacks(self, key: str) -> bool:
        """Whether the bucket is there and the object is not."""
        try:
            self._client.stat_object(self._bucket, key)
        except S3Error as error:
            return error.code in MISSING_CODES and self._is_bucket_there()
        except (MinioException, HTTPError):
            return False
        return False

    def _is_bucket_there(self) -> bool:
        try:
            return self._client.bucket_exists(self._bucket)
        except (MinioException, HTTPError):
            return False

    def _make_bucket(self) -> None:
        if self._client.bucket_exists(self._bucket):
            return
        try:
            self._client.make_bucket(self._bucket, self._region)
        except S3Error as error:
            # Another replica was faster between the two calls.
            if error.code not in OWNED_CODES:
                raise

    def _send_file(self, key: str, path: Path, media_type: str) -> None:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            self._client.put_object(
                self._bucket,
                key,
                file,
                size_bytes,
                content_type=media_type,
                part_size=PART_BYTES,
                num_parallel_uploads=1,
            )

    def _read(self, key: str) -> bytes:
        response = self._client.get_object(self._bucket, key)
        try:
            return bytes(response.read())
        finally:
            response.close()
            response.release_conn()

    def _copy(self, key: str, path: Path) -> int:
        size_bytes = 0
        partial = path.with_name(path.name + ".part")
        response = self._client.get_object(self._bucket, key)
        try:
            with partial.open("wb") as file:
                for chunk in response.stream(CHUNK_BYTES):
                    size_bytes += file.write(chunk)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
            response.close()
            response.release_conn()
        return size_bytes


def _client(endpoint: str, access_key: str, secret_key: str, region: str, http: urllib3.PoolManager) -> Minio:
    """A client of an endpoint. Given the region it need not ask the server for it: presigning works offline."""
    address = urlsplit(endpoint)
    if address.scheme not in ("http", "https") or not address.netloc or address.path.strip("/"):
        raise ValueError(f"an S3 endpoint is http(s)://host:port, not {endpoint!r}")
    return Minio(
        address.netloc,
        access_key=access_key,
        secret_key=secret_key,
        secure=address.scheme == "https",
        region=region,
        http_client=http,
    )
