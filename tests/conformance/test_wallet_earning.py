"""Earning keeps its promises on both databases: over clocks that go back, random lives, audits of what they left."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from services.chassis import journal
from services.chassis.database import Database
from services.wallet.__main__ import scratch
from services.wallet.audit import Report
from services.wallet.commands import (
    Award,
    ClaimDaily,
    Command,
    Commit,
    Convert,
    OpenAccount,
    PutRules,
    RecordActivity,
    Refund,
    Reserve,
)
from services.wallet.economy import EarningRules, Rules, write_rules
from services.wallet.errors import DailyBonusClaimed, Refusal
from services.wallet.store import Store
from services.wallet.store_audit import Audit
from tests.databases import opened
from tests.fixed_time import SECOND_US, Clock, FixedTime

WALLET = Path("services/wallet")
HOUR_US = 3600 * SECOND_US
RULES = Rules(earning=EarningRules(points_per_token=10), zone="Europe/Berlin")
ACCOUNTS = ("alice", "bob", "carol")
ECONOMY = {"load_rule_sets", "load_points", "load_streaks", "load_earnings", "load_counters", "load_issued"}
"""What is asked for the economy's sake."""
STEPS = 150


@asynccontextmanager
async def wallet(url: str, clock: Clock) -> AsyncIterator[tuple[Database, Store]]:
    """An empty ledger, and a store of it at the test's time."""
    async with opened(url, WALLET) as database:
        async with database.transaction() as tx:
            await journal.open_head(tx, "test", 1)
        await Store(database, RULES).open("test")
        yield database, Store(FixedTime(database, clock), RULES)  # type: ignore[arg-type]


@pytest.fixture
def clock() -> Clock:
    clock = Clock()
    clock.now_us = us(2026, 11, 25, 12)
    return clock


@pytest.fixture
async def database(database_url: str, clock: Clock) -> AsyncIterator[tuple[Database, Store]]:
    async with wallet(database_url, clock) as both:
        yield both


@pytest.fixture
def store(database: tuple[Database, Store]) -> Store:
    return database[1]


def us(*parts: int) -> int:
    return round(datetime(*parts, tzinfo=UTC).timestamp()) * SECOND_US  # type: ignore[misc,arg-type]


async def do(store: Store, command: Command) -> Any:
    """The outcome of one command, or its refusal."""
    (result,) = await store.run_group([command])
    return result


async def test_a_clock_that_goes_back_gives_no_second_bonus_and_breaks_no_streak(store: Store, clock: Clock) -> None:
    """The ledger's time stands still until the clock has caught up, whoever asks meanwhile."""
    await store.run_group([OpenAccount("boss", account_id) for account_id in ACCOUNTS])
    assert (await do(store, ClaimDaily("app", "alice", "today"))).streak.days == 1
    clock.now_us -= 30 * HOUR_US
    again = await do(store, ClaimDaily("app", "alice", "yesterday"))
    assert isinstance(again, DailyBonusClaimed)
    assert again.metadata["resets_at"] == "2026-11-25T23:00:00Z"
    assert (await do(store, ClaimDaily("app", "bob", "bob-1"))).earning.day == (
        await do(store, ClaimDaily("app", "alice", "today"))
    ).earning.day
    clock.now_us = us(2026, 11, 26, 12)
    assert [(await do(store, ClaimDaily("app", name, f"{name}-2"))).streak.days for name in ("alice", "bob")] == [2, 2]


def random_command(dice: random.Random, step: int) -> Command:
    """One of the economy's commands, or of those that it has a part in; keys come again."""
    account_id = dice.choice(ACCOUNTS)
    key = f"{account_id}-{dice.randrange(step + 1)}"
    document = write_rules(EarningRules(daily_bonus=dice.randrange(4), points_per_token=dice.choice([5, 10])))
    commands: list[Command] = [
        ClaimDaily("app", account_id, f"claim-{key}"),
        ClaimDaily("app", account_id, f"claim-{key}"),
        RecordActivity("app", account_id, dice.choice(["share", "feedback", "nap"]), f"activity-{key}"),
        RecordActivity("app", account_id, dice.choice(["share", "feedback"]), f"activity-{key}"),
        Convert("app", account_id, f"convert-{key}", dice.randint(1, 7)),
        Award("app", account_id, dice.choice(["profile_complete", "streak_7"])),
        PutRules("boss", f"v{dice.randrange(6)}", None, dice.choice([10, 50, 100]), "trial", document),
        Reserve("app", account_id, account_id, f"job-{key}", 1, HOUR_US, "", "", True),
        Commit("app", "app", f"job-{key}", None, False),
        Refund("app", "app", f"job-{key}", "back", 1),
    ]
    return dice.choice(commands)


