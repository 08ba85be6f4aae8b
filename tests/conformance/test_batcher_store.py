"""What the batcher's stores promise, on SQLite and on PostgreSQL."""

import asyncio
import contextlib
import json
import sqlite3
from pathlib import Path

import pytest

from services.batcher.errors import IdempotencyMismatch, ImageNotFound, JobEnded, JobNotFound
from services.batcher.job import Action, Answer, Failure, Lane, Settlement, SettlementState, State
from services.batcher.planner import Planned
from services.batcher.store import Submitted
from services.batcher.store_batches import Loss, Result
from services.batcher.store_dead_jobs import ATTEMPTS_SHOWN_MAX, Attempt, Wanted, dead_jobs
from services.chassis import leases
from services.chassis.database import Conflict, migrate
from services.chassis.leases import Lease, LeaseLost
from services.chassis.sql.transaction import load_statements
from tests.batcher_jobs import FAR_US, HOUR_US, LIMITS, image, new_job, new_uid, opened_stores

ANSWER = Answer("a cat", "stop", 10, 2)
BROKEN = Failure("server_error", "It broke.")
BULK = {"rows", "uids", "keys", "batch_ids", "versions"}
TABLES = {
    "jobs",
    "batches",
    "attempts",
    "submissions",
    "settlements",
    "lowerings",
    "images",
    "price_lists",
    "price_rollouts",
}


@pytest.fixture
async def stores(database_url):
    async with opened_stores(database_url) as opened:
        yield opened


async def planned(stores, *job_ids, **fields):
    queued = await stores.queued(*job_ids, **fields)
    batch = await stores.batches.plan(Planned("gpt-x", tuple(job.uid for job in queued)), new_uid(), stores.lease)
    assert batch is not None
    return batch, queued


async def running(stores, *job_ids, **fields):
    batch, queued = await planned(stores, *job_ids, **fields)
    submission = await stores.batches.freeze(batch.batch_id, {}, new_uid(), "org", stores.lease)
    assert submission is not None
    submission = await stores.batches.record(submission._replace(input_file_id="file-1"), stores.lease)
    await stores.batches.adopt(submission, "batch_1", stores.lease)
    return batch, queued


async def test_a_job_that_falls_back_changes_its_lane_and_owes_a_lowering_until_it_is_answered(stores):
    fields = {"lane": Lane.INSTANT, "price": 5, "fallback_price": 1}
    done, gone = await stores.queued("a", "b", **fields)
    limits = LIMITS._replace(attempts_max=1)
    for job in (done, gone):
        await stores.jobs.lose(job.uid, 1, BROKEN, True, limits, HOUR_US)
    pending = await stores.jobs.pending_lowerings(10)
    ended = await stores.jobs.lower({done.uid: "", gone.uid: "RESERVATION_RELEASED"}, [gone.uid], stores.lease)
    again = await stores.jobs.lower({done.uid: "", gone.uid: ""}, [], stores.lease)
    fallen = (await stores.jobs.view("alice", "a")).job
    rows = [row for row in await stores.journal() if row.kind == "job.fell_back"]

    assert pending == [(done.uid, 1), (gone.uid, 1)]
    assert [(change.job.uid, change.job.state, change.failure.code) for change in ended] == [
        (gone.uid, State.FAILED, "hold_lost")
    ]
    assert again == await stores.jobs.pending_lowerings(10) == []
    assert (fallen.state, fallen.lane, fallen.price, fallen.attempt) == (State.QUEUED, Lane.BATCH, 1, 2)
    assert [json.loads(row.body) for row in rows] == [
        {"state": "QUEUED", "attempt": 2, "lane": "BATCH", "price": 1}
    ] * 2
    assert await stores.batches.depths() == {"gpt-x": 1}


EVERY = Wanted("", "", 0, FAR_US, "")


