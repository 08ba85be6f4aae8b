"""A circuit breaker, as pure functions: calls to a provider that is down are not made.

    CLOSED ── failures in a row ──► OPEN until a time ──► HALF_OPEN: one call, the probe ── it succeeds ──► CLOSED
                                      ▲                                      │
                                      └── it fails: the pause doubles ───────┘

What counts as a failure is the caller's to say: an answer of whatever kind is none. A probe that never tells how it
went, as its process was busy or its task was cancelled, gives way to another after `probe_us`.
"""

from enum import StrEnum
from typing import NamedTuple

from services.batcher.backoff import Patience, pause_us


class State(StrEnum):
    """Whether calls are made."""

    CLOSED = "CLOSED"
    OPEN = "OPEN"
    HALF_OPEN = "HALF_OPEN"


class Limits(NamedTuple):
    """failures_max: in a row, that open it. The pauses are those of `patience`."""

    failures_max: int
    probe_us: int
    patience: Patience


class Breaker(NamedTuple):
    """failures: in a row. openings: in a row, without a success between them; 0: it is closed. until_us: when the next
    call may be made, while it is open or probed. probing: whether a probe is on its way.
    """

    failures: int = 0
    openings: int = 0
    until_us: int = 0
    probing: bool = False


def state(breaker: Breaker, now_us: int) -> State:
    """Whether calls are made at the given time."""
    if not breaker.openings:
        return State.CLOSED
    return State.OPEN if now_us < breaker.until_us else State.HALF_OPEN


def admit(breaker: Breaker, now_us: int, limits: Limits) -> Breaker | None:
    """The breaker after a call was let through, or None where it is not: then it is `until_us` that it may be."""
    match state(breaker, now_us):
        case State.CLOSED:
            return breaker
        case State.HALF_OPEN:
            return breaker._replace(until_us=now_us + limits.probe_us, probing=True)
        case _:
            return None


def succeed(_breaker: Breaker) -> Breaker:
    """A call was answered."""
    return Breaker()


def fail(breaker: Breaker, now_us: int, jitter: float, limits: Limits) -> Breaker:
    """A call was not answered. jitter: 0 to 1.

    While it is open only the probe's failure tells anything: calls that were on their way when it opened fail as well.
    """
    if breaker.openings and not breaker.probing:
        return breaker
    failures = breaker.failures + 1
    if not breaker.openings and failures < limits.failures_max:
        return Breaker(failures)
    openings = breaker.openings + 1
    return Breaker(failures, openings, now_us + pause_us(openings, limits.patience, jitter))
