"""Instant attempts that wait for a worker are left to the process that has them."""

import asyncio
import time

import pytest

from services.batcher.instant_runner import LATE_ANSWERS, InstantLimits, InstantRunner
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

    async def answer_now(self, *arguments):
        self.asked += 1
        self.timeout_seconds = arguments[-1]
        await self.let_go.wait()
        return ANSWER


@pytest.fixture
async def stores(tmp_path):
    async with opened_stores(f"sqlite:{tmp_path}/batcher.db") as opened:
        yield opened


def runner_of(stores, provider, limits=LIMITS):
    """A runner of one worker."""
    return InstantRunner(stores.jobs, Images(), provider, InstantLimits(1, 60.0, HOUR_US, limits), lambda: None)


async def begun(stores, *job_ids, **fields):
    """Instant jobs whose first attempt has begun, with a lease that is over."""
    await stores.jobs.add_image(image())
    submitted = await stores.jobs.submit([new_job(name, lane=Lane.INSTANT, **fields) for name in job_ids])
    changes = await stores.jobs.admit({result.job.uid: FAR_US for result in submitted}, lease_us=0)
    return [change.job for change in changes]


async def reached(stores, job, state):
    async def there():
        return (await stores.jobs.read([job.uid]))[0].state is state

    await until(there)
    return (await stores.jobs.read([job.uid]))[0]


async def test_attempts_that_outlast_their_lease_in_a_living_process_are_asked_once(stores):
    """One is asked and one waits, both longer than the lease with which they began: neither is lost or paid twice."""
    provider = Provider()
    runner, neighbour = runner_of(stores, provider), runner_of(stores, provider)
    running = await begun(stores, "asked", "waiting")
    runner.offer(running)
    await runner.sweep()
    await runner.keep()
    await neighbour.sweep()
    runner.start()
    provider.let_go.set()

    async def answered():
        return all(job.state is State.SUCCEEDED for job in await stores.jobs.read([job.uid for job in running]))

    await until(answered)
    await runner.close()
    assert provider.asked == 2
    assert {job.attempt for job in await stores.jobs.read([job.uid for job in running])} == {1}


async def test_an_answer_that_comes_after_its_job_fell_back_is_dropped_and_counted(stores):
    """A process that was asleep for longer than its lease wakes up with an answer, of an attempt that is over."""
    provider = Provider()
    asleep, neighbour = (runner_of(stores, provider, LIMITS._replace(attempts_max=1)) for _ in range(2))
    (job,) = await begun(stores, "a", price=5, fallback_price=1)
    late = LATE_ANSWERS.labels(Lane.INSTANT)._value.get()
    asleep.start()
    asleep.offer([job])

    async def asked():
        return provider.asked == 1

    await until(asked)
    await neighbour.sweep()
    fallen = await reached(stores, job, State.QUEUED)
    provider.let_go.set()

    async def dropped():
        return LATE_ANSWERS.labels(Lane.INSTANT)._value.get() == late + 1

    await until(dropped)
    await asleep.close()
    assert (fallen.lane, fallen.price, fallen.attempt) == (Lane.BATCH, 1, 2)
    assert await stores.jobs.read([job.uid]) == [fallen]


async def test_an_attempt_that_nobody_waits_for_any_more_is_not_asked(stores):
    provider = Provider()
    provider.let_go.set()
    runner = runner_of(stores, provider)
    (late,) = await begun(stores, "late", deadline_us=1, fallback_price=1)
    (unwanted,) = await begun(stores, "unwanted", fallback_price=1)
    await stores.jobs.cancel("alice", "unwanted", "alice")
    runner.offer([late, unwanted])
    runner.start()

    await reached(stores, late, State.EXPIRED)
    await reached(stores, unwanted, State.CANCELLED)
    await runner.close()
    assert provider.asked == 0


async def test_a_call_takes_no_longer_than_the_job_has(stores):
    provider = Provider()
    provider.let_go.set()
    runner = runner_of(stores, provider)
    (job,) = await begun(stores, "a", deadline_us=time.time_ns() // 1000 + 30_000_000)
    runner.offer([job])
    runner.start()

    await reached(stores, job, State.SUCCEEDED)
    await runner.close()
    assert 0 < provider.timeout_seconds <= 30
