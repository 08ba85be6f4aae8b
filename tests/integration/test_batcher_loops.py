"""The batcher's loops against a provider, a wallet and a process that fail at the worst moment.

Whatever happens, a job ends once, its user pays at most once, and each batch is bought once.
"""

import asyncio
import json
import signal

import pytest
from aiohttp import web

from punchcard.batcher.v1 import batcher_pb2
from punchcard.wallet.v1 import wallet_pb2
from sandbox.openai_twin.batch_worker import Pace
from services.batcher.object_store import ObjectStore
from services.chassis.errors import StoreUnavailable
from tests.batchers import picture, sandbox_in, until

SUCCEEDED = batcher_pb2.JOB_STATE_SUCCEEDED
FAILED = batcher_pb2.JOB_STATE_FAILED


@pytest.fixture
async def sandbox(tmp_path):
    async with sandbox_in(tmp_path) as made:
        yield made


async def submitted(client, *job_ids):
    image = (await client.upload(picture())).image
    for job_id in job_ids:
        await client.submit(job_id, image.image_id)


def is_create(request):
    return request.method == "POST" and request.path == "/v1/batches"


def is_retrieve(request):
    return request.method == "GET" and request.path.startswith("/v1/batches/")


def broken(status=500, **error):
    return web.json_response({"error": {"message": "broken", **error}}, status=status)


async def test_a_create_whose_answer_is_lost_is_found_again_and_adopted(sandbox):
    async def lost(request, handle):
        response = await handle()
        if is_create(request):
            sandbox.provider.fault = None
            return broken()
        return response

    sandbox.provider.fault = lost
    async with sandbox.batcher() as client:
        await submitted(client, "cat-1")
        job = await client.ended("cat-1")

    assert (job.state, job.attempt) == (SUCCEEDED, 1)
    assert len(sandbox.provider.bought()) == 1
    assert await sandbox.wallet.balance("alice") == (9, 0)


@pytest.mark.slow
async def test_a_create_that_never_came_through_is_tried_again_after_its_file_is_gone(sandbox):
    async def refused(request, handle):
        if is_create(request):
            sandbox.provider.fault = None
            return broken()
        return await handle()

    sandbox.provider.fault = refused
    async with sandbox.batcher() as client:
        await submitted(client, "cat-1")
        job = await client.ended("cat-1")

    calls = sandbox.provider.requests
    deleted = next(place for place, call in enumerate(calls) if call.startswith("DELETE /v1/files/"))
    creates = [place for place, call in enumerate(calls) if call == "POST /v1/batches"]
    looks = [place for place, call in enumerate(calls) if call == "GET /v1/batches" and place > creates[0]]
    assert job.state == SUCCEEDED
    assert len(creates) == 2
    assert looks[0] < deleted < looks[-1] < creates[1]
    assert len(sandbox.provider.bought()) == 1


@pytest.mark.slow
async def test_a_create_that_comes_through_late_names_a_file_that_is_gone(sandbox):
    late = asyncio.Event()

    async def slow(request, handle):
        if is_create(request) and not late.is_set():
            sandbox.provider.fault = None
            await late.wait()
        return await handle()

    sandbox.provider.fault = slow
    async with sandbox.batcher(submit_timeout_seconds=0.3) as client:
        await submitted(client, "cat-1")
        job = await client.ended("cat-1")
        late.set()

    bought = [batch for batch in sandbox.provider.bought() if batch.status == "completed"]
    assert job.state == SUCCEEDED
    assert len(bought) == 1
    assert await sandbox.wallet.balance("alice") == (9, 0)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before the create", "after the create", "after the answers"])
