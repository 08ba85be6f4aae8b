"""What a price list says, and what is wrong with one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.batcher.job import Lane
from services.batcher.price_list import (
    AMOUNT_MAX,
    Content,
    Hours,
    PriceRow,
    decode,
    encode,
    first_difference,
    minute_of,
    plain_list,
    problems,
    read_prices,
    text_of,
)

PLAIN = (PriceRow(Lane.BATCH, 1), PriceRow(Lane.INSTANT, 5))
NIGHT = Hours(22 * 60, 6 * 60)


def content(*rows, **fields):
    return Content("v2", 0, "UTC", PLAIN + rows)._replace(**fields)


def test_hours_may_go_over_midnight_and_end_before_their_end():
    day = Hours(8 * 60, 18 * 60)

    assert [day.contain(minute_of(text)) for text in ("07:59", "08:00", "17:59", "18:00")] == [False, True, True, False]
    assert [NIGHT.contain(minute_of(text)) for text in ("21:59", "22:00", "00:00", "05:59", "06:00")] == [
        False, True, True, True, False
    ]  # fmt: skip


@given(minute=st.integers(0, 1439))
def test_a_minute_of_the_day_is_read_as_it_is_written(minute):
    assert minute_of(text_of(minute)) == minute


@pytest.mark.parametrize("text", ["", "24:00", "7:00", "12:60", "12:00 ", "noon", "١٢:٠٠"])  # noqa: RUF001
def test_what_is_no_time_of_day_is_refused(text):
    with pytest.raises(ValueError, match="HH:MM"):
        minute_of(text)


def test_a_sound_list_has_no_problems():
    rows = [PriceRow(Lane.INSTANT, 4, tier="gold"), PriceRow(Lane.INSTANT, 3, tier="gold", hours=NIGHT)]

    assert list(problems(content(*rows, PriceRow(Lane.BATCH, 9, model="big")))) == []


@pytest.mark.parametrize(
    ("wrong", "field", "said"),
    [
        (content(version=""), "version", "must match"),
        (content(version="v" * 129), "version", "up to 128"),
        (content(version="v2\n"), "version", "must match"),
        (content(rows=()), "rows", "1 to 200"),
        (content(rows=PLAIN * 101), "rows", "1 to 200"),
        (content(rows=PLAIN[:1]), "rows", "must hold a row of this lane"),
        (content(rollout_percent=0), "rollout_percent", "1 to 100"),
        (content(rollout_percent=101), "rollout_percent", "1 to 100"),
        (content(PriceRow(Lane.BATCH, 0, model="big")), "rows[2].amount", f"1 to {AMOUNT_MAX}"),
        (content(PriceRow(Lane.BATCH, AMOUNT_MAX + 1, model="big")), "rows[2].amount", f"1 to {AMOUNT_MAX}"),
        (content(PriceRow(Lane.BATCH, 1, model="m" * 129)), "rows[2].model", "at most 128"),
        (content(PriceRow(Lane.BATCH, 1, model="m\0")), "rows[2].model", "no NUL"),
        (content(PriceRow(Lane.INSTANT, 4, tier="a b")), "rows[2].tier", "must match"),
        (content(PriceRow(Lane.INSTANT, 4, hours=Hours(60, 60))), "rows[2].end", "another time"),
        (content(PriceRow(Lane.INSTANT, 5, hours=NIGHT)), "rows[2].amount", "must be less than 5"),
        (content(PriceRow(Lane.INSTANT, 6, tier="gold")), "rows[2].amount", "must be less than 5"),
        (content(PriceRow(Lane.INSTANT, 1, model="big", tier="gold")), "rows[2].model", "must also have a row"),
        (content(PriceRow(Lane.INSTANT, 6)), "rows[2]", "must differ"),
    ],
)
def test_what_is_wrong_with_a_list_is_told_with_its_field_and_limit(wrong, field, said):
    found = list(problems(wrong))

    assert any(problem.field == field and said in problem.problem for problem in found), found


def test_a_list_is_read_as_it_was_written():
    every = content(PriceRow(Lane.INSTANT, 4, "big", "gold", NIGHT), effective_time_us=7, rollout_percent=10)

    assert decode(encode(every)) == every


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (content(), None),
        (content(effective_time_us=9), ("effective_time", 0, 9)),
        (content(time_zone="Asia/Tokyo"), ("time_zone", "UTC", "Asia/Tokyo")),
        (content(rollout_percent=10), ("rollout_percent", 100, 10)),
        (content(PriceRow(Lane.BATCH, 2, "big")), ("rows", "2 rows", "3 rows")),
        (content(rows=(PLAIN[0], PriceRow(Lane.INSTANT, 6))), ("rows[1].amount", 5, 6)),
        (content(rows=(PLAIN[0], PriceRow(Lane.INSTANT, 5, hours=NIGHT))), ("rows[1].hours", None, "22:00-06:00")),
    ],
)
def test_the_first_field_in_which_two_lists_differ_is_named(other, difference):
    assert first_difference(content(), other) == difference


def test_the_configuration_names_lanes_and_exceptions_by_model():
    (read,) = read_prices(
        [{"version": "2", "effective_time_us": 7, "lanes": {"BATCH": 1, "INSTANT": 5}, "models": {"big": {"BATCH": 3}}}]
    )

    assert read == Content("2", 7, "UTC", (*PLAIN, PriceRow(Lane.BATCH, 3, "big")))
    assert plain_list("1", {Lane.BATCH: 1, Lane.INSTANT: 5}) == Content("1", 0, "UTC", PLAIN)


@pytest.mark.parametrize("amount", [0, -1, 1.5, True, "1"])
def test_a_configured_price_is_a_positive_whole_number(amount):
    with pytest.raises(ValueError, match="positive whole number"):
        read_prices([{"version": "1", "lanes": {"BATCH": amount, "INSTANT": 5}}])


@pytest.mark.parametrize(
    "entry",
    [
        {"version": "1", "lanes": {"BATCH": 1}},
        {"version": "", "lanes": {"BATCH": 1, "INSTANT": 5}},
        {"version": "1", "lanes": {"BATCH": 1, "INSTANT": 5, "FLEX": 2}},
        {"version": "1", "lanes": [1, 5]},
        {"version": "1", "effective_time_us": -1, "lanes": {"BATCH": 1, "INSTANT": 5}},
        {"version": "1", "lanes": {"BATCH": 1, "INSTANT": 5}, "models": []},
        {"version": "1", "lanes": {"BATCH": 1, "INSTANT": 10**16}},
    ],
)
def test_a_configured_list_that_is_not_sound_is_refused(entry):
    with pytest.raises(ValueError, match=r"."):
        read_prices([entry])


def test_two_configured_lists_of_one_version_are_refused():
    lanes = {"BATCH": 1, "INSTANT": 5}

    with pytest.raises(ValueError, match="must be its own"):
        read_prices([{"version": "1", "lanes": lanes}, {"version": "1", "lanes": lanes}])
