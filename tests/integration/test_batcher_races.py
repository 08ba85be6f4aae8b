"""Two who act on one job at once, in every order that matters: loops are run by hand, and gates decide who is first.

However it goes, a job ends once, its tokens are settled once, and each batch is bought once.
"""

import asyncio
import functools

import pytest

from sandbox.openai_twin.batch_worker import Pace
from services.batcher.batch import State as BatchState
from services.batcher.job import Lane, SettlementState, State
from services.batcher.submitter import Submitter
from tests.batchers import sandbox_in, until
from tests.hand_run import Gate, hold_requests, lost_the_lease, replicas_in

UPLOAD = "POST /v1/files"
CREATE = "POST /v1/batches"
DOWNLOAD = "GET content"


@pytest.fixture
async def sandbox(tmp_path):
    async with sandbox_in(tmp_path) as made:
        yield made


@pytest.fixture
async def on_both(tmp_path, database_url):
    """A sandbox whose batchers live on each database in turn."""
    async with sandbox_in(tmp_path, database_url) as made:
        yield made


async def lines_bought(sandbox):
    return sum(batch.total for batch in sandbox.provider.bought())


@pytest.mark.parametrize("first", ["the reserve", "the cancel"])
async def test_a_cancel_while_the_wallet_is_asked_leaves_no_token_held(on_both, monkeypatch, first):
    """The wallet does either first: a reserve that comes behind the release of its key is refused by the tombstone."""
    gate = Gate()
    async with replicas_in(on_both) as (replica,):
        wallet = replica.parts.wallet
        wrap = gate.behind if first == "the reserve" else gate.before
        monkeypatch.setattr(wallet, "reserve_many", wrap(wallet.reserve_many))
        stored = await replica.store("a")
        admission = asyncio.create_task(replica.admit(stored))
        await gate.reached()
        cancelled = await replica.cancel("a")
        await replica.settle()
        gate.open()
        answer = await admission
        await replica.settle()

        view = await replica.view("a")
        assert cancelled.state is State.CANCELLED
        assert answer == view.job
        assert (view.job.state, view.settlement.state) == (State.CANCELLED, SettlementState.SETTLED)
        assert await replica.balance() == (10, 0)
        assert await replica.parts.batches.depths() == {}


@pytest.mark.parametrize("lane", Lane)
async def test_two_admitters_of_one_job_admit_it_once(on_both, monkeypatch, lane):
    """Both have the wallet's word that the tokens are held, and then both write."""
    gate = Gate(times=2)
    async with replicas_in(on_both, 2) as (one, other):
        for replica in (one, other):
            wallet = replica.parts.wallet
            monkeypatch.setattr(wallet, "reserve_many", gate.behind(wallet.reserve_many))
        stored = await one.store("a", lane=lane)
        both = [asyncio.create_task(replica.admit(stored)) for replica in (one, other)]
        await gate.reached()
        gate.open()
        answers = await asyncio.gather(*both)
        if lane is Lane.BATCH:
            await one.bought()
            await one.poll()
        await until(functools.partial(has_ended, one, "a"))
        await one.settle()

        view = await other.view("a")
        assert {answer.uid for answer in answers} == {stored.uid}
        assert (view.job.state, view.job.attempt) == (State.SUCCEEDED, 1)
        assert await one.balance() == (9 if lane is Lane.BATCH else 5, 0)
        calls = on_both.provider.requests
        assert [calls.count("POST /v1/chat/completions"), calls.count(CREATE)] == (
            [0, 1] if lane is Lane.BATCH else [1, 0]
        )


async def has_ended(replica, job_id):
    return (await replica.view(job_id)).settlement is not None


async def test_a_job_that_is_cancelled_while_the_planner_thinks_is_in_no_batch(sandbox, monkeypatch):
    gate = Gate()
    async with replicas_in(sandbox) as (replica,):
        monkeypatch.setattr(replica.parts.batches, "queue", gate.behind(replica.parts.batches.queue))
        await replica.queued("a", "b")
        step = asyncio.create_task(replica.plan_and_submit())
        await gate.reached()
        cancelled = await replica.cancel("a")
        gate.open()
        await step
        await sandbox.provider.twin.worker.idle()
        await replica.poll()
        await replica.settle()

        assert cancelled.state is State.CANCELLED
        assert (await replica.view("b")).job.state is State.SUCCEEDED
        assert await lines_bought(sandbox) == 1
        assert await replica.balance() == (9, 0)


async def test_a_job_that_is_cancelled_before_its_batch_is_frozen_is_not_bought(sandbox, monkeypatch):
    """Its batch is planned, and the wallet is asked to hold the tokens for longer."""
    gate = Gate()
    async with replicas_in(sandbox) as (replica,):
        monkeypatch.setattr(replica.parts.wallet, "settle_many", gate.before(replica.parts.wallet.settle_many))
        await replica.queued("a")
        step = asyncio.create_task(replica.plan_and_submit())
        await gate.reached()
        cancelled = await replica.cancel("a")
        gate.open()
        await step
        await replica.settle()

        assert cancelled.state is State.CANCELLED
        assert sandbox.provider.bought() == await replica.parts.batches.open_batches() == []
        assert await replica.balance() == (10, 0)


