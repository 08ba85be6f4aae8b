"""The batcher through its own front door: a real wallet, a real S3 server, the provider's twin."""

import pytest

from punchcard.batcher.v1 import batcher_pb2
from tests.batchers import picture, sandbox_in


@pytest.fixture
async def sandbox(tmp_path):
    async with sandbox_in(tmp_path) as made:
        yield made


async def test_a_job_goes_from_its_image_to_its_answer_and_is_charged_once(sandbox):
    async with sandbox.batcher() as client:
        image = (await client.upload(picture())).image
        submitted = await client.submit("cat-1", image.image_id)
        messages = await client.watch("cat-1")
        job = await client.get("cat-1")

    kinds = [message.WhichOneof("event") for message in messages]
    assert submitted.job.state == batcher_pb2.JOB_STATE_QUEUED
    assert kinds[:2] == ["snapshot", "bookmark"]
    assert messages[-1].change.settlement.state == batcher_pb2.SETTLEMENT_STATE_SETTLED
    assert job.state == batcher_pb2.JOB_STATE_SUCCEEDED
    assert job.answer.text
    assert job.settlement.charged == 1
    assert await sandbox.wallet.balance("alice") == (9, 0)
    assert len(sandbox.provider.bought()) == 1
