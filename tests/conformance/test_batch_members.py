"""A batch is filled, left and cut in pages: on both databases, and whatever breaks off between two of them."""

import pytest

from services.batcher import store_members
from services.batcher.batch import State
from services.batcher.job import CANCELLED, DEADLINE, Failure
from services.batcher.job import State as JobState
from services.batcher.planner import Planned
from services.chassis.leases import Lease, LeaseLost
from tests.batcher_jobs import new_uid, opened_stores

GONE = Failure("hold_lost", "It is gone.")
NAMES = ("a", "b", "c", "d", "e")


@pytest.fixture
async def stores(database_url, monkeypatch):
    """Stores whose pages hold two members."""
    monkeypatch.setattr(store_members, "MEMBERS_MAX", 2)
    async with opened_stores(database_url) as opened:
        yield opened


async def planned(stores, *job_ids):
    queued = await stores.queued(*job_ids)
    batch = await stores.batches.plan(Planned("gpt-x", tuple(job.uid for job in queued)), new_uid(), stores.lease)
    return batch, queued


async def kinds(stores, batch_id):
    return [row.kind for row in await stores.journal() if row.subject == batch_id]


async def test_a_batch_of_several_pages_holds_all_its_jobs_and_counts_them(stores):
    batch, queued = await planned(stores, *NAMES)

    assert (batch.jobs, batch.total, batch.state) == (5, 5, State.PLANNED)
    assert await stores.batches.batch(batch.batch_id) == batch
    assert await stores.batches.member_uids(batch.batch_id) == [job.uid for job in queued]
    assert [member.job.uid async for member in stores.batches.members(batch.batch_id)] == [job.uid for job in queued]
    assert await kinds(stores, batch.batch_id) == ["batch.planned", "batch.grown", "batch.grown"]


async def test_a_plan_that_breaks_off_between_two_pages_leaves_a_smaller_batch_and_jobs_that_queue(stores):
    """Another replica takes the lease over while the first one is at its second page."""
    queued = await stores.queued(*NAMES)
    uids, batch_id = tuple(job.uid for job in queued), new_uid()
    first = Lease(stores.database, "submitter", "first", -1)
    second = Lease(stores.database, "submitter", "second", 3600)
    assert await first.hold()
    assert await stores.batches.plan(Planned("gpt-x", uids[:2]), batch_id, first)
    assert await second.hold()
    with pytest.raises(LeaseLost):
        await stores.batches.plan(Planned("gpt-x", uids[2:]), batch_id, first)
    rest = await stores.batches.plan(Planned("gpt-x", uids), new_uid(), second)

    assert rest is not None
    assert await stores.batches.member_uids(batch_id) == list(uids[:2])
    assert await stores.batches.member_uids(rest.batch_id) == list(uids[2:])
    assert (await stores.batches.batch(batch_id)).jobs == 2


async def test_a_batch_that_is_frozen_takes_nobody_in_any_more(stores):
    batch, _ = await planned(stores, "a", "b")
    late = await stores.queued("late")
    assert await stores.batches.freeze(batch.batch_id, {}, new_uid(), "org", stores.lease)

    more = Planned("gpt-x", tuple(job.uid for job in late))
    assert await stores.batches.plan(more, batch.batch_id, stores.lease) is None
    assert await stores.jobs.read([late[0].uid]) == late
    assert (await stores.batches.batch(batch.batch_id)).jobs == 2


async def test_all_who_have_to_leave_do_so_before_their_batch_is_frozen(stores):
    """Those whose hold is lost and who are late, of whom each fill more than a page; the rest is counted."""
    late = await stores.queued("late-1", "late-2", "late-3", deadline_us=1)
    others = await stores.queued(*NAMES)
    uids = tuple(job.uid for job in (*late, *others))
    batch = await stores.batches.plan(Planned("gpt-x", uids), new_uid(), stores.lease)
    lost = {job.uid: GONE for job in others[:3]}
    submission = await stores.batches.freeze(batch.batch_id, lost, new_uid(), "org", stores.lease)
    views = {job.uid: await stores.jobs.view_of(job.uid) for job in (*late, *others)}

    assert submission is not None
    assert {views[job.uid].failure for job in late} == {DEADLINE}
    assert {views[job.uid].failure for job in others[:3]} == {GONE}
    assert await stores.batches.member_uids(batch.batch_id) == [job.uid for job in others[3:]]
    assert (await stores.batches.batch(batch.batch_id)).jobs == 2


async def test_a_cancel_that_was_a_wish_is_granted_once_its_batch_was_not_bought(stores):
    batch, queued = await planned(stores, "a", "b", "c")
    submission = await stores.batches.freeze(batch.batch_id, {}, new_uid(), "org", stores.lease)
    for name in ("a", "b", "c"):
        await stores.jobs.cancel("alice", name, "alice")
    wished = await stores.jobs.read([job.uid for job in queued])
    await stores.batches.abandon(submission, 0, stores.lease)
    again = await stores.batches.freeze(batch.batch_id, {}, new_uid(), "org", stores.lease)

    assert {(job.state, job.cancel_requested) for job in wished} == {(JobState.BATCHED, True)}
    assert again is None
    assert {(await stores.jobs.view_of(job.uid)).failure for job in queued} == {CANCELLED}
    assert (await stores.batches.batch(batch.batch_id)).state is State.CLOSED


async def test_a_batch_of_several_pages_is_cut_in_halves(stores):
    batch, queued = await planned(stores, *NAMES, "f", "g", "h")
    new = await stores.batches.split(batch.batch_id, new_uid(), stores.lease)
    left = await stores.batches.batch(batch.batch_id)

    assert new is not None
    assert (left.jobs, new.jobs) == (4, 4)
    assert (left.tokens, new.tokens) == (batch.tokens // 2, batch.tokens // 2)
    assert await stores.batches.member_uids(left.batch_id) == [job.uid for job in queued[:4]]
    assert await stores.batches.member_uids(new.batch_id) == [job.uid for job in queued[4:]]
    assert {job.batch_id for job in await stores.jobs.read([job.uid for job in queued[4:]])} == {new.batch_id}
    assert await kinds(stores, new.batch_id) == ["batch.planned", "batch.grown"]
