"""The marketplace on the wire: decode, hand to the ledger, encode."""

from collections.abc import Mapping
from typing import Any, Final

from punchcard.wallet.v1 import market_pb2, market_pb2_grpc
from services.chassis.auth import current_principal
from services.chassis.fields import AMOUNT_MAX, Checks
from services.chassis.group_commit import GroupCommitter
from services.wallet import grpc_pages
from services.wallet.commands import Command, Outcome
from services.wallet.economy import OFFER_DAYS_MAX
from services.wallet.errors import AccountNotFound
from services.wallet.grpc_messages import REFERENCE_CHARS_MAX, check_account, timestamp
from services.wallet.market import Offer
from services.wallet.market_commands import CancelOffer, CreateOffer, TakeOffer
from services.wallet.market_errors import OfferNotFound
from services.wallet.store_market import MarketReads

SERVICE: Final = "punchcard.wallet.v1.MarketService"
LIFETIME_SECONDS_MIN: Final = 60
LIFETIME_SECONDS_MAX: Final = OFFER_DAYS_MAX * 24 * 3600

SCOPES: Final[Mapping[str, str]] = {
    f"/{SERVICE}/CreateOffer": "wallet.trade",
    f"/{SERVICE}/TakeOffer": "wallet.trade",
    f"/{SERVICE}/CancelOffer": "wallet.trade",
    f"/{SERVICE}/GetOffer": "wallet.read",
    f"/{SERVICE}/ListOffers": "wallet.read",
}
"""Which scope a method asks for. A method that is not here is open to nobody."""


class MarketApi(market_pb2_grpc.MarketServiceServicer):
    """The methods of the marketplace."""

    def __init__(self, committer: GroupCommitter[Command, Outcome], reads: MarketReads) -> None:
        self._committer = committer
        self._reads = reads

    async def CreateOffer(self, request: market_pb2.CreateOfferRequest, context: Any) -> market_pb2.CreateOfferResponse:
        checks = Checks()
        account_id = checks.id("account_id", request.account_id)
        offer_id = checks.id("offer_id", request.offer_id)
        tokens = checks.amount("tokens", request.tokens)
        price_points = checks.amount("price_points", request.price_points)
        lifetime_us = None
        if request.HasField("lifetime"):
            lifetime_us = checks.duration_us("lifetime", request.lifetime, LIFETIME_SECONDS_MIN, LIFETIME_SECONDS_MAX)
        reference = checks.text("reference", request.reference, REFERENCE_CHARS_MAX)
        checks.done()
        principal = current_principal()
        check_account(principal, account_id)
        outcome = await self._committer.submit(
            CreateOffer(principal.subject, account_id, offer_id, tokens, price_points, lifetime_us, reference)
        )
        return market_pb2.CreateOfferResponse(**_offered(outcome))

    async def TakeOffer(self, request: market_pb2.TakeOfferRequest, context: Any) -> market_pb2.TakeOfferResponse:
        checks = Checks()
        account_id = checks.id("account_id", request.account_id)
        take_id = checks.id("take_id", request.take_id)
        seller_id = checks.id("seller_account_id", request.seller_account_id)
        if seller_id and seller_id == account_id:
            checks.fail("seller_account_id", seller_id, "must be another account than the buyer's")
        offer_id = checks.id("offer_id", request.offer_id)
        tokens = checks.amount("tokens", request.tokens)
        checks.done()
        principal = current_principal()
        check_account(principal, account_id)
        outcome = await self._committer.submit(
            TakeOffer(principal.subject, account_id, take_id, seller_id, offer_id, tokens)
        )
        if outcome.take is None:
            raise ValueError("a TakeOffer came to no take")
        return market_pb2.TakeOfferResponse(
            **_offered(outcome), paid_points=outcome.take.points, revision=outcome.take.revision
        )

    async def CancelOffer(self, request: market_pb2.CancelOfferRequest, context: Any) -> market_pb2.CancelOfferResponse:
        account_id, offer_id = _named(request)
        principal = current_principal()
        check_account(principal, account_id)
        outcome = await self._committer.submit(CancelOffer(principal.subject, account_id, offer_id))
        return market_pb2.CancelOfferResponse(**_offered(outcome))

    async def GetOffer(self, request: market_pb2.GetOfferRequest, context: Any) -> market_pb2.GetOfferResponse:
        account_id, offer_id = _named(request)
        offer = await self._reads.offer(account_id, offer_id)
        if offer is None:
            raise OfferNotFound(account_id, offer_id)
        return market_pb2.GetOfferResponse(offer=offer_message(offer))

    async def ListOffers(self, request: market_pb2.ListOffersRequest, context: Any) -> market_pb2.ListOffersResponse:
        size = grpc_pages.page_size(request.page_size)
        checks = Checks()
        account_id = checks.optional_id("account_id", request.account_id)
        price_max = checks.amount("price_points_max", request.price_points_max, 0) or AMOUNT_MAX
        if account_id and request.price_points_max:
            checks.fail("price_points_max", request.price_points_max, "must not be set together with account_id")
        checks.done()
        if not account_id:
            after = grpc_pages.market_place(request.page_token)
            found = await self._reads.market(price_max, after, size)
            token = grpc_pages.market_token(found[-1]) if len(found) == size else ""
            return market_pb2.ListOffersResponse(offers=map(offer_message, found), next_page_token=token)
        check_account(current_principal(), account_id)
        before = grpc_pages.offers_place(request.page_token, account_id)
        own = await self._reads.offers(account_id, before, size)
        if own is None:
            raise AccountNotFound(account_id)
        token = grpc_pages.offers_token(account_id, own[-1]) if len(own) == size else ""
        return market_pb2.ListOffersResponse(offers=map(offer_message, own), next_page_token=token)


def offer_message(offer: Offer) -> market_pb2.Offer:
    """An offer."""
    return market_pb2.Offer(
        account_id=offer.account_id,
        offer_id=offer.offer_id,
        state=market_pb2.OfferState.ValueType(offer.state),
        tokens=offer.tokens,
        price_points=offer.price_points,
        sold=offer.sold,
        returned=offer.returned,
        left=offer.left,
        reference=offer.reference,
        create_time=timestamp(offer.create_time_us),
        expire_time=timestamp(offer.expire_time_us),
        revision=offer.revision,
    )


def _named(request: market_pb2.CancelOfferRequest | market_pb2.GetOfferRequest) -> tuple[str, str]:
    checks = Checks()
    account_id = checks.id("account_id", request.account_id)
    offer_id = checks.id("offer_id", request.offer_id)
    checks.done()
    return account_id, offer_id


def _offered(outcome: Outcome) -> dict[str, Any]:
    if outcome.offer is None or outcome.account is None:
        raise ValueError("a command on an offer came to no offer")
    return {
        "offer": offer_message(outcome.offer),
        "tokens": outcome.account.balance,
        "replayed": outcome.replayed,
    }
