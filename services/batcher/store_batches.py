"""The batches in the database: each command is one transaction, or one for each 1,000 jobs, and what it may do is
decided by `batch` and `job`.

    plan ──► freeze ──► record_input ──► adopt, start ──► progress ──► end ──► apply, lose_members ──► close
               ▲                           │
               └───────── abandon ─────────┘

Each takes the lease of the loop that runs it, so that a replica which has lost its lease writes nothing any more.
"""

import json
from collections.abc import Sequence
from typing import NamedTuple

from services.batcher import batch as batches
from services.batcher import job as jobs
from services.batcher.batch import Batch, State, Submission, SubmissionState
from services.batcher.job import Answer, Change, Failure, Job, Limits
from services.batcher.planner import Waiting
from services.batcher.store_cycles import CycleStore
from services.batcher.store_due import DueStore
from services.batcher.store_members import MemberStore, count_members, note_of
from services.batcher.store_rows import batch_of, check, lock_batches, lock_jobs, submission_of, write
from services.chassis.database import Transaction
from services.chassis.leases import Lease

LINES_MAX = 1_000


class Loss(NamedTuple):
    """An attempt without an answer. not_before_us: the provider asked to wait until then, which costs no attempt."""

    failure: Failure
    retryable: bool
    not_before_us: int = 0


class Result(NamedTuple):
    """What became of one attempt of a job."""

    uid: str
    attempt: int
    outcome: Answer | Loss


class Opened(NamedTuple):
    """How many submissions were opened, and when the first of them was."""

    submissions: int
    first_us: int


class BatchStore(MemberStore, CycleStore, DueStore):
    """Batches, their members and their submissions."""

    async def depths(self) -> dict[str, int]:
        """How many jobs may be planned now, by model."""
        async with self.database.reading() as tx:
            rows = await tx.rows("queue_depths", now_us=await tx.now_us())
        return {row["model"]: row["jobs"] for row in rows}

    async def queue(self, count_per_account: int, count: int) -> list[Waiting]:
        """Jobs that may be planned now: the oldest of every account, so that a long queue of one hides nobody."""
        async with self.database.reading() as tx:
            now_us = await tx.now_us()
            rows = await tx.rows("queue_page", now_us=now_us, count_per_account=count_per_account, count=count)
        return [Waiting(*row) for row in rows]

    async def open_batches(self) -> list[Batch]:
        """Batches that are not closed, oldest first."""
        async with self.database.reading() as tx:
            return [batch_of(row) for row in await tx.rows("batches_open")]

    async def batch(self, batch_id: str) -> Batch | None:
        """A batch as it is now."""
        async with self.database.reading() as tx:
            row = await tx.row("batch_get", batch_id=batch_id)
        return None if row is None else batch_of(row)

    async def submission(self, batch_id: str) -> Submission | None:
        """The batch's open submission."""
        async with self.database.reading() as tx:
            row = await tx.row("submission_open", batch_id=batch_id)
        return None if row is None else submission_of(row)

    async def submissions_since(self, since_us: int) -> Opened:
        """The submissions opened since then that have tried to create a batch, or may yet do so."""
        async with self.database.reading() as tx:
            row = await tx.row("submissions_count", since_us=since_us)
        return Opened(*row) if row else Opened(0, 0)

    async def record(self, submission: Submission, lease: Lease) -> Submission:
        """Writes an open submission: its input file's id, or since when it is in doubt."""
        async with self.database.transaction() as tx:
            await check(tx, lease)
            await _write_submission(tx, submission)
        return submission

    async def adopt(self, submission: Submission, provider_batch_id: str, lease: Lease) -> None:
        """The provider has the batch: writes its id first, then starts the jobs, in groups."""
        async with self.database.transaction() as tx:
            await check(tx, lease)
            now_us = await tx.now_us()
            batch = (await lock_batches(tx, [submission.batch_id]))[submission.batch_id]
            adopted = submission._replace(state=SubmissionState.ADOPTED, provider_batch_id=provider_batch_id)
            if batch.state is not State.SUBMITTING or not await _write_submission(tx, adopted):
                return
            await write(tx, now_us, [], [note_of("batch.running", batches.adopt(batch, provider_batch_id, now_us))])
        while await self.start(submission.batch_id, lease):
            pass

    async def start(self, batch_id: str, lease: Lease) -> int:
        """Moves up to 1,000 jobs of an adopted batch to RUNNING; gives how many."""
        async with self.database.reading() as tx:
            rows = await tx.rows("batch_unstarted", batch_id=batch_id, count=LINES_MAX)
        if not rows:
            return 0
        async with self.database.transaction() as tx:
            await check(tx, lease)
            now_us = await tx.now_us()
            locked = await lock_jobs(tx, [row[0] for row in rows])
            changes = [change for job in locked if (change := jobs.start(job, job.attempt, now_us))]
            await write(tx, now_us, changes)
        self._wake()
        return len(changes)

    async def abandon(self, submission: Submission, not_before_us: int, lease: Lease, problem: str = "") -> None:
        """The provider has not got the batch and never will through this submission: the next may be opened.

        problem: why that needs a person, or empty.
        """
        async with self.database.transaction() as tx:
            await check(tx, lease)
            now_us = await tx.now_us()
            batch = (await lock_batches(tx, [submission.batch_id]))[submission.batch_id]
            abandoned = submission._replace(state=SubmissionState.ABANDONED)
            if await _write_submission(tx, abandoned) and batch.state is State.SUBMITTING:
                after = batches.abandon(batch, not_before_us, now_us, problem)
                await write(tx, now_us, [], [note_of("batch.abandoned", after)])

    async def update(self, batch: Batch, kind: str, lease: Lease) -> None:
        """Writes a batch that one of `batch`'s functions gave, unless another has changed it since it was read."""
        async with self.database.transaction() as tx:
            await check(tx, lease)
            before = (await lock_batches(tx, [batch.batch_id]))[batch.batch_id]
            if before.last_revision != batch.last_revision:
                return
            await write(tx, await tx.now_us(), [], [note_of(kind, batch)])
        self._wake()

    async def unwanted(self) -> list[str]:
        """Running batches whose every job is to be cancelled."""
        async with self.database.reading() as tx:
            return [row[0] for row in await tx.rows("batches_unwanted")]

    async def apply(self, batch_id: str, results: Sequence[Result], limits: Limits, lease: Lease) -> list[Change]:
        """Writes up to 1,000 results of a batch; those of attempts that are over are dropped: the answer is shorter."""
        by_attempt = _one_of_each(results)
        async with self.database.transaction() as tx:
            await check(tx, lease)
            now_us = await tx.now_us()
            locked = await lock_jobs(tx, {result.uid for result in results})
            extra = await _uncounted(tx, [job.uid for job in locked if job.attempt >= limits.attempts_max])
            changes = [
                change
                for job in locked
                if job.batch_id == batch_id
                and (result := by_attempt.get((job.uid, job.attempt)))
                and (change := _apply(job, result, _plus(limits, extra.get(job.uid, 0)), now_us))
            ]
            written, _ = await write(tx, now_us, changes)
        self._wake()
        return written

    async def lose_members(self, batch_id: str, loss: Loss, limits: Limits, lease: Lease) -> int:
        """Gives up to 1,000 members without an outcome the same loss; gives how many it were."""
        async with self.database.reading() as tx:
            rows = await tx.rows("batch_members", batch_id=batch_id, after_uid="", count=LINES_MAX)
        results = [Result(row["uid"], row["attempt"], loss) for row in rows]
        return len(await self.apply(batch_id, results, limits, lease)) if results else 0

    async def close(self, batch_id: str, lease: Lease) -> bool:
        """Closes a batch whose every member has its outcome; False while one has none."""
        async with self.database.transaction() as tx:
            await check(tx, lease)
            if await count_members(tx, batch_id):
                return False
            now_us = await tx.now_us()
            batch = (await lock_batches(tx, [batch_id]))[batch_id]
            if batch.state is not State.CLOSED:
                await write(tx, now_us, [], [note_of("batch.closed", batches.close(batch, now_us))])
        self._wake()
        return True


