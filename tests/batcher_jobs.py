"""Jobs and images for tests of the batcher's stores and loops."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from services.batcher import job as jobs
from services.batcher.job import Job, Lane, State
from services.batcher.order import Order, encode
from services.batcher.store import NewJob, Store, Submitted
from services.batcher.store_batches import BatchStore
from services.batcher.store_reads import Image
from services.chassis import journal
from services.chassis.database import Database
from services.chassis.leases import Lease
from tests.databases import opened

HOUR_US = 3600 * 1_000_000
FAR_US = 2**52
IMAGE_ID = "ab" * 32
LIMITS = jobs.Limits(attempts_max=3, uncharged_finish_reasons=frozenset({"content_filter"}))

_made = iter(range(1, 10**9))


def new_uid() -> str:
    """Ids that grow."""
    return jobs.uid_of(next(_made) * 1_000, secrets.randbits(74))


def new_job(job_id: str, account_id: str = "alice", **fields) -> NewJob:
    """A job as the edge hands it to the store; `fields` replace those of the job, prompt and image_ids the order's."""
    order = Order(
        "", fields.pop("image_ids", (IMAGE_ID,)), fields.pop("prompt", "What?"), "BATCH", "", "AUTO", None, {}, None
    )
    job = Job(
        uid=new_uid(),
        account_id=account_id,
        job_id=job_id,
        payer_account_id=account_id,
        lane=Lane.BATCH,
        model="gpt-x",
        price=1,
        price_version="1",
        line_bytes=0,
        deadline_us=FAR_US,
        hold_duration_us=26 * HOUR_US,
        create_time_us=0,
        update_time_us=0,
        queue_time_us=0,
        not_before_us=0,
        hold_expire_time_us=0,
        state=State.ADMITTING,
        attempt=0,
        batch_id="",
        cancel_requested=False,
        last_revision=0,
    )._replace(**fields)
    return NewJob(job, encode(order), order.image_ids, "AUTO", 300, account_id)


def image(account_id: str = "alice", image_id: str = IMAGE_ID) -> Image:
    """A stored image's row."""
    return Image(account_id, image_id, "image/png", 8, 8, 300, f"images/{account_id}/{image_id}", 1)


class Stores:
    """Both stores over one database, with a lease that is held."""

    def __init__(self, database: Database, lease: Lease) -> None:
        self.database = database
        self.lease = lease
        self.woken = 0
        self.jobs = Store(database, self._wake, inline=True)
        self.batches = BatchStore(database, self._wake)

    def _wake(self) -> None:
        self.woken += 1

    async def queued(self, *job_ids: str, **fields) -> list[Job]:
        """Submits jobs and has their tokens held."""
        await self.jobs.add_image(image(fields.get("account_id", "alice")))
        results = await self.jobs.submit([new_job(job_id, **fields) for job_id in job_ids])
        uids = [result.job.uid for result in results if isinstance(result, Submitted)]
        return [change.job for change in await self.jobs.admit(dict.fromkeys(uids, FAR_US), HOUR_US)]

    async def journal(self) -> list[journal.Row]:
        """All rows; fails where the chain or a subject's walk is broken."""
        async with self.database.reading() as tx:
            rows = await journal.read_after(tx, 0, 100_000)
        assert journal.verify_chain(rows) is None
        newest: dict[str, int] = {}
        for row in rows:
            assert row.previous == newest.get(row.subject, 0), row
            newest[row.subject] = row.revision
        return rows


@asynccontextmanager
async def opened_stores(url: str) -> AsyncIterator[Stores]:
    """The batcher's stores on a fresh database."""
    async with opened(url, Path("services/batcher")) as database:
        async with database.transaction() as tx:
            await journal.open_head(tx, "epoch", await tx.now_us())
        lease = Lease(database, "test", "tester", 3600)
        assert await lease.hold()
        yield Stores(database, lease)
        await lease.release()
