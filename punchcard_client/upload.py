"""Uploading an image, given as bytes or as a file."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc
from grpc import aio

from punchcard.batcher.v1 import batcher_pb2
from punchcard_client.backoff import Backoff, BackoffPolicy
from punchcard_client.errors import retry_seconds_of

if TYPE_CHECKING:
    from punchcard.batcher.v1.batcher_pb2_grpc import BatcherServiceAsyncStub

CHUNK_BYTES: Final = 256 * 1024
TRIES_MAX: Final = 4


async def upload_image(
    stub: BatcherServiceAsyncStub, account_id: str, image: bytes | str | Path, *, tries_max: int = TRIES_MAX
) -> batcher_pb2.Image:
    """Stores an image for an account; its content is the key, so that a second upload changes nothing.

    image: the bytes of a JPEG, PNG, WEBP or GIF, up to 20 MiB, or the path of one. An upload is too large for gRPC's
    own retries, so it is sent again from here while the service is UNAVAILABLE or busy, `tries_max` times in all.
    Raises AioRpcError.
    """
    content = image if isinstance(image, bytes) else await asyncio.to_thread(Path(image).read_bytes)
    spec = batcher_pb2.ImageSpec(
        account_id=account_id, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content)
    )
    waits = Backoff(BackoffPolicy())
    for tries_left in reversed(range(tries_max)):
        try:
            answer = await stub.UploadImage(_parts(spec, content))
        except aio.AioRpcError as error:
            asked_seconds = retry_seconds_of(error)
            if not _may_pass(error.code(), asked_seconds) or tries_left == 0:
                raise
            await asyncio.sleep(waits.failed(0.0, asked_seconds or 0.0) or 0.0)
        else:
            return answer.image
    raise ValueError("tries_max must be at least 1")


def _may_pass(code: grpc.StatusCode, asked_seconds: float | None) -> bool:
    """Whether the same upload may fare better later. A busy service says when; a message that is too large does not."""
    busy = code is grpc.StatusCode.RESOURCE_EXHAUSTED and asked_seconds is not None
    return busy or code is grpc.StatusCode.UNAVAILABLE


async def _parts(spec: batcher_pb2.ImageSpec, content: bytes) -> AsyncIterator[batcher_pb2.UploadImageRequest]:
    yield batcher_pb2.UploadImageRequest(spec=spec)
    for offset in range(0, len(content), CHUNK_BYTES):
        chunk = batcher_pb2.ImageChunk(data=content[offset : offset + CHUNK_BYTES], offset=offset)
        yield batcher_pb2.UploadImageRequest(chunk=chunk)