async def live(store: Store, clock: Clock, seed: int) -> list[str]:
    """A random life of several months in groups; what each command came to, as text."""
    dice = random.Random(seed)
    found = []
    for step in range(STEPS):
        clock.now_us += dice.choice([0, 0, HOUR_US, 12 * HOUR_US, 24 * HOUR_US, 48 * HOUR_US])
        commands = [random_command(dice, step) for _ in range(dice.randint(1, 4))]
        found += [
            type(result).__name__ if isinstance(result, Refusal) else repr(result)
            for result in await store.run_group(commands)
        ]
    return found


async def audited(database: Database) -> Report:
    async for event in Audit(database, scratch).run():
        if isinstance(event, Report):
            return event
    raise AssertionError("the audit ended without a report")


@pytest.mark.parametrize("seed", range(3))
async def test_a_life_is_the_same_on_both_databases_and_an_audit_rebuilds_it(
    postgres_url: str, tmp_path: Path, seed: int
) -> None:
    """Outcomes and hashes agree; every counter, streak, key and rule set is what the journal makes of it."""
    lives, hashes = [], []
    for url in (f"sqlite:{tmp_path}/life.db", postgres_url):
        clock = Clock()
        clock.now_us = us(2026, 10, 1)
        async with wallet(url, clock) as (database, store):
            lives.append(await live(store, clock, seed))
            report = await audited(database)
            assert report.fault is None, f"seed {seed}: {report.fault}"
            assert min(report.counts[name] for name in ("counters", "earnings", "streaks", "rule_sets")) > 0
            assert set((await store.asset_sums()).values()) == {0}
            hashes.append(report.hash)
    assert lives[0] == lives[1], f"seed {seed}"
    assert len(set(hashes)) == 1, f"seed {seed}"
    # The life was one: each kind of command was done, and refused for each reason that there is here.
    words = {text.partition("(")[0] for text in lives[0]}
    assert words >= {"Outcome", "DailyBonusClaimed", "LimitReached", "InsufficientPoints", "RuleNotFound"}


class Recording:
    """A database that notes which statements its transactions run."""

    def __init__(self, database: Any) -> None:
        self._database = database
        self.names: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        async with self._database.transaction() as tx:
            rows, rows_all, finish = tx.rows, tx.rows_all, tx.finish

            async def noted_rows(name: str, **parameters: Any) -> Any:
                self.names.add(name)
                return await rows(name, **parameters)

            async def noted_rows_all(queries: Any) -> Any:
                self.names.update(name for name, _ in queries)
                return await rows_all(queries)

            async def noted_finish(statements: Any) -> Any:
                self.names.update(name for name, written in statements if written)
                return await finish(statements)

            tx.rows, tx.rows_all, tx.finish = noted_rows, noted_rows_all, noted_finish
            yield tx


async def test_an_account_that_has_worked_pays_nothing_for_the_economy(
    database: tuple[Database, Store], clock: Clock
) -> None:
    """Its holds and commits read and write the same as before there was one; its first commit alone asks for more."""
    recording = Recording(FixedTime(database[0], clock))
    store = Store(recording, RULES)  # type: ignore[arg-type]
    hold = Reserve("app", "alice", "alice", "job-1", 1, HOUR_US, "", "", True)
    await do(store, OpenAccount("boss", "alice"))
    recording.names.clear()
    await store.run_group([hold, Commit("app", "app", "job-1", None, False)])
    assert recording.names >= ECONOMY
    recording.names.clear()
    await store.run_group([hold._replace(reservation_id="job-2"), Commit("app", "app", "job-2", None, False)])
    await store.run_group([Refund("app", "app", "job-2", "back", 1)])
    reads = {"load_accounts", "learn_payers", "load_reservations", "load_operations", "journal_lock"}
    writes = {"update_account", "insert_reservation", "update_reservation", "insert_operation", "move_system_account"}
    assert recording.names == reads | writes | {"journal_append", "journal_advance"}
