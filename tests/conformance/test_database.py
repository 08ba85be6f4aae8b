"""What `services.chassis.database` promises, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from services.chassis.database import Conflict, Database, connect, dialect_of, migrate, pending, schema_version
from services.chassis.errors import StoreDamaged, StoreUnavailable
from services.chassis.sql.transaction import load_statements
from tests.databases import CHASSIS_MIGRATIONS

UP = """-- migrate:up
CREATE TABLE coins (
    name TEXT PRIMARY KEY,
    count BIGINT NOT NULL CONSTRAINT coins_count_check CHECK (count >= 0)
);
-- migrate:down
DROP TABLE coins;
"""
SQL = """
-- name: insert_coin(name, count)!
INSERT INTO coins (name, count) VALUES (:name, :count);

-- name: add_coins(count, name)!
UPDATE coins SET count = count + :count WHERE name = :name;

-- name: coins()
SELECT name, count FROM coins ORDER BY name;

-- name: coin(name)^
SELECT name, count FROM coins WHERE name = :name {lock};

-- name: take_coin(name)
DELETE FROM coins WHERE name = :name RETURNING count;

-- name: misspelt()
SELECT nothing FROM nowhere;
"""
# A page whose checksum is wrong looks like this to whoever reads it.
TORN_PAGE = """
-- name: read_torn_page()!
DO $$ BEGIN RAISE 'invalid page in block 7' USING ERRCODE = '{state}'; END $$;
"""
BROKEN_CONSTRAINT = (sqlite3.IntegrityError, asyncpg.CheckViolationError)
WRONG_SQL = (sqlite3.OperationalError, asyncpg.UndefinedTableError)


@pytest.fixture
def migrations(tmp_path: Path) -> Path:
    for dialect in ("sqlite", "postgres"):
        (tmp_path / "migrations" / dialect).mkdir(parents=True)
        (tmp_path / "migrations" / dialect / "0001_coins.sql").write_text(UP)
    return tmp_path / "migrations"


@pytest.fixture
def sql_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "sql"
    folder.mkdir()
    (folder / "sqlite.sql").write_text(SQL.format(lock=""))
    (folder / "postgres.sql").write_text(SQL.format(lock="FOR UPDATE"))
    return folder


@pytest.fixture
async def database(database_url: str, migrations: Path, sql_folder: Path) -> AsyncIterator[Database]:
    migrate(database_url, migrations)
    async with await connect(database_url, [sql_folder], timeout_seconds=5) as database:
        yield database


async def coins(database: Database) -> list[tuple[str, int]]:
    async with database.reading() as tx:
        return [(name, count) for name, count in await tx.rows("coins")]


async def insert(database: Database, **counts: int) -> None:
    """One statement for each coin, all in one transaction."""
    async with database.transaction() as tx:
        for name, count in counts.items():
            await tx.run("insert_coin", name=name, count=count)


async def test_a_transaction_keeps_what_it_wrote(database: Database):
    async with database.transaction() as tx:
        assert await tx.run("insert_coin", name="penny", count=1) == 1
        assert await tx.run("add_coins", name="penny", count=2) == 1
        assert await tx.run("add_coins", name="pound", count=2) == 0

    assert await coins(database) == [("penny", 3)]


async def test_an_exception_undoes_the_transaction(database: Database):
    async def insert_and_fail() -> None:
        async with database.transaction() as tx:
            await tx.run("insert_coin", name="penny", count=1)
            raise KeyError

    with pytest.raises(KeyError):
        await insert_and_fail()

    assert await coins(database) == []


async def test_a_row_reads_by_name_by_place_and_like_a_tuple(database: Database):
    async with database.transaction() as tx:
        await tx.run("insert_coin", name="penny", count=1)
        row = await tx.row("coin", name="penny")
        nothing = await tx.row("coin", name="pound")

    assert row is not None
    assert (row["name"], row[1], tuple(row)) == ("penny", 1, ("penny", 1))
    assert nothing is None


async def test_rows_returns_what_a_returning_clause_gives(database: Database):
    async with database.transaction() as tx:
        await tx.run("insert_coin", name="penny", count=7)
        (row,) = await tx.rows("take_coin", name="penny")

    assert row["count"] == 7
    assert await coins(database) == []


async def test_run_all_takes_tuples_in_the_order_of_the_name_line_or_mappings(database: Database):
    async with database.transaction() as tx:
        await tx.run_many("insert_coin", [("penny", 1), ("pound", 2)])
        await tx.run_many("insert_coin", [])
        await tx.run_all(
            [
                ("insert_coin", [{"count": 3, "name": "groat"}]),
                ("add_coins", [(10, "penny"), (20, "groat")]),
            ]
        )

    assert await coins(database) == [("groat", 23), ("penny", 11), ("pound", 2)]


async def test_a_statement_takes_exactly_its_parameters(database: Database):
    async with database.transaction() as tx:
        with pytest.raises(TypeError, match="the statement takes"):
            await tx.run("insert_coin", name="penny")
        with pytest.raises(KeyError):
            await tx.run("insert_coin", name="penny", amount=1)


async def test_a_broken_constraint_passes_unchanged_and_nothing_is_kept(database: Database):
    with pytest.raises(BROKEN_CONSTRAINT):
        await insert(database, pound=1, penny=-1)

    assert await coins(database) == []


async def test_wrong_sql_is_not_taken_for_a_lost_database(database: Database):
    with pytest.raises(WRONG_SQL):
        async with database.transaction() as tx:
            await tx.rows("misspelt")


async def test_an_error_that_is_swallowed_does_not_let_the_rest_through(database: Database):
    async def insert_and_swallow() -> None:
        async with database.transaction() as tx:
            await tx.run("insert_coin", name="pound", count=1)
            with pytest.raises(BROKEN_CONSTRAINT):
                await tx.run("insert_coin", name="penny", count=-1)

    with pytest.raises(RuntimeError, match="has failed"):
        await insert_and_swallow()

    assert await coins(database) == []


async def test_a_reader_keeps_its_snapshot_while_others_write(database: Database):
    async with database.reading() as before:
        assert await before.rows("coins") == []
        async with database.transaction() as tx:
            await tx.run("insert_coin", name="penny", count=1)
        assert await before.rows("coins") == []

    assert await coins(database) == [("penny", 1)]


async def test_a_reader_cannot_write(database: Database):
    with pytest.raises((sqlite3.OperationalError, asyncpg.ReadOnlySQLTransactionError, StoreUnavailable)):
        async with database.reading() as tx:
            await tx.run("insert_coin", name="penny", count=1)

    assert await coins(database) == []


async def test_concurrent_transactions_lose_no_update(database: Database):
    async with database.transaction() as tx:
        await tx.run("insert_coin", name="penny", count=0)

    async def add_one() -> None:
        async with database.transaction() as tx:
            row = await tx.row("coin", name="penny")
            assert row is not None
            await tx.run("add_coins", name="penny", count=1)

    await asyncio.gather(*(add_one() for _ in range(20)))

    assert await coins(database) == [("penny", 20)]


async def test_a_task_cancelled_within_a_transaction_leaves_it_undone_and_the_door_open(database: Database):
    for steps in range(12):
        task = asyncio.create_task(insert_and_wait(database))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        async with database.transaction() as tx:
            assert await tx.rows("coins") == []


async def insert_and_wait(database: Database, inserted: asyncio.Event | None = None) -> None:
    async with database.transaction() as tx:
        await tx.run_many("insert_coin", [(f"coin-{n}", n) for n in range(100)])
        if inserted is not None:
            inserted.set()
        await asyncio.Event().wait()


async def test_a_task_cancelled_twice_still_gives_its_connection_back_clean(database: Database):
    inserted = asyncio.Event()
    task = asyncio.create_task(insert_and_wait(database, inserted))
    await inserted.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    async with database.transaction() as tx:
        assert await tx.rows("coins") == []


async def test_a_connection_that_comes_free_too_late_is_a_conflict_or_an_unavailable_store(
    database_url: str, migrations: Path, sql_folder: Path
):
    migrate(database_url, migrations)
    async with (
        await connect(database_url, [sql_folder], pool_size=1, timeout_seconds=0.05) as database,
        database.transaction(),
    ):
        with pytest.raises(StoreUnavailable):
            await coins_written(database)


async def coins_written(database: Database) -> None:
    async with database.transaction() as tx:
        await tx.rows("coins")


async def test_a_closed_database_is_unavailable(database_url: str, migrations: Path, sql_folder: Path):
    migrate(database_url, migrations)
    database = await connect(database_url, [sql_folder], timeout_seconds=0.2)
    await database.close()
    with pytest.raises(StoreUnavailable):
        await coins_written(database)


async def test_now_is_the_databases_time(database: Database):
    async with database.transaction() as tx:
        first, second = await tx.now_us(), await tx.now_us()

    assert 1_700_000_000_000_000 < first <= second < 5_000_000_000_000_000


async def test_migrations_apply_once_and_tell_what_is_pending(database_url: str, migrations: Path, database: Database):
    migrate(database_url, migrations)
    assert (await schema_version(database), await pending(database, migrations)) == ("0001", [])

    for dialect in ("sqlite", "postgres"):
        (migrations / dialect / "0002_more.sql").write_text(UP.replace("coins", "notes"))
    assert await pending(database, migrations) == ["0002_more.sql"]

    migrate(database_url, migrations)
    assert (await schema_version(database), await pending(database, migrations)) == ("0002", [])


async def test_everything_is_pending_on_an_empty_database(empty_postgres_url: str):
    async with await connect(empty_postgres_url, []) as database:
        assert await schema_version(database) == ""
        assert await pending(database, CHASSIS_MIGRATIONS) == ["0001_chassis.sql"]


def test_a_broken_migration_says_what_is_wrong(database_url: str, migrations: Path):
    broken = "-- migrate:up\nCREATE TABEL x;\n-- migrate:down\n"
    (migrations / dialect_of(database_url) / "0002_broken.sql").write_text(broken)
    with pytest.raises(StoreUnavailable) as caught:
        migrate(database_url, migrations)

    assert "TABEL" in caught.value.detail


async def test_there_is_no_database_before_a_migration(tmp_path: Path):
    with pytest.raises(StoreUnavailable):
        await connect(f"sqlite:{tmp_path}/missing.db", [])
    with pytest.raises(StoreUnavailable):
        await connect(f"postgres://nobody@/nothing?host={tmp_path}", [], timeout_seconds=1)


async def test_a_second_process_that_writes_is_a_conflict(tmp_path: Path, migrations: Path, sql_folder: Path):
    url = f"sqlite:{tmp_path}/shared.db"
    migrate(url, migrations)
    async with await connect(url, [sql_folder], timeout_seconds=0.05) as database:
        other = sqlite3.connect(tmp_path / "shared.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Conflict):
            await insert(database, penny=1)
        other.close()

        await insert(database, penny=1)


async def test_two_replicas_that_insert_one_key_are_a_conflict(postgres_url: str, migrations: Path, sql_folder: Path):
    migrate(postgres_url, migrations)
    async with await connect(postgres_url, [sql_folder]) as database:
        await insert(database, penny=1)
        with pytest.raises(Conflict):
            await insert(database, penny=1)


async def test_a_lost_connection_is_an_unavailable_store_and_the_next_one_works(
    postgres_url: str, migrations: Path, sql_folder: Path
):
    migrate(postgres_url, migrations)
    async with await connect(postgres_url, [sql_folder], pool_size=1) as database:
        with pytest.raises(StoreUnavailable):
            await insert_and_lose(database, postgres_url)
        assert await coins(database) == []


async def insert_and_lose(database: Database, url: str) -> None:
    """Finds its connection gone only when it asks for durability, so that it cannot know the outcome."""
    async with database.transaction() as tx:
        await tx.run("insert_coin", name="penny", count=1)
        await kill_connections(url)


async def kill_connections(url: str) -> None:
    admin = await asyncpg.connect(url)
    await admin.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
        "AND datname = current_database()"
    )
    await admin.close()


async def test_the_server_ends_a_statement_by_itself_where_the_replica_that_sent_it_is_frozen(
    postgres_url: str, migrations: Path, sql_folder: Path
):
    """Or else each of its transactions that wait in line would hold the locks for a while, one after the other."""
    migrate(postgres_url, migrations)
    async with (
        await connect(postgres_url, [sql_folder]) as other,
        await connect(postgres_url, [sql_folder], timeout_seconds=0.2) as frozen,
    ):
        async with other.transaction() as tx:
            await tx.run("insert_coin", name="cent", count=1)
        async with other.transaction() as tx, frozen._pool.acquire() as connection:  # type: ignore[attr-defined]
            await tx.row("coin", name="cent")
            with pytest.raises(asyncpg.QueryCanceledError):
                # As if the client's own limit, which does the same, did not exist.
                await connection.execute("UPDATE coins SET count = 2", timeout=60)


async def test_the_server_ends_a_transaction_whose_replica_froze_between_two_parts_of_a_statement(
    postgres_url: str, migrations: Path, sql_folder: Path
):
    """There it is neither idle nor does a statement run. What it had locked is free again."""
    migrate(postgres_url, migrations)
    async with (
        await connect(postgres_url, [sql_folder]) as other,
        await connect(postgres_url, [sql_folder], timeout_seconds=0.5) as frozen,
    ):
        async with other.transaction() as tx:
            await tx.run("insert_coin", name="cent", count=1)

        async def freeze() -> None:
            async with frozen.transaction() as tx:
                await tx.row("coin", name="cent")
                # A statement to parse, and never the message that closes the request.
                parse = b"\0SELECT 1\0\0\0"
                transport = tx._connection._con._transport  # type: ignore[attr-defined]
                transport.write(b"P" + (len(parse) + 4).to_bytes(4) + parse)
                async with other.transaction() as next_in_line:
                    locked.append(await next_in_line.row("coin", name="cent"))

        locked: list[object] = []
        with pytest.raises(StoreUnavailable):
            await freeze()
        assert len(locked) == 1


async def test_a_statement_that_takes_too_long_is_an_unavailable_store(
    postgres_url: str, migrations: Path, sql_folder: Path
):
    migrate(postgres_url, migrations)
    async with (
        await connect(postgres_url, [sql_folder]) as patient,
        await connect(postgres_url, [sql_folder], timeout_seconds=0.2) as hasty,
    ):
        async with patient.transaction() as tx:
            await tx.run("insert_coin", name="penny", count=1)
        async with patient.transaction() as tx:
            await tx.row("coin", name="penny")
            with pytest.raises(StoreUnavailable):
                async with hasty.transaction() as late:
                    await late.row("coin", name="penny")
        assert await coins(hasty) == [("penny", 1)]


def test_both_dialects_name_the_same_statements_with_the_same_parameters():
    folder = Path("services/chassis/sql")
    signatures = [
        {name: statement.parameters for name, statement in load_statements([folder], dialect).items()}
        for dialect in ("sqlite", "postgres")
    ]

    # SQLite has no clock of its own: the process's is as good.
    assert signatures[0] | {"clock_us": ()} == signatures[1]


def test_two_folders_may_not_use_one_name(sql_folder: Path, tmp_path: Path):
    shutil.copytree(sql_folder, tmp_path / "again")
    with pytest.raises(ValueError, match="two statements are named"):
        load_statements([sql_folder, tmp_path / "again"], "sqlite")


@pytest.mark.parametrize("url", ["mysql://x", "wallet.db", ""])
def test_other_databases_are_refused(url: str):
    with pytest.raises(ValueError, match="a database URL starts with"):
        dialect_of(url)


async def test_what_a_transaction_finishes_with_is_durable_and_the_last_word(database: Database):
    async with database.transaction() as tx:
        await tx.run_many("insert_coin", [("first", 1)])
        await tx.finish([("insert_coin", [("last", 2)])])
    async with database.reading() as tx:
        assert len(await tx.rows("coins")) == 2


async def test_a_transaction_whose_last_statement_fails_keeps_nothing(database: Database):
    async def mint_twice() -> None:
        async with database.transaction() as tx:
            await tx.run_many("insert_coin", [("first", 1)])
            await tx.finish([("insert_coin", [("first", 2)])])

    with pytest.raises((sqlite3.IntegrityError, Conflict)):
        await mint_twice()
    async with database.reading() as tx:
        assert await tx.rows("coins") == []
    async with database.transaction() as tx:
        await tx.run_many("insert_coin", [("first", 1)])


@pytest.mark.parametrize("state", ["XX001", "XX002"])
async def test_damage_that_postgresql_tells_is_damage_and_no_outage(
    empty_postgres_url: str, tmp_path: Path, state: str
):
    for dialect in ("sqlite", "postgres"):
        (tmp_path / f"{dialect}.sql").write_text(TORN_PAGE.format(state=state))
    async with await connect(empty_postgres_url, [tmp_path]) as database:
        with pytest.raises(StoreDamaged) as caught:
            async with database.transaction() as tx:
                await tx.run("read_torn_page")

    assert caught.value.detail == "invalid page in block 7"


async def test_a_file_that_can_not_be_read_is_damaged_and_no_outage(tmp_path: Path, sql_folder: Path, migrations: Path):
    """Whatever opens, migrates or reads it."""
    path = tmp_path / "test.db"
    url = f"sqlite:{path}"
    for content in (b"", b"\0", b"no database at all" * 100):
        path.write_bytes(content)
        with pytest.raises(StoreDamaged):
            await connect(url, [sql_folder])
        with pytest.raises(StoreDamaged):
            migrate(url, migrations)
    path.unlink()
    migrate(url, migrations)
    with sqlite3.connect(path) as raw:
        raw.execute("INSERT INTO coins VALUES ('penny', 1)")
        (page,) = raw.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'coins'").fetchone()
        (page_bytes,) = raw.execute("PRAGMA page_size").fetchone()
    raw.close()
    with path.open("r+b") as file:
        file.seek((page - 1) * page_bytes)
        file.write(b"\xff" * page_bytes)
    async with await connect(url, [sql_folder]) as database:
        with pytest.raises(StoreDamaged):
            async with database.reading() as tx:
                await tx.rows("coins")
        with pytest.raises(StoreDamaged):
            async with database.transaction() as tx:
                await tx.run("insert_coin", name="dime", count=10)


async def test_a_healthy_database_passes_at_a_glance(chassis_database: Database):
    await chassis_database.check()


async def test_a_schema_that_lacks_what_a_statement_names_is_damage(tmp_path: Path, migrations: Path, sql_folder: Path):
    """This database has coins and none of the chassis's tables."""
    url = f"sqlite:{tmp_path}/test.db"
    migrate(url, migrations)
    async with await connect(url, [sql_folder]) as database:
        with pytest.raises(StoreDamaged) as caught:
            await database.check()

    assert "no such table" in caught.value.detail


