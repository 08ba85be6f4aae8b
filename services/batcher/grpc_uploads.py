"""Images on their way in: received in order, checked in a thread, stored under the hash of the bytes as sent."""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator
from typing import Final, NamedTuple

from punchcard.batcher.v1 import batcher_pb2
from services.batcher import image as images
from services.batcher.errors import ChecksumMismatch, ImageTooLarge
from services.batcher.grpc_messages import is_image_id
from services.batcher.object_store import ObjectStore, image_key
from services.batcher.store import Store
from services.batcher.store_reads import Image
from services.chassis.errors import ServerBusy
from services.chassis.fields import Checks

CHUNK_BYTES_MAX: Final = 1024 * 1024
UPLOADS_MAX: Final = 64
"""Uploads at once; each may hold a whole image in memory."""


READ_OUT_BYTES_MAX: Final = 32 * 1024 * 1024
READ_OUT_SECONDS: Final = 5.0


class Received(NamedTuple):
    """An upload that is complete."""

    account_id: str
    sha256: str
    data: bytes


async def read_out(parts: AsyncIterator[batcher_pb2.UploadImageRequest]) -> None:
    """Reads what a refused client is still sending, and forgets it.

    A client whose write fails reports that, and may never look at the refusal that caused it.
    """
    left_bytes = READ_OUT_BYTES_MAX
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(READ_OUT_SECONDS):
            async for part in parts:
                left_bytes -= part.ByteSize()
                if left_bytes <= 0:
                    return


class Uploads:
    """Receives and stores images. decodes_max: how many are decoded at once."""

    def __init__(self, store: Store, objects: ObjectStore, limits: images.Limits, decodes_max: int) -> None:
        self._store = store
        self._objects = objects
        self._limits = limits
        self._decodes = asyncio.Semaphore(decodes_max)
        self._uploads = 0

    async def receive(
        self, spec: batcher_pb2.ImageSpec, parts: AsyncIterator[batcher_pb2.UploadImageRequest]
    ) -> Received:
        """The bytes that follow a spec. Raises InvalidField, ImageTooLarge, ServerBusy."""
        self._check_spec(spec)
        if self._uploads >= UPLOADS_MAX:
            raise ServerBusy(UPLOADS_MAX)
        self._uploads += 1
        try:
            data = bytearray()
            async for part in parts:
                self._check_chunk(part, len(data))
                data += part.chunk.data
                self._check_size(len(data))
        finally:
            self._uploads -= 1
        if spec.HasField("size_bytes") and spec.size_bytes != len(data):
            checks = Checks()
            checks.fail("spec.size_bytes", spec.size_bytes, f"is not the size of the {len(data)} bytes received")
            checks.done()
        return Received(spec.account_id, spec.sha256, bytes(data))

    async def keep(self, received: Received) -> tuple[Image, bool]:
        """Stores a complete upload, as `store`: its bytes count among those at once until they are stored."""
        self._uploads += 1
        try:
            return await self.store(received.account_id, received.data, received.sha256)
        finally:
            self._uploads -= 1

    async def store(self, account_id: str, data: bytes, expected_sha256: str = "") -> tuple[Image, bool]:
        """Checks and stores an image; gives its row and whether the account had it before. Raises ImageUnreadable,
        ImageTooLarge, ChecksumMismatch.
        """
        async with self._decodes:
            checked = await asyncio.to_thread(self._inspect, data, expected_sha256)
        key = (account_id, checked.image_id)
        known = (await self._store.images([key])).get(key)
        if known is not None:
            return known, True
        object_key = image_key(account_id, checked.image_id)
        # The object first: a row without its object would be an image that nobody can look at.
        await self._objects.put(object_key, checked.data, checked.media_type)
        image = Image(
            account_id,
            checked.image_id,
            checked.media_type,
            checked.width_pixels,
            checked.height_pixels,
            len(checked.data),
            object_key,
            time.time_ns() // 1000,
        )
        return await self._store.add_image(image), False

    def _inspect(self, data: bytes, expected_sha256: str) -> images.CheckedImage:
        received_sha256 = hashlib.sha256(data).hexdigest()
        if expected_sha256 and expected_sha256 != received_sha256:
            raise ChecksumMismatch(expected_sha256, received_sha256)
        return images.inspect(data, self._limits)

    def _check_spec(self, spec: batcher_pb2.ImageSpec) -> None:
        checks = Checks()
        if not is_image_id(spec.sha256):
            checks.fail("spec.sha256", spec.sha256, "must be 64 hexadecimal digits in small letters")
        if spec.HasField("size_bytes") and spec.size_bytes <= 0:
            checks.fail("spec.size_bytes", spec.size_bytes, "must be at least 1")
        checks.done()
        if spec.HasField("size_bytes"):
            self._check_size(spec.size_bytes)

    def _check_chunk(self, part: batcher_pb2.UploadImageRequest, received_bytes: int) -> None:
        checks = Checks()
        if part.WhichOneof("part") != "chunk":
            checks.fail("part", part.WhichOneof("part"), "must be a chunk after the first message")
        checks.number("chunk.data", len(part.chunk.data), 0, CHUNK_BYTES_MAX)
        if part.chunk.HasField("offset") and part.chunk.offset != received_bytes:
            checks.fail("chunk.offset", part.chunk.offset, f"must be {received_bytes}, as so many bytes came before")
        checks.done()

    def _check_size(self, size_bytes: int) -> None:
        limit_bytes = self._limits.size_bytes_max
        if size_bytes > limit_bytes:
            raise ImageTooLarge(size_bytes=size_bytes, limit_bytes=limit_bytes)
