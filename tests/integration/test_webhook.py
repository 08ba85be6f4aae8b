"""The provider's webhooks over real HTTP: what is taken, what is refused, and that no more than a poll comes of it."""

import asyncio
import base64
import hashlib
import hmac
import itertools
import json
import time

import aiohttp
import pytest

from punchcard.batcher.v1 import batcher_pb2
from services.batcher import webhook
from services.batcher.__main__ import webhooks
from services.batcher.webhook import PATH, Webhooks
from services.chassis.server import RefusesToStart
from tests.batchers import picture, sandbox_in, until
from tests.ports import free_port

KEY = b"a secret of the endpoint"
SECRET = f"whsec_{base64.b64encode(KEY).decode()}"
IDS = itertools.count()


def event(kind="batch.completed", batch_id="batch_1"):
    """A webhook's body, as the provider writes it."""
    return json.dumps(
        {"id": "evt_1", "object": "event", "type": kind, "created_at": 1, "data": {"id": batch_id}}
    ).encode()


def signed(body, *, key=KEY, webhook_id="", timestamp=0):
    """The headers of Standard Webhooks, made by the specification's own words."""
    webhook_id = webhook_id or f"wh_{next(IDS)}"
    timestamp = timestamp or int(time.time())
    content = f"{webhook_id}.{timestamp}.".encode() + body
    signature = base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
    return {"webhook-id": webhook_id, "webhook-timestamp": str(timestamp), "webhook-signature": f"v1,{signature}"}


class Taker:
    """Webhooks that are served, and how often they hastened the poll."""

    def __init__(self, http):
        self.hastened = 0
        self.told_of = set()
        self.webhooks = Webhooks(SECRET, self._hasten)
        self._http = http

    async def _hasten(self, batch_ids):
        self.hastened += 1
        self.told_of |= set(batch_ids)

    async def post(self, body, headers=None, path=PATH):
        """The status of the answer."""
        url = f"http://127.0.0.1:{self.webhooks.port}{path}"
        async with self._http.post(url, data=body, headers=signed(body) if headers is None else headers) as response:
            return response.status

    async def told(self):
        """How often the poll was hastened once what was taken is through."""

        async def through():
            return self.webhooks._gathering is None and not self.webhooks._telling

        await until(through)
        return self.hastened


async def nothing(_batch_ids):
    """Nobody is told."""


@pytest.fixture
async def http():
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def taker(http):
    made = Taker(http)
    await made.webhooks.start("127.0.0.1", 0, None)
    yield made
    await made.webhooks.close()


@pytest.mark.parametrize("kind", sorted(webhook.ENDINGS))
async def test_the_end_of_a_batch_hastens_the_poll(taker, kind):
    assert await taker.post(event(kind)) == 204
    assert await taker.told() == 1


async def test_many_ends_at_once_hasten_one_poll(taker):
    bodies = [event(batch_id=f"batch_{number}") for number in range(20)]
    assert set(await asyncio.gather(*(taker.post(body) for body in bodies))) == {204}
    assert await taker.told() == 1
    assert taker.told_of == {f"batch_{number}" for number in range(20)}


async def test_a_message_that_comes_again_is_answered_and_hastens_nothing(taker):
    body = event()
    headers = signed(body)
    assert await taker.post(body, headers) == 204
    assert await taker.told() == 1
    assert await taker.post(body, headers) == 204
    assert await taker.told() == 1


async def test_other_events_are_answered_and_hasten_nothing(taker):
    assert await taker.post(event("response.completed")) == 204
    assert await taker.told() == 0


async def test_what_is_not_signed_by_the_provider_is_refused(taker):
    body, now = event(), int(time.time())
    good = signed(body)
    cases = {
        "no headers": {},
        "no signature": {name: value for name, value in good.items() if name != "webhook-signature"},
        "another key": signed(body, key=b"another"),
        "another body": signed(event("batch.failed")),
        "another id": {**good, "webhook-id": "wh_other"},
        "too old": signed(body, timestamp=now - 310),
        "of the future": signed(body, timestamp=now + 310),
        "no number": {**good, "webhook-timestamp": "soon"},
        "no ASCII": {**good, "webhook-signature": "v1,\u00fc"},
    }
    assert {name: await taker.post(body, headers) for name, headers in cases.items()} == dict.fromkeys(cases, 400)
    assert await taker.told() == 0


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"7", b"\xff\xfe", b'{"type": 7}', b'{"type": []}'])
async def test_a_signed_body_that_is_no_event_hastens_nothing_and_breaks_nothing(taker, body):
    assert await taker.post(body) in {204, 400}
    assert await taker.told() == 0


async def test_signatures_of_two_keys_are_taken_while_one_is_replaced(taker):
    body = event()
    headers = signed(body)
    headers["webhook-signature"] = f"v1,b2xk {headers['webhook-signature']}"
    assert await taker.post(body, headers) == 204
    assert await taker.told() == 1


async def test_other_paths_other_methods_and_large_bodies_are_refused(taker, http):
    url = f"http://127.0.0.1:{taker.webhooks.port}"
    assert await taker.post(event(), path="/") == 404
    async with http.get(f"{url}{PATH}") as response:
        assert response.status == 405
    assert await taker.post(b"x" * (webhook.BODY_BYTES_MAX + 1)) == 413
    assert await taker.post(event(), {"x": "y" * 100_000}) == 400
    assert await taker.told() == 0


