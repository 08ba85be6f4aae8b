"""Spending limits keep their promises on both databases: what was spent before they were set, random lives, audits."""

import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from services.chassis import journal
from services.chassis.database import Database
from services.wallet import calendar_day, store_spending
from services.wallet.__main__ import scratch
from services.wallet.audit import Report
from services.wallet.commands import Amend, Command, Commit, Grant, OpenAccount, Refund, Release, Reserve
from services.wallet.economy import Rules
from services.wallet.errors import LimitReached, Refusal
from services.wallet.sharing_commands import OpenTeam, SetLimits
from services.wallet.store import Store
from services.wallet.store_audit import Audit
from services.wallet.store_spending import SpendingReads
from tests.databases import opened
from tests.fixed_time import SECOND_US, Clock, FixedTime

WALLET = Path("services/wallet")
HOUR_US = 3600 * SECOND_US
RULES = Rules(zone="Europe/Berlin")
ZONE = calendar_day.zone_of(RULES.zone)
ACCOUNTS = ("alice", "bob", "team")
STEPS = 150


class Spenders:
    """A ledger at the test's time, whose accounts have 10,000 tokens each."""

    def __init__(self, database: Database, clock: Clock) -> None:
        timed: Any = FixedTime(database, clock)
        self.database = database
        self.clock = clock
        self.store = Store(timed, RULES)
        self.reads = SpendingReads(timed, RULES)

    async def begin(self) -> None:
        async with self.database.transaction() as tx:
            await journal.open_head(tx, "test", 1)
        await Store(self.database, RULES).open("test")
        await self.store.run_group([OpenAccount("boss", account_id) for account_id in ACCOUNTS])
        await self.store.run_group([Grant("boss", account_id, account_id, 10_000, "") for account_id in ACCOUNTS])
        await self.do(OpenTeam("boss", "team", "bob"))

    async def do(self, command: Command) -> Any:
        """The outcome of one command, or its refusal."""
        (result,) = await self.store.run_group([command])
        return result

    async def limit(self, key: str, day: int | None, month: int | None, account_id: str = "alice") -> Any:
        """Sets limits as the edge does: what was spent is looked for before."""
        counted = await self.reads.counted(account_id)
        return await self.do(SetLimits("boss", account_id, key, day, month, "", True, *counted))

    async def used(self, account_id: str = "alice") -> tuple[int, int]:
        """What counts today and in this month."""
        standing = await self.reads.standing(account_id)
        assert standing is not None
        return standing.day_used, standing.month_used

    async def audited(self) -> Report:
        async for event in Audit(self.database, scratch).run():
            if isinstance(event, Report):
                return event
        raise AssertionError("the audit ended without a report")


@asynccontextmanager
async def spenders_at(url: str) -> AsyncIterator[Spenders]:
    clock = Clock()
    clock.now_us = us(2026, 3, 27, 12)
    async with opened(url, WALLET) as database:
        made = Spenders(database, clock)
        await made.begin()
        yield made


@pytest.fixture
async def spenders(database_url: str) -> AsyncIterator[Spenders]:
    async with spenders_at(database_url) as made:
        yield made


def us(*parts: int) -> int:
    return round(datetime(*parts, tzinfo=UTC).timestamp()) * SECOND_US  # type: ignore[misc,arg-type]


def reserve(key: str, amount: int, payer: str = "alice", hold_us: int = 48 * HOUR_US) -> Reserve:
    return Reserve("app", "bob" if payer == "team" else payer, payer, key, amount, hold_us, "", "", False)


async def test_a_limit_counts_what_was_spent_in_its_month_before_it_was_set(spenders, monkeypatch):
    """Found in the history, a few rows at a time: by the days of the Reserves, released and refunded in its own way."""
    monkeypatch.setattr(store_spending, "COUNT_ROWS_MAX", 2)
    for day in range(2):
        for number in range(3):
            await spenders.do(reserve(f"r{day}-{number}", 10, hold_us=96 * HOUR_US))
        await spenders.do(Commit("app", "app", f"r{day}-0", 4, False))
        await spenders.do(Refund("app", "app", f"r{day}-0", "back", 3))
        await spenders.do(Release("app", "app", f"r{day}-1"))
        spenders.clock.now_us += 24 * HOUR_US
    await spenders.do(reserve("today", 5))

    await spenders.limit("l", 40, 50)

    assert await spenders.used() == (5, 5 + 2 * 14)
    refused = await spenders.do(reserve("more", 18))
    assert isinstance(refused, LimitReached)
    assert (refused.metadata["used"], refused.metadata["limit"]) == ("33", "50")
    assert (await spenders.audited()).fault is None


async def test_what_is_spent_between_the_look_and_the_change_counts_too(spenders):
    """The look is only a help: the transaction that sets the limits reads what came after it."""
    await spenders.do(reserve("r1", 10))
    looked = await spenders.reads.counted("alice")
    await spenders.do(reserve("r2", 7))
    await spenders.do(Release("app", "app", "r1"))
    set_at_once = SetLimits("boss", "alice", "l", 20, None, "", True, *looked)
    results = await spenders.store.run_group([reserve("r3", 1), set_at_once, reserve("r4", 12), reserve("r5", 13)])

    assert isinstance(results[3], LimitReached)
    assert await spenders.used() == (20, 20)
    assert (await spenders.audited()).fault is None


