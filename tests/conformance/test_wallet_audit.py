"""An audit passes every ledger that the wallet wrote, and names the first thing of one that somebody else wrote to."""

import random
from collections.abc import AsyncIterator

import pytest

from services.chassis import journal
from services.chassis.database import Database
from services.wallet.__main__ import scratch
from services.wallet.audit import FaultKind, Progress, Report
from services.wallet.commands import Commit, Grant, OpenAccount, Refund, Reserve
from services.wallet.economy import Rules
from services.wallet.store import Store
from services.wallet.store_audit import Audit
from tests.conformance.test_wallet_store import WALLET, execute, random_command
from tests.databases import opened

SECOND_US = 1_000_000


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A wallet's database with some of everything in it."""
    async with opened(database_url, WALLET) as database:
        store = Store(database, Rules())
        await store.open("test")
        async with database.transaction() as tx:
            await journal.open_head(tx, "test", 1)
        source = random.Random(1)
        for _ in range(12):
            await store.run_group([random_command(source) for _ in range(20)])
        await store.run_group(
            [
                OpenAccount("boss", "dora"),
                Grant("boss", "dora", "promo", 50, "", 3600 * SECOND_US, 10),
                Reserve("batcher", "dora", "dora", "d1", 45, 60 * SECOND_US, "", "", False),
                Reserve("batcher", "dora", "dora", "d2", 5, 60 * SECOND_US, "", "", False),
                Commit("batcher", "batcher", "d1", 30, False),
                Refund("batcher", "batcher", "d1", "f1", 10),
            ]
        )
        yield database


async def audited(database: Database, up_to_revision: int = 0) -> Report:
    """The report of an audit; its progress must never go back."""
    done: dict[str, int] = {}
    async for event in Audit(database, scratch).run(up_to_revision):
        if isinstance(event, Report):
            return event
        assert isinstance(event, Progress)
        assert event.done >= done.get(event.step, 0)
        done[event.step] = event.done
    raise AssertionError("the audit ended without a report")


async def test_a_ledger_that_the_wallet_wrote_is_intact(database: Database) -> None:
    """All projections are compared, up to the head's revision and hash."""
    async with database.reading() as tx:
        head = await journal.read_head(tx)

    report = await audited(database)

    assert (report.fault, report.revision, report.hash) == (None, head.revision, head.hash)
    assert report.counts["accounts"] == 4
    assert report.counts["lots"] == 1
    assert min(report.counts[name] for name in ("reservations", "grants", "operations")) > 0


