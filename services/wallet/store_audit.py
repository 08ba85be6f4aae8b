"""Audits the ledger: rebuilds it from the journal in a database of its own, page by page, and compares.

Nothing is held in memory but a page, and nothing is locked: each page is read in a short transaction of its own, while
the wallet goes on. No row is ever deleted and no key ever changes, so that a walk along the keys meets every row once.
"""

import sqlite3
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, NamedTuple

from services.chassis import journal
from services.chassis.database import Database, Row, Transaction
from services.wallet.audit import Fault, FaultKind, Progress, Replayed, Report, difference, replay
from services.wallet.holdings import (
    TOKEN,
    Account,
    AccountChange,
    AccountKey,
    CounterRecord,
    Earning,
    Entry,
    GrantRecord,
    Lot,
    Operation,
    Reservation,
    RuleSetRecord,
    State,
    Streak,
)
from services.wallet.market import Market, Offer, Take
from services.wallet.sharing import Gift, LimitChange, Member, Shared, SpendingLimits, Team, TeamChange
from services.wallet.store_rows import encode, entry_of, statements

PAGE_ROWS: Final = 5_000


class Projection(NamedTuple):
    """One table that the journal makes: how it is walked, and how its rows are found in the rebuilt ledger."""

    name: str
    kind: FaultKind
    row: type[Any]
    keys: Sequence[int]
    """Which columns are the key, in its order."""
    ignored: frozenset[int] = frozenset()

    @property
    def before_all(self) -> Sequence[Any]:
        """A key that stands before every row's."""
        numbers = {Lot: (0,), CounterRecord: (2,)}.get(self.row, ())
        return tuple(-1 if place in numbers else "" for place in self.keys)

    def key(self, row: Row) -> tuple[Any, ...]:
        """The key of a row."""
        return tuple([row[place] for place in self.keys])


_DUE_COLUMN: Final = Account._fields.index("due_time_us")
PROJECTIONS: Final = (
    # When something is due next is a hint for sweeps, which may be early; that it is not late is a check of its own.
    Projection("accounts", FaultKind.BALANCE, Account, (0, 1), frozenset({_DUE_COLUMN})),
    Projection("reservations", FaultKind.HOLD, Reservation, (0, 1)),
    Projection("lots", FaultKind.LOT, Lot, (0,)),
    Projection("grants", FaultKind.KEY, GrantRecord, (0, 1)),
    Projection("operations", FaultKind.KEY, Operation, (0, 1, 2)),
    Projection("account_changes", FaultKind.KEY, AccountChange, (0, 1)),
    Projection("counters", FaultKind.KEY, CounterRecord, (0, 1, 2)),
    Projection("earnings", FaultKind.KEY, Earning, (0, 1)),
    Projection("streaks", FaultKind.KEY, Streak, (0,)),
    Projection("rule_sets", FaultKind.KEY, RuleSetRecord, (0,)),
    Projection("teams", FaultKind.KEY, Team, (0,)),
    Projection("members", FaultKind.KEY, Member, (0, 1)),
    Projection("team_changes", FaultKind.KEY, TeamChange, (0, 1)),
    Projection("gifts", FaultKind.KEY, Gift, (0, 1)),
    Projection("offers", FaultKind.HOLD, Offer, (0, 1)),
    Projection("takes", FaultKind.KEY, Take, (0, 1)),
    Projection("spending_limits", FaultKind.KEY, SpendingLimits, (0,)),
    Projection("limit_changes", FaultKind.KEY, LimitChange, (0, 1)),
)
CHECKS: Final = (
    ("check_holds", FaultKind.HOLD, "held tokens are not the sum of the open reservations"),
    ("check_lots", FaultKind.LOT, "its lots have more tokens, or more held, than it has itself"),
    ("check_due", FaultKind.HOLD, "something of it ends before it is looked at again"),
    ("check_escrow", FaultKind.SUM, "it has not what open offers have left"),
)


