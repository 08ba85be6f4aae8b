"""SQLite in a file: one writer connection, a few readers, each with the thread that aiosqlite gives it.

A hop to such a thread costs as much as inserting thirty rows, so BEGIN rides with the first statement and `run_all`
takes everything that a store writes in one hop.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, Self, TypeAlias, TypeVar

import aiosqlite

from services.chassis.errors import StoreDamaged, StoreUnavailable
from services.chassis.sql.sqlite_errors import DRIVER_ERRORS, check_length, check_schema, check_writable, translated
from services.chassis.sql.transaction import Conflict, Database, Row, Rows, Statement, Transaction

_PRAGMAS: Final = (
    "journal_mode = WAL",
    # Without FULL a power cut loses acknowledged transactions, although it never corrupts the file.
    "synchronous = FULL",
    "foreign_keys = ON",
    # INSERT OR REPLACE fires delete triggers only with this, and the journal refuses deletes by a trigger.
    "recursive_triggers = ON",
    "temp_store = MEMORY",
    "wal_autocheckpoint = 4000",
)
_CACHED_STATEMENTS: Final = 512
_AnyConnection: TypeAlias = "_Connection | _InlineConnection"
Batches = Sequence[tuple[str, Sequence[Sequence[Any]]]]
T = TypeVar("T")


class SqliteMemory(NamedTuple):
    """What the connections to one file may take, each: its cache of pages, and how much of the file it maps."""

    writer_cache_kib: int = 65_536
    reader_cache_kib: int = 8_192
    mapped_kib: int = 262_144


SQLITE_MEMORY: Final = SqliteMemory()


class _Connection(aiosqlite.Connection):
    async def call(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Runs a function in the connection's thread: one hop, however many statements it runs."""
        if not self._running or self._connection is None:
            raise StoreUnavailable("the database is closed")
        try:
            result: T = await self._execute(function, self._connection)  # type: ignore[no-untyped-call]
        except DRIVER_ERRORS as error:
            known = translated(error)
            if known is error:
                raise
            raise known from error
        return result

    async def undo(self) -> None:
        """Rolls back what is open. The thread runs calls in order, so this comes after a call that was given up."""
        await self.call(lambda connection: connection.rollback() if connection.in_transaction else None)

    async def end(self) -> None:
        """Closes, and waits for the thread: aiosqlite would not, of a connection that failed to open."""
        await self.close()
        await asyncio.to_thread(self._thread.join)


class _InlineConnection:
    """The writer of a process that has nothing else to do: a thread would only cost it two hops a statement."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    async def call(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Runs a function at once."""
        try:
            return function(self._connection)
        except DRIVER_ERRORS as error:
            known = translated(error)
            if known is error:
                raise
            raise known from error

    async def undo(self) -> None:
        """Rolls back what is open."""
        await self.call(lambda connection: connection.rollback() if connection.in_transaction else None)

    async def end(self) -> None:
        """Closes."""
        self._connection.close()


class _SqliteTransaction(Transaction):
    def __init__(
        self,
        statements: Mapping[str, Statement],
        connection: _AnyConnection,
        begin: str,
        clock_us: Callable[[], int],
    ) -> None:
        super().__init__(statements)
        self._connection = connection
        self._begin = begin
        self._begun = False
        self._ended = False
        self._clock_us = clock_us

    async def rows(self, name: str, /, **parameters: Any) -> list[Row]:
        statement = self._statements[name]
        arguments = statement.arguments(parameters)
        return await self._call(lambda connection: connection.execute(statement.sql, arguments).fetchall())

    async def rows_all(self, queries: Sequence[tuple[str, Mapping[str, Any]]], /) -> list[list[Row]]:
        statements = [(self._statements[name], parameters) for name, parameters in queries]
        work = [(statement.sql, statement.arguments(parameters)) for statement, parameters in statements]
        return await self._call(lambda raw: [raw.execute(sql, arguments).fetchall() for sql, arguments in work])

    async def run(self, name: str, /, **parameters: Any) -> int:
        statement = self._statements[name]
        arguments = statement.arguments(parameters)
        return await self._call(lambda connection: connection.execute(statement.sql, arguments).rowcount)

    async def run_all(self, statements: Sequence[tuple[str, Rows]], /) -> None:
        batches = self._batches(statements)
        if batches:
            await self._call(lambda connection: _execute(connection, batches))

    async def finish(self, statements: Sequence[tuple[str, Rows]], /) -> None:
        batches = self._batches(statements)

        def run(connection: sqlite3.Connection) -> None:
            _execute(connection, batches)
            _end(connection)

        await self._call(run)
        self._ended = True

    def _batches(self, statements: Sequence[tuple[str, Rows]]) -> Batches:
        work = [(self._statements[name], rows) for name, rows in statements]
        return [(statement.sql, statement.tuples(rows)) for statement, rows in work if rows]

    async def now_us(self) -> int:
        return self._clock_us()

    async def end(self) -> None:
        """Makes the transaction durable."""
        self._check_usable()
        if self._begun and not self._ended:
            await self._connection.call(_end)

    async def _call(self, function: Callable[[sqlite3.Connection], T]) -> T:
        self._check_usable()
        if self._ended:
            raise RuntimeError("the transaction is finished")

        def run(connection: sqlite3.Connection) -> T:
            if not self._begun:
                connection.execute(self._begin)
                self._begun = True
            return function(connection)

        try:
            return await self._connection.call(run)
        except BaseException:
            self._failed = True
            raise


def _execute(connection: sqlite3.Connection, batches: Batches) -> None:
    for sql, rows in batches:
        connection.executemany(sql, rows)


