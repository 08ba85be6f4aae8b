"""Wallets are killed with SIGKILL in the middle of trades, again and again: the escrow and all balances stay constant.

Traders keep a book of what they heard. After each kill the database is audited while nobody serves it; then the wallets
are started on it, and what had no answer is sent again. Other moments: PROOF_SEED=7 pytest <this file>.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest

from punchcard.wallet.v1 import earning_pb2, earning_pb2_grpc, market_pb2, market_pb2_grpc, wallet_pb2, wallet_pb2_grpc
from punchcard_client import reason_of
from tests.tokens import bearer
from tests.wallet_audit import Ledger, audited, sampled, settled
from tests.wallet_load import SEED, replayable
from tests.wallet_processes import WalletProcess, wallet_processes
from tests.wallets import EVERY_SCOPE

METADATA = bearer("boss", f"{EVERY_SCOPE} wallet.trade wallet.admin", audience="punchcard.wallet")
ACCOUNTS = [f"trader-{number}" for number in range(6)]
REPLICAS = {"sqlite": 1, "postgres": 3}
TRADERS = 24
ANSWERS_MAX = 250
"""A kill comes behind so many answers at most."""
TOKENS, POINTS = 500, 5_000
TIMEOUT_SECONDS = 60.0
RULES = {
    "achievements": {"rich": {"tokens": 0, "points": POINTS, "by_wallet": False}},
    "offers_per_day": 10**6,
    "offer_price_min": 1,
    "open_offers": 100,
}
SETTINGS = {"WALLET_EARNING_RULES": json.dumps(RULES), "WALLET_WELCOME_BONUS": "0"}
DONE, REPLAYED, LOST = "done", "replayed", "lost"
REFUSALS = {
    "OFFER_NOT_FOUND",
    "OFFER_ENDED",
    "OFFER_EXCEEDED",
    "OFFER_LIMIT",
    "INSUFFICIENT_FUNDS",
    "INSUFFICIENT_POINTS",
}


class Act(NamedTuple):
    """One call: the method and its request."""

    method: str
    request: Any

    @property
    def key(self) -> tuple[str, str, str]:
        """Where its effect is to be found: the table, and the row's key."""
        request = self.request
        if self.method == "TakeOffer":
            return ("takes", "boss", request.take_id)
        return ("offers", request.account_id, request.offer_id)


class Trader:
    """Makes up calls; several traders want the same offers."""

    def __init__(self, number: int, offers: list[tuple[str, str]]) -> None:
        self._dice = random.Random(f"{SEED}/{number}")
        self._name = f"trader{number}"
        self._offers = offers
        """All that anybody has made, also those that have ended."""
        self._made = 0
        self.heard: list[tuple[Act, str]] = []

    def act(self) -> Act:
        """The next call."""
        self._made += 1
        key = f"{self._name}-{self._made}"
        kind = self._dice.random()
        if kind < 0.25 or not self._offers:
            seller = self._dice.choice(ACCOUNTS)
            self._offers.append((seller, key))
            tokens, price = self._dice.randint(1, 12), self._dice.randint(1, 9)
            request = market_pb2.CreateOfferRequest(account_id=seller, offer_id=key, tokens=tokens, price_points=price)
            return Act("CreateOffer", request)
        seller, offer_id = self._dice.choice(self._offers[-20:])
        if kind < 0.4:
            return Act("CancelOffer", market_pb2.CancelOfferRequest(account_id=seller, offer_id=offer_id))
        buyer = self._dice.choice([each for each in ACCOUNTS if each != seller])
        tokens = self._dice.randint(1, 5)
        return Act(
            "TakeOffer",
            market_pb2.TakeOfferRequest(
                account_id=buyer, take_id=key, seller_account_id=seller, offer_id=offer_id, tokens=tokens
            ),
        )


