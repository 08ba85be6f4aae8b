"""Whatever fails at whichever hop to the database, a command that is sent again has one answer and one effect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import pytest

from punchcard.wallet.v1 import earning_pb2, error_reason_pb2, giving_pb2, market_pb2
from punchcard.wallet.v1 import wallet_pb2 as pb
from services.chassis import journal
from services.chassis.auth import Principal, set_principal
from services.chassis.database import Database, Transaction
from services.chassis.errors import StoreUnavailable
from services.chassis.group_commit import ATTEMPTS_MAX, GroupCommitter
from services.wallet.commands import Command, Outcome
from services.wallet.economy import Achievement, EarningRules, Rules, write_rules
from services.wallet.grpc_api import SCOPES, WalletApi
from services.wallet.grpc_earning import EarningApi
from services.wallet.grpc_giving import GivingApi
from services.wallet.grpc_market import MarketApi
from services.wallet.store import Store
from services.wallet.store_rows import entry_of
from tests.databases import opened
from tests.wallet_scenarios import Scenario, is_replayed, said, scenarios

WALLET = Path("services/wallet")
CALLER = Principal("batcher", frozenset({*SCOPES.values(), "act_for:*"}), float("inf"))
RULES = Rules(earning=EarningRules(achievements={"tester": Achievement(tokens=4, points=0, by_wallet=False)}))
LONGER_THAN_ANY_HOLD_US = 3_600_000_000

Go = Callable[[], Awaitable[Any]]
Fault = Callable[["Hops", "Transaction | None", Go], Awaitable[Any]]


async def nothing() -> None:
    """No hop: the moment before a connection is taken, and the one after a transaction has ended durably."""


class Hops:
    """A database that counts the hops of its transactions, and at one of them, once, lets something happen."""

    def __init__(self, database: Database, url: str, fault: Fault) -> None:
        self._database = database
        self._fault = fault
        self.url = url
        self.count = 0
        self.fault_at: int | None = None
        self.ahead_us = 0
        self.caller: asyncio.Task[Any] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    def let_happen_at(self, hop: int) -> None:
        """Counts from here, and lets the fault happen at this hop, from 1."""
        self.count, self.fault_at = 0, hop

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """A transaction each of whose hops comes past here, and whose clock can be ahead."""
        await self._hop(None, nothing)
        async with self._database.transaction() as tx:
            door = "call" if self._database.dialect == "postgres" else "_call"
            go, now_us = getattr(tx, door), tx.now_us

            async def hop(*arguments: Any) -> Any:
                return await self._hop(tx, partial(go, *arguments))

            async def now_us_ahead() -> int:
                return await now_us() + self.ahead_us

            setattr(tx, door, hop)
            tx.now_us = now_us_ahead  # type: ignore[method-assign]
            yield tx
        await self._hop(None, nothing)

    async def _hop(self, tx: Transaction | None, go: Go) -> Any:
        self.count += 1
        if self.count != self.fault_at:
            return await go()
        self.fault_at = None
        return await self._fault(self, tx, go)


async def lose_the_database(_hops: Hops, _tx: Transaction | None, _go: Go) -> None:
    """It does not answer."""
    raise StoreUnavailable("lost by the test")


async def cancel_underneath(_hops: Hops, _tx: Transaction | None, _go: Go) -> None:
    """A driver's or a pool's own task is cancelled."""
    raise asyncio.CancelledError


async def tear(_hops: Hops, _tx: Transaction | None, go: Go) -> Any:
    """The hop is on its way when it is cancelled: perhaps it is done, perhaps not, also when it is the COMMIT."""
    way = asyncio.ensure_future(go())
    await asyncio.sleep(0)
    way.cancel()
    return await way


async def cancel_the_caller(hops: Hops, _tx: Transaction | None, go: Go) -> Any:
    """The client's deadline passes, or its connection is lost."""
    assert hops.caller is not None
    hops.caller.cancel()
    return await go()


async def kill_the_connection(hops: Hops, tx: Any, go: Go) -> Any:
    """PostgreSQL ends this connection, as it does when it restarts."""
    if tx is not None:
        pid = tx._connection.get_server_pid()
        admin = await asyncpg.connect(hops.url)
        await admin.execute("SELECT pg_terminate_backend($1, 5000)", pid)
        await admin.close()
    return await go()


