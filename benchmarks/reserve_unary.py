"""What a durable Reserve costs over the chassis alone: single Reserves of 64 clients, against the chassis's echo.

Each answer waits for a transaction that is flushed to the disk. The two servers take turns within one run.
"""

from __future__ import annotations

import secrets
import statistics
import tempfile
from pathlib import Path
from typing import Final

from benchmarks import chassis_echo, wallets
from benchmarks.databases import count_held, new_database
from benchmarks.load import Load, run_load
from benchmarks.processes import load_process, server_process
from benchmarks.registry import Result, name_on

CLIENTS: Final = 64
ROUNDS: Final = 7
ROUND_SECONDS: Final = 1.5


async def run(scale: float, database: str = "sqlite") -> Result:
    """Reserves a second; `scale` stretches the rounds."""
    secret = secrets.token_bytes(32)
    seconds = ROUND_SECONDS * scale
    with tempfile.TemporaryDirectory() as name, load_process() as in_load_process:
        folder = Path(name)
        async with (
            new_database(database) as url,
            server_process(chassis_echo.serve_behind_chassis, secret, folder / "echo.log") as echo_port,
            server_process(wallets.serve_wallet, secret, folder, url) as wallet_port,
        ):
            echo_call = (echo_port, chassis_echo.METHOD, chassis_echo.authorization(secret), chassis_echo.make_messages)
            reserve_call = (wallet_port, wallets.RESERVE, wallets.authorization(secret), wallets.make_reserves)
            rates: dict[int, list[float]] = {echo_port: [], wallet_port: []}
            acknowledged = 0
            for _ in range(ROUNDS):
                for call in (echo_call, reserve_call):
                    load: Load = await in_load_process(run_load, *call, CLIENTS, seconds)
                    assert load.failures == 0, load
                    rates[call[0]].append(load.calls_per_second)
                    acknowledged += load.calls if call is reserve_call else 0
            held = await count_held(url)
    assert held >= acknowledged, f"{acknowledged} were acknowledged and {held} are there"
    # The first round of each warmed it up.
    value, baseline = statistics.median(rates[wallet_port][1:]), statistics.median(rates[echo_port][1:])
    return Result(
        name=name_on("reserve_unary", database),
        value=round(value),
        unit="reserves/s",
        baseline=f"echo behind the chassis, {round(baseline)} calls/s",
        ratio=round(value / baseline, 3),
    )
