"""SpendingService through a whole wallet, on both databases."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from punchcard.wallet.v1 import spending_pb2, spending_pb2_grpc, wallet_pb2
from tests.tokens import bearer
from tests.wallets import EVERY_SCOPE, WalletClient, refused, wallet_at

ADMIN = bearer("boss", f"{EVERY_SCOPE} wallet.limit wallet.admin", audience="punchcard.wallet")
ALICE = bearer("alice", "wallet.limit wallet.read", audience="punchcard.wallet")


class Spenders:
    """alice, who has 100 tokens; an administrator, and she herself."""

    def __init__(self, wallet: WalletClient, channel: grpc.aio.Channel) -> None:
        self.wallet = wallet
        self.stub: Any = spending_pb2_grpc.SpendingServiceStub(channel)

    async def limit(self, change_id: str, metadata: Any = ADMIN, account_id: str = "alice", **limits: Any) -> Any:
        request = spending_pb2.SetSpendingLimitsRequest(account_id=account_id, change_id=change_id, **limits)
        return await self.stub.SetSpendingLimits(request, metadata=metadata)

    async def standing(self, metadata: Any = ADMIN, account_id: str = "alice") -> Any:
        request = spending_pb2.GetSpendingLimitsRequest(account_id=account_id)
        return await self.stub.GetSpendingLimits(request, metadata=metadata)

    async def reserve(self, key: str, amount: int) -> Any:
        return await self.wallet.call("Reserve", reserve_request(key, amount))

    async def intact(self) -> bool:
        stream = self.wallet.stub.VerifyLedger(wallet_pb2.VerifyLedgerRequest(), metadata=ADMIN)
        return bool([answer async for answer in stream][-1].result.intact)


def reserve_request(key: str, amount: int) -> wallet_pb2.ReserveRequest:
    return wallet_pb2.ReserveRequest(
        account_id="alice", reservation_id=key, amount=amount, hold_duration=Duration(seconds=600)
    )


@pytest.fixture
async def spenders(database_url: str, tmp_path: Path) -> AsyncIterator[Spenders]:
    async with (
        wallet_at(database_url, tmp_path) as (wallet, port),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        await wallet.call("OpenAccount", wallet_pb2.OpenAccountRequest(account_id="alice"))
        await wallet.call("Grant", wallet_pb2.GrantRequest(account_id="alice", grant_id="g", amount=90))
        yield Spenders(wallet, channel)


async def test_a_limit_stops_what_would_pass_it_and_says_when_it_begins_anew(spenders):
    await spenders.reserve("before", 4)
    await spenders.limit("l1", day_limit=10, month_limit=50, reference="pocket money")
    refusal = await refused(spenders.reserve("r", 7))
    preview = wallet_pb2.PreviewReserveRequest(reserve=reserve_request("r", 7))
    item = (
        await spenders.wallet.call("BatchReserve", wallet_pb2.BatchReserveRequest(items=[reserve_request("r", 7)]))
    ).results[0]

    assert refusal[:2] == ("FAILED_PRECONDITION", "LIMIT_REACHED")
    assert {name: refusal[2][name] for name in ("limited", "used", "limit", "requested")} == {
        "limited": "spend",
        "used": "4",
        "limit": "10",
        "requested": "7",
    }
    assert "resets_at" in refusal[2]
    assert (await refused(spenders.wallet.call("PreviewReserve", preview)))[1] == "LIMIT_REACHED"
    assert dict(item.refusal.metadata) == refusal[2]
    standing = await spenders.standing()
    assert (standing.day.used, standing.day.remaining, standing.month.used, standing.month.limit) == (4, 6, 4, 50)
    assert standing.day.resets_at.ToSeconds() <= standing.month.resets_at.ToSeconds()
    page = await spenders.wallet.call("ListTransactions", wallet_pb2.ListTransactionsRequest(account_id="alice"))
    assert (page.transactions[0].kind, page.transactions[0].reference) == (
        wallet_pb2.TRANSACTION_KIND_LIMIT,
        "pocket money",
    )
    assert await spenders.intact()


async def test_of_many_holds_at_once_as_many_are_granted_as_the_limit_allows(spenders):
    await spenders.limit("l1", day_limit=10)
    holds = [spenders.reserve(f"r{number}", 3) for number in range(12)]
    outcomes = await asyncio.gather(*holds, return_exceptions=True)

    assert sum(not isinstance(outcome, Exception) for outcome in outcomes) == 3
    await spenders.wallet.call(
        "Refund",
        wallet_pb2.RefundRequest(
            reservation_id=next(
                f"r{number}" for number, outcome in enumerate(outcomes) if not isinstance(outcome, Exception)
            )
        ),
    )
    await spenders.reserve("again", 4)
    assert (await spenders.standing()).day.used == 10
    assert await spenders.intact()


async def test_who_is_capped_may_only_lower_and_a_change_is_made_once(spenders):
    first = await spenders.limit("l1", ALICE, day_limit=10)
    again = await spenders.limit("l1", ALICE, day_limit=10)
    raised = await refused(spenders.limit("l2", ALICE, day_limit=11))
    removed = await refused(spenders.limit("l3", ALICE))
    other = await refused(spenders.limit("l1", ALICE, day_limit=9))

    assert (first.replayed, again.replayed, first.limits.day_limit) == (False, True, 10)
    assert raised[:2] == ("PERMISSION_DENIED", "LIMIT_RAISE_NOT_ALLOWED")
    assert removed[2] == {"account_id": "alice", "field": "day_limit", "requested": "(absent)", "current": "10"}
    assert other[1:] == ("IDEMPOTENCY_MISMATCH", {"field": "day_limit", "stored": "10", "received": "9"})
    await spenders.limit("l4", day_limit=20)
    await spenders.reserve("r", 15)
    await spenders.limit("l5")
    standing = await spenders.standing(ALICE)
    assert (standing.HasField("day"), standing.limits.HasField("day_limit")) == (False, False)
    await spenders.reserve("r2", 50)
    assert await spenders.intact()


async def test_bad_input_names_its_field_and_a_stranger_acts_for_nobody(spenders):
    stranger = bearer("bob", "wallet.limit wallet.read", audience="punchcard.wallet")

    assert (await refused(spenders.limit("", day_limit=-1)))[1:] == ("INVALID_FIELD", {"field": "change_id"})
    assert (await refused(spenders.limit("l", stranger, day_limit=1)))[1] == "ACCOUNT_NOT_FOUND"
    assert (await refused(spenders.standing(stranger)))[1] == "ACCOUNT_NOT_FOUND"
    assert (await refused(spenders.standing(account_id="nobody")))[1] == "ACCOUNT_NOT_FOUND"
    assert (await refused(spenders.limit("l", account_id="nobody", day_limit=1)))[1] == "ACCOUNT_NOT_FOUND"
