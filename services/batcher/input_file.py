"""Builds a batch's input file: a line for each member, in uid order, on disk and never whole in memory."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import BinaryIO

from services.batcher.batch_file import custom_id_of, encode_line
from services.batcher.job import Failure, Job
from services.batcher.object_store import ObjectMissing
from services.batcher.object_urls import ImageUrls
from services.batcher.store import Image, Store
from services.batcher.store_batches import BatchStore
from services.batcher.store_rows import Member

IMAGES_AT_ONCE = 8
BYTES_AT_ONCE = 8 * 1024 * 1024
"""Images fetched at once, and how large their lines may be together: this is what bounds the memory of a batch."""

IMAGE_MISSING = Failure("image_missing", "The image is no longer stored.")


class Unbuildable(Exception):
    """Some members' lines can't be built: they must leave before the batch is bought."""

    def __init__(self, jobs: Sequence[Job], failure: Failure) -> None:
        super().__init__(failure.message)
        self.jobs = jobs
        self.failure = failure


class InputFiles:
    """Builds input files in a folder of its own."""

    def __init__(self, store: Store, batches: BatchStore, urls: ImageUrls, folder: Path) -> None:
        self._store = store
        self._batches = batches
        self._urls = urls
        self._folder = folder

    async def build(self, batch_id: str, attempt: int) -> Path:
        """The path of the batch's file. Raises Unbuildable once every member was looked at."""
        path = self._folder / f"{batch_id}-{attempt}.jsonl"
        missing: list[Job] = []
        try:
            with await asyncio.to_thread(path.open, "wb") as file:
                async for members in self._groups(batch_id):
                    missing += await self._write(members, file)
            if missing:
                raise Unbuildable(missing, IMAGE_MISSING)
        except BaseException:
            # The next attempt builds under another name: an outage would fill the disk with halves.
            await asyncio.to_thread(path.unlink, missing_ok=True)
            raise
        return path

    async def _groups(self, batch_id: str) -> AsyncIterator[list[Member]]:
        group: list[Member] = []
        size_bytes = 0
        async for member in self._batches.members(batch_id):
            size_bytes += member.job.line_bytes
            if len(group) == IMAGES_AT_ONCE or (group and size_bytes > BYTES_AT_ONCE):
                yield group
                group, size_bytes = [], member.job.line_bytes
            group.append(member)
        if group:
            yield group

    async def _write(self, members: Sequence[Member], file: BinaryIO) -> list[Job]:
        """Writes the lines of a few members, whose images are fetched at once; gives those whose image is gone."""
        keys = [(member.job.account_id, member.order.image_ids[0]) for member in members]
        images = await self._store.images(keys)
        urls = await asyncio.gather(*(self._url(images.get(key)) for key in keys))
        await asyncio.to_thread(_write_lines, file, members, urls)
        return [member.job for member, url in zip(members, urls, strict=True) if url is None]

    async def _url(self, image: Image | None) -> str | None:
        try:
            return await self._urls.url_of(image)
        except ObjectMissing:
            return None


def _write_lines(file: BinaryIO, members: Sequence[Member], urls: Sequence[str | None]) -> None:
    for member, url in zip(members, urls, strict=True):
        if url is not None:
            file.write(_line(member, url))


def _line(member: Member, url: str) -> bytes:
    job = member.job
    custom_id = custom_id_of(job.uid, job.attempt)
    return encode_line(custom_id, job.model, member.order.prompt, member.detail, member.max_output_tokens, url)
