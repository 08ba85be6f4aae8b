"""Runs a service's loops: each calls its step again and again, at once while there is work, then after a pause.

A step that fails is called again after a pause that doubles with each failure. A loop with a lease steps only while its
replica holds it, and renews it while a step runs long; the step itself calls `lease.check(tx)` in its transactions,
since only that can stop a replica that was asleep when its lease ended.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

from services.chassis import logs
from services.chassis.leases import Lease
from services.chassis.metrics import loop_failed, loop_succeeded

BACKOFF_SECONDS: Final = 0.5
BACKOFF_SECONDS_MAX: Final = 30.0
STOP_TIMEOUT_SECONDS: Final = 10.0
# Of a lease's duration: two renewals may fail before it is over.
RENEW_FRACTION: Final = 1 / 3
# Of a lease's duration: so often a loop at least asks for a lease that another holds, to take over within two of them.
ASK_FRACTION: Final = 1 / 2

_log = logs.get_logger(__name__)
Sleep = Callable[[float], Awaitable[None]]


class Loop:
    """One loop. `step` returns True when there is more work at once; otherwise it is called after the interval."""

    def __init__(
        self,
        name: str,
        step: Callable[[], Awaitable[bool]],
        interval_seconds: float,
        lease: Lease | None = None,
    ) -> None:
        self.name = name
        self.step = step
        self.interval_seconds = interval_seconds
        self.lease = lease
        self.woken = asyncio.Event()

    def wake(self) -> None:
        """Ends the pause before the next step; a loop in the middle of a step makes another one right after it."""
        self.woken.set()


def tell_failure(loop: str, error: Exception) -> None:
    """Counts and logs that a step failed; the loop goes on by itself."""
    loop_failed(loop)
    _log.warning("loop_failed", loop=loop, error=repr(error))


class Runner:
    """Runs loops until it is stopped.

    `on_success(loop_name)` is told of each step that succeeded, `on_failure(loop_name, error)` of each that did not.
    """

    def __init__(
        self,
        loops: Sequence[Loop],
        *,
        on_success: Callable[[str], None] = loop_succeeded,
        on_failure: Callable[[str, Exception], None] = tell_failure,
        sleep: Sleep = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._loops = loops
        self._on_success = on_success
        self._on_failure = on_failure
        self._sleep = sleep
        self._jitter = jitter
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Starts all loops; needs a running event loop."""
        self._tasks = [asyncio.create_task(self._run(loop), name=f"loop_{loop.name}") for loop in self._loops]

    async def stop(self, timeout_seconds: float = STOP_TIMEOUT_SECONDS) -> None:
        """Lets running steps end, cancels those that take longer, and gives the leases back."""
        self._stopping.set()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=timeout_seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        for loop in self._loops:
            if loop.lease is not None:
                await self._released(loop.name, loop.lease)

    async def _released(self, name: str, lease: Lease) -> None:
        try:
            await lease.release()
        except Exception as error:
            # It ends by itself; the database may be gone before us.
            self._on_failure(name, error)

    async def _run(self, loop: Loop) -> None:
        failures = 0
        while not self._stopping.is_set():
            # Cleared before the step, so that whoever wakes the loop meanwhile gets a step that sees what they did.
            loop.woken.clear()
            try:
                more = await self._step(loop)
                failures = 0
            except Exception as error:
                self._on_failure(loop.name, error)
                more = False
                failures += 1
            if failures:
                await self._pause(self._backoff_seconds(failures), self._stopping)
            elif not more:
                await self._rest(loop)

    async def _rest(self, loop: Loop) -> None:
        """The pause before the next step. A lease is renewed in it, as it may be shorter; one that is another replica's
        is asked for sooner than the step would come.
        """
        left_seconds = loop.interval_seconds * (0.9 + self._jitter() / 5)
        lease = loop.lease
        while left_seconds > 0 and not (self._stopping.is_set() or loop.woken.is_set()):
            nap_seconds = left_seconds
            if lease is not None:
                fraction = ASK_FRACTION if lease.fence is None else RENEW_FRACTION
                nap_seconds = min(left_seconds, lease.duration_seconds * fraction)
            await self._pause(nap_seconds, self._stopping, loop.woken)
            left_seconds -= nap_seconds
            if lease is None or lease.fence is None:
                return
            if left_seconds > 0:
                await self._renewed(loop.name, lease)

    def _backoff_seconds(self, failures: int) -> float:
        pause = min(BACKOFF_SECONDS * 2.0 ** min(failures - 1, 10), BACKOFF_SECONDS_MAX)
        return pause * (0.5 + self._jitter() / 2)

    async def _step(self, loop: Loop) -> bool:
        if loop.lease is None:
            more = await loop.step()
        elif not await loop.lease.hold():
            return False
        else:
            more = await self._step_renewing(loop, loop.lease)
        self._on_success(loop.name)
        return more

    async def _step_renewing(self, loop: Loop, lease: Lease) -> bool:
        renewer = asyncio.create_task(self._renew(loop.name, lease))
        try:
            return await loop.step()
        finally:
            renewer.cancel()
            with suppress(asyncio.CancelledError):
                await renewer

    async def _renew(self, name: str, lease: Lease) -> None:
        renewed = True
        while renewed:
            await self._sleep(lease.duration_seconds * RENEW_FRACTION)
            renewed = await self._renewed(name, lease)

    async def _renewed(self, name: str, lease: Lease) -> bool:
        """Whether the lease may still be ours."""
        try:
            return await lease.renew()
        except Exception as error:
            # The lease holds on for a while yet; another attempt comes before its end.
            self._on_failure(name, error)
            return True

    async def _pause(self, seconds: float, *events: asyncio.Event) -> None:
        """Until the time is over or one of the events is set."""
        waits = [
            asyncio.ensure_future(self._sleep(seconds)),
            *(asyncio.ensure_future(event.wait()) for event in events),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
