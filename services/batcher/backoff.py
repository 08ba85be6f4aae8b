"""How long to wait before something is tried again, and when its tries are at their bound. Pure."""

from typing import NamedTuple

DOUBLINGS_MAX = 40


class Patience(NamedTuple):
    """Pauses double from the first to the longest. The bound is reached after so many tries *and* so long a time: a
    short outage uses up neither, however often it is met.
    """

    first_us: int
    longest_us: int
    tries_max: int
    time_max_us: int


def pause_us(failures: int, patience: Patience, jitter: float) -> int:
    """The pause after the given number of failures in a row, from 1. jitter: 0 to 1, which makes it half to whole."""
    doublings = min(max(failures - 1, 0), DOUBLINGS_MAX)
    return int(min(patience.first_us * 2**doublings, patience.longest_us) * (0.5 + jitter / 2))


def is_over(failures: int, since_us: int, now_us: int, patience: Patience) -> bool:
    """Whether tries that have failed so often, the first of them at `since_us`, have reached their bound."""
    return failures >= patience.tries_max and now_us - since_us >= patience.time_max_us
