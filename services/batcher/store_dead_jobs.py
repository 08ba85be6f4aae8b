"""The jobs that died, as an operator reads them: with their cause, and with what was tried."""

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from services.batcher.store_rows import JobView, view_of
from services.chassis.database import Database, Transaction

ATTEMPTS_SHOWN_MAX = 10
"""A job that waited for a provider without room may have thousands: each time that it was refused costs one."""


class Attempt(NamedTuple):
    """One try of a job. batch_id: empty for an instant one; end_time_us: 0 while it runs; outcome: a word, or empty."""

    attempt: int
    batch_id: str
    start_time_us: int
    end_time_us: int
    outcome: str


class DeadJob(NamedTuple):
    """A job that FAILED or EXPIRED, when, and its last attempts, oldest first."""

    view: JobView
    end_time_us: int
    attempts: tuple[Attempt, ...]


class Wanted(NamedTuple):
    """Which dead jobs to list: of one account and one cause where these are named, ended at since_us or later and
    before (before_us, before_uid), in the order of (end_time_us, uid).
    """

    account_id: str
    failure_code: str
    since_us: int
    before_us: int
    before_uid: str


async def dead_jobs(database: Database, wanted: Wanted, count: int) -> list[DeadJob]:
    """The jobs that are wanted, those that ended last first."""
    async with database.reading() as tx:
        rows = await tx.rows("jobs_dead", **wanted._asdict(), count=count)
        attempts = await _attempts(tx, [row["uid"] for row in rows])
    return [DeadJob(view_of(row), row["end_time_us"], tuple(attempts[row["uid"]])) for row in rows]


async def _attempts(tx: Transaction, uids: Sequence[str]) -> dict[str, list[Attempt]]:
    found: dict[str, list[Attempt]] = defaultdict(list)
    for row in await tx.rows("attempts_last", uids=json.dumps(uids), count=ATTEMPTS_SHOWN_MAX):
        found[row["uid"]].append(Attempt(*row[1:]))
    return found
