"""What it costs that all callers want the same account: BatchReserves on one, against the same over 10,000 accounts.

Both loads go to one wallet and take turns within one run.
"""

from __future__ import annotations

import secrets
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks import wallets
from benchmarks.databases import count_held, new_database
from benchmarks.load import Load, run_large_load
from benchmarks.processes import load_process, server_process
from benchmarks.registry import Result, name_on

CLIENTS: Final = 3
ROUNDS: Final = 6
ROUND_SECONDS: Final = 2.0
SPREAD_ACCOUNTS: Final = 10_000


async def run(scale: float, database: str = "sqlite") -> Result:
    """Reservations a second on the hot account; `scale` stretches the rounds."""
    secret = secrets.token_bytes(32)
    rates: dict[int, list[float]] = {1: [], SPREAD_ACCOUNTS: []}
    acknowledged = 0
    with tempfile.TemporaryDirectory() as folder, load_process() as in_load_process:
        async with (
            new_database(database) as url,
            server_process(wallets.serve_wallet, secret, Path(folder), url) as port,
        ):
            call = (port, wallets.BATCH_RESERVE, wallets.authorization(secret))
            for _ in range(ROUNDS):
                for accounts, of_accounts in rates.items():
                    messages = partial(wallets.make_batches, accounts)
                    load: Load = await in_load_process(run_large_load, *call, messages, CLIENTS, ROUND_SECONDS * scale)
                    of_accounts.append(load.calls_per_second * wallets.ITEMS)
                    acknowledged += load.calls * wallets.ITEMS
            held = await count_held(url)
    assert held >= acknowledged, f"{acknowledged} were acknowledged and {held} are there"
    # The first round of each opened its accounts.
    value, baseline = statistics.median(rates[1][1:]), statistics.median(rates[SPREAD_ACCOUNTS][1:])
    return Result(
        name=name_on("reserve_hot", database),
        value=round(value),
        unit="reserves/s",
        baseline=f"over {SPREAD_ACCOUNTS:,} accounts, {round(baseline)} reserves/s",
        ratio=round(value / baseline, 3),
    )
