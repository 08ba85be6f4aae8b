"""The other process of tests/integration/test_group_process.py: it does what a command tells it."""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from services.chassis.database import Conflict
from services.chassis.errors import StoreUnavailable
from services.chassis.group_process import Codec, RunGroup, serve_groups


class Do(NamedTuple):
    """A command: what to do with which value."""

    what: str
    value: object


class Done(NamedTuple):
    """A result: the value, and the process that has seen it."""

    value: object
    pid: int


class No(Exception):
    """A refusal whose `__init__` wants other arguments than it leaves in `args`."""

    def __init__(self, value: object, reason: str) -> None:
        super().__init__(f"{value} is refused, {reason}")
        self.metadata = {"reason": reason}


CODEC = Codec[Do, Done]([Do], tuple, Done._make)


async def _run_group(commands: Sequence[Do]) -> list[Done | Exception]:
    for what, value in commands:
        if what == "conflict":
            raise Conflict(f"conflict over {value}")
        if what == "break":
            raise LookupError(value)
        if what == "die":
            os._exit(1)
    return [No(value, "as asked") if what == "refuse" else Done(value, os.getpid()) for what, value in commands]


@asynccontextmanager
async def opened(argument: str) -> AsyncIterator[RunGroup[Do, Done]]:
    """The store, or none."""
    if argument == "closed":
        raise StoreUnavailable("there is no store")
    yield _run_group


if __name__ == "__main__":
    # As `__main__` its classes would be others than those of the tests.
    from tests import group_child

    serve_groups(group_child.CODEC, group_child.opened)
