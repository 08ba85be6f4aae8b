"""Follows the batches at the provider, and brings their answers home.

A batch that has ended is ingested: its files are streamed to disk and into the object store, where they are kept; their
lines are applied in transactions of at most 1,000; members without a line are judged last, and only when the files hold
as many lines as the provider counted. Every step may be repeated, as a job takes one outcome per attempt.
"""

import asyncio
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from prometheus_client import Counter

from services.batcher import batch as batches
from services.batcher.batch import Batch, Counts, State
from services.batcher.batch_file import LineFailure, LineResult, parse_result_line, split_custom_id
from services.batcher.job import Answer, Failure, Limits
from services.batcher.object_store import ObjectStore, batch_key
from services.batcher.openai_api import OpenAIApi, ProviderBatch, ProviderError, ProviderMissing
from services.batcher.store_batches import LINES_MAX, BatchStore, Loss, Result, raise_if_all_failed
from services.chassis import logs
from services.chassis.leases import Lease

BATCHES_AT_ONCE = 8
PARTS = ("output", "error")
DAY_US = 24 * 3600 * 1_000_000
MISSING_LINE = Failure("missing_line", "The provider's files hold no line for the job.")
LATE_LINES = Counter("batcher_late_lines", "Lines of attempts that were over, or of nobody, and dropped.")
DUPLICATES = Counter("batcher_duplicate_batches", "Second batches of one intent, found and cancelled.")

_log = logs.get_logger(__name__)


class PollerLimits(NamedTuple):
    """wait_us: how long jobs wait after the provider said that its queue is full."""

    wait_us: int
    duplicates_us: int
    job: Limits