async def died(stores, job_id, code="server_error", **fields):
    """A job whose only try failed; gives it as it ended."""
    (job,) = await stores.queued(job_id, lane=Lane.INSTANT, **fields)
    (change,) = await stores.jobs.lose(job.uid, 1, Failure(code, "It broke."), False, LIMITS, HOUR_US)
    return change.job


async def test_dead_jobs_are_listed_with_their_cause_those_that_ended_last_first(stores):
    first = await died(stores, "first")
    await stores.queued("alive", "cancelled")
    await stores.jobs.cancel("alice", "cancelled", "alice")
    (late,) = await stores.queued("late", deadline_us=1)
    await stores.jobs.expire(stores.lease)
    listed = await dead_jobs(stores.database, EVERY, 10)
    settled = await stores.jobs.settle({first.uid: ""}, stores.lease)
    again = await dead_jobs(stores.database, EVERY, 10)

    assert [(dead.view.job.job_id, dead.view.job.state, dead.view.failure.code) for dead in listed] == [
        ("late", State.EXPIRED, "deadline"),
        ("first", State.FAILED, "server_error"),
    ]
    assert listed[0].view.job.uid == late.uid
    assert listed[1].end_time_us == first.update_time_us
    ((attempt, batch_id, started_us, ended_us, outcome),) = listed[1].attempts
    assert (attempt, batch_id, outcome) == (1, "", "server_error")
    assert started_us <= ended_us == first.update_time_us
    assert len(settled) == 1
    assert [dead.end_time_us for dead in again] == [dead.end_time_us for dead in listed]


async def test_dead_jobs_are_filtered_by_account_cause_and_time_and_paged(stores):
    for name in ("a", "b", "c"):
        await died(stores, name)
    await died(stores, "other", code="refused")
    bob = await died(stores, "bobs", account_id="bob")

    async def names(**filters):
        return [dead.view.job.job_id for dead in await dead_jobs(stores.database, EVERY._replace(**filters), 10)]

    pages, place = [], EVERY
    while page := await dead_jobs(stores.database, place, 2):
        pages.append([dead.view.job.job_id for dead in page])
        place = place._replace(before_us=page[-1].end_time_us, before_uid=page[-1].view.job.uid)

    assert await names(account_id="bob") == ["bobs"]
    assert await names(failure_code="refused") == ["other"]
    assert await names(account_id="bob", failure_code="refused") == []
    assert await names(since_us=bob.update_time_us + 1) == await names(before_us=1) == []
    assert "bobs" in await names(since_us=bob.update_time_us)
    assert "bobs" not in await names(before_us=bob.update_time_us)
    assert [len(page) for page in pages] == [2, 2, 1]
    assert [name for page in pages for name in page] == await names()
    assert sorted(await names()) == ["a", "b", "bobs", "c", "other"]


async def test_of_a_dead_job_only_the_last_attempts_are_listed(stores):
    (job,) = await stores.queued("a", lane=Lane.INSTANT)
    patient = LIMITS._replace(attempts_max=ATTEMPTS_SHOWN_MAX + 5)
    for attempt in range(1, ATTEMPTS_SHOWN_MAX + 6):
        await stores.jobs.lose(job.uid, attempt, BROKEN, True, patient, HOUR_US)
    (dead,) = await dead_jobs(stores.database, EVERY, 10)

    assert [attempt.attempt for attempt in dead.attempts] == list(range(6, ATTEMPTS_SHOWN_MAX + 6))
    assert all(isinstance(attempt, Attempt) and attempt.outcome == "server_error" for attempt in dead.attempts)


async def test_a_new_job_is_admitting_and_its_key_gives_it_again(stores):
    await stores.jobs.add_image(image())
    command = new_job("cat-1")
    (first,) = await stores.jobs.submit([command])
    (again,) = await stores.jobs.submit([new_job("cat-1")])
    (own_retry,) = await stores.jobs.submit([command])

    assert isinstance(first, Submitted)
    assert (first.replayed, first.job.state) == (False, State.ADMITTING)
    assert first.job.last_revision == 1
    assert first.job.line_bytes > 300
    assert again == Submitted(first.job, True)
    assert own_retry == Submitted(first.job, False)


