"""What the reconcilers read and write: how far the books were compared, what we know of a purchase, what is missing.

A purchase that we had forgotten is taken over in one transaction, so that a crash leaves it either to the next reading
or done.
"""

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from services.batcher import batch as batches
from services.batcher import job as jobs
from services.batcher.batch import Batch, State, Submission, SubmissionState
from services.batcher.job import Change, Job
from services.batcher.reconciliation import Listed, obstacle_of
from services.batcher.store_rows import (
    Note,
    Stored,
    batch_of,
    check,
    job_of,
    lock_batches,
    lock_jobs,
    submission_of,
    write,
)
from services.chassis.database import Transaction
from services.chassis.leases import Lease

OBSTACLES_MAX = 10_000


class Side(StrEnum):
    """Whose books are compared with ours."""

    PROVIDER = "PROVIDER"
    WALLET = "WALLET"


class Reading(NamedTuple):
    """When the last whole reading began and was complete; 0 for never."""

    begin_time_us: int
    complete_time_us: int


class Ours(NamedTuple):
    """What we know of purchases: submissions by intent, batches by id."""

    submissions: Mapping[str, Submission]
    batches: Mapping[str, Batch]


class Bought(NamedTuple):
    """A purchase to take over. lines: (uid, attempt) of each line where the batch has to be made of them."""

    listed: Listed
    input_file_id: str
    provider_identity: str
    lines: Sequence[tuple[str, int]] = ()


class Running(NamedTuple):
    """A batch that the provider has, as far as we know."""

    batch_id: str
    provider_batch_id: str
    create_time_us: int


class Obstacle(NamedTuple):
    """A batch for whose sake nothing is bought, and why."""

    batch_id: str
    provider_batch_id: str
    is_foreign: bool
    why: str


class ReconciliationStore(Stored):
    """The reconcilers' half of the batcher's database."""

    async def now_us(self) -> int:
        """The database's time."""
        async with self.database.reading() as tx:
            return await tx.now_us()

    async def last(self, side: Side) -> Reading:
        """The last whole reading of a side's books."""
        async with self.database.reading() as tx:
            row = await tx.row("reconciliations_read", side=side.value)
        return Reading(0, 0) if row is None else Reading._make(row)

    async def complete(self, side: Side, begin_time_us: int, lease: Lease) -> None:
        """Writes that a reading that began then is complete now."""
        async with self.database.transaction() as tx:
            await check(tx, lease)
            complete_us = max(begin_time_us, await tx.now_us())
            await tx.run(
                "reconciliations_write",
                side=side.value,
                begin_time_us=begin_time_us,
                complete_time_us=complete_us,
            )

    async def oldest_doubt_us(self, since_us: int) -> int | None:
        """When the oldest submission was opened that is open, or was in doubt and opened since then."""
        async with self.database.reading() as tx:
            row = await tx.row("submissions_oldest_doubt", since_us=since_us)
        return None if row is None else row[0]

    async def ours(self, listed: Sequence[Listed]) -> Ours:
        """What we know of purchases of the provider's list."""
        intent_ids = json.dumps(sorted({each.intent_id for each in listed}))
        batch_ids = json.dumps(sorted({each.batch_id for each in listed}))
        async with self.database.reading() as tx:
            submissions = map(submission_of, await tx.rows("submissions_by_intent", intent_ids=intent_ids))
            known = map(batch_of, await tx.rows("batches_read", batch_ids=batch_ids))
            return Ours(
                {submission.intent_id: submission for submission in submissions},
                {batch.batch_id: batch for batch in known},
            )

    async def running(self, before_us: int) -> list[Running]:
        """Running batches that were bought before a time."""
        async with self.database.reading() as tx:
            return [Running._make(row) for row in await tx.rows("purchases_running", before_us=before_us)]

    async def obstacles(self, identity: str) -> list[Obstacle]:
        """Batches for whose sake nothing may be bought under this identity, the oldest 10,000."""
        async with self.database.reading() as tx:
            rows = await tx.rows("purchases_obstructing", identity=identity, count=OBSTACLES_MAX)
        return [
            Obstacle(
                row["batch_id"],
                row["provider_batch_id"],
                row["provider_identity"] != identity,
                obstacle_of(row["provider_batch_id"], row["problem"], row["provider_identity"], identity),
            )
            for row in rows
        ]

    async def take_over(self, bought: Bought, lease: Lease) -> Batch | None:
        """Makes a purchase that we had forgotten ours; None where it is not wanted any more, or has no open job."""
        batch_id = bought.listed.batch_id
        async with self.database.transaction() as tx:
            await check(tx, lease)
            now_us = await tx.now_us()
            attempts = dict(bought.lines)
            locked = await lock_jobs(tx, attempts)
            changes = [c for job in locked if (c := jobs.recover(job, attempts[job.uid], batch_id, now_us))]
            known = (await lock_batches(tx, [batch_id])).get(batch_id)
            members = len(await tx.rows("batch_member_uids", batch_id=batch_id)) + len(changes)
            if not members or (known is not None and known.state not in (State.PLANNED, State.SUBMITTING)):
                return None
            before = known or batches.plan(batch_id, changes[0].job.model, members, now_us)
            attempt = await _attempt_of(tx, bought)
            after = batches.recover(before, members, attempt, bought.listed.provider_batch_id, now_us)
            await _give_up_open(tx, bought, now_us)
            kind = "batch.running" if known else "batch.rebuilt"
            _, notes = await write(tx, now_us, changes, [Note(kind, after, _progress(after))])
            await _move(tx, changes, batch_id)
            await _write_submission(tx, bought, attempt, now_us)
        self._wake()
        return notes[0].batch

    async def held(self, after: tuple[int, str], count: int) -> list[Job]:
        """Open jobs whose tokens are held, in the order of (hold_expire_time_us, uid)."""
        async with self.database.reading() as tx:
            rows = await tx.rows("jobs_held", after_us=after[0], after_uid=after[1], count=count)
        return [job_of(row) for row in rows]

    async def hold_until(self, expire_times_us: Mapping[str, int], lease: Lease) -> None:
        """Corrects until when open jobs' tokens are held; 0 where they are not."""
        rows = [{"uid": uid, "hold_expire_time_us": time_us} for uid, time_us in sorted(expire_times_us.items())]
        async with self.database.transaction() as tx:
            await check(tx, lease)
            await tx.run("jobs_hold_until", rows=json.dumps(rows))


