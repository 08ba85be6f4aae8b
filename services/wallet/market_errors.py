"""Why the wallet refuses what is asked of the marketplace: as `errors`, of which these are a part. Pure."""

from services.wallet.errors import Refusal
from services.wallet.market import Offer, OfferState


class OfferNotFound(Refusal):
    """The account has never made an offer of this id."""

    def __init__(self, account_id: str, offer_id: str) -> None:
        super().__init__(
            f"account {account_id!r} has made no offer {offer_id!r}", account_id=account_id, offer_id=offer_id
        )


class OfferEnded(Refusal):
    """The offer was sold out, cancelled, or its time has passed."""

    def __init__(self, offer: Offer) -> None:
        state = OfferState(offer.state).name
        super().__init__(
            f"offer {offer.offer_id!r} of {offer.account_id!r} is {state}: it sold {offer.sold} of {offer.tokens}",
            account_id=offer.account_id,
            offer_id=offer.offer_id,
            state=state,
            tokens=offer.tokens,
            sold=offer.sold,
            returned=offer.returned,
        )


class OfferExceeded(Refusal):
    """The offer has fewer tokens left than somebody wants to buy."""

    def __init__(self, offer: Offer, requested: int) -> None:
        super().__init__(
            f"offer {offer.offer_id!r} of {offer.account_id!r} has {offer.left} left, and {requested} were asked for",
            account_id=offer.account_id,
            offer_id=offer.offer_id,
            requested=requested,
            left=offer.left,
        )


class OfferLimit(Refusal):
    """The account has as many open offers as it may have."""

    def __init__(self, account_id: str, limit: int) -> None:
        super().__init__(
            f"account {account_id!r} has {limit} open offers, and no more may be: cancel one first",
            account_id=account_id,
            limit=limit,
        )


class OfferTerms(Refusal):
    """The offer is cheaper, or is to live longer, than the rules in force allow."""

    def __init__(self, account_id: str, field: str, requested: object, limit: object) -> None:
        bound = "less than" if field == "price_points" else "more than"
        super().__init__(
            f"{field} is {requested}, which is {bound} the rules allow: {limit}",
            account_id=account_id,
            field=field,
            requested=requested,
            limit=limit,
        )
