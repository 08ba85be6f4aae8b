"""Instant attempts that wait for a worker are left to the process that has them."""

import asyncio

import pytest

from services.batcher.instant_runner import InstantLimits, InstantRunner
from services.batcher.job import Answer, Lane, State
from tests.batcher_jobs import FAR_US, HOUR_US, LIMITS, image, new_job, opened_stores
from tests.batchers import until

ANSWER = Answer("a cat", "stop", 10, 2)


class Images:
    """Every image has an address."""

    async def url(self, _account_id, _image_id):
        return "https://example.org/cat.png"


class Provider:
    """Answers once it is let go; counts what it was asked."""

    def __init__(self):
        self.asked = 0
        self.let_go = asyncio.Event()

    async def answer_now(self, *_):
        self.asked += 1
        await self.let_go.wait()
        return ANSWER


@pytest.fixture
async def stores(tmp_path):
    async with opened_stores(f"sqlite:{tmp_path}/batcher.db") as opened:
        yield opened


def runner_of(stores, provider):
    """A runner of one worker."""
    return InstantRunner(stores.jobs, Images(), provider, InstantLimits(1, 60.0, HOUR_US, LIMITS), lambda: None)


async def test_attempts_that_outlast_their_lease_in_a_living_process_are_asked_once(stores):
    """One is asked and one waits, both longer than the lease with which they began: neither is lost or paid twice."""
    provider = Provider()
    runner, neighbour = runner_of(stores, provider), runner_of(stores, provider)
    await stores.jobs.add_image(image())
    submitted = await stores.jobs.submit([new_job(name, lane=Lane.INSTANT) for name in ("asked", "waiting")])
    changes = await stores.jobs.admit({result.job.uid: FAR_US for result in submitted}, lease_us=0)
    runner.offer([change.job for change in changes])
    await runner.sweep()
    await runner.keep()
    await neighbour.sweep()
    runner.start()
    provider.let_go.set()

    async def answered():
        return all(job.state is State.SUCCEEDED for job in await stores.jobs.read([c.job.uid for c in changes]))

    await until(answered)
    await runner.close()
    assert provider.asked == 2
    assert {job.attempt for job in await stores.jobs.read([change.job.uid for change in changes])} == {1}
