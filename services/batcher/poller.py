"""Follows the batches at the provider, and brings their answers home.

A batch that has ended is ingested: its files are streamed to disk and into the object store, where they are kept; their
lines are applied in transactions of at most 1,000; members without a line are judged last, and only when the files hold
as many lines as the provider counted. Every step may be repeated, as a job takes one outcome per attempt.

What fails is decided by the table of outcomes: the batch's next step waits for a pause that grows, and where the tries
have reached their bound the batch is held for an operator, or what is lost for good fails its jobs.
"""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from prometheus_client import Counter

from services.batcher import allowance, outcome
from services.batcher import batch as batches
from services.batcher.backoff import Patience, is_over, pause_us
from services.batcher.batch import Batch, Counts, State
from services.batcher.job import Failure, Limits
from services.batcher.object_store import ObjectStore
from services.batcher.openai_api import OpenAIApi, ProviderBatch, ProviderDown, ProviderError
from services.batcher.outcome import Action, Place, Row, Signal, classify
from services.batcher.planner import Planned
from services.batcher.purchases import Purchases
from services.batcher.result_files import ResultFiles, loss_of
from services.batcher.store_batches import BatchStore, Loss, Result, raise_if_all_failed
from services.chassis import logs
from services.chassis.leases import Lease

BATCHES_AT_ONCE = 8
MISSING_LINE = Failure("missing_line", "The provider's files hold no line for the job.")
RESULT_LOST = Failure("result_lost", "The provider has an answer and does not hand it out.")
LOST = Counter("batcher_lost_results", "Jobs whose answers the provider counted and never handed out.")

_log = logs.get_logger(__name__)


