"""The instant lane against a provider that is busy, broken or silent, and a process that dies in the call."""

import asyncio
import contextlib
import random
import signal
import sqlite3

import grpc
import pytest
from aiohttp import web

from punchcard.batcher.v1 import batcher_pb2
from punchcard.wallet.v1 import wallet_pb2
from services.batcher.instant_runner import LATE_ANSWERS
from services.batcher.job import Lane, State
from services.batcher.purchases import UNREAD
from tests.batchers import FINAL, picture, sandbox_in, until
from tests.hand_run import now_us, replicas_in
from tests.wallets import refused

INSTANT = batcher_pb2.LANE_INSTANT
BATCH = batcher_pb2.LANE_BATCH
SUCCEEDED = batcher_pb2.JOB_STATE_SUCCEEDED
CALL = "POST /v1/chat/completions"


@pytest.fixture
async def sandbox(tmp_path):
    async with sandbox_in(tmp_path) as made:
        yield made


def fail_calls(sandbox, answer):
    """Makes every instant call fail: answer is given instead of the provider's own."""

    async def fault(request, handle):
        return await answer() if request.path.endswith("/chat/completions") else await handle()

    sandbox.provider.fault = fault


def saying(status, **headers):
    """An error of the provider."""

    async def answer():
        headers_sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.json_response({"error": {"message": "no"}}, status=status, headers=headers_sent)

    return answer


async def submitted(client, *job_ids, **fields):
    image = (await client.upload(picture())).image
    for job_id in job_ids:
        await client.submit(job_id, image.image_id, lane=INSTANT, **{"allow_batch_fallback": True, **fields})


async def silence():
    await asyncio.Event().wait()


