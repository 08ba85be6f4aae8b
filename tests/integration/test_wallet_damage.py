"""A ledger whose file was damaged: the start refuses, the audit tells, or nothing of it has changed."""

import asyncio
import os
import random
import shutil
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest

from punchcard.wallet.v1 import error_reason_pb2, wallet_pb2
from punchcard_client import retry_seconds_of
from services.batcher.__main__ import MIGRATIONS as BATCHER_MIGRATIONS
from services.batcher.__main__ import opened as batcher_opened
from services.batcher.settings import BatcherSettings
from services.chassis.database import Database, connect, migrate
from services.chassis.errors import StoreDamaged
from services.chassis.server import RefusesToStart
from services.wallet.__main__ import MIGRATIONS, begun
from services.wallet.audit import Report
from services.wallet.settings import WalletSettings
from services.wallet.store_audit import Audit
from services.wallet.writer import SQL_FOLDER
from tests.wallets import WalletClient, reason_of, refused, wallet_at

PAGE_BYTES = 4096
FLIPS = 40
FLIPS_SLOW = 600
CUTS = 20

Tables = dict[str, list[str]]


class Healthy(NamedTuple):
    """The bytes of a closed ledger, what its tables hold, and an empty one to audit in."""

    content: bytes
    tables: Tables
    empty: Path


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Healthy:
    folder = Path(tmp_path_factory.mktemp("healthy"))
    asyncio.run(fill(folder))
    migrate(f"sqlite:{folder}/empty.db", MIGRATIONS)
    path = folder / "wallet.db"
    assert not path.with_name("wallet.db-wal").exists()
    return Healthy(path.read_bytes(), tables_of(path), folder / "empty.db")


async def fill(folder: Path) -> None:
    """Accounts with lots and without, and reservations in every state, on a few dozen pages."""
    async with wallet_at(f"sqlite:{folder}/wallet.db", folder) as (wallet, _):
        for number in range(24):
            account_id = f"user-{number % 7}"
            await wallet.call("OpenAccount", wallet_pb2.OpenAccountRequest(account_id=account_id))
            grant = wallet_pb2.GrantRequest(account_id=account_id, grant_id=f"g{number}", amount=20)
            if number % 2:
                grant.lifetime.seconds = 40 * 86400
            await wallet.call("Grant", grant)
            await wallet.call("BatchReserve", wallet_pb2.BatchReserveRequest(items=reserves(account_id, f"r{number}")))
            await wallet.call("BatchSettle", wallet_pb2.BatchSettleRequest(items=settlements(f"r{number}")))


def reserves(account_id: str, key: str) -> list[wallet_pb2.ReserveRequest]:
    items = [
        wallet_pb2.ReserveRequest(account_id=account_id, reservation_id=f"{key}-{n}", amount=2, reference="x" * 20)
        for n in range(10)
    ]
    for item in items:
        item.hold_duration.seconds = 30 * 86400
    return items


def settlements(key: str) -> list[wallet_pb2.SettleItem]:
    commits = [wallet_pb2.CommitRequest(reservation_id=f"{key}-{number}", amount=1) for number in range(5)]
    refunds = [wallet_pb2.RefundRequest(reservation_id=f"{key}-{number}") for number in range(5, 8)]
    back = wallet_pb2.RefundRequest(reservation_id=f"{key}-0", refund_id="complaint", amount=1)
    return [
        *(wallet_pb2.SettleItem(commit=commit) for commit in commits),
        *(wallet_pb2.SettleItem(refund=refund) for refund in (*refunds, back)),
    ]


def tables_of(path: Path) -> Tables:
    """What each table holds, as texts in order; of a table that can't be read, nothing."""
    tables: Tables = {}
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as raw:
        for (name,) in raw.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall():
            try:
                tables[name] = sorted(map(repr, raw.execute(f"SELECT * FROM {name}")))
            except sqlite3.Error:
                tables[name] = []
    return tables


async def start(path: Path) -> Exception | None:
    """What a wallet does with the file before it serves; why it refused, if it did."""
    settings = WalletSettings(database_url=f"sqlite:{path}", _env_file=None)  # type: ignore[call-arg]
    try:
        async with begun(settings):
            return None
    except (StoreDamaged, RefusesToStart) as refusal:
        return refusal


