"""Whether a wallet grows: the memory of its processes after 200,000 calls, against that after a warm-up.

Nearly all are single Reserves; as many bulk calls as the warm-up had follow them.

Memory is what the processes have for themselves, without the pages of files, where the system says so (Linux);
elsewhere it is the resident set, in which SQLite's mapped file counts too.
"""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from benchmarks import wallets
from benchmarks.databases import new_database
from benchmarks.load import Load, run_large_load, run_load
from benchmarks.processes import load_process, server_process
from benchmarks.registry import Result, name_on

CALLS: Final = 200_000
WARM_UP_CALLS: Final = 20_000
WARM_UP_BULK_CALLS: Final = 200
"""At scale 1 these fill SQLite's cache of pages, which is bounded (64 MiB) and would look like a leak until then."""
CLIENTS: Final = 64
BULK_CLIENTS: Final = 3
ROUND_SECONDS: Final = 2.0
MIB: Final = 1024 * 1024


async def run(scale: float, database: str = "sqlite") -> Result:
    """Memory at the end, in MiB; `scale` stretches the calls."""
    secret = secrets.token_bytes(32)
    authorization = wallets.authorization(secret)
    seconds = ROUND_SECONDS * min(scale, 1.0)
    with tempfile.TemporaryDirectory() as name, load_process() as in_load_process:
        folder = Path(name)

        async def reserve(port: int, target: float) -> int:
            calls = 0
            call = (port, wallets.RESERVE, authorization, wallets.make_reserves, CLIENTS, seconds)
            while calls < target:
                load: Load = await in_load_process(run_load, *call)
                assert load.failures == 0, load
                calls += load.calls
            return calls

        async def reserve_bulk(port: int, target: float) -> int:
            calls = 0
            call = (port, wallets.BATCH_RESERVE, authorization, wallets.make_batches, BULK_CLIENTS, seconds)
            while calls < target:
                load: Load = await in_load_process(run_large_load, *call)
                calls += load.calls
            return calls

        async with (
            new_database(database) as url,
            server_process(wallets.serve_wallet, secret, folder, url) as port,
        ):
            await reserve_bulk(port, WARM_UP_BULK_CALLS * scale)
            await reserve(port, WARM_UP_CALLS * scale)
            pid = int((folder / "wallet.pid").read_text())
            before = await asyncio.to_thread(memory_bytes, pid)
            calls = await reserve(port, CALLS * scale)
            bulk_calls = await reserve_bulk(port, WARM_UP_BULK_CALLS * scale)
            after = await asyncio.to_thread(memory_bytes, pid)
    grown = round((after - before) / (calls + bulk_calls) * 1000)
    between = f"{calls:,} calls and {bulk_calls:,} of {wallets.ITEMS:,} items"
    return Result(
        name=name_on("wallet_memory", database),
        value=round(after / MIB, 1),
        unit="MiB",
        baseline=f"{before / MIB:.1f} MiB after the warm-up; {grown:,} bytes grown per 1,000 of {between}",
        ratio=round(after / before, 3),
    )


def memory_bytes(pid: int) -> int:
    """What a process and its children have in memory."""
    listing = subprocess.run(
        ["ps", "-axo", "pid=,ppid=,rss="],  # noqa: S607 - wherever the system has it
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    rows = [tuple(map(int, line.split())) for line in listing.splitlines()]
    return sum(_own_bytes(each, rss_kib) for each, parent, rss_kib in rows if pid in (each, parent))


def _own_bytes(pid: int, rss_kib: int) -> int:
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    anonymous = [int(line.split()[1]) for line in lines if line.startswith("RssAnon:")]
    return (anonymous[0] if anonymous else rss_kib) * 1024
