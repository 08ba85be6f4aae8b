"""Both databases: `async def test_something(database_url): ...` runs on SQLite and again on PostgreSQL."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.chassis.database import Database, connect, dialect_of, migrate, sqlite_path
from tests.postgres import make_copy

CHASSIS_MIGRATIONS = Path(__file__).parent / "chassis_migrations"

# What a SQLite file holds that was only migrated, by its migrations.
_files: dict[Path, bytes] = {}


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database that does not have a table yet, in turn a SQLite file and a real PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:{tmp_path}/test.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


async def migrated(url: str, migrations: Path) -> None:
    """As `migrate` does, but a database in which there is nothing becomes a copy of one that was migrated before."""
    if dialect_of(url) == "sqlite" and not sqlite_path(url).exists():
        sqlite_path(url).parent.mkdir(parents=True, exist_ok=True)
        sqlite_path(url).write_bytes(_file(migrations))
    elif dialect_of(url) == "sqlite" or not await make_copy(url, migrations):
        migrate(url, migrations)


def _file(migrations: Path) -> bytes:
    if migrations not in _files:
        with tempfile.TemporaryDirectory() as folder:
            migrate(f"sqlite:{folder}/new.db", migrations)
            _files[migrations] = (Path(folder) / "new.db").read_bytes()
    return _files[migrations]


@asynccontextmanager
async def opened(url: str, service: Path, **options: Any) -> AsyncIterator[Database]:
    """Applies the migrations of a service's folder and connects with its SQL; `options` are those of `connect`."""
    await migrated(url, service / "migrations")
    async with await connect(url, [service / "sql"], **options) as database:
        yield database


@pytest.fixture
async def chassis_database(database_url: str) -> AsyncIterator[Database]:
    """A database with the chassis's own tables and nothing else."""
    await migrated(database_url, CHASSIS_MIGRATIONS)
    async with await connect(database_url, []) as database:
        yield database