class World(NamedTuple):
    """The wallet from its handlers down to its database."""

    apis: tuple[Any, ...]
    hops: Hops
    database: Database

    async def send(self, method: str, request: Any) -> Any:
        """The answer of a handler, or what it raised."""
        api = next(each for each in self.apis if method in type(each).__dict__)
        caller = asyncio.create_task(getattr(api, method)(request, None))
        self.hops.caller = caller
        await asyncio.wait([caller])
        return asyncio.CancelledError() if caller.cancelled() else caller.exception() or caller.result()

    async def prepare(self, scenario: Scenario) -> int:
        """Makes the command possible; gives the length of the journal."""
        for method, request in scenario.before:
            prepared: Any = await self.send(method, request)
            assert not isinstance(prepared, BaseException), (scenario.name, prepared)
        if scenario.name in OVERDUE:
            self.hops.ahead_us += LONGER_THAN_ANY_HOLD_US
        self.hops.count = 0
        async with self.database.reading() as tx:
            return (await journal.read_head(tx)).revision

    async def effects(self, revision: int) -> list[tuple[str, int, int]]:
        """What was written behind a revision: kinds, and how they moved balance and hold."""
        async with self.database.reading() as tx:
            entries = [entry_of(row) for row in await journal.read_after(tx, revision, 100)]
        return [(entry.kind, entry.balance_change, entry.held_change) for entry in entries]


@asynccontextmanager
async def world(url: str, fault: Fault, attempts_max: int) -> AsyncIterator[World]:
    """A wallet in which the fault can be let happen."""
    set_principal(CALLER)
    async with opened(url, WALLET) as database:
        hops: Any = Hops(database, url, fault)
        store = Store(hops, RULES)
        await store.open("test")
        committer: GroupCommitter[Command, Outcome] = GroupCommitter(
            store.run_group, attempts_max=attempts_max, sleep=lambda _: nothing()
        )
        committer.start()
        # No command asks the audit or the watches.
        unasked: Any = None
        wallet = WalletApi(store, committer, unasked, unasked, 0)
        others = (EarningApi(committer, unasked), GivingApi(committer), MarketApi(committer, unasked))
        yield World((wallet, *others), hops, database)
        await committer.close()


