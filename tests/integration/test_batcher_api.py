"""The batcher through its own front door: a real wallet, a real S3 server, the provider's twin."""

import asyncio
import time
from contextlib import AsyncExitStack

import grpc
import pytest
from aiohttp import web
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from punchcard.batcher.v1 import batcher_pb2, error_reason_pb2, pricing_pb2
from punchcard.wallet.v1 import wallet_pb2
from services.batcher import grpc_pricing
from services.batcher.grpc_api import ERRORS, SCOPES, SERVICE
from services.batcher.object_store import ObjectStore
from services.batcher.purchases import UNREAD
from services.chassis.errors import CHASSIS_ROWS
from tests.batchers import connected, picture, request_of, sandbox_in, until
from tests.tokens import bearer
from tests.wallets import reason_of, refused

SUCCEEDED = batcher_pb2.JOB_STATE_SUCCEEDED


@pytest.fixture
async def sandbox(tmp_path):
    async with sandbox_in(tmp_path) as made:
        yield made


@pytest.fixture
async def client(sandbox):
    async with sandbox.batcher() as made:
        yield made


@pytest.fixture
async def idle(sandbox):
    """A batcher whose next cycle never comes, so that jobs stay queued."""
    async with sandbox.batcher(cycle_seconds=1e6) as made:
        yield made


async def test_a_job_goes_from_its_image_to_its_answer_and_is_charged_once(sandbox, client):
    image = (await client.upload(picture())).image
    submitted = await client.submit("cat-1", image.image_id)
    messages = await client.watch("cat-1")
    job = await client.get("cat-1")

    kinds = [message.WhichOneof("event") for message in messages]
    assert submitted.job.state == batcher_pb2.JOB_STATE_QUEUED
    assert submitted.job.waiting_for.startswith(("next cycle at ", UNREAD))
    assert kinds[:2] == ["snapshot", "bookmark"]
    assert messages[-1].change.settlement.state == batcher_pb2.SETTLEMENT_STATE_SETTLED
    assert job.state == SUCCEEDED
    assert job.answer.text
    assert job.settlement.charged == 1
    assert await sandbox.wallet.balance("alice") == (9, 0)
    assert len(sandbox.provider.bought()) == 1


async def test_a_watch_tells_each_step_once_in_order_and_carries_the_answer(client):
    image = (await client.upload(picture())).image
    await client.submit("cat-1", image.image_id)
    messages = await client.watch("cat-1")

    changes = [message.change for message in messages if message.WhichOneof("event") == "change"]
    states = [batcher_pb2.JobState.Name(change.state).removeprefix("JOB_STATE_") for change in changes]
    progress = [message.progress for message in messages if message.WhichOneof("event") == "progress"]
    revisions = [message.revision for message in messages]
    assert states == ["BATCHED", "RUNNING", "SUCCEEDED", "SUCCEEDED"]
    assert changes[2].answer.text
    assert not changes[3].HasField("answer")
    assert revisions == sorted(revisions)
    assert progress[-1].completed == progress[-1].total == 1


async def test_a_watch_goes_on_behind_its_token_and_an_old_one_ends_at_once(client):
    image = (await client.upload(picture())).image
    await client.submit("cat-1", image.image_id)
    whole = await client.watch("cat-1")
    rest = await client.watch("cat-1", resume_token=whole[1].resume_token)
    nothing = await client.watch("cat-1", resume_token=whole[-1].resume_token)
    again = await client.watch("cat-1")

    def told(messages, kind):
        return [message.revision for message in messages if message.WhichOneof("event") == kind]

    assert told(rest, "change") == told(whole, "change")
    assert told(rest, "snapshot") == []
    assert [message.WhichOneof("event") for message in nothing] == ["bookmark"]
    assert [message.WhichOneof("event") for message in again] == ["snapshot", "bookmark"]


