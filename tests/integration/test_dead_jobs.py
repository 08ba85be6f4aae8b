"""Dead jobs, as an operator finds them and as whoever owns them tries again."""

import grpc
import pytest
from aiohttp import web

from punchcard.batcher.v1 import batcher_pb2
from tests.batchers import picture, sandbox_in
from tests.conformance.test_wallet_store import execute
from tests.tokens import bearer
from tests.wallets import refused

FAILED = batcher_pb2.JOB_STATE_FAILED
SUCCEEDED = batcher_pb2.JOB_STATE_SUCCEEDED
INSTANT = batcher_pb2.LANE_INSTANT


@pytest.fixture
async def sandbox(tmp_path, database_url):
    async with sandbox_in(tmp_path, database_url) as made:
        yield made


@pytest.fixture
async def idle(sandbox):
    """A batcher whose next cycle never comes; the provider takes no instant call."""

    async def refusing(request, handle):
        if request.path.endswith("/chat/completions"):
            return web.json_response({"error": {"message": "no", "code": "invalid_value"}}, status=400)
        return await handle()

    sandbox.provider.fault = refusing
    async with sandbox.batcher(cycle_seconds=1e6) as made:
        yield made


async def died(client, job_id, **fields):
    """A job of alice's, or of another account, that the provider has refused."""
    image = (await client.upload(picture(), fields.get("account_id", "alice"))).image
    await client.submit(job_id, image.image_id, lane=INSTANT, **fields)
    return await client.ended(job_id, fields.get("account_id", "alice"))


def retry(job_id, new_job_id, account_id="alice"):
    return batcher_pb2.RetryJobRequest(account_id=account_id, job_id=job_id, new_job_id=new_job_id)


async def listed(client, metadata=None, **fields):
    return await client.call("ListDeadJobs", batcher_pb2.ListDeadJobsRequest(**fields), metadata)


async def test_an_operator_sees_dead_jobs_of_all_accounts_with_their_cause_and_without_their_content(idle):
    await died(idle, "a", prompt="A secret?", labels={"name": "secret"})
    await died(idle, "b", account_id="bob")
    operator = bearer("operator", "job.admin", audience="punchcard.batcher")
    page = await listed(idle, operator)
    of_bob = await listed(idle, operator, account_id="bob", failure_code="invalid_value")
    nothing = await listed(idle, operator, failure_code="deadline")

    assert [(dead.job.account_id, dead.job.job_id) for dead in page.jobs] == [("bob", "b"), ("alice", "a")]
    dead = page.jobs[1]
    assert (dead.job.state, dead.job.failure.code, dead.job.settlement.charged) == (FAILED, "invalid_value", 0)
    assert (dead.job.prompt, dict(dead.job.labels)) == ("", {})
    assert [(attempt.attempt, attempt.batch_id, attempt.outcome) for attempt in dead.attempts] == [
        (1, "", "invalid_value")
    ]
    assert dead.end_time.ToMicroseconds() == dead.attempts[0].end_time.ToMicroseconds() > 0
    assert [dead.job.job_id for dead in of_bob.jobs] == ["b"]
    assert list(nothing.jobs) == []


async def test_a_list_of_dead_jobs_goes_on_behind_its_token_and_takes_no_other_lists(idle):
    for name in ("a", "b", "c"):
        await died(idle, name)
    first = await listed(idle, page_size=2)
    rest = await listed(idle, page_size=2, page_token=first.next_page_token)
    between = await listed(idle, end_time_from=first.jobs[1].end_time, end_time_before=first.jobs[0].end_time)

    assert [[dead.job.job_id for dead in page.jobs] for page in (first, rest)] == [["c", "b"], ["a"]]
    assert rest.next_page_token == ""
    assert [dead.job.job_id for dead in between.jobs] == ["b"]
    for token, fields in ((first.next_page_token, {"account_id": "alice"}), ("bm90aGluZw==", {}), ("\u00fc", {})):
        assert (await refused(listed(idle, page_token=token, **fields)))[1:] == (
            "INVALID_FIELD",
            {"field": "page_token"},
        )


async def test_a_list_of_dead_jobs_names_what_is_wrong_with_its_filters_and_is_only_for_operators(idle):
    for field, value in {"account_id": "a b", "failure_code": "x" * 129, "page_size": -1}.items():
        assert (await refused(listed(idle, **{field: value})))[1:] == ("INVALID_FIELD", {"field": field})
    for field in ("end_time_from", "end_time_before"):
        request = batcher_pb2.ListDeadJobsRequest()
        getattr(request, field).seconds = 2**60
        assert (await refused(idle.call("ListDeadJobs", request)))[1:] == ("INVALID_FIELD", {"field": field})
    alice = bearer("alice", "job.read job.submit", audience="punchcard.batcher")
    assert (await refused(listed(idle, alice)))[:2] == ("PERMISSION_DENIED", "SCOPE_MISSING")