async def test_a_hold_whose_time_has_passed_counts_no_longer_whether_or_not_anybody_has_swept(spenders):
    await spenders.limit("l", 10, 30)
    await spenders.do(reserve("r1", 8, hold_us=HOUR_US))
    spenders.clock.now_us += HOUR_US

    assert await spenders.used() == (0, 0)
    await spenders.do(reserve("r2", 9))
    assert await spenders.used() == (9, 9)
    assert (await spenders.audited()).fault is None


async def test_what_an_older_month_gives_back_changes_no_count_of_this_one(spenders):
    await spenders.do(reserve("march", 8, hold_us=30 * 24 * HOUR_US))
    spenders.clock.now_us = us(2026, 4, 2)
    await spenders.limit("l", 10, 10)
    await spenders.do(Release("app", "app", "march"))

    assert await spenders.used() == (0, 0)
    await spenders.do(reserve("april", 10))
    assert (await spenders.audited()).fault is None


def random_command(dice: random.Random, step: int) -> Command:
    """Holds and what becomes of them; limits come, change and go. Keys come again."""
    payer = dice.choice(ACCOUNTS)
    key = f"{payer}-{dice.randrange(step // 3 + 1)}"
    amount = dice.randint(1, 9)
    commands: list[Command] = [
        *2 * [reserve(key, amount, payer, dice.choice([1, 30, 70]) * HOUR_US)],
        Commit("app", "app", key, dice.choice([None, 1]), True),
        Release("app", "app", key),
        Refund("app", "app", key, f"f{dice.randrange(3)}", 1),
        Amend("app", "app", key, f"a{dice.randrange(2)}", 1, None),
        SetLimits(
            "boss",
            payer,
            f"l{dice.randrange(step + 1)}",
            dice.choice([None, 5, 9]),
            dice.choice([None, 20]),
            "",
            True,
        ),
    ]
    return dice.choice(commands)


async def live(spenders: Spenders, seed: int) -> list[str]:
    """A random life over the turns of months in groups; what each command came to, as text."""
    dice = random.Random(seed)
    found = []
    for step in range(STEPS):
        spenders.clock.now_us += dice.choice([0, 0, 1, 2, 6, 12]) * HOUR_US
        commands = [random_command(dice, step) for _ in range(dice.randint(1, 4))]
        found += [
            type(result).__name__ if isinstance(result, Refusal) else repr(result)
            for result in await spenders.store.run_group(commands)
        ]
    return found


async def check_counts(spenders: Spenders) -> int:
    """Where there are limits, counts are what the reservations of each day hold or have taken; how many were seen."""
    async with spenders.database.reading() as tx:
        accounts = {row["account_id"]: row for row in await tx.rows("page_accounts", after_a="", after_b="", limit=99)}
        rows = await tx.rows("page_reservations", after_a="", after_b="", limit=9_999)
        counters = await tx.rows("page_counters", after_a="", after_b="", after_c=-1, limit=9_999)
    spent: Counter[tuple[str, str, int]] = Counter()
    for row in rows:
        since = accounts[row["payer_account_id"]]["spend_since"] if row["payer_account_id"] else 0
        day = calendar_day.day_of(row["create_time_us"], ZONE)
        if since and day >= since:
            amount = row["committed"] + (row["reserved"] - row["released"] if row["state"] == 1 else 0)
            spent[row["payer_account_id"], "spend", day] += amount
            spent[row["payer_account_id"], "spend_month", calendar_day.month_of(day)] += amount
    counted = Counter({(row["account_id"], row["counter"], row["day"]): row["amount"] for row in counters})
    for key, amount in spent.items():
        assert counted[key] == amount, key
    return len(spent)


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 30))])
async def test_a_life_is_the_same_on_both_databases_and_counts_are_what_reservations_say(
    postgres_url: str, tmp_path: Path, seed: int
) -> None:
    """Outcomes and hashes agree, and an audit rebuilds limits, changes and counts."""
    lives, hashes = [], []
    for url in (f"sqlite:{tmp_path}/life.db", postgres_url):
        async with spenders_at(url) as spenders:
            lives.append(await live(spenders, seed))
            report = await spenders.audited()
            assert report.fault is None, f"seed {seed}: {report.fault}"
            await spenders.store.run_group([SetLimits("boss", each, "last", 99, 99, "", True) for each in ACCOUNTS])
            assert await check_counts(spenders) > 0, f"seed {seed}"
            assert min(report.counts[name] for name in ("spending_limits", "limit_changes", "counters")) > 0
            hashes.append(report.hash)
    assert lives[0] == lives[1], f"seed {seed}"
    assert len(set(hashes)) == 1, f"seed {seed}"
    words = {text.partition("(")[0] for text in lives[0]}
    assert words >= {"Outcome", "LimitReached", "IdempotencyMismatch", "ReservationCommitted"}