async def test_a_key_with_other_content_is_refused_and_so_is_an_unknown_image(stores):
    await stores.jobs.add_image(image())
    await stores.jobs.submit([new_job("cat-1")])
    other, missing, both = await stores.jobs.submit(
        [
            new_job("cat-1", prompt="Why?"),
            new_job("cat-2", image_ids=("cd" * 32,)),
            new_job("cat-1", image_ids=("cd" * 32,)),
        ]
    )

    assert isinstance(other, IdempotencyMismatch)
    assert other.metadata == {"field": "prompt", "stored": "What?", "received": "Why?"}
    assert isinstance(missing, ImageNotFound)
    assert isinstance(both, ImageNotFound)


async def test_one_group_may_hold_a_key_twice(stores):
    await stores.jobs.add_image(image())
    first, second = await stores.jobs.submit([new_job("cat-1"), new_job("cat-1")])

    assert isinstance(first, Submitted)
    assert second == Submitted(first.job, True)


async def test_a_rejected_job_is_superseded_by_the_same_key(stores):
    await stores.jobs.add_image(image())
    (first,) = await stores.jobs.submit([new_job("cat-1")])
    (rejected,) = await stores.jobs.admit({first.job.uid: Failure("insufficient_funds", "No.")}, HOUR_US)
    (second,) = await stores.jobs.submit([new_job("cat-1", prompt="Again?")])

    view = await stores.jobs.view("alice", "cat-1")
    assert rejected.job.state is State.REJECTED
    assert second.job.uid == view.job.uid != first.job.uid
    assert not second.replayed
    assert [v.job.uid for v in await stores.jobs.views("alice", "", "", 10)] == [second.job.uid]
    assert await stores.jobs.pending_settlements("", 10) == [
        (first.job.uid, State.REJECTED, Settlement(Action.RELEASE, 0, SettlementState.PENDING))
    ]


async def test_an_admission_counts_once(stores):
    (job,) = await stores.queued("cat-1")

    assert (job.state, job.attempt, job.hold_expire_time_us) == (State.QUEUED, 1, FAR_US)
    assert await stores.jobs.admit({job.uid: BROKEN}, HOUR_US) == []


async def test_a_batch_takes_jobs_once(stores):
    batch, queued = await planned(stores, "a", "b")
    again = await stores.batches.plan(Planned("gpt-x", (queued[0].uid,)), new_uid(), stores.lease)

    assert again is None
    assert batch.jobs == 2
    assert [member.job.uid async for member in stores.batches.members(batch.batch_id)] == [job.uid for job in queued]
    assert await stores.batches.depths() == {}


async def test_the_queue_shows_the_oldest_of_every_account_first(stores):
    await stores.queued("a", "b", "c")
    await stores.queued("d", account_id="bob")

    page = await stores.batches.queue(2, 3)
    assert [waiting.account_id for waiting in page] == ["alice", "bob", "alice"]
    assert await stores.batches.depths() == {"gpt-x": 4}


async def test_a_cancel_before_the_freeze_ends_the_job_and_after_it_is_a_wish(stores):
    batch, _ = await planned(stores, "a", "b")
    ended, replayed = await stores.jobs.cancel("alice", "a", "alice")
    submission = await stores.batches.freeze(batch.batch_id, {}, new_uid(), "org", stores.lease)
    wish, _ = await stores.jobs.cancel("alice", "b", "alice")
    _, again = await stores.jobs.cancel("alice", "b", "alice")

    assert (ended.job.state, replayed) == (State.CANCELLED, False)
    assert submission is not None
    assert (wish.job.state, wish.job.cancel_requested, again) == (State.BATCHED, True, True)
    with pytest.raises(JobNotFound):
        await stores.jobs.cancel("bob", "a", "bob")


