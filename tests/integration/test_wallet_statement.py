"""An account's statement on the command line: complete, the same in both formats, cut exactly."""

import asyncio
import csv
import io
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from punchcard.wallet.v1 import wallet_pb2
from services.chassis.database import Database, connect
from services.wallet.__main__ import FOLDER
from services.wallet.command_line import newest_revision, statement
from services.wallet.statement import Line, read_time, time_of
from tests.wallets import WalletClient, wallet_at

ODD_TEXTS = [
    'He said "no", twice',
    "two\nlines\r\nand a\ttab",
    "comma, semicolon; and 'apostrophes'",
    "漢字 ελληνικά 👩‍🔬 \u2028 é",
    "=HYPERLINK(A1)",
    "+1",
    "-1",
    "@SUM(A1)",
    "'=1",
    "''",
    "\t=1",
    "\n",
    " ",
    "",
]
NUMBERS = {"revision", "balance_change", "held_change", "balance", "held", "lot_id"}


class Ledger(NamedTuple):
    url: str
    wallet: WalletClient


@pytest.fixture
async def ledger(database_url: str, tmp_path: Path) -> AsyncIterator[Ledger]:
    """A wallet that serves while its statements are written; alice has a past of every kind, bob stands between."""
    async with wallet_at(database_url, tmp_path) as (wallet, _):
        await wallet.call("OpenAccount", wallet_pb2.OpenAccountRequest(account_id="alice"))
        for number, text in enumerate(ODD_TEXTS):
            for account_id in ("alice", "bob")[: 1 + number % 2]:
                reserve = wallet_pb2.ReserveRequest(
                    account_id=account_id, reservation_id=f"{account_id}-{number}", amount=2, reference=text
                )
                reserve.hold_duration.seconds = 600
                await wallet.call("Reserve", reserve)
                await wallet.call("Refund", wallet_pb2.RefundRequest(reservation_id=reserve.reservation_id))
        grant = wallet_pb2.GrantRequest(account_id="alice", grant_id="g", amount=90, reference="top-up")
        await wallet.call("Grant", grant)
        reserve = wallet_pb2.ReserveRequest(account_id="alice", reservation_id="taken", amount=7)
        reserve.hold_duration.seconds = 600
        await wallet.call("Reserve", reserve)
        await wallet.call("Commit", wallet_pb2.CommitRequest(reservation_id="taken", amount=5))
        yield Ledger(database_url, wallet)


class Done(NamedTuple):
    code: int
    out: bytes
    err: str


async def command(url: str, *words: str) -> Done:
    """Runs `python -m services.wallet` over this database."""
    environment = {**os.environ, "WALLET_DATABASE_URL": url, "LC_ALL": "C", "PYTHONUTF8": "0"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.wallet", *words, env=environment, stdout=-1, stderr=-1
    )
    out, err = await process.communicate()
    return Done(process.returncode or 0, out, err.decode())


def objects(done: Done) -> list[dict[str, Any]]:
    assert (done.code, done.err) == (0, "")
    return [json.loads(line) for line in done.out.decode().split("\n")[:-1]]


async def test_a_statement_adds_up_to_the_balance(ledger: Ledger) -> None:
    """Each row follows from the one before it, and the last one is what the account has."""
    rows = objects(await command(ledger.url, "statement", "alice"))

    assert [row["revision"] for row in rows] == sorted({row["revision"] for row in rows})
    assert rows[0]["kind"] == "open"
    for before, row in zip([{"balance": 0, "held": 0}, *rows[:-1]], rows, strict=True):
        assert row["balance"] == before["balance"] + row["balance_change"]
        assert row["held"] == before["held"] + row["held_change"]
    assert (rows[-1]["balance"], rows[-1]["held"]) == await ledger.wallet.balance("alice") == (95, 0)
    assert sum(row["balance_change"] for row in rows) == 95


async def test_a_statement_is_the_history_that_the_wallet_lists(ledger: Ledger) -> None:
    """Oldest row first, with every field."""
    rows = objects(await command(ledger.url, "statement", "alice"))
    request = wallet_pb2.ListTransactionsRequest(account_id="alice", page_size=1000)
    listed = (await ledger.wallet.call("ListTransactions", request)).transactions[::-1]

    assert [list(row) for row in rows] == [list(Line._fields)] * len(listed)
    for row, told in zip(rows, listed, strict=True):
        assert wallet_pb2.TransactionKind.Name(told.kind) == f"TRANSACTION_KIND_{row['kind'].upper()}"
        assert read_time(row["time"]) * 1000 == told.time.ToNanoseconds()
        for field in set(Line._fields) - {"kind", "time", "lot_id"}:
            assert row[field] == getattr(told, field)
        assert (row["lot_id"] or 0) == told.lot_id


def value(name: str, cell: str) -> str | int | None:
    """What a reader makes of a cell of the CSV."""
    if name in NUMBERS:
        return int(cell) if cell else None
    return cell.removeprefix("'")


