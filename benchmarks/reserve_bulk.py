"""How many durable reservations a second BatchReserve makes, 1,000 a call, against writing the same rows and no more.

The baseline puts rows of the same sizes into the same two tables with bare sqlite3, 1,000 a transaction, each flushed:
the floor that the database sets. Both take turns within one run.
"""

from __future__ import annotations

import secrets
import sqlite3
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Final

from benchmarks import wallets
from benchmarks.databases import count_held, new_database
from benchmarks.load import Load, run_large_load
from benchmarks.processes import load_process, server_process
from benchmarks.registry import Result, name_on
from services.chassis.database import migrate

CLIENTS: Final = 3
ROUNDS: Final = 5
ROUND_SECONDS: Final = 2.0
BASELINE_TRANSACTIONS: Final = 40


async def run(scale: float, database: str = "sqlite") -> Result:
    """Reservations a second; `scale` stretches the rounds."""
    secret = secrets.token_bytes(32)
    rates: list[float] = []
    raw: list[float] = []
    acknowledged = 0
    with tempfile.TemporaryDirectory() as name, load_process() as in_load_process:
        folder = Path(name)
        async with new_database(database) as url, server_process(wallets.serve_wallet, secret, folder, url) as port:
            call = (port, wallets.BATCH_RESERVE, wallets.authorization(secret), wallets.make_batches)
            for number in range(ROUNDS):
                load: Load = await in_load_process(run_large_load, *call, CLIENTS, ROUND_SECONDS * scale)
                rates.append(load.calls_per_second * wallets.ITEMS)
                acknowledged += load.calls * wallets.ITEMS
                transactions = max(1, int(BASELINE_TRANSACTIONS * scale))
                raw.append(await in_load_process(write_rows, folder / f"raw-{number}.db", transactions))
            held = await count_held(url)
    assert held >= acknowledged, f"{acknowledged} were acknowledged and {held} are there"
    value, baseline = statistics.median(rates[1:]), statistics.median(raw[1:])
    return Result(
        name=name_on("reserve_bulk", database),
        value=round(value),
        unit="reserves/s",
        baseline=f"the same rows by bare sqlite3, {round(baseline)} reserves/s",
        ratio=round(value / baseline, 3),
    )


def write_rows(path: Path, transactions: int) -> float:
    """Rows a second: a reservation and a journal row each, in transactions of 1,000, flushed."""
    from services.wallet.__main__ import MIGRATIONS  # noqa: PLC0415 - the load process needs it only here

    migrate(f"sqlite:{path}", MIGRATIONS)
    body = (
        '{"balance":1000000000000,"held":1000,"held_change":1,"created_by":"bench","reservation_id":"%s",' + "x" * 110
    )
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA journal_mode = WAL")
        begun = time.perf_counter()
        for transaction in range(transactions):
            first = transaction * wallets.ITEMS + 1
            keys = [f"{number:019d}" for number in range(first, first + wallets.ITEMS)]
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(
                "INSERT INTO reservations VALUES ('bench', ?, 'account-1', 'account-1', 1, 1, 0, 0, 0, 0, 3600000000, "
                "1795386816435573, 1795386756435573, 'v1', '', NULL, 0, 1, '', 0)",
                [(key,) for key in keys],
            )
            connection.executemany(
                "INSERT INTO journal VALUES (?, 1795386756435573, 'reserve', 'bench', 'account-1', 0, ?, ?)",
                [(first + place, body % key, "0" * 64) for place, key in enumerate(keys)],
            )
            connection.execute("COMMIT")
        return transactions * wallets.ITEMS / (time.perf_counter() - begun)
