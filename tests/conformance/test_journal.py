"""The journal on both databases: append-only, in one order, readable both ways."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from itertools import chain
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from services.chassis import journal
from services.chassis.database import Database, connect
from services.chassis.errors import StoreDamaged
from services.chassis.journal import FIRST_HASH, Entry, Head
from tests.databases import CHASSIS_MIGRATIONS, migrated

FORGERIES = """
-- name: forge()!
UPDATE journal SET body = 'forged';

-- name: forget()!
DELETE FROM journal;

-- name: overwrite()!
{overwrite};

-- name: unguard_update()!
{unguard_update};

-- name: unguard_delete()!
{unguard_delete};

-- name: forge_row(revision)!
UPDATE journal SET body = 'forged' WHERE revision = :revision;

-- name: forget_row(revision)!
DELETE FROM journal WHERE revision = :revision;

-- name: move_head(revision)!
UPDATE journal_head SET revision = :revision;

-- name: lose_head()!
DELETE FROM journal_head;
"""
WORDS = {
    "sqlite": {
        "overwrite": "INSERT OR REPLACE INTO journal SELECT * FROM journal",
        "unguard_update": "DROP TRIGGER journal_refuses_update",
        "unguard_delete": "DROP TRIGGER journal_refuses_delete",
    },
    "postgres": {
        "overwrite": "TRUNCATE journal",
        "unguard_update": "ALTER TABLE journal DISABLE TRIGGER USER",
        "unguard_delete": "ALTER TABLE journal DISABLE TRIGGER USER",
    },
}


@pytest.fixture
async def database(database_url: str, tmp_path: Path) -> AsyncIterator[Database]:
    await migrated(database_url, CHASSIS_MIGRATIONS)
    for dialect, words in WORDS.items():
        (tmp_path / f"{dialect}.sql").write_text(FORGERIES.format(**words))
    async with await connect(database_url, [tmp_path]) as database:
        async with database.transaction() as tx:
            await journal.open_head(tx, "epoch-1", 5)
        yield database


def entry(subject: str, body: str = "{}", previous: int = 0) -> Entry:
    return Entry("granted", "admin", subject, previous, body)


async def append(database: Database, *entries: Entry) -> Head:
    async with database.transaction() as tx:
        now_us = await tx.now_us()
        return await journal.append(tx, await journal.lock_head(tx), entries, now_us)


async def test_a_journal_opens_once_and_keeps_its_epoch(database: Database):
    async with database.transaction() as tx:
        head = await journal.open_head(tx, "epoch-2", 6)

    assert head == Head("epoch-1", 0, FIRST_HASH, 5)


async def test_a_journal_without_a_head_says_so(chassis_database: Database):
    async with chassis_database.reading() as tx:
        with pytest.raises(LookupError):
            await journal.read_head(tx)


async def test_appended_rows_are_read_back_and_verify(database: Database):
    await append(database, entry("alice", '{"amount": 1}'), entry("bob"))
    await append(database)
    head = await append(database, entry("alice", previous=1))

    async with database.reading() as tx:
        assert await journal.read_head(tx) == head
        rows = await journal.read_after(tx, 0, 10)
        assert await journal.read_after(tx, 1, 1) == rows[1:2]
        assert await journal.read_after(tx, 3, 10) == []
    assert [(row.revision, row.subject, row.previous) for row in rows] == [
        (1, "alice", 0),
        (2, "bob", 0),
        (3, "alice", 1),
    ]
    assert journal.verify_chain(rows) is None
    assert (head.revision, head.hash) == (3, rows[-1].hash)


async def test_a_subjects_history_is_a_walk_back(database: Database):
    await append(database, *(entry("alice" if number % 3 == 0 else "bob", str(number)) for number in range(10)))

    async with database.reading() as tx:
        assert [row.body for row in await journal.walk_back(tx, 10, 100)] == ["9", "6", "3", "0"]
        assert [row.body for row in await journal.walk_back(tx, 10, 2)] == ["9", "6"]
        assert await journal.walk_back(tx, 0, 2) == []


@pytest.mark.parametrize("forgery", ["forge", "forget", "overwrite"])
async def test_the_database_itself_refuses_to_change_the_journal(database: Database, forgery: str):
    await append(database, entry("alice"))

    async def run_forgery() -> None:
        async with database.transaction() as tx:
            await tx.run(forgery)

    with pytest.raises((sqlite3.IntegrityError, asyncpg.RestrictViolationError), match="append-only"):
        await run_forgery()


async def test_what_one_transaction_sees_has_no_gap_below_it(database: Database):
    """A reader that follows revisions never finds one that appeared behind its back."""
    seen: list[int] = []

    async def follow() -> None:
        while len(seen) < 60:
            async with database.reading() as tx:
                rows = await journal.read_after(tx, seen[-1] if seen else 0, 7)
            seen.extend(row.revision for row in rows)

    await asyncio.gather(follow(), *(append(database, entry(f"s{n}"), entry("all"), entry(f"s{n}")) for n in range(20)))

    assert seen == list(range(1, 61))


async def test_an_append_that_is_rolled_back_leaves_no_trace(database: Database):
    async def append_and_fail() -> None:
        async with database.transaction() as tx:
            await journal.append(tx, await journal.lock_head(tx), [entry("alice")], 9)
            raise KeyError

    with pytest.raises(KeyError):
        await append_and_fail()

    async with database.reading() as tx:
        assert await journal.read_head(tx) == Head("epoch-1", 0, FIRST_HASH, 5)
        assert await journal.read_after(tx, 0, 10) == []


async def pages(database: Database, revision: int, **bounds: int) -> list[list[int]]:
    history = journal.history(database, revision, page_rows=3, **bounds)
    return [[row.revision for row in page] async for page in history]


async def test_a_history_comes_oldest_first_in_pages(database: Database):
    """Each row once, wherever the bounds cut, and of no other subject."""
    for time_us in range(10, 18):
        async with database.transaction() as tx:
            head = await journal.lock_head(tx)
            previous = max(head.revision - 1, 0)
            await journal.append(tx, head, [entry("alice", previous=previous), entry("bob")], time_us)
    every = list(range(1, 16, 2))

    assert await pages(database, 15) == [[1, 3], [5, 7, 9], [11, 13, 15]]
    assert await pages(database, 9) == [[1, 3], [5, 7, 9]]
    assert await pages(database, 0) == []
    for after in range(17):
        assert list(chain(*await pages(database, 15, after=after))) == [each for each in every if each > after]
    for since_us in range(9, 19):
        late = [each for each, time_us in zip(every, range(10, 18), strict=True) if time_us >= since_us]
        assert list(chain(*await pages(database, 15, since_us=since_us))) == late


async def test_a_history_with_a_hole_is_an_error_and_no_short_history(database: Database):
    await append(database, entry("alice"), entry("alice"))
    async with database.transaction() as tx:
        head = await journal.lock_head(tx)
        await journal.append(tx, head._replace(revision=9), [entry("alice", previous=7), entry("alice")], 9)

    assert await pages(database, 2) == [[1, 2]]
    with pytest.raises(StoreDamaged) as hole:
        await pages(database, 11)
    assert "no row 7" in hole.value.detail


async def check_tail(database: Database, rows_max: int = 3) -> None:
    async with database.reading() as tx:
        await journal.check_tail(tx, rows_max)


async def test_a_journal_of_any_length_ends_as_its_head_says(database: Database, chassis_database: Database):
    """Also one that is empty, and one that was never begun."""
    await check_tail(chassis_database)
    for _ in range(6):
        await check_tail(database)
        await append(database, entry("alice"))
    await check_tail(database, 1000)


async def test_a_head_may_be_later_than_its_last_row_and_not_earlier(database: Database):
    """Ledgers are about in which it moved with changes that made no row."""
    await append(database, entry("alice"))
    async with database.transaction() as tx:
        head = await journal.lock_head(tx)
        await tx.run("journal_advance", revision=1, hash=head.hash, time_us=head.time_us + 5)
    await check_tail(database)

    async with database.transaction() as tx:
        await tx.run("journal_advance", revision=1, hash=head.hash, time_us=head.time_us - 1)
    with pytest.raises(StoreDamaged):
        await check_tail(database)


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        ([("unguard_update", {}), ("forge_row", {"revision": 6})], "row 6 of the journal does not follow"),
        ([("unguard_update", {}), ("forge_row", {"revision": 4})], "row 4 of the journal does not follow"),
        ([("unguard_delete", {}), ("forget_row", {"revision": 6})], "ends with row 5, and its head says 6"),
        ([("unguard_delete", {}), ("forget_row", {"revision": 5})], "row 6 of the journal does not follow"),
        ([("unguard_delete", {}), ("forget_row", {"revision": 3})], "its head says 6"),
        ([("move_head", {"revision": 5})], "ends with row 6, and its head says 5"),
        ([("move_head", {"revision": 7})], "ends with row 6, and its head says 7"),
        ([("move_head", {"revision": 0})], "its head says 0"),
        ([("move_head", {"revision": 900})], "its head says 900"),
        ([("lose_head", {})], "its head is missing"),
    ],
)
async def test_a_journal_whose_end_is_not_what_was_written_is_damaged(
    database: Database, damage: list[Any], found: str
):
    """Its last three rows here, of six."""
    await append(database, *[entry("alice", str(number)) for number in range(6)])
    async with database.transaction() as tx:
        for name, parameters in damage:
            await tx.run(name, **parameters)

    with pytest.raises(StoreDamaged) as caught:
        await check_tail(database)
    assert found in caught.value.detail