def overdue(prefix: str) -> list[Scenario]:
    """Commands that find holds whose time has passed, and expire them first."""

    def held(name: str) -> tuple[str, Any]:
        request = pb.ReserveRequest(account_id=f"{prefix}-{name}", reservation_id=f"{prefix}-{name}-1", amount=4)
        request.hold_duration.FromSeconds(60)
        return "Reserve", request

    again = pb.ReserveRequest(account_id=f"{prefix}-swept", reservation_id=f"{prefix}-swept-2", amount=10)
    again.hold_duration.FromSeconds(2 * LONGER_THAN_ANY_HOLD_US // 1_000_000)
    late = pb.CommitRequest(reservation_id=f"{prefix}-late-1", allow_late=True)
    return [
        Scenario("reserve after a sweep", [held("swept")], "Reserve", again, 2),
        Scenario("late commit", [held("late")], "Commit", late, 2),
    ]


def earning_scenarios(prefix: str) -> list[Scenario]:
    """Commands that earn, by rules of which each is the same whenever it is put."""

    def key(name: str) -> dict[str, str]:
        return {"account_id": f"{prefix}-{name}"}

    def opened(name: str) -> tuple[str, Any]:
        return "OpenAccount", pb.OpenAccountRequest(**key(name))

    def invited(name: str) -> earning_pb2.RecordActivityRequest:
        return earning_pb2.RecordActivityRequest(**key(name), activity="invite", activity_id=f"{prefix}-{name}")

    claim = earning_pb2.ClaimDailyBonusRequest(**key("claim"), claim_id=f"{prefix}-claim")
    convert = earning_pb2.ConvertPointsRequest(**key("convert"), conversion_id=f"{prefix}-convert-it", tokens=1)
    achieve = earning_pb2.GrantAchievementRequest(**key("achieve"), achievement="tester")
    rules = earning_pb2.PutEarningRulesRequest(version=f"{prefix}-rules", rules_json=write_rules(RULES.first_version))
    return [
        Scenario("claim", [opened("claim")], "ClaimDailyBonus", claim, 1),
        Scenario("activity", [opened("activity")], "RecordActivity", invited("activity"), 1),
        Scenario("convert", [opened("convert"), ("RecordActivity", invited("convert"))], "ConvertPoints", convert, 2),
        Scenario("achieve", [opened("achieve")], "GrantAchievement", achieve, 1),
        Scenario("rules", [], "PutEarningRules", rules, 1),
    ]


def trading_scenarios(prefix: str) -> list[Scenario]:
    """Gifts and offers, between accounts of their own for each."""

    def rich(name: str) -> list[tuple[str, Any]]:
        account_id = f"{prefix}-{name}"
        return [
            ("OpenAccount", pb.OpenAccountRequest(account_id=account_id)),
            ("Grant", pb.GrantRequest(account_id=account_id, grant_id=account_id, amount=20)),
        ]

    def offer(name: str) -> market_pb2.CreateOfferRequest:
        return market_pb2.CreateOfferRequest(account_id=f"{prefix}-{name}", offer_id="o", tokens=5, price_points=10)

    buyer = f"{prefix}-buyer"
    invited = earning_pb2.RecordActivityRequest(account_id=buyer, activity="invite", activity_id=buyer)
    to_buy = [*rich("seller"), ("CreateOffer", offer("seller")), *rich("buyer"), ("RecordActivity", invited)]
    give = giving_pb2.GiveRequest(
        account_id=f"{prefix}-giver", receiver_account_id=f"{prefix}-receiver", gift_id=f"{prefix}-gift", amount=3
    )
    take = market_pb2.TakeOfferRequest(
        account_id=buyer, take_id=buyer, seller_account_id=f"{prefix}-seller", offer_id="o", tokens=5
    )
    cancel = market_pb2.CancelOfferRequest(account_id=f"{prefix}-canceller", offer_id="o")
    return [
        Scenario("give", [*rich("giver"), *rich("receiver")], "Give", give, 2),
        Scenario("offer", rich("offerer"), "CreateOffer", offer("offerer"), 1),
        Scenario("take", to_buy, "TakeOffer", take, 3),
        Scenario("cancel", [*rich("canceller"), ("CreateOffer", offer("canceller"))], "CancelOffer", cancel, 1),
    ]


OVERDUE = {scenario.name for scenario in overdue("any")}


def every(prefix: str) -> list[Scenario]:
    """All commands, in a world of their own."""
    return [*scenarios(prefix), *overdue(prefix), *earning_scenarios(prefix), *trading_scenarios(prefix)]


async def check_one_effect(world: World, number: int) -> int:
    """Lets the fault happen at each hop of one command in turn; gives how many hops there are."""
    clean = every("clean")[number]
    revision = await world.prepare(clean)
    assert not isinstance(await world.send(clean.method, clean.request), BaseException), clean.name
    hops = world.hops.count
    effects = await world.effects(revision)
    assert len(effects) == clean.rows, clean.name
    for hop in range(1, hops + 1):
        scenario = every(f"hop{hop}")[number]
        revision = await world.prepare(scenario)
        world.hops.let_happen_at(hop)

        first: Any = await world.send(scenario.method, scenario.request)
        retried: Any = await world.send(scenario.method, scenario.request)
        third: Any = await world.send(scenario.method, scenario.request)

        assert world.hops.fault_at is None, (scenario.name, hop)
        if isinstance(first, BaseException):
            assert isinstance(first, StoreUnavailable | asyncio.CancelledError), (scenario.name, hop, first)
        elif not _is_lost_batch(first):
            assert said(first) == said(retried), (scenario.name, hop)
        assert said(third) == said(retried), (scenario.name, hop)
        assert is_replayed(third), (scenario.name, hop)
        assert await world.effects(revision) == effects, (scenario.name, hop)
    return hops


def _is_lost_batch(answer: Any) -> bool:
    """Whether nobody knows of a batch's items, which each item says."""
    results = getattr(answer, "results", [])
    return any(result.refusal.reason == error_reason_pb2.ERROR_REASON_STORE_UNAVAILABLE for result in results)


@pytest.mark.parametrize("attempts_max", [1, ATTEMPTS_MAX], ids=["told", "mended"])
@pytest.mark.parametrize("fault", [lose_the_database, cancel_underneath, tear, cancel_the_caller])
async def test_a_fault_at_any_hop_leaves_one_answer_and_one_effect(
    database_url: str, fault: Fault, attempts_max: int
) -> None:
    """Whether the caller is told of it, or the group runs again by itself."""
    async with world(database_url, fault, attempts_max) as wallet:
        hops = [await check_one_effect(wallet, number) for number in range(len(every("any")))]

        assert min(hops) > 3
        await check_ledger(wallet)


@pytest.mark.slow
@pytest.mark.parametrize("attempts_max", [1, ATTEMPTS_MAX], ids=["told", "mended"])
async def test_a_connection_killed_at_any_hop_leaves_one_answer_and_one_effect(
    postgres_url: str, attempts_max: int
) -> None:
    """As far as PostgreSQL alone can tell, which has connections."""
    async with world(postgres_url, kill_the_connection, attempts_max) as wallet:
        for number in range(len(every("any"))):
            await check_one_effect(wallet, number)

        await check_ledger(wallet)


async def check_ledger(wallet: World) -> None:
    """The journal's chain holds, and no token came from nowhere."""
    async with wallet.database.reading() as tx:
        rows = await journal.read_after(tx, 0, (await journal.read_head(tx)).revision)
    assert journal.verify_chain(rows) is None
    assert set((await Store(wallet.database, Rules()).asset_sums()).values()) <= {0}
