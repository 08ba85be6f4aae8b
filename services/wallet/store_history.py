"""What can be asked of an account's history: its rows by what they are, its last one at an instant, its days' sums.

A row leads to the one before it on the same account, so that what is newest costs least, and no second index is kept.
Days are summed up when somebody asks: no change of a balance pays for a summary, and none can differ from the journal.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from services.chassis import journal
from services.chassis.database import Database, Transaction
from services.wallet import calendar_day
from services.wallet.economy import Rules
from services.wallet.holdings import TOKEN
from services.wallet.store_rows import encode, entry_of

SCAN_ROWS_MAX: Final = 10_000
"""How many rows a page looks at. One whose rows are rare is then short, or empty, and says where to go on."""
DAYS_ROWS_MAX: Final = 20_000
"""How many rows a page of days sums up."""
NEAR_ROWS: Final = 5_000
"""Rows of the journal, everybody's, before an instant, among which an account's last one is looked for first."""
TIME_US_MAX: Final = 2**63 - 1


class Wanted(NamedTuple):
    """Which rows of a history are meant; what is left empty leaves nothing out."""

    kinds: Sequence[str] = ()
    counterparty: str = ""
    since_us: int = 0
    until_us: int = TIME_US_MAX
    """The first instant that is too late."""
    asset: str = TOKEN


ALL: Final = Wanted()


class Page(NamedTuple):
    """Rows of a history, newest first, and where it goes on; 0 where it doesn't."""

    rows: Sequence[journal.Row]
    next_revision: int


class DayPart(NamedTuple):
    """What one kind of rows came to in a day. rule: of what was earned, by which rule; empty otherwise."""

    kind: str
    rule: str
    amount_in: int
    amount_out: int
    rows: int


class Day(NamedTuple):
    """What a day came to, and the balance at its end."""

    day: int
    balance: int
    parts: Sequence[DayPart]


class Days(NamedTuple):
    """Days with rows, newest first, and where they go on; 0 where they don't."""

    days: Sequence[Day]
    next_revision: int


class NoSuchPlace(LookupError):
    """A page was to begin at a row that is none of this history."""


class History:
    """The reading half of an account's journal; each method sees one consistent snapshot."""

    def __init__(self, database: Database, rules: Rules) -> None:
        self._database = database
        self._rules = rules
        self._zone = calendar_day.zone_of(rules.zone)

    async def transactions(self, account_id: str, before: int | None, limit: int, wanted: Wanted = ALL) -> Page | None:
        """The wanted rows of an account, newest first: at most `limit` from revision `before` (None: from the newest).

        None for an account that does not exist; raises NoSuchPlace when `before` is not a row of it.
        """
        async with self._database.reading() as tx:
            newest = await _newest(tx, account_id, wanted.asset)
            if newest is None:
                return None
            start = await _start(tx, account_id, newest, before, wanted)
            if not start:
                return Page((), 0)
            walked = await _walk(tx, start, limit, wanted)
        if not walked or walked[-1][0].subject != _subject(account_id, wanted.asset):
            raise NoSuchPlace(before)
        last = walked[-1][0]
        return Page(
            [row for row, matched in walked if matched], last.previous if last.time_us >= wanted.since_us else 0
        )

    async def row_at(self, account_id: str, time_us: int) -> journal.Row | None:
        """The last row of an account's tokens at or before an instant; None when it was not open then."""
        async with self._database.reading() as tx:
            newest = await _newest(tx, account_id, TOKEN)
            revision = await _last_at(tx, account_id, TOKEN, newest, time_us) if newest else 0
            found = await journal.walk_back(tx, revision, 1) if revision else []
        return found[0] if found else None

    async def days(self, account_id: str, asset: str, days: range, before: int | None, limit: int) -> Days | None:
        """What an account's days came to, newest first: at most `limit` of the days asked for from revision `before`.

        A day that is too long for one page comes in parts, each on a page of its own. None for an account that does not
        exist; raises NoSuchPlace when `before` is not a row of it.
        """
        zone = self._zone
        wanted = Wanted(until_us=calendar_day.start_us(days.stop, zone), asset=asset)
        found: list[Day] = []
        rows_left = DAYS_ROWS_MAX
        async with self._database.reading() as tx:
            newest = await _newest(tx, account_id, asset)
            if newest is None:
                return None
            revision = await _start(tx, account_id, newest, before, wanted)
            while revision and rows_left > 0 and len(found) < limit:
                row = await _row_of(tx, revision, _subject(account_id, asset))
                day = calendar_day.day_of(row.time_us, zone)
                if day < days.start:
                    return Days(found, 0)
                since_us = calendar_day.start_us(day, zone)
                sums = await tx.rows("sum_day", revision=revision, since_us=since_us, scan=rows_left)
                rows_left -= sum(each["rows"] for each in sums)
                revision = min(each["next_revision"] for each in sums)
                parts = [DayPart(*each[:5]) for each in map(tuple, sums) if each[2] or each[3]]
                found.append(Day(day, entry_of(row).balance, parts))
        return Days(found, revision)


async def _newest(tx: Transaction, account_id: str, asset: str) -> int | None:
    """The newest row of an account's holdings; 0 where it never had any of the asset, None without an account."""
    rows = await tx.rows("list_newest", account_id=account_id)
    return {row["asset"]: int(row["revision"]) for row in rows}.get(asset, 0) if rows else None


async def _start(tx: Transaction, account_id: str, newest: int, before: int | None, wanted: Wanted) -> int:
    """Where a page begins: at the row it was told, or the last one that is not too late; 0 where there is none."""
    if before is not None:
        return before
    return await _last_at(tx, account_id, wanted.asset, newest, wanted.until_us - 1) if newest else 0


async def _last_at(tx: Transaction, account_id: str, asset: str, newest: int, time_us: int) -> int:
    """The last row at or before an instant, 0 for none.

    Whoever is busy has a row among everybody's last ones before that instant; whoever is not has few to walk back over.
    """
    head = await journal.read_head(tx)
    if time_us >= head.time_us:
        return newest
    place = {"subject": _subject(account_id, asset), "time_us": time_us, "head": head.revision, "near": NEAR_ROWS}
    row = await tx.row("find_row_near", **place) or await tx.row("get_row_at", revision=newest, time_us=time_us)
    return int(row["revision"]) if row else 0


async def _walk(tx: Transaction, start: int, limit: int, wanted: Wanted) -> list[tuple[journal.Row, bool]]:
    """The wanted rows and the last one looked at, each with whether it is wanted."""
    if wanted._replace(asset=TOKEN) == ALL:
        return [(row, True) for row in await journal.walk_back(tx, start, limit)]
    rows = await tx.rows(
        "list_wanted",
        revision=start,
        kinds=encode(sorted(wanted.kinds)),
        counterparty=wanted.counterparty,
        since_us=wanted.since_us,
        until_us=wanted.until_us,
        scan=SCAN_ROWS_MAX,
        count=limit,
    )
    return [(journal.Row(*row[:-1]), bool(row[-1])) for row in map(tuple, rows)]


async def _row_of(tx: Transaction, revision: int, subject: str) -> journal.Row:
    for row in await journal.walk_back(tx, revision, 1):
        if row.subject == subject:
            return row
    raise NoSuchPlace(revision)


def _subject(account_id: str, asset: str) -> str:
    return account_id if asset == TOKEN else f"{asset}/{account_id}"
