"""A wallet in a process of its own for benchmarks, durable and with all of the chassis on, and calls for it."""

from __future__ import annotations

import base64
import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import jwt
from google.protobuf.duration_pb2 import Duration

from benchmarks.processes import Announce
from punchcard.wallet.v1 import wallet_pb2
from services.chassis import logs
from services.chassis.database import migrate
from services.chassis.garbage import collect_seldom
from services.wallet.__main__ import MIGRATIONS, running
from services.wallet.settings import WalletSettings

RESERVE: Final = "/punchcard.wallet.v1.WalletService/Reserve"
BATCH_RESERVE: Final = "/punchcard.wallet.v1.WalletService/BatchReserve"
AUDIENCE: Final = "punchcard.wallet"
SCOPES: Final = "account.open wallet.reserve wallet.read act_for:*"
ACCOUNTS: Final = 1_000
BONUS: Final = 10**12
ITEMS: Final = 1_000
READY_BATCHES: Final = 120
HOLD: Final = Duration(seconds=3600)


def authorization(secret: bytes) -> str:
    """The header of a caller that may reserve for everybody."""
    claims = {"sub": "bench", "aud": AUDIENCE, "exp": time.time() + 3600, "scope": SCOPES}
    return f"Bearer {jwt.encode(claims, secret, algorithm='HS256', headers={'kid': 'bench'})}"


async def serve_wallet(announce: Announce, secret: bytes, folder: Path, database_url: str) -> None:
    """Serves a wallet until SIGTERM; `folder` is for its keys, its log and its process id."""
    (folder / "wallet.pid").write_text(str(os.getpid()))
    key = {"kty": "oct", "kid": "bench", "k": base64.urlsafe_b64encode(secret).decode().rstrip("=")}
    jwks_file = folder / "jwks.json"
    jwks_file.write_text(json.dumps({"keys": [key]}))
    settings = WalletSettings(
        _env_file=None,  # type: ignore[call-arg]
        listen_address="127.0.0.1:0",
        metrics_address="127.0.0.1:0",
        database_url=database_url,
        jwks_file=jwks_file,
        welcome_bonus=BONUS,
    )
    migrate(settings.database_url, MIGRATIONS)
    with (folder / "wallet.log").open("w") as stream:
        logs.configure(stream=stream)
        async with running(settings) as server:
            # As `serve` of the command line does.
            collect_seldom()
            announce(server.port)
            await server.wait_for_signal()
        logs.close()


def make_reserves(accounts: int = ACCOUNTS) -> Callable[[], bytes]:
    """Makes serialized Reserves of fresh ids, over so many accounts."""
    numbers = itertools.count()
    run = os.urandom(4).hex()
    return lambda: _reserve(run, next(numbers), accounts).SerializeToString()


def make_batches(accounts: int = ACCOUNTS) -> Callable[[], bytes]:
    """Makes serialized BatchReserves of 1,000 fresh ids each, over so many accounts."""
    numbers = itertools.count()
    run = os.urandom(4).hex()

    def batch() -> bytes:
        items = [_reserve(run, next(numbers), accounts) for _ in range(ITEMS)]
        return wallet_pb2.BatchReserveRequest(items=items).SerializeToString()

    # Making a message costs the client as much as a call costs the server, so that they are made before the clock runs.
    ready = [batch() for _ in range(READY_BATCHES)]
    return lambda: ready.pop() if ready else batch()


def _reserve(run: str, number: int, accounts: int) -> wallet_pb2.ReserveRequest:
    return wallet_pb2.ReserveRequest(
        account_id=f"account-{number % accounts}",
        reservation_id=f"{run}-{number:010d}",
        amount=1,
        hold_duration=HOLD,
        price_version="v1",
    )