async def test_a_retry_is_a_new_job_of_the_same_content_at_todays_price_and_the_dead_one_stays(sandbox, idle):
    content = {"prompt": "What?", "model": "gpt-4.1-nano", "labels": {"a": "1"}, "max_output_tokens": 99}
    dead = await died(idle, "a", allow_batch_fallback=True, **content)
    sandbox.provider.fault = None
    first = await idle.call("RetryJob", retry("a", "a.again"))
    job = await idle.ended("a.again")
    again = await idle.call("RetryJob", retry("a", "a.again"))

    assert (first.replayed, again.replayed, first.job.uid) == (False, True, again.job.uid)
    assert (job.state, job.retry_of, job.settlement.charged) == (SUCCEEDED, "a", 5)
    same = ("image_ids", "prompt", "model", "detail", "max_output_tokens", "labels", "asked_lane", "payer_account_id")
    assert all(getattr(job, field) == getattr(dead, field) for field in (*same, "allow_batch_fallback"))
    assert (job.uid != dead.uid, dead.retry_of) == (True, "")
    assert await idle.get("a") == dead
    assert await sandbox.wallet.balance("alice") == (5, 0)


async def test_a_retry_is_priced_by_the_list_of_now(sandbox, idle):
    await died(idle, "a")
    async with sandbox.batcher(
        cycle_seconds=1e6, price_instant=3, price_version="v2", price_notice_seconds=0
    ) as client:
        job = (await client.call("RetryJob", retry("a", "a.again"))).job

    assert (job.price, job.price_version) == (3, "v2")


async def test_only_the_dead_are_retried_and_by_those_who_may_act_for_them(idle):
    image = (await idle.upload(picture())).image
    await idle.submit("waits", image.image_id)
    await died(idle, "a")
    mallory = bearer("mallory", "job.submit", audience="punchcard.batcher")
    alice = bearer("alice", "job.submit", audience="punchcard.batcher")
    own = await idle.call("RetryJob", retry("a", "a.own"), alice)
    refusals = {
        "alive": await refused(idle.call("RetryJob", retry("waits", "w"))),
        "nobody's": await refused(idle.call("RetryJob", retry("nothing", "n"))),
        "another's": await refused(idle.call("RetryJob", retry("a", "m"), mallory)),
        "itself": await refused(idle.call("RetryJob", retry("a", "a"))),
        "no key": await refused(idle.call("RetryJob", retry("a", ""))),
        "a key in use": await refused(idle.call("RetryJob", retry("a", "waits"))),
    }

    assert own.job.retry_of == "a"
    assert {name: refusal[:2] for name, refusal in refusals.items()} == {
        "alive": ("FAILED_PRECONDITION", "JOB_NOT_DEAD"),
        "nobody's": ("NOT_FOUND", "JOB_NOT_FOUND"),
        "another's": ("NOT_FOUND", "ACCOUNT_NOT_FOUND"),
        "itself": ("INVALID_ARGUMENT", "INVALID_FIELD"),
        "no key": ("INVALID_ARGUMENT", "INVALID_FIELD"),
        "a key in use": ("ALREADY_EXISTS", "IDEMPOTENCY_MISMATCH"),
    }
    assert refusals["alive"][2] == {"job_id": "waits", "state": "QUEUED"}


async def test_a_retry_without_funds_or_without_its_image_is_refused_as_a_submit_would_be(idle, database_url):
    await died(idle, "a")
    image = (await idle.upload(picture((0, 0, 0)))).image
    batch = [await idle.submit(f"cat-{number}", image.image_id) for number in range(6)]
    poor = await refused(idle.call("RetryJob", retry("a", "poor")))
    dead_image = (await idle.get("a")).image_ids[0]
    for job in batch:
        key = batcher_pb2.CancelJobRequest(account_id="alice", job_id=job.job.job_id)
        await idle.call("CancelJob", key)
    await execute(database_url, f"DELETE FROM images WHERE image_id = '{dead_image}'")
    gone = await refused(idle.call("RetryJob", retry("a", "gone")))

    assert poor[:2] == ("FAILED_PRECONDITION", "INSUFFICIENT_FUNDS")
    assert gone == ("NOT_FOUND", "IMAGE_NOT_FOUND", {"account_id": "alice", "image_id": dead_image})
    with pytest.raises(grpc.aio.AioRpcError):
        await idle.get("gone")
