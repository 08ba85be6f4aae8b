"""Answers instant jobs at once: an attempt that is written down already, one call, its outcome written down.

A call that ends in doubt may have been paid for, and is tried once more at most: the provider may be paid twice, the
user never. Between two tries of a job lies the pause that the provider asked for, or a short one, never shorter than
asked and a little longer at random; the worker that had the refusal sits it out, so that a provider which refuses is
asked by fewer at once. A job that may fall back does so when its tries are used up, or would have to wait for too long.

An answer of an attempt that is over is dropped and counted. A process keeps the leases of the attempts that
it runs and of those that wait for a worker; what it leaves behind when it dies is found by them and tried again by
another, or ended.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from prometheus_client import Counter

from services.batcher.job import CANCELLED, DEADLINE, Answer, Change, Failure, Job, Lane, Limits, State, falls_back
from services.batcher.object_store import ObjectMissing
from services.batcher.object_urls import ImageUrls
from services.batcher.openai_api import OpenAIApi, ProviderBusy, ProviderDoubt, ProviderMissing, ProviderRefused
from services.batcher.store import Store
from services.batcher.store_batches import Loss
from services.batcher.store_rows import JobView
from services.chassis import logs

QUEUE_JOBS_MAX = 10_000
PAUSE_SECONDS = 0.5
PAUSE_SECONDS_MAX = 20.0
PAUSE_JITTER = 0.25
"""By which fraction a pause is longer at most than it has to be: else all would come back at one instant."""

CRASHED = Failure("interrupted", "The try was interrupted on our side.")
LATE_ANSWERS = Counter("batcher_late_answers", "Answers of attempts that were over, and dropped.", ["lane"])
FALLBACKS = Counter("batcher_fallbacks", "Instant jobs that went to the lane BATCH.")

_log = logs.get_logger(__name__)


class Lost(NamedTuple):
    """A try without an answer, and after how long the provider may be asked again."""

    loss: Loss
    pause_seconds: float = 0.0


class InstantLimits(NamedTuple):
    """How instant jobs are run. lease_us: for how long a process keeps its attempts without a sign of life."""

    workers: int
    timeout_seconds: float
    lease_us: int
    job: Limits


class InstantRunner:
    """Runs instant attempts in a bounded number of workers.

    `owed` is called when the wallet is owed something: a job has ended, or fell back and holds too much.
    """

    def __init__(
        self,
        store: Store,
        images: ImageUrls,
        provider: OpenAIApi,
        limits: InstantLimits,
        owed: Callable[[], None],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._images = images
        self._provider = provider
        self._limits = limits
        self._owed = owed
        self._jitter = jitter
        self._queue: asyncio.Queue[tuple[str, int]] = asyncio.Queue(QUEUE_JOBS_MAX)
        self._mine: set[tuple[str, int]] = set()
        self._workers: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Starts the workers."""
        self._workers = [asyncio.create_task(self._work(), name="instant") for _ in range(self._limits.workers)]

    async def close(self) -> None:
        """Stops the workers; what they were at is found again by its lease."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    def offer(self, running: Sequence[Job]) -> None:
        """Takes attempts that were just begun; those beyond the queue's bound wait until their lease is over."""
        for job in running:
            if not self._queue.full():
                self._mine.add((job.uid, job.attempt))
                self._queue.put_nowait((job.uid, job.attempt))

    async def keep(self) -> bool:
        """Keeps the attempts of this process, however long they wait for a worker; there is never more to do."""
        if self._mine:
            await self._store.keep_attempts(self._mine, self._limits.lease_us)
        return False

    async def sweep(self) -> bool:
        """Tries attempts again whose process is gone; True if there may be more for idle workers.

        As many at a time as there are workers, so that those of one dead replica are shared by all that live.
        """
        room = min(self._limits.workers, QUEUE_JOBS_MAX - self._queue.qsize())
        uids = await self._store.claim_orphans(room, self._limits.lease_us) if room else []
        for job in await self._store.read(uids):
            is_ours = (job.uid, job.attempt) in self._mine
            if job.state is State.RUNNING and job.lane is Lane.INSTANT and not is_ours:
                self._take(await self._lose(job, Loss(CRASHED, retryable=True)))
        return len(uids) == self._limits.workers and self._queue.empty()

    async def _work(self) -> None:
        while True:
            uid, attempt = await self._queue.get()
            try:
                await self._run(uid, attempt)
            except Exception as error:
                # The attempt stays open, and its lease brings it back: here nothing better can be done.
                _log.exception("instant_attempt_failed", job=uid, attempt=attempt, error=type(error).__name__)
            finally:
                self._mine.discard((uid, attempt))

    async def _run(self, uid: str, attempt: int) -> None:
        view = await self._store.view_of(uid)
        if view.job.state is not State.RUNNING or view.job.attempt != attempt:
            return
        seconds = min(self._limits.timeout_seconds, view.job.deadline_us / 1_000_000 - time.time())
        if view.job.cancel_requested or seconds <= 0:
            # Nothing was asked in this attempt yet, so that nothing is lost by not asking.
            nobody_waits = CANCELLED if view.job.cancel_requested else DEADLINE
            self._take(await self._lose(view.job, Loss(nobody_waits, retryable=False)))
            return
        outcome = await self._ask(view, seconds)
        if isinstance(outcome, Answer):
            changes = await self._store.answer(uid, attempt, outcome, self._limits.job)
        else:
            changes = await self._lose_after(view.job, outcome)
        if not changes:
            LATE_ANSWERS.labels(Lane.INSTANT).inc()
        self._take(changes)

    async def _ask(self, view: JobView, timeout_seconds: float) -> Answer | Lost:
        """One call. Nothing it may raise is left without a meaning for the job."""
        try:
            url = await self._images.url(view.job.account_id, view.order.image_ids[0])
            return await self._provider.answer_now(
                view.job.model,
                view.order.prompt,
                view.detail,
                view.max_output_tokens,
                url,
                timeout_seconds,
            )
        except ObjectMissing:
            return Lost(Loss(Failure("image_missing", "The image is no longer stored."), retryable=False))
        except ProviderRefused as error:
            return Lost(Loss(Failure(error.code, error.message), retryable=not error.permanent))
        except ProviderBusy as error:
            return Lost(Loss(Failure("provider_busy", str(error)), retryable=True), error.retry_after_seconds)
        except ProviderDoubt as error:
            return Lost(
                Loss(Failure("provider_error", str(error)), retryable=True),
                max(error.retry_after_seconds, PAUSE_SECONDS),
            )
        except ProviderMissing as error:
            return Lost(Loss(Failure("provider_error", str(error)), retryable=True))

    async def _lose_after(self, job: Job, lost: Lost) -> list[Change]:
        """Sits out the pause before the next try, if there will be one, and only then begins that.

        A process that dies in the pause leaves an attempt that was over behind, and the next one is not wasted.
        """
        limits, (loss, seconds) = self._limits.job, lost
        if falls_back(job) and seconds > PAUSE_SECONDS_MAX:
            limits = limits._replace(attempts_max=job.attempt)
        if loss.retryable and job.attempt < limits.attempts_max:
            await asyncio.sleep(min(seconds, PAUSE_SECONDS_MAX) * (1 + PAUSE_JITTER * self._jitter()))
        return await self._lose(job, loss, limits)

    async def _lose(self, job: Job, loss: Loss, limits: Limits | None = None) -> list[Change]:
        lease_us = self._limits.lease_us
        limits = limits or self._limits.job
        return await self._store.lose(job.uid, job.attempt, loss.failure, loss.retryable, limits, lease_us)

    def _take(self, changes: Sequence[Change]) -> None:
        """Runs what goes on, and tells of what has ended or fallen back."""
        for change in changes:
            job = change.job
            _log.info("instant_attempt", job=job.uid, attempt=change.before.attempt, state=job.state.value)
            if job.state is State.RUNNING:
                self.offer([job])
                continue
            if job.state is State.QUEUED:
                FALLBACKS.inc()
            self._owed()
