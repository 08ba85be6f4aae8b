"""What a page of a long history costs: 100 rows of an account with 1,000,000, against one with 1,000.

Pages are read from the newest row and from the middle in turn, through ListTransactions, one after the other. The rows
of the long history lie between those of other accounts, as they do in a ledger that is used.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks import wallets
from benchmarks.databases import new_database, row_of
from benchmarks.ledgers import seed
from benchmarks.load import Load, run_large_load
from benchmarks.processes import load_process, server_process
from benchmarks.registry import Result, name_on
from punchcard.wallet.v1 import wallet_pb2
from services.wallet.grpc_pages import history_token

LONG_ROWS: Final = 1_000_000
SHORT_ROWS: Final = 1_000
PAGE_ROWS: Final = 100
OTHERS: Final = [f"other-{number}" for number in range(100)]
ROUNDS: Final = 6
ROUND_SECONDS: Final = 1.0
LIST: Final = "/punchcard.wallet.v1.WalletService/ListTransactions"


async def run(scale: float, database: str = "sqlite") -> Result:
    """Pages a second of the long history; `scale` stretches its length and the rounds."""
    secret = secrets.token_bytes(32)
    long_rows = max(SHORT_ROWS, int(LONG_ROWS * scale))
    rates: dict[str, list[float]] = {"long": [], "short": []}
    with tempfile.TemporaryDirectory() as folder, load_process() as in_load_process:
        async with new_database(database) as url:
            await asyncio.to_thread(lambda: asyncio.run(seed(url, ["long", "short", *OTHERS], _payers(long_rows))))
            async with server_process(wallets.serve_wallet, secret, Path(folder), url) as port:
                middles = {"long": await row_of(url, "long", long_rows // 2), "short": await row_of(url, "short", 500)}
                for _ in range(ROUNDS):
                    for name, of_account in rates.items():
                        call = (port, LIST, wallets.authorization(secret), partial(make_pages, name, middles[name]))
                        load: Load = await in_load_process(run_large_load, *call, 1, ROUND_SECONDS * scale)
                        of_account.append(load.calls_per_second)
    value, baseline = statistics.median(rates["long"][1:]), statistics.median(rates["short"][1:])
    return Result(
        name=name_on("history_page", database),
        value=round(value),
        unit="pages/s",
        baseline=f"of {SHORT_ROWS:,} rows instead of {long_rows:,}, {round(baseline)} pages/s",
        ratio=round(value / baseline, 3),
    )


def make_pages(account_id: str, middle: int) -> Callable[[], bytes]:
    """Makes serialized requests for the newest page of an account and for the one from its middle, in turn."""
    tokens = itertools.cycle(["", history_token(account_id, middle)])
    return lambda: wallet_pb2.ListTransactionsRequest(
        account_id=account_id, page_size=PAGE_ROWS, page_token=next(tokens)
    ).SerializeToString()


def _payers(long_rows: int) -> Iterator[str]:
    """Who pays for each reservation, of two rows each: between two of the long history is one of somebody else's."""
    others = itertools.cycle(OTHERS)
    each = long_rows // SHORT_ROWS
    for number in range(long_rows // 2):
        yield "long"
        yield "short" if number % each == 0 else next(others)