async def test_a_token_of_the_future_or_of_another_life_is_refused(client):
    image = (await client.upload(picture())).image
    await client.submit("cat-1", image.image_id)
    (first, *_) = await client.watch("cat-1")
    epoch = first.resume_token.rpartition(".")[0]

    for token in (f"{epoch}.999999", "other.1", "nonsense"):
        code, reason, _ = await refused(client.watch("cat-1", resume_token=token))
        assert (code, reason) == ("OUT_OF_RANGE", "REVISION_UNKNOWN")


async def test_a_watch_ends_with_its_token_and_with_the_server(sandbox, idle):
    image = (await idle.upload(picture())).image
    await idle.submit("cat-1", image.image_id)
    request = batcher_pb2.WatchJobRequest(account_id="alice", job_id="cat-1")
    metadata = bearer("alice", "job.read", audience="punchcard.batcher", lifetime_seconds=1.5)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [message async for message in idle.stub.WatchJob(request, metadata=metadata)]
    assert reason_of(caught.value)[:2] == ("UNAUTHENTICATED", "TOKEN_EXPIRED")

    async with AsyncExitStack() as channels:
        async with sandbox.batcher(cycle_seconds=1e6) as other:
            # A channel of its own, as the other one is closed before the server drains.
            watcher = await channels.enter_async_context(connected(other.address))
            messages = aiter(watcher.stub.WatchJob(request, metadata=watcher.metadata))
            assert (await anext(messages)).HasField("snapshot")
            ending = asyncio.ensure_future(collect(messages))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ending
    assert reason_of(caught.value)[:2] == ("UNAVAILABLE", "SERVER_DRAINING")


async def collect(watch):
    return [message async for message in watch]


async def test_an_instant_job_is_answered_at_once_for_five(sandbox, idle):
    image = (await idle.upload(picture())).image
    submitted = await idle.submit("now-1", image.image_id, lane=batcher_pb2.LANE_INSTANT)
    job = await idle.ended("now-1")

    assert submitted.job.state == batcher_pb2.JOB_STATE_RUNNING
    assert (job.state, job.settlement.charged, job.batch_id) == (SUCCEEDED, 5, "")
    assert await sandbox.wallet.balance("alice") == (5, 0)
    assert sandbox.provider.bought() == []


async def test_an_instant_job_is_tried_twice_and_then_costs_nothing(sandbox, idle):
    image = (await idle.upload(picture())).image

    async def broken(request, handle):
        if request.path.endswith("/chat/completions"):
            return web.json_response({"error": {"message": "broken"}}, status=500)
        return await handle()

    sandbox.provider.fault = broken
    await idle.submit("now-1", image.image_id, lane=batcher_pb2.LANE_INSTANT)
    job = await idle.ended("now-1")

    assert (job.state, job.attempt, job.settlement.charged) == (batcher_pb2.JOB_STATE_FAILED, 2, 0)
    assert await sandbox.wallet.balance("alice") == (10, 0)
    assert sandbox.provider.requests.count("POST /v1/chat/completions") == 2


async def test_the_same_submit_again_is_the_same_job_and_other_content_is_refused(client):
    image = (await client.upload(picture())).image
    first = await client.submit("cat-1", image.image_id)
    again = await client.submit("cat-1", image.image_id)
    code, reason, metadata = await refused(client.submit("cat-1", image.image_id, prompt="Why?"))

    assert (again.replayed, again.job.uid) == (True, first.job.uid)
    assert (code, reason) == ("ALREADY_EXISTS", "IDEMPOTENCY_MISMATCH")
    assert metadata == {"field": "prompt", "stored": "What is this?", "received": "Why?"}


