"""What operators decide on the command line beside serving: `python -m services.batcher give-up <batch_id>`."""

import argparse
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

from services.batcher.batch import State
from services.batcher.job import Failure, Limits
from services.batcher.settings import BatcherSettings
from services.batcher.store_batches import BatchStore, Loss
from services.chassis import journal
from services.chassis.command import Command, Failed
from services.chassis.database import Database
from services.chassis.leases import Lease

LEASE_SECONDS: Final = 60.0
GIVEN_UP: Final = Failure("result_lost", "The provider hands no answer out, and an operator gave its batch up.")

Opened = Callable[[BatcherSettings], AbstractAsyncContextManager[tuple[Database, journal.Head]]]


def give_up_command(opened: Opened, new_id: Callable[[], str]) -> Command[BatcherSettings]:
    """`give-up`: closes a batch that the provider has, or may have, without its answers."""

    async def run(settings: BatcherSettings, asked: argparse.Namespace) -> None:
        async with opened(settings) as (database, _):
            lease = Lease(database, "give-up", new_id(), LEASE_SECONDS)
            if not await lease.hold():
                raise Failed("another batch is being given up: try again in a minute")
            try:
                jobs = await give_up(BatchStore(database, lambda: None), asked.batch, settings.job_limits(), lease)
            finally:
                await lease.release()
        print(f"given up: {asked.batch}; {jobs} jobs failed, and their tokens go back to their owners")

    return Command("give-up", "close a batch that waits for an operator; its jobs fail and cost nothing", _add, run)


async def give_up(store: BatchStore, batch_id: str, limits: Limits, lease: Lease) -> int:
    """Fails the jobs of a batch that have no answer, and closes it; gives how many they were. It is never bought again,
    and should it turn up at the provider all the same, it is cancelled. Raises Failed.
    """
    batch = await store.batch(batch_id)
    if batch is None or batch.state in (State.PLANNED, State.CLOSED):
        raise Failed(f"there is no batch {batch_id} that was bought and is open")
    jobs = 0
    while lost := await store.lose_members(batch_id, Loss(GIVEN_UP, retryable=False), limits, lease):
        jobs += lost
    submission = await store.submission(batch_id)
    if submission is not None:
        # Only now that nobody is in it, so that whoever finds it planned again has nothing to buy.
        doubted = submission._replace(doubt_time_us=submission.doubt_time_us or submission.create_time_us)
        await store.abandon(doubted, 0, lease)
    await store.close(batch_id, lease)
    return jobs


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("batch", help="the batch's id, as alerts and GetJob tell it")
