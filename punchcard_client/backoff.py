"""How long to wait before the next try: twice as long each time, at random below that, and not for ever."""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class BackoffPolicy:
    """Bounds of an outage, in seconds: the first wait, the longest wait, and after how long to give up."""

    first_seconds: float = 0.1
    longest_seconds: float = 5.0
    outage_seconds: float = 600.0


class Backoff:
    """Counts the failed tries of one outage. Times are seconds of any clock that only goes forward."""

    def __init__(self, policy: BackoffPolicy) -> None:
        self._policy = policy
        self._failures = 0
        self._began = 0.0

    def succeeded(self) -> None:
        """The outage is over."""
        self._failures = 0

    def failed(self, now_seconds: float, at_least_seconds: float = 0.0) -> float | None:
        """How long to wait before the next try, or None when it is time to give up.

        `at_least_seconds` is what the server asked for, up to the longest wait.
        """
        if self._failures == 0:
            self._began = now_seconds
        elif now_seconds - self._began >= self._policy.outage_seconds:
            return None
        ceiling = min(self._policy.longest_seconds, self._policy.first_seconds * 2.0**self._failures)
        # 2.0**1023 is the last that a float holds; the ceiling is reached long before.
        self._failures = min(self._failures + 1, 1000)
        asked = min(at_least_seconds, self._policy.longest_seconds)
        return asked + random.uniform(0.0, ceiling)  # noqa: S311 - a wait, not a secret