async def test_a_late_retry_of_a_job_with_a_deadline_is_a_replay(idle):
    image = (await idle.upload(picture())).image
    request = request_of("cat-1", image.image_id)
    request.deadline.FromSeconds(int(time.time()) + 61)
    first = await idle.call("SubmitJob", request)

    async def a_new_job_is_too_late():
        try:
            await idle.call("SubmitJob", other_id(request))
        except grpc.aio.AioRpcError as error:
            return reason_of(error)[1:] == ("INVALID_FIELD", {"field": "deadline"})
        return False

    await until(a_new_job_is_too_late)
    again = await idle.call("SubmitJob", request)

    assert (again.replayed, again.job.uid) == (True, first.job.uid)


def other_id(request):
    changed = batcher_pb2.SubmitJobRequest()
    changed.CopyFrom(request)
    changed.job_id = f"cat-{time.monotonic_ns()}"
    return changed


async def test_an_inline_image_is_stored_as_by_an_upload(client):
    data = picture()
    request = batcher_pb2.SubmitJobRequest(
        account_id="alice",
        job_id="cat-1",
        images=[batcher_pb2.ImageSource(inline=data)],
        prompt="What?",
        lane=batcher_pb2.LANE_BATCH,
    )
    job = (await client.call("SubmitJob", request)).job
    uploaded = await client.upload(data)

    assert list(job.image_ids) == [uploaded.image.image_id]
    assert uploaded.replayed


async def test_a_job_without_funds_is_refused_and_admitted_anew_after_a_top_up(sandbox, idle):
    image = (await idle.upload(picture())).image
    for number in range(2):
        await idle.submit(f"now-{number}", image.image_id, lane=batcher_pb2.LANE_INSTANT)
    code, reason, metadata = await refused(idle.submit("cat-1", image.image_id))
    rejected = await idle.get("cat-1")
    await sandbox.wallet.call("Grant", grant("alice", 3))
    admitted = (await idle.submit("cat-1", image.image_id)).job

    assert (code, reason) == ("FAILED_PRECONDITION", "INSUFFICIENT_FUNDS")
    assert (metadata["account_id"], metadata["requested"], metadata["available"]) == ("alice", "1", "0")
    assert rejected.state == batcher_pb2.JOB_STATE_REJECTED
    assert rejected.failure.code == "insufficient_funds"
    assert admitted.state == batcher_pb2.JOB_STATE_QUEUED
    assert admitted.uid != rejected.uid


def grant(account_id, amount):
    return wallet_pb2.GrantRequest(account_id=account_id, grant_id="top-up", amount=amount)


async def test_many_jobs_in_one_call_each_have_their_result(idle):
    image = (await idle.upload(picture())).image
    items = [
        request_of("a", image.image_id),
        request_of("b", "cd" * 32),
        request_of("bad id", image.image_id),
        request_of("a", image.image_id),
        request_of("c", image.image_id, account_id="alice", prompt=""),
    ]
    results = (await idle.call("SubmitJobs", batcher_pb2.SubmitJobsRequest(items=items))).results

    missing, invalid = error_reason_pb2.ERROR_REASON_IMAGE_NOT_FOUND, error_reason_pb2.ERROR_REASON_INVALID_FIELD
    assert [result.refusal.reason for result in results] == [0, missing, invalid, 0, invalid]
    assert results[0].state == batcher_pb2.JOB_STATE_QUEUED
    assert (results[3].uid, results[3].replayed) == (results[0].uid, True)


async def test_a_user_acts_for_nobody_else_neither_as_owner_nor_as_payer(idle):
    image = (await idle.upload(picture())).image
    alice = bearer("alice", "job.submit job.read job.cancel image.upload", audience="punchcard.batcher")
    bob = bearer("bob", "job.submit job.read job.cancel image.upload", audience="punchcard.batcher")
    await idle.call("SubmitJob", request_of("cat-1", image.image_id), alice)
    calls = [
        idle.call("SubmitJob", request_of("cat-2", image.image_id), bob),
        idle.call("SubmitJob", request_of("cat-3", image.image_id, payer_account_id="carol"), alice),
        idle.call("GetJob", batcher_pb2.GetJobRequest(account_id="alice", job_id="cat-1"), bob),
        idle.call("ListJobs", batcher_pb2.ListJobsRequest(account_id="alice"), bob),
        idle.call("CancelJob", batcher_pb2.CancelJobRequest(account_id="alice", job_id="cat-1"), bob),
        collect(idle.stub.WatchJob(batcher_pb2.WatchJobRequest(account_id="alice", job_id="cat-1"), metadata=bob)),
    ]

    for call in calls:
        assert (await refused(call))[:2] == ("NOT_FOUND", "ACCOUNT_NOT_FOUND")


