"""The calls that run: what each one's log line will say, how many there may be, how long they take, how they end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Final

from services.chassis import logs
from services.chassis.auth import PUBLIC
from services.chassis.errors import TimedOut
from services.chassis.metrics import MethodMetrics


class Method:
    """A method's name, scope and metrics, bound once."""

    def __init__(self, name: str, scope: str | None) -> None:
        self.name: Final = name
        self.scope: Final = scope
        self.public: Final = scope == PUBLIC
        self.metrics: Final = MethodMetrics.of(name)


class Call:
    """One call as its log line will tell it."""

    __slots__ = ("closing", "code", "fields", "level", "method", "out_of_time", "request_id", "started")

    def __init__(self, method: Method) -> None:
        self.method = method
        self.started = time.perf_counter()
        self.code = "OK"
        self.level = "info"
        self.closing = False
        self.out_of_time = False
        self.request_id = ""
        self.fields: dict[str, Any] = {"method": method.name}
        method.metrics.in_flight += 1

    def finish(self) -> None:
        """Count the call and queue its line."""
        seconds = time.perf_counter() - self.started
        metrics = self.method.metrics
        metrics.in_flight -= 1
        metrics.observe(self.code, seconds)
        # A copy, because a shielded task may outlive the call and still log with these fields.
        logs.put({"level": self.level, "event": "rpc", **self.fields, "code": self.code, "seconds": round(seconds, 6)})


class Traffic:
    """The calls, streams and shielded tasks that run, and their bounds. Limits refuse; they never queue."""

    def __init__(self, calls_max: int, streams_max: int) -> None:
        self.calls_max: Final = calls_max
        self.streams_max: Final = streams_max
        self.draining: Final = asyncio.Event()
        self.turned_away = 0
        self.calls: Final[dict[asyncio.Task[Any], Call]] = {}
        self.streams: Final[dict[asyncio.Task[Any], asyncio.Timeout]] = {}
        self.public_streams: Final[dict[asyncio.Task[Any], asyncio.Timeout]] = {}
        self.shielded: Final[set[asyncio.Task[Any]]] = set()

    def running(self) -> set[asyncio.Task[Any]]:
        """Every task that a drain waits for."""
        return self.calls.keys() | self.streams.keys() | self.public_streams.keys() | self.shielded

    def end_streams(self) -> None:
        """End the streams that go on although the server drains; clients see SERVER_DRAINING."""
        _end_now(self.streams)

    def end_public_streams(self) -> None:
        """The same for health and reflection, which have nothing to lose."""
        _end_now(self.public_streams)


def _end_now(streams: Mapping[asyncio.Task[Any], asyncio.Timeout]) -> None:
    now = asyncio.get_running_loop().time()
    for timeout in streams.values():
        if not timeout.expired():
            timeout.reschedule(now)


class TimeLimit:
    """Cancels unary calls that take too long.

    All have the same limit, so the one that began first is the next to reach it, and a single timer serves all: a timer
    for each call costs more than everything else that the chain does with it.
    """

    def __init__(self, calls: Mapping[asyncio.Task[Any], Call], seconds: float) -> None:
        self._calls = calls
        self._seconds = seconds
        self._armed = False

    def watch(self) -> None:
        """Have an eye on the calls that run."""
        if not self._armed:
            self._arm()

    def _arm(self) -> None:
        first = next((call for call in self._calls.values() if not call.closing), None)
        self._armed = first is not None
        if first is not None:
            left_seconds = first.started + self._seconds - time.perf_counter()
            asyncio.get_running_loop().call_later(max(left_seconds, 0.0), self._strike)

    def _strike(self) -> None:
        too_old = time.perf_counter() - self._seconds
        for task, call in self._calls.items():
            if call.started > too_old:
                break
            if not call.closing:
                call.closing = call.out_of_time = True
                task.cancel()
        self._arm()

    def judge(self, call: Call, task: asyncio.Task[Any], error: BaseException) -> BaseException:
        """TimedOut in place of the cancellation that was ours alone; any other error as it is.

        From here on the call is closing: a cancellation while its status is sent would leave the client without one.
        """
        call.closing = True
        if call.out_of_time and task.uncancel() == 0 and isinstance(error, asyncio.CancelledError):
            return TimedOut(self._seconds)
        return error
