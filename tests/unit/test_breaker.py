"""A provider that is down is left alone, and asked again by one call at a time."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from services.batcher import breaker
from services.batcher.backoff import Patience, is_over, pause_us
from services.batcher.breaker import Breaker, Limits, State

LIMITS = Limits(failures_max=3, probe_us=50, patience=Patience(100, 800, 0, 0))


def failing(times: int, now_us: int = 0) -> Breaker:
    made = Breaker()
    for _ in range(times):
        made = breaker.fail(made, now_us, 1.0, LIMITS)
    return made


def test_it_opens_at_the_bound_and_not_before():
    assert breaker.state(failing(2), 0) is State.CLOSED
    assert breaker.state(failing(3), 0) is State.OPEN
    assert breaker.admit(failing(3), 99, LIMITS) is None


def test_an_answer_between_failures_keeps_it_closed():
    assert breaker.fail(breaker.succeed(failing(2)), 0, 1.0, LIMITS) == Breaker(1)


def test_after_the_pause_one_call_is_let_through():
    half = failing(3)
    probed = breaker.admit(half, 100, LIMITS)

    assert breaker.state(half, 100) is State.HALF_OPEN
    assert probed is not None
    assert breaker.admit(probed, 149, LIMITS) is None
    assert breaker.admit(probed, 150, LIMITS) is not None


def test_the_probe_decides():
    probed = breaker.admit(failing(3), 100, LIMITS)
    assert probed is not None

    assert breaker.succeed(probed) == Breaker()
    assert breaker.fail(probed, 110, 1.0, LIMITS).until_us == 110 + 200


def test_calls_that_were_on_their_way_when_it_opened_make_no_pause_longer():
    assert failing(8) == failing(3)


@given(st.integers(1, 200), st.floats(0, 1))
def test_pauses_double_up_to_the_longest_and_jitter_takes_half_at_most(failures, jitter):
    pause = pause_us(failures, LIMITS.patience, jitter)
    whole = min(100 * 2 ** (failures - 1), 800)

    assert whole // 2 <= pause <= whole


def test_a_bound_is_of_tries_and_of_time():
    patience = Patience(1, 1, 3, 1_000)

    assert not is_over(3, 0, 999, patience)
    assert not is_over(2, 0, 9_999, patience)
    assert is_over(3, 0, 1_000, patience)


@given(st.lists(st.tuples(st.sampled_from(["answer", "failure", "call"]), st.integers(0, 500)), max_size=60))
def test_between_two_probes_lies_at_least_half_the_first_pause(events):
    """Whatever happens, while it is open no more than one call goes out in a pause."""
    now_us, made, probes = 0, Breaker(), []
    for kind, later_us in events:
        now_us += later_us
        if kind == "answer":
            made, probes = breaker.succeed(made), []
        elif kind == "failure":
            made = breaker.fail(made, now_us, 0.0, LIMITS)
        elif admitted := breaker.admit(made, now_us, LIMITS):
            if made.openings:
                probes.append(now_us)
            made = admitted
    assert all(second - first >= 50 for first, second in itertools.pairwise(probes))
