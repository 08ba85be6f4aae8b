"""What Prometheus reads from a server, and how the chassis counts it cheaply.

Labels are bound once per method, since looking a child up by its labels costs as much as the observation itself.
"""

from __future__ import annotations

import threading
import time
from typing import ClassVar, Final
from wsgiref.simple_server import WSGIServer

from prometheus_client import Counter, Gauge, Histogram, start_http_server

RPC_SECONDS: Final = Histogram(
    "rpc_seconds",
    "Seconds that a call took in the handler and the chassis.",
    ["method", "code"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
RPC_IN_FLIGHT: Final = Gauge("rpc_in_flight", "Calls and streams that run.", ["method"])
MASKED_ERRORS: Final = Counter("rpc_masked_errors", "Exceptions that nobody foresaw.", ["method"])
LOOP_LAST_SUCCESS_SECONDS: Final = Gauge(
    "loop_last_success_seconds", "When a loop last did its step without failing, in seconds since the epoch.", ["loop"]
)
LOOP_FAILURES: Final = Counter("loop_failures", "Steps of a loop that failed.", ["loop"])


class MethodMetrics:
    """The metrics of one method, with their labels bound; one event loop counts them, so they need no lock."""

    _known: ClassVar[dict[str, MethodMetrics]] = {}

    def __init__(self, method: str) -> None:
        self._method = method
        self._seconds: dict[str, Histogram] = {}
        self.in_flight = 0
        RPC_IN_FLIGHT.labels(method).set_function(lambda: self.in_flight)
        self.masked: Final = MASKED_ERRORS.labels(method)

    @classmethod
    def of(cls, method: str) -> MethodMetrics:
        """The one object that counts `method`."""
        if method not in cls._known:
            cls._known[method] = cls(method)
        return cls._known[method]

    def observe(self, code: str, seconds: float) -> None:
        """Count a call that ended with `code` ("OK", "NOT_FOUND") after `seconds`."""
        child = self._seconds.get(code)
        if child is None:
            child = self._seconds[code] = RPC_SECONDS.labels(self._method, code)
        child.observe(seconds)


def loop_succeeded(loop: str) -> None:
    """Note that `loop` did its step just now."""
    LOOP_LAST_SUCCESS_SECONDS.labels(loop).set(time.time())


def loop_failed(loop: str) -> None:
    """Note that a step of `loop` failed."""
    LOOP_FAILURES.labels(loop).inc()


class MetricsPage:
    """GET /metrics on a port of its own, served by a thread."""

    def __init__(self, host: str, port: int) -> None:
        started: tuple[WSGIServer, threading.Thread] = start_http_server(port, host)
        self._server, self._thread = started
        self.port: Final[int] = self._server.server_port

    def close(self) -> None:
        """Stop answering and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