async def test_an_abandoned_submission_lets_the_cancelled_leave_and_the_next_one_open(stores):
    batch, queued = await planned(stores, "a", "b")
    first = await stores.batches.freeze(batch.batch_id, {}, new_uid(), "org", stores.lease)
    await stores.jobs.cancel("alice", "a", "alice")
    await stores.batches.abandon(first, 0, stores.lease)
    second = await stores.batches.freeze(batch.batch_id, {}, new_uid(), "org", stores.lease)

    assert (first.attempt, second.attempt) == (1, 2)
    assert (await stores.jobs.view("alice", "a")).job.state is State.CANCELLED
    assert [m.job.uid async for m in stores.batches.members(batch.batch_id)] == [queued[1].uid]


async def test_submissions_that_never_came_to_a_create_cost_nothing_of_the_hour(stores):
    batch, _ = await planned(stores, "a")
    first = await stores.batches.freeze(batch.batch_id, {}, new_uid(), "org", stores.lease)
    opened = (await stores.batches.submissions_since(0)).submissions
    await stores.batches.abandon(first, 0, stores.lease)
    abandoned = (await stores.batches.submissions_since(0)).submissions
    second = await stores.batches.freeze(batch.batch_id, {}, new_uid(), "org", stores.lease)
    await stores.batches.abandon(second._replace(input_file_id="file-2"), 0, stores.lease)

    again = (await stores.batches.submissions_since(0)).submissions
    assert (opened, abandoned, again) == (1, 0, 1)


async def test_a_batch_that_everybody_leaves_is_closed(stores):
    batch, queued = await planned(stores, "a")
    lost = {queued[0].uid: BROKEN}

    assert await stores.batches.freeze(batch.batch_id, lost, new_uid(), "org", stores.lease) is None
    assert await stores.batches.open_batches() == []
    assert (await stores.jobs.view("alice", "a")).failure == BROKEN


async def test_an_adopted_batch_starts_its_jobs(stores):
    batch, _ = await running(stores, "a")

    view = await stores.jobs.view("alice", "a")
    stored = await stores.batches.batch(batch.batch_id)
    assert (view.job.state, view.job.batch_id) == (State.RUNNING, batch.batch_id)
    assert stored.provider_batch_id == "batch_1"


async def test_results_count_once_and_only_for_the_attempt_that_runs(stores):
    batch, (done, again) = await running(stores, "a", "b")
    results = [Result(done.uid, 1, ANSWER), Result(again.uid, 1, Loss(BROKEN, retryable=True))]
    changes = await stores.batches.apply(batch.batch_id, results, LIMITS, stores.lease)
    repeated = await stores.batches.apply(batch.batch_id, results, LIMITS, stores.lease)

    first, second = await stores.jobs.view("alice", "a"), await stores.jobs.view("alice", "b")
    assert len(changes) == 2
    assert repeated == []
    assert (first.job.state, first.answer) == (State.SUCCEEDED, ANSWER)
    assert first.settlement == Settlement(Action.COMMIT, 1, SettlementState.PENDING)
    assert (second.job.state, second.job.attempt, second.job.batch_id) == (State.QUEUED, 2, "")
    assert await stores.batches.close(batch.batch_id, stores.lease)


async def test_an_answer_stands_whatever_other_lines_name_its_job(stores):
    batch, (doubled, stale) = await running(stores, "a", "b")
    refused = Loss(BROKEN, retryable=False)
    results = [
        Result(doubled.uid, 1, refused),
        Result(doubled.uid, 1, ANSWER),
        Result(doubled.uid, 1, refused),
        Result(stale.uid, 1, ANSWER),
        Result(stale.uid, 7, refused),
    ]
    await stores.batches.apply(batch.batch_id, results, LIMITS, stores.lease)

    views = [await stores.jobs.view("alice", job_id) for job_id in ("a", "b")]
    assert [(view.job.state, view.answer) for view in views] == [(State.SUCCEEDED, ANSWER)] * 2


