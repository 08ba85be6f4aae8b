"""The marketplace keeps its promises on both databases: offers that end by themselves, random lives, audits of them."""

import random
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from services.chassis import journal
from services.chassis.database import Database
from services.wallet import store_audit
from services.wallet.__main__ import scratch
from services.wallet.audit import FaultKind, Report
from services.wallet.commands import Award, ChangeAccount, Command, Commit, Grant, OpenAccount, Reserve, Sweep
from services.wallet.economy import EarningRules, Rules
from services.wallet.errors import Refusal
from services.wallet.holdings import Entry
from services.wallet.journal_entry import entry_on
from services.wallet.market import COUNTER, OfferState
from services.wallet.market_commands import CancelOffer, CreateOffer, TakeOffer
from services.wallet.market_errors import OfferEnded
from services.wallet.sharing_commands import Give
from services.wallet.store import Store
from services.wallet.store_audit import Audit
from services.wallet.store_economy import EconomyReads
from services.wallet.store_market import FIRST_PLACE, PRICE_MAX, MarketReads
from services.wallet.store_rows import journal_entry
from tests.databases import opened
from tests.fixed_time import SECOND_US, Clock, FixedTime

WALLET = Path("services/wallet")
HOUR_US = 3600 * SECOND_US
RULES = Rules(welcome_bonus=0, earning=EarningRules(welcome_bonus=0, offers_per_day=40, offer_days=1, offer_days_max=2))
ACCOUNTS = ("alice", "bob", "carol")
START_US = 20_000 * 24 * HOUR_US
STEPS = 150


class Bazaar:
    """A ledger at the test's time; everybody has 100 tokens and 100 points."""

    def __init__(self, database: Database, clock: Clock) -> None:
        timed: Any = FixedTime(database, clock)
        self.database = database
        self.clock = clock
        self.store = Store(timed, RULES)
        self.reads = MarketReads(timed)
        self.economy = EconomyReads(timed, RULES)

    async def begin(self) -> None:
        async with self.database.transaction() as tx:
            await journal.open_head(tx, "test", 1)
        await Store(self.database, RULES).open("test")
        await self.store.run_group([OpenAccount("boss", account_id) for account_id in ACCOUNTS])
        await self.store.run_group([Award("boss", account_id, "profile_complete") for account_id in ACCOUNTS])
        await self.store.run_group([Grant("boss", account_id, account_id, 100, "") for account_id in ACCOUNTS])

    async def do(self, command: Command) -> Any:
        """The outcome of one command, or its refusal."""
        (result,) = await self.store.run_group([command])
        return result

    async def audited(self) -> Report:
        async for event in Audit(self.database, scratch).run():
            if isinstance(event, Report):
                return event
        raise AssertionError("the audit ended without a report")

    async def standing(self, account_id: str) -> tuple[int, list[int]]:
        """The tokens that an account's earnings are shown with, and what is counted of its offers by day."""
        found = await self.economy.standing(account_id)
        assert found is not None
        offered = [each.amount for each in found.counters if each.counter == COUNTER]
        return found.account.balance, offered

    async def balance(self, account_id: str) -> int:
        account = await self.store.account(account_id)
        assert account is not None
        return account.balance


@asynccontextmanager
async def bazaar_at(url: str) -> AsyncIterator[Bazaar]:
    clock = Clock()
    clock.now_us = START_US
    async with opened(url, WALLET) as database:
        bazaar = Bazaar(database, clock)
        await bazaar.begin()
        yield bazaar


@pytest.fixture
async def bazaar(database_url: str) -> AsyncIterator[Bazaar]:
    async with bazaar_at(database_url) as found:
        yield found


async def test_an_offer_ends_at_its_instant_whether_or_not_anybody_has_swept(bazaar):
    """What is read says so at once; the next command on the account writes it down, and nothing changes by that."""
    made = (await bazaar.do(CreateOffer("boss", "alice", "o", 10, 10, None, ""))).offer
    await bazaar.do(TakeOffer("boss", "bob", "t", "alice", "o", 4))
    bazaar.clock.now_us = made.expire_time_us - 1
    assert ((await bazaar.reads.offer("alice", "o")).state, await bazaar.balance("alice")) == (OfferState.OPEN, 90)
    bazaar.clock.now_us += 1

    seen, balance = await bazaar.reads.offer("alice", "o"), await bazaar.balance("alice")
    assert (seen.state, seen.returned, balance) == (OfferState.EXPIRED, 6, 96)
    assert await bazaar.reads.market(PRICE_MAX, FIRST_PLACE, 10) == []
    assert [each.state for each in await bazaar.reads.offers("alice", 2**60, 10)] == [OfferState.EXPIRED]
    assert (await bazaar.audited()).fault is None
    assert await bazaar.store.due_accounts(10) == ["alice"]

    refused = await bazaar.do(TakeOffer("boss", "carol", "late", "alice", "o", 1))
    assert isinstance(refused, OfferEnded)
    written = await bazaar.reads.offer("alice", "o")
    assert written._replace(revision=0) == seen._replace(revision=0)
    assert (await bazaar.balance("alice"), await bazaar.store.due_accounts(10)) == (96, [])
    assert (await bazaar.audited()).fault is None


