"""What an account's days came to is what its rows of those days add up to, also where clocks change."""

import random
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from services.chassis import journal
from services.chassis.database import Database
from services.wallet import store_history
from services.wallet.calendar_day import day_of, read_day, start_us
from services.wallet.commands import (
    Award,
    ClaimDaily,
    Command,
    Commit,
    Convert,
    Grant,
    OpenAccount,
    RecordActivity,
    Refund,
    Reserve,
)
from services.wallet.economy import Achievement, EarningRules, Rules
from services.wallet.holdings import POINT, TOKEN
from services.wallet.store import Store
from services.wallet.store_history import Day, DayPart, NoSuchPlace, Wanted
from services.wallet.store_rows import entry_of
from tests.databases import opened
from tests.fixed_time import SECOND_US, Clock, FixedTime

WALLET = Path("services/wallet")
HOUR_US = 3600 * SECOND_US
ZONE = "Europe/Berlin"
BERLIN = ZoneInfo(ZONE)
ALWAYS = range(1, 3_000_000)
FIRST_DAY = read_day("2026-10-22")
"""Three days before the clocks of Berlin are put back."""
RULES = Rules(
    zone=ZONE,
    earning=EarningRules(
        points_per_token=10, achievements={"tester": Achievement(tokens=4, points=0, by_wallet=False)}
    ),
)


@pytest.fixture
def clock() -> Clock:
    clock = Clock()
    clock.now_us = start_us(FIRST_DAY, BERLIN)
    return clock


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A migrated wallet database with an open journal."""
    async with opened(database_url, WALLET) as database:
        async with database.transaction() as tx:
            await journal.open_head(tx, "test", 1)
        await Store(database, RULES).open("test")
        yield database


@pytest.fixture
def store(database: Database, clock: Clock) -> Store:
    """The store under test, at the test's time and in its zone."""
    return Store(FixedTime(database, clock), RULES)  # type: ignore[arg-type]


async def live(store: Store, clock: Clock, dice: random.Random, steps: int = 100) -> None:
    """Two accounts earn and spend for weeks; now and then nothing happens for days."""
    await store.run_group([OpenAccount("boss", "alice"), OpenAccount("boss", "bob")])
    for step in range(steps):
        clock.now_us += dice.choice([0, 1, SECOND_US, HOUR_US, HOUR_US, 5 * HOUR_US, 5 * HOUR_US, 60 * HOUR_US])
        account_id, key = dice.choices(["alice", "bob"], [4, 1])[0], f"k{step}"
        hold = Reserve("boss", account_id, account_id, key, 1, HOUR_US, "v1", "", True)
        commands: list[list[Command]] = [
            [hold],
            [hold, Commit("boss", "boss", key, None, False)],
            [hold, Commit("boss", "boss", key, None, False), Refund("boss", "boss", key, "back", None)],
            [Grant("boss", account_id, key, 3, "", HOUR_US, 10)],
            [ClaimDaily("boss", account_id, key)],
            [RecordActivity("boss", account_id, dice.choice(["share", "feedback"]), key)],
            [Convert("boss", account_id, key, 1)],
            [Award("boss", account_id, "tester")],
        ]
        await store.run_group(dice.choice(commands))


async def days_of(store: Store, account_id: str, asset: str, days: range = ALWAYS, size: int = 400) -> list[Day]:
    """All pages of an account's days, one behind the other."""
    found: list[Day] = []
    before: int | None = None
    while before is None or before:
        page = await store.days(account_id, asset, days, before, size)
        assert page is not None
        assert len(page.days) <= size
        found += page.days
        before = page.next_revision
    return found