async def test_a_cancel_and_the_freezing_of_its_batch_agree_on_who_is_bought(on_both, monkeypatch):
    """The cancel has locked its job when the batch is frozen: PostgreSQL lets both go on, SQLite one by one."""
    gate = Gate()
    async with replicas_in(on_both, batch_jobs=2) as (replica,):
        parts = replica.parts
        queued = await replica.queued("a", "b")
        monkeypatch.setattr(Submitter, "_submit", no_submit)
        await replica.plan_and_submit()
        (batch,) = await parts.batches.open_batches()
        with monkeypatch.context() as patched:
            from services.batcher import store

            patched.setattr(store, "lock_batches", gate.before(store.lock_batches))
            cancel = asyncio.create_task(replica.cancel("a"))
            await gate.reached()
            lease = await replica.lease("submitter")
            freeze = asyncio.create_task(parts.batches.freeze(batch.batch_id, {}, "intent", "org", lease))
            if parts.database.dialect == "postgres":
                await freeze
            gate.open()
            cancelled, submission = await cancel, await freeze

        members = await parts.batches.member_uids(batch.batch_id)
        frozen = await parts.batches.batch(batch.batch_id)
        assert submission is not None
        assert (cancelled.state is State.CANCELLED) != (cancelled.uid in members)
        assert cancelled.cancel_requested
        assert (frozen.state, frozen.jobs) == (BatchState.SUBMITTING, len(members))
        assert queued[1].uid in members


async def no_submit(*_):
    """The batch stays as it was planned."""


@pytest.mark.parametrize("asked", [UPLOAD, CREATE])
async def test_a_job_that_is_cancelled_while_its_batch_is_bought_is_cancelled_there(tmp_path, asked):
    """A wish from then on: the provider ends the batch before it has answered, and nobody pays."""
    async with sandbox_in(tmp_path, pace=Pace(validating_seconds=1000)) as sandbox, replicas_in(sandbox) as (replica,):
        gate = Gate()
        hold_requests(sandbox, gate, asked)
        await replica.queued("a")
        step = asyncio.create_task(replica.plan_and_submit())
        await gate.reached()
        wish = await replica.cancel("a")
        gate.open()
        await step
        await replica.poll()
        await sandbox.provider.twin.worker.idle()
        await replica.poll()
        await replica.settle()

        view = await replica.view("a")
        assert (wish.state, wish.cancel_requested) == (State.BATCHED, True)
        assert (view.job.state, view.settlement.state) == (State.CANCELLED, SettlementState.SETTLED)
        assert await replica.balance() == (10, 0)


async def test_a_job_that_is_cancelled_while_its_answer_is_fetched_is_answered_and_charged(sandbox):
    async with replicas_in(sandbox) as (replica,):
        gate = Gate()
        await replica.queued("a")
        await replica.bought()
        hold_requests(sandbox, gate, DOWNLOAD)
        step = asyncio.create_task(replica.poll())
        await gate.reached()
        wish = await replica.cancel("a")
        gate.open()
        await step
        await replica.settle()

        view = await replica.view("a")
        assert (wish.state, wish.cancel_requested) == (State.RUNNING, True)
        assert (view.job.state, view.settlement.charged) == (State.SUCCEEDED, 1)
        assert await replica.balance() == (9, 0)


async def test_a_replica_that_was_asleep_while_another_planned_plans_nothing(on_both, monkeypatch):
    gate = Gate()
    async with replicas_in(on_both, 2) as (first, second):
        monkeypatch.setattr(first.parts.batches, "queue", gate.behind(first.parts.batches.queue))
        await first.queued("a")
        step = asyncio.create_task(first.plan_and_submit())
        await gate.reached()
        await second.bought()
        gate.open()
        await lost_the_lease(step)

        assert await lines_bought(on_both) == 1


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["in the upload", "before the create", "behind the create"])
async def test_a_replica_that_wakes_up_in_a_purchase_that_another_has_taken_over_buys_nothing_twice(on_both, moment):
    """The first sleeps longer than its lease. The second finds what was bought, or closes the try and buys itself; then
    the first wakes up, its call comes through late, and it may not write.
    """
    gate = Gate()
    async with replicas_in(on_both, 2) as (first, second):
        hold_requests(
            on_both, gate, UPLOAD if moment == "in the upload" else CREATE, done=moment == "behind the create"
        )
        await first.queued("a")
        step = asyncio.create_task(first.plan_and_submit())
        await gate.reached()
        for _ in range(3):
            await second.plan_and_submit(later_us=3_600_000_000)
        gate.open()
        await lost_the_lease(step)
        await on_both.provider.twin.worker.idle()
        await second.poll(later_us=3_600_000_000)
        await second.settle()

        view = await second.view("a")
        completed = [batch for batch in on_both.provider.bought() if batch.status == "completed"]
        assert (view.job.state, view.job.attempt, view.settlement.charged) == (State.SUCCEEDED, 1, 1)
        assert len(completed) == 1
        assert await second.balance() == (9, 0)


async def test_a_replica_that_wakes_up_behind_the_ingest_of_another_writes_no_answer(on_both):
    gate = Gate()
    async with replicas_in(on_both, 2) as (first, second):
        await first.queued("a")
        await first.bought()
        hold_requests(on_both, gate, DOWNLOAD)
        step = asyncio.create_task(first.poll())
        await gate.reached()
        await second.poll()
        gate.open()
        await lost_the_lease(step)
        await second.settle()

        assert (await second.view("a")).job.state is State.SUCCEEDED
        assert await second.balance() == (9, 0)


async def test_a_replica_that_wakes_up_with_a_settlement_that_another_has_made_charges_nothing(on_both, monkeypatch):
    gate = Gate()
    async with replicas_in(on_both, 2) as (first, second):
        await first.queued("a")
        await first.bought()
        await first.poll()
        monkeypatch.setattr(first.parts.wallet, "settle_many", gate.behind(first.parts.wallet.settle_many))
        step = asyncio.create_task(first.settle())
        await gate.reached()
        await second.settle()
        gate.open()
        await lost_the_lease(step)

        assert (await second.view("a")).settlement.state is SettlementState.SETTLED
        assert await second.balance() == (9, 0)
