"""benchmarks.ledgers: a ledger that is seeded is one that the wallet could have written."""

from benchmarks.ledgers import seed
from services.chassis.database import connect
from services.wallet.__main__ import scratch
from services.wallet.audit import Report
from services.wallet.store_audit import Audit
from services.wallet.writer import SQL_FOLDER


async def test_an_audit_finds_no_fault_in_a_seeded_ledger(database_url):
    await seed(database_url, ["alice", "bob", "carol"], ["alice", "alice", "bob"] * 100)
    async with await connect(database_url, [SQL_FOLDER]) as database:
        events = [event async for event in Audit(database, scratch).run(0)]
    report = events[-1]
    assert isinstance(report, Report)
    assert report.fault is None
    assert report.counts["reservations"] == 300
    assert report.revision == 3 * 2 + 300 * 2
