"""Groups gather, fail in halves and are retried; no command is answered early, twice or never."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest

from services.chassis.database import Conflict
from services.chassis.errors import ServerBusy, ServerDraining, StoreUnavailable
from services.chassis.group_commit import ATTEMPTS_MAX, GroupCommitter


class Store:
    """Doubles numbers, refuses odd ones, breaks on poison; keeps the groups that it was given."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.may_run = asyncio.Event()
        self.may_run.set()
        self.failures: list[Exception] = []
        self.poison: set[int] = set()
        self.pauses: list[float] = []

    async def run_group(self, commands: list[int]) -> list[int | Exception]:
        self.groups.append(commands)
        await self.may_run.wait()
        if self.failures:
            raise self.failures.pop(0)
        if self.poison & set(commands):
            raise ZeroDivisionError(f"poison in {commands}")
        return [command * 2 if command % 2 == 0 else ValueError(f"{command} is odd") for command in commands]

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def committer(
        self,
        run_group: Callable[[list[int]], Awaitable[Sequence[int | Exception]]] | None = None,
        *,
        group_commands_max: int = 1_000,
        queue_commands_max: int = 20_000,
    ) -> GroupCommitter[int, int]:
        committer = GroupCommitter(
            run_group or self.run_group,
            group_commands_max=group_commands_max,
            queue_commands_max=queue_commands_max,
            sleep=self.sleep,
            jitter=lambda: 1.0,
        )
        committer.start()
        return committer


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
async def committer(store: Store) -> AsyncIterator[GroupCommitter[int, int]]:
    committer = store.committer(group_commands_max=4, queue_commands_max=10)
    yield committer
    store.may_run.set()
    await committer.close()