async def test_both_formats_carry_the_same_and_odd_letters_come_back(ledger: Ledger) -> None:
    """A CSV reader that takes one leading apostrophe away has what the JSON has, and a spreadsheet gets no formula."""
    told = objects(await command(ledger.url, "statement", "alice"))
    done = await command(ledger.url, "statement", "alice", "--format", "csv")
    heading, *cells = csv.reader(io.StringIO(done.out.decode(), newline=""))

    assert (done.code, done.err) == (0, "")
    assert heading == list(told[0])
    assert done.out.endswith(b"\r\n")
    texts = [cell for line in cells for name, cell in zip(heading, line, strict=True) if name not in NUMBERS]
    assert not [cell for cell in texts if cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))]
    read = [{name: value(name, cell) for name, cell in zip(heading, line, strict=True)} for line in cells]
    assert read == told
    assert [row["reference"] for row in told if row["kind"] == "reserve"] == [*ODD_TEXTS, ""]


async def test_an_account_that_never_was_has_no_statement(ledger: Ledger) -> None:
    """The reason is on stderr, and nothing on stdout."""
    done = await command(ledger.url, "statement", "nobody", "--format", "csv")

    assert done == Done(1, b"", "wallet: there is no account 'nobody'\n")


@pytest.mark.parametrize(
    "text", ["yesterday", "2026-11-25", "2026-11-25T00:00:00", "2026-13-25T00:00:00Z", "2026-W48-3T00:00:00Z", ""]
)
def test_a_time_without_a_zone_or_sense_is_refused(text: str) -> None:
    """RFC 3339 and nothing else, so that no two readers take it differently."""
    with pytest.raises(ValueError):  # noqa: PT011 - its sentence is the command's
        read_time(text)


@pytest.mark.parametrize(
    ("text", "time_us"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2026-11-25T00:00:00.000001Z", 1_795_564_800_000_001),
        ("2026-11-25t01:00:00.5+01:00", 1_795_564_800_500_000),
        ("1969-12-31T19:00:00-05:00", 0),
    ],
)
def test_a_time_is_read_and_written_to_the_microsecond(text: str, time_us: int) -> None:
    assert read_time(text) == time_us
    assert read_time(time_of(time_us)) == time_us


async def test_wrong_words_and_times_are_told_apart_by_the_exit_code(ledger: Ledger) -> None:
    """2 for a line that was not understood, 1 for one that can't be done."""
    bad_time = await command(ledger.url, "statement", "alice", "--from", "yesterday")
    bad_format = await command(ledger.url, "statement", "alice", "--format", "xml")

    assert (bad_time.code, bad_time.out) == (1, b"")
    assert bad_time.err == "wallet: --from: 'yesterday' is no time such as 2026-11-25T00:00:00Z\n"
    assert (bad_format.code, bad_format.out) == (2, b"")
    assert "usage:" in bad_format.err


async def test_a_reader_that_has_seen_enough_ends_the_statement_quietly(ledger: Ledger) -> None:
    """As `| head` does: no traceback."""
    environment = {**os.environ, "WALLET_DATABASE_URL": ledger.url}
    reader, writer = os.pipe()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.wallet", "statement", "alice", env=environment, stdout=writer, stderr=-1
    )
    os.close(writer)
    os.close(reader)
    _, err = await process.communicate()

    assert (process.returncode, err) == (1, b"")


@pytest.fixture
async def database(ledger: Ledger) -> AsyncIterator[Database]:
    async with await connect(ledger.url, [FOLDER / "sql"]) as opened:
        yield opened


async def test_a_statement_is_cut_exactly(database: Database) -> None:
    """What was at --from is in, what was at --to is not, so that statements of neighbouring months add up."""

    async def cut(since_us: int, until_us: int) -> list[Line]:
        return [line async for page in statement(database, newest, since_us, until_us) for line in page]

    newest = await newest_revision(database, "alice")
    whole = [line async for page in statement(database, newest) for line in page]
    times = sorted({read_time(line.time) for line in whole})
    for edge in (times[0], times[len(times) // 2], times[-1]):
        for time_us in (edge - 1, edge, edge + 1):
            assert await cut(0, time_us) == [line for line in whole if read_time(line.time) < time_us]
            assert await cut(time_us, 2**62) == [line for line in whole if read_time(line.time) >= time_us]
            assert await cut(0, time_us) + await cut(time_us, 2**62) == whole


async def test_from_and_to_are_options_of_the_command(ledger: Ledger) -> None:
    """The command cuts where its options say."""
    rows = objects(await command(ledger.url, "statement", "alice"))
    first, last = rows[2]["time"], rows[-2]["time"]
    done = await command(ledger.url, "statement", "alice", "--from", first, "--to", last)

    assert objects(done) == [row for row in rows if first <= row["time"] < last]