async def test_a_queued_job_is_cancelled_at_once_and_its_tokens_come_back(sandbox, idle):
    image = (await idle.upload(picture())).image
    await idle.submit("cat-1", image.image_id)
    held = await sandbox.wallet.balance("alice")
    request = batcher_pb2.CancelJobRequest(account_id="alice", job_id="cat-1")
    cancelled = await idle.call("CancelJob", request)
    again = await idle.call("CancelJob", request)
    await idle.watch("cat-1")

    assert held == (10, 1)
    assert cancelled.job.state == batcher_pb2.JOB_STATE_CANCELLED
    assert (cancelled.replayed, again.replayed) == (False, True)
    assert await sandbox.wallet.balance("alice") == (10, 0)


async def test_a_job_that_has_ended_otherwise_cannot_be_cancelled(client):
    image = (await client.upload(picture())).image
    await client.submit("cat-1", image.image_id)
    await client.ended("cat-1")
    code, reason, metadata = await refused(
        client.call("CancelJob", batcher_pb2.CancelJobRequest(account_id="alice", job_id="cat-1"))
    )

    assert (code, reason) == ("FAILED_PRECONDITION", "JOB_ENDED")
    assert metadata == {"job_id": "cat-1", "state": "SUCCEEDED"}


async def test_a_list_goes_through_all_jobs_newest_first(idle):
    image = (await idle.upload(picture())).image
    for number in range(5):
        await idle.submit(f"cat-{number}", image.image_id)
    seen, page_token = [], ""
    while True:
        request = batcher_pb2.ListJobsRequest(account_id="alice", page_size=2, page_token=page_token)
        page = await idle.call("ListJobs", request)
        seen += [job.job_id for job in page.jobs]
        page_token = page.next_page_token
        if not page_token:
            break

    assert seen == [f"cat-{number}" for number in reversed(range(5))]
    wrong = batcher_pb2.ListJobsRequest(
        account_id="alice", state=SUCCEEDED, page_token=(await first_page(idle)).next_page_token
    )
    assert (await refused(idle.call("ListJobs", wrong)))[1:] == ("INVALID_FIELD", {"field": "page_token"})


async def first_page(client):
    return await client.call("ListJobs", batcher_pb2.ListJobsRequest(account_id="alice", page_size=2))


async def test_an_upload_counts_until_it_is_stored(idle, monkeypatch):
    """An image is held in memory until then, so that those which wait for a slow store are bounded too."""
    monkeypatch.setattr("services.batcher.grpc_uploads.UPLOADS_MAX", 1)
    storing, answering = asyncio.Event(), asyncio.Event()
    put = ObjectStore.put

    async def slow(store, *arguments):
        storing.set()
        await answering.wait()
        await put(store, *arguments)

    monkeypatch.setattr(ObjectStore, "put", slow)
    first = asyncio.create_task(idle.upload(picture()))
    async with asyncio.timeout(30):
        await storing.wait()
    code, reason, metadata = await refused(idle.upload(picture((0, 0, 0))))
    answering.set()

    assert (code, reason, metadata) == ("RESOURCE_EXHAUSTED", "SERVER_BUSY", {"limit": "1"})
    assert not (await first).replayed
    assert not (await idle.upload(picture((0, 0, 0)))).replayed