class _Broken(Exception):
    """Carries the first fault out of the audit."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.problem)
        self.fault = fault


class Audit:
    """Audits one ledger; `scratch` opens an empty database of the wallet's schema to rebuild it in."""

    def __init__(self, database: Database, scratch: Callable[[], AbstractAsyncContextManager[Database]]) -> None:
        self._database = database
        self._scratch = scratch

    async def run(self, up_to_revision: int = 0) -> AsyncGenerator[Progress | Report, None]:
        """Says how far it is, and at last what it found, up to a revision or, with 0, to the newest."""
        async with self._database.reading() as tx:
            try:
                head = await journal.read_head(tx)
            except LookupError as error:
                rows = await journal.read_after(tx, 0, 1)
                fault = Fault(FaultKind.JOURNAL, "", 0, "a head", "nothing", str(error)) if rows else None
                yield Report(0, journal.FIRST_HASH, fault, {})
                return
        revision = min(up_to_revision, head.revision) if up_to_revision else head.revision
        rebuilt = _Rebuilt(self._database, revision)
        try:
            yield Progress("database", 0, 0)
            if problem := await self._database.problem():
                raise _Broken(Fault(FaultKind.DATABASE, "", 0, "", problem, f"the database is damaged: {problem}"))
            async with self._scratch() as scratch:
                async for done in rebuilt.follow(scratch):
                    yield Progress("journal", done, revision)
                rebuilt.check_end(head)
                for projection in PROJECTIONS:
                    async for done in rebuilt.compare(scratch, projection):
                        yield Progress(projection.name, done, 0)
                yield Progress("sums", 0, 0)
                await rebuilt.check_sums()
        except _Broken as broken:
            yield Report(revision, rebuilt.hash, broken.fault, rebuilt.counts)
        else:
            yield Report(revision, rebuilt.hash, None, rebuilt.counts)


