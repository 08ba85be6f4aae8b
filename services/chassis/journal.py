"""The append-only journal of a service: what happened, in an order that every replica agrees on.

The one row of `journal_head` is locked last in a transaction and held to its end, so revisions are handed out in the
order in which transactions become visible: a reader that has seen revision n has seen every revision before it. Each
row's hash covers the row and the hash before it. Each row points at the previous row of its subject, so that the
history of a subject is a walk along the primary key and needs no index of its own.
"""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator, Iterable, Sequence
from hashlib import sha256
from typing import Final, NamedTuple

from services.chassis.database import Database, Rows, Transaction
from services.chassis.errors import StoreDamaged

FIRST_HASH: Final = "0" * 64
PAGE_ROWS: Final = 1_000
TAIL_ROWS: Final = 1_000
LOCK_HEAD: Final = ("journal_lock", dict[str, object]())
"""`lock_head` as a query for `tx.rows_all`; its one row is a `Head`."""


class Entry(NamedTuple):
    """Something that happened, before it has a revision.

    `previous` is the revision of the subject's newest row before this transaction, 0 for none. `body` is JSON.
    """

    kind: str
    actor: str
    subject: str
    previous: int
    body: str


class Row(NamedTuple):
    """A row of the journal: revisions count from 1 without gaps, `time_us` never falls, `hash` is SHA-256 in hex."""

    revision: int
    time_us: int
    kind: str
    actor: str
    subject: str
    previous: int
    body: str
    hash: str


class Head(NamedTuple):
    """The newest row's revision, hash and time; `epoch` names this life of the database."""

    epoch: str
    revision: int
    hash: str
    time_us: int


async def open_head(tx: Transaction, epoch: str, now_us: int) -> Head:
    """Starts the journal with this epoch if nobody has yet, and returns its head."""
    await tx.run("journal_open", epoch=epoch, hash=FIRST_HASH, time_us=now_us)
    return await read_head(tx)


async def read_head(tx: Transaction) -> Head:
    """The head as this transaction sees it; raises LookupError before `open_head` was ever called."""
    return await _head(tx, "journal_head")


async def lock_head(tx: Transaction) -> Head:
    """The head, kept from other writers until the transaction ends: lock it after every other row."""
    return await _head(tx, "journal_lock")


async def _head(tx: Transaction, statement: str) -> Head:
    row = await tx.row(statement)
    if row is None:
        raise LookupError("the journal has no head yet")
    return Head(*row)


def chain(head: Head, entries: Iterable[Entry], now_us: int) -> tuple[Head, list[Row]]:
    """Gives entries their revisions, time and hashes; pure, so that a store knows them before it writes.

    The time is the later of `now_us` and the head's. Entries of one subject point at each other: the `previous` of any
    but the first is replaced. Without an entry the head stays as it is: its time is that of its last row.
    """
    epoch, revision, digest, time_us = head
    time_us = max(now_us, time_us)
    newest: dict[str, int] = {}
    rows: list[Row] = []
    for kind, actor, subject, before, body in entries:
        revision += 1
        previous = newest.get(subject, before)
        newest[subject] = revision
        digest = _digest(digest, revision, time_us, kind, actor, subject, previous, body)
        rows.append(Row(revision, time_us, kind, actor, subject, previous, body, digest))
    return (Head(epoch, revision, digest, time_us) if rows else head), rows


def statements(head: Head, rows: Sequence[Row]) -> list[tuple[str, Rows]]:
    """What writes the result of `chain`, for `tx.run_all` beside a store's own statements."""
    return [("journal_append", rows), ("journal_advance", [(head.revision, head.hash, head.time_us)])]


async def append(tx: Transaction, head: Head, entries: Iterable[Entry], now_us: int) -> Head:
    """Writes entries behind a head that `lock_head` gave, and returns the new head."""
    new_head, rows = chain(head, entries, now_us)
    if rows:
        await tx.run_all(statements(new_head, rows))
    return new_head