FAULTS = {
    "a storm of 429": saying(429, retry_after="0.01"),
    "a storm of 500": saying(500),
    "503 with Retry-After": saying(503, retry_after="0.1"),
    "silence": silence,
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_jobs_that_the_provider_does_not_answer_at_once_become_batch_jobs_at_their_price(sandbox, fault):
    fail_calls(sandbox, FAULTS[fault])
    # Long enough for each try to reach a provider on a busy machine: one that does not is no call.
    async with sandbox.batcher(instant_timeout_seconds=2.0) as client:
        await submitted(client, "now-1", "now-2")
        messages = await client.watch("now-1")
        jobs = [await client.ended(job_id) for job_id in ("now-1", "now-2")]

    told = [message.change for message in messages if message.WhichOneof("event") == "change"]
    fallen = [(change.lane, change.price, change.attempt) for change in told if change.lane]
    for job in jobs:
        assert (job.state, job.lane, job.asked_lane, job.attempt) == (SUCCEEDED, BATCH, INSTANT, 3)
        assert (job.price, job.settlement.charged, job.allow_batch_fallback) == (1, 1, True)
    assert fallen == [(BATCH, 1, 3)]
    assert sandbox.provider.requests.count(CALL) == 4
    assert await sandbox.wallet.balance("alice") == (8, 0)


async def test_the_hold_of_a_job_that_fell_back_is_lowered_while_it_still_waits(sandbox):
    fail_calls(sandbox, saying(500))
    async with sandbox.batcher(cycle_seconds=1e6) as client:
        await submitted(client, "now-1")

        async def lowered():
            return await sandbox.wallet.balance("alice") == (10, 1)

        await until(lowered)
        job = await client.get("now-1")

    assert (job.state, job.lane) == (batcher_pb2.JOB_STATE_QUEUED, BATCH)
    assert job.waiting_for.startswith(("next cycle at ", UNREAD))


async def test_a_job_falls_back_at_once_when_the_provider_asks_for_more_patience_than_an_instant_job_has(sandbox):
    fail_calls(sandbox, saying(429, retry_after="3600"))
    async with sandbox.batcher() as client:
        await submitted(client, "now-1")
        job = await client.ended("now-1")

    assert (job.state, job.lane, job.attempt) == (SUCCEEDED, BATCH, 2)
    assert sandbox.provider.requests.count(CALL) == 1


async def test_a_request_that_is_at_fault_itself_does_not_fall_back(sandbox):
    fail_calls(sandbox, saying(400))
    async with sandbox.batcher() as client:
        await submitted(client, "now-1")
        job = await client.ended("now-1")

    assert (job.state, job.lane, job.settlement.charged) == (batcher_pb2.JOB_STATE_FAILED, INSTANT, 0)
    assert await sandbox.wallet.balance("alice") == (10, 0)
    assert sandbox.provider.bought() == []


async def test_a_job_that_is_cancelled_in_a_call_that_fails_is_neither_tried_again_nor_falls_back(sandbox):
    called, go_on = asyncio.Event(), asyncio.Event()

    async def slow():
        called.set()
        await go_on.wait()
        return await saying(500)()

    fail_calls(sandbox, slow)
    async with sandbox.batcher() as client:
        await submitted(client, "now-1")
        await called.wait()
        cancel = batcher_pb2.CancelJobRequest(account_id="alice", job_id="now-1")
        wish = (await client.call("CancelJob", cancel)).job
        go_on.set()
        job = await client.ended("now-1")

    assert (wish.state, wish.cancel_requested) == (batcher_pb2.JOB_STATE_RUNNING, True)
    assert (job.state, job.lane) == (batcher_pb2.JOB_STATE_CANCELLED, INSTANT)
    assert sandbox.provider.requests.count(CALL) == 1
    assert await sandbox.wallet.balance("alice") == (10, 0)


async def test_no_more_calls_run_at_once_than_are_allowed(sandbox):
    running, most = 0, 0

    async def counted(request, handle):
        nonlocal running, most
        if not request.path.endswith("/chat/completions"):
            return await handle()
        running += 1
        most = max(most, running)
        response = await handle()
        running -= 1
        return response

    sandbox.provider.fault = counted
    names = [f"now-{number}" for number in range(6)]
    async with sandbox.batcher(instant_concurrency=2) as client:
        await sandbox.wallet.call("OpenAccount", wallet_pb2.OpenAccountRequest(account_id="alice"))
        grant = wallet_pb2.GrantRequest(account_id="alice", grant_id="more", amount=20)
        await sandbox.wallet.call("Grant", grant)
        await submitted(client, *names)
        jobs = [await client.ended(name) for name in names]

    assert {job.state for job in jobs} == {SUCCEEDED}
    assert most <= 2
    assert await sandbox.wallet.balance("alice") == (0, 0)


async def test_a_batcher_that_is_killed_in_the_call_tries_once_more_and_then_falls_back(sandbox):
    called = asyncio.Event()

    async def first():
        called.set()
        await silence()

    fail_calls(sandbox, first)
    async with sandbox.process(instant_timeout_seconds=0.5) as (client, process):
        await submitted(client, "now-1")
        await called.wait()
        process.send_signal(signal.SIGKILL)
        process.wait()
    fail_calls(sandbox, saying(500))
    async with sandbox.batcher() as client:
        job = await client.ended("now-1")

    assert (job.state, job.lane, job.attempt, job.settlement.charged) == (SUCCEEDED, BATCH, 3, 1)
    assert sandbox.provider.requests.count(CALL) == 2
    assert await sandbox.wallet.balance("alice") == (9, 0)


async def test_an_answer_that_comes_in_spite_of_a_cancel_is_delivered_and_charged(sandbox):
    called, go_on = asyncio.Event(), asyncio.Event()

    async def slow(request, handle):
        if request.path.endswith("/chat/completions"):
            called.set()
            await go_on.wait()
        return await handle()

    sandbox.provider.fault = slow
    async with sandbox.batcher() as client:
        await submitted(client, "now-1")
        await called.wait()
        await client.call("CancelJob", batcher_pb2.CancelJobRequest(account_id="alice", job_id="now-1"))
        go_on.set()
        job = await client.ended("now-1")

    assert (job.state, job.cancel_requested, job.settlement.charged) == (SUCCEEDED, True, 5)
    assert await sandbox.wallet.balance("alice") == (5, 0)


async def test_a_job_that_is_cancelled_while_it_waits_for_a_call_to_end_is_never_asked(sandbox):
    called, go_on = asyncio.Event(), asyncio.Event()

    async def slow(request, handle):
        if request.path.endswith("/chat/completions"):
            called.set()
            await go_on.wait()
        return await handle()

    sandbox.provider.fault = slow
    async with sandbox.batcher(instant_concurrency=1) as client:
        await submitted(client, "now-1")
        await called.wait()
        await submitted(client, "now-2")
        await client.call("CancelJob", batcher_pb2.CancelJobRequest(account_id="alice", job_id="now-2"))
        go_on.set()
        jobs = [await client.ended(job_id) for job_id in ("now-1", "now-2")]

    assert [job.state for job in jobs] == [SUCCEEDED, batcher_pb2.JOB_STATE_CANCELLED]
    assert sandbox.provider.requests.count(CALL) == 1
    assert await sandbox.wallet.balance("alice") == (5, 0)


async def test_a_job_whose_deadline_passes_in_the_call_ends_and_is_not_tried_again(sandbox):
    """The call is given up when the job's time is over, long before the time that a call may take."""
    fail_calls(sandbox, silence)
    async with replicas_in(sandbox, instant_timeout_seconds=60.0) as (replica,):
        await replica.queued("now-1", lane=Lane.INSTANT, deadline_us=now_us() + 1_000_000)

        async def ended():
            return (await replica.view("now-1")).settlement is not None

        await until(ended)
        await replica.settle()
        view = await replica.view("now-1")

    assert (view.job.state, view.job.lane, view.failure.code) == (State.EXPIRED, Lane.INSTANT, "deadline")
    assert sandbox.provider.requests.count(CALL) == 1
    assert await sandbox.wallet.balance("alice") == (10, 0)


async def test_a_late_answer_is_dropped_and_counted_while_the_batch_answers_at_its_price(sandbox):
    """Another replica takes the first for dead in its call, as if it had been frozen for longer than its lease."""
    called, answer, dropped = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slow(request, handle):
        if request.path.endswith("/chat/completions"):
            called.set()
            await answer.wait()
        elif request.path == "/v1/batches" and request.method == "POST":
            await dropped.wait()
        return await handle()

    sandbox.provider.fault = slow
    late = LATE_ANSWERS.labels(Lane.INSTANT)._value.get()

    async def lowered():
        return await sandbox.wallet.balance("alice") == (10, 1)

    async def counted():
        return LATE_ANSWERS.labels(Lane.INSTANT)._value.get() == late + 1

    async with sandbox.batcher(instant_timeout_seconds=60.0, submit_timeout_seconds=2.9) as client:
        await submitted(client, "now-1")
        await called.wait()
        with contextlib.closing(sqlite3.connect(sandbox.folder / "batcher.db")) as database, database:
            database.execute("UPDATE attempts SET lease_time_us = 1")
        async with sandbox.batcher(instant_timeout_seconds=60.0, submit_timeout_seconds=2.9, attempts_max=1):
            await until(lowered)
            answer.set()
            await until(counted)
            dropped.set()
            job = await client.ended("now-1")

    assert (job.state, job.lane, job.settlement.charged) == (SUCCEEDED, BATCH, 1)
    assert sandbox.provider.requests.count(CALL) == 1
    assert await sandbox.wallet.balance("alice") == (9, 0)


@pytest.mark.parametrize("seed", range(2))
async def test_a_storm_of_refusals_and_cancels_ends_with_each_job_settled_once(sandbox, seed):
    """Thirty jobs of which some may fall back, some are cancelled, and half of the calls fail. Replay: -k "storm and
    [<seed>]".
    """
    dice = random.Random(seed)
    failures = [saying(429, retry_after="0.01"), saying(500), saying(503), saying(400)]
    running, most = 0, 0

    async def stormy(request, handle):
        nonlocal running, most
        if not request.path.endswith("/chat/completions"):
            return await handle()
        running += 1
        most = max(most, running)
        response = await (dice.choice(failures)() if dice.random() < 0.5 else handle())
        running -= 1
        return response

    sandbox.provider.fault = stormy
    names = [f"now-{number}" for number in range(30)]
    await sandbox.wallet.call("OpenAccount", wallet_pb2.OpenAccountRequest(account_id="alice"))
    await sandbox.wallet.call("Grant", wallet_pb2.GrantRequest(account_id="alice", grant_id="more", amount=190))
    async with sandbox.batcher(instant_concurrency=4) as client:
        for name in names:
            await submitted(client, name, allow_batch_fallback=dice.random() < 0.7)
            if dice.random() < 0.3:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await client.call("CancelJob", batcher_pb2.CancelJobRequest(account_id="alice", job_id=name))
        jobs = [await client.ended(name) for name in names]

    assert most <= 4
    for job in jobs:
        assert job.state in FINAL
        assert job.settlement.state == batcher_pb2.SETTLEMENT_STATE_SETTLED
        assert job.settlement.charged == (job.price if job.state == SUCCEEDED else 0), job
    assert await sandbox.wallet.balance("alice") == (200 - sum(job.settlement.charged for job in jobs), 0)


async def test_only_an_instant_job_may_be_allowed_to_fall_back(sandbox):
    async with sandbox.batcher(cycle_seconds=1e6) as client:
        image = (await client.upload(picture())).image
        request = {"image_id": image.image_id, "allow_batch_fallback": True}
        code, reason, metadata = await refused(client.submit("cat-1", lane=BATCH, **request))
        await client.submit("now-1", lane=INSTANT, **request)
        other = await refused(client.submit("now-1", image.image_id, lane=INSTANT))

    assert (code, reason, metadata) == ("INVALID_ARGUMENT", "INVALID_FIELD", {"field": "allow_batch_fallback"})
    assert other == (
        "ALREADY_EXISTS",
        "IDEMPOTENCY_MISMATCH",
        {"field": "allow_batch_fallback", "stored": "True", "received": "False"},
    )
