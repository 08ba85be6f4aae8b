"""The batcher against the provider's list: what it had forgotten, what was bought twice, and what is not to be found.

"Restored" is what it says: the batcher is stopped, its database file replaced by an older copy, and it starts again.
"""

import asyncio
import os
import sys
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from openai import AsyncOpenAI

from punchcard.batcher.v1 import batcher_pb2
from sandbox.openai_twin.batch_worker import Pace
from services.batcher.purchases import UNREAD
from services.batcher.reconciled import RECONCILED
from services.batcher.reconciliation import Finding
from tests.backups import restore, saved
from tests.batchers import KEY, ROOT, picture, sandbox_in, until

SUCCEEDED = batcher_pb2.JOB_STATE_SUCCEEDED
FAILED = batcher_pb2.JOB_STATE_FAILED
QUEUED = batcher_pb2.JOB_STATE_QUEUED
RUNNING = batcher_pb2.JOB_STATE_RUNNING
LATER = {"cycle_seconds": 3600.0}
"""So that what is submitted waits."""

OFTEN = {"reconcile_seconds": 0.2}


@pytest.fixture
async def sandbox(tmp_path):
    async with sandbox_in(tmp_path) as made:
        yield made


@pytest.fixture
async def slow_sandbox(tmp_path):
    """One whose provider takes a while for a batch, so that a second one can be cancelled."""
    async with sandbox_in(tmp_path, pace=Pace(image_seconds=1.0)) as made:
        yield made


@pytest.fixture
async def slower_sandbox(tmp_path):
    """One that takes longer than two looks at its list, on whatever machine."""
    async with sandbox_in(tmp_path, pace=Pace(image_seconds=4.0)) as made:
        yield made


def found(finding):
    """How often something was found by this process."""
    return RECONCILED.labels(finding.value)._value.get()


@asynccontextmanager
async def counting(finding, times):
    """What happens in this block is found so often."""
    before = found(finding)
    yield
    assert found(finding) - before == times


async def submitted(client, *job_ids):
    image = (await client.upload(picture())).image
    for job_id in job_ids:
        await client.submit(job_id, image.image_id)


async def backup_with(sandbox, *job_ids, **settings):
    """A copy of the batcher's database, made when these jobs waited in its queue."""
    async with sandbox.batcher(**LATER, **settings) as client:
        await submitted(client, *job_ids)
    return saved(sandbox.folder / "batcher.db", "backup")


async def waits_for(client, job_id, reason):
    async def does():
        return (await client.get(job_id)).waiting_for.startswith(reason)

    await until(does)


def is_create(request):
    return request.method == "POST" and request.path == "/v1/batches"


def missing():
    return web.json_response({"error": {"message": "No batch found.", "code": None}}, status=404)


async def test_answers_bought_after_the_backup_are_delivered_again_and_neither_bought_nor_charged_again(sandbox):
    backup = await backup_with(sandbox, "a", "b")
    async with sandbox.batcher(batch_jobs=2) as client:
        first = [await client.ended(job_id) for job_id in ("a", "b")]
    restore(sandbox.folder / "batcher.db", backup)
    async with counting(Finding.FORGOTTEN_BATCH, 1), sandbox.batcher() as client:
        again = [await client.ended(job_id) for job_id in ("a", "b")]

    assert [job.answer.text for job in again] == [job.answer.text for job in first]
    assert {job.settlement.state for job in again} == {batcher_pb2.SETTLEMENT_STATE_SETTLED}
    assert len(sandbox.provider.bought()) == 1
    assert await sandbox.wallet.balance("alice") == (8, 0)


async def test_a_batch_that_still_runs_is_taken_over_although_its_input_file_is_gone(slow_sandbox):
    """As after each batch that has ended, whose input is deleted: then the result files tell whose it is."""
    sandbox = slow_sandbox
    backup = await backup_with(sandbox, "a")
    async with sandbox.batcher() as client:
        job = await client.ended("a")
    (bought,) = sandbox.provider.bought()
    assert bought.input_file_id not in sandbox.provider.twin._folder.files
    restore(sandbox.folder / "batcher.db", backup)
    async with sandbox.batcher() as client:
        again = await client.ended("a")

    assert again.answer.text == job.answer.text
    assert len(sandbox.provider.bought()) == 1
    assert await sandbox.wallet.balance("alice") == (9, 0)


async def test_nothing_is_bought_before_the_providers_books_were_read(sandbox):
    reached = asyncio.Event()

    async def unlisted(request, handle):
        if request.method == "GET" and request.path == "/v1/batches":
            reached.set()
            return web.json_response({"error": {"message": "broken"}}, status=500)
        return await handle()

    sandbox.provider.fault = unlisted
    async with sandbox.batcher(batch_jobs=1) as client:
        await reached.wait()
        await submitted(client, "a")
        await waits_for(client, "a", UNREAD)
        assert sandbox.provider.bought() == []
        sandbox.provider.fault = None
        job = await client.ended("a")

    assert job.state == SUCCEEDED


