"""Waits grow, stay within their bounds, and come to an end."""

from hypothesis import given
from hypothesis import strategies as st

from punchcard_client.backoff import Backoff, BackoffPolicy

POLICY = BackoffPolicy(first_seconds=0.1, longest_seconds=5.0, outage_seconds=60.0)


@given(st.integers(1, 3000), st.floats(0, 100))
def test_a_wait_is_never_longer_than_twice_the_longest(tries: int, asked: float) -> None:
    """What the server asks for is added, and bounded too."""
    waits = Backoff(POLICY)

    given_ = [waits.failed(0.0, asked) for _ in range(tries)]

    assert all(wait is not None and 0 <= wait <= 2 * POLICY.longest_seconds for wait in given_)
    assert all(wait is not None and wait >= min(asked, POLICY.longest_seconds) for wait in given_)
    assert given_[0] is not None
    assert given_[0] <= min(asked, POLICY.longest_seconds) + POLICY.first_seconds


def test_an_outage_that_is_too_long_is_given_up() -> None:
    """It is counted from the first failed try."""
    waits = Backoff(POLICY)

    assert waits.failed(1000.0) is not None
    assert waits.failed(1059.9) is not None
    assert waits.failed(1060.0) is None


def test_a_success_ends_the_outage() -> None:
    """The next failure begins another one."""
    waits = Backoff(POLICY)
    waits.failed(1000.0)
    waits.succeeded()

    assert waits.failed(2000.0) is not None
    assert waits.failed(2059.9) is not None
