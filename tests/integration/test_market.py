"""MarketService through a whole wallet, on both databases."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from punchcard.wallet.v1 import earning_pb2, earning_pb2_grpc, market_pb2, market_pb2_grpc, wallet_pb2
from services.wallet.economy import EarningRules
from tests.tokens import bearer
from tests.wallets import EVERY_SCOPE, WalletClient, refused, wallet_at

SCOPES = f"{EVERY_SCOPE} wallet.trade wallet.earn wallet.admin"
METADATA = bearer("boss", SCOPES, audience="punchcard.wallet")
RULES = EarningRules()
OPEN, FILLED, CANCELLED, EXPIRED = (market_pb2.OfferState.Value(f"OFFER_STATE_{name}") for name in (
    "OPEN", "FILLED", "CANCELLED", "EXPIRED",
))  # fmt: skip


class Traders:
    """A caller who may act for everybody; alice has 110 tokens, bob and carol have 10 and 100 points."""

    def __init__(self, wallet: WalletClient, channel: grpc.aio.Channel) -> None:
        self.wallet = wallet
        self.stub: Any = market_pb2_grpc.MarketServiceStub(channel)
        self.earning: Any = earning_pb2_grpc.EarningServiceStub(channel)

    async def offer(self, offer_id: str, tokens: int, price_points: int, seller: str = "alice", **more: Any) -> Any:
        request = market_pb2.CreateOfferRequest(
            account_id=seller, offer_id=offer_id, tokens=tokens, price_points=price_points, **more
        )
        return await self.stub.CreateOffer(request, metadata=METADATA)

    async def take(self, buyer: str, take_id: str, offer_id: str, tokens: int, seller: str = "alice") -> Any:
        request = market_pb2.TakeOfferRequest(
            account_id=buyer, take_id=take_id, seller_account_id=seller, offer_id=offer_id, tokens=tokens
        )
        return await self.stub.TakeOffer(request, metadata=METADATA)

    async def cancel(self, offer_id: str, seller: str = "alice") -> Any:
        request = market_pb2.CancelOfferRequest(account_id=seller, offer_id=offer_id)
        return await self.stub.CancelOffer(request, metadata=METADATA)

    async def get(self, offer_id: str, seller: str = "alice") -> Any:
        request = market_pb2.GetOfferRequest(account_id=seller, offer_id=offer_id)
        return (await self.stub.GetOffer(request, metadata=METADATA)).offer

    async def listed(self, **request: Any) -> list[str]:
        """The offers of all pages, in their order."""
        found: list[str] = []
        token = request.pop("page_token", "")
        while True:
            asked = market_pb2.ListOffersRequest(**request, page_token=token)
            page = await self.stub.ListOffers(asked, metadata=METADATA)
            found += [f"{offer.account_id}/{offer.offer_id}" for offer in page.offers]
            token = page.next_page_token
            if not token:
                return found

    async def purses(self) -> list[tuple[int, int]]:
        """Tokens and points of alice, bob and carol."""
        requests = [earning_pb2.GetEarningsRequest(account_id=each) for each in ("alice", "bob", "carol")]
        found = [(await self.earning.GetEarnings(request, metadata=METADATA)).purse for request in requests]
        return [(purse.tokens, purse.points) for purse in found]

    async def intact(self) -> bool:
        stream = self.wallet.stub.VerifyLedger(wallet_pb2.VerifyLedgerRequest(), metadata=METADATA)
        return bool([answer async for answer in stream][-1].result.intact)

    async def offers_of(self, account_id: str) -> list[str]:
        """The offers that an account's rows are about."""
        page = await self.wallet.call("ListTransactions", wallet_pb2.ListTransactionsRequest(account_id=account_id))
        return [row.offer_id for row in page.transactions if row.offer_id]

    async def rows(self, account_id: str, asset: str = "TOKEN") -> list[tuple[str, int, str, str, str]]:
        """Kind, change, counterparty, peer and key of an account's rows, oldest first, behind its beginning."""
        request = wallet_pb2.ListTransactionsRequest(account_id=account_id, asset=asset)
        found = reversed((await self.wallet.call("ListTransactions", request)).transactions)
        return [
            (
                wallet_pb2.TransactionKind.Name(row.kind).removeprefix("TRANSACTION_KIND_"),
                row.balance_change,
                row.counterparty,
                row.peer_account_id,
                row.key,
            )
            for row in found
            if row.kind not in {wallet_pb2.TRANSACTION_KIND_OPEN, wallet_pb2.TRANSACTION_KIND_GRANT}
        ]