class _Rebuilt:
    """A ledger made anew from the journal of another, and what was found on the way."""

    def __init__(self, database: Database, revision: int) -> None:
        self._database = database
        self._revision = revision
        self._system: Counter[AccountKey] = Counter()
        self._done = 0
        self.hash: str = journal.FIRST_HASH
        self.counts: Counter[str] = Counter()

    async def follow(self, scratch: Database) -> AsyncGenerator[int, None]:
        """Rebuilds page by page; says how many rows are done. Raises _Broken at the first that does not follow."""
        time_us = 0
        while self._done < self._revision:
            async with self._database.reading() as tx:
                rows = await journal.read_after(tx, self._done, min(PAGE_ROWS, self._revision - self._done))
            self._check_chain(rows, time_us)
            time_us = rows[-1].time_us
            await self._apply(scratch, rows)
            self._done, self.hash = rows[-1].revision, rows[-1].hash
            yield self._done

    def _check_chain(self, rows: Sequence[journal.Row], time_us: int) -> None:
        expected = range(self._done + 1, min(self._done + PAGE_ROWS, self._revision) + 1)
        if len(rows) < len(expected):
            there = {row.revision for row in rows}
            missing = next(revision for revision in expected if revision not in there)
            problem = f"revision {missing} of the journal is missing"
            raise _Broken(Fault(FaultKind.JOURNAL, "", missing, str(missing), "nothing", problem))
        broken = rows[0] if rows[0].time_us < time_us else journal.verify_chain(rows, self.hash)
        if broken is not None:
            problem = f"revision {broken.revision} of the journal is not what was written"
            raise _Broken(Fault(FaultKind.JOURNAL, broken.subject, broken.revision, "", broken.hash, problem))

    async def _apply(self, scratch: Database, rows: Sequence[journal.Row]) -> None:
        try:
            replayed = [Replayed(row.revision, row.time_us, entry_of(row)) for row in rows]
        except (KeyError, ValueError) as error:
            raise _Broken(
                Fault(FaultKind.JOURNAL, "", rows[0].revision, "", "", f"a row of the journal can't be read: {error}")
            ) from error
        async with scratch.transaction() as tx:
            state = await _load(tx, replayed)
            loaded = state.copy()
            if fault := replay(state, replayed):
                raise _Broken(fault)
            for key, change in state.system.items():
                self._system[key] += change
            state.system.clear()
            try:
                await tx.run_all(statements(loaded, state))
            except sqlite3.IntegrityError as error:
                # Only a journal that was written by another hand uses a key again.
                problem = f"the rows from revision {rows[0].revision} on break what the tables promise: {error}"
                raise _Broken(Fault(FaultKind.JOURNAL, "", rows[0].revision, "", "", problem)) from error

    def check_end(self, head: journal.Head) -> None:
        """The journal ends where its head says, unless the audit ends before."""
        if self._revision == head.revision and self.hash != head.hash:
            problem = f"the journal's head does not say the hash of its last row, revision {head.revision}"
            raise _Broken(Fault(FaultKind.JOURNAL, "", head.revision, self.hash, head.hash, problem))

    async def compare(self, scratch: Database, projection: Projection) -> AsyncGenerator[int, None]:
        """Holds every stored row against the rebuilt one; says how many are done. Raises _Broken at the first fault."""
        met = done = 0
        async for rows in _pages(self._database, projection):
            made = await _find(scratch, projection, rows)
            async with self._database.reading() as tx:
                newest = (await journal.read_head(tx)).revision
            for row in rows:
                key = projection.key(row)
                met += key in made
                # A row that has changed since is left to the next audit; but nothing can be newer than the journal.
                if not self._revision < row["revision"] <= newest:
                    self._compare(projection, key, made.get(key), row)
            done += len(rows)
            yield done
        self.counts[projection.name] = met
        await self._check_missing(scratch, projection, met)

    def _compare(self, projection: Projection, key: Sequence[Any], made: Row | None, stored: Row) -> None:
        columns: Sequence[str] = projection.row._fields
        expected, found = None if made is None else tuple(made), tuple(stored)
        same = expected is not None and all(
            expected[place] == found[place] for place in range(len(columns)) if place not in projection.ignored
        )
        if not same:
            raise _Broken(difference(projection.kind, _subject(key), columns, expected, found))

    async def _check_missing(self, scratch: Database, projection: Projection, met: int) -> None:
        """All that was rebuilt was met; otherwise looks for the first that is not stored."""
        async with scratch.reading() as tx:
            counted = await tx.row(f"count_{projection.name}")
        if counted is not None and counted["count"] == met:
            return
        async for rows in _pages(scratch, projection):
            stored = await _find(self._database, projection, rows)
            for row in rows:
                key = projection.key(row)
                if key not in stored:
                    columns: Sequence[str] = projection.row._fields
                    raise _Broken(difference(projection.kind, _subject(key), columns, tuple(row), None))

    async def check_sums(self) -> None:
        """What the system accounts have, that all balances sum to 0, and what must hold between the tables."""
        async with self._database.reading() as tx:
            head = await journal.read_head(tx)
            await self._check_system(tx, head.revision)
            for row in await tx.rows("sum_balances"):
                if row["balance"]:
                    problem = f"all balances of {row['asset']} do not sum to 0"
                    raise _Broken(Fault(FaultKind.SUM, "", head.revision, "0", str(row["balance"]), problem))
            for check, kind, wrong in CHECKS:
                for subject, revision, expected, found in await tx.rows(check):
                    problem = f"account {subject!r}: {wrong}"
                    raise _Broken(Fault(kind, subject, revision, str(expected), str(found), problem))

    async def _check_system(self, tx: Transaction, head_revision: int) -> None:
        """System accounts have no revision of their own: they are taken on to the newest row."""
        done = self._revision
        while done < head_revision:
            rows = await journal.read_after(tx, done, PAGE_ROWS)
            for entry in map(entry_of, rows):
                if entry.counterparty:
                    self._system[entry.counterparty, entry.asset] -= entry.balance_change
            done = rows[-1].revision if rows else head_revision
        stored = {(row["account_id"], row["asset"]): row["balance"] for row in await tx.rows("list_system_accounts")}
        for key in sorted(self._system.keys() | stored.keys()):
            if self._system[key] != stored.get(key, 0):
                expected, found = str(self._system[key]), str(stored.get(key, 0))
                problem = f"system account {key[0]} is not what the journal says"
                raise _Broken(Fault(FaultKind.SUM, key[0], head_revision, expected, found, problem))


