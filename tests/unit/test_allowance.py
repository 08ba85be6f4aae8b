"""What may be enqueued at the provider: as configured, and as its refusals teach."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.batcher import allowance
from services.batcher.allowance import LEARNT_US, Allowance, Room
from services.batcher.outcome import ALONE_TOO_LARGE, OVER_LIMIT

NAMED = (
    "Enqueued token limit reached for gpt-4o in organization org-1. Limit: 90,000 enqueued tokens. Please try again"
    " once some in_progress batches have been completed."
)
UNNAMED = "Enqueued token limit reached."


@pytest.mark.parametrize(
    ("message", "limit"),
    [
        (NAMED, 90_000),
        ("Enqueued token limit reached for gpt-4.1-mini. Limit 2M tokens", 2_000_000),
        ("Over the limit of 100_000, requested 500000", 100_000),
        ("limit: 90.5k enqueued tokens", 90_500),
        ("Enqueued requests limit reached. Limit: 1,000,000 enqueued requests.", None),
        ("Limit: 0 tokens", None),
        (UNNAMED, None),
        ("", None),
    ],
)
def test_the_limit_is_read_out_of_a_refusal(message, limit):
    assert allowance.named_limit(message) == limit


@given(st.text(max_size=200))
def test_no_message_breaks_the_reading(message):
    named = allowance.named_limit("limit: " + message)
    assert named is None or named > 0


def test_limits_are_read_as_they_are_configured():
    assert allowance.read_limits("") == {}
    assert allowance.read_limits(" a=1, b = 2000000,") == {"a": 1, "b": 2_000_000}
    for wrong in ("a", "a=", "=1", "a=0", "a=x", "a=-1", "a=1.5"):
        with pytest.raises(ValueError, match="model=tokens"):
            allowance.read_limits(wrong)


def test_a_named_limit_is_learnt_and_an_unnamed_one_is_half_of_what_was_tried():
    named = allowance.refuse(Allowance("m"), NAMED, 120_000, 70, 60)
    guessed = allowance.refuse(Allowance("m"), UNNAMED, 120_000, 70, 60)

    assert named == Allowance("m", 90_000, False, 60, 1, 70)
    assert guessed == Allowance("m", 60_000, True, 60, 1, 70)


def test_a_refusal_within_the_named_limit_teaches_at_the_second_time():
    """It may be the provider's slowness; it may be that our counts are too low."""
    first = allowance.refuse(Allowance("m"), NAMED, 1_500, 70, 60)
    second = allowance.refuse(first, NAMED, 1_500, 70, 61)

    assert first.learnt_tokens == 90_000
    assert (second.learnt_tokens, second.guessed) == (750, True)


def test_an_accepted_batch_ends_the_pause_and_lets_a_guess_grow():
    guessed = Allowance("m", 60_000, True, 60, 3, 70)
    named = Allowance("m", 90_000, False, 60, 3, 70)

    assert allowance.accept(guessed) == Allowance("m", 75_000, True, 60, 0, 0)
    assert allowance.accept(named) == Allowance("m", 90_000, False, 60, 0, 0)


def test_the_lower_of_what_is_configured_and_what_was_learnt_today_counts():
    known = Allowance("m", 90_000, False, 100, 0, 0)

    assert allowance.room(2_000_000, known, 1_000, 200) == Room(90_000, 1_000)
    assert allowance.room(50_000, known, 0, 200).limit == 50_000
    assert allowance.room(None, known, 0, 100 + LEARNT_US).limit is None
    assert allowance.room(None, None, 0, 0).left is None
    assert allowance.room(100, None, 200, 0).left == 0


def test_a_batch_over_the_limit_by_itself_is_cut_and_a_job_fails():
    assert allowance.alone_over(NAMED, 90_001, 2) == OVER_LIMIT
    assert allowance.alone_over(NAMED, 90_001, 1) == ALONE_TOO_LARGE
    assert allowance.alone_over(NAMED, 90_000, 1) is None
    assert allowance.alone_over(UNNAMED, 10**9, 1) is None


@given(st.lists(st.tuples(st.sampled_from([NAMED, UNNAMED, "yes"]), st.integers(1, 10**6)), max_size=40))
def test_whatever_is_said_something_may_be_enqueued(said):
    """No run of refusals brings the limit to nothing."""
    known = Allowance("m")
    for message, taken in said:
        known = allowance.accept(known) if message == "yes" else allowance.refuse(known, message, taken, 0, 1)
        assert known.learnt_tokens >= (1 if known.learn_time_us else 0)