async def test_what_an_expired_offer_gives_back_is_read_before_a_sweep_writes_it(bazaar):
    """The purse has the unsold tokens again and the day counts them no longer, as the next command will find it."""
    await bazaar.do(CreateOffer("boss", "alice", "o", 10, 10, HOUR_US, ""))
    await bazaar.do(CreateOffer("boss", "alice", "open", 3, 10, 2 * HOUR_US, ""))
    await bazaar.do(TakeOffer("boss", "bob", "t", "alice", "o", 4))
    bazaar.clock.now_us += HOUR_US
    before = await bazaar.standing("alice")
    await bazaar.do(Sweep("alice"))
    after = await bazaar.standing("alice")
    assert before == after == (93, [7])


async def test_a_sweep_ends_what_is_due_and_looks_again_when_the_next_is(bazaar):
    """Holds and offers of one account end each at its time, in the order of their times."""
    hold = Reserve("app", "alice", "alice", "job", 5, 2 * HOUR_US, "", "", False)
    offers = [CreateOffer("boss", "alice", f"o{hours}", 1, 10, hours * HOUR_US, "") for hours in (3, 1)]
    await bazaar.store.run_group([hold, *offers])
    kinds = []
    for _ in range(3):
        bazaar.clock.now_us += HOUR_US
        assert await bazaar.store.due_accounts(10) == ["alice"]
        await bazaar.do(Sweep("alice"))
        assert await bazaar.store.due_accounts(10) == []
        async with bazaar.database.reading() as tx:
            head = await journal.read_head(tx)
            kinds += [row.kind for row in await journal.read_after(tx, head.revision - 1, 1)]

    assert kinds == ["unoffer", "expire", "unoffer"]
    assert await bazaar.balance("alice") == 100
    assert (await bazaar.audited()).fault is None


async def test_an_audit_finds_what_was_changed_behind_the_ledgers_back(bazaar, database_url):
    """An offer that was altered, and an escrow that has not what it must have."""
    await bazaar.do(CreateOffer("boss", "alice", "o", 10, 10, None, ""))
    for wrong, mended, kind in (
        ("price_points = 1", "price_points = 10", FaultKind.HOLD),
        ("sold = 1", "sold = 0", FaultKind.HOLD),
    ):
        await _run(database_url, f"UPDATE offers SET {wrong}")
        fault = (await bazaar.audited()).fault
        assert fault is not None
        assert (fault.kind, fault.subject) == (kind, "alice o")
        await _run(database_url, f"UPDATE offers SET {mended}")
    await _run(database_url, "UPDATE system_accounts SET balance = balance - 1 WHERE account_id = '@escrow'")
    fault = (await bazaar.audited()).fault
    assert fault is not None
    assert (fault.kind, fault.subject) == (FaultKind.SUM, "@escrow")


async def append(bazaar: Bazaar, entry: Entry) -> int:
    """Writes a row to the journal by another hand, with a chain that holds; gives its revision."""
    async with bazaar.database.transaction() as tx:
        head, rows = journal.chain(await journal.read_head(tx), [journal_entry(entry)], bazaar.clock.now_us)
        await tx.finish(journal.statements(head, rows))
    return head.revision


@pytest.mark.parametrize("kind", ["offer", "grant"])
async def test_an_audit_finds_a_key_that_was_used_again_wherever_it_stands(bazaar, monkeypatch, kind):
    """Also on another page of the journal than its first use."""
    monkeypatch.setattr(store_audit, "PAGE_ROWS", 1)
    await bazaar.do(CreateOffer("boss", "alice", "o", 10, 10, None, ""))
    account = await bazaar.store.account("alice")
    facts = {"price": 10, "day": 20_000, "expire_time_us": bazaar.clock.now_us + HOUR_US}
    forged = {
        "offer": entry_on(account, kind, "boss", balance_change=-1, counterparty="@escrow", key="o", facts=facts),
        "grant": entry_on(
            account, kind, "boss", balance_change=1, counterparty="@issue", created_by="boss", key="alice"
        ),
    }
    revision = await append(bazaar, forged[kind])

    fault = (await bazaar.audited()).fault
    assert fault is not None
    assert (fault.kind, fault.revision) == (FaultKind.JOURNAL, revision)


