"""What the reconcilers read and write, on SQLite and on PostgreSQL."""

import pytest

from services.batcher.batch import State as BatchState
from services.batcher.batch import SubmissionState
from services.batcher.job import Answer, Failure, SettlementState, State
from services.batcher.planner import Planned
from services.batcher.reconciliation import Listed
from services.batcher.store_batches import Loss, Result
from services.batcher.store_reconciliation import Bought, Reading, ReconciliationStore, Side
from services.batcher.store_settlements import SettlementStore
from tests.batcher_jobs import FAR_US, LIMITS, image, new_job, new_uid, opened_stores

ANSWER = Answer("a cat", "stop", 10, 2)
BROKEN = Loss(Failure("server_error", "It broke."), retryable=True)


@pytest.fixture
async def stores(database_url):
    async with opened_stores(database_url) as opened:
        yield opened


@pytest.fixture
async def books(stores):
    return ReconciliationStore(stores.database, lambda: None)


def purchase(batch_id, intent_id="forgotten", provider_batch_id="batch_9", **more):
    tags = {"intent_id": intent_id, "batch_id": batch_id}
    return Bought(Listed(provider_batch_id, "in_progress", tags), "file-9", "org", **more)


async def planned(stores, *queued):
    batch = await stores.batches.plan(Planned("gpt-x", tuple(job.uid for job in queued)), new_uid(), stores.lease)
    assert batch is not None
    return batch


async def frozen(stores, batch, intent_id, file_id="file-1", identity="org"):
    submission = await stores.batches.freeze(batch.batch_id, {}, intent_id, identity, stores.lease)
    assert submission is not None
    return await stores.batches.record(submission._replace(input_file_id=file_id), stores.lease)


async def running(stores, *job_ids, provider_batch_id="batch_1", identity="org"):
    queued = await stores.queued(*job_ids)
    batch = await planned(stores, *queued)
    submission = await frozen(stores, batch, new_uid(), identity=identity)
    await stores.batches.adopt(submission, provider_batch_id, stores.lease)
    return batch, queued


async def submissions_of(stores, batch_id):
    async with stores.database.reading() as tx:
        rows = await tx.rows("submissions_by_intent", intent_ids='["forgotten", "first"]')
    assert {row["batch_id"] for row in rows} == {batch_id}
    return {row["intent_id"]: (row["attempt"], row["state"], row["provider_batch_id"]) for row in rows}


async def test_a_reading_is_remembered_for_each_side(stores, books):
    before = await books.last(Side.PROVIDER)
    begin_us = await books.now_us()
    await books.complete(Side.PROVIDER, begin_us, stores.lease)
    after = await books.last(Side.PROVIDER)

    assert before == await books.last(Side.WALLET) == Reading(0, 0)
    assert after.begin_time_us == begin_us <= after.complete_time_us


async def test_a_forgotten_batch_takes_its_jobs_from_wherever_they_are_and_brings_their_answers(stores, books):
    """Of a database that is older than the purchase: waiting, planned otherwise, in an earlier try, not admitted."""
    queued, elsewhere, ended = await stores.queued("queued", "elsewhere", "ended")
    await planned(stores, elsewhere)
    other, (earlier,) = await running(stores, "earlier")
    await stores.jobs.add_image(image())
    (admitting,) = [result.job for result in await stores.jobs.submit([new_job("admitting")])]
    await stores.jobs.cancel("alice", "ended", "alice")
    batch_id = new_uid()
    lines = [(queued.uid, 1), (elsewhere.uid, 1), (earlier.uid, 2), (admitting.uid, 1), (ended.uid, 1), (new_uid(), 1)]
    taken = await books.take_over(purchase(batch_id, lines=lines), stores.lease)
    while await stores.batches.start(batch_id, stores.lease):
        pass
    late = await stores.batches.apply(other.batch_id, [Result(earlier.uid, 1, BROKEN)], LIMITS, stores.lease)
    results = [Result(uid, attempt, ANSWER) for uid, attempt in lines]
    changes = await stores.batches.apply(batch_id, results, LIMITS, stores.lease)

    assert taken is not None
    assert (taken.state, taken.jobs, taken.provider_batch_id) == (BatchState.RUNNING, 4, "batch_9")
    assert late == []
    assert {change.job.uid for change in changes} == {queued.uid, elsewhere.uid, earlier.uid, admitting.uid}
    assert {change.job.state for change in changes} == {State.SUCCEEDED}
    assert await stores.batches.close(batch_id, stores.lease)
    assert await submissions_of(stores, batch_id) == {"forgotten": (1, "ADOPTED", "batch_9")}
    kinds = {row.kind for row in await stores.journal()}
    assert {"batch.rebuilt", "job.recovered"} <= kinds


