"""When batches are formed, by which of several replicas."""

import pytest

from services.batcher.backoff import Patience
from services.batcher.submitter import Submitter, SubmitterLimits
from services.chassis import leases
from services.chassis.leases import Lease, LeaseLost
from tests.batcher_jobs import LIMITS, new_uid, opened_stores

CYCLE_US = 1_000
PATIENCE = Patience(1, 1, 1, 1)


class Down:
    """A provider that is not asked: what is planned stays as it is."""

    def is_down(self):
        return True


class Free:
    """Nothing speaks against buying."""

    async def is_begun(self):
        return True

    async def obstacle(self):
        return ""


@pytest.fixture
async def stores(database_url):
    async with opened_stores(database_url) as opened:
        yield opened


def replica(stores):
    limits = SubmitterLimits(CYCLE_US, 10, 50, 10**6, 100, 1.0, 0, 0, PATIENCE, LIMITS)
    return Submitter(stores.batches, None, Down(), None, limits, new_uid, lambda: None, Free())


async def taken_over(stores):
    """The lease of another replica, which takes it from the one that had it."""
    async with stores.database.transaction() as tx:
        await leases.release(tx, "test", stores.lease.fence)
    lease = Lease(stores.database, "test", "another", 3600)
    assert await lease.hold()
    return lease


async def sizes(stores):
    return sorted(batch.jobs for batch in await stores.batches.open_batches())


async def test_a_cycle_that_one_replica_has_planned_is_not_planned_again_by_the_next(stores):
    """What comes behind the decision waits for the next cycle, whoever holds the lease by then, even one that held it
    long ago.
    """
    first, second = replica(stores), replica(stores)
    await second.step(stores.lease, 7 * CYCLE_US)
    await stores.queued("a", "b")
    await first.step(stores.lease, 8 * CYCLE_US)
    await stores.queued("late")
    lease = await taken_over(stores)
    await second.step(lease, 8 * CYCLE_US + 1)
    in_the_same_cycle = await sizes(stores)
    await second.step(lease, 9 * CYCLE_US)

    assert in_the_same_cycle == [2]
    assert await sizes(stores) == [1, 2]


async def test_a_replica_whose_lease_was_taken_decides_nothing(stores):
    first = replica(stores)
    await first.step(stores.lease, 7 * CYCLE_US)
    await stores.queued("a")
    await taken_over(stores)

    with pytest.raises(LeaseLost):
        await first.step(stores.lease, 8 * CYCLE_US)
    assert await sizes(stores) == []


async def test_a_cycle_that_came_while_nobody_ran_is_made_up_for_at_once(stores):
    await replica(stores).step(stores.lease, 7 * CYCLE_US)
    await stores.queued("a")
    await replica(stores).step(stores.lease, 9 * CYCLE_US + 1)

    assert await sizes(stores) == [1]


async def test_the_first_cycle_of_all_begins_with_the_next_boundary(stores):
    await stores.queued("a")
    only = replica(stores)
    await only.step(stores.lease, 7 * CYCLE_US + 1)
    before = await sizes(stores)
    await only.step(stores.lease, 8 * CYCLE_US)

    assert (before, await sizes(stores)) == ([], [1])