async def test_a_batch_stays_open_until_its_last_member_has_an_outcome(stores):
    batch, _ = await running(stores, "a", "b")

    assert not await stores.batches.close(batch.batch_id, stores.lease)
    assert await stores.batches.lose_members(batch.batch_id, Loss(BROKEN, retryable=False), LIMITS, stores.lease) == 2
    assert await stores.batches.lose_members(batch.batch_id, Loss(BROKEN, retryable=False), LIMITS, stores.lease) == 0
    assert await stores.batches.close(batch.batch_id, stores.lease)
    assert (await stores.jobs.view("alice", "a")).job.state is State.FAILED


async def test_a_settlement_is_answered_once(stores):
    batch, (done,) = await running(stores, "a")
    await stores.batches.apply(batch.batch_id, [Result(done.uid, 1, ANSWER)], LIMITS, stores.lease)
    settled = await stores.jobs.settle({done.uid: ""}, stores.lease)
    again = await stores.jobs.settle({done.uid: "RESERVATION_NOT_FOUND"}, stores.lease)

    assert [change.kind for change in settled] == ["job.settled"]
    assert again == []
    assert await stores.jobs.pending_settlements("", 10) == []
    with pytest.raises(JobEnded):
        await stores.jobs.cancel("alice", "a", "alice")


async def test_a_refused_settlement_charges_nothing(stores):
    batch, (done,) = await running(stores, "a")
    await stores.batches.apply(batch.batch_id, [Result(done.uid, 1, ANSWER)], LIMITS, stores.lease)
    await stores.jobs.settle({done.uid: "INSUFFICIENT_FUNDS"}, stores.lease)

    view = await stores.jobs.view("alice", "a")
    assert (view.settlement.state, view.settlement.charged) == (SettlementState.REFUSED, 0)
    assert view.answer == ANSWER


async def test_only_a_batch_that_nobody_wants_is_unwanted(stores):
    batch, _ = await running(stores, "a", "b")
    await stores.jobs.cancel("alice", "a", "alice")
    before = await stores.batches.unwanted()
    await stores.jobs.cancel("alice", "b", "alice")

    assert before == []
    assert await stores.batches.unwanted() == [batch.batch_id]


async def test_jobs_past_their_deadline_end_while_they_wait(stores):
    await stores.queued("a", deadline_us=1)
    await stores.queued("b")
    (change,) = await stores.jobs.expire()

    assert (change.job.job_id, change.job.state) == ("a", State.EXPIRED)


async def test_holds_are_found_before_they_end_and_lost_ones_end_their_job(stores):
    (job,) = await stores.queued("a")

    assert await stores.jobs.renewable(FAR_US, 10) == []
    assert await stores.jobs.renewable(FAR_US + 1, 10) == [job.uid]
    await stores.jobs.renew({job.uid: FAR_US + 5})
    assert await stores.jobs.renewable(FAR_US + 1, 10) == []
    (lost,) = await stores.jobs.lose_holds([job.uid])
    assert lost.failure.code == "hold_lost"


async def test_an_instant_attempt_is_an_orphan_once_its_lease_is_over(stores):
    await stores.jobs.add_image(image())
    (submitted,) = await stores.jobs.submit([new_job("now", lane=Lane.INSTANT)])
    (change,) = await stores.jobs.admit({submitted.job.uid: FAR_US}, lease_us=0)
    orphans = await stores.jobs.claim_orphans(10, 0)
    (again,) = await stores.jobs.lose(change.job.uid, 1, BROKEN, True, LIMITS, HOUR_US)
    (done,) = await stores.jobs.answer(change.job.uid, 2, ANSWER, LIMITS)

    assert orphans == [change.job.uid]
    assert (again.job.state, again.job.attempt) == (State.RUNNING, 2)
    assert await stores.jobs.claim_orphans(10, 0) == []
    assert await stores.jobs.answer(change.job.uid, 1, ANSWER, LIMITS) == []
    assert done.job.state is State.SUCCEEDED


