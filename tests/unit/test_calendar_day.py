"""Days follow the operator's clock, also where it is changed, and never go back."""

from datetime import UTC, date, datetime, tzinfo
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.wallet import calendar_day

HOUR_US = 3600 * 1_000_000
BERLIN = ZoneInfo("Europe/Berlin")
ZONES = [UTC, BERLIN, ZoneInfo("America/Sao_Paulo"), ZoneInfo("America/Havana"), ZoneInfo("Pacific/Apia")]


def us(*parts: int, zone: tzinfo = UTC) -> int:
    return round(datetime(*parts, tzinfo=zone).timestamp() * 1_000_000)  # type: ignore[misc,arg-type]


def day(*parts: int) -> int:
    return date(*parts).toordinal()


def test_a_day_begins_at_midnight_and_ends_before_the_next() -> None:
    midnight_us = us(2026, 11, 25)
    assert calendar_day.day_of(midnight_us, UTC) == day(2026, 11, 25)
    assert calendar_day.day_of(midnight_us - 1, UTC) == day(2026, 11, 24)
    assert calendar_day.start_us(day(2026, 11, 25), UTC) == midnight_us


@pytest.mark.parametrize(("at", "hours"), [((2026, 3, 29), 23), ((2026, 10, 25), 25), ((2026, 6, 1), 24)])
def test_a_day_on_which_clocks_change_is_shorter_or_longer(at: tuple[int, int, int], hours: int) -> None:
    begins = calendar_day.start_us(day(*at), BERLIN)
    assert calendar_day.start_us(day(*at) + 1, BERLIN) - begins == hours * HOUR_US


def test_a_clock_put_back_over_midnight_does_not_bring_yesterday_back() -> None:
    """In Havana the hour from midnight to one is shown twice: both belong to the new day."""
    havana = ZoneInfo("America/Havana")
    begins = calendar_day.start_us(day(2026, 11, 1), havana)
    assert [calendar_day.day_of(begins + hour * HOUR_US, havana) for hour in range(3)] == [day(2026, 11, 1)] * 3
    assert calendar_day.day_of(begins - 1, havana) == day(2026, 10, 31)


def test_a_leap_day_is_a_day_of_its_own() -> None:
    assert calendar_day.day_of(us(2028, 2, 29, 12), UTC) == day(2028, 2, 28) + 1 == day(2028, 3, 1) - 1


def test_a_month_is_named_by_its_first_day_and_followed_by_the_next() -> None:
    assert calendar_day.month_of(day(2028, 2, 29)) == day(2028, 2, 1)
    assert calendar_day.next_month(day(2028, 2, 29)) == day(2028, 3, 1)
    assert calendar_day.next_month(day(2026, 12, 31)) == day(2027, 1, 1)


def test_a_day_is_read_as_it_is_written_and_no_other_day_is_taken() -> None:
    assert calendar_day.read_day(calendar_day.text_of(day(2028, 2, 29))) == day(2028, 2, 29)
    with pytest.raises(ValueError, match="day is out of range"):
        calendar_day.read_day("2026-02-29")
    for other in ("20260228", "2026-W09-6"):
        with pytest.raises(ValueError, match="is not written as YYYY-MM-DD"):
            calendar_day.read_day(other)


@given(time_us=st.integers(us(1990, 1, 1), us(2040, 1, 1)), zone=st.sampled_from(ZONES))
def test_every_instant_lies_in_its_day(time_us: int, zone: tzinfo) -> None:
    found = calendar_day.day_of(time_us, zone)
    assert calendar_day.start_us(found, zone) <= time_us < calendar_day.start_us(found + 1, zone)


def test_utc_is_known_where_no_list_of_zones_is_and_a_zone_that_is_none_is_named() -> None:
    assert calendar_day.zone_of("UTC") is UTC
    assert calendar_day.zone_of("Europe/Berlin") == BERLIN
    for name in ("Europe/Nowhere", "", "../etc/passwd"):
        with pytest.raises(ValueError, match="there is no time zone"):
            calendar_day.zone_of(name)