async def test_a_batcher_that_is_killed_goes_on_where_it_was_and_buys_nothing_twice(sandbox, moment):
    reached, release = asyncio.Event(), asyncio.Event()

    async def stopped(request, handle):
        matters = is_create(request) or (moment == "after the answers" and request.path.endswith("/content"))
        if not matters or (is_create(request) and moment == "after the answers"):
            return await handle()
        if moment != "before the create":
            await handle()
        reached.set()
        await release.wait()
        return broken()

    sandbox.provider.fault = stopped
    async with sandbox.process() as (client, process):
        await submitted(client, "cat-1", "cat-2")
        async with asyncio.timeout(30):
            await reached.wait()
        process.send_signal(signal.SIGKILL)
        process.wait()
    sandbox.provider.fault = None
    release.set()
    async with sandbox.batcher() as client:
        jobs = [await client.ended(job_id) for job_id in ("cat-1", "cat-2")]

    assert [job.state for job in jobs] == [SUCCEEDED, SUCCEEDED]
    # A cycle may come between the two submits and make two batches of them.
    assert sum(batch.total for batch in sandbox.provider.bought()) == 2
    assert await sandbox.wallet.balance("alice") == (8, 0)


async def test_an_upload_whose_answer_is_lost_costs_only_a_file(sandbox):
    async def lost(request, handle):
        response = await handle()
        if request.method == "POST" and request.path == "/v1/files":
            sandbox.provider.fault = None
            return broken()
        return response

    sandbox.provider.fault = lost
    async with sandbox.batcher() as client:
        await submitted(client, "cat-1")
        job = await client.ended("cat-1")

    assert (job.state, len(sandbox.provider.bought())) == (SUCCEEDED, 1)


async def test_a_batch_whose_file_can_not_be_sent_is_not_tried_again_at_once(sandbox):
    """Each try costs a submission and the transfer of a file, so that the next one waits for its time."""
    tries = []

    async def failing(request, handle):
        if request.method == "POST" and request.path == "/v1/files":
            tries.append(request)
            return broken()
        return await handle()

    sandbox.provider.fault = failing
    async with sandbox.batcher(submit_retry_seconds=3600.0) as client:
        await submitted(client, "cat-1")
        await until(lambda: waits(client, "cat-1", "the provider to take its batch, again at "))

    assert len(tries) == 1
    assert not list((sandbox.folder / "work").iterdir())


async def test_an_outage_of_the_images_leaves_no_halves_of_files(sandbox, monkeypatch):
    broken_off = asyncio.Event()

    async def unavailable(_self, _key):
        broken_off.set()
        raise StoreUnavailable("object store: out")

    async with sandbox.batcher() as client:
        with monkeypatch.context() as outage:
            outage.setattr(ObjectStore, "get", unavailable)
            await submitted(client, "cat-1")
            async with asyncio.timeout(30):
                await broken_off.wait()
            await until(lambda: waits(client, "cat-1", "the provider to take its batch, again at "))
            left = list((sandbox.folder / "work").iterdir())
        job = await client.ended("cat-1")

    assert left == []
    assert job.state == SUCCEEDED


async def waits(client, job_id, reason):
    return (await client.get(job_id)).waiting_for.startswith(reason)


async def test_a_provider_that_is_busy_is_asked_again_when_it_said(sandbox):
    async def busy(request, handle):
        if is_create(request):
            sandbox.provider.fault = None
            return web.json_response({"error": {"message": "slow down"}}, status=429, headers={"retry-after-ms": "100"})
        return await handle()

    sandbox.provider.fault = busy
    async with sandbox.batcher() as client:
        await submitted(client, "cat-1")
        job = await client.ended("cat-1")

    assert (job.state, job.attempt) == (SUCCEEDED, 1)


async def test_a_batch_that_the_provider_refuses_for_good_fails_its_jobs_and_costs_nothing(sandbox):
    async def refused(request, handle):
        return broken(400, code="model_not_found") if is_create(request) else await handle()

    sandbox.provider.fault = refused
    async with sandbox.batcher() as client:
        await submitted(client, "cat-1")
        job = await client.ended("cat-1")

    assert (job.state, job.failure.code) == (FAILED, "model_not_found")
    assert await sandbox.wallet.balance("alice") == (10, 0)