def raise_if_all_failed(outcomes: Sequence[Exception | None]) -> None:
    """Tells a loop that its step failed when it did for every batch: then it is not the batches that are at fault, and
    it is time to pause. What failed for some was logged, and is tried again at the loop's own pace.
    """
    if outcomes and all(outcome is not None for outcome in outcomes):
        raise next(outcome for outcome in outcomes if outcome is not None)


def _one_of_each(results: Sequence[Result]) -> dict[tuple[str, int], Result]:
    """One result of each attempt, the first: but an answer was paid for, so that no loss takes its place."""
    chosen: dict[tuple[str, int], Result] = {}
    for result in results:
        first = chosen.setdefault((result.uid, result.attempt), result)
        if isinstance(result.outcome, Answer) and not isinstance(first.outcome, Answer):
            chosen[result.uid, result.attempt] = result
    return chosen


def _apply(job: Job, result: Result, limits: Limits, now_us: int) -> Change | None:
    outcome = result.outcome
    if isinstance(outcome, Answer):
        return jobs.succeed(job, result.attempt, outcome, limits, now_us)
    failure, retryable, not_before_us = outcome
    return jobs.lose(job, result.attempt, failure, retryable, limits, now_us, not_before_us)


def _plus(limits: Limits, attempts: int) -> Limits:
    """The limits of a job of whose attempts some did not count."""
    return limits._replace(attempts_max=limits.attempts_max + attempts) if attempts else limits


async def _uncounted(tx: Transaction, uids: Sequence[str]) -> dict[str, int]:
    rows = await tx.rows("attempts_uncounted", uids=json.dumps(sorted(uids))) if uids else []
    return {row["uid"]: row["attempts"] for row in rows}


async def _write_submission(tx: Transaction, submission: Submission) -> bool:
    return bool(
        await tx.run(
            "submissions_update",
            batch_id=submission.batch_id,
            attempt=submission.attempt,
            input_file_id=submission.input_file_id,
            provider_batch_id=submission.provider_batch_id,
            state=submission.state.value,
            doubt_time_us=submission.doubt_time_us,
        )
    )
