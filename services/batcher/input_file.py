"""Builds a batch's input file: a line for each member, in uid order, on disk and never whole in memory."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import BinaryIO, TypeAlias

from services.batcher.batch_file import Inline, custom_id_of, encode_line
from services.batcher.job import Failure, Job
from services.batcher.object_store import ObjectMissing
from services.batcher.object_urls import ImageUrls
from services.batcher.store import Store
from services.batcher.store_batches import BatchStore
from services.batcher.store_reads import Image
from services.batcher.store_rows import Member

LINES_AT_ONCE = 32
BYTES_AT_ONCE = 8 * 1024 * 1024
"""Lines written at once, and how large they may be together unless it is one: this bounds the memory of a batch."""

IMAGE_MISSING = Failure("image_missing", "The image is no longer stored.")


Sources: TypeAlias = dict[tuple[str, str], str | Inline | None]
"""How images reach the provider, by account and id."""


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
                sources: Sources = {}
                async for members in self._groups(batch_id):
                    # Neighbours often ask about the same image, which then is fetched once.
                    sources = await self._fetch(members, sources)
                    missing += await asyncio.to_thread(_write_lines, file, members, sources)
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
            if len(group) == LINES_AT_ONCE or (group and size_bytes > BYTES_AT_ONCE):
                yield group
                group, size_bytes = [], member.job.line_bytes
            group.append(member)
        if group:
            yield group

    async def _fetch(self, members: Sequence[Member], known: Sources) -> Sources:
        """The images of a few members, fetched at once but for those that are known; None where one is gone."""
        wanted = {_key_of(member) for member in members}
        new = sorted(wanted - known.keys())
        images = await self._store.images(new) if new else {}
        fetched = await asyncio.gather(*(self._source(images.get(key)) for key in new))
        return {key: known[key] for key in wanted & known.keys()} | dict(zip(new, fetched, strict=True))

    async def _source(self, image: Image | None) -> str | Inline | None:
        try:
            return await self._urls.source_of(image)
        except ObjectMissing:
            return None


def _key_of(member: Member) -> tuple[str, str]:
    return member.job.account_id, member.order.image_ids[0]


def _write_lines(file: BinaryIO, members: Sequence[Member], sources: Sources) -> list[Job]:
    """Writes the lines of members; gives those whose image is gone."""
    missing: list[Job] = []
    for member in members:
        source, job = sources[_key_of(member)], member.job
        if source is None:
            missing.append(job)
            continue
        custom_id, prompt = custom_id_of(job.uid, job.attempt), member.order.prompt
        file.writelines(encode_line(custom_id, job.model, prompt, member.detail, member.max_output_tokens, source))
    return missing
