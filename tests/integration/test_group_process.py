"""group_process: groups run in another process, and what happens when one of the two ends."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from enum import IntEnum

import pytest

from services.chassis.database import Conflict
from services.chassis.errors import StoreUnavailable
from services.chassis.group_process import GroupProcess
from tests.group_child import CODEC, Do, Done, No

MODULE = "tests.group_child"


class Colour(IntEnum):
    """A value that marshal does not take."""

    RED = 1


@pytest.fixture
async def process() -> AsyncIterator[GroupProcess[Do, Done]]:
    """A process that is ready."""
    process: GroupProcess[Do, Done] = GroupProcess(MODULE, "open", CODEC)
    await process.start()
    yield process
    await process.close()


async def pid_of(process: GroupProcess[Do, Done]) -> int:
    """The other process."""
    (done,) = await process.run_group([Do("echo", None)])
    assert isinstance(done, Done)
    return done.pid


def values(results: Sequence[Done | Exception]) -> list[object]:
    """What came back, in order."""
    return [result.value if isinstance(result, Done) else result for result in results]


async def test_results_come_back_in_order_from_another_process(process):
    assert values(await process.run_group([Do("echo", n) for n in range(1_000)])) == list(range(1_000))
    assert await pid_of(process) != os.getpid()


async def test_groups_that_are_sent_together_are_answered_each_with_its_own(process):
    answers = await asyncio.gather(*(process.run_group([Do("echo", n)]) for n in range(20)))
    assert [values(answer) for answer in answers] == [[n] for n in range(20)]


async def test_values_that_are_not_plain_travel_too(process):
    assert values(await process.run_group([Do("echo", Colour.RED)])) == [Colour.RED]


async def test_a_refusal_comes_back_whole_and_in_its_place(process):
    kept, refused = await process.run_group([Do("echo", 1), Do("refuse", 2)])
    assert isinstance(kept, Done)
    assert isinstance(refused, No)
    assert str(refused) == "2 is refused, as asked"
    assert refused.metadata == {"reason": "as asked"}


async def test_what_a_group_raises_is_raised_here_with_the_place_where_it_was_raised(process):
    with pytest.raises(Conflict) as conflict:
        await process.run_group([Do("conflict", "alice")])
    assert conflict.value.detail == "conflict over alice"
    with pytest.raises(LookupError, match="bob") as broken:
        await process.run_group([Do("break", "bob")])
    assert "in _run_group" in broken.value.__notes__[0]


async def test_a_process_that_ends_leaves_an_unknown_outcome_and_the_next_group_gets_another(process):
    first = await pid_of(process)
    with pytest.raises(StoreUnavailable) as unknown:
        await process.run_group([Do("die", None)])
    assert "nobody knows" in unknown.value.detail
    assert await pid_of(process) != first


async def test_a_process_that_is_killed_while_it_idles_is_replaced(process):
    first = await pid_of(process)
    os.kill(first, signal.SIGKILL)
    second = first
    while second == first:
        try:
            second = await pid_of(process)
        except StoreUnavailable:
            continue
    assert values(await process.run_group([Do("echo", 1)])) == [1]


async def test_a_store_that_does_not_open_says_why():
    process: GroupProcess[Do, Done] = GroupProcess(MODULE, "closed", CODEC)
    with pytest.raises(StoreUnavailable) as refused:
        await process.start()
    assert refused.value.detail == "there is no store"
    await process.close()


def test_the_process_takes_no_signal_and_ends_with_its_parents_socket():
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", MODULE, str(theirs.fileno())]
    with subprocess.Popen(command, pass_fds=[theirs.fileno()]) as child:
        theirs.close()
        with ours:
            ours.sendall((4).to_bytes(4, "big") + b"N\x2e\x2e\x2e")
            assert ours.recv(5)[4:] == b"+"
            child.send_signal(signal.SIGINT)
            child.send_signal(signal.SIGTERM)
            assert child.poll() is None
        assert child.wait() == 0