async def test_a_forgotten_batch_of_which_no_job_is_open_is_left(stores, books):
    batch_id = new_uid()

    assert await books.take_over(purchase(batch_id, lines=[(new_uid(), 1)]), stores.lease) is None
    assert await stores.batches.batch(batch_id) is None


async def test_a_forgotten_purchase_of_a_planned_batch_is_adopted(stores, books):
    (job,) = await stores.queued("a")
    batch = await planned(stores, job)
    taken = await books.take_over(purchase(batch.batch_id), stores.lease)
    again = await books.take_over(purchase(batch.batch_id, "other", "batch_10"), stores.lease)

    assert taken is not None
    assert (taken.state, taken.jobs, taken.submission) == (BatchState.RUNNING, 1, 1)
    assert again is None
    assert await submissions_of(stores, batch.batch_id) == {"forgotten": (1, "ADOPTED", "batch_9")}
    assert await stores.batches.apply(batch.batch_id, [Result(job.uid, 1, ANSWER)], LIMITS, stores.lease)


async def test_a_submission_that_was_given_up_after_the_backup_makes_way_for_the_one_that_bought(stores, books):
    (job,) = await stores.queued("a")
    batch = await planned(stores, job)
    await frozen(stores, batch, "first")
    taken = await books.take_over(purchase(batch.batch_id), stores.lease)

    assert taken is not None
    assert taken.submission == 2
    assert await submissions_of(stores, batch.batch_id) == {
        "first": (1, "ABANDONED", ""),
        "forgotten": (2, "ADOPTED", "batch_9"),
    }


@pytest.mark.parametrize("state", [SubmissionState.OPEN, SubmissionState.ABANDONED])
async def test_a_known_submission_that_has_bought_all_the_same_is_adopted(stores, books, state):
    (job,) = await stores.queued("a")
    batch = await planned(stores, job)
    submission = await frozen(stores, batch, "first", file_id="")
    if state is SubmissionState.ABANDONED:
        await stores.batches.abandon(submission, 0, stores.lease)
    taken = await books.take_over(purchase(batch.batch_id, "first"), stores.lease)

    assert taken is not None
    assert (taken.state, taken.submission) == (BatchState.RUNNING, 1)
    assert await submissions_of(stores, batch.batch_id) == {"first": (1, "ADOPTED", "batch_9")}


async def test_what_is_known_of_purchases_is_found_by_intent_and_by_batch(stores, books):
    (job,) = await stores.queued("a")
    batch = await planned(stores, job)
    submission = await frozen(stores, batch, "first")
    tags = [("first", batch.batch_id), ("nobody's", "nothing"), ("", "")]
    listed = [Listed("batch_1", "failed", {"intent_id": intent, "batch_id": of}) for intent, of in tags]
    ours = await books.ours(listed)

    assert ours.submissions == {"first": submission}
    assert list(ours.batches) == [batch.batch_id]


async def test_the_oldest_doubt_says_how_far_to_look_back(stores, books):
    nothing = await books.oldest_doubt_us(0)
    (job,) = await stores.queued("a")
    submission = await frozen(stores, await planned(stores, job), "first")
    still_open = await books.oldest_doubt_us(FAR_US)
    await stores.batches.adopt(submission, "batch_1", stores.lease)
    settled = await books.oldest_doubt_us(0)
    (job,) = await stores.queued("b")
    doubted = await frozen(stores, await planned(stores, job), "second")
    await stores.batches.adopt(doubted._replace(doubt_time_us=1), "batch_2", stores.lease)

    assert (nothing, settled) == (None, None)
    assert still_open == submission.create_time_us
    assert await books.oldest_doubt_us(0) == doubted.create_time_us
    assert await books.oldest_doubt_us(FAR_US) is None


