"""Calendar days of the economy: which day an instant belongs to, and when a day or month begins. Pure.

A day is the number of `datetime.date.toordinal`, so that the day before is one less; a month is named by its first day.
The zone is the operator's and never a user's: moving earns nothing. Where clocks change, a day has 23 or 25 hours.
"""

from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def zone_of(name: str) -> tzinfo:
    """The zone that the IANA names so. ValueError: there is none, or no list of zones; all have UTC."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"there is no time zone {name!r}") from None


def day_of(time_us: int, zone: tzinfo) -> int:
    """The day of an instant: the last one that has begun.

    A day goes on when a clock that is put back at midnight shows the evening before again, so that days never go back.
    """
    shown = (_EPOCH + time_us * _MICROSECOND).astimezone(zone).date().toordinal()
    return shown + 1 if start_us(shown + 1, zone) <= time_us else shown


def start_us(day: int, zone: tzinfo) -> int:
    """The first instant of a day: where its midnight comes twice the first, where it is skipped the one after."""
    shown = date.fromordinal(day)
    midnight = datetime(shown.year, shown.month, shown.day, tzinfo=zone)
    return (midnight - _EPOCH) // _MICROSECOND


def month_of(day: int) -> int:
    """The first day of a day's month."""
    return date.fromordinal(day).replace(day=1).toordinal()


def next_month(day: int) -> int:
    """The first day of the month after a day's."""
    return month_of(month_of(day) + 31)


def text_of(day: int) -> str:
    """A day as people write it, YYYY-MM-DD."""
    return date.fromordinal(day).isoformat()


def read_day(text: str) -> int:
    """The day that YYYY-MM-DD names. ValueError: there is no such day, or it is written otherwise."""
    day = date.fromisoformat(text)
    if day.isoformat() != text:
        raise ValueError(f"{text!r} is not written as YYYY-MM-DD")
    return day.toordinal()