async def _attempt_of(tx: Transaction, bought: Bought) -> int:
    """The number of the submission that bought it: a new one where we don't know it."""
    rows = await tx.rows("submissions_by_intent", intent_ids=json.dumps([bought.listed.intent_id]))
    if rows:
        return submission_of(rows[0]).attempt
    row = await tx.row("submissions_last", batch_id=bought.listed.batch_id)
    return 1 + (int(row["attempt"]) if row else 0)


async def _give_up_open(tx: Transaction, bought: Bought, now_us: int) -> None:
    """Closes the batch's open submission where another one has bought it. It stays in doubt for a day."""
    row = await tx.row("submission_open", batch_id=bought.listed.batch_id)
    if row is not None and row["intent_id"] != bought.listed.intent_id:
        values = submission_of(row)._replace(state=SubmissionState.ABANDONED, doubt_time_us=now_us)
        await tx.run(
            "submissions_update",
            batch_id=values.batch_id,
            attempt=values.attempt,
            input_file_id=values.input_file_id,
            provider_batch_id="",
            state=values.state.value,
            doubt_time_us=values.doubt_time_us,
        )


async def _move(tx: Transaction, changes: Sequence[Change], batch_id: str) -> None:
    """Takes along the attempts that were in another batch, which has not been bought."""
    moved = sorted(change.job.uid for change in changes if not change.opened)
    if moved:
        await tx.run("attempts_move", batch_id=batch_id, uids=json.dumps(moved))


async def _write_submission(tx: Transaction, bought: Bought, attempt: int, now_us: int) -> None:
    listed = bought.listed
    if not await tx.rows("submissions_by_intent", intent_ids=json.dumps([listed.intent_id])):
        await tx.run(
            "submissions_insert",
            batch_id=listed.batch_id,
            attempt=attempt,
            intent_id=listed.intent_id,
            provider_identity=bought.provider_identity,
            create_time_us=now_us,
        )
    await tx.run(
        "submissions_recover",
        intent_id=listed.intent_id,
        input_file_id=bought.input_file_id,
        provider_batch_id=listed.provider_batch_id,
        doubt_time_us=now_us,
    )


def _progress(batch: Batch) -> dict[str, object]:
    counts = {"total": batch.total, "completed": batch.completed, "failed": batch.failed}
    return {"state": batch.state, "provider_state": batch.provider_state, **counts}