async def test_jobs_that_are_newer_than_the_backup_are_gone_and_their_batch_is_told_and_left(sandbox):
    """Nobody here waits for its answers, but we may be the ones who are wrong. Submitted again it is a new job."""
    async with sandbox.batcher(**LATER):
        pass
    backup = saved(sandbox.folder / "batcher.db", "backup")
    async with sandbox.batcher(batch_jobs=1) as client:
        await submitted(client, "a")
        await client.ended("a")
    restore(sandbox.folder / "batcher.db", backup)
    async with counting(Finding.UNKNOWN_BATCH, 1), sandbox.batcher(batch_jobs=1, **OFTEN) as client:
        await submitted(client, "a")
        job = await client.ended("a")

    assert job.state == SUCCEEDED
    assert not any(call.endswith("/cancel") for call in sandbox.provider.requests)
    assert len(sandbox.provider.bought()) == 2


async def test_batches_of_another_deployment_under_the_same_key_are_none_of_ours(sandbox):
    async with sandbox.batcher(deployment_id="theirs", database_url=f"sqlite:{sandbox.folder}/theirs.db") as client:
        await submitted(client, "a")
        await client.ended("a")
    async with counting(Finding.UNKNOWN_BATCH, 0), sandbox.batcher(deployment_id="ours") as client:
        await submitted(client, "b")
        await client.ended("b")

    tags = [batch.metadata["deployment_id"] for batch in sandbox.provider.bought()]
    assert tags == ["theirs", "ours"]


@pytest.mark.slow
async def test_a_create_that_comes_through_after_it_was_given_up_is_cancelled_and_charged_to_nobody(slower_sandbox):
    """The provider says that it has deleted the file and has not: only so can the create still find it."""
    sandbox = slower_sandbox
    creates = []

    async def delayed(request, handle):
        if request.method == "DELETE":
            return web.json_response({"id": request.path.rsplit("/", 1)[1], "object": "file", "deleted": True})
        if is_create(request):
            creates.append(await request.json())
            if len(creates) == 1:
                return web.json_response({"error": {"message": "broken"}}, status=504)
            response = await handle()
            sandbox.provider.fault = None
            async with AsyncOpenAI(base_url=sandbox.provider.url, api_key=KEY, max_retries=0) as client:
                await client.batches.create(**creates[0])
            return response
        return await handle()

    sandbox.provider.fault = delayed
    async with counting(Finding.LATE_BATCH, 1), sandbox.batcher(**OFTEN) as client:
        await submitted(client, "a")
        job = await client.ended("a")

    assert job.state == SUCCEEDED
    assert len(sandbox.provider.bought()) == 2
    assert sum(call.endswith("/cancel") for call in sandbox.provider.requests) == 1
    assert await sandbox.wallet.balance("alice") == (9, 0)


@pytest.mark.slow
async def test_a_second_batch_that_can_not_be_cancelled_yet_is_tried_again_and_keeps_nobody_waiting(slower_sandbox):
    sandbox = slower_sandbox
    refusals = []

    async def twice(request, handle):
        if is_create(request) and not refusals:
            refusals.append("create")
            await handle()
            await handle()
            return web.json_response({"error": {"message": "broken"}}, status=500)
        if request.path.endswith("/cancel") and len(refusals) == 1:
            refusals.append("cancel")
            return web.json_response({"error": {"message": "broken"}}, status=500)
        return await handle()

    sandbox.provider.fault = twice
    async with sandbox.batcher(**OFTEN) as client:
        await submitted(client, "a")

        async def tried_again():
            return sum(call.endswith("/cancel") for call in sandbox.provider.requests) == 2

        await until(tried_again)
        job = await client.ended("a")

    assert job.state == SUCCEEDED
    assert refusals == ["create", "cancel"]
    assert await sandbox.wallet.balance("alice") == (9, 0)


async def test_a_batch_that_the_provider_does_not_know_stops_all_buying_until_it_is_found_again(slow_sandbox):
    sandbox = slow_sandbox
    async with sandbox.batcher(batch_jobs=1, **OFTEN) as client:
        await submitted(client, "a")
        await until(lambda: has_state(client, "a", RUNNING))

        async def unknown(request, handle):
            return missing() if request.path.startswith("/v1/batches/batch_") else await handle()

        sandbox.provider.fault = unknown
        await waits_for(client, "a", "held for an operator: batch unknown")
        await submitted(client, "b")
        await waits_for(client, "b", "held for an operator: the provider does not know the batch batch_")
        assert len(sandbox.provider.bought()) == 1
        sandbox.provider.fault = None
        jobs = [await client.ended(job_id) for job_id in ("a", "b")]

    assert [job.state for job in jobs] == [SUCCEEDED, SUCCEEDED]
    assert [job.attempt for job in jobs] == [1, 1]
    assert len(sandbox.provider.bought()) == 2


async def has_state(client, job_id, state):
    return (await client.get(job_id)).state == state


