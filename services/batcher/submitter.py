"""Forms batches and buys them. Before anything is bought, the intent to buy it is in the database.

A submission is opened; its input file is built and uploaded, and the file's id written; the batch is created, and its
id written. Where the process dies in between, or an answer is lost, `_resolve` closes the submission in the order
that `batch.next_step` gives, so that no batch is knowingly bought twice.

What a failure means is decided by the table of outcomes. Whatever is tried again waits for a pause that grows; a batch
that is too large is cut in two.
"""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from prometheus_client import Counter

from services.batcher import batch as batches
from services.batcher import outcome, planner
from services.batcher.backoff import Patience, is_over, pause_us
from services.batcher.batch import Batch, State, Step, Submission
from services.batcher.input_file import InputFiles, Unbuildable
from services.batcher.job import HOLD_LOST, Failure, Job, Limits
from services.batcher.openai_api import OpenAIApi, ProviderBusy, ProviderDown, ProviderError
from services.batcher.outcome import Action
from services.batcher.progress import Outlook
from services.batcher.purchases import Purchases
from services.batcher.store_batches import BatchStore, Loss, Result, raise_if_all_failed
from services.batcher.wallet_client import WalletClient
from services.batcher.wallet_holds import extend_holds
from services.chassis import logs
from services.chassis.leases import Lease

HOUR_US = 3600 * 1_000_000
OUTLOOK_US = 1_000_000
QUEUE_JOBS_MAX = 100_000
HOLDS_MAX = 1_000
BATCHES_AT_ONCE = 4
DOUBTS = Counter("batcher_submissions_in_doubt", "Submissions of which nobody knew whether they had been bought.")
ADOPTED = Counter("batcher_submissions_adopted", "Batches found again after their create was in doubt.")

_log = logs.get_logger(__name__)


class SubmitterLimits(NamedTuple):
    """When batches are formed and how they are bought. window_us: what a hold must outlast when a batch is bought."""

    cycle_us: int
    jobs_per_batch: int
    jobs_per_batch_max: int
    bytes_per_batch_max: int
    creates_per_hour_max: int
    create_timeout_seconds: float
    settle_us: int
    window_us: int
    patience: Patience
    job: Limits


