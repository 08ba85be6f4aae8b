"""The breaker of the one provider, in this process: asked before each call, told of its end, seen as a metric."""

import asyncio
from collections.abc import Callable

from prometheus_client import Counter, Gauge

from services.batcher import breaker
from services.batcher.breaker import Breaker, Limits, State
from services.chassis import logs

OPENED = Counter("batcher_provider_circuit_openings", "Times that calls to the provider were stopped, as it was down.")
STATE = Gauge("batcher_provider_circuit", "Whether the provider is called: 0 yes, 1 one probe, 2 no.")
_STATES = {State.CLOSED: 0, State.HALF_OPEN: 1, State.OPEN: 2}

_log = logs.get_logger(__name__)


class ProviderCircuit:
    """`woken` is called when calls may be made again, and once more when the first of them was answered."""

    def __init__(
        self, limits: Limits, now_us: Callable[[], int], jitter: Callable[[], float], woken: Callable[[], None]
    ) -> None:
        self._limits = limits
        self._now_us = now_us
        self._jitter = jitter
        self._woken = woken
        self._breaker = Breaker()
        self._alarm: asyncio.TimerHandle | None = None
        STATE.set_function(lambda: _STATES[self.state()])

    def state(self) -> State:
        """Whether calls are made now."""
        return breaker.state(self._breaker, self._now_us())

    def open_until_us(self) -> int:
        """When the next call is made; 0 while calls are."""
        return self._breaker.until_us if self.state() is State.OPEN else 0

    def wait_seconds(self) -> float:
        """How long a call has to wait; 0 lets it through, as the probe where there is one to be made."""
        now_us = self._now_us()
        admitted = breaker.admit(self._breaker, now_us, self._limits)
        if admitted is None:
            return (self._breaker.until_us - now_us) / 1_000_000
        self._breaker = admitted
        return 0.0

    def tell(self, *, answered: bool) -> None:
        """A call that was let through has ended."""
        before = self._breaker
        now_us = self._now_us()
        if answered:
            self._breaker = breaker.succeed(before)
        else:
            self._breaker = breaker.fail(before, now_us, self._jitter(), self._limits)
        if self._breaker.openings and not before.openings:
            OPENED.inc()
            _log.error("provider_down", failures=self._breaker.failures, alert=True)
        if before.openings and not self._breaker.openings:
            _log.info("provider_back")
            self._woken()
        if self._breaker.openings > before.openings:
            self._ring_at(self._breaker.until_us - now_us)

    def close(self) -> None:
        """Rings no more."""
        if self._alarm is not None:
            self._alarm.cancel()

    def _ring_at(self, pause_us: int) -> None:
        self.close()
        self._alarm = asyncio.get_running_loop().call_later(pause_us / 1_000_000, self._woken)