@pytest.fixture
async def traders(database_url: str, tmp_path: Path) -> AsyncIterator[Traders]:
    async with (
        wallet_at(database_url, tmp_path) as (wallet, port),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        found = Traders(wallet, channel)
        for account_id in ("alice", "bob", "carol"):
            await wallet.call("OpenAccount", wallet_pb2.OpenAccountRequest(account_id=account_id))
        for account_id in ("bob", "carol"):
            won = earning_pb2.GrantAchievementRequest(account_id=account_id, achievement="profile_complete")
            await found.earning.GrantAchievement(won, metadata=METADATA)
        await wallet.call("Grant", wallet_pb2.GrantRequest(account_id="alice", grant_id="g", amount=100))
        yield found


async def test_an_offer_is_sold_to_two_and_every_history_tells_its_part(traders):
    made = await traders.offer("o", 7, 10, reference="cheap")
    first = await traders.take("bob", "t1", "o", 3)
    second = await traders.take("carol", "t2", "o", 4)

    assert (made.offer.state, made.offer.left, made.offer.reference, made.tokens) == (OPEN, 7, "cheap", 103)
    assert (first.offer.left, first.paid_points, first.tokens, first.offer.state) == (4, 30, 13, OPEN)
    assert (second.offer.state, second.offer.sold, second.offer.left) == (FILLED, 7, 0)
    assert await traders.purses() == [(103, 70), (13, 70), (14, 60)]
    assert await traders.rows("alice") == [("OFFER", -7, "@escrow", "", "o")]
    assert await traders.rows("alice", "POINT") == [
        ("SELL", 30, "@transfer", "bob", "t1"),
        ("SELL", 40, "@transfer", "carol", "t2"),
    ]
    assert await traders.rows("bob") == [("BUY", 3, "@escrow", "alice", "t1")]
    assert [await traders.offers_of(each) for each in ("alice", "bob", "carol")] == [["o"], ["o"], ["o"]]
    assert (await traders.rows("bob", "POINT"))[1:] == [("BUY", -30, "@transfer", "alice", "t1")]
    assert await traders.intact()


async def test_every_command_that_is_sent_again_is_answered_as_before_and_done_once(traders):
    offers = [await traders.offer("o", 5, 10) for _ in range(2)]
    takes = [await traders.take("bob", "t", "o", 2) for _ in range(2)]
    cancels = [await traders.cancel("o") for _ in range(2)]
    mismatch = await refused(traders.take("bob", "t", "o", 3))

    for first, again in (offers, takes, cancels):
        assert (first.replayed, again.replayed) == (False, True)
        again.replayed = False
        assert first == again
    assert mismatch[1:] == ("IDEMPOTENCY_MISMATCH", {"field": "tokens", "stored": "2", "received": "3"})
    assert await traders.purses() == [(108, 20), (12, 80), (10, 100)]
    assert await traders.intact()


async def test_of_a_crowd_that_wants_the_last_tokens_as_many_buy_as_there_are(traders):
    await traders.offer("o", 10, 10)
    wanted = [traders.take(("bob", "carol")[number % 2], f"t{number}", "o", 2) for number in range(12)]
    outcomes = await asyncio.gather(*wanted, return_exceptions=True)

    assert sum(not isinstance(outcome, Exception) for outcome in outcomes) == 5
    offer = await traders.get("o")
    assert (offer.state, offer.sold, offer.left) == (FILLED, 10, 0)
    assert sum(tokens for tokens, _ in await traders.purses()) == 130
    assert (await refused(traders.take("bob", "late", "o", 1)))[1] == "OFFER_ENDED"
    assert await traders.intact()


async def test_a_cancel_among_takes_returns_what_they_have_left(traders):
    await traders.offer("o", 10, 10)
    await asyncio.gather(
        *(traders.take(("bob", "carol")[number % 2], f"t{number}", "o", 1) for number in range(6)),
        traders.cancel("o"),
        *(traders.take(("bob", "carol")[number % 2], f"u{number}", "o", 1) for number in range(6)),
        return_exceptions=True,
    )

    offer, purses = await traders.get("o"), await traders.purses()
    assert (offer.state, offer.left, offer.sold + offer.returned) in {(CANCELLED, 0, 10), (FILLED, 0, 10)}
    assert purses[0] == (110 - offer.sold, 10 * offer.sold)
    assert await traders.intact()


async def test_trades_in_a_circle_at_once_neither_lock_up_nor_lose_a_token(traders):
    for seller in ("bob", "carol"):
        await traders.wallet.call(
            "Grant", wallet_pb2.GrantRequest(account_id=seller, grant_id=f"g-{seller}", amount=10)
        )
        await traders.offer("o", 10, 10, seller)
    circle = [
        traders.take(
            *(("bob", f"t{number}", "o", 1, "carol") if number % 2 else ("carol", f"t{number}", "o", 1, "bob"))
        )
        for number in range(20)
    ]
    assert all(answer.paid_points == 10 for answer in await asyncio.gather(*circle))
    assert await traders.purses() == [(110, 0), (20, 100), (20, 100)]
    assert await traders.intact()


async def test_what_can_be_bought_is_listed_cheapest_first_and_ones_own_offers_newest_first(traders):
    for offer_id, price in (("a", 30), ("b", 20), ("c", 30), ("d", 10)):
        await traders.offer(offer_id, 2, price)
    await traders.take("bob", "t", "b", 1)
    await traders.cancel("d")

    assert await traders.listed() == ["alice/b", "alice/a", "alice/c"]
    assert await traders.listed(page_size=1) == ["alice/b", "alice/a", "alice/c"]
    assert await traders.listed(price_points_max=20) == ["alice/b"]
    assert await traders.listed(account_id="alice", page_size=3) == ["alice/d", "alice/c", "alice/b", "alice/a"]
    assert await traders.listed(account_id="bob") == []
    await traders.wallet.call(
        "FreezeAccount", wallet_pb2.FreezeAccountRequest(account_id="alice", change_id="f"), METADATA
    )
    assert await traders.listed() == []


async def test_bad_input_names_its_field_and_a_stranger_acts_for_nobody(traders):
    stranger = bearer("bob", "wallet.trade wallet.read", audience="punchcard.wallet")
    create = market_pb2.CreateOfferRequest(account_id="alice", offer_id="o", tokens=1, price_points=10)
    own = market_pb2.ListOffersRequest(account_id="alice")

    assert (await refused(traders.offer("", 0, -1)))[1:] == ("INVALID_FIELD", {"field": "offer_id"})
    assert (await refused(traders.take("alice", "t", "o", 1)))[1:] == ("INVALID_FIELD", {"field": "seller_account_id"})
    assert (await refused(traders.stub.CreateOffer(create, metadata=stranger)))[1] == "ACCOUNT_NOT_FOUND"
    assert (await refused(traders.stub.ListOffers(own, metadata=stranger)))[1] == "ACCOUNT_NOT_FOUND"
    assert (await refused(traders.listed(page_token="x")))[1:] == ("INVALID_FIELD", {"field": "page_token"})
    assert (await refused(traders.get("none")))[1] == "OFFER_NOT_FOUND"
    assert (await refused(traders.listed(account_id="nobody")))[1] == "ACCOUNT_NOT_FOUND"
    # A token of one list is none of the other.
    for offer_id in ("a", "b"):
        await traders.offer(offer_id, 1, 10)
    page = await traders.stub.ListOffers(market_pb2.ListOffersRequest(page_size=1), metadata=METADATA)
    assert (await refused(traders.listed(account_id="alice", page_token=page.next_page_token)))[1] == "INVALID_FIELD"


async def test_an_account_sees_what_it_may_still_offer_and_give(traders):
    await traders.offer("o", 3, 10)
    earnings = await traders.earning.GetEarnings(earning_pb2.GetEarningsRequest(account_id="alice"), metadata=METADATA)

    usages = {usage.limited: (usage.used, usage.limit) for usage in earnings.usages}
    assert (usages["offer"], usages["gift"]) == ((3, RULES.offers_per_day), (0, RULES.gifts_per_day))