async def test_what_changes_after_the_audited_revision_is_left_to_the_next_audit(database: Database) -> None:
    """An older revision can be audited while the newest rows have moved on."""
    async with database.reading() as tx:
        head = await journal.read_head(tx)

    for revision in (1, head.revision // 2, head.revision - 1):
        report = await audited(database, revision)
        assert (report.fault, report.revision) == (None, revision)


FORGERIES = [
    ("UPDATE accounts SET balance = balance + 1 WHERE account_id = 'dora'", FaultKind.BALANCE, "dora"),
    ("UPDATE accounts SET state = 2 WHERE account_id = 'dora'", FaultKind.BALANCE, "dora"),
    ("DELETE FROM accounts WHERE account_id = 'dora'", FaultKind.BALANCE, "dora"),
    ("UPDATE reservations SET refunded = refunded - 1 WHERE reservation_id = 'd1'", FaultKind.HOLD, "batcher d1"),
    ("UPDATE reservations SET hold_us = hold_us + 1 WHERE reservation_id = 'd2'", FaultKind.HOLD, "batcher d2"),
    ("DELETE FROM reservations WHERE reservation_id = 'd2'", FaultKind.HOLD, "batcher d2"),
    ("UPDATE lots SET remaining = remaining + 1", FaultKind.LOT, ""),
    ("UPDATE lots SET expire_time_us = expire_time_us + 1", FaultKind.LOT, ""),
    ("DELETE FROM lots", FaultKind.LOT, ""),
    ("UPDATE grants SET amount = amount + 1 WHERE grant_id = 'promo'", FaultKind.KEY, "boss promo"),
    ("DELETE FROM operations WHERE operation_id = 'f1' AND reservation_id = 'd1'", FaultKind.KEY, "batcher d1 f1"),
    ("UPDATE system_accounts SET balance = balance + 1 WHERE account_id = '@revenue'", FaultKind.SUM, "@revenue"),
    ("UPDATE accounts SET due_time_us = NULL WHERE account_id = 'dora'", FaultKind.HOLD, "dora"),
    ("UPDATE journal_head SET hash = substr(hash, 2) || 'x'", FaultKind.JOURNAL, ""),
]  # fmt: skip


@pytest.mark.parametrize(("forgery", "kind", "subject"), FORGERIES)
async def test_a_forgery_is_named(
    database: Database, database_url: str, forgery: str, kind: FaultKind, subject: str
) -> None:
    """Whoever changes a table by hand is found, with what it should be and what it is."""
    await execute(database_url, forgery)

    fault = (await audited(database)).fault

    assert fault is not None
    assert fault.kind == kind
    assert subject in fault.subject
    assert fault.expected != fault.found
    assert "restore the newest backup" in fault.message


FORGED_ACCOUNT = """
    INSERT INTO accounts SELECT 'forged', asset, 0, 0, NULL, create_time_us, 1, 1, 0, 0, 0, 0 FROM accounts
    WHERE account_id = 'dora'
"""
FORGED_GRANT = """
    INSERT INTO grants SELECT 'forger', grant_id, account_id, asset, amount, reference, 1, NULL, NULL, NULL FROM grants
    WHERE grant_id = 'promo'
"""


@pytest.mark.parametrize("addition", [FORGED_ACCOUNT, FORGED_GRANT], ids=["account", "grant"])
async def test_a_row_that_no_journal_row_made_is_named(database: Database, database_url: str, addition: str) -> None:
    """What is stored must come from the journal."""
    await execute(database_url, addition)

    fault = (await audited(database)).fault

    assert fault is not None
    assert (fault.expected, "forge" in fault.subject) == ("nothing", True)


REWRITES = [
    ("UPDATE journal SET actor = 'nobody' WHERE revision = 7", 7),
    ("UPDATE journal SET body = replace(body, '\"balance\":', '\"balance\": ') WHERE revision = 9", 9),
    ("UPDATE journal SET time_us = 0 WHERE revision = 5", 5),
    ("DELETE FROM journal WHERE revision = 11", 11),
    ("UPDATE journal SET previous = 0 WHERE revision = (SELECT max(revision) FROM journal)", -1),
    ("DELETE FROM journal WHERE revision = (SELECT max(revision) FROM journal)", -1),
]  # fmt: skip
UNLOCK = {
    "sqlite": ["DROP TRIGGER journal_refuses_update", "DROP TRIGGER journal_refuses_delete"],
    "postgres": ["DROP TRIGGER journal_refuses_change ON journal"],
}


@pytest.mark.parametrize(("rewrite", "revision"), REWRITES)
async def test_rewritten_history_is_named_by_its_first_row(
    database: Database, database_url: str, rewrite: str, revision: int
) -> None:
    """Even whoever takes the triggers away can't change a row of the journal unseen."""
    for statement in UNLOCK[database.dialect]:
        await execute(database_url, statement)
    await execute(database_url, rewrite)
    async with database.reading() as tx:
        head = await journal.read_head(tx)

    fault = (await audited(database)).fault

    assert fault is not None
    assert (fault.kind, fault.revision) == (FaultKind.JOURNAL, revision if revision > 0 else head.revision)


async def test_history_that_was_rewritten_with_right_hashes_still_contradicts_what_is_stored(
    database: Database, database_url: str
) -> None:
    """Whoever recomputes the whole chain changes what it comes to, and the tables say otherwise."""
    async with database.reading() as tx:
        head = await journal.read_head(tx)
        rows = await journal.read_after(tx, 0, head.revision)
    entries = [journal.Entry(row.kind, row.actor, row.subject, row.previous, row.body) for row in rows]
    # The refund that was the last thing to happen is made one token larger, in the entry and in its balance.
    forged = (
        entries[-1].body.replace('"balance_change":10', '"balance_change":11').replace('"balance":40', '"balance":41')
    )
    assert forged != entries[-1].body
    entries[-1] = entries[-1]._replace(body=forged)
    new_head, new_rows = journal.chain(
        journal.Head("test", head.revision - 1, rows[-2].hash, 0), entries[-1:], rows[-1].time_us
    )
    for statement in UNLOCK[database.dialect]:
        await execute(database_url, statement)
    await execute(
        database_url,
        f"UPDATE journal SET body = '{forged}', hash = '{new_rows[0].hash}' WHERE revision = {head.revision}",
    )
    await execute(database_url, f"UPDATE journal_head SET hash = '{new_head.hash}'")

    fault = (await audited(database)).fault

    assert fault is not None
    assert fault.kind in (FaultKind.BALANCE, FaultKind.HOLD, FaultKind.LOT, FaultKind.JOURNAL)