async def test_a_full_queue_at_the_provider_makes_jobs_wait_and_not_fail(sandbox):
    async def full(request, handle):
        response = await handle()
        if is_retrieve(request):
            shown = json.loads(response.body)
            if shown["status"] == "completed":
                sandbox.provider.fault = None
                error = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached.", "line": None}
                shown |= {"status": "failed", "errors": {"object": "list", "data": [error]}, "output_file_id": None}
                return web.json_response(shown)
        return response

    sandbox.provider.fault = full
    async with sandbox.batcher(attempts_max=1) as client:
        await submitted(client, "cat-1")
        job = await client.ended("cat-1")

    assert (job.state, job.attempt) == (SUCCEEDED, 2)


async def test_lines_that_are_missing_are_tried_again_and_then_given_up(sandbox):
    async def empty(request, handle):
        response = await handle()
        if is_retrieve(request):
            shown = json.loads(response.body)
            if shown["status"] == "completed":
                counts = {"total": 1, "completed": 0, "failed": 0}
                return web.json_response(
                    shown | {"output_file_id": "", "error_file_id": None, "request_counts": counts}
                )
        return response

    sandbox.provider.fault = empty
    async with sandbox.batcher(attempts_max=2) as client:
        await submitted(client, "cat-1")
        job = await client.ended("cat-1")

    assert (job.state, job.attempt, job.failure.code) == (FAILED, 2, "missing_line")
    assert len(sandbox.provider.bought()) == 2
    assert await sandbox.wallet.balance("alice") == (10, 0)


async def test_files_that_are_shorter_than_the_counts_are_read_again(sandbox):
    async def counting(request, handle):
        response = await handle()
        if is_retrieve(request):
            shown = json.loads(response.body)
            if shown["status"] == "completed":
                sandbox.provider.fault = None
                counts = {"total": 2, "completed": 2, "failed": 0}
                return web.json_response(shown | {"request_counts": counts})
        return response

    sandbox.provider.fault = counting
    async with sandbox.batcher() as client:
        await submitted(client, "cat-1")
        job = await client.ended("cat-1")

    assert (job.state, job.attempt) == (SUCCEEDED, 1)


async def test_a_file_that_broke_off_unnoticed_is_fetched_again(sandbox):
    async def cut(request, handle):
        response = await handle()
        if request.path.endswith("/content"):
            sandbox.provider.fault = None
            return web.Response(body=b"")
        return response

    sandbox.provider.fault = cut
    async with sandbox.batcher() as client:
        await submitted(client, "cat-1")
        job = await client.ended("cat-1")

    assert (job.state, job.attempt) == (SUCCEEDED, 1)


async def test_a_file_that_is_named_only_after_the_end_of_its_batch_is_read(sandbox):
    async def unnamed(request, handle):
        response = await handle()
        if is_retrieve(request):
            shown = json.loads(response.body)
            if shown["status"] == "completed":
                sandbox.provider.fault = None
                return web.json_response(shown | {"output_file_id": None})
        return response

    sandbox.provider.fault = unnamed
    async with sandbox.batcher() as client:
        await submitted(client, "cat-1")
        job = await client.ended("cat-1")

    assert (job.state, job.attempt) == (SUCCEEDED, 1)


async def test_what_a_failed_batch_has_answered_counts(sandbox):
    async def failing(request, handle):
        response = await handle()
        if is_retrieve(request):
            shown = json.loads(response.body)
            if shown["status"] == "completed":
                error = {"code": "server_error", "message": "It broke.", "line": None}
                return web.json_response(shown | {"status": "failed", "errors": {"data": [error]}})
        return response

    sandbox.provider.fault = failing
    async with sandbox.batcher() as client:
        await submitted(client, "cat-1")
        job = await client.ended("cat-1")

    assert (job.state, job.attempt) == (SUCCEEDED, 1)
    assert await sandbox.wallet.balance("alice") == (9, 0)