class PollerLimits(NamedTuple):
    """poll_us: how often all batches are asked about. patience: with a batch whose step fails, and with a provider that
    has no room.
    """

    poll_us: int
    patience: Patience
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
        new_id: Callable[[], str],
        ended: Callable[[], None],
        purchases: Purchases,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._provider = provider
        self._limits = limits
        self._new_id = new_id
        self._ended = ended
        self._purchases = purchases
        self._jitter = jitter
        wait_us = limits.patience.first_us
        self._files = ResultFiles(store, objects, provider, folder, limits.job, wait_us, ended)
        self._poll_due_us = 0

    def hasten(self) -> None:
        """All batches are asked about with the next step."""
        self._poll_due_us = 0

    async def step(self, lease: Lease, now_us: int) -> bool:
        """Asks about the batches of which the provider has told, and when it is time about all that were bought;
        ingests those that have ended.
        """
        if self._provider.is_down():
            return False
        told = await self._store.due()
        all_due = now_us >= self._poll_due_us
        if not (told or all_due):
            return False
        bought = [b for b in await self._store.open_batches() if b.state in (State.RUNNING, State.INGESTING)]
        if told:
            # Before they are asked about: what is told from now on may be news.
            await self._store.forget_due(told & {batch.provider_batch_id for batch in bought}, lease)
        if all_due:
            self._poll_due_us = now_us + self._limits.poll_us
        asked = [b for b in bought if b.provider_batch_id in told or (all_due and b.not_before_us <= now_us)]
        failures = await self._follow_all(asked, lease, now_us)
        if failures and all(failures):
            # The loop's own pause is enough.
            self._poll_due_us = 0
        raise_if_all_failed(failures)
        return False

    async def _follow_all(self, asked: list[Batch], lease: Lease, now_us: int) -> list[Exception | None]:
        """Follows some batches at once; gives what failed for reasons that are not the provider's."""
        slots = asyncio.Semaphore(BATCHES_AT_ONCE)
        unwanted = frozenset(await self._store.unwanted())

        async def follow(batch: Batch) -> Exception | None:
            async with slots:
                try:
                    await self._follow(batch, batch.batch_id in unwanted, lease, now_us)
                except ProviderDown:
                    # Nothing was asked, so that nothing is learnt about the batch.
                    return None
                except ProviderError as error:
                    # The batch waits for a pause of its own, so that the loop need not.
                    _log.warning("batch_stumbled", batch=batch.batch_id, error=str(error))
                    await self._stumble(batch.batch_id, error, lease, now_us)
                except Exception as error:
                    # One batch's trouble is not its neighbours'.
                    _log.warning("batch_not_followed", batch=batch.batch_id, error=f"{type(error).__name__}: {error}")
                    return error
            return None

        return await asyncio.gather(*map(follow, asked))

    async def _follow(self, batch: Batch, unwanted: bool, lease: Lease, now_us: int) -> None:
        found = await self._provider.retrieve(batch.provider_batch_id)
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
        if batch.provider_state == "validating" and found.status in _TAKEN:
            await self._store.unlearn(batch.model, lease)
        known = batches.steady(batch)
        moved = batches.progress(known, found.status, _counts(found), now_us)
        if found.status in batches.ENDED:
            moved = batches.end(moved or known, found.output_file_id, found.error_file_id, now_us)
        if moved is not None or known != batch:
            await self._store.update(moved or known, "batch.progress", lease)

    async def _stumble(self, batch_id: str, error: ProviderError, lease: Lease, now_us: int) -> None:
        """Writes that the batch's step failed, and when it is done again; past its bound a person is told."""
        batch = await self._store.batch(batch_id)
        if batch is None or batch.state not in (State.RUNNING, State.INGESTING):
            return
        over = self._is_over(batch, now_us)
        problem = batches.problem_of(error.row, error.code, over)
        if over and not problem and await self._purchases.is_foreign(batch_id):
            problem = batches.FOREIGN_PROBLEM
        if problem and problem != batch.problem:
            _log.error("batch_held", batch=batch_id, problem=problem, error=str(error), alert=True)
        not_before_us = now_us + pause_us(batch.failures + 1, self._limits.patience, self._jitter())
        await self._store.update(batches.stumble(batch, not_before_us, problem, now_us), "batch.stumbled", lease)

    def _is_over(self, batch: Batch, now_us: int) -> bool:
        """Whether the batch's step has reached its bound with a failure of now."""
        return is_over(batch.failures + 1, batch.failing_since_us or now_us, now_us, self._limits.patience)

    async def _cancel(self, batch_id: str, lease: Lease) -> None:
        """Nobody wants the batch any more; what it has finished until it ends still counts."""
        batch = await self._store.batch(batch_id)
        if batch is None or batch.state is not State.RUNNING:
            return
        try:
            await self._provider.cancel(batch.provider_batch_id)
        except ProviderError as error:
            if error.row.action is not Action.DROP:
                raise
        await self._store.update(batch._replace(cancel_sent=True), "batch.cancelling", lease)
        _log.info("batch_cancelling", batch=batch_id)

    async def _ingest(self, batch: Batch, found: ProviderBatch, lease: Lease, now_us: int) -> None:
        read = await self._files.apply(batch, found, lease, now_us)
        trouble = read.trouble
        if trouble is None and found.status != "failed" and not batches.is_complete(_counts(found), read.lines):
            await self._files.forget(batch)
            said = f"the files of {batch.batch_id} hold {read.lines} lines, fewer than were counted"
            trouble = ProviderError(outcome.SHORT_FILES, said, classify(Signal(Place.ENDED, outcome.SHORT_FILES)))
        if trouble is not None:
            if not (self._is_over(batch, now_us) and trouble.row.afterwards is Action.FAIL_JOB):
                raise trouble
            if await self._purchases.is_foreign(batch.batch_id):
                raise trouble
            # The provider was paid for these answers: buying them again would be knowingly twice.
            _log.error("results_lost", batch=batch.batch_id, error=str(trouble), alert=True)
            LOST.inc(await self._lose(batch, Loss(RESULT_LOST, retryable=False), lease))
        elif found.status == "failed":
            await self._refused(batch, found, lease, now_us)
        else:
            row = classify(Signal(Place.ENDED, found.status))
            await self._lose(batch, loss_of(MISSING_LINE, row, now_us, now_us), lease)
        await self._store.close(batch.batch_id, lease)
        self._ended()
        _log.info("batch_closed", batch=batch.batch_id, provider_state=found.status)
        await self._tidy(batch, found.input_file_id)

    async def _tidy(self, batch: Batch, input_file_id: str) -> None:
        """Deletes the input file, which the provider keeps else for 30 days, photographs and all; result files stay, as
        a database that is restored from a backup reads them again.
        """
        try:
            await self._provider.delete_file(input_file_id)
        except ProviderError as error:
            _log.warning("input_file_left", batch=batch.batch_id, error=str(error))

    async def _refused(self, batch: Batch, found: ProviderBatch, lease: Lease, now_us: int) -> None:
        """The batch failed after its create: its members wait, are cut into two batches, or fail, all or some."""
        row, failure, bad_lines = batches.judge(found.errors)
        members = await self._store.member_uids(batch.batch_id)
        again_us = now_us
        if row.action is Action.WAIT_UNTIL:
            row, again_us = await self._wait(batch, row, failure, len(members), lease)
        elif row.action is Action.SPLIT_BATCH:
            await self._halve(batch, failure, members, lease, now_us)
            return
        if bad_lines and len(members) == batch.jobs:
            # The lines of the input file are the members in this order, as long as none has had an outcome.
            blamed = {uid for place, uid in enumerate(members, 1) if place in bad_lines}
            if blamed:
                await self._fail(batch, blamed, Loss(failure, retryable=False), lease)
                row = classify(Signal(Place.FAILED, outcome.BESIDE_BAD_LINE))
        await self._lose(batch, loss_of(failure, row, now_us, again_us), lease)

    async def _wait(self, batch: Batch, row: Row, failure: Failure, jobs: int, lease: Lease) -> tuple[Row, int]:
        """The provider has no room, or our money there is spent: what to do, and until when the model's jobs wait."""
        if row is not outcome.row("queue_full"):
            _log.error("provider_refused", batch=batch.batch_id, code=failure.code, alert=True)
            return row, (await self._store.learn(batch, "", self._pause, lease, teaches=False)).not_before_us
        code = allowance.alone_over(failure.message, batch.tokens, jobs)
        if code is None:
            known = await self._store.learn(batch, failure.message, self._pause, lease)
            _log.warning("provider_full", model=batch.model, tokens=known.learnt_tokens, refusals=known.refusals)
            return row, known.not_before_us
        # Now that the limit is known the planner cuts by it: there is nothing to wait for, nor to be halved.
        known = await self._store.learn(batch, failure.message, lambda _: 0, lease)
        _log.warning("batch_over_token_limit", batch=batch.batch_id, tokens=batch.tokens, limit=known.learnt_tokens)
        return classify(Signal(Place.FAILED, code)), known.not_before_us

    def _pause(self, refusals: int) -> int:
        return pause_us(refusals, self._limits.patience, self._jitter())

    async def _halve(self, batch: Batch, failure: Failure, members: list[str], lease: Lease, now_us: int) -> None:
        """Makes two batches of the members of one that was too large, which costs them no attempt; one job fails."""
        if len(members) < 2:
            alone = classify(Signal(Place.FAILED, outcome.ALONE_TOO_LARGE))
            await self._lose(batch, loss_of(failure, alone, now_us, now_us), lease)
            return
        # They wait, so that the planner does not make the same batch of them again before the halves are planned.
        again_us = now_us + self._limits.patience.first_us
        await self._lose(batch, Loss(failure, retryable=True, not_before_us=again_us), lease)
        middle = (len(members) + 1) // 2
        for half in (members[:middle], members[middle:]):
            await self._store.plan(Planned(batch.model, tuple(half)), self._new_id(), lease)
        _log.warning("batch_split", batch=batch.batch_id, jobs=len(members), code=failure.code)

    async def _fail(self, batch: Batch, uids: set[str], loss: Loss, lease: Lease) -> None:
        """Gives the same loss to some members."""
        async for member in self._store.members(batch.batch_id):
            if member.job.uid in uids:
                result = Result(member.job.uid, member.job.attempt, loss)
                await self._store.apply(batch.batch_id, [result], self._limits.job, lease)

    async def _lose(self, batch: Batch, loss: Loss, lease: Lease) -> int:
        """Gives the same loss to all members that have no outcome; tells how many they were."""
        lost = 0
        while count := await self._store.lose_members(batch.batch_id, loss, self._limits.job, lease):
            lost += count
        return lost


_DYING = batches.ENDED | {"cancelling"}
_TAKEN = frozenset({"in_progress", "finalizing", "completed"})


def _counts(found: ProviderBatch) -> Counts:
    return Counts(found.total, found.completed, found.failed)
