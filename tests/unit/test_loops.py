"""The runner of loops, on a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from services.chassis import leases
from services.chassis.database import Database, connect
from services.chassis.leases import Lease, LeaseLost
from services.chassis.loops import BACKOFF_SECONDS_MAX, Loop, Runner
from tests.databases import CHASSIS_MIGRATIONS, migrated


class Clock:
    """Time that passes only when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sleepers: list[tuple[float, asyncio.Future[None]]] = []
        self.pauses: list[float] = []
        self.changed = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.changed.set()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sleepers.append((self.now + seconds, future))
        await future

    async def advance(self, seconds: float) -> None:
        end = self.now + seconds
        await settle()
        while due := [sleeper for sleeper in self.sleepers if sleeper[0] <= end]:
            self.now, future = min(due, key=lambda sleeper: sleeper[0])
            self.sleepers = [sleeper for sleeper in self.sleepers if sleeper[1] is not future]
            if not future.done():
                future.set_result(None)
                await settle()
        self.now = end


async def settle() -> None:
    """Lets every task go as far as it can."""
    for _ in range(30):
        await asyncio.sleep(0)


class Stage:
    """A runner with one loop whose step does what the test tells it."""

    def __init__(self, lease: Lease | None = None) -> None:
        self.clock = Clock()
        self.steps = 0
        self.answers: list[bool | Exception] = []
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.during: Callable[[], None] = lambda: None
        self.succeeded: list[str] = []
        self.failed: list[tuple[str, Exception]] = []
        self.loop = Loop("poller", self.step, 10.0, lease)
        self.runner = Runner(
            [self.loop],
            on_success=self.on_success,
            on_failure=self.on_failure,
            sleep=self.clock.sleep,
            jitter=lambda: 0.5,
        )

    def on_success(self, name: str) -> None:
        self.succeeded.append(name)
        self.clock.changed.set()

    def on_failure(self, name: str, error: Exception) -> None:
        self.failed.append((name, error))
        self.clock.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits for what the threads of a real database bring about."""
        async with asyncio.timeout(10):
            while not condition():
                self.clock.changed.clear()
                await self.clock.changed.wait()

    async def step(self) -> bool:
        self.steps += 1
        self.clock.changed.set()
        self.during()
        await self.may_end.wait()
        answer = self.answers.pop(0) if self.answers else False
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    stage = Stage()
    yield stage
    stage.may_end.set()
    await stage.runner.stop()


async def test_a_loop_steps_at_once_and_then_after_each_interval(stage: Stage):
    stage.runner.start()
    await settle()
    assert stage.steps == 1

    await stage.clock.advance(9.9)
    assert stage.steps == 1
    await stage.clock.advance(0.1)
    assert stage.steps == 2
    assert stage.succeeded == ["poller", "poller"]


async def test_a_loop_with_more_work_does_not_pause(stage: Stage):
    stage.answers = [True, True, False]
    stage.runner.start()
    await settle()

    assert stage.steps == 3
    assert stage.clock.now == 0


async def test_waking_ends_the_pause(stage: Stage):
    stage.runner.start()
    await settle()
    stage.loop.wake()
    await settle()

    assert stage.steps == 2


async def test_waking_during_a_step_makes_another_one_follow(stage: Stage):
    stage.during = lambda: stage.loop.wake() if stage.steps == 1 else None
    stage.runner.start()
    await settle()

    assert stage.steps == 2


async def test_failures_double_the_pause_and_a_success_ends_that(stage: Stage):
    stage.answers = [OSError("one"), OSError("two"), OSError("three"), False, OSError("four")]
    stage.runner.start()
    await stage.clock.advance(15)

    assert stage.clock.pauses[:5] == [0.375, 0.75, 1.5, 10.0, 0.375]
    assert [str(error) for _, error in stage.failed] == ["one", "two", "three", "four"]
    assert stage.succeeded == ["poller", "poller"]


async def test_the_pause_after_failures_is_bounded_and_nobody_can_wake_it(stage: Stage):
    stage.answers = [OSError(str(number)) for number in range(60)]
    stage.runner.start()
    await stage.clock.advance(1000)
    assert max(stage.clock.pauses) <= BACKOFF_SECONDS_MAX
    steps = stage.steps
    stage.loop.wake()
    await settle()

    assert stage.steps == steps


async def test_a_stop_lets_a_running_step_end(stage: Stage):
    stage.may_end.clear()
    stage.runner.start()
    await settle()
    stopping = asyncio.ensure_future(stage.runner.stop())
    await settle()
    assert not stopping.done()
    stage.may_end.set()
    await stopping

    assert stage.succeeded == ["poller"]


async def test_a_stop_cancels_a_step_that_takes_too_long(stage: Stage):
    stage.may_end.clear()
    stage.runner.start()
    await settle()
    await stage.runner.stop(timeout_seconds=0)

    assert (stage.succeeded, stage.failed) == ([], [])


async def test_a_stop_ends_a_pause(stage: Stage):
    stage.runner.start()
    await settle()
    await stage.runner.stop()

    assert stage.steps == 1


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    url = f"sqlite:{tmp_path}/leases.db"
    await migrated(url, CHASSIS_MIGRATIONS)
    async with await connect(url, []) as database:
        yield database


async def test_a_loop_steps_only_where_its_lease_is_held_and_gives_it_back(database: Database):
    leader, standby = (Stage(Lease(database, "poller", holder, 30.0)) for holder in ("ann", "bob"))
    leader.runner.start()
    await leader.until(lambda: leader.succeeded == ["poller"])
    standby.runner.start()
    await standby.until(lambda: standby.clock.pauses != [])
    assert standby.steps == 0

    await leader.runner.stop()
    standby.loop.wake()
    await standby.until(lambda: standby.succeeded == ["poller"])
    await standby.runner.stop()

    assert (leader.failed, standby.failed) == ([], [])


@pytest.mark.parametrize(("duration_seconds", "pause_seconds"), [(30.0, 10.0), (8.0, 4.0)])
async def test_a_loop_without_its_lease_asks_for_it_at_least_twice_in_the_time_of_a_lease(
    database: Database, duration_seconds: float, pause_seconds: float
):
    """So that the work of a dead replica is taken over within two lease times, however rare the loop's steps are."""
    assert await Lease(database, "poller", "ann", 3600.0).hold()
    standby = Stage(Lease(database, "poller", "bob", duration_seconds))
    standby.runner.start()
    await standby.until(lambda: standby.clock.pauses != [])
    await standby.runner.stop()

    assert standby.clock.pauses == [pause_seconds]