async def test_another_identity_stops_all_buying_until_it_is_changed_back(slow_sandbox):
    """The create's answer is lost, and the project changed: whether it was bought can't be seen from there."""
    sandbox = slow_sandbox

    async def lost(request, handle):
        response = await handle()
        return web.json_response({"error": {"message": "broken"}}, status=500) if is_create(request) else response

    sandbox.provider.fault = lost
    async with sandbox.process(batch_jobs=1, openai_project="right", submit_settle_seconds=60.0) as (client, process):
        await submitted(client, "a")
        await until(lambda: bought_is(sandbox, 1))
        process.kill()
        process.wait()

    async def other_project(request, handle):
        if request.method == "GET" and request.path == "/v1/batches":
            return web.json_response({"object": "list", "data": [], "has_more": False})
        return await handle()

    sandbox.provider.fault = other_project
    async with counting(Finding.IDENTITY_CHANGED, 1), sandbox.batcher(batch_jobs=1, openai_project="wrong") as client:
        await waits_for(client, "a", "held for an operator: the batch was submitted under another provider identity")
        await submitted(client, "b")
        await waits_for(client, "b", "held for an operator: a batch was bought under another provider identity")
    assert await bought_is(sandbox, 1)
    sandbox.provider.fault = None
    async with sandbox.batcher(openai_project="right") as client:
        jobs = [await client.ended(job_id) for job_id in ("a", "b")]

    assert [job.state for job in jobs] == [SUCCEEDED, SUCCEEDED]
    assert len(sandbox.provider.bought()) == 2
    assert await sandbox.wallet.balance("alice") == (8, 0)


async def test_answers_that_another_identity_can_not_see_are_kept_waiting_and_not_given_up(slow_sandbox):
    """They are paid for. However little patience there is, that their file is not seen does not say that it is gone."""
    sandbox = slow_sandbox
    async with sandbox.process(batch_jobs=1, openai_project="right") as (client, process):
        await submitted(client, "a")
        await until(lambda: bought_is(sandbox, 1))
        process.kill()
        process.wait()
    await sandbox.provider.twin.worker.idle()

    async def unseen(request, handle):
        if request.method == "GET" and request.path.endswith("/content"):
            return web.json_response({"error": {"message": "No such File object"}}, status=404)
        return await handle()

    sandbox.provider.fault = unseen
    impatient = {"give_up_tries": 2, "give_up_hours": 0}
    async with sandbox.batcher(batch_jobs=1, openai_project="wrong", **impatient) as client:
        await waits_for(client, "a", "held for an operator: the batch was submitted under another provider identity")
    sandbox.provider.fault = None
    async with sandbox.batcher(openai_project="right") as client:
        job = await client.ended("a")

    assert job.state == SUCCEEDED
    assert await sandbox.wallet.balance("alice") == (9, 0)


async def bought_is(sandbox, count):
    return len(sandbox.provider.bought()) == count


async def test_a_job_that_was_cancelled_after_the_backup_is_not_bought_by_the_restored_batcher(sandbox):
    """The wallet has released its hold: it ends, and nothing is charged."""
    backup = await backup_with(sandbox, "a")
    async with sandbox.batcher(**LATER) as client:
        await client.call("CancelJob", batcher_pb2.CancelJobRequest(account_id="alice", job_id="a"))
        cancelled = await client.ended("a")
    restore(sandbox.folder / "batcher.db", backup)
    async with counting(Finding.LOST_HOLD, 1), sandbox.batcher(batch_jobs=1) as client:
        job = await client.ended("a")

    assert cancelled.state == batcher_pb2.JOB_STATE_CANCELLED
    assert (job.state, job.failure.code) == (FAILED, "hold_lost")
    assert sandbox.provider.bought() == []
    assert await sandbox.wallet.balance("alice") == (10, 0)


async def test_a_batch_that_an_operator_gives_up_fails_its_jobs_costs_nothing_and_lets_buying_go_on(slow_sandbox):
    sandbox = slow_sandbox
    async with sandbox.batcher(batch_jobs=1, **OFTEN) as client:
        await submitted(client, "a")
        await until(lambda: has_state(client, "a", RUNNING))

        async def unknown(request, handle):
            (first, *_) = sandbox.provider.bought()
            return missing() if request.path.startswith(f"/v1/batches/{first.id}") else await handle()

        sandbox.provider.fault = unknown
        await waits_for(client, "a", "held for an operator: ")
        await submitted(client, "b")
        await waits_for(client, "b", "held for an operator: ")
        batch_id = (await client.get("a")).batch_id
        printed = await run_command(sandbox, "give-up", batch_id)
        again = await run_command(sandbox, "give-up", batch_id)
        lost, job = await client.ended("a"), await client.ended("b")

    assert printed == f"given up: {batch_id}; 1 jobs failed, and their tokens go back to their owners"
    assert again == f"batcher: there is no batch {batch_id} that was bought and is open"
    assert (lost.state, lost.failure.code) == (FAILED, "result_lost")
    assert job.state == SUCCEEDED
    assert await sandbox.wallet.balance("alice") == (9, 0)


async def run_command(sandbox, *arguments):
    """What a command of the batcher's says."""
    environment = {f"BATCHER_{name.upper()}": str(value) for name, value in sandbox.settings.items()}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.batcher", *arguments),
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "gen")])},
        cwd=sandbox.folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed, _ = await process.communicate()
    return printed.decode().strip()