def _end(connection: sqlite3.Connection) -> None:
    """COMMIT. Raises StoreUnavailable when nobody can know what came of it."""
    try:
        connection.execute("COMMIT")
    except sqlite3.IntegrityError:
        raise
    except sqlite3.Error as error:
        known = translated(error)
        if known is not error:
            raise known from error
        raise StoreUnavailable(f"the outcome of the transaction is unknown: {error}") from error


class SqliteDatabase(Database):
    """One file. Transactions queue for the one writer; readers see the last snapshot without waiting."""

    dialect = "sqlite"

    def __init__(
        self,
        statements: Mapping[str, Statement],
        connections: Sequence[_AnyConnection],
        timeout_seconds: float,
        clock_us: Callable[[], int],
        path: Path,
    ) -> None:
        self._path = path
        self._statements = statements
        self._connections = connections
        self._timeout_seconds = timeout_seconds
        self._clock_us = clock_us
        self._writer: asyncio.Queue[_AnyConnection] = asyncio.Queue()
        self._readers: asyncio.Queue[_AnyConnection] = asyncio.LifoQueue()
        self._writer.put_nowait(connections[0])
        for reader in connections[1:]:
            self._readers.put_nowait(reader)

    @classmethod
    async def open(
        cls,
        path: Path,
        statements: Mapping[str, Statement],
        pool_size: int,
        timeout_seconds: float,
        clock_us: Callable[[], int],
        writes_only: bool = False,
        memory: SqliteMemory = SQLITE_MEMORY,
    ) -> Self:
        """Opens a file that a migration has made; raises StoreUnavailable when there is none, and StoreDamaged."""
        connections: list[_Connection] = []
        try:
            if writes_only:
                inline = _InlineConnection(_opened(path, timeout_seconds, memory, read_only=False))
                return cls(statements, [inline], timeout_seconds, clock_us, path)
            for number in range(1 + pool_size):
                opener = partial(_opened, path, timeout_seconds, memory, read_only=number > 0)
                connection = _Connection(opener, iter_chunk_size=64)
                connections.append(connection)
                await connection
        except BaseException as error:
            for connection in connections:
                await connection.end()
            if isinstance(error, DRIVER_ERRORS):
                # What is neither in use nor out of reach is a file whose content is not to be understood.
                lost = isinstance(translated(error), StoreUnavailable)
                raise (StoreUnavailable if lost else StoreDamaged)(f"cannot open {path}: {error}") from error
            raise
        return cls(statements, connections, timeout_seconds, clock_us, path)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """BEGIN IMMEDIATE on the one writer: no other transaction writes between its reads and its writes."""
        connection = await self._taken(self._writer)
        tx = _SqliteTransaction(self._statements, connection, "BEGIN IMMEDIATE", self._clock_us)
        try:
            yield tx
            await tx.end()
        except BaseException:
            await asyncio.shield(asyncio.wait([self._returned(self._writer, connection)]))
            raise
        self._writer.put_nowait(connection)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Transaction]:
        """The snapshot that its first statement sees."""
        connection = await self._taken(self._readers)
        try:
            yield _SqliteTransaction(self._statements, connection, "BEGIN", self._clock_us)
        finally:
            self._returned(self._readers, connection)

    async def problem(self) -> str | None:
        """The first thing that SQLite's integrity check finds; it takes about a second for each 100 MB."""
        connection = await self._taken(self._readers)
        try:
            found = await connection.call(lambda raw: raw.execute("PRAGMA integrity_check(1)").fetchall())
        finally:
            self._returned(self._readers, connection)
        return None if found[0][0] == "ok" else str(found[0][0])

    async def check(self) -> None:
        """The file can be written and is as long as it says, and every statement finds its tables and columns."""
        writer = await self._taken(self._writer)
        try:
            await writer.call(partial(check_writable, self._path))
        finally:
            self._returned(self._writer, writer)
        connection = await self._taken(self._readers)
        try:
            await connection.call(partial(check_length, self._path))
            await connection.call(partial(check_schema, list(self._statements.values())))
        finally:
            self._returned(self._readers, connection)

    async def close(self) -> None:
        """Waits for the connections that are in use, then closes all."""
        await self._taken(self._writer)
        for _ in self._connections[1:]:
            await self._taken(self._readers)
        for connection in self._connections:
            await connection.end()

    async def _taken(self, pool: asyncio.Queue[_AnyConnection]) -> _AnyConnection:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await pool.get()
        except TimeoutError as error:
            raise Conflict("no connection came free in time") from error

    def _returned(self, pool: asyncio.Queue[_AnyConnection], connection: _AnyConnection) -> asyncio.Future[None]:
        """Rolls back and only then gives the connection to others, even if nobody waits for it any more."""
        undone = asyncio.ensure_future(connection.undo())

        def give_back(_: asyncio.Future[None]) -> None:
            # A rollback fails only when SQLite has rolled back by itself, so its error has nothing to add.
            if not undone.cancelled():
                undone.exception()
            pool.put_nowait(connection)

        undone.add_done_callback(give_back)
        return undone


def _opened(path: Path, timeout_seconds: float, memory: SqliteMemory, *, read_only: bool) -> sqlite3.Connection:
    # mode=rw: a file that is missing is an error, because only a migration makes one.
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=timeout_seconds,
        isolation_level=None,
        cached_statements=_CACHED_STATEMENTS,
        check_same_thread=False,
    )
    connection.row_factory = sqlite3.Row
    cache_kib = memory.reader_cache_kib if read_only else memory.writer_cache_kib
    sizes = (f"cache_size = -{cache_kib}", f"mmap_size = {memory.mapped_kib * 1024}")
    for pragma in (*_PRAGMAS, *sizes, f"query_only = {int(read_only)}"):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    return connection