async def _pages(database: Database, projection: Projection) -> AsyncGenerator[list[Row], None]:
    """All rows of a projection in the order of its key."""
    after = projection.before_all
    more = True
    while more:
        parameters = dict(zip(("after_a", "after_b", "after_c"), after, strict=False))
        async with database.reading() as tx:
            rows = await tx.rows(f"page_{projection.name}", **parameters, limit=PAGE_ROWS)
        if rows:
            yield rows
            after = projection.key(rows[-1])
        more = len(rows) == PAGE_ROWS


async def _find(database: Database, projection: Projection, rows: Sequence[Row]) -> dict[tuple[Any, ...], Row]:
    """The rows of the same keys in another database."""
    keys = encode([projection.key(row) for row in rows])
    async with database.reading() as tx:
        found = await tx.rows(f"find_{projection.name}", keys=keys)
    return {projection.key(row): row for row in found}


async def _load(tx: Transaction, replayed: Sequence[Replayed]) -> State:
    """What a page of the journal names, as the rebuilt ledger has it."""
    entries = [each.entry for each in replayed]
    reservations = {(entry.created_by, entry.reservation_id) for entry in entries if entry.reservation_id}
    grants = {(entry.created_by, entry.key) for entry in entries if entry.kind == "revoke"}
    lots = {lot_id for entry in entries for lot_id, *_ in entry.facts.get("lots", ())}
    lots |= {lot_id for entry in entries for lot_id in entry.facts.get("ended", ())}
    asked: dict[str, Sequence[Any]] = {
        "find_accounts": sorted({(entry.account_id, entry.asset) for entry in entries if entry.account_id}),
        "find_reservations": sorted(reservations),
        "find_grants": sorted(grants),
        "find_lots": sorted((lot_id,) for lot_id in lots),
        "find_counters": sorted(
            {(e.account_id, each[0], each[1]) for e in entries for each in e.facts.get("counts", ())}
        ),
        "find_streaks": sorted({(entry.account_id,) for entry in entries if "streak" in entry.facts}),
        **_named_teams(entries),
        "find_offers": _named_offers(entries),
        "find_spending_limits": sorted({(entry.account_id,) for entry in entries if entry.kind == "limit"}),
    }
    queries = [(name, {"keys": encode(keys)}) for name, keys in asked.items()]
    accounts, held, granted, found, counted, streaks, teams, members, offers, limits = await tx.rows_all(queries)
    state = State(
        accounts={(row[0], row[1]): Account(*row) for row in accounts},
        reservations={(row[0], row[1]): Reservation(*row) for row in held},
        grants={(row[0], row[1]): GrantRecord(*row) for row in granted},
        counters={(row[0], row[1], row[2]): CounterRecord(*row) for row in counted},
        streaks={row[0]: Streak(*row) for row in streaks},
        shared=Shared(
            teams={row[0]: Team(*row) for row in teams},
            members={(row[0], row[1]): Member(*row) for row in members},
            limits={row[0]: SpendingLimits(*row) for row in limits},
        ),
        market=Market({(row[0], row[1]): Offer(*row) for row in offers}),
    )
    state.add_lots(Lot(*row) for row in found)
    return state


def _named_teams(entries: Sequence[Entry]) -> dict[str, Sequence[Any]]:
    changed = [(entry.account_id, entry.facts["peer"]) for entry in entries if entry.kind in ("member", "unmember")]
    return {"find_teams": sorted({(team_id,) for team_id, _ in changed}), "find_members": sorted(set(changed))}


def _named_offers(entries: Sequence[Entry]) -> Sequence[Any]:
    sold = {(entry.account_id, entry.facts["offer"]) for entry in entries if entry.kind == "sell"}
    return sorted(sold | {(entry.account_id, entry.key) for entry in entries if entry.kind in ("offer", "unoffer")})


def _subject(key: Sequence[Any]) -> str:
    return " ".join(str(part) for part in key if part != TOKEN)
