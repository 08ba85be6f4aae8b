"""Whatever is claimed by many at once, through three wallets on one PostgreSQL or one on SQLite, is paid once."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from punchcard.wallet.v1 import (
    earning_pb2,
    earning_pb2_grpc,
    giving_pb2,
    giving_pb2_grpc,
    spending_pb2,
    spending_pb2_grpc,
    wallet_pb2,
    wallet_pb2_grpc,
)
from punchcard_client import reason_of
from tests.tokens import bearer
from tests.wallet_processes import wallet_processes
from tests.wallets import EVERY_SCOPE

SEED = 1
RIVALS = 100
ACCOUNTS = ("alice", "bob", "carol")
REPLICAS = {"sqlite": 1, "postgres": 3}
METADATA = bearer(
    "boss", f"{EVERY_SCOPE} wallet.earn wallet.give wallet.limit wallet.admin", audience="punchcard.wallet"
)
TIMEOUT_SECONDS = 60.0
WELCOME, DAILY, PER_DAY, POINTS, TOKENS_PER_DAY, FIRST_JOB, TESTER = 10, 2, 7, 50, 3, 4, 5
RULES = {
    "daily_bonus": DAILY,
    "streak_bonuses": {},
    "activities": {"share": {"points": POINTS, "per_day": PER_DAY}},
    "points_per_token": 10,
    "tokens_per_day": TOKENS_PER_DAY,
    "achievements": {
        "first_job": {"tokens": FIRST_JOB, "points": 0, "by_wallet": True},
        "tester": {"tokens": TESTER, "points": 0, "by_wallet": False},
    },
}


class Crowd:
    """Rivals that each call another replica than the one before."""

    def __init__(self, stubs: list[tuple[Any, ...]]) -> None:
        self._stubs = stubs
        self._calls = 0
        self._dice = random.Random(SEED)

    async def call(self, method: str, request: Any) -> Any:
        """The answer of a method of either service, or its reason for a refusal."""
        self._calls += 1
        stub = next(each for each in self._stubs[self._calls % len(self._stubs)] if hasattr(each, method))
        try:
            return await getattr(stub, method)(request, metadata=METADATA, timeout=TIMEOUT_SECONDS)
        except grpc.aio.AioRpcError as error:
            return reason_of(error)

    async def race(self, call: Callable[[str, int], Awaitable[Any]], rivals: int = RIVALS) -> dict[str, Counter[str]]:
        """So many calls for each account, all at once and in any order; what came of them: paid, replayed, a reason."""
        order = [(account_id, number) for account_id in ACCOUNTS for number in range(rivals)]
        self._dice.shuffle(order)
        answers = await asyncio.gather(*(call(account_id, number) for account_id, number in order))
        heard: dict[str, Counter[str]] = {account_id: Counter() for account_id in ACCOUNTS}
        for (account_id, _), answer in zip(order, answers, strict=True):
            heard[account_id][_word(answer)] += 1
        return heard

    async def tokens(self) -> set[int]:
        """What the accounts have."""
        requests = [wallet_pb2.GetAccountRequest(account_id=account_id) for account_id in ACCOUNTS]
        return {(await self.call("GetAccount", request)).account.tokens.balance for request in requests}

    async def intact(self) -> bool:
        """What a replica's audit says."""
        call = self._stubs[-1][0].VerifyLedger(wallet_pb2.VerifyLedgerRequest(), metadata=METADATA)
        return bool([message async for message in call][-1].result.intact)


def each(**words: int) -> dict[str, Counter[str]]:
    """That every account has heard the same."""
    return {account_id: Counter(words) for account_id in ACCOUNTS}


def _word(answer: Any) -> str:
    if hasattr(answer, "replayed"):
        return "replayed" if answer.replayed else "paid"
    return str(getattr(answer, "name", answer))


@pytest.fixture
async def crowd(database_url: str, tmp_path: Path) -> AsyncIterator[Crowd]:
    """A crowd before a wallet in which all accounts are open."""
    settings = {"WALLET_EARNING_RULES": json.dumps(RULES), "WALLET_WELCOME_BONUS": str(WELCOME)}
    replicas = REPLICAS[database_url.partition(":")[0]]
    with wallet_processes(database_url, tmp_path, replicas, settings) as processes:
        async with AsyncExitStack() as stack:
            stubs: list[tuple[Any, ...]] = []
            for process in processes:
                channel = await stack.enter_async_context(grpc.aio.insecure_channel(process.address))
                stubs.append(
                    (
                        wallet_pb2_grpc.WalletServiceStub(channel),
                        earning_pb2_grpc.EarningServiceStub(channel),
                        giving_pb2_grpc.GivingServiceStub(channel),
                        spending_pb2_grpc.SpendingServiceStub(channel),
                    )
                )
            crowd = Crowd(stubs)
            for account_id in ACCOUNTS:
                await crowd.call("OpenAccount", wallet_pb2.OpenAccountRequest(account_id=account_id))
            yield crowd


