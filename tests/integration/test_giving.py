"""GivingService through a whole wallet, on both databases."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from punchcard.wallet.v1 import giving_pb2, giving_pb2_grpc, wallet_pb2
from services.wallet.economy import EarningRules
from tests.tokens import bearer
from tests.wallets import EVERY_SCOPE, WalletClient, refused, wallet_at

SCOPES = f"{EVERY_SCOPE} wallet.give wallet.admin"
RULES = EarningRules()


class Givers:
    """A caller who may act for everybody; alice has 100 tokens beside her welcome bonus, bob has his alone."""

    def __init__(self, wallet: WalletClient, channel: grpc.aio.Channel) -> None:
        self.wallet = wallet
        self._stub: Any = giving_pb2_grpc.GivingServiceStub(channel)

    async def give(self, giver: str, receiver: str, gift_id: str, amount: int, reference: str = "") -> Any:
        request = giving_pb2.GiveRequest(
            account_id=giver, receiver_account_id=receiver, gift_id=gift_id, amount=amount, reference=reference
        )
        return await self._stub.Give(request, metadata=bearer("boss", SCOPES, audience="punchcard.wallet"))

    async def intact(self) -> bool:
        metadata = bearer("boss", SCOPES, audience="punchcard.wallet")
        stream = self.wallet.stub.VerifyLedger(wallet_pb2.VerifyLedgerRequest(), metadata=metadata)
        return bool([answer async for answer in stream][-1].result.intact)


@pytest.fixture
async def givers(database_url: str, tmp_path: Path) -> AsyncIterator[Givers]:
    async with (
        wallet_at(database_url, tmp_path) as (wallet, port),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        for account_id in ("alice", "bob"):
            await wallet.call("OpenAccount", wallet_pb2.OpenAccountRequest(account_id=account_id))
        await wallet.call("Grant", wallet_pb2.GrantRequest(account_id="alice", grant_id="g", amount=100))
        yield Givers(wallet, channel)


async def test_a_gift_moves_tokens_once_and_both_histories_name_the_other(givers):
    first = await givers.give("alice", "bob", "g1", 7, "thanks")
    again = await givers.give("alice", "bob", "g1", 7, "thanks")
    other = await refused(givers.give("alice", "bob", "g1", 8, "thanks"))

    assert (first.tokens, first.replayed, again.tokens, again.replayed) == (103, False, 103, True)
    assert other[1:] == ("IDEMPOTENCY_MISMATCH", {"field": "amount", "stored": "7", "received": "8"})
    assert [await givers.wallet.balance(each) for each in ("alice", "bob")] == [(103, 0), (17, 0)]
    rows = [
        (
            await givers.wallet.call("ListTransactions", wallet_pb2.ListTransactionsRequest(account_id=each))
        ).transactions[0]
        for each in ("alice", "bob")
    ]
    assert [(row.kind, row.peer_account_id, row.balance_change) for row in rows] == [
        (wallet_pb2.TRANSACTION_KIND_GIVE, "bob", -7),
        (wallet_pb2.TRANSACTION_KIND_RECEIVE, "alice", 7),
    ]
    assert await givers.intact()


async def test_a_young_account_keeps_its_welcome_bonus(givers):
    refusal = await refused(givers.give("bob", "alice", "g1", 1))
    await givers.give("alice", "bob", "g2", 4)

    assert refusal[:2] == ("FAILED_PRECONDITION", "WELCOME_LOCKED")
    assert {name: refusal[2][name] for name in ("requested", "available", "locked")} == {
        "requested": "1",
        "available": "0",
        "locked": "10",
    }
    await givers.give("bob", "alice", "g3", 4)
    assert (await refused(givers.give("bob", "alice", "g4", 1)))[1] == "WELCOME_LOCKED"


async def test_gifts_have_a_limit_a_day_also_when_they_come_at_once(givers):
    amount = RULES.gifts_per_day // 4
    gifts = [givers.give("alice", "bob", f"g{number}", amount) for number in range(10)]
    outcomes = await asyncio.gather(*gifts, return_exceptions=True)

    assert sum(not isinstance(outcome, Exception) for outcome in outcomes) == 4
    assert (await refused(givers.give("alice", "bob", "more", 1)))[1] == "LIMIT_REACHED"
    assert await givers.intact()


async def test_tokens_that_expire_can_not_be_given_nor_what_is_not_there(givers):
    grant = wallet_pb2.GrantRequest(account_id="bob", grant_id="promo", amount=50)
    grant.lifetime.seconds = 3600
    await givers.wallet.call("Grant", grant)

    assert (await refused(givers.give("bob", "alice", "g1", 15)))[1] == "INSUFFICIENT_FUNDS"


async def test_a_receiver_must_be_there_and_be_somebody_else(givers):
    assert await refused(givers.give("alice", "nobody", "g1", 1)) == (
        "NOT_FOUND",
        "ACCOUNT_NOT_FOUND",
        {"account_id": "nobody"},
    )
    assert (await refused(givers.give("alice", "alice", "g2", 1)))[1] == "INVALID_FIELD"


async def test_gifts_in_a_circle_at_once_neither_lock_up_nor_lose_a_token(givers):
    await givers.wallet.call("Grant", wallet_pb2.GrantRequest(account_id="bob", grant_id="g-bob", amount=100))
    circle = [
        givers.give(*(("alice", "bob") if number % 2 else ("bob", "alice")), f"c{number}", 1) for number in range(30)
    ]
    await asyncio.gather(*circle)

    balances = [await givers.wallet.balance(each) for each in ("alice", "bob")]
    assert sum(balance for balance, _ in balances) == 220
    assert await givers.intact()