def whole(days: list[Day]) -> dict[int, tuple[int, dict[tuple[str, str], tuple[int, int, int]]]]:
    """Days by their number: the balance at the end, and what each kind and rule came to; parts of a day are added."""
    balances: dict[int, int] = {}
    sums: dict[int, dict[tuple[str, str], tuple[int, int, int]]] = defaultdict(dict)
    for each in days:
        balances.setdefault(each.day, each.balance)
        for part in each.parts:
            before = sums[each.day].get((part.kind, part.rule), (0, 0, 0))
            amounts = (part.amount_in, part.amount_out, part.rows)
            sums[each.day][part.kind, part.rule] = tuple(map(sum, zip(before, amounts, strict=True)))  # type: ignore[assignment]
    return {day: (balance, sums[day]) for day, balance in balances.items()}


async def expected(store: Store, account_id: str, asset: str) -> dict[int, object]:
    """The same from the rows themselves."""
    page = await store.transactions(account_id, None, 10_000, Wanted(asset=asset))
    assert page is not None
    found: list[Day] = []
    for row in page.rows:
        entry = entry_of(row)
        change, facts = entry.balance_change, entry.facts
        rule = facts.get("rule", "") + (f":{facts['name']}" if facts.get("name") else "")
        if row.kind == "grant" and row.actor == "@wallet":
            rule = facts["reference"]
        part = DayPart(row.kind, rule, max(change, 0), max(-change, 0), 1)
        found.append(Day(day_of(row.time_us, BERLIN), entry.balance, [part] if change else []))
    return whole(found)  # type: ignore[return-value]


@pytest.mark.parametrize("asset", [TOKEN, POINT])
@pytest.mark.parametrize("seed", range(3))
async def test_days_add_up_to_what_happened_on_them(
    store: Store, clock: Clock, seed: int, asset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By kind and rule, with the balance at the end of the day, on pages of any size and however few rows one sums."""
    dice = random.Random(seed)
    await live(store, clock, dice)
    for account_id in ("alice", "bob"):
        rows = await expected(store, account_id, asset)
        for rows_max in (1, 4, 20_000):
            monkeypatch.setattr(store_history, "DAYS_ROWS_MAX", rows_max)
            found = await days_of(store, account_id, asset, size=dice.choice([1, 7, 400]))
            assert whole(found) == rows, f"seed {seed}, {rows_max} rows a page"
            first, last = sorted(dice.choice(range(FIRST_DAY - 1, FIRST_DAY + 60)) for _ in range(2))
            some = await days_of(store, account_id, asset, range(first, last + 1))
            assert whole(some) == {day: of_day for day, of_day in rows.items() if first <= day <= last}


async def test_the_longest_day_of_berlin_is_one_day(store: Store, clock: Clock) -> None:
    """What happens in its 25th hour belongs to it, and what happens a microsecond later does not."""
    long_day = read_day("2026-10-25")
    clock.now_us = round(datetime(2026, 10, 25, tzinfo=BERLIN).timestamp()) * SECOND_US
    await store.run_group([OpenAccount("boss", "alice")])
    clock.now_us += 25 * HOUR_US - 1
    await store.run_group([Grant("boss", "alice", "late", 3, "")])
    clock.now_us += 1
    await store.run_group([Grant("boss", "alice", "after", 4, "")])

    assert await days_of(store, "alice", TOKEN) == [
        Day(long_day + 1, 17, [DayPart("grant", "", 4, 0, 1)]),
        Day(long_day, 13, [DayPart("grant", "", 3, 0, 1), DayPart("grant", "welcome", 10, 0, 1)]),
    ]


async def test_days_of_points_are_not_read_from_a_row_of_tokens(store: Store) -> None:
    """A place in one history is none in the other; an account without points has none, and nobody's are not found."""
    await store.run_group([OpenAccount("boss", "alice")])
    alice = await store.account("alice")
    assert alice is not None

    assert await days_of(store, "alice", POINT) == []
    assert await store.days("nobody", TOKEN, ALWAYS, None, 10) is None
    with pytest.raises(NoSuchPlace):
        await store.days("alice", POINT, ALWAYS, alice.revision, 10)