async def test_whatever_many_claim_at_once_is_paid_once(crowd: Crowd) -> None:
    """A bonus by a hundred keys, then by one; activities and conversions up to their day's limit; achievements."""

    async def claim(account_id: str, number: int) -> Any:
        request = earning_pb2.ClaimDailyBonusRequest(account_id=account_id, claim_id=f"{account_id}-{number}")
        return await crowd.call("ClaimDailyBonus", request)

    heard = await crowd.race(claim)
    assert heard == each(paid=1, DAILY_BONUS_CLAIMED=RIVALS - 1)
    # Whichever key was paid, each of them again gives nothing more.
    assert await crowd.race(claim) == each(replayed=1, DAILY_BONUS_CLAIMED=RIVALS - 1)
    assert await crowd.tokens() == {WELCOME + DAILY}

    async def share(account_id: str, number: int) -> Any:
        activity_id = f"{account_id}-share-{number}"
        request = earning_pb2.RecordActivityRequest(account_id=account_id, activity="share", activity_id=activity_id)
        return await crowd.call("RecordActivity", request)

    heard = await crowd.race(share)
    assert heard == each(paid=PER_DAY, LIMIT_REACHED=RIVALS - PER_DAY)

    async def convert(account_id: str, number: int) -> Any:
        conversion_id = f"{account_id}-convert-{number}"
        request = earning_pb2.ConvertPointsRequest(account_id=account_id, conversion_id=conversion_id, tokens=1)
        return await crowd.call("ConvertPoints", request)

    heard = await crowd.race(convert)
    assert heard == each(paid=TOKENS_PER_DAY, LIMIT_REACHED=RIVALS - TOKENS_PER_DAY)

    async def test(account_id: str, _: int) -> Any:
        request = earning_pb2.GrantAchievementRequest(account_id=account_id, achievement="tester")
        return await crowd.call("GrantAchievement", request)

    assert await crowd.race(test) == each(paid=1, replayed=RIVALS - 1)
    assert await crowd.tokens() == {WELCOME + DAILY + TOKENS_PER_DAY + TESTER}
    assert await crowd.intact()


async def test_one_claim_that_is_sent_a_hundred_times_is_paid_once(crowd: Crowd) -> None:
    """All but one of the calls are told that it was paid before, and by what."""

    async def claim(account_id: str, _: int) -> Any:
        return await crowd.call(
            "ClaimDailyBonus", earning_pb2.ClaimDailyBonusRequest(account_id=account_id, claim_id=f"{account_id}-today")
        )

    assert await crowd.race(claim) == each(paid=1, replayed=RIVALS - 1)
    assert await crowd.tokens() == {WELCOME + DAILY}


async def test_of_many_first_jobs_at_once_one_is_the_first(crowd: Crowd) -> None:
    """Ten holds of an account are committed at the same time, through all replicas."""
    jobs = WELCOME

    async def hold(account_id: str, number: int) -> Any:
        request = wallet_pb2.ReserveRequest(
            account_id=account_id,
            reservation_id=f"{account_id}-{number}",
            amount=1,
            hold_duration=Duration(seconds=600),
        )
        return await crowd.call("Reserve", request)

    async def commit(account_id: str, number: int) -> Any:
        return await crowd.call("Commit", wallet_pb2.CommitRequest(reservation_id=f"{account_id}-{number}"))

    assert await crowd.race(hold, jobs) == each(paid=jobs)
    assert await crowd.race(commit, jobs) == each(paid=jobs)
    assert await crowd.tokens() == {FIRST_JOB}
    assert await crowd.intact()


async def test_a_spending_limit_is_kept_whoever_asks_and_wherever(crowd: Crowd) -> None:
    """Of a hundred holds at once through all replicas as many are granted as the limit of the day allows."""
    limit = WELCOME - 3

    async def cap(account_id: str, _: int) -> Any:
        request = spending_pb2.SetSpendingLimitsRequest(
            account_id=account_id, change_id=f"{account_id}-cap", day_limit=limit
        )
        return await crowd.call("SetSpendingLimits", request)

    assert await crowd.race(cap, 10) == each(paid=1, replayed=9)

    async def hold(account_id: str, number: int) -> Any:
        request = wallet_pb2.ReserveRequest(
            account_id=account_id,
            reservation_id=f"{account_id}-{number}",
            amount=1,
            hold_duration=Duration(seconds=600),
        )
        return await crowd.call("Reserve", request)

    assert await crowd.race(hold) == each(paid=limit, LIMIT_REACHED=RIVALS - limit)
    assert await crowd.intact()


async def test_one_gift_that_is_sent_a_hundred_times_is_given_once(crowd: Crowd) -> None:
    """In a ring: each account gives to the next, so that all have in the end what they had."""
    for account_id in ACCOUNTS:
        grant = wallet_pb2.GrantRequest(account_id=account_id, grant_id=account_id, amount=5)
        await crowd.call("Grant", grant)

    async def give(account_id: str, _: int) -> Any:
        receiver = ACCOUNTS[(ACCOUNTS.index(account_id) + 1) % len(ACCOUNTS)]
        request = giving_pb2.GiveRequest(
            account_id=account_id, receiver_account_id=receiver, gift_id=f"{account_id}-gift", amount=5
        )
        return await crowd.call("Give", request)

    assert await crowd.race(give) == each(paid=1, replayed=RIVALS - 1)
    assert await crowd.tokens() == {WELCOME + 5}
    assert await crowd.intact()