async def test_a_batch_that_is_unknown_or_of_another_identity_is_an_obstacle_until_it_is_closed(stores, books):
    fine, _ = await running(stores, "a")
    unknown, _ = await running(stores, "b", provider_batch_id="batch_2")
    foreign, (job,) = await running(stores, "c", provider_batch_id="batch_3", identity="other")
    stored = await stores.batches.batch(unknown.batch_id)
    await stores.batches.update(stored._replace(problem="batch unknown (404)"), "batch.stumbled", stores.lease)
    found = await books.obstacles("org")
    bought = await books.running(FAR_US)
    await stores.batches.apply(foreign.batch_id, [Result(job.uid, 1, ANSWER)], LIMITS, stores.lease)
    await stores.batches.close(foreign.batch_id, stores.lease)

    assert [(each.batch_id, each.provider_batch_id, each.is_foreign) for each in found] == [
        (unknown.batch_id, "batch_2", False),
        (foreign.batch_id, "batch_3", True),
    ]
    assert all(each.why for each in found)
    assert {each.batch_id for each in bought} == {fine.batch_id, unknown.batch_id, foreign.batch_id}
    assert [each.batch_id for each in await books.obstacles("org")] == [unknown.batch_id]


async def test_held_jobs_are_read_in_pages_and_their_holds_corrected(stores, books):
    first, second, ended = await stores.queued("a", "b", "c")
    await stores.jobs.cancel("alice", "c", "alice")
    await stores.jobs.add_image(image())
    await stores.jobs.submit([new_job("not admitted")])
    page = await books.held((-1, ""), 1)
    rest = await books.held((page[0].hold_expire_time_us, page[0].uid), 10)
    await books.hold_until({first.uid: 0, second.uid: 5, ended.uid: 7}, stores.lease)
    corrected = {job.uid: job.hold_expire_time_us for job in await stores.jobs.read([first.uid, second.uid, ended.uid])}

    assert [job.uid for job in page + rest] == [first.uid, second.uid]
    assert corrected == {first.uid: 0, second.uid: 5, ended.uid: ended.hold_expire_time_us}


async def settled(stores, *job_ids):
    """Jobs that were answered and charged, one after the other."""
    for job_id in job_ids:
        batch, (job,) = await running(stores, job_id)
        await stores.batches.apply(batch.batch_id, [Result(job.uid, 1, ANSWER)], LIMITS, stores.lease)
        await stores.jobs.settle({job.uid: ""}, stores.lease)
        yield job


async def test_settlements_are_read_from_the_newest_back_and_the_first_charges_by_themselves(stores):
    settlements = SettlementStore(stores.database)
    done = [job.uid async for job in settled(stores, "a", "b", "c")]
    (free,) = await stores.queued("d")
    await stores.jobs.cancel("alice", "d", "alice")
    await stores.jobs.settle({free.uid: ""}, stores.lease)
    await running(stores, "open")
    page = await settlements.settled_before(await settlements.newest(), 3)
    rest = await settlements.settled_before(page.before, 3)

    assert [owed.uid for owed in page.settled] == [free.uid, done[2], done[1]]
    assert [owed.uid for owed in rest.settled] == [done[0]]
    assert rest.before == 0
    assert [owed.uid for owed in await settlements.first_charged(2)] == done[:2]


async def test_a_settlement_that_the_wallet_has_lost_and_refuses_is_uncollected_once(stores):
    settlements = SettlementStore(stores.database)
    (uid,) = [job.uid async for job in settled(stores, "a")]
    (waiting,) = await stores.queued("b")
    reasons = dict.fromkeys([uid, waiting.uid], "INSUFFICIENT_FUNDS")
    changes = await settlements.uncollect(reasons, stores.lease)
    again = await settlements.uncollect(reasons, stores.lease)
    view = await stores.jobs.view("alice", "a")

    assert [(change.job.uid, change.kind) for change in changes] == [(uid, "job.uncollected")]
    assert again == []
    assert (view.settlement.state, view.settlement.charged) == (SettlementState.REFUSED, 0)
    assert (await settlements.settled_before(await settlements.newest(), 3)).settled == []
    await stores.journal()