async def _run(url: str, sql: str) -> None:
    if url.startswith("postgres"):
        connection = await asyncpg.connect(url)
        await connection.execute(sql)
        await connection.close()
        return
    with closing(sqlite3.connect(url.removeprefix("sqlite:"))) as file, file:
        file.execute(sql)


def random_command(dice: random.Random, step: int) -> Command:
    """One of the marketplace's commands, or of those that move the same tokens; keys come again."""
    seller, buyer = dice.sample(ACCOUNTS, 2)
    offer_id, key = f"o{step // 8 + dice.randrange(2)}", f"{buyer}-{dice.randrange(step + 1)}"
    tokens, price = dice.randint(1, 12), dice.choice([5, 10, 10, 20])
    lifetime_us = dice.choice([None, HOUR_US, 36 * HOUR_US, 72 * HOUR_US])
    commands: list[Command] = [
        CreateOffer("app", seller, offer_id, tokens, price, lifetime_us, ""),
        CreateOffer("app", seller, offer_id, tokens, price, lifetime_us, ""),
        TakeOffer("app", buyer, f"take-{key}", seller, offer_id, tokens),
        TakeOffer("app", buyer, f"take-{key}", seller, offer_id, dice.randint(1, 3)),
        TakeOffer("app", buyer, f"take-{key}", seller, offer_id, dice.randint(1, 3)),
        CancelOffer("app", seller, offer_id),
        Give("app", seller, buyer, f"gift-{key}", dice.randint(1, 5), ""),
        Reserve("app", seller, seller, f"job-{key}", dice.randint(1, 20), HOUR_US, "", "", True),
        Commit("app", "app", f"job-{key}", None, False),
        ChangeAccount("app", seller, f"change-{key}", dice.choice(["freeze", "unfreeze", "unfreeze"]), False, ""),
        Sweep(seller),
        Award("app", seller, "profile_complete"),
    ]
    return dice.choice(commands)


async def live(bazaar: Bazaar, seed: int) -> list[str]:
    """A random life of several weeks in groups; what each command came to, as text."""
    dice = random.Random(seed)
    found = []
    for step in range(STEPS):
        bazaar.clock.now_us += dice.choice([0, 0, HOUR_US // 2, HOUR_US, 12 * HOUR_US])
        commands = [random_command(dice, step) for _ in range(dice.randint(1, 4))]
        found += [
            type(result).__name__ if isinstance(result, Refusal) else repr(result)
            for result in await bazaar.store.run_group(commands)
        ]
    return found


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 20))])
async def test_a_life_is_the_same_on_both_databases_and_an_audit_rebuilds_it(
    postgres_url: str, tmp_path: Path, seed: int
) -> None:
    """Outcomes and hashes agree; every offer and take is what the journal makes of it, and the escrow their sum."""
    lives, hashes = [], []
    for url in (f"sqlite:{tmp_path}/life.db", postgres_url):
        async with bazaar_at(url) as bazaar:
            lives.append(await live(bazaar, seed))
            report = await bazaar.audited()
            assert report.fault is None, f"seed {seed}: {report.fault}"
            assert min(report.counts[name] for name in ("offers", "counters")) > 0
            assert set((await bazaar.store.asset_sums()).values()) == {0}
            hashes.append(report.hash)
    assert lives[0] == lives[1], f"seed {seed}"
    assert len(set(hashes)) == 1, f"seed {seed}"


async def test_the_lives_of_every_run_buy_something_and_meet_each_refusal(tmp_path: Path) -> None:
    """One life alone may by chance miss some of it; those of the seeds that always run do not together."""
    lived: list[str] = []
    for seed in (0, 1):
        async with bazaar_at(f"sqlite:{tmp_path}/life-{seed}.db") as bazaar:
            lived += await live(bazaar, seed)
    assert any("take=Take(" in text for text in lived)
    words = {text.partition("(")[0] for text in lived}
    assert words >= {"Outcome", "OfferEnded", "OfferExceeded", "OfferNotFound", "OfferTerms", "IdempotencyMismatch"}
