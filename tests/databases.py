"""Both databases: `async def test_something(database_url): ...` runs on SQLite and again on PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.chassis.database import Database, connect, migrate

CHASSIS_MIGRATIONS = Path(__file__).parent / "chassis_migrations"


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database that does not have a table yet, in turn a SQLite file and a real PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:{tmp_path}/test.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


@asynccontextmanager
async def opened(url: str, service: Path, **options: Any) -> AsyncIterator[Database]:
    """Applies the migrations of a service's folder and connects with its SQL; `options` are those of `connect`."""
    migrate(url, service / "migrations")
    async with await connect(url, [service / "sql"], **options) as database:
        yield database


@pytest.fixture
async def chassis_database(database_url: str) -> AsyncIterator[Database]:
    """A database with the chassis's own tables and nothing else."""
    migrate(database_url, CHASSIS_MIGRATIONS)
    async with await connect(database_url, []) as database:
        yield database
