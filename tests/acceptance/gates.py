"""Arrows between a service and what it talks to, and a gate at which a test can hold one of them.

An arrow is an operation of a peer, such as `batches.create`, and a point is one of its moments: BEFORE the request is
passed on, in the MIDDLE of the reply, or AFTER the peer has acted and while the reply has not gone back. Whoever passes
a request on asks the gate at each moment. A test arms one; when it is reached that one call is held there, until the
test has killed or frozen whomever it likes and says whether what was held goes on or is lost.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


class Moment(StrEnum):
    """When in the life of a call."""

    BEFORE = "before"
    MIDDLE = "middle"
    AFTER = "after"


class Point(NamedTuple):
    """A moment of an operation. operation: `*` for any."""

    operation: str
    moment: Moment

    def __str__(self) -> str:
        return f"{self.moment}_{self.operation}"


@dataclass(eq=False)
class Held:
    """A call that will be held, or is. nth: it is the n-th to come by. who: whose call it is, once it is held."""

    point: Point
    nth: int = 1
    who: str = ""
    operations: tuple[str, ...] = ()
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    _goes_on: asyncio.Future[bool] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def deliver(self) -> None:
        """What is held goes on to where it was going."""
        self._decide(goes_on=True)

    def drop(self) -> None:
        """What is held never arrives."""
        self._decide(goes_on=False)

    def _decide(self, *, goes_on: bool) -> None:
        if not self._goes_on.done():
            self._goes_on.set_result(goes_on)

    async def wait(self) -> bool:
        """What the test has decided: True to go on."""
        return await self._goes_on


class Gate:
    """Passes everything but what is armed. `passed` counts what came by, by operation and moment."""

    def __init__(self) -> None:
        self.passed: Counter[Point] = Counter()
        self._armed: list[Held] = []

    def arm(self, point: Point, nth: int = 1) -> Held:
        """Holds the n-th call from now on that comes to a point."""
        held = Held(point, nth)
        self._armed.append(held)
        return held

    def disarm(self, held: Held) -> None:
        """Lets the calls pass for which this was meant."""
        if held in self._armed:
            self._armed.remove(held)

    def open(self) -> None:
        """Lets everything pass, also what is held."""
        for held in self._armed:
            held.deliver()
        self._armed.clear()

    async def goes_on(self, operations: Collection[str], moment: Moment, who: str) -> bool:
        """Asked for each call at each moment; False means that what is passed on is lost here."""
        for operation in operations:
            self.passed[Point(operation, moment)] += 1
        for held in self._armed:
            if held.point.moment is moment and (held.point.operation == "*" or held.point.operation in operations):
                held.nth -= 1
                if held.nth == 0:
                    self._armed.remove(held)
                    held.who, held.operations = who, tuple(operations)
                    held.reached.set()
                    return await held.wait()
        return True
