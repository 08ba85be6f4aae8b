"""What a job costs: a versioned list of prices by lane, with exceptions by model. Pure.

A job pins the version that was in force when it was accepted; a later list never changes what it pays.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from services.batcher.job import Lane


class PriceList(NamedTuple):
    """One version of the prices, in the asset's smallest unit. models: exceptions, as {model: {lane: amount}}."""

    version: str
    effective_time_us: int
    lanes: Mapping[Lane, int]
    models: Mapping[str, Mapping[Lane, int]]


class Quote(NamedTuple):
    """What one job costs, and by which list."""

    amount: int
    version: str


DEFAULT_PRICES = (PriceList("1", 0, {Lane.BATCH: 1, Lane.INSTANT: 5}, {}),)


def quote(lists: Sequence[PriceList], lane: Lane, model: str, now_us: int) -> Quote:
    """The price in force at `now_us`: of the list that came into effect last. ValueError: no list prices this lane
    yet.
    """
    in_force = [prices for prices in lists if prices.effective_time_us <= now_us and lane in prices.lanes]
    if not in_force:
        raise ValueError(f"no price list in force prices the lane {lane}")
    latest = max(in_force, key=lambda prices: prices.effective_time_us)
    amount = latest.models.get(model, {}).get(lane, latest.lanes[lane])
    return Quote(amount, latest.version)


def fallback_price(lists: Sequence[PriceList], instant: Quote, model: str) -> int:
    """What an instant job of this quote costs on the lane BATCH, by the same list; 0 where that does not price it.

    Never more than the quote: the hold was made for that.
    """
    (prices,) = (prices for prices in lists if prices.version == instant.version)
    amount = prices.models.get(model, {}).get(Lane.BATCH, prices.lanes.get(Lane.BATCH, 0))
    return min(amount, instant.amount)


def read_prices(document: Sequence[Mapping[str, object]]) -> tuple[PriceList, ...]:
    """Reads price lists as the configuration writes them.

    [{"version": "2", "effective_time_us": 0, "lanes": {"BATCH": 1}, "models": {"gpt-x": {"BATCH": 2}}}]
    ValueError: a lane that is not one, an amount that is not a positive whole number, or a version twice.
    """
    lists = tuple(_read_list(entry) for entry in document)
    versions = [prices.version for prices in lists]
    if len(set(versions)) != len(versions):
        raise ValueError(f"a price list's version must be its own, and these are not: {versions}")
    return lists


def _read_list(entry: Mapping[str, object]) -> PriceList:
    models = entry.get("models", {})
    effective = entry.get("effective_time_us", 0)
    if not isinstance(models, Mapping) or not isinstance(effective, int):
        raise ValueError(f"models must be an object and effective_time_us a whole number, in {dict(entry)}")  # noqa: TRY004 - a mistake in a setting
    return PriceList(
        str(entry.get("version", "")),
        effective,
        _read_amounts(entry.get("lanes", {})),
        {str(model): _read_amounts(amounts) for model, amounts in models.items()},
    )


def _read_amounts(amounts: object) -> dict[Lane, int]:
    if not isinstance(amounts, Mapping):
        raise ValueError(f"prices must be an object of lane and amount, not {amounts!r}")  # noqa: TRY004 - a mistake in a setting
    for lane, amount in amounts.items():
        if not isinstance(amount, int) or isinstance(amount, bool) or amount <= 0:
            raise ValueError(f"the price of {lane} must be a positive whole number, not {amount!r}")
    return {Lane(lane): amount for lane, amount in amounts.items()}