async def test_replicas_that_claim_orphans_at_once_get_different_ones_and_keep_them(stores):
    await stores.jobs.add_image(image())
    submitted = await stores.jobs.submit([new_job(f"now-{number}", lane=Lane.INSTANT) for number in range(30)])
    await stores.jobs.admit({result.job.uid: FAR_US for result in submitted}, lease_us=0)
    claims = await asyncio.gather(*(stores.jobs.claim_orphans(5, HOUR_US) for _ in range(4)))
    rest = await stores.jobs.claim_orphans(100, HOUR_US)

    claimed = [uid for claim in [*claims, rest] for uid in claim]
    assert [len(claim) for claim in claims] == [5] * 4
    assert sorted(claimed) == sorted(result.job.uid for result in submitted)
    assert await stores.jobs.claim_orphans(100, HOUR_US) == []


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
async def test_a_claim_does_not_wait_for_one_that_is_not_committed(stores):
    await stores.jobs.add_image(image())
    submitted = await stores.jobs.submit([new_job(name, lane=Lane.INSTANT) for name in ("first", "second")])
    await stores.jobs.admit({result.job.uid: FAR_US for result in submitted}, lease_us=0)
    async with stores.database.transaction() as tx:
        rows = await tx.rows("attempts_claim", now_us=FAR_US, lease_time_us=FAR_US, count=1)
        async with asyncio.timeout(30):
            others = await stores.jobs.claim_orphans(10, HOUR_US)

    assert sorted([rows[0][0], *others]) == sorted(result.job.uid for result in submitted)


async def test_a_cycle_is_decided_once_and_only_by_the_holder_of_the_lease(stores):
    await stores.batches.end_cycle(600, stores.lease)
    await stores.batches.end_cycle(300, stores.lease)
    usurper = Lease(stores.database, "test", "another", 3600)
    async with stores.database.transaction() as tx:
        await leases.release(tx, "test", stores.lease.fence)
    assert await usurper.hold()
    with pytest.raises(LeaseLost):
        await stores.batches.end_cycle(900, stores.lease)

    assert await stores.batches.planned_cycle() == 600


async def test_an_instant_attempt_that_is_kept_is_no_orphan(stores):
    await stores.jobs.add_image(image())
    submitted = await stores.jobs.submit([new_job(name, lane=Lane.INSTANT) for name in ("kept", "left")])
    kept, left = [result.job.uid for result in submitted]
    await stores.jobs.admit({kept: FAR_US, left: FAR_US}, 0)
    await stores.jobs.keep_attempts([(kept, 1), (left, 2)], HOUR_US)

    assert await stores.jobs.claim_orphans(10, 0) == [left]


async def test_a_loop_that_has_lost_its_lease_writes_nothing(stores):
    batch, queued = await running(stores, "a")
    await stores.lease.release()

    with pytest.raises(LeaseLost):
        await stores.batches.apply(batch.batch_id, [Result(queued[0].uid, 1, ANSWER)], LIMITS, stores.lease)
    assert (await stores.jobs.view("alice", "a")).job.state is State.RUNNING


async def test_the_list_goes_from_new_to_old_by_state_and_page(stores):
    queued = await stores.queued("a", "b", "c")
    await stores.jobs.cancel("alice", "b", "alice")

    everything = await stores.jobs.views("alice", "", "", 2)
    rest = await stores.jobs.views("alice", "", everything[-1].job.uid, 2)
    waiting = await stores.jobs.views("alice", "QUEUED", "", 10)
    assert [view.job.job_id for view in [*everything, *rest]] == ["c", "b", "a"]
    assert [view.job.uid for view in waiting] == [queued[2].uid, queued[0].uid]