async def test_requests_beyond_the_bound_are_told_to_come_again_and_slow_ones_are_ended(taker, monkeypatch):
    monkeypatch.setattr(webhook, "REQUESTS_MAX", 1)
    monkeypatch.setattr(webhook, "READ_SECONDS", 0.5)
    reader, writer = await asyncio.open_connection("127.0.0.1", taker.webhooks.port)
    writer.write(f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n".encode())

    async def waits():
        return taker.webhooks._requests == 1

    await until(waits)
    beyond = await taker.post(event())
    slow = await reader.readline()
    writer.close()

    assert beyond == 503
    assert slow == b"HTTP/1.1 408 Request Timeout\r\n"
    assert await taker.post(event()) == 204


async def test_the_messages_that_are_remembered_are_bounded(monkeypatch):
    monkeypatch.setattr(webhook, "SEEN_MAX", 3)
    now = 0.0
    taker = Webhooks(SECRET, nothing, lambda: now)

    assert [taker._is_new(name) for name in "abcd"] == [True] * 4
    assert not taker._is_new("d")
    assert len(taker._seen) <= 3
    now = webhook.SEEN_SECONDS + 1
    assert taker._is_new("d")
    assert len(taker._seen) == 1


async def test_beyond_loopback_webhooks_are_taken_only_with_tls_or_insecure(tmp_path):
    async with sandbox_in(tmp_path) as sandbox:
        changes = {"webhook_address": "0.0.0.0:0", "openai_webhook_secret": SECRET}
        with pytest.raises(RefusesToStart, match=r"0\.0\.0\.0:0 is beyond loopback"):
            async with webhooks(sandbox.batcher_settings(**changes), nothing):
                pass
        async with webhooks(sandbox.batcher_settings(insecure=True, **changes), nothing):
            pass


async def test_a_webhook_brings_answers_home_long_before_the_poll_and_a_forged_one_does_not(tmp_path, http):
    port = free_port()
    changes = {"poll_seconds": 1e6, "webhook_address": f"127.0.0.1:{port}", "openai_webhook_secret": SECRET}
    async with sandbox_in(tmp_path) as sandbox, sandbox.batcher(**changes) as client:
        image = (await client.upload(picture())).image
        await client.submit("cat-1", image.image_id)

        async def running():
            return (await client.get("cat-1")).state == batcher_pb2.JOB_STATE_RUNNING

        async def completed():
            return [batch.status for batch in sandbox.provider.bought()] == ["completed"]

        await until(running)
        await until(completed)
        body = event(batch_id=sandbox.provider.bought()[0].id)

        async def post(headers):
            async with http.post(f"http://127.0.0.1:{port}{PATH}", data=body, headers=headers) as response:
                return response.status

        forged = await post(signed(body, key=b"another"))
        before = [call for call in sandbox.provider.requests if call.startswith("GET /v1/batches/")]
        true = await post(signed(body))
        job = await client.ended("cat-1")

    assert (forged, true, before) == (400, 204, [])
    assert (job.state, job.settlement.charged) == (batcher_pb2.JOB_STATE_SUCCEEDED, 1)


async def test_a_webhook_at_any_replica_has_its_one_batch_asked_about_by_the_replica_that_polls(
    tmp_path, postgres_url, http
):
    """The first replica holds the poller's lease and takes no webhooks; the second takes one, of one of two batches."""
    port = free_port()
    patience = {"poll_seconds": 1e6, "batch_jobs": 1}
    taking = {**patience, "webhook_address": f"127.0.0.1:{port}", "openai_webhook_secret": SECRET}
    async with (
        sandbox_in(tmp_path, postgres_url) as sandbox,
        sandbox.batcher(**patience) as client,
        sandbox.batcher(**taking) as other,
    ):
        image = (await client.upload(picture())).image
        for job_id in ("cat-1", "cat-2"):
            await client.submit(job_id, image.image_id)

        async def running():
            jobs = [await client.get(job_id) for job_id in ("cat-1", "cat-2")]
            return {job.state for job in jobs} == {batcher_pb2.JOB_STATE_RUNNING}

        async def completed():
            return [batch.status for batch in sandbox.provider.bought()] == ["completed"] * 2

        await until(running)
        await until(completed)
        ours = (await client.get("cat-1")).batch_id
        told, untold = sorted(sandbox.provider.bought(), key=lambda batch: batch.metadata["batch_id"] != ours)
        body = event(batch_id=told.id)
        async with http.post(f"http://127.0.0.1:{port}{PATH}", data=body, headers=signed(body)) as response:
            assert response.status == 204
        job = await other.ended("cat-1")
        waiting = await other.get("cat-2")

    assert job.state == batcher_pb2.JOB_STATE_SUCCEEDED
    assert waiting.state == batcher_pb2.JOB_STATE_RUNNING
    assert f"GET /v1/batches/{told.id}" in sandbox.provider.requests
    assert f"GET /v1/batches/{untold.id}" not in sandbox.provider.requests
