"""PostgreSQL through asyncpg: a pool of connections, READ COMMITTED to write and REPEATABLE READ to read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import asyncpg

from services.chassis.errors import StoreDamaged, StoreUnavailable
from services.chassis.sql.transaction import Conflict, Database, Row, Rows, Statement, Transaction

if TYPE_CHECKING:
    # The stubs make these generic; at run time they are not.
    Pool = asyncpg.Pool[asyncpg.Record]
    Connection = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]

_BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"
_BEGIN_READING: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
# Serialization failure, deadlock, unique violation (two replicas inserted one key), lock not available.
_RETRIABLE: Final = {"40001", "40P01", "23505", "55P03"}
# Classes: connection exception, insufficient resources, operator intervention (shutdown, cancel), system error.
_LOST: Final = {"08", "53", "57", "58"}
_DRIVER_ERRORS: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
# Data corrupted, index corrupted.
_DAMAGED: Final = {"XX001", "XX002"}
# The server has ended a transaction that took too long: idle, or as a whole.
_ENDED: Final = {"25P03", "25P04"}
# Of statement timeouts: how long the server keeps a transaction whose client says nothing.
_IDLE_TIMEOUTS_MAX: Final = 2
_BOUNDS_TRANSACTIONS: Final = 17

T = TypeVar("T")


class _PostgresTransaction(Transaction):
    def __init__(self, statements: Mapping[str, Statement], connection: Connection) -> None:
        super().__init__(statements)
        self._connection = connection

    async def rows(self, name: str, /, **parameters: Any) -> list[Row]:
        statement = self._statements[name]
        arguments = statement.arguments(parameters)
        return list(await self.call(self._connection.fetch, statement.sql, *arguments))

    async def rows_all(self, queries: Sequence[tuple[str, Mapping[str, Any]]], /) -> list[list[Row]]:
        return [await self.rows(name, **parameters) for name, parameters in queries]

    async def run(self, name: str, /, **parameters: Any) -> int:
        statement = self._statements[name]
        tag: str = await self.call(self._connection.execute, statement.sql, *statement.arguments(parameters))
        count = tag.rpartition(" ")[2]
        return int(count) if count.isdigit() else 0

    async def run_all(self, statements: Sequence[tuple[str, Rows]], /) -> None:
        for name, rows in statements:
            statement = self._statements[name]
            if not rows:
                continue
            tuples = statement.tuples(rows)
            if statement.takes_columns:
                columns = [list(column) for column in zip(*tuples, strict=True)]
                await self.call(self._connection.execute, statement.sql, *columns)
            else:
                await self.call(self._connection.executemany, statement.sql, tuples)

    async def now_us(self) -> int:
        (row,) = await self.rows("clock_us")
        return int(row[0])

    async def end(self) -> None:
        """Makes the transaction durable."""
        self._check_usable()
        await self.call(self._connection.execute, "COMMIT")

    async def call(self, function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Runs a statement; its failure is the transaction's."""
        self._check_usable()
        try:
            return await function(*arguments)
        except _DRIVER_ERRORS as error:
            self._failed = True
            translated = _translated(error, _is_lost(self._connection))
            if translated is error:
                raise
            raise translated from error
        except BaseException:
            self._failed = True
            raise


class PostgresDatabase(Database):
    """A pool of connections to one PostgreSQL database."""

    dialect = "postgres"

    def __init__(self, statements: Mapping[str, Statement], pool: Pool, timeout_seconds: float) -> None:
        self._statements = statements
        self._pool = pool
        self._timeout_seconds = timeout_seconds

    @classmethod
    async def open(cls, url: str, statements: Mapping[str, Statement], pool_size: int, timeout_seconds: float) -> Self:
        """Connects; raises StoreUnavailable when the server cannot be reached or refuses us."""
        try:
            pool = await asyncpg.create_pool(
                url,
                min_size=1,
                max_size=pool_size,
                timeout=timeout_seconds,
                command_timeout=timeout_seconds,
                # Nothing of ours outlives a transaction, so asyncpg's reset query would be a round trip for nothing.
                reset=_nothing_to_reset,
                server_settings={
                    "application_name": "punchcard",
                    # A replica that has vanished, or sleeps, must not hold the journal's head for long: neither by a
                    # transaction that has it, nor by others of its own that wait in line behind that one.
                    "idle_in_transaction_session_timeout": str(_idle_ms(timeout_seconds)),
                    "statement_timeout": str(int(timeout_seconds * 1000)),
                },
            )
        except _DRIVER_ERRORS as error:
            raise StoreUnavailable(f"cannot connect to the database: {error}") from error
        return cls(statements, pool, timeout_seconds)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """READ COMMITTED: each statement sees what was committed before it began."""
        async with self._begun(_BEGIN, bounded=True) as tx:
            yield tx

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Transaction]:
        """REPEATABLE READ READ ONLY: every statement sees the snapshot of the first."""
        async with self._begun(_BEGIN_READING) as tx:
            yield tx

    @asynccontextmanager
    async def _begun(self, begin: str, *, bounded: bool = False) -> AsyncIterator[Transaction]:
        """bounded: the server ends it when it lasts too long, be its client asleep in the middle of a statement, where
        the limits of the session do not reach. Older servers know no such limit.
        """
        connection = await self._taken()
        tx = _PostgresTransaction(self._statements, connection)
        if bounded and connection.get_server_version().major >= _BOUNDS_TRANSACTIONS:
            begin += f"; SET LOCAL transaction_timeout = {_idle_ms(self._timeout_seconds)}"
        try:
            await tx.call(connection.execute, begin)
            yield tx
            await tx.end()
        except BaseException:
            await asyncio.shield(self._undone(connection))
            raise
        await self._pool.release(connection)

    async def problem(self) -> str | None:
        """None: a damaged page is told by the statement that reads it."""
        return None

    async def check(self) -> None:
        """Nothing: the server looks after its own files."""

    async def close(self) -> None:
        """Waits for the connections that are in use, then closes all."""
        await self._pool.close()

    async def _taken(self) -> Connection:
        try:
            return await self._pool.acquire(timeout=self._timeout_seconds)
        except _DRIVER_ERRORS as error:
            raise StoreUnavailable(f"no connection to the database: {error}") from error

    async def _undone(self, connection: Connection) -> None:
        try:
            if not _is_lost(connection):
                await connection.execute("ROLLBACK")
        except _DRIVER_ERRORS:
            with suppress(asyncpg.InterfaceError):
                connection.terminate()
        finally:
            with suppress(*_DRIVER_ERRORS):
                await self._pool.release(connection, timeout=self._timeout_seconds)


def _idle_ms(timeout_seconds: float) -> int:
    return int(timeout_seconds * 1000 * _IDLE_TIMEOUTS_MAX)


def _is_lost(connection: Connection) -> bool:
    try:
        return connection.is_closed()
    except asyncpg.InterfaceError:  # the pool has taken it back, because the server closed it
        return True


async def _nothing_to_reset(_: object) -> None:
    return None


def _translated(error: Exception, closed: bool) -> Exception:
    if isinstance(error, asyncpg.PostgresError):
        state = str(error.sqlstate)
        if state in _RETRIABLE:
            return Conflict(str(error))
        if state in _DAMAGED:
            return StoreDamaged(str(error))
        return StoreUnavailable(str(error)) if state[:2] in _LOST or state in _ENDED else error
    # An InterfaceError on an open connection is our own mistake, a wrong argument, and no lost database.
    if closed or isinstance(error, OSError | asyncpg.InternalClientError):
        return StoreUnavailable(str(error) or "the database did not answer in time")
    return error
