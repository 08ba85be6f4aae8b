"""Who is in a batch, in the database. A batch of 50,000 jobs takes no more memory than one of 1,000: it is filled, left
and cut in transactions of at most 1,000 jobs, while it is PLANNED and nobody has bought anything for it.

    plan, plan, ... ──► leave, leave, ... ──► freeze
          split, split, ... ▲

Between two of them the batch is a smaller one than was meant, and a good one all the same: a process that dies there
leaves jobs that queue for the next batch, or a batch that was cut at another place.
"""

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

from services.batcher import batch as batches
from services.batcher import job as jobs
from services.batcher.batch import Batch, State, Submission
from services.batcher.job import Change, Failure, Job
from services.batcher.planner import Planned
from services.batcher.store_allowances import AllowanceStore
from services.batcher.store_rows import Member, Note, check, lock_batches, lock_jobs, member_of, submission_of, write
from services.chassis.database import Transaction
from services.chassis.leases import Lease

MEMBERS_MAX = 1_000
"""Members in one transaction, and in one page."""


class MemberStore(AllowanceStore):
    """The members of batches until they are frozen. Each command takes the lease of the loop that runs it."""

    async def members(self, batch_id: str) -> AsyncIterator[Member]:
        """The jobs of a batch that have no outcome yet, in uid order, read in pages."""
        after_uid = ""
        while True:
            async with self.database.reading() as tx:
                rows = await tx.rows("batch_members", batch_id=batch_id, after_uid=after_uid, count=MEMBERS_MAX)
            for row in rows:
                yield member_of(row)
            if len(rows) < MEMBERS_MAX:
                return
            after_uid = rows[-1]["uid"]

    async def member_uids(self, batch_id: str) -> list[str]:
        """The jobs of a batch that have no outcome yet, in the order of their lines in its input file."""
        async with self.database.reading() as tx:
            return [row[0] for row in await tx.rows("batch_member_uids", batch_id=batch_id)]

    async def plan(self, planned: Planned, batch_id: str, lease: Lease) -> Batch | None:
        """Makes a batch of the jobs that are still free; None when all were gone."""
        batch: Batch | None = None
        for uids in pages(planned.uids):
            batch = await self._fill(planned.model, uids, batch_id, lease) or batch
        return batch

    async def _fill(self, model: str, uids: Sequence[str], batch_id: str, lease: Lease) -> Batch | None:
        """Takes free jobs into a batch that is new, or still PLANNED; None when it took none."""
        async with self.database.transaction() as tx:
            await check(tx, lease)
            now_us = await tx.now_us()
            changes = [c for job in await lock_jobs(tx, uids) if (c := jobs.plan(job, batch_id, now_us))]
            before = (await lock_batches(tx, [batch_id])).get(batch_id)
            if not changes or (before is not None and before.state is not State.PLANNED):
                return None
            tokens = await _tokens(tx, [change.job.uid for change in changes])
            if before is None:
                note = note_of("batch.planned", batches.plan(batch_id, model, len(changes), now_us, tokens))
            else:
                note = note_of("batch.grown", batches.grow(before, len(changes), tokens, now_us))
            _, notes = await write(tx, now_us, changes, [note])
        self._wake()
        return notes[0].batch

    async def freeze(
        self, batch_id: str, lost: Mapping[str, Failure], intent_id: str, provider_identity: str, lease: Lease
    ) -> Submission | None:
        """Freezes the members and opens a submission; jobs that are lost, late or cancelled leave before that.

        None: nobody was left, and the batch is closed.
        """
        for uids in pages(sorted(lost)):
            await self._leave(batch_id, uids, lost, lease)
        while uids := await self._leaving(batch_id):
            if not await self._leave(batch_id, uids, lost, lease):
                break
        async with self.database.transaction() as tx:
            await check(tx, lease)
            now_us = await tx.now_us()
            # Whoever cancels a member locks the batch too, so that nobody leaves between the count and the freezing.
            batch = (await lock_batches(tx, [batch_id]))[batch_id]
            if batch.state is not State.PLANNED:
                return None
            left = await count_members(tx, batch_id)
            if not left:
                await write(tx, now_us, [], [note_of("batch.closed", batches.close(batch, now_us))])
            else:
                frozen = batches.freeze(batch, left, now_us)
                await write(tx, now_us, [], [note_of("batch.submitting", frozen)])
                await tx.run(
                    "submissions_insert",
                    batch_id=batch_id,
                    attempt=frozen.submission,
                    intent_id=intent_id,
                    provider_identity=provider_identity,
                    create_time_us=now_us,
                )
            row = await tx.row("submission_open", batch_id=batch_id)
        self._wake()
        return None if row is None else submission_of(row)

    async def _leaving(self, batch_id: str) -> list[str]:
        """Members whose deadline has passed, or that somebody wants to be cancelled."""
        async with self.database.reading() as tx:
            now_us = await tx.now_us()
            rows = await tx.rows("batch_leaving", batch_id=batch_id, now_us=now_us, count=MEMBERS_MAX)
        return [row[0] for row in rows]

    async def _leave(self, batch_id: str, uids: Sequence[str], lost: Mapping[str, Failure], lease: Lease) -> int:
        """Lets members go from a batch that is still PLANNED; gives how many went."""
        async with self.database.transaction() as tx:
            await check(tx, lease)
            now_us = await tx.now_us()
            members = [job for job in await lock_jobs(tx, uids) if job.batch_id == batch_id]
            batch = (await lock_batches(tx, [batch_id]))[batch_id]
            if batch.state is not State.PLANNED:
                return 0
            changes = [change for job in members if (change := _left(job, lost, now_us))]
            await write(tx, now_us, changes)
        self._wake()
        return len(changes)

    async def split(self, batch_id: str, new_batch_id: str, lease: Lease) -> Batch | None:
        """Moves half of a planned batch's members to a new one; None where it can't be cut."""
        members = await self.member_uids(batch_id)
        new: Batch | None = None
        for uids in pages(members[(len(members) + 1) // 2 :]):
            new = await self._move(batch_id, uids, new_batch_id, lease) or new
        return new

    async def _move(self, batch_id: str, uids: Sequence[str], new_batch_id: str, lease: Lease) -> Batch | None:
        """Moves members to another batch, which is new or was begun by the move before; None when none was moved."""
        async with self.database.transaction() as tx:
            await check(tx, lease)
            now_us = await tx.now_us()
            moved = [job for job in await lock_jobs(tx, uids) if job.batch_id == batch_id]
            locked = await lock_batches(tx, [batch_id, new_batch_id])
            batch, before = locked[batch_id], locked.get(new_batch_id)
            if batch.state is not State.PLANNED or not moved:
                return None
            tokens = await _tokens(tx, [job.uid for job in moved])
            counted = batch._replace(jobs=await count_members(tx, batch_id), tokens=max(batch.tokens, tokens))
            left, new = batches.split(counted, new_batch_id, len(moved), tokens, now_us)
            note = note_of("batch.planned", new)
            if before is not None:
                note = note_of("batch.grown", batches.grow(before, len(moved), tokens, now_us))
            await tx.run("attempts_move", batch_id=new_batch_id, uids=json.dumps([job.uid for job in moved]))
            changes = [batches.move(job, new_batch_id, now_us) for job in moved]
            _, notes = await write(tx, now_us, changes, [note_of("batch.split", left), note])
        self._wake()
        return notes[1].batch


def pages(uids: Sequence[str]) -> Iterator[Sequence[str]]:
    """The uids in groups that fit into a transaction."""
    return (uids[start : start + MEMBERS_MAX] for start in range(0, len(uids), MEMBERS_MAX))


async def count_members(tx: Transaction, batch_id: str) -> int:
    """How many members of a batch have no outcome yet."""
    row = await tx.row("batch_size", batch_id=batch_id)
    return int(row[0]) if row else 0


def note_of(kind: str, batch: Batch) -> Note:
    """What the journal holds of a batch: enough to show its progress."""
    counts = batches.Counts(batch.total, batch.completed, batch.failed)._asdict()
    return Note(kind, batch, {"state": batch.state, "provider_state": batch.provider_state, **counts})


def _left(job: Job, lost: Mapping[str, Failure], now_us: int) -> Change | None:
    """How a member leaves the batch before it is bought, if it does."""
    if job.cancel_requested or now_us >= job.deadline_us or job.uid in lost:
        return jobs.leave(job, job.attempt, lost.get(job.uid, jobs.DEADLINE), now_us)
    return None


async def _tokens(tx: Transaction, uids: Sequence[str]) -> int:
    row = await tx.row("prompt_tokens_of", uids=json.dumps(sorted(uids)))
    return int(row["tokens"]) if row else 0
