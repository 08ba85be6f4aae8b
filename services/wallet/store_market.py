"""What a group needs of the marketplace: loaded only where a command or something due has a part in it.

Offers and takes belong to accounts whose tokens are locked before, so that they need no lock of their own.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from services.chassis.database import Database, Transaction
from services.wallet.holdings import CounterRecord, Key, State
from services.wallet.market import COUNTER, Offer, Take, as_of
from services.wallet.market_commands import OnOffer, TakeOffer
from services.wallet.store_reads import decision_time_us
from services.wallet.store_rows import encode

PRICE_MAX: Final = 10**15


@dataclass(slots=True)
class MarketNames:
    """What the commands of a group name of the marketplace."""

    sellers: set[str] = field(default_factory=set)
    """Whose open offers count."""
    offers: set[Key] = field(default_factory=set)
    takes: set[Key] = field(default_factory=set)

    def add(self, command: OnOffer) -> None:
        """Takes in what a command names."""
        if isinstance(command, TakeOffer):
            self.offers.add((command.seller_id, command.offer_id))
            self.takes.add((command.actor, command.take_id))
        else:
            self.offers.add((command.account_id, command.offer_id))
            self.sellers.add(command.account_id)


class Place(NamedTuple):
    """A place in the list of what can be bought."""

    price_points: int
    number: int


FIRST_PLACE: Final = Place(0, 0)


async def load_market(tx: Transaction, state: State, names: MarketNames, due: Collection[str]) -> None:
    """Adds to a group's state what its commands, and what is due on these accounts, may need of the marketplace."""
    sellers = names.sellers.union(due)
    if not (sellers or names.offers or names.takes):
        return
    offers, opened, takes = await tx.rows_all(
        (
            ("load_offers", {"keys": encode(sorted(names.offers))}),
            ("load_open_offers", {"ids": encode(sorted(sellers))}),
            ("load_takes", {"keys": encode(sorted(names.takes))}),
        )
    )
    market = state.market
    market.offers = {(row[0], row[1]): Offer(*row) for row in (*offers, *opened)}
    market.takes = {(row[0], row[1]): Take(*row) for row in takes}
    # What comes back counts no longer for the day of its offer, whichever day it was.
    days = sorted({(each.account_id, COUNTER, each.day) for each in market.offers.values()})
    if days:
        counted = await tx.rows("load_counters", keys=encode(days))
        state.counters.update({(row[0], row[1], row[2]): CounterRecord(*row) for row in counted})


class MarketReads:
    """What can be asked of the marketplace without changing it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def offer(self, account_id: str, offer_id: str) -> Offer | None:
        """An offer as it is now; None when the account has made none of this id."""
        async with self._database.reading() as tx:
            row = await tx.row("get_offer", account_id=account_id, offer_id=offer_id)
            return None if row is None else as_of(Offer(*row), await decision_time_us(tx))

    async def market(self, price_max: int, after: Place, limit: int) -> Sequence[Offer]:
        """What can be bought now for at most so many points a token, at most `limit` behind a place: cheapest first."""
        async with self._database.reading() as tx:
            rows = await tx.rows(
                "list_market",
                now_us=await decision_time_us(tx),
                price_max=price_max,
                after_price=after.price_points,
                after_number=after.number,
                limit=limit,
            )
        return [Offer(*row) for row in rows]

    async def offers(self, account_id: str, before_number: int, limit: int) -> Sequence[Offer] | None:
        """An account's offers, those that have ended too, newest first; None when there is no such account."""
        async with self._database.reading() as tx:
            if await tx.row("get_account", account_id=account_id) is None:
                return None
            now_us = await decision_time_us(tx)
            rows = await tx.rows("list_offers", account_id=account_id, before_number=before_number, limit=limit)
        return [as_of(Offer(*row), now_us) for row in rows]