class Poller:
    """One holder of the lease at a time polls and ingests; `ended` is called when jobs may have ended."""

    def __init__(
        self,
        store: BatchStore,
        objects: ObjectStore,
        provider: OpenAIApi,
        folder: Path,
        limits: PollerLimits,
        ended: Callable[[], None],
    ) -> None:
        self._store = store
        self._objects = objects
        self._provider = provider
        self._folder = folder
        self._limits = limits
        self._ended = ended
        self._duplicates_due_us = 0

    async def step(self, lease: Lease, now_us: int) -> bool:
        """Asks about every batch that was bought, and ingests those that have ended."""
        slots = asyncio.Semaphore(BATCHES_AT_ONCE)
        unwanted = frozenset(await self._store.unwanted())

        async def follow(batch: Batch) -> Exception | None:
            async with slots:
                try:
                    await self._follow(batch, batch.batch_id in unwanted, lease, now_us)
                except Exception as error:
                    # One batch's trouble is not its neighbours'.
                    _log.warning("batch_not_followed", batch=batch.batch_id, error=f"{type(error).__name__}: {error}")
                    return error
            return None

        bought = [b for b in await self._store.open_batches() if b.state in (State.RUNNING, State.INGESTING)]
        failures = await asyncio.gather(*map(follow, bought))
        if now_us >= self._duplicates_due_us:
            self._duplicates_due_us = now_us + self._limits.duplicates_us
            await self._cancel_duplicates(now_us)
        raise_if_all_failed(failures)
        return False

    async def _follow(self, batch: Batch, unwanted: bool, lease: Lease, now_us: int) -> None:
        found = await self._retrieve(batch, lease)
        if batch.state is State.RUNNING:
            while await self._store.start(batch.batch_id, lease):
                pass
            await self._note(batch, found, lease, now_us)
            if unwanted and found.status not in _DYING:
                await self._cancel(batch.batch_id, lease)
        if found.status in batches.ENDED:
            stored = await self._store.batch(batch.batch_id)
            if stored is not None and stored.state is State.INGESTING:
                await self._ingest(stored, found, lease, now_us)

    async def _note(self, batch: Batch, found: ProviderBatch, lease: Lease, now_us: int) -> None:
        """Writes how far the provider is, where that is news."""
        known = batch._replace(problem="")
        moved = batches.progress(known, found.status, _counts(found), now_us)
        if found.status in batches.ENDED:
            moved = batches.end(moved or known, found.output_file_id, found.error_file_id, now_us)
        if moved is not None or batch.problem:
            await self._store.update(moved or known, "batch.progress", lease)

    async def _retrieve(self, batch: Batch, lease: Lease) -> ProviderBatch:
        try:
            return await self._provider.retrieve(batch.provider_batch_id)
        except ProviderMissing:
            # It was paid for: whoever runs this has to look, and nothing is bought again meanwhile.
            problem = "the provider does not know the batch under the configured key"
            _log.error("batch_missing", batch=batch.batch_id, provider_batch=batch.provider_batch_id, alert=True)
            if batch.problem != problem:
                await self._store.update(batch._replace(problem=problem), "batch.held", lease)
            raise

    async def _cancel(self, batch_id: str, lease: Lease) -> None:
        """Nobody wants the batch any more; what it has finished until it ends still counts."""
        batch = await self._store.batch(batch_id)
        if batch is not None and batch.state is State.RUNNING:
            await self._provider.cancel(batch.provider_batch_id)
            await self._store.update(batch._replace(cancel_sent=True), "batch.cancelling", lease)
            _log.info("batch_cancelling", batch=batch_id)

    async def _ingest(self, batch: Batch, found: ProviderBatch, lease: Lease, now_us: int) -> None:
        lines = await self._apply_files(batch, found, lease, now_us)
        if found.status == "failed":
            await self._lose(batch, _verdict_of(found, now_us + self._limits.wait_us), lease)
        else:
            if not batches.is_complete(_counts(found), lines):
                await self._forget_files(batch)
                raise ProviderError(f"the files of {batch.batch_id} hold {lines} lines, fewer than were counted")
            await self._lose(batch, Loss(MISSING_LINE, retryable=True), lease)
        await self._store.close(batch.batch_id, lease)
        self._ended()
        _log.info("batch_closed", batch=batch.batch_id, provider_state=found.status)

    async def _apply_files(self, batch: Batch, found: ProviderBatch, lease: Lease, now_us: int) -> int:
        """Keeps and applies the files that the batch has, of which some may have come after its end was seen; gives how
        many lines there were.
        """
        lines = 0
        file_ids = (found.output_file_id or batch.output_file_id, found.error_file_id or batch.error_file_id)
        for part, file_id in zip(PARTS, file_ids, strict=True):
            if file_id:
                lines += await self._apply_file(batch, part, file_id, lease, now_us)
        return lines

    async def _forget_files(self, batch: Batch) -> None:
        """What was read too early, or broke off unnoticed, is fetched from the provider anew."""
        for part in PARTS:
            await self._objects.delete(batch_key(batch.batch_id, batch.submission, part))

    async def _lose(self, batch: Batch, loss: Loss, lease: Lease) -> None:
        while await self._store.lose_members(batch.batch_id, loss, self._limits.job, lease):
            pass

    async def _apply_file(self, batch: Batch, part: str, file_id: str, lease: Lease, now_us: int) -> int:
        """Keeps one of a batch's files and applies its lines; gives how many there were."""
        path = self._folder / f"{batch.batch_id}-{batch.submission}-{part}.jsonl"
        key = batch_key(batch.batch_id, batch.submission, part)
        if await self._objects.exists(key):
            await self._objects.stream_to_file(key, path)
        else:
            await self._provider.download(file_id, path)
            await self._objects.put_file(key, path)
        try:
            count = 0
            with await asyncio.to_thread(path.open, "rb") as file:
                while lines := await asyncio.to_thread(lambda: list(islice(file, LINES_MAX))):
                    count += sum(1 for line in lines if line.strip())
                    await self._apply(batch, _results_in(lines, now_us), lease)
            return count
        finally:
            await asyncio.to_thread(path.unlink, missing_ok=True)

    async def _apply(self, batch: Batch, results: list[Result | None], lease: Lease) -> None:
        known = [result for result in results if result is not None]
        changes = await self._store.apply(batch.batch_id, known, self._limits.job, lease) if known else []
        LATE_LINES.inc(len(results) - len(changes))
        for change in changes:
            job = change.job
            _log.info("job_answered", job=job.uid, batch=batch.batch_id, state=job.state.value, attempt=job.attempt)
        self._ended()

    async def _cancel_duplicates(self, now_us: int) -> None:
        """Looks for second batches of submissions that were once in doubt, for a day, and cancels them."""
        doubted = await self._store.doubted(now_us - DAY_US)
        if not doubted:
            return
        since_us = min(submission.create_time_us for submission in doubted) - batches.LOOK_BACK_US
        for listed in await self._provider.list_since(since_us // 1_000_000):
            for submission in doubted:
                ours = batches.is_ours(listed.metadata, listed.input_file_id, submission)
                if ours and listed.id != submission.provider_batch_id and listed.status not in _DYING:
                    DUPLICATES.inc()
                    _log.error("duplicate_batch", batch=submission.batch_id, provider_batch=listed.id, alert=True)
                    await self._provider.cancel(listed.id)


_DYING = batches.ENDED | {"cancelling"}


def _counts(found: ProviderBatch) -> Counts:
    return Counts(found.total, found.completed, found.failed)


def _verdict_of(found: ProviderBatch, again_us: int) -> Loss:
    """What every job of a refused batch loses: some time, or its only chance."""
    verdict = batches.judge(list(found.errors))
    return Loss(verdict.failure, retryable=verdict.wait, not_before_us=again_us if verdict.wait else 0)


def _results_in(lines: list[bytes], now_us: int) -> list[Result | None]:
    """The results that lines hold; None for a line that names no attempt of ours."""
    return [_result_of(parse_result_line(line), now_us) for line in lines if line.strip()]


def _result_of(line: LineResult | None, now_us: int) -> Result | None:
    attempt_of = split_custom_id(line.custom_id) if line is not None else None
    if line is None or attempt_of is None:
        return None
    return Result(*attempt_of, _outcome_of(line.outcome, now_us))


def _outcome_of(outcome: Answer | LineFailure, now_us: int) -> Answer | Loss:
    if isinstance(outcome, Answer):
        return outcome
    # A line that its batch had no time for did not fail: trying it again costs no attempt, only the deadline's time.
    waited = now_us if outcome.code == "batch_expired" else 0
    return Loss(Failure(outcome.code, outcome.message), outcome.retryable, waited)