class Market:
    """The stubs of all replicas."""

    def __init__(self, channels: list[grpc.aio.Channel]) -> None:
        self._stubs: list[Any] = [market_pb2_grpc.MarketServiceStub(channel) for channel in channels]
        self.wallet: Any = wallet_pb2_grpc.WalletServiceStub(channels[0])
        self.earning: Any = earning_pb2_grpc.EarningServiceStub(channels[0])

    async def do(self, act: Act, dice: random.Random) -> str:
        """What came of a call at any of the replicas: done, replayed, lost or the reason of its refusal."""
        stub = dice.choice(self._stubs)
        try:
            answer = await getattr(stub, act.method)(act.request, metadata=METADATA, timeout=TIMEOUT_SECONDS)
        except grpc.aio.AioRpcError as error:
            reason = reason_of(error)
            return LOST if reason is None or reason.name == "STORE_UNAVAILABLE" else reason.name
        return REPLAYED if answer.replayed else DONE


@asynccontextmanager
async def market_at(processes: list[WalletProcess]) -> AsyncIterator[Market]:
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(process.address, options=options))
            for process in processes
        ]
        yield Market(channels)


@pytest.fixture
def processes(database_url: str, tmp_path: Path) -> Iterator[list[WalletProcess]]:
    with wallet_processes(database_url, tmp_path, REPLICAS[database_url.partition(":")[0]], SETTINGS) as found:
        yield found


async def endow(market: Market) -> None:
    """Gives everybody tokens that were granted, and points."""
    for account_id in ACCOUNTS:
        await market.wallet.OpenAccount(wallet_pb2.OpenAccountRequest(account_id=account_id), metadata=METADATA)
        grant = wallet_pb2.GrantRequest(account_id=account_id, grant_id=account_id, amount=TOKENS)
        await market.wallet.Grant(grant, metadata=METADATA)
        rich = earning_pb2.GrantAchievementRequest(account_id=account_id, achievement="rich")
        await market.earning.GrantAchievement(rich, metadata=METADATA)


@pytest.mark.parametrize("rounds", [pytest.param(3, id="3"), pytest.param(50, id="50", marks=pytest.mark.slow)])
async def test_whatever_is_killed_escrow_and_balances_stay_constant_and_each_offer_ends_once(
    database_url: str, processes: list[WalletProcess], rounds: int, request: pytest.FixtureRequest
) -> None:
    """What was acknowledged is in the tables, what was not is whole or not there, and a retry finds out which."""
    moments = random.Random(f"moments/{SEED}")
    offers: list[tuple[str, str]] = []
    traders = [Trader(number, offers) for number in range(TRADERS)]
    with replayable(request):
        async with market_at(processes) as market:
            await endow(market)
        for _ in range(rounds):
            victim = moments.choice(processes)
            async with sampled(database_url):
                lost = await trade_until_killed(processes, victim, traders, moments)
            await settled(database_url)
            ledger = await audited(database_url)
            check_constant(ledger)
            check_kept(ledger, traders)
            victim.launch()
            await asyncio.to_thread(victim.wait_ready)
            await retry(processes, lost, ledger, moments)
        await end_all(processes, offers, moments)

    for process in processes:
        await asyncio.to_thread(process.stop)
        assert "masked_error" not in process.log()
    ledger = await audited(database_url)
    check_constant(ledger)
    check_kept(ledger, traders)
    assert {row["state"] for row in ledger.tables["offers"]} == {2, 3}
    assert ("@escrow", 0) in {(row["account_id"], row["balance"]) for row in ledger.tables["system_accounts"]}
    heard = Counter((act.method, word) for trader in traders for act, word in trader.heard)
    assert min(heard["CreateOffer", DONE], heard["TakeOffer", DONE], heard["CancelOffer", DONE]) > 0, heard