@pytest.fixture
def long_file(tmp_path: Path) -> Path:
    """A SQLite file of many pages, with the chassis's tables and without a WAL."""
    path = tmp_path / "long.db"
    migrate(f"sqlite:{path}", CHASSIS_MIGRATIONS)
    with sqlite3.connect(path) as raw:
        raw.execute("PRAGMA journal_mode = WAL")
        raw.executemany("INSERT INTO leases VALUES (?, ?, 1, 1)", [(f"lease-{n}", "x" * 200) for n in range(500)])
    raw.close()
    return path


async def check(path: Path) -> None:
    async with await connect(f"sqlite:{path}", []) as database:
        await database.check()


def size_of(path: Path) -> int:
    return path.stat().st_size


def cut(path: Path, size_bytes: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size_bytes)


async def test_a_file_that_lacks_a_byte_is_damaged(long_file: Path):
    """Nothing may have read its end yet."""
    await check(long_file)
    cut(long_file, size_of(long_file) - 1)

    with pytest.raises(StoreDamaged):
        await check(long_file)


async def test_a_page_may_be_in_the_wal_and_not_in_the_file(long_file: Path, tmp_path: Path):
    """What a killed process leaves is healthy; a file that was cut behind its WAL is not."""
    killed, damaged = tmp_path / "killed.db", tmp_path / "damaged.db"
    async with await connect(f"sqlite:{long_file}", []) as database:
        for number in range(100):
            async with database.transaction() as tx:
                await tx.row("lease_acquire", name=f"l{number}", holder="x" * 200, now_us=1, expire_time_us=2)
        for copy in (killed, damaged):
            shutil.copy(long_file, copy)
            shutil.copy(f"{long_file}-wal", f"{copy}-wal")
    size_bytes = size_of(killed)
    await check(killed)
    assert size_of(killed) > size_bytes, "some pages were in the WAL alone"

    cut(damaged, 10 * 4096)
    with pytest.raises(StoreDamaged):
        await check(damaged)


async def test_a_check_lets_go_of_no_lock(tmp_path: Path) -> None:
    """Somebody else who looks into the database and leaves does not take its WAL away from under whoever writes."""
    url = f"sqlite:{tmp_path}/test.db"
    look = (
        "import sqlite3, sys; file = sqlite3.connect(sys.argv[1]); file.execute('SELECT * FROM leases'); file.close()"
    )
    migrate(url, CHASSIS_MIGRATIONS)
    async with await connect(url, []) as database:
        await database.check()
        async with database.transaction() as tx:
            await tx.run("lease_acquire", name="before", holder="me", now_us=0, expire_time_us=1)
        await asyncio.to_thread(subprocess.run, [sys.executable, "-c", look, f"{tmp_path}/test.db"], check=True)
        async with database.transaction() as tx:
            await tx.run("lease_acquire", name="after", holder="me", now_us=0, expire_time_us=1)

        with contextlib.closing(sqlite3.connect(f"{tmp_path}/test.db")) as other:
            names = [row[0] for row in other.execute("SELECT name FROM leases ORDER BY name")]

    assert names == ["after", "before"]
