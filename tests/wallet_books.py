"""Fresh wallets whose tables a test may read past the store, row by row: on SQLite and on PostgreSQL."""

import contextlib
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import asyncpg

from services.chassis import journal
from services.chassis.database import connect, migrate
from services.wallet.economy import Rules
from services.wallet.store import Store
from tests.fixed_time import Clock, FixedTime

WALLET = Path("services/wallet")
Table = list[dict[str, Any]]
"""Rows by column."""
Tables = dict[str, Table]

_SQLITE_TABLES = "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"
_POSTGRES_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename"
_MIGRATIONS = "schema_migrations"


@dataclass
class Ledger:
    """A wallet of its own for one history."""

    store: Store
    clock: Clock
    url: str
    postgres: asyncpg.Connection | None
    sqlite: sqlite3.Connection | None

    async def tables(self, after_revision: int = 0) -> Tables:
        """All that is stored, but of the journal only what follows a revision; rows in the order of their content."""
        if self.postgres is not None:
            names = [row[0] for row in await self.postgres.fetch(_POSTGRES_TABLES)]
            found = {name: await self.postgres.fetch(_rows_of(name, after_revision)) for name in names}
        else:
            assert self.sqlite is not None
            names = [row[0] for row in self.sqlite.execute(_SQLITE_TABLES)]
            found = {name: self.sqlite.execute(_rows_of(name, after_revision)).fetchall() for name in names}
        tables = {name: [dict(row) for row in rows] for name, rows in found.items() if name != _MIGRATIONS}
        return {name: rows if name == "journal" else sorted(rows, key=repr) for name, rows in tables.items()}


def _rows_of(table: str, after_revision: int) -> str:
    where = f" WHERE revision > {after_revision} ORDER BY revision" if table == "journal" else ""
    return f"SELECT * FROM {table}{where}"


class Ledgers:
    """Opens wallets quickly: each is a copy of one that was migrated and opened once."""

    def __init__(self, folder: Path, postgres: str | None = None) -> None:
        """`postgres` is the URL of a server with `{database}` in it; without one the ledgers are SQLite files."""
        self.dialect = "sqlite" if postgres is None else "postgres"
        self._folder = folder
        self._postgres = postgres
        self._count = 0
        self._template = self._url("template")

    def _url(self, name: str) -> str:
        if self._postgres is None:
            return f"sqlite:{self._folder}/{name}.db"
        return self._postgres.format(database=f"ledger_{self._folder.name}_{name}".lower())

    @classmethod
    async def prepared(cls, folder: Path, postgres: str | None = None) -> Self:
        """Ledgers in a folder or on a server, with the wallet made of which all others are copies."""
        ledgers = cls(folder, postgres)
        migrate(ledgers._template, WALLET / "migrations")
        async with await connect(ledgers._template, [WALLET / "sql"], pool_size=1) as database:
            async with database.transaction() as tx:
                # Long before the tests' own clock, which no row of the journal may precede.
                await journal.open_head(tx, "test", 1)
            await Store(database, Rules()).open("test")
        return ledgers

    @asynccontextmanager
    async def open(self, grace_us: int) -> AsyncIterator[Ledger]:
        """A wallet in which nothing has happened; it is deleted at the end."""
        self._count += 1
        url = self._url(str(self._count))
        rules = Rules(welcome_bonus=10, grace_us=grace_us)
        clock = Clock()
        async with self._copy(url) as (postgres, sqlite), await connect(url, [WALLET / "sql"], pool_size=1) as database:
            store = Store(FixedTime(database, clock), rules)  # type: ignore[arg-type]
            yield Ledger(store, clock, url, postgres, sqlite)

    @asynccontextmanager
    async def _copy(self, url: str) -> AsyncIterator[tuple[asyncpg.Connection | None, sqlite3.Connection | None]]:
        if self._postgres is None:
            file = url.removeprefix("sqlite:")
            shutil.copyfile(self._template.removeprefix("sqlite:"), file)
            with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as sqlite:
                sqlite.row_factory = sqlite3.Row
                yield None, sqlite
            os.unlink(file)  # noqa: PTH108 - a step of the test, which nothing else waits for
            return
        admin = await asyncpg.connect(self._postgres.format(database="postgres"))
        name, template = _name(url), _name(self._template)
        try:
            await admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
            postgres = await asyncpg.connect(url)
            try:
                yield postgres, None
            finally:
                await postgres.close()
                await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        finally:
            await admin.close()


def _name(url: str) -> str:
    return url.partition("?")[0].rpartition("/")[2]