async def read_after(tx: Transaction, revision: int, limit: int) -> list[Row]:
    """At most `limit` rows behind a revision, oldest first."""
    return [Row(*row) for row in await tx.rows("journal_after", revision=revision, count=limit)]


async def walk_back(tx: Transaction, revision: int, limit: int) -> list[Row]:
    """A subject's history: the row of this revision and those before it of the same subject, newest first."""
    return [Row(*row) for row in await tx.rows("journal_back", revision=revision, count=limit)]


async def history(
    database: Database, revision: int, *, after: int = 0, since_us: int = 0, page_rows: int = PAGE_ROWS
) -> AsyncIterator[list[Row]]:
    """A subject's rows up to the one of this revision, oldest first, in pages of at most `page_rows` and at least one.

    `after` and `since_us` leave out the rows up to a revision, and those before a time. The history leads back from its
    newest row, so that it is walked twice: once to learn where its pages end, once to read them, oldest first. Memory
    holds one page, and 8 bytes for each other. No transaction is held while the caller works on a page: rows never
    change. Raises StoreDamaged when a row is not there that another one names.
    """
    ends = array("q")
    while revision > after:
        ends.append(revision)
        async with database.reading() as tx:
            start = await tx.row("journal_page_start", revision=revision, after=after, count=page_rows)
        if start is None:
            raise StoreDamaged(f"the journal has no row {revision}, although a later one leads there")
        revision = start["previous"] if start["time_us"] >= since_us else 0
    for end in reversed(ends):
        async with database.reading() as tx:
            page = await walk_back(tx, end, page_rows)
        if rows := [row for row in reversed(page) if row.revision > after and row.time_us >= since_us]:
            yield rows


async def check_tail(tx: Transaction, rows_max: int = TAIL_ROWS) -> None:
    """Raises StoreDamaged unless the journal ends as its head says, in so many rows that follow from each other."""
    found = await tx.row("journal_head")
    if found is None:
        if await read_after(tx, 0, 1):
            raise StoreDamaged("the journal has rows, and its head is missing")
        return
    head = Head(*found)
    start = max(head.revision - rows_max - 1, 0)
    rows = await read_after(tx, start, rows_max + 2)
    # Of a longer journal the first row is only there to say what the next one follows from.
    tail, previous_hash = (rows[1:], rows[0].hash) if start and rows else (rows, FIRST_HASH)
    if broken := verify_chain(tail, previous_hash):
        raise StoreDamaged(f"row {broken.revision} of the journal does not follow from the one before it")
    end = (rows[-1].revision, rows[-1].hash) if rows else (0, FIRST_HASH)
    # The head's time may be later: it once moved with changes that made no row.
    early = bool(rows) and head.time_us < rows[-1].time_us
    if (head.revision, head.hash) != end or early or len(rows) != head.revision - start:
        raise StoreDamaged(f"the journal ends with row {end[0]}, and its head says {head.revision}")


def verify_chain(rows: Iterable[Row], previous_hash: str = FIRST_HASH) -> Row | None:
    """The first row that does not follow from the one before it, or None when the chain holds.

    `rows` are neighbours in order; `previous_hash` is that of the row before the first. Rows without gaps are checked
    for gaps too, since a revision is part of the hash.
    """
    before: Row | None = None
    for row in rows:
        if not _follows(before, previous_hash, row):
            return row
        before, previous_hash = row, row.hash
    return None


def _follows(before: Row | None, previous_hash: str, row: Row) -> bool:
    try:
        in_order = before is None or (row.revision == before.revision + 1 and row.time_us >= before.time_us)
        return in_order and row.hash == _digest(previous_hash, *row[:-1])
    except TypeError:
        # In a damaged file a number may read as a text, and a text as bytes.
        return False


def _digest(
    previous_hash: str, revision: int, time_us: int, kind: str, actor: str, subject: str, previous: int, body: str
) -> str:
    # No field holds a NUL (bad input is refused at the edge and JSON escapes it), so this reads back in one way only.
    fields = (previous_hash, str(revision), str(time_us), kind, actor, subject, str(previous), body)
    return sha256("\0".join(fields).encode()).hexdigest()
