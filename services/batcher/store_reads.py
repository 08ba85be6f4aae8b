"""What can be asked of the jobs without changing them, and of images; each method sees one consistent snapshot."""

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from services.batcher.errors import JobNotFound
from services.batcher.job import Job, Settlement, State
from services.batcher.store_rows import JobView, Stored, job_of, settlement_of, view_of
from services.chassis import journal
from services.chassis.database import Transaction


class Image(NamedTuple):
    """A stored image, as its row."""

    account_id: str
    image_id: str
    media_type: str
    width_pixels: int
    height_pixels: int
    size_bytes: int
    object_key: str
    create_time_us: int


class JobReads(Stored):
    """The reading half of the jobs' store."""

    async def head(self) -> journal.Head:
        """The journal's end."""
        async with self.database.reading() as tx:
            return await journal.read_head(tx)

    async def images(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Image]:
        """Images by (account_id, image_id); unknown ones are left out."""
        async with self.database.reading() as tx:
            return await images_of(tx, keys)

    async def view(self, account_id: str, job_id: str) -> JobView:
        """A job as it is now. Raises JobNotFound."""
        async with self.database.reading() as tx:
            return await view_by_key(tx, account_id, job_id)

    async def view_at(self, account_id: str, job_id: str) -> tuple[JobView, journal.Head]:
        """A job and the journal's end, of one moment. Raises JobNotFound."""
        async with self.database.reading() as tx:
            return await view_by_key(tx, account_id, job_id), await journal.read_head(tx)

    async def view_of(self, uid: str) -> JobView:
        """A job by our id."""
        async with self.database.reading() as tx:
            row = await tx.row("job_view", uid=uid)
        if row is None:
            raise JobNotFound("", uid)
        return view_of(row)

    async def views(self, account_id: str, state: str, before_uid: str, count: int) -> list[JobView]:
        """An account's jobs, newest first. state and before_uid may be empty."""
        async with self.database.reading() as tx:
            rows = await tx.rows("job_views", account_id=account_id, state=state, before_uid=before_uid, count=count)
        return [view_of(row) for row in rows]

    async def pending_lowerings(self, count: int) -> list[tuple[str, int]]:
        """Holds that are to be lowered, by uid, each with the amount that is enough."""
        async with self.database.reading() as tx:
            rows = await tx.rows("lowerings_pending", count=count)
        return [(row["uid"], row["amount"]) for row in rows]

    async def pending_settlements(self, after_uid: str, count: int) -> list[tuple[str, State, Settlement]]:
        """Settlements that the wallet has not answered, by uid, each with how its job ended."""
        async with self.database.reading() as tx:
            rows = await tx.rows("settlements_pending", after_uid=after_uid, count=count)
        return [(row["uid"], State(row["job_state"]), settlement_of(row)) for row in rows]

    async def admitting(self, before_us: int, count: int) -> list[str]:
        """Jobs that have waited for the wallet since before the given time."""
        async with self.database.reading() as tx:
            rows = await tx.rows("jobs_admitting", before_us=before_us, count=count)
        return [row[0] for row in rows]

    async def renewable(self, before_us: int, count: int) -> list[str]:
        """Open jobs whose hold ends before the given time, the most urgent first."""
        async with self.database.reading() as tx:
            rows = await tx.rows("jobs_renewable", before_us=before_us, count=count)
        return [row[0] for row in rows]

    async def read(self, uids: Sequence[str]) -> list[Job]:
        """Jobs by our ids."""
        async with self.database.reading() as tx:
            return [job_of(row) for row in await tx.rows("jobs_read", uids=json.dumps(sorted(uids)))]


def keys_of(pairs: Iterable[tuple[str, str | int]]) -> str:
    """Pairs of a key as a query takes them."""
    return json.dumps(sorted(pairs))


async def images_of(tx: Transaction, keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Image]:
    """Images by (account_id, image_id), in a transaction that is open; unknown ones are left out."""
    rows = await tx.rows("images_get", keys=keys_of(set(keys)))
    return {(image.account_id, image.image_id): image for image in map(Image._make, rows)}


async def view_by_key(tx: Transaction, account_id: str, job_id: str) -> JobView:
    """A job, in a transaction that is open. Raises JobNotFound."""
    row = await tx.row("job_view_by_key", account_id=account_id, job_id=job_id)
    if row is None:
        raise JobNotFound(account_id, job_id)
    return view_of(row)
