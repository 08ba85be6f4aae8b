"""The jobs in the database: each command is one transaction, and what it may do is decided by `job`.

submit      a group of new jobs, or the ones that their keys stand for already
admit       what the wallet said about jobs in ADMITTING
cancel, expire, lose_holds, renew, answer, retry
settle      what the wallet said about settlements
lower       what the wallet said about holds that are larger than what their job costs
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from services.batcher import batch as batches
from services.batcher import job as jobs
from services.batcher import prompt_tokens
from services.batcher.batch import line_bytes
from services.batcher.errors import IdempotencyMismatch, ImageNotFound, JobEnded, JobNotFound, PriceChanged
from services.batcher.job import Answer, Change, Failure, Job, Limits, State
from services.batcher.order import first_difference
from services.batcher.pricing import Terms, pinned
from services.batcher.store_prices import PriceBook
from services.batcher.store_reads import Image, JobReads, images_of, keys_of, view_by_key
from services.batcher.store_rows import (
    JobView,
    check,
    job_of,
    lock_batches,
    lock_jobs,
    settlement_of,
    write,
)
from services.chassis.database import Database, Transaction
from services.chassis.leases import Lease

ROWS_MAX = 1_000


class NewJob(NamedTuple):
    """A job to store. order: as encoded by `order`; its line's size is computed from its images when it is stored, and
    its price found by the terms.
    """

    job: Job
    order: str
    image_ids: tuple[str, ...]
    detail: str
    max_output_tokens: int
    actor: str
    terms: Terms = Terms()


class Submitted(NamedTuple):
    """The job that a key stands for now. replayed: it did before."""

    job: Job
    replayed: bool


class Store(JobReads):
    """Jobs, images and settlements. inline: images travel in the lines of a batch, so that their bytes count.

    prices: by which new jobs are priced when they are stored; without it they carry their prices.
    """

    def __init__(
        self, database: Database, wake: Callable[[], None], inline: bool, prices: PriceBook | None = None
    ) -> None:
        super().__init__(database, wake)
        self._inline = inline
        self._prices = prices

    async def add_image(self, image: Image) -> Image:
        """Stores an image's row once; gives the one that stands."""
        async with self.database.transaction() as tx:
            await tx.run("images_insert", **image._asdict())
            stored = await images_of(tx, [(image.account_id, image.image_id)])
        return stored[image.account_id, image.image_id]

    async def submit(self, commands: Sequence[NewJob]) -> list[Submitted | Exception]:
        """Stores a group of new jobs. A key that is known gives the job it stands for, ImageNotFound or
        IdempotencyMismatch, a new one also PriceChanged; a job that the wallet rejected stored nothing, so its key is
        free again.
        """
        async with self.database.transaction() as tx:
            priced = await self._pricer(tx)
            now_us = await tx.now_us()
            rows = await tx.rows("jobs_by_key", keys=keys_of({(c.job.account_id, c.job.job_id) for c in commands}))
            known = {(row["account_id"], row["job_id"]): (job_of(row), row["request"]) for row in rows}
            images = await images_of(tx, {(c.job.account_id, image_id) for c in commands for image_id in c.image_ids})
            results: list[Submitted | Exception] = []
            new: list[tuple[NewJob, Change]] = []
            superseded: list[tuple[str]] = []
            for command in commands:
                key = (command.job.account_id, command.job.job_id)
                before = known.get(key)
                if before is not None and before[0].state is not State.REJECTED:
                    results.append(_again(command, *before, images))
                    continue
                missing = _missing_image(command, images)
                if missing is not None:
                    results.append(missing)
                    continue
                try:
                    accepted = self._accepted(command, priced(command), images, now_us)
                except PriceChanged as refusal:
                    results.append(refusal)
                    continue
                if before is not None:
                    superseded.append((before[0].uid,))
                known[key] = (accepted, command.order)
                new.append((command, jobs.accept(accepted)))
                results.append(Submitted(accepted, False))
            written = await self._insert(tx, new, images, superseded, now_us)
        self._wake()
        return [r._replace(job=written.get(r.job.uid, r.job)) if isinstance(r, Submitted) else r for r in results]

    async def _pricer(self, tx: Transaction) -> Callable[[NewJob], Job]:
        """What pins the prices of new jobs, raising PriceChanged. No list changes until the transaction ends."""
        if self._prices is None:
            return lambda command: command.job
        lists, time_us = await self._prices.shared(tx)
        return lambda command: pinned(command.job, lists, command.terms, time_us)

    def _accepted(self, command: NewJob, job: Job, images: Mapping[tuple[str, str], Image], now_us: int) -> Job:
        image_bytes = sum(images[command.job.account_id, image_id].size_bytes for image_id in command.image_ids)
        size = line_bytes(len(command.order), image_bytes, self._inline)
        return job._replace(line_bytes=size, create_time_us=now_us, update_time_us=now_us)

    async def _insert(
        self,
        tx: Transaction,
        new: Sequence[tuple[NewJob, Change]],
        images: Mapping[tuple[str, str], Image],
        superseded: Sequence[tuple[str]],
        now_us: int,
    ) -> dict[str, Job]:
        if not new:
            return {}
        await tx.run_many("jobs_supersede", superseded)
        done, _ = await write(
            tx,
            now_us,
            [change for _, change in new],
            actors={command.job.uid: command.actor for command, _ in new},
            orders={c.job.uid: (c.detail, c.max_output_tokens, c.order, _prompt_tokens(c, images)) for c, _ in new},
        )
        return {change.job.uid: change.job for change in done}

    async def admit(
        self, outcomes: Mapping[str, int | Failure], lease_us: int, lease: Lease | None = None
    ) -> list[Change]:
        """Writes what the wallet said about jobs, until when it holds their tokens or why not: they queue, run or end.

        lease_us: how long an instant attempt that begins here is left to this process.
        """

        def decide(job: Job, now_us: int) -> Change | None:
            outcome = outcomes[job.uid]
            if isinstance(outcome, Failure):
                return jobs.refuse(job, outcome, now_us)
            return jobs.hold(job, outcome, now_us)

        return await self._change(outcomes, decide, lease, lease_us=lease_us)

    async def cancel(self, account_id: str, job_id: str, actor: str) -> tuple[JobView, bool]:
        """Ends a job or notes the wish to. Gives the job and whether it was asked before. Raises JobNotFound,
        JobEnded.
        """
        async with self.database.transaction() as tx:
            now_us = await tx.now_us()
            rows = await tx.rows("jobs_by_key", keys=keys_of({(account_id, job_id)}))
            if not rows:
                raise JobNotFound(account_id, job_id)
            job = job_of(rows[0])
            if jobs.is_final(job) and job.state is not State.CANCELLED:
                raise JobEnded(job_id, job.state)
            batch = (await lock_batches(tx, [job.batch_id])).get(job.batch_id)
            frozen = batch is not None and batch.state is not batches.State.PLANNED
            change = jobs.cancel(job, frozen, now_us)
            if change is not None:
                await write(tx, now_us, [change], actors={job.uid: actor})
            view = await view_by_key(tx, account_id, job_id)
        self._wake()
        return view, change is None

    async def expire(self, lease: Lease | None = None) -> list[Change]:
        """Ends up to 1,000 jobs whose deadline passed while they waited."""
        async with self.database.reading() as tx:
            rows = await tx.rows("jobs_overdue", now_us=await tx.now_us(), count=ROWS_MAX)
        return await self._change([row[0] for row in rows], jobs.expire, lease)

    async def lose_holds(self, uids: Sequence[str], lease: Lease | None = None) -> list[Change]:
        """Ends queued jobs whose tokens the wallet has given back."""
        return await self._change(uids, jobs.lose_hold, lease)

    async def answer(self, uid: str, attempt: int, answer: Answer, limits: Limits) -> list[Change]:
        """Writes the answer of an instant attempt; nothing if the attempt is an old one."""
        return await self._change([uid], lambda job, now_us: jobs.succeed(job, attempt, answer, limits, now_us))

    async def lose(
        self, uid: str, attempt: int, failure: Failure, retryable: bool, limits: Limits, lease_us: int
    ) -> list[Change]:
        """Writes the loss of an instant attempt: the next one begins, or the job ends."""

        def decide(job: Job, now_us: int) -> Change | None:
            return jobs.lose(job, attempt, failure, retryable, limits, now_us)

        return await self._change([uid], decide, lease_us=lease_us)

    async def settle(self, refusals: Mapping[str, str], lease: Lease | None = None) -> list[Change]:
        """Writes what the wallet said about settlements, by uid: why it refused, or nothing where it took them."""
        async with self.database.transaction() as tx:
            await check(tx, lease)
            now_us = await tx.now_us()
            locked = await lock_jobs(tx, refusals)
            rows = await tx.rows("settlements_lock", uids=json.dumps(sorted(refusals)))
            owed = {row["uid"]: settlement_of(row) for row in rows}
            changes = [
                change
                for job in locked
                if job.uid in owed and (change := jobs.settle(job, owed[job.uid], not refusals[job.uid], now_us))
            ]
            await tx.run_many(
                "settlements_update",
                [(c.job.uid, c.settlement.state.value, now_us, refusals[c.job.uid]) for c in changes if c.settlement],
            )
            written, _ = await write(tx, now_us, changes)
        self._wake()
        return written

    async def lower(self, refusals: Mapping[str, str], lost: Iterable[str], lease: Lease | None = None) -> list[Change]:
        """Writes what the wallet said about lowered holds, by uid: why it refused, or nothing where it did it.

        lost: those whose hold is gone; their jobs end, if they still queue.
        """
        async with self.database.transaction() as tx:
            await check(tx, lease)
            now_us = await tx.now_us()
            changes = [change for job in await lock_jobs(tx, lost) if (change := jobs.lose_hold(job, now_us))]
            answers = [(uid, "REFUSED" if said else "DONE", now_us, said) for uid, said in sorted(refusals.items())]
            await tx.run_many("lowerings_update", answers)
            written, _ = await write(tx, now_us, changes)
        self._wake()
        return written

    async def keep_attempts(self, attempts: Iterable[tuple[str, int]], lease_us: int) -> None:
        """Leaves instant attempts to this process for that long from now, those that are not over."""
        async with self.database.transaction() as tx:
            await tx.run("attempts_keep", keys=keys_of(attempts), lease_time_us=await tx.now_us() + lease_us)

    async def claim_orphans(self, count: int, lease_us: int) -> list[str]:
        """Instant jobs whose attempt was begun by a process that is gone: they are left to this one for that long.

        Replicas may ask at once: none waits for another, and no two get the same.
        """
        async with self.database.transaction() as tx:
            now_us = await tx.now_us()
            rows = await tx.rows("attempts_claim", now_us=now_us, lease_time_us=now_us + lease_us, count=count)
        return [row[0] for row in rows]

    async def _change(
        self,
        uids: Iterable[str],
        decide: Callable[[Job, int], Change | None],
        lease: Lease | None = None,
        lease_us: int = 0,
    ) -> list[Change]:
        """Locks jobs, decides about each, writes what changed."""
        wanted = list(uids)
        if not wanted:
            return []
        async with self.database.transaction() as tx:
            await check(tx, lease)
            now_us = await tx.now_us()
            changes = [change for job in await lock_jobs(tx, wanted) if (change := decide(job, now_us))]
            written, _ = await write(tx, now_us, changes, lease_us=lease_us)
        if written:
            self._wake()
        return written


def _again(command: NewJob, before: Job, order: str, images: Mapping[tuple[str, str], Image]) -> Submitted | Exception:
    """What a key gives that stands for a job already."""
    difference = first_difference(order, command.order)
    if difference is None:
        # A group whose outcome was unknown is run again, and then finds what it has written itself.
        return Submitted(before, before.uid != command.job.uid)
    return _missing_image(command, images) or IdempotencyMismatch(command.job.job_id, *difference)


def _missing_image(command: NewJob, images: Mapping[tuple[str, str], Image]) -> ImageNotFound | None:
    account_id = command.job.account_id
    missing = [image_id for image_id in command.image_ids if (account_id, image_id) not in images]
    return ImageNotFound(account_id, missing[0]) if missing else None


def _prompt_tokens(command: NewJob, images: Mapping[tuple[str, str], Image]) -> int:
    seen = (images[command.job.account_id, image_id] for image_id in command.image_ids)
    sizes = ((image.width_pixels, image.height_pixels) for image in seen)
    return prompt_tokens.estimate(command.job.model, command.detail, len(command.order), sizes)
