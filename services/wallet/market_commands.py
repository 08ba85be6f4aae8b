"""What callers ask of the ledger about the marketplace. Plain values, as in `commands`. Pure."""

from typing import NamedTuple


class CreateOffer(NamedTuple):
    """Offer tokens for points; (account_id, offer_id) is the key."""

    actor: str
    account_id: str
    offer_id: str
    tokens: int
    price_points: int
    lifetime_us: int | None
    reference: str


class TakeOffer(NamedTuple):
    """Buy tokens of an offer, or some of them; (actor, take_id) is the key."""

    actor: str
    account_id: str
    """The buyer."""
    take_id: str
    seller_id: str
    offer_id: str
    tokens: int


class CancelOffer(NamedTuple):
    """End an offer; the offer is the key."""

    actor: str
    account_id: str
    offer_id: str


OnOffer = CreateOffer | TakeOffer | CancelOffer