async def settle() -> None:
    """Lets every task go as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_command_gets_its_result_or_its_own_exception(committer: GroupCommitter[int, int]):
    assert await committer.submit(4) == 8
    with pytest.raises(ValueError, match="3 is odd"):
        await committer.submit(3)


async def test_while_a_group_runs_the_next_one_gathers(store: Store, committer: GroupCommitter[int, int]):
    store.may_run.clear()
    answers = [asyncio.ensure_future(committer.submit(number)) for number in (2, 4, 6, 8)]
    await settle()
    late = [asyncio.ensure_future(committer.submit(number)) for number in (10, 12)]
    await settle()
    assert store.groups == [[2, 4, 6, 8]]
    assert not any(answer.done() for answer in answers)

    store.may_run.set()
    assert await asyncio.gather(*answers, *late) == [4, 8, 12, 16, 20, 24]
    assert store.groups == [[2, 4, 6, 8], [10, 12]]


async def test_a_bulk_is_one_entry_that_is_never_split(store: Store, committer: GroupCommitter[int, int]):
    store.may_run.clear()
    first = asyncio.ensure_future(committer.submit(0))
    await settle()
    bulks = [asyncio.ensure_future(committer.submit_many(bulk)) for bulk in ([2, 4, 6], [8, 10], [12])]
    await settle()
    store.may_run.set()

    assert await first == 0
    assert await asyncio.gather(*bulks) == [[4, 8, 12], [16, 20], [24]]
    assert store.groups == [[0], [2, 4, 6], [8, 10, 12]]


async def test_a_bulk_larger_than_a_group_is_a_group_of_its_own(store: Store, committer: GroupCommitter[int, int]):
    assert await committer.submit_many([2, 4, 6, 8, 10]) == [4, 8, 12, 16, 20]
    assert store.groups == [[2, 4, 6, 8, 10]]


async def test_an_empty_bulk_needs_no_transaction(store: Store, committer: GroupCommitter[int, int]):
    assert await committer.submit_many([]) == []
    assert store.groups == []


async def test_the_culprit_of_a_broken_group_fails_alone(store: Store, committer: GroupCommitter[int, int]):
    store.poison = {6}
    results = await committer.submit_many([2, 4, 6, 7])

    assert results[:2] == [4, 8]
    assert isinstance(results[2], ZeroDivisionError)
    assert isinstance(results[3], ValueError)


@pytest.mark.parametrize("failure", [Conflict("deadlock"), StoreUnavailable("the outcome is unknown")])
async def test_a_conflict_and_an_unknown_outcome_run_the_whole_group_again(store: Store, failure: Exception):
    store.failures = [failure, failure]
    committer = store.committer()

    assert await committer.submit_many([2, 4]) == [4, 8]
    assert store.groups == [[2, 4]] * 3
    assert store.pauses == [0.01, 0.04]
    await committer.close()


async def test_a_lost_database_fails_the_group_after_bounded_retries(store: Store):
    store.failures = [StoreUnavailable("lost")] * ATTEMPTS_MAX
    committer = store.committer()

    results = await committer.submit_many([2, 4])
    assert [type(result) for result in results] == [StoreUnavailable, StoreUnavailable]
    assert await committer.submit(2) == 4
    await committer.close()


async def test_a_cancellation_from_below_does_not_end_the_committer(store: Store):
    cancelled = [asyncio.CancelledError()]

    async def run_group(commands: list[int]) -> list[int | Exception]:
        if cancelled:
            raise cancelled.pop()
        return await store.run_group(commands)

    committer = store.committer(run_group)

    assert await committer.submit(2) == 4
    await committer.close()


async def test_a_committer_that_was_cancelled_refuses_rather_than_to_let_wait(store: Store):
    store.may_run.clear()
    committer = store.committer()
    running = asyncio.ensure_future(committer.submit(2))
    await settle()
    (runner,) = [task for task in asyncio.all_tasks() if task.get_name() == "group_commit"]
    runner.cancel()

    with pytest.raises(StoreUnavailable):
        await running
    await settle()
    with pytest.raises(StoreUnavailable):
        await committer.submit(4)


async def test_a_conflict_that_stays_is_looked_for_in_halves(store: Store):
    async def run_group(commands: list[int]) -> list[int | Exception]:
        if 6 in commands:
            raise Conflict("a unique key that is there already")
        return await store.run_group(commands)

    committer = store.committer(run_group)
    results = await committer.submit_many([2, 4, 6, 8])

    assert results[:2] == [4, 8]
    assert isinstance(results[2], Conflict)
    assert results[3] == 16
    await committer.close()


async def test_a_full_queue_refuses_at_once(store: Store, committer: GroupCommitter[int, int]):
    store.may_run.clear()
    running = asyncio.ensure_future(committer.submit(0))
    await settle()
    waiting = asyncio.ensure_future(committer.submit_many([2] * 8))
    await settle()
    assert committer.queued_commands == 8

    with pytest.raises(ServerBusy):
        await committer.submit_many([2, 4, 6])
    fits = asyncio.ensure_future(committer.submit_many([2, 4]))
    store.may_run.set()

    assert (await running, await waiting, await fits) == (0, [4] * 8, [4, 8])
    assert committer.queued_commands == 0


async def test_a_caller_that_leaves_before_its_group_runs_takes_its_command_back(
    store: Store, committer: GroupCommitter[int, int]
):
    store.may_run.clear()
    running, waiting = (asyncio.ensure_future(committer.submit(0)), asyncio.ensure_future(committer.submit(2)))
    await settle()
    late = asyncio.ensure_future(committer.submit(4))
    await settle()
    late.cancel()
    running.cancel()
    await settle()
    store.may_run.set()

    assert await waiting == 4
    assert await committer.submit(6) == 12
    assert store.groups == [[0, 2], [6]]


async def test_close_runs_what_waits_and_refuses_what_comes(store: Store):
    committer = store.committer(group_commands_max=1)
    answers = [asyncio.ensure_future(committer.submit(number)) for number in (2, 4)]
    await settle()
    await committer.close()

    assert await asyncio.gather(*answers) == [4, 8]
    with pytest.raises(ServerDraining):
        await committer.submit(6)


async def test_a_wrong_number_of_results_is_nobodys_success():
    async def run_group(commands: list[int]) -> list[int | Exception]:
        return [0] * (len(commands) + 1)

    committer = Store().committer(run_group)
    with pytest.raises(RuntimeError, match="1 commands gave 2 results"):
        await committer.submit(2)
    await committer.close()


async def test_a_lone_command_waits_for_nobody_and_a_crowd_for_what_the_loop_brings(store):
    committer = GroupCommitter(store.run_group, gather_seconds=60)
    committer.start()
    crowd: list[asyncio.Future[int]] = []

    async def come_one_by_one() -> None:
        for number in range(2, 10, 2):
            crowd.append(asyncio.ensure_future(committer.submit(number)))
            await asyncio.sleep(0)

    await committer.submit(0)
    await come_one_by_one()
    assert store.groups[:2] == [[0], [2]], "the first of the crowd could not know that others come"
    await asyncio.gather(*crowd)
    await asyncio.gather(*(committer.submit(number) for number in (10, 12)), come_one_by_one())
    await asyncio.gather(*crowd)
    assert store.groups[-1] == [10, 12, 2, 4, 6, 8]
    await committer.close()