async def test_the_journal_tells_each_change_and_no_content(stores):
    batch, (done,) = await running(stores, "a")
    await stores.batches.apply(batch.batch_id, [Result(done.uid, 1, ANSWER)], LIMITS, stores.lease)
    await stores.jobs.settle({done.uid: ""}, stores.lease)
    rows = await stores.journal()

    kinds = [row.kind for row in rows if row.subject == done.uid]
    assert kinds == ["job.accepted", "job.queued", "job.batched", "job.started", "job.succeeded", "job.settled"]
    assert json.loads(rows[-1].body) == {
        "state": "SUCCEEDED",
        "attempt": 1,
        "batch_id": batch.batch_id,
        "settlement": "SETTLED",
        "charged": 1,
    }
    assert not any("What?" in row.body or "cat" in row.body for row in rows)
    assert [row.actor for row in rows[:2]] == ["alice", "@batcher"]


async def test_whatever_runs_at_once_each_job_ends_and_settles_once(stores):
    """Cancels, plans, freezes, answers and settlements of the same jobs, all at the same time."""
    names = [f"cat-{number}" for number in range(30)]
    queued = await stores.queued(*names)
    uids = tuple(job.uid for job in queued)

    async def buy(share):
        batch = await stores.batches.plan(Planned("gpt-x", share), new_uid(), stores.lease)
        if batch is None:
            return
        submission = await stores.batches.freeze(batch.batch_id, {}, new_uid(), "org", stores.lease)
        if submission is None:
            return
        await stores.batches.adopt(submission, f"batch-{batch.batch_id}", stores.lease)
        results = [Result(uid, 1, ANSWER) for uid in share]
        await asyncio.gather(
            *(stores.batches.apply(batch.batch_id, results, LIMITS, stores.lease) for _ in range(2)),
            return_exceptions=True,
        )

    async def cancel(name):
        try:
            await stores.jobs.cancel("alice", name, "alice")
        except JobEnded:
            return

    done = await asyncio.gather(
        *(buy(uids[start : start + 12]) for start in range(0, 30, 6)),
        *(cancel(name) for name in names[::2]),
        *(stores.jobs.expire() for _ in range(3)),
        return_exceptions=True,
    )
    pending = await stores.jobs.pending_settlements("", 100)
    refusals = dict.fromkeys((uid for uid, _, _ in pending), "")
    settled = await asyncio.gather(*(stores.jobs.settle(refusals, stores.lease) for _ in range(3)))

    ends = [row for row in await stores.journal() if '"settlement": "PENDING"' in row.body]
    assert [error for error in done if error is not None and not isinstance(error, Conflict | list)] == []
    assert len({row.subject for row in ends}) == len(ends) == len(pending)
    assert sum(len(changes) for changes in settled) == len(pending)


def test_no_statement_reads_a_whole_table_on_sqlite(tmp_path):
    """A partial index is used only where a query repeats its condition, which is easily forgotten."""
    database = tmp_path / "empty.db"
    migrate(f"sqlite:{database}", Path("services/batcher/migrations"))
    whole = []
    with contextlib.closing(sqlite3.connect(database)) as connection:
        for name, statement in load_statements([Path("services/batcher/sql")], "sqlite").items():
            arguments = ["[]" if parameter in BULK else 1 for parameter in statement.parameters]
            plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement.sql}", arguments)]
            whole += [(name, step) for step in plan if step.startswith("SCAN ") and step.split()[1] in TABLES]

    # These go through a partial index, which holds no more than what is open.
    open_ones = {"batches_open": "batches_open", "batches_unwanted": "batches_open", "jobs_admitting": "jobs_admitting"}
    open_ones |= {"tokens_enqueued": "batches_open"}
    open_ones |= dict.fromkeys(("queue_depths", "queue_page", "tokens_wanted"), "jobs_waiting")
    open_ones["lowerings_pending"] = "lowerings_pending"
    assert {name: step.rpartition(" ")[2] for name, step in whole} == open_ones