async def audited(path: Path, empty: Path) -> str | None:
    """What an audit finds wrong with the file, if anything."""

    @asynccontextmanager
    async def scratch() -> AsyncIterator[Database]:
        shutil.copy(empty, path.with_name("scratch.db"))
        async with await connect(f"sqlite:{path.with_name('scratch.db')}", [SQL_FOLDER]) as database:
            yield database

    try:
        async with await connect(f"sqlite:{path}", [SQL_FOLDER]) as database:
            async for event in Audit(database, scratch).run():
                if isinstance(event, Report) and event.fault is not None:
                    return event.fault.message
    except StoreDamaged as damaged:
        return damaged.detail
    return None


def put(content: bytes, path: Path) -> None:
    """Makes a file of this content, without what is left of the one before it."""
    for left in path.parent.glob("wallet.db*"):
        left.unlink()
    path.write_bytes(content)


async def what_became_of(content: bytes, healthy: Healthy, path: Path) -> str:
    """How a damaged file was noticed: `start`, `audit`, or `unchanged` when there was nothing to notice."""
    put(content, path)
    if await start(path) is not None:
        return "start"
    if await audited(path, healthy.empty) is not None:
        return "audit"
    assert tables_of(path) == healthy.tables
    return "unchanged"


async def test_a_healthy_file_is_left_alone(healthy: Healthy, tmp_path: Path) -> None:
    """Started, stopped and audited, it holds what it held."""
    assert await what_became_of(healthy.content, healthy, tmp_path / "wallet.db") == "unchanged"


async def test_a_file_that_was_cut_anywhere_does_not_start(healthy: Healthy, tmp_path: Path) -> None:
    """To nothing, within the header, at a page's edge, and by a single byte."""
    size = len(healthy.content)
    rng = random.Random(11)
    sizes = [0, 1, 2, 99, 100, 511, 512, PAGE_BYTES - 1, PAGE_BYTES, size - PAGE_BYTES, size - 1]
    sizes += [rng.randrange(size) for _ in range(CUTS)]

    found = [await what_became_of(healthy.content[:each], healthy, tmp_path / "wallet.db") for each in sizes]

    assert found == ["start"] * len(sizes)


async def flipped(healthy: Healthy, path: Path, count: int, seed: int) -> list[str]:
    """What became of files in which one bit each was flipped, some of them in the header."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        content = bytearray(healthy.content)
        content[rng.randrange(100 if number % 10 == 0 else len(content))] ^= 1 << rng.randrange(8)
        found.append(await what_became_of(bytes(content), healthy, path))
    return found


async def test_a_flipped_bit_is_noticed_or_changes_nothing(healthy: Healthy, tmp_path: Path) -> None:
    """Wherever it lies: in the header, the schema, a page's structure, a row, or where nothing is."""
    found = await flipped(healthy, tmp_path / "wallet.db", FLIPS, seed=12)

    assert set(found) == {"start", "audit", "unchanged"}


@pytest.mark.slow
async def test_none_of_many_flipped_bits_goes_unnoticed(healthy: Healthy, tmp_path: Path) -> None:
    """The same with more of them."""
    found = await flipped(healthy, tmp_path / "wallet.db", FLIPS_SLOW, seed=13)

    assert set(found) == {"start", "audit", "unchanged"}


def root_page(path: Path, table: str) -> int:
    with closing(sqlite3.connect(path)) as raw:
        (page,) = raw.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)).fetchone()
    return int(page)