class Submitter:
    """One holder of the lease at a time plans and buys; `ended` is called when jobs may have ended."""

    def __init__(
        self,
        store: BatchStore,
        files: InputFiles,
        provider: OpenAIApi,
        wallet: WalletClient,
        limits: SubmitterLimits,
        new_id: Callable[[], str],
        ended: Callable[[], None],
        purchases: Purchases,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._files = files
        self._provider = provider
        self._wallet = wallet
        self._limits = limits
        self._new_id = new_id
        self._ended = ended
        self._purchases = purchases
        self._jitter = jitter
        self._planned_cycle_us = 0
        self._outlook = Outlook(0)
        self._outlook_time_us = 0

    async def outlook(self, now_us: int) -> Outlook:
        """What holds the queue up, as of a second ago at most: it is asked for with every job that is shown."""
        if not 0 <= now_us - self._outlook_time_us < OUTLOOK_US:
            self._outlook, self._outlook_time_us = await self._look(now_us), now_us
        next_cycle_us = planner.next_cycle_us(now_us, self._limits.cycle_us)
        return self._outlook._replace(next_cycle_us=next_cycle_us, down_until_us=self._provider.down_until_us())

    async def _look(self, now_us: int) -> Outlook:
        rooms = await self._store.rooms()
        wanted = await self._store.tokens_wanted() if any(room.limit is not None for room in rooms.values()) else {}
        creates_until_us = 0
        opened = await self._store.submissions_since(now_us - HOUR_US)
        if opened.submissions >= self._limits.creates_per_hour_max:
            creates_until_us = opened.first_us + HOUR_US
        return Outlook(0, 0, creates_until_us, rooms, wanted, await self._purchases.obstacle())

    async def step(self, lease: Lease, now_us: int) -> bool:
        """Plans what is due, then brings every open batch that is not bought yet one step further."""
        if not await self._purchases.is_begun():
            return False
        may_buy = not await self._purchases.obstacle()
        if may_buy:
            await self._plan(lease, now_us)
        if self._provider.is_down():
            return False
        slots = asyncio.Semaphore(BATCHES_AT_ONCE)

        async def advance(batch: Batch) -> Exception | None:
            async with slots:
                try:
                    await self._advance(batch, lease, now_us)
                except ProviderDown:
                    # Nothing was asked, so that nothing is learnt about the batch.
                    return None
                except Exception as error:
                    # One batch's trouble is not its neighbours'.
                    _log.warning("batch_not_submitted", batch=batch.batch_id, error=f"{type(error).__name__}: {error}")
                    return error
            return None

        unbought = [batch for batch in await self._store.open_batches() if may_buy or batch.state is not State.PLANNED]
        outcomes = await asyncio.gather(*map(advance, unbought))
        raise_if_all_failed(outcomes)
        return False

    async def _plan(self, lease: Lease, now_us: int) -> None:
        """Forms the batches that are due. A cycle that found the hour's creates spent is tried again, and one that a
        replica did not finish is finished by the next.
        """
        cycle_due = await self._is_cycle_due(lease, now_us)
        depths = await self._store.depths()
        rooms = await self._store.rooms() if depths else {}
        limits = self._limits
        if not depths or not (cycle_due or planner.may_start(depths, limits.jobs_per_batch, rooms, now_us)):
            await self._end_cycle(lease, now_us)
            return
        opened = await self._store.submissions_since(now_us - HOUR_US)
        creates_left = limits.creates_per_hour_max - opened.submissions
        if creates_left <= 0:
            return
        queue = await self._store.queue(limits.jobs_per_batch_max, QUEUE_JOBS_MAX)
        may = planner.Limits(limits.jobs_per_batch, limits.jobs_per_batch_max, limits.bytes_per_batch_max, creates_left)
        for planned in planner.plan(queue, cycle_due, may, rooms, now_us):
            batch = await self._store.plan(planned, self._new_id(), lease)
            if batch is not None:
                _log.info("batch_planned", batch=batch.batch_id, model=batch.model, jobs=batch.jobs)
        await self._end_cycle(lease, now_us)

    async def _is_cycle_due(self, lease: Lease, now_us: int) -> bool:
        """Whether nobody has planned this cycle. The first of all only begins the count: what waits has just come."""
        start_us = planner.cycle_start_us(now_us, self._limits.cycle_us)
        if start_us <= self._planned_cycle_us:
            return False
        self._planned_cycle_us = await self._store.planned_cycle()
        if not self._planned_cycle_us:
            await self._end_cycle(lease, now_us)
        return start_us > self._planned_cycle_us

    async def _end_cycle(self, lease: Lease, now_us: int) -> None:
        """Writes that this cycle is planned, unless that is known."""
        start_us = planner.cycle_start_us(now_us, self._limits.cycle_us)
        if start_us > self._planned_cycle_us:
            await self._store.end_cycle(start_us, lease)
            self._planned_cycle_us = start_us

    async def _advance(self, batch: Batch, lease: Lease, now_us: int) -> None:
        if batch.not_before_us > now_us:
            return
        if batch.state is State.PLANNED:
            await self._submit(batch, lease, now_us)
        elif batch.state is State.SUBMITTING:
            submission = await self._store.submission(batch.batch_id)
            if submission is None:
                return
            try:
                await self._resolve(batch, submission, lease, now_us)
            except ProviderDown:
                raise
            except ProviderError as error:
                problem, not_before_us = self._again(batch, error, now_us)
                held = batches.stumble(batch, not_before_us, problem, now_us)
                await self._store.update(held, "batch.stumbled", lease)
                raise

    async def _submit(self, batch: Batch, lease: Lease, now_us: int) -> None:
        """Buys a planned batch."""
        lost = await self._hold(batch, lease, now_us)
        identity = self._provider.provider_identity()
        submission = await self._store.freeze(batch.batch_id, lost, self._new_id(), identity, lease)
        if lost or submission is None:
            self._ended()
        if submission is None:
            return
        try:
            submission = await self._upload(submission, lease)
            await self._create(submission, lease)
        except Unbuildable as error:
            await self._abandon(submission, now_us, lease)
            await self._store.apply(
                batch.batch_id,
                [Result(job.uid, job.attempt, Loss(error.failure, retryable=False)) for job in error.jobs],
                self._limits.job,
                lease,
            )
            self._ended()
        except ProviderError as error:
            await self._failed(batch, submission, error, lease, now_us)

    async def _hold(self, batch: Batch, lease: Lease, now_us: int) -> dict[str, Failure]:
        """Makes the members' holds outlast the batch; the failures of those whose hold is gone. WalletUnavailable."""
        short: list[Job] = []
        lost: dict[str, Failure] = {}
        async for member in self._store.members(batch.batch_id):
            if member.job.hold_expire_time_us < now_us + self._limits.window_us:
                short.append(member.job)
            if len(short) == HOLDS_MAX:
                lost |= await self._extend(short, lease, now_us)
                short = []
        return lost | await self._extend(short, lease, now_us)

    async def _extend(self, short: list[Job], lease: Lease, now_us: int) -> dict[str, Failure]:
        """Makes up to 1,000 holds outlast a batch; the failures of those that are gone. Raises WalletUnavailable."""
        if not short:
            return {}
        duration_us = max(self._limits.window_us, *(job.hold_duration_us for job in short))
        extended = await extend_holds(self._wallet, short, duration_us, now_us)
        await self._store.renew(extended.expire_times_us, lease)
        if extended.unanswered:
            raise extended.unanswered
        return dict.fromkeys(extended.lost, HOLD_LOST)

    async def _upload(self, submission: Submission, lease: Lease) -> Submission:
        """Builds and uploads an input file of this submission's own, and writes down its id."""
        path = await self._files.build(submission.batch_id, submission.attempt)
        try:
            name = f"{submission.batch_id}-{submission.attempt}.jsonl"
            input_file_id = await self._provider.upload_input(path, name)
        finally:
            await asyncio.to_thread(Path.unlink, path, missing_ok=True)
        return await self._store.record(submission._replace(input_file_id=input_file_id), lease)

    async def _create(self, submission: Submission, lease: Lease) -> None:
        tags = batches.metadata(submission.batch_id, submission.intent_id, self._provider.deployment_id)
        bought = await self._provider.create_batch(submission.input_file_id, tags, self._limits.create_timeout_seconds)
        await self._store.adopt(submission, bought.id, lease)
        _log.info("batch_submitted", batch=submission.batch_id, provider_batch=bought.id)

    async def _failed(
        self, batch: Batch, submission: Submission, error: ProviderError, lease: Lease, now_us: int
    ) -> None:
        """The upload or the create failed: what the table of outcomes says is done. In doubt nothing is, until it is
        known what was bought.
        """
        stored = await self._store.submission(batch.batch_id)
        submission = stored or submission
        action = error.row.action
        if action is Action.DOUBT:
            DOUBTS.inc()
            _log.warning("create_in_doubt", batch=batch.batch_id, intent=submission.intent_id, error=str(error))
        elif action is Action.SPLIT_BATCH:
            await self._abandon(submission, now_us, lease)
            new = await self._store.split(batch.batch_id, self._new_id(), lease)
            if new is None:
                await self._fail(batch, Failure(error.code, error.message), lease)
            else:
                _log.warning("batch_split", batch=batch.batch_id, new_batch=new.batch_id, code=error.code)
        elif action is Action.FAIL_JOB:
            await self._abandon(submission, now_us, lease)
            await self._fail(batch, Failure(error.code, error.message), lease)
        else:
            problem, not_before_us = self._again(batch, error, now_us)
            if error.row is outcome.row("queue_full"):
                await self._store.learn(batch, error.message, lambda _: not_before_us - now_us, lease)
            await self._abandon(submission, not_before_us, lease, problem)
            _log.warning("provider_busy", batch=batch.batch_id, error=str(error))

    def _again(self, batch: Batch, error: ProviderError, now_us: int) -> tuple[str, int]:
        """What a person has to look at, or nothing, and when the batch's failed step is done again."""
        failures, patience = batch.failures + 1, self._limits.patience
        over = is_over(failures, batch.failing_since_us or now_us, now_us, patience)
        problem = batches.problem_of(error.row, error.code, over)
        if problem and problem != batch.problem:
            _log.error("provider_refused", batch=batch.batch_id, code=error.code, error=str(error), alert=True)
        if not isinstance(error, ProviderBusy):
            return problem, now_us + pause_us(failures, patience, self._jitter())
        # Its own word is kept the first time; a provider that says the same again and again is asked less often.
        grown_us = pause_us(batch.failures, patience, self._jitter()) if batch.failures else 0
        return problem, now_us + max(int(error.retry_after_seconds * 1_000_000), grown_us)

    async def _fail(self, batch: Batch, failure: Failure, lease: Lease) -> None:
        """Nobody will ever answer these jobs: they fail, and their tokens are given back."""
        loss = Loss(failure, retryable=False)
        while await self._store.lose_members(batch.batch_id, loss, self._limits.job, lease):
            pass
        await self._store.close(batch.batch_id, lease)
        self._ended()

    async def _abandon(self, submission: Submission, not_before_us: int, lease: Lease, problem: str = "") -> None:
        """Closes a submission of which it is certain that nothing was bought, and tidies up after it."""
        await self._store.abandon(submission, not_before_us, lease, problem)
        if submission.input_file_id:
            try:
                await self._provider.delete_file(submission.input_file_id)
            except ProviderError as error:
                # It expires by itself; what matters is written already.
                _log.warning("input_file_left", batch=submission.batch_id, error=str(error))

    async def _resolve(self, batch: Batch, submission: Submission, lease: Lease, now_us: int) -> None:
        """Brings a submission whose outcome is not written down one step nearer to its end."""
        step = batches.next_step(submission, self._provider.provider_identity(), self._limits.settle_us, now_us)
        if step is Step.HOLD:
            if batch.problem != batches.FOREIGN_PROBLEM:
                _log.error("provider_identity_changed", batch=batch.batch_id, alert=True)
                await self._store.update(batch._replace(problem=batches.FOREIGN_PROBLEM), "batch.held", lease)
            return
        if submission.input_file_id and step is not Step.WAIT and await self._found(submission, lease, now_us):
            return
        if step is Step.DELETE_INPUT:
            await self._provider.delete_file(submission.input_file_id)
            await self._store.record(submission._replace(doubt_time_us=now_us), lease)
        elif step is Step.ABANDON:
            # Whatever broke the last try off may take a while: each costs a submission and a file's transfer.
            pause = pause_us(batch.failures + 1, self._limits.patience, self._jitter())
            await self._store.abandon(submission, now_us + pause, lease, batch.problem)
            _log.info("submission_abandoned", batch=batch.batch_id, attempt=submission.attempt)

    async def _found(self, submission: Submission, lease: Lease, now_us: int) -> bool:
        """Looks for the batch that a lost create may have made, and adopts it. That it was in doubt is kept, since a
        second one may turn up.
        """
        since_seconds = (submission.create_time_us - batches.LOOK_BACK_US) // 1_000_000
        for listed in await self._provider.list_since(since_seconds):
            if batches.is_ours(listed.metadata, listed.input_file_id, submission):
                doubted = submission._replace(doubt_time_us=submission.doubt_time_us or now_us)
                await self._store.adopt(doubted, listed.id, lease)
                ADOPTED.inc()
                _log.warning("batch_adopted", batch=submission.batch_id, provider_batch=listed.id)
                return True
        return False
