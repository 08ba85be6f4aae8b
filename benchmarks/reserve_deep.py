"""Whether a ledger grows slow with age: BatchReserves on 10 million rows of journal, against the same on an empty one.

Each ledger has a wallet of its own; both take turns within one run.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import statistics
import tempfile
from pathlib import Path
from typing import Final

from benchmarks import wallets
from benchmarks.databases import new_database
from benchmarks.ledgers import seed
from benchmarks.load import Load, run_large_load
from benchmarks.processes import load_process, server_process
from benchmarks.registry import Result, name_on

CLIENTS: Final = 3
ROUNDS: Final = 6
ROUND_SECONDS: Final = 2.0
ROWS: Final = 10_000_000
ACCOUNTS: Final = [f"account-{number}" for number in range(wallets.ACCOUNTS)]


async def run(scale: float, database: str = "sqlite") -> Result:
    """Reservations a second on the old ledger; `scale` stretches its age and the rounds."""
    secret = secrets.token_bytes(32)
    rows = max(2, int(ROWS * scale))
    with tempfile.TemporaryDirectory() as deep, tempfile.TemporaryDirectory() as empty, load_process() as loads:
        async with new_database(database) as deep_url, new_database(database) as empty_url:
            await asyncio.to_thread(
                lambda: asyncio.run(seed(deep_url, ACCOUNTS, itertools.islice(itertools.cycle(ACCOUNTS), rows // 2)))
            )
            async with (
                server_process(wallets.serve_wallet, secret, Path(deep), deep_url) as deep_port,
                server_process(wallets.serve_wallet, secret, Path(empty), empty_url) as empty_port,
            ):
                rates: dict[int, list[float]] = {deep_port: [], empty_port: []}
                for _ in range(ROUNDS):
                    for port, of_port in rates.items():
                        call = (port, wallets.BATCH_RESERVE, wallets.authorization(secret), wallets.make_batches)
                        load: Load = await loads(run_large_load, *call, CLIENTS, ROUND_SECONDS * scale)
                        of_port.append(load.calls_per_second * wallets.ITEMS)
    # The first round of each warmed it up, and opened the accounts of the empty one.
    value, baseline = statistics.median(rates[deep_port][1:]), statistics.median(rates[empty_port][1:])
    return Result(
        name=name_on("reserve_deep", database),
        value=round(value),
        unit="reserves/s",
        baseline=f"on an empty ledger instead of {rows:,} rows, {round(baseline)} reserves/s",
        ratio=round(value / baseline, 3),
    )