class CountedLease(Lease):
    """Tells of each renewal."""

    def __init__(self, database: Database, duration_seconds: float = 30.0) -> None:
        super().__init__(database, "poller", "ann", duration_seconds)
        self.renewals: asyncio.Queue[bool] = asyncio.Queue()

    async def renew(self) -> bool:
        renewed = await super().renew()
        self.renewals.put_nowait(renewed)
        return renewed


async def test_a_lease_is_renewed_while_a_step_runs_long(database: Database):
    lease = CountedLease(database)
    stage = Stage(lease)
    stage.may_end.clear()
    stage.runner.start()
    await stage.until(lambda: stage.steps == 1)
    for _ in range(3):
        assert lease.renewals.empty()
        await stage.clock.advance(10.0)
        assert await lease.renewals.get()
    stage.may_end.set()
    await stage.runner.stop()

    assert stage.succeeded == ["poller"]


async def test_a_lease_that_is_shorter_than_the_pause_is_renewed_in_the_pause(database: Database):
    """Or else every replica would hold it in turn, and each step with it."""
    lease = CountedLease(database, 9.0)
    stage = Stage(lease)
    stage.runner.start()
    await stage.until(lambda: stage.succeeded == ["poller"])
    for _ in range(3):
        assert lease.renewals.empty()
        await stage.clock.advance(3.0)
        assert await lease.renewals.get()
    await stage.clock.advance(1.0)
    await stage.until(lambda: stage.steps == 2)
    await stage.runner.stop()


async def test_a_loop_that_lost_its_lease_in_a_pause_asks_for_it_like_any_other(database: Database):
    lease = CountedLease(database, 9.0)
    stage = Stage(lease)
    stage.runner.start()
    await stage.until(lambda: stage.succeeded == ["poller"])
    async with database.transaction() as tx:
        assert lease.fence is not None
        await leases.release(tx, "poller", lease.fence)
    usurper = Lease(database, "poller", "bob", 3600.0)
    assert await usurper.hold()
    await stage.clock.advance(3.0)
    assert not await lease.renewals.get()
    await stage.clock.advance(0.0)
    await stage.until(lambda: stage.clock.pauses[-1] == 4.5)
    await stage.runner.stop()

    assert stage.steps == 1


async def test_a_step_that_has_lost_its_lease_cannot_write(database: Database):
    lease = Lease(database, "poller", "ann", -1.0)
    usurper = Lease(database, "poller", "bob", 30.0)
    stage = Stage(lease)

    async def step() -> bool:
        await usurper.hold()
        async with database.transaction() as tx:
            await lease.check(tx)
        return False

    stage.loop.step = step
    stage.runner.start()
    await stage.until(lambda: stage.failed != [])
    await stage.runner.stop()

    assert isinstance(stage.failed[0][1], LeaseLost)
    assert await usurper.renew()


async def test_a_database_that_is_gone_does_not_keep_the_runner_from_stopping(database: Database):
    stage = Stage(Lease(database, "poller", "ann", 30.0))
    stage.runner.start()
    await stage.until(lambda: stage.succeeded == ["poller"])

    async def broken() -> None:
        raise OSError("gone")

    assert stage.loop.lease is not None
    stage.loop.lease.release = broken  # type: ignore[method-assign]
    await stage.runner.stop()

    assert [str(error) for _, error in stage.failed] == ["gone"]
