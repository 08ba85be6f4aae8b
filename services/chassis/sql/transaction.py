"""What both databases offer a store: named statements, run in transactions."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, cast

import aiosql
from aiosql.utils import VAR_REF

from services.chassis.errors import StoreUnavailable

Rows = Sequence[Sequence[Any]] | Sequence[Mapping[str, Any]]


class Conflict(StoreUnavailable):
    """Another transaction was in the way; the same transaction run again is expected to succeed."""


class Row(Protocol):
    """A row as both drivers give it: `row["name"]`, `row[0]`, and unpacking like a tuple."""

    def __getitem__(self, key: Any, /) -> Any: ...
    def __iter__(self) -> Iterator[Any]: ...
    def __len__(self) -> int: ...


class Statement(NamedTuple):
    """SQL with numbered placeholders; `parameters` are in the order of its name line.

    `takes_columns`: it is written once for many rows, each parameter being an array with a value per row (`unnest`).
    """

    sql: str
    parameters: tuple[str, ...]
    takes_columns: bool = False

    def arguments(self, parameters: Mapping[str, Any]) -> tuple[Any, ...]:
        """The values in order; raises TypeError unless exactly the declared parameters are given."""
        if len(parameters) != len(self.parameters):
            raise TypeError(f"the statement takes {self.parameters}, not {tuple(parameters)}")
        return tuple([parameters[name] for name in self.parameters])

    def tuples(self, rows: Rows) -> Sequence[Sequence[Any]]:
        """Rows in the order of `parameters`; tuples are taken to be in that order already."""
        if not rows or not isinstance(rows[0], Mapping):
            return cast("Sequence[Sequence[Any]]", rows)
        if len(self.parameters) == 1:
            return [(cast("Mapping[str, Any]", row)[self.parameters[0]],) for row in rows]
        return list(map(itemgetter(*self.parameters), rows))


def load_statements(folders: Sequence[Path], dialect: str) -> dict[str, Statement]:
    """The named statements of `{folder}/{dialect}.sql`, with `?1` or `$1` in place of `:name`.

    aiosql reads the files; its functions are not called, because their layers cost more than a small statement.
    Raises ValueError when two folders use one name.
    """
    mark = "?" if dialect == "sqlite" else "$"
    statements: dict[str, Statement] = {}
    for folder in folders:
        queries = aiosql.from_path(folder / f"{dialect}.sql", "aiosqlite", attribute=None)
        for name in queries.available_queries:
            query = getattr(queries, name)
            if query.parameters is None:  # aiosql gives every select a twin that returns a cursor
                continue
            if name in statements:
                raise ValueError(f"two statements are named {name}")
            sql = _numbered(query.sql, query.parameters, mark)
            statements[name] = Statement(sql, tuple(query.parameters), "unnest(" in sql)
    return statements


def _numbered(sql: str, parameters: Sequence[str], mark: str) -> str:
    def number(match: re.Match[str]) -> str:
        name = match["var_name"]
        return match[0] if name is None else f"{match['lead']}{mark}{parameters.index(name) + 1}"

    return VAR_REF.sub(number, sql)


class Transaction(ABC):
    """Runs named statements in one transaction. A statement that fails ends it: nothing of it is kept."""

    def __init__(self, statements: Mapping[str, Statement]) -> None:
        self._statements = statements
        self._failed = False

    @abstractmethod
    async def rows(self, name: str, /, **parameters: Any) -> list[Row]:
        """All rows of a SELECT or of a RETURNING clause."""

    @abstractmethod
    async def rows_all(self, queries: Sequence[tuple[str, Mapping[str, Any]]], /) -> list[list[Row]]:
        """The rows of several queries, run in order: for SQLite in a single hop to its thread."""

    @abstractmethod
    async def run(self, name: str, /, **parameters: Any) -> int:
        """Runs a statement and returns how many rows it changed."""

    @abstractmethod
    async def run_all(self, statements: Sequence[tuple[str, Rows]], /) -> None:
        """Runs several statements in order, each once per row: for SQLite in a single hop to its thread."""

    async def finish(self, statements: Sequence[tuple[str, Rows]], /) -> None:
        """`run_all` as the last act of the transaction: for SQLite its end rides in the same hop."""
        await self.run_all(statements)

    @abstractmethod
    async def now_us(self) -> int:
        """The database's time in microseconds since 1970 (for SQLite the process's)."""

    async def row(self, name: str, /, **parameters: Any) -> Row | None:
        """The first row, or None."""
        rows = await self.rows(name, **parameters)
        return rows[0] if rows else None

    async def run_many(self, name: str, rows: Rows, /) -> None:
        """Runs a statement once per row: tuples in the order of its name line, or mappings."""
        await self.run_all([(name, rows)])

    def _check_usable(self) -> None:
        # PostgreSQL would answer COMMIT with a silent rollback, and SQLite would keep the half that succeeded.
        if self._failed:
            raise RuntimeError("a statement of this transaction has failed, so that nothing of it is kept")


class Database(ABC):
    """The open connections of one database; close it, or use it as an async context manager."""

    dialect: str

    @abstractmethod
    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Reads and writes; durable when the block has ended without an exception.

        Raises Conflict (run it again), StoreUnavailable (lost, or the outcome of its end is unknown), StoreDamaged (no
        use), or the driver's own error for a broken constraint or wrong SQL.
        """

    @abstractmethod
    def reading(self) -> AbstractAsyncContextManager[Transaction]:
        """Reads of one consistent snapshot, beside whatever is written meanwhile."""

    @abstractmethod
    async def problem(self) -> str | None:
        """What the database itself finds wrong with its files, reading all of them; None when nothing.

        PostgreSQL has no such check that an ordinary role may ask for: its page checksums speak up when a page is read.
        """

    @abstractmethod
    async def check(self) -> None:
        """Raises StoreDamaged where the database can be seen to be damaged at a glance, whatever its size."""

    @abstractmethod
    async def close(self) -> None:
        """Waits for what runs and closes the connections."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