async def trade_until_killed(
    processes: list[WalletProcess], victim: WalletProcess, traders: list[Trader], moments: random.Random
) -> list[tuple[Trader, Act]]:
    """Lets all trade until one wallet is killed behind so many answers; gives the calls that nobody answered."""
    answers = asyncio.Semaphore(0)
    enough, over = moments.randint(1, ANSWERS_MAX), asyncio.Event()
    lost: list[tuple[Trader, Act]] = []

    async def trade(trader: Trader, market: Market) -> None:
        while not over.is_set():
            act = trader.act()
            word = await market.do(act, moments)
            if word == LOST:
                lost.append((trader, act))
                return
            trader.heard.append((act, word))
            answers.release()

    async with market_at(processes) as market, asyncio.TaskGroup() as group:
        for trader in traders:
            group.create_task(trade(trader, market))
        for _ in range(enough):
            await answers.acquire()
        await asyncio.to_thread(victim.kill)
        over.set()
    return lost


async def retry(
    processes: list[WalletProcess], lost: list[tuple[Trader, Act]], ledger: Ledger, moments: random.Random
) -> None:
    """Sends again what had no answer: what the tables had is found done, everything else is decided now."""
    had = keys_of(ledger)
    async with market_at(processes) as market:
        for trader, act in lost:
            word = await market.do(act, moments)
            assert word in {DONE, REPLAYED} | REFUSALS, (act, word)
            if act.method != "CancelOffer":
                assert (word == REPLAYED) == (act.key in had), (act, word)
            trader.heard.append((act, word))


async def end_all(processes: list[WalletProcess], offers: list[tuple[str, str]], moments: random.Random) -> None:
    """Cancels all that is open, twice: the second time there is nothing left to do."""
    async with market_at(processes) as market:
        acts = [Act("CancelOffer", market_pb2.CancelOfferRequest(account_id=a, offer_id=o)) for a, o in offers]
        words = await asyncio.gather(*(market.do(act, moments) for act in acts))
        again = await asyncio.gather(*(market.do(act, moments) for act in acts))
    assert set(words) <= {DONE, REPLAYED, "OFFER_ENDED", "OFFER_NOT_FOUND"}
    assert again == [REPLAYED if word == DONE else word for word in words]


def keys_of(ledger: Ledger) -> set[tuple[str, str, str]]:
    tables = ledger.tables
    return {("takes", row["created_by"], row["take_id"]) for row in tables["takes"]} | {
        ("offers", row["account_id"], row["offer_id"]) for row in tables["offers"]
    }


def check_constant(ledger: Ledger) -> None:
    """Escrow and balances come to what was granted, points to what was earned; an offer has one end in the journal."""
    sums: Counter[str] = Counter()
    for row in ledger.tables["accounts"]:
        sums[row["asset"]] += row["balance"]
    escrow = sum(row["balance"] for row in ledger.tables["system_accounts"] if row["account_id"] == "@escrow")
    assert (sums["TOKEN"] + escrow, sums["POINT"]) == (TOKENS * len(ACCOUNTS), POINTS * len(ACCOUNTS))
    ends = Counter((entry.account_id, entry.key) for entry in ledger.entries if entry.kind == "unoffer")
    sold: Counter[tuple[str, str]] = Counter()
    for entry in ledger.entries:
        if entry.kind == "sell":
            sold[entry.account_id, entry.facts["offer"]] += entry.facts["tokens"]
    for row in ledger.tables["offers"]:
        key = (row["account_id"], row["offer_id"])
        filled = sold[key] == row["tokens"]
        assert ends[key] + filled == (row["state"] != 1), row


def check_kept(ledger: Ledger, traders: list[Trader]) -> None:
    """All that was said to be done is there, and nothing that was only refused."""
    had = keys_of(ledger)
    offers = {(row["account_id"], row["offer_id"]): row for row in ledger.tables["offers"]}
    for trader in traders:
        for act, word in trader.heard:
            if word in {DONE, REPLAYED}:
                assert act.key in had, (act, word)
                if act.method == "CancelOffer":
                    assert offers[act.key[1:]]["state"] == 3, act
            elif act.method == "TakeOffer":
                assert act.key not in had, (act, word)
