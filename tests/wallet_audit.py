"""The auditor of one wallet's database: what must hold in every snapshot, and what must hold when all is quiet.

It reads the tables beside the wallet and adds up by itself; of the wallet's code it uses only what it compares with,
the replay of the journal and the check of its chain.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, closing, suppress
from typing import Any, Final

import asyncpg

from services.chassis import journal
from services.wallet.holdings import TOKEN, Entry, State, read_pins
from services.wallet.journal_entry import apply
from services.wallet.store_rows import entry_of

Row = dict[str, Any]
Tables = dict[str, list[Row]]

BY_THEMSELVES: Final = frozenset({"expire", "lapse", "grace", "unoffer"})
"""The kinds of rows that no command asks for: any one may find them due, whatever becomes of the command itself."""
SAMPLE_PAUSE_SECONDS: Final = 0.1
"""So that the sampler does not take the processor from the load that it watches."""

SETTLE_SECONDS_MAX: Final = 60.0

ALWAYS: Final = {
    "all balances of an asset come to 0": """
        SELECT asset, sum(balance) AS total FROM (
            SELECT asset, balance FROM accounts UNION ALL SELECT asset, balance FROM system_accounts
        ) AS everybody GROUP BY asset HAVING sum(balance) <> 0""",
    "0 <= held <= balance": "SELECT * FROM accounts WHERE held < 0 OR balance < held",
    "held is what open reservations hold": """
        SELECT a.account_id, a.held, r.held AS sum_held FROM accounts a LEFT JOIN (
            SELECT payer_account_id, sum(reserved - released) AS held FROM reservations WHERE state = 1
            GROUP BY payer_account_id
        ) AS r ON r.payer_account_id = a.account_id
        WHERE a.asset = 'TOKEN' AND a.held <> coalesce(r.held, 0)""",
    "an ended reservation is committed, released and expired, and nothing else": """
        SELECT * FROM reservations WHERE state <> 1 AND reserved <> committed + released + expired""",
    "0 <= refunded <= committed": "SELECT * FROM reservations WHERE refunded < 0 OR committed < refunded",
    "no hold ends before its account is due": """
        SELECT a.account_id, a.due_time_us, r.expire_time_us FROM accounts a JOIN (
            SELECT payer_account_id, min(expire_time_us) AS expire_time_us FROM reservations WHERE state = 1
            GROUP BY payer_account_id
        ) AS r ON r.payer_account_id = a.account_id
        WHERE a.asset = 'TOKEN' AND (a.due_time_us IS NULL OR a.due_time_us > r.expire_time_us)""",
    "what lots have left and hold is a part of what their account has": """
        SELECT a.account_id, a.balance, a.held, a.lots, l.remaining, l.held AS lots_held, l.lots AS lots_left
        FROM accounts a LEFT JOIN (
            SELECT account_id, sum(remaining) AS remaining, sum(held) AS held, count(*) AS lots FROM lots
            WHERE remaining > 0 GROUP BY account_id
        ) AS l ON l.account_id = a.account_id
        WHERE a.asset = 'TOKEN' AND (a.lots <> coalesce(l.lots, 0) OR a.held < coalesce(l.held, 0)
            OR a.balance - a.held < coalesce(l.remaining - l.held, 0))""",
    "0 <= held <= remaining <= granted": """
        SELECT * FROM lots WHERE held < 0 OR remaining < held OR granted < remaining""",
    "no lot with free tokens ends before its account is due": """
        SELECT a.account_id, a.due_time_us, l.lot_id, l.expire_time_us FROM lots l
        JOIN accounts a ON a.account_id = l.account_id AND a.asset = 'TOKEN'
        WHERE l.remaining > l.held AND (a.due_time_us IS NULL OR a.due_time_us > l.expire_time_us)
            AND l.expire_time_us IS NOT NULL""",
    "no offer ends before its seller is due": """
        SELECT a.account_id, a.due_time_us, o.expire_time_us FROM offers o
        JOIN accounts a ON a.account_id = o.account_id AND a.asset = 'TOKEN'
        WHERE o.state = 1 AND (a.due_time_us IS NULL OR a.due_time_us > o.expire_time_us)""",
    "@escrow has what open offers have left": """
        SELECT o.offered, s.balance FROM
            (SELECT coalesce(sum(tokens - sold - returned), 0) AS offered FROM offers) AS o,
            (SELECT coalesce(sum(balance), 0) AS balance FROM system_accounts WHERE account_id = '@escrow') AS s
        WHERE o.offered <> s.balance""",
    "what passes through @transfer is through": """
        SELECT * FROM system_accounts WHERE account_id = '@transfer' AND balance <> 0""",
    "what an offer has sold is what takes have bought of it, at its price": """
        SELECT o.account_id, o.offer_id, o.sold, t.tokens, t.points FROM offers o LEFT JOIN (
            SELECT seller_id, offer_id, sum(tokens) AS tokens, sum(points) AS points FROM takes
            GROUP BY seller_id, offer_id
        ) AS t ON t.seller_id = o.account_id AND t.offer_id = o.offer_id
        WHERE o.sold <> coalesce(t.tokens, 0) OR o.sold * o.price_points <> coalesce(t.points, 0)""",
    "a closed account has nothing": """
        SELECT * FROM accounts WHERE state = 3 AND (balance <> 0 OR held <> 0 OR lots <> 0)""",
    "@issue gave what was granted or earned and not revoked": """
        SELECT g.given, e.earned, s.balance FROM
            (SELECT coalesce(sum(amount - coalesce(revoked, 0)), 0) AS given FROM grants) AS g,
            (SELECT coalesce(sum(tokens), 0) AS earned FROM earnings) AS e,
            (SELECT coalesce(sum(balance), 0) AS balance FROM system_accounts
                WHERE account_id = '@issue' AND asset = 'TOKEN') AS s
        WHERE g.given + e.earned <> -s.balance""",
    "@issue gave the points that were earned and not changed into tokens": """
        SELECT e.earned, s.balance FROM
            (SELECT coalesce(sum(points), 0) AS earned FROM earnings) AS e,
            (SELECT coalesce(sum(balance), 0) AS balance FROM system_accounts
                WHERE account_id = '@issue' AND asset = 'POINT') AS s
        WHERE e.earned <> -s.balance""",
    "@revenue has what was committed and not refunded": """
        SELECT r.taken, s.balance FROM (SELECT coalesce(sum(committed - refunded), 0) AS taken FROM reservations) AS r,
            (SELECT coalesce(sum(balance), 0) AS balance FROM system_accounts WHERE account_id = '@revenue') AS s
        WHERE r.taken <> s.balance""",
}
"""Each query finds what breaks its sentence, in any snapshot, also in the middle of a load."""

PINNED: Final = {
    "open": "SELECT reserved - released AS held, pins FROM reservations WHERE state = 1 AND pins <> ''",
    "lots": "SELECT lot_id, held FROM lots WHERE held > 0",
}
EVERYTHING: Final = {
    name: f"SELECT * FROM {name}"
    for name in (
        "accounts",
        "system_accounts",
        "reservations",
        "lots",
        "grants",
        "operations",
        "account_changes",
        "counters",
        "earnings",
        "streaks",
        "rule_sets",
        "teams",
        "members",
        "team_changes",
        "gifts",
        "offers",
        "takes",
        "journal",
        "journal_head",
    )
}


class Reader:
    """Looks at a database beside the wallets that write it; each look is one consistent snapshot."""

    def __init__(self, connection: sqlite3.Connection | asyncpg.Connection) -> None:
        self._connection = connection

    async def look(self, queries: Mapping[str, str]) -> Tables:
        """The rows of several queries, as they were at one time."""
        connection = self._connection
        if isinstance(connection, sqlite3.Connection):
            return await asyncio.to_thread(_look_at_sqlite, connection, queries)
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            return {name: [dict(row) for row in await connection.fetch(sql)] for name, sql in queries.items()}


def _look_at_sqlite(connection: sqlite3.Connection, queries: Mapping[str, str]) -> Tables:
    connection.execute("BEGIN")
    try:
        return {name: [dict(row) for row in connection.execute(sql)] for name, sql in queries.items()}
    finally:
        connection.execute("COMMIT")


@asynccontextmanager
async def reading(url: str) -> AsyncIterator[Reader]:
    """A reader of its own connection."""
    if url.startswith("sqlite:"):
        path = url.removeprefix("sqlite:")
        with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)) as file:
            file.row_factory = sqlite3.Row
            yield Reader(file)
        return
    connection = await asyncpg.connect(url)
    try:
        yield Reader(connection)
    finally:
        await connection.close()


def pin_problems(open_reservations: list[Row], lots: list[Row]) -> Iterator[str]:
    """A lot holds what open reservations hold of it, and the pins of each come to all that it holds."""
    pinned: Counter[int] = Counter()
    for row in open_reservations:
        pins = read_pins(row["pins"])
        if sum(amount for _, amount in pins) != row["held"]:
            yield f"a reservation holds {row['held']} as {pins}"
        for lot_id, amount in pins:
            pinned[lot_id] += amount
    held = {row["lot_id"]: row["held"] for row in lots}
    of_lots = {lot_id: amount for lot_id, amount in pinned.items() if lot_id}
    if held != of_lots:
        yield f"of these lots so much is held {held}, and pinned {of_lots}"


class Sampler:
    """Follows the journal and checks `ALWAYS`, snapshot by snapshot."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._last = journal.Row(0, 0, "", "", "", 0, "", journal.FIRST_HASH)
        self._newest_of: dict[str, int] = {}
        self.samples = 0

    async def sample(self) -> None:
        """Raises AssertionError with everything that does not hold."""
        since = f"SELECT * FROM journal WHERE revision > {self._last.revision} ORDER BY revision"
        seen = await self._reader.look({"head": EVERYTHING["journal_head"], "rows": since, **PINNED, **ALWAYS})
        rows = [journal.Row(**row) for row in seen["rows"]]
        found = [f"{sentence}: {seen[sentence][:3]}" for sentence in ALWAYS if seen[sentence]]
        found += pin_problems(seen["open"], seen["lots"])
        found += self._follow(rows, seen["head"][0])
        assert not found, "\n  ".join([f"snapshot {self.samples} at revision {self._last.revision}:", *found])
        self.samples += 1

    def _follow(self, rows: list[journal.Row], head: Row) -> Iterator[str]:
        if broken := journal.verify_chain(rows, self._last.hash):
            yield f"the chain breaks at revision {broken.revision}"
        if rows and (rows[0].revision, rows[0].time_us >= self._last.time_us) != (self._last.revision + 1, True):
            yield f"revision {rows[0].revision} does not follow {self._last.revision}"
        for row in rows:
            if row.subject and row.previous != self._newest_of.get(row.subject, 0):
                yield f"revision {row.revision} of {row.subject} does not follow its history"
            self._newest_of[row.subject] = row.revision
        self._last = rows[-1] if rows else self._last
        if (head["revision"], head["hash"]) != (self._last.revision, self._last.hash):
            yield f"the head says {head['revision']}, the journal ends at {self._last.revision}"


