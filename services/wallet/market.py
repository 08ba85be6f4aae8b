"""What the ledger keeps of the marketplace, where accounts offer tokens for points. Pure.

    create ──► OPEN ──┬─ takes have sold all ──► FILLED
                      ├─ cancel ──► CANCELLED
                      └─ its time passes ──► EXPIRED

Offered tokens wait in @escrow: what it has is always what open offers have left. An offer ends once, and what it was
then is for ever: sold + returned = tokens. Like `holdings`, all of this is a projection that `apply` makes of the
journal. The fields are the columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

ESCROW = "@escrow"
"""Keeps what is offered until it is sold or goes back."""
COUNTER = "offer"
"""The counter of tokens that were offered in a day; what comes back unsold counts no longer."""
Key = tuple[str, str]


class OfferState(IntEnum):
    """Where an offer stands; the numbers are those of the proto."""

    OPEN = 1
    FILLED = 2
    CANCELLED = 3
    EXPIRED = 4


class Offer(NamedTuple):
    """Tokens that an account sells for points, all of them or in parts."""

    account_id: str
    """The seller, who has chosen the id."""
    offer_id: str
    created_by: str
    state: int
    tokens: int
    """How many were offered."""
    price_points: int
    """For each of them."""
    sold: int
    returned: int
    lifetime_us: int | None
    """As it was asked for: None for what the rules say."""
    reference: str
    day: int
    """The calendar day on which it counts."""
    create_time_us: int
    expire_time_us: int
    number: int
    """The revision that made it: of two offers at one price the older is sold first."""
    revision: int

    @property
    def left(self) -> int:
        """What can still be bought; 0 once it has ended."""
        return self.tokens - self.sold - self.returned

    def is_due(self, at_us: int) -> bool:
        """Whether its time has passed and it has not ended."""
        return self.state == OfferState.OPEN and self.expire_time_us <= at_us


class Take(NamedTuple):
    """Tokens that were bought of an offer: what its key is compared with."""

    created_by: str
    take_id: str
    account_id: str
    """The buyer."""
    seller_id: str
    offer_id: str
    tokens: int
    points: int
    revision: int


@dataclass(slots=True)
class Market:
    """The part of a group's state that only the marketplace has; see `holdings.State`."""

    offers: dict[Key, Offer] = field(default_factory=dict)
    """By (seller, offer). Of every seller whom the group concerns, all that are open."""
    takes: dict[Key, Take] = field(default_factory=dict)

    def copy(self) -> Market:
        """Another one with the same content."""
        return Market(dict(self.offers), dict(self.takes))

    def open_offers(self, account_id: str) -> list[Offer]:
        """The open offers of a seller."""
        offers = self.offers.values()
        return [each for each in offers if each.account_id == account_id and each.state == OfferState.OPEN]


def as_of(offer: Offer, now_us: int) -> Offer:
    """An offer as it is at an instant: one whose time has passed is expired, whether or not a sweep has run."""
    if not offer.is_due(now_us):
        return offer
    return offer._replace(state=int(OfferState.EXPIRED), returned=offer.left)