async def test_a_call_that_meets_damage_says_so_and_asks_for_no_retry(healthy: Healthy, tmp_path: Path) -> None:
    """DATA_LOSS, neither UNAVAILABLE nor INTERNAL; what does not touch the damage is answered."""
    path = tmp_path / "wallet.db"
    content = bytearray(healthy.content)
    path.write_bytes(content)
    offset = (root_page(path, "reservations") - 1) * PAGE_BYTES
    content[offset : offset + PAGE_BYTES] = b"\xff" * PAGE_BYTES
    path.write_bytes(content)

    async with wallet_at(f"sqlite:{path}", tmp_path) as (wallet, _):
        get = wallet_pb2.GetReservationRequest(reservation_id="r0-0")
        (reserve, *_) = reserves("user-1", "late")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await wallet.call("GetReservation", get)
        writing = await refused(wallet.call("Reserve", reserve))
        refusal = await item_refusal(wallet, reserve)
        account = await wallet.call("GetAccount", wallet_pb2.GetAccountRequest(account_id="user-1"))

    assert reason_of(caught.value) == writing == ("DATA_LOSS", "STORE_DAMAGED", {})
    assert retry_seconds_of(caught.value) is None
    assert (refusal.code, refusal.reason) == (15, error_reason_pb2.ERROR_REASON_STORE_DAMAGED)
    assert account.account.tokens.balance > 0


async def item_refusal(wallet: WalletClient, reserve: wallet_pb2.ReserveRequest) -> wallet_pb2.Refusal:
    answer = await wallet.call("BatchReserve", wallet_pb2.BatchReserveRequest(items=[reserve]))
    refusal: wallet_pb2.Refusal = answer.results[0].refusal
    return refusal


async def command(url: str, *words: str) -> tuple[int, str]:
    """The exit code and stderr of `python -m services.wallet`."""
    environment = {**os.environ, "WALLET_DATABASE_URL": url, "WALLET_INSECURE": "true"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.wallet", *words, env=environment, stdout=-1, stderr=-1
    )
    _, err = await process.communicate()
    return process.returncode or 0, err.decode()


async def test_a_start_that_is_refused_says_which_file_and_what_to_do(healthy: Healthy, tmp_path: Path) -> None:
    """On stderr, with exit code 1, and in words of what was found."""
    path = tmp_path / "wallet.db"
    path.write_bytes(healthy.content[:-1])
    code, said = await command(f"sqlite:{path}", "serve")

    assert code == 1
    assert f"the database file {path} is damaged: " in said
    assert f"has {len(healthy.content) - 1} bytes and should have {len(healthy.content)}" in said
    assert "Stop everything that uses it, keep a copy of it and of its -wal file, and restore the newest backup" in said
    assert 'see README, "When the ledger is damaged"' in said


async def test_a_lost_ledger_is_not_migrated_into_an_empty_one(tmp_path: Path) -> None:
    """SQLite takes an empty file for a new database, and a wallet would open every account anew."""
    path = tmp_path / "wallet.db"
    path.write_bytes(b"")
    code, said = await command(f"sqlite:{path}", "migrate")

    assert code == 1
    assert f"{path} is empty; delete it if it never held anything" in said


async def test_a_journal_without_its_head_is_not_begun_anew(database_url: str, tmp_path: Path) -> None:
    """On either database: a new head would give the next row the first revision."""
    async with wallet_at(database_url, tmp_path) as (wallet, _):
        await wallet.call("OpenAccount", wallet_pb2.OpenAccountRequest(account_id="alice"))
    (tmp_path / "sql").mkdir()
    for dialect in ("sqlite", "postgres"):
        (tmp_path / "sql" / f"{dialect}.sql").write_text("-- name: lose_head()!\nDELETE FROM journal_head;\n")
    async with await connect(database_url, [tmp_path / "sql"]) as database, database.transaction() as tx:
        await tx.run("lose_head")

    with pytest.raises(StoreDamaged) as refusal:
        async with wallet_at(database_url, tmp_path):
            pass
    assert refusal.value.detail == "the journal has rows, and its head is missing"


async def test_a_batcher_does_not_start_on_a_damaged_file_either(tmp_path: Path) -> None:
    """The check is the chassis's."""
    path = tmp_path / "batcher.db"
    migrate(f"sqlite:{path}", BATCHER_MIGRATIONS)
    path.write_bytes(path.read_bytes()[:-1])
    settings = BatcherSettings(database_url=f"sqlite:{path}", _env_file=None)  # type: ignore[call-arg]

    with pytest.raises(StoreDamaged):
        async with batcher_opened(settings):
            pass
