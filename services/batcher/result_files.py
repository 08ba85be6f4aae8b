"""A batch's result files: kept in the object store, and their lines applied to the jobs that they name."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from prometheus_client import Counter

from services.batcher.batch import Batch
from services.batcher.batch_file import LineResult, parse_result_line, split_custom_id
from services.batcher.job import Answer, Failure, Limits
from services.batcher.object_store import ObjectStore, batch_key
from services.batcher.openai_api import OpenAIApi, ProviderBatch, ProviderError
from services.batcher.outcome import Action, Row
from services.batcher.store_batches import LINES_MAX, BatchStore, Loss, Result
from services.chassis import logs
from services.chassis.leases import Lease

PARTS = ("output", "error")
PAGE_BYTES = 4 * 1024 * 1024
PAGES_AT_ONCE = 2
LINE_BYTES_MAX = 16 * 1024 * 1024
"""Answers are far shorter. A line that is longer is none, whatever it says, and its job is judged as one without."""

LEFTOVER_SECONDS = 24 * 3600
"""Beyond this nobody needs a file any more, also of a replica that shares the folder."""
TOO_LONG = b"...\n"
LATE_LINES = Counter("batcher_late_lines", "Lines of attempts that were over, or of nobody, and dropped.")

_log = logs.get_logger(__name__)


class Read(NamedTuple):
    """How many lines the files held, and why one of them could not be had."""

    lines: int
    trouble: ProviderError | None


class ResultFiles:
    """Fetches and applies. wait_us: how long a line waits that met an empty purse; `ended` is called when jobs may have
    ended.
    """

    def __init__(
        self,
        store: BatchStore,
        objects: ObjectStore,
        provider: OpenAIApi,
        folder: Path,
        limits: Limits,
        wait_us: int,
        ended: Callable[[], None],
    ) -> None:
        self._store = store
        self._objects = objects
        self._provider = provider
        self._folder = folder
        self._limits = limits
        self._wait_us = wait_us
        self._ended = ended
        self._pages = asyncio.Semaphore(PAGES_AT_ONCE)

    async def apply(self, batch: Batch, found: ProviderBatch, lease: Lease, now_us: int) -> Read:
        """Keeps and applies the files that the batch has, of which some may have come after its end was seen. One that
        can't be had does not keep the other from being read.
        """
        lines = 0
        trouble: ProviderError | None = None
        file_ids = (found.output_file_id or batch.output_file_id, found.error_file_id or batch.error_file_id)
        for part, file_id in zip(PARTS, file_ids, strict=True):
            if file_id:
                try:
                    lines += await self._apply_file(batch, part, file_id, lease, now_us)
                except ProviderError as error:
                    trouble = trouble or error
        return Read(lines, trouble)

    async def forget(self, batch: Batch) -> None:
        """What was read too early, or broke off unnoticed, is fetched from the provider anew."""
        for part in PARTS:
            await self._objects.delete(batch_key(batch.batch_id, batch.submission, part))

    async def _apply_file(self, batch: Batch, part: str, file_id: str, lease: Lease, now_us: int) -> int:
        """Keeps one of a batch's files and applies its lines; gives how many there were."""
        # A replica that has taken over may share our folder, and must not share our files.
        path = self._folder / f"{batch.batch_id}-{batch.submission}-{part}-{lease.fence}.jsonl"
        key = batch_key(batch.batch_id, batch.submission, part)
        if await self._objects.exists(key):
            await self._objects.stream_to_file(key, path)
        else:
            await self._provider.download(file_id, path)
            await self._objects.put_file(key, path)
        try:
            count = 0
            with await asyncio.to_thread(path.open, "rb") as file:
                while lines := await self._apply_page(batch, file, lease, now_us):
                    count += lines
            return count
        finally:
            await asyncio.to_thread(path.unlink, missing_ok=True)

    async def _apply_page(self, batch: Batch, file: BinaryIO, lease: Lease, now_us: int) -> int:
        """Applies the next lines of a file; gives how many, 0 at its end."""
        async with self._pages:
            lines = await asyncio.to_thread(read_lines, file)
            if lines:
                await self._apply(batch, results_in(lines, now_us, self._wait_us), lease)
            return len(lines)

    async def _apply(self, batch: Batch, results: list[Result | None], lease: Lease) -> None:
        known = [result for result in results if result is not None]
        changes = await self._store.apply(batch.batch_id, known, self._limits, lease) if known else []
        LATE_LINES.inc(len(results) - len(changes))
        for change in changes:
            job = change.job
            _log.info("job_answered", job=job.uid, batch=batch.batch_id, state=job.state.value, attempt=job.attempt)
        self._ended()


def delete_leftovers(folder: Path, now_seconds: float) -> None:
    """Deletes what killed processes left behind: a replica that shares the folder needs no file for so long."""
    for path in folder.glob("*.jsonl*"):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < now_seconds - LEFTOVER_SECONDS:
                path.unlink()


def read_lines(file: BinaryIO) -> list[bytes]:
    """The next lines of a file that are not blank, of at most 1,000 and about 4 MiB; none at its end."""
    lines: list[bytes] = []
    used_bytes = 0
    while len(lines) < LINES_MAX and used_bytes < PAGE_BYTES and (line := file.readline(LINE_BYTES_MAX)):
        if len(line) == LINE_BYTES_MAX and not line.endswith(b"\n"):
            while (rest := file.readline(PAGE_BYTES)) and not rest.endswith(b"\n"):
                pass
            line = TOO_LONG
        if line.strip():
            lines.append(line)
            used_bytes += len(line)
    return lines


def results_in(lines: list[bytes], now_us: int, wait_us: int) -> list[Result | None]:
    """The results that lines hold; None for a line that names no attempt of ours."""
    return [_result_of(parse_result_line(line), now_us, wait_us) for line in lines if line.strip()]


def loss_of(failure: Failure, row: Row, now_us: int, again_us: int) -> Loss:
    """What a row of the table of outcomes takes from an attempt. again_us: until when one waits that has to."""
    waits = row.action is Action.WAIT_UNTIL
    not_before_us = 0 if row.counts else (again_us if waits else now_us)
    return Loss(failure, row.action is not Action.FAIL_JOB, not_before_us)


def _result_of(line: LineResult | None, now_us: int, wait_us: int) -> Result | None:
    attempt_of = split_custom_id(line.custom_id) if line is not None else None
    if line is None or attempt_of is None:
        return None
    outcome = line.outcome
    if isinstance(outcome, Answer):
        return Result(*attempt_of, outcome)
    failure = Failure(outcome.code, outcome.message)
    return Result(*attempt_of, loss_of(failure, outcome.row, now_us, now_us + wait_us))
