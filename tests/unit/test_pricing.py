"""What a job costs."""

import pytest

from services.batcher.job import Lane
from services.batcher.pricing import DEFAULT_PRICES, Quote, fallback_price, quote, read_prices


def test_by_default_a_batch_job_costs_1_and_an_instant_one_5():
    assert quote(DEFAULT_PRICES, Lane.BATCH, "m", 0) == Quote(1, "1")
    assert quote(DEFAULT_PRICES, Lane.INSTANT, "m", 0) == Quote(5, "1")


def test_the_list_that_came_into_effect_last_counts():
    lists = read_prices(
        [
            {"version": "1", "lanes": {"BATCH": 1}},
            {"version": "2", "effective_time_us": 100, "lanes": {"BATCH": 2}, "models": {"big": {"BATCH": 3}}},
        ]
    )

    assert quote(lists, Lane.BATCH, "m", 99) == Quote(1, "1")
    assert quote(lists, Lane.BATCH, "m", 100) == Quote(2, "2")
    assert quote(lists, Lane.BATCH, "big", 100) == Quote(3, "2")


def test_a_fall_back_costs_what_the_batch_lane_costs_in_the_same_list_and_never_more_than_was_held():
    lists = read_prices(
        [
            {"version": "1", "lanes": {"INSTANT": 5}},
            {
                "version": "2",
                "lanes": {"BATCH": 2, "INSTANT": 5},
                "models": {"big": {"BATCH": 9}, "small": {"BATCH": 1}},
            },
        ]
    )

    assert fallback_price(lists, Quote(5, "2"), "m") == 2
    assert fallback_price(lists, Quote(5, "2"), "small") == 1
    assert fallback_price(lists, Quote(5, "2"), "big") == 5
    assert fallback_price(lists, Quote(5, "1"), "m") == 0


def test_a_lane_without_a_price_is_refused():
    with pytest.raises(ValueError, match="prices the lane INSTANT"):
        quote(read_prices([{"version": "1", "lanes": {"BATCH": 1}}]), Lane.INSTANT, "m", 0)


@pytest.mark.parametrize("amount", [0, -1, 1.5, True, "1"])
def test_a_price_is_a_positive_whole_number(amount):
    with pytest.raises(ValueError, match="positive whole number"):
        read_prices([{"version": "1", "lanes": {"BATCH": amount}}])


def test_two_lists_of_one_version_are_refused():
    with pytest.raises(ValueError, match="must be its own"):
        read_prices([{"version": "1", "lanes": {"BATCH": 1}}, {"version": "1", "lanes": {"BATCH": 2}}])