@asynccontextmanager
async def sampled(url: str) -> AsyncIterator[Sampler]:
    """Samples a database for as long as the block runs, and once behind it."""
    over = asyncio.Event()

    async def follow() -> None:
        while not over.is_set():
            await sampler.sample()
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), SAMPLE_PAUSE_SECONDS)

    async with reading(url) as reader:
        sampler = Sampler(reader)
        task = asyncio.create_task(follow())
        try:
            yield sampler
        finally:
            over.set()
            await task
        await sampler.sample()


class Ledger:
    """A database that nobody writes to, read whole."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.rows = sorted(journal.Row(**row) for row in tables["journal"])
        self.entries = [entry_of(row) for row in self.rows]
        self.by_key = {key: entry for entry in self.entries if (key := key_of(entry))}
        self.ended_by_themselves = {
            ("expire", entry.created_by, entry.reservation_id, "") for entry in self.entries if entry.kind == "expire"
        }
        self.reservations = {(row["created_by"], row["reservation_id"]): row for row in tables["reservations"]}

    def problems(self) -> Iterator[str]:
        """Everything that does not add up, each as a sentence."""
        yield from self._chain_problems()
        yield from self._replay_problems()
        yield from self._ending_problems()

    def _chain_problems(self) -> Iterator[str]:
        if broken := journal.verify_chain(self.rows):
            yield f"the journal breaks at revision {broken.revision}"
        (head,) = self.tables["journal_head"]
        last = (self.rows[-1].revision, self.rows[-1].hash) if self.rows else (0, journal.FIRST_HASH)
        if (head["revision"], head["hash"]) != last or len(self.rows) != last[0]:
            yield f"the journal of {len(self.rows)} rows ends at {last[0]}, its head says {head['revision']}"

    def _replay_problems(self) -> Iterator[str]:
        """Every projection is what the journal says, and nothing else."""
        state = State()
        for row, entry in zip(self.rows, self.entries, strict=True):
            try:
                apply(state, entry, row.time_us)
            except (KeyError, ValueError) as error:
                yield f"the journal cannot be replayed at revision {row.revision}: {error!r}"
                return
        for name, replayed in projections(state).items():
            stored = {_key(name, row): row for row in self.tables[name]}
            for key in replayed.keys() | stored.keys():
                if _but_for_hints(replayed.get(key)) != _but_for_hints(stored.get(key)):
                    yield f"{name} {key} is {stored.get(key)}, and the journal says {replayed.get(key)}"
        system = {(row["account_id"], row["asset"]): row["balance"] for row in self.tables["system_accounts"]}
        # What only passes through has no row where one group took all that it had brought.
        moved = {key: balance for key, balance in state.system.items() if balance}
        if {key: balance for key, balance in system.items() if balance} != moved:
            yield f"system accounts are {system}, and the journal says {state.system}"

    def _ending_problems(self) -> Iterator[str]:
        """No reservation ends twice, but for the late Commit of an expired one; no key was used twice."""
        endings: dict[tuple[str, str], list[str]] = {}
        for entry in self.entries:
            if entry.kind in {"commit", "release", "expire"}:
                endings.setdefault((entry.created_by, entry.reservation_id), []).append(entry.kind)
        for key, kinds in endings.items():
            if len(kinds) > 1 and kinds != ["expire", "commit"]:
                yield f"reservation {key} ended as {kinds}"
        counts = Counter(map(key_of, self.entries))
        yield from (f"{key} was done {count} times" for key, count in counts.items() if key and count > 1)


def projections(state: State) -> dict[str, dict[Any, Row]]:
    """What a replay came to, as the tables should have it: rows by their primary keys."""
    made: dict[str, dict[Any, Any]] = {
        "accounts": state.accounts,
        "reservations": state.reservations,
        "grants": state.grants,
        "operations": state.operations,
        "account_changes": state.changes,
        "lots": {lot_id: lot for lots in state.lots.values() for lot_id, lot in lots.items()},
        "counters": state.counters,
        "earnings": state.earnings,
        "streaks": state.streaks,
        "rule_sets": state.rule_sets,
        "teams": state.shared.teams,
        "members": state.shared.members,
        "team_changes": state.shared.team_changes,
        "gifts": state.shared.gifts,
        "offers": state.market.offers,
        "takes": state.market.takes,
    }
    return {name: {key: value._asdict() for key, value in rows.items()} for name, rows in made.items()}


_KEYS: Final = {
    "accounts": ("account_id", "asset"),
    "reservations": ("created_by", "reservation_id"),
    "grants": ("created_by", "grant_id"),
    "operations": ("created_by", "reservation_id", "operation_id"),
    "account_changes": ("created_by", "change_id"),
    "lots": ("lot_id",),
    "counters": ("account_id", "counter", "day"),
    "earnings": ("created_by", "earning_id"),
    "streaks": ("account_id",),
    "rule_sets": ("version",),
    "teams": ("team_id",),
    "members": ("team_id", "member_id"),
    "team_changes": ("created_by", "change_id"),
    "gifts": ("created_by", "gift_id"),
    "offers": ("account_id", "offer_id"),
    "takes": ("created_by", "take_id"),
}


def _key(name: str, row: Row) -> Any:
    columns = _KEYS[name]
    return row[columns[0]] if len(columns) == 1 else tuple(row[column] for column in columns)


def _but_for_hints(row: Row | None) -> Row | None:
    """When something is due next is a hint for sweeps, which may be early."""
    return row and {name: value for name, value in row.items() if name != "due_time_us"}


Key = tuple[str, str, str, str]


def key_of(entry: Entry) -> Key | None:
    """What can happen only once: the kind, and the key under which it was asked for. None for what has no key."""
    if entry.kind in BY_THEMSELVES:
        return None
    subject = entry.account_id if entry.kind == "open" else entry.created_by
    kind = entry.kind if entry.asset == TOKEN else f"{entry.kind}/{entry.asset}"
    # An offer's id is its seller's own.
    subject = f"{subject}/{entry.account_id}" if entry.kind == "offer" else subject
    return (kind, subject, entry.reservation_id, entry.key)


async def read_ledger(url: str) -> Ledger:
    """The whole database in one snapshot."""
    async with reading(url) as reader:
        return Ledger(await reader.look(EVERYTHING))


async def settled(url: str) -> None:
    """Returns when nothing of a killed wallet goes on: PostgreSQL may end its transaction, and only then notice."""
    if not url.startswith("postgres"):
        return
    busy = """SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'"""
    connection = await asyncpg.connect(url)
    try:
        async with asyncio.timeout(SETTLE_SECONDS_MAX):
            while await connection.fetchval(busy):
                pass
    finally:
        await connection.close()


async def audited(url: str) -> Ledger:
    """The whole database; raises AssertionError with all that does not add up in it."""
    async with reading(url) as reader:
        seen = await reader.look({**EVERYTHING, **ALWAYS, **{f"{name} now": sql for name, sql in PINNED.items()}})
    ledger = Ledger(seen)
    found = [*pin_problems(seen["open now"], seen["lots now"])]
    found += [f"{sentence}: {seen[sentence][:3]}" for sentence in ALWAYS if seen[sentence]]
    found += ledger.problems()
    assert not found, "\n  ".join(["the audit found:", *found[:20]])
    return ledger
