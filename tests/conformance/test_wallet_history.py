"""A history that is asked for by kind, period and counterparty has the rows that reading all of it would leave."""

import random
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest

from services.chassis import journal
from services.chassis.database import Database
from services.wallet import store_history
from services.wallet.commands import Command, Commit, Grant, OpenAccount, Refund, Release, Reserve
from services.wallet.economy import Rules
from services.wallet.holdings import ISSUE, LAPSED, REVENUE
from services.wallet.store import Store
from services.wallet.store_history import ALL, Wanted
from services.wallet.store_rows import entry_of
from tests.databases import opened
from tests.fixed_time import SECOND_US, Clock, FixedTime

WALLET = Path("services/wallet")
ACCOUNTS = ("alice", "bob", "carol")
SEEDS = range(3)
STEPS = 120
QUESTIONS = 60


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A migrated wallet database with an open journal."""
    async with opened(database_url, WALLET) as database:
        async with database.transaction() as tx:
            await journal.open_head(tx, "test", 1)
        await Store(database, Rules()).open("test")
        yield database


@pytest.fixture
def store(database: Database, clock: Clock) -> Store:
    """The store under test, at the test's time."""
    return Store(FixedTime(database, clock), Rules())  # type: ignore[arg-type]


async def live(store: Store, clock: Clock, dice: random.Random) -> None:
    """Fills the journal of three accounts, often with several rows of one instant; alice is rarely heard of."""
    await store.run_group([OpenAccount("boss", account_id) for account_id in ACCOUNTS])
    for step in range(STEPS):
        clock.now_us += dice.choice([0, 0, 1, SECOND_US])
        account_id = dice.choices(ACCOUNTS, [1, 6, 12])[0]
        key = f"r{step}"
        hold = Reserve("boss", account_id, account_id, key, 1, 3600 * SECOND_US, "v1", "", True)
        ends: list[list[Command]] = [
            [Commit("boss", "boss", key, None, False)],
            [Commit("boss", "boss", key, None, False), Refund("boss", "boss", key, "back", None)],
            [Release("boss", "boss", key)],
            [],
        ]
        grant = Grant("boss", account_id, f"g{step}", 1, "", *dice.choice([(), (SECOND_US, 10)]))
        await store.run_group([grant, hold, *dice.choice(ends)])


async def pages(store: Store, account_id: str, wanted: Wanted, size: int) -> list[journal.Row]:
    """All pages of a history, one behind the other; none may have more rows than asked for."""
    found: list[journal.Row] = []
    before: int | None = None
    while before is None or before:
        page = await store.transactions(account_id, before, size, wanted)
        assert page is not None
        assert len(page.rows) <= size
        found += page.rows
        before = page.next_revision
    return found


def left(rows: Iterable[journal.Row], wanted: Wanted) -> list[journal.Row]:
    """What a filter leaves of a whole history."""
    return [
        row
        for row in rows
        if wanted.since_us <= row.time_us < wanted.until_us
        and (not wanted.kinds or row.kind in wanted.kinds)
        and wanted.counterparty in ("", entry_of(row).counterparty)
    ]


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_filtered_history_is_the_whole_one_without_the_other_rows(
    store: Store, clock: Clock, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is asked for, on pages of any size, and however few rows a page may look at."""
    dice = random.Random(seed)
    await live(store, clock, dice)
    whole = {account_id: await pages(store, account_id, ALL, 1_000) for account_id in ACCOUNTS}
    times = sorted({row.time_us for rows in whole.values() for row in rows})
    for number in range(QUESTIONS):
        monkeypatch.setattr(store_history, "SCAN_ROWS_MAX", dice.choice([1, 7, 10_000]))
        monkeypatch.setattr(store_history, "NEAR_ROWS", dice.choice([1, 30, 5_000]))
        account_id = dice.choice(ACCOUNTS)
        since_us, until_us = sorted(dice.choice(times) + dice.choice([-1, 0, 1]) for _ in range(2))
        kinds = dice.choice([(), ("grant",), ("commit", "refund"), ("lapse",), ("freeze",)])
        counterparty = dice.choice(["", "", ISSUE, REVENUE, LAPSED, "nobody"])
        wanted = Wanted(kinds, counterparty, dice.choice([0, since_us]), dice.choice([until_us, 2**63 - 1]))
        found = await pages(store, account_id, wanted, dice.choice([1, 3, 1_000]))
        assert found == left(whole[account_id], wanted), f"seed {seed}, question {number}: {account_id} {wanted}"


@pytest.mark.parametrize("near", [1, 30, 5_000])
async def test_the_last_row_at_an_instant_is_found_from_either_end(
    store: Store, clock: Clock, near: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is among everybody's last rows before that instant, or only on the walk back from the newest."""
    monkeypatch.setattr(store_history, "NEAR_ROWS", near)
    await live(store, clock, random.Random(7))
    for account_id in ACCOUNTS:
        rows = await pages(store, account_id, ALL, 1_000)
        for time_us in {row.time_us + step for row in rows for step in (-1, 0, 1)}:
            expected = next((row for row in rows if row.time_us <= time_us), None)
            assert await store.row_at(account_id, time_us) == expected


async def test_a_page_that_looks_at_its_last_row_says_where_to_go_on(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be empty then: the rows that are asked for may be the oldest ones."""
    await live(store, clock, random.Random(1))
    monkeypatch.setattr(store_history, "SCAN_ROWS_MAX", 5)
    page = await store.transactions("carol", None, 10, Wanted(kinds=("open",)))
    assert page is not None
    assert not page.rows
    assert page.next_revision
