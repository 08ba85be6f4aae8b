"""What a job costs: which price list is in force for whom at what time, and which of its rows counts. Pure.

Lists stand in the order of their effective times. In force for an account is the latest one that has begun and has
reached the account; whom it has not reached keeps the one before. Since percents only grow, and a list begins after it
was put and can be withdrawn only until it begins, what was in force at a time that is past never changes.

Of a list the rows of the job's lane and model count, or those without model where it has none; of these the cheapest
whose tier the customer has and whose hours it is. A job pins the price and the version when it is accepted.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final, NamedTuple

from services.batcher.errors import NoPriceInForce, PriceChanged
from services.batcher.job import Job, Lane
from services.batcher.price_list import MINUTES_OF_HOUR, PriceList, PriceRow, standing

MINUTE_US: Final = 60 * 1_000_000
NOTICE_US_MAX: Final = 60 * MINUTE_US

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class Terms(NamedTuple):
    """On what terms a job is submitted.

    price_version: only by this list, unless empty. max_price: for no more, unless None. tiers: those of the customer.
    falls_back: it may go on as a batch job.
    """

    price_version: str = ""
    max_price: int | None = None
    tiers: frozenset[str] = frozenset()
    falls_back: bool = False


class Prices(NamedTuple):
    """What one customer pays now for one model: per lane, by one list."""

    version: str
    batch: int
    instant: int

    def of(self, lane: Lane) -> int:
        """The price of a lane."""
        return self.instant if lane is Lane.INSTANT else self.batch


class Quote(NamedTuple):
    """Prices, and until when they hold whatever anybody does to the lists. All times: microseconds since the epoch."""

    prices: Prices
    quote_time_us: int
    expire_time_us: int


def in_force(lists: Sequence[PriceList], account_id: str, now_us: int) -> PriceList:
    """The list by which an account pays. Raises NoPriceInForce."""
    reached = (each for each in lists if standing(each.content.version, account_id) < each.percent_at(now_us))
    found = max(reached, key=lambda each: each.place, default=None)
    if found is None:
        raise NoPriceInForce
    return found


def base_of(lists: Sequence[PriceList], now_us: int) -> PriceList | None:
    """The latest list that has reached everybody: what stands before it never counts again."""
    return max((each for each in lists if each.percent_at(now_us) == 100), key=lambda each: each.place, default=None)


def amount_of(rows: Sequence[PriceRow], lane: Lane, model: str, tiers: frozenset[str], minute: int) -> int:
    """What the rows ask for a job at a minute of the day. A list without problems prices every lane."""
    of_lane = [row for row in rows if row.lane is lane]
    of_model = [row for row in of_lane if row.model == model] or [row for row in of_lane if not row.model]
    return min(
        row.amount
        for row in of_model
        if (not row.tier or row.tier in tiers) and (row.hours is None or row.hours.contain(minute))
    )


def minute_at(time_us: int, zone: tzinfo) -> int:
    """The minute of the day that the clocks of a zone show."""
    shown = (_EPOCH + time_us * _MICROSECOND).astimezone(zone)
    return shown.hour * MINUTES_OF_HOUR + shown.minute


def prices_of(lists: Sequence[PriceList], account_id: str, model: str, tiers: frozenset[str], now_us: int) -> Prices:
    """What an account pays now. Raises NoPriceInForce."""
    found = in_force(lists, account_id, now_us)
    rows, minute = found.content.rows, minute_at(now_us, found.zone)
    batch, instant = (amount_of(rows, lane, model, tiers, minute) for lane in (Lane.BATCH, Lane.INSTANT))
    return Prices(found.content.version, batch, instant)


def quote(
    lists: Sequence[PriceList], account_id: str, model: str, tiers: frozenset[str], now_us: int, notice_us: int
) -> Quote:
    """What an account pays, and until when that is sure. Raises NoPriceInForce.

    notice_us: how long before it begins a change is known, an hour at most. Within it nobody can add a change, so that
    the first known time at which the price is another one ends the quote.
    """
    prices = prices_of(lists, account_id, model, tiers, now_us)
    for time_us in _turns(lists, now_us, now_us + min(notice_us, NOTICE_US_MAX)):
        if prices_of(lists, account_id, model, tiers, time_us) != prices:
            return Quote(prices, now_us, time_us)
    return Quote(prices, now_us, now_us + min(notice_us, NOTICE_US_MAX))


def _turns(lists: Sequence[PriceList], after_us: int, until_us: int) -> list[int]:
    """The times at which any price may change: steps of roll-outs, and full minutes where rows have hours."""
    steps = {max(each.effective_time_us, step.start_time_us) for each in lists for step in each.rollouts}
    if any(row.hours for each in lists for row in each.content.rows):
        steps |= set(range(after_us - after_us % MINUTE_US + MINUTE_US, until_us, MINUTE_US))
    return sorted(time_us for time_us in steps if after_us < time_us < until_us)


def pinned(job: Job, lists: Sequence[PriceList], terms: Terms, now_us: int) -> Job:
    """The job with its price, that of the lane BATCH where it may fall back to it, and the version of the list.

    Whose tokens pay, by whose list. A fall back never costs more than the hold, which was made for the lane asked for.
    Raises PriceChanged when the terms are not met, and NoPriceInForce.
    """
    prices = prices_of(lists, job.payer_account_id, job.model, terms.tiers, now_us)
    price = prices.of(job.lane)
    dear = terms.max_price is not None and price > terms.max_price
    if dear or terms.price_version not in ("", prices.version):
        raise PriceChanged(price, prices.version, terms.max_price, terms.price_version)
    fallback_price = min(prices.batch, price) if terms.falls_back else 0
    return job._replace(price=price, price_version=prices.version, fallback_price=fallback_price)
