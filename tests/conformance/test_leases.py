"""Leases and fences on both databases."""

from __future__ import annotations

import asyncio

import pytest

from services.chassis import leases
from services.chassis.database import Database
from services.chassis.leases import Lease, LeaseLost

LONG = 60.0
OVER = -1.0


async def test_a_lease_has_one_holder_until_it_is_released(chassis_database: Database):
    ann, bob = (Lease(chassis_database, "poller", holder, LONG) for holder in ("ann", "bob"))
    assert await ann.hold()
    assert not await bob.hold()
    assert await ann.hold()
    assert ann.fence == 1

    await ann.release()
    assert await bob.hold()
    assert bob.fence == 2
    assert not await ann.hold()


async def test_a_lease_that_is_over_can_be_taken_and_the_old_holder_is_fenced_off(chassis_database: Database):
    ann, bob = Lease(chassis_database, "poller", "ann", OVER), Lease(chassis_database, "poller", "bob", LONG)
    assert await ann.hold()
    assert await bob.hold()

    async with chassis_database.transaction() as tx:
        with pytest.raises(LeaseLost):
            await ann.check(tx)
        await bob.check(tx)
    assert not await ann.renew()
    assert ann.fence is None


async def test_a_lease_that_is_over_but_was_not_taken_is_still_ours(chassis_database: Database):
    ann = Lease(chassis_database, "poller", "ann", OVER)
    assert await ann.hold()
    fence = ann.fence

    assert await ann.renew()
    async with chassis_database.transaction() as tx:
        await ann.check(tx)
    assert ann.fence == fence


async def test_without_a_lease_nothing_may_be_written(chassis_database: Database):
    async with chassis_database.transaction() as tx:
        with pytest.raises(LeaseLost):
            await Lease(chassis_database, "poller", "ann").check(tx)


async def test_the_release_of_a_lost_lease_leaves_the_new_holder_alone(chassis_database: Database):
    ann, bob = Lease(chassis_database, "poller", "ann", OVER), Lease(chassis_database, "poller", "bob", LONG)
    await ann.hold()
    await bob.hold()
    await ann.release()

    assert not await ann.hold()
    assert await bob.renew()


async def test_leases_of_other_names_do_not_matter(chassis_database: Database):
    assert await Lease(chassis_database, "poller", "ann").hold()
    assert await Lease(chassis_database, "settler", "bob").hold()


async def test_many_who_reach_for_a_lease_at_once_get_it_once(chassis_database: Database):
    contenders = [Lease(chassis_database, "poller", f"replica-{number}", LONG) for number in range(8)]
    held = await asyncio.gather(*(contender.hold() for contender in contenders))

    assert held.count(True) == 1


async def test_nobody_takes_over_in_the_middle_of_a_checked_transaction(chassis_database: Database):
    ann, bob = Lease(chassis_database, "poller", "ann", OVER), Lease(chassis_database, "poller", "bob", LONG)
    await ann.hold()
    async with chassis_database.transaction() as tx:
        await ann.check(tx)
        taking = asyncio.ensure_future(bob.hold())
        done, _ = await asyncio.wait([taking], timeout=0.1)
        assert not done

    assert await taking


async def test_the_functions_tell_the_fence(chassis_database: Database):
    async with chassis_database.transaction() as tx:
        fence = await leases.acquire(tx, "poller", "ann", LONG)
        assert fence == 1
        assert await leases.acquire(tx, "poller", "bob", LONG) is None
        assert await leases.renew(tx, "poller", fence, LONG)
        assert not await leases.renew(tx, "poller", fence + 1, LONG)
        await leases.check(tx, "poller", fence)
        await leases.release(tx, "poller", fence)
        assert await leases.acquire(tx, "poller", "bob", LONG) == 2
