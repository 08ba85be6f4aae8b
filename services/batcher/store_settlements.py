"""Settlements that were carried out, in the order in which they were, as the journal has it."""

import json
from collections.abc import Mapping
from typing import NamedTuple

from services.batcher.job import Change, Settlement, State, uncollect
from services.batcher.store_rows import check, lock_jobs, settlement_of, write
from services.chassis import journal
from services.chassis.database import Database, Row
from services.chassis.leases import Lease

ROWS_SCANNED = 20_000
"""Rows of the journal that one page looks through, of which a job has six."""


class Owed(NamedTuple):
    """A settlement, and how its job ended."""

    uid: str
    ended: State
    settlement: Settlement


class SettledPage(NamedTuple):
    """Settlements, newest first. before: the revision from which the next page goes on; 0 where there is none."""

    settled: list[Owed]
    before: int


class SettlementStore:
    """What the reconciler reads and corrects of settlements."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def newest(self) -> int:
        """The revision from which the first page goes on."""
        async with self._database.reading() as tx:
            return (await journal.read_head(tx)).revision + 1

    async def settled_before(self, before: int, count: int) -> SettledPage:
        """Settlements that are SETTLED, and were before the journal's revision, newest first."""
        floor = max(1, before - ROWS_SCANNED)
        async with self._database.reading() as tx:
            rows = await tx.rows("settlements_settled", before=before, floor=floor, count=count)
        is_full = len(rows) == count
        after = rows[-1]["revision"] if is_full else floor
        return SettledPage([_owed(row) for row in rows if row["state"] == "SETTLED"], after if after > 1 else 0)

    async def first_charged(self, count: int) -> list[Owed]:
        """The first settlements that took a price."""
        async with self._database.reading() as tx:
            rows = await tx.rows("settlements_first_charged", floor=ROWS_SCANNED, count=count)
        return [_owed(row) for row in rows]

    async def uncollect(self, refusals: Mapping[str, str], lease: Lease) -> list[Change]:
        """Writes that the wallet has lost settlements and refuses them now, by uid with its reason."""
        async with self._database.transaction() as tx:
            await check(tx, lease)
            now_us = await tx.now_us()
            locked = await lock_jobs(tx, refusals)
            rows = await tx.rows("settlements_lock", uids=json.dumps(sorted(refusals)))
            owed = {row["uid"]: settlement_of(row) for row in rows}
            changes = [
                change for job in locked if job.uid in owed and (change := uncollect(job, owed[job.uid], now_us))
            ]
            await tx.run_many("settlements_uncollect", [(c.job.uid, now_us, refusals[c.job.uid]) for c in changes])
            written, _ = await write(tx, now_us, changes)
        return written


def _owed(row: Row) -> Owed:
    return Owed(row["uid"], State(row["job_state"]), settlement_of(row))