async def test_an_upload_is_checked_from_its_first_message_to_its_last(idle):
    data = picture()

    def parts(*messages):
        async def stream():
            for message in messages:
                yield message

        return idle.stub.UploadImage(stream(), metadata=idle.metadata)

    def spec(**fields):
        values = {"account_id": "alice", "sha256": "ab" * 32, **fields}
        return batcher_pb2.UploadImageRequest(spec=batcher_pb2.ImageSpec(**values))

    def chunk(piece, **fields):
        return batcher_pb2.UploadImageRequest(chunk=batcher_pb2.ImageChunk(data=piece, **fields))

    cases = [
        (parts(), "INVALID_FIELD"),
        (parts(chunk(data)), "INVALID_FIELD"),
        (parts(spec(sha256="AB" * 32), chunk(data)), "INVALID_FIELD"),
        (parts(spec(), chunk(data), chunk(data, offset=1)), "INVALID_FIELD"),
        (parts(spec(), spec()), "INVALID_FIELD"),
        (parts(spec(size_bytes=5), chunk(data)), "INVALID_FIELD"),
        (parts(spec(size_bytes=10**9), chunk(data)), "IMAGE_TOO_LARGE"),
        (parts(spec(), chunk(data)), "CHECKSUM_MISMATCH"),
    ]
    for call, reason in cases:
        assert (await refused(call))[1] == reason
    assert (await refused(idle.upload(b"not an image")))[1] == "IMAGE_UNREADABLE"


async def test_broken_fields_are_all_named(idle):
    request = batcher_pb2.SubmitJobRequest(account_id="@ours", job_id="", lane=9, labels={"": "x"}, max_output_tokens=0)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await idle.call("SubmitJob", request)

    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in rpc_status.from_call(caught.value).details)
    fields = [violation.field for violation in bad.field_violations]
    assert fields == ["account_id", "job_id", "images", "prompt", "lane", "max_output_tokens", "labels"]


async def test_a_client_that_leaves_cancels_nothing(sandbox, idle):
    image = (await idle.upload(picture())).image
    call = idle.stub.SubmitJob(request_of("cat-1", image.image_id), metadata=idle.metadata)
    await until(lambda: is_listed(idle, batcher_pb2.JOB_STATE_UNSPECIFIED))
    call.cancel()
    await until(lambda: is_listed(idle, batcher_pb2.JOB_STATE_QUEUED))

    assert await sandbox.wallet.balance("alice") == (10, 1)


async def is_listed(client, state):
    page = await client.call("ListJobs", batcher_pb2.ListJobsRequest(account_id="alice", state=state))
    return len(page.jobs) == 1


def test_every_method_has_a_scope_and_every_reason_is_in_the_proto():
    methods = {
        f"/{SERVICE}/{method.name}" for method in batcher_pb2.DESCRIPTOR.services_by_name["BatcherService"].methods
    }
    known = set(error_reason_pb2.ErrorReason.keys())
    pricing = pricing_pb2.DESCRIPTOR.services_by_name["PricingService"].methods
    assert set(SCOPES) == methods
    assert set(grpc_pricing.SCOPES) == {f"/{grpc_pricing.SERVICE}/{method.name}" for method in pricing}
    assert {f"ERROR_REASON_{row.reason}" for row in ERRORS.rows.values()} == known - {"ERROR_REASON_UNSPECIFIED"}
    assert set(CHASSIS_ROWS) < set(ERRORS.rows)


async def test_a_job_names_a_model_that_the_server_is_configured_with(client):
    """Any other would be answered at the price of the cheapest, or make a batch of its own that is refused."""
    image = (await client.upload(picture())).image
    code, reason, metadata = await refused(client.submit("cat-1", image.image_id, model="o3-pro"))

    assert (code, reason, metadata) == ("INVALID_ARGUMENT", "INVALID_FIELD", {"field": "model"})
    assert (await client.submit("cat-1", image.image_id, model="gpt-4.1-nano")).job.model == "gpt-4.1-nano"