async def test_jobs_wait_for_a_wallet_that_does_not_answer_and_go_on_with_it(sandbox):
    wallet = sandbox.settings["wallet_address"]
    async with sandbox.batcher(wallet_address="127.0.0.1:1", admission_wait_seconds=0.2) as client:
        await submitted(client, "cat-1")
        waiting = await client.get("cat-1")
    async with sandbox.batcher(wallet_address=wallet) as client:
        job = await client.ended("cat-1")

    assert waiting.state == batcher_pb2.JOB_STATE_ADMITTING
    assert waiting.waiting_for == "the wallet to answer"
    assert job.state == SUCCEEDED
    assert await sandbox.wallet.balance("alice") == (9, 0)


async def test_a_batch_that_nobody_wants_any_more_is_cancelled_at_the_provider(sandbox):
    hold = asyncio.Event()

    async def unfinished(request, handle):
        response = await handle()
        if is_retrieve(request) and not hold.is_set():
            shown = json.loads(response.body)
            counts = {"total": 1, "completed": 0, "failed": 0}
            more = {"status": "in_progress", "output_file_id": None, "request_counts": counts}
            return web.json_response(shown | more)
        if request.path.endswith("/cancel"):
            hold.set()
        return response

    sandbox.provider.fault = unfinished
    async with sandbox.batcher() as client:
        await submitted(client, "cat-1")
        await until(lambda: has_state(client, "cat-1", batcher_pb2.JOB_STATE_RUNNING))
        asked = await client.call("CancelJob", batcher_pb2.CancelJobRequest(account_id="alice", job_id="cat-1"))
        job = await client.ended("cat-1")

    assert asked.job.cancel_requested
    assert any(call.endswith("/cancel") for call in sandbox.provider.requests)
    # The twin had the answer already, and what was paid for is delivered.
    assert job.state == SUCCEEDED


async def has_state(client, job_id, state):
    return (await client.get(job_id)).state == state


@pytest.mark.slow
async def test_a_second_batch_of_one_intent_is_cancelled_and_charged_to_nobody(tmp_path):
    """A create goes through twice behind our back, as by a proxy that retries: one is adopted, the other cancelled."""
    async with sandbox_in(tmp_path, pace=Pace(image_seconds=1.0)) as sandbox:

        async def twice(request, handle):
            if is_create(request):
                sandbox.provider.fault = None
                await handle()
                await handle()
                return broken()
            return await handle()

        sandbox.provider.fault = twice
        async with sandbox.batcher(reconcile_seconds=0.1) as client:
            await submitted(client, "cat-1")
            job = await client.ended("cat-1")

        cancels = [call for call in sandbox.provider.requests if call.endswith("/cancel")]
        assert job.state == SUCCEEDED
        assert len(sandbox.provider.bought()) == 2
        assert len(cancels) == 1
        assert await sandbox.wallet.balance("alice") == (9, 0)


async def test_two_replicas_share_a_database_and_buy_each_job_once(tmp_path, postgres_url):
    """Forty jobs come in through two batchers at once: each is answered and charged once."""
    async with sandbox_in(tmp_path, postgres_url) as sandbox:
        await sandbox.wallet.call("OpenAccount", open_account("alice"))
        await sandbox.wallet.call("Grant", top_up("alice", 100))
        async with sandbox.batcher(batch_jobs=7) as left, sandbox.batcher(batch_jobs=7) as right:
            image = (await left.upload(picture())).image
            names = [f"cat-{number}" for number in range(40)]
            await asyncio.gather(
                *((left, right)[number % 2].submit(name, image.image_id) for number, name in enumerate(names)),
                *(left.submit(name, image.image_id) for name in names[::3]),
            )
            jobs = [await right.ended(name) for name in names]

        lines = sum(batch.total for batch in sandbox.provider.bought())
        assert {job.state for job in jobs} == {SUCCEEDED}
        assert lines == 40
        assert await sandbox.wallet.balance("alice") == (10 + 100 - 40, 0)


def open_account(account_id):
    return wallet_pb2.OpenAccountRequest(account_id=account_id)


def top_up(account_id, amount):
    return wallet_pb2.GrantRequest(account_id=account_id, grant_id="top-up", amount=amount)
