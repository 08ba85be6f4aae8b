"""What the chassis costs: an echo of 140 bytes behind all of it, against the same echo on a bare grpc.aio server.

Tokens are checked, a log line is written to a file and metrics are counted for every call. Each server is a process, 64
clients are a third one, and the two servers take turns within one run. The ratio is that of the medians.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import grpc
import jwt

from benchmarks.load import Load, run_load
from benchmarks.processes import Announce, load_process, server_process
from benchmarks.registry import Result
from services.chassis import logs
from services.chassis.auth import Verifier
from services.chassis.errors import ErrorTable
from services.chassis.garbage import collect_seldom
from services.chassis.server import Server
from services.chassis.settings import ServerSettings

CLIENTS: Final = 64
ROUNDS: Final = 9
ROUND_SECONDS: Final = 1.5
MESSAGE_BYTES: Final = 140
SERVICE: Final = "punchcard.bench.v1.EchoService"
METHOD: Final = f"/{SERVICE}/Echo"
AUDIENCE: Final = "punchcard.bench"


async def run(scale: float) -> Result:
    """Calls a second behind the chassis; `scale` stretches the rounds."""
    secret = secrets.token_bytes(32)
    round_seconds = ROUND_SECONDS * scale
    with tempfile.TemporaryDirectory() as folder, load_process() as in_load_process:
        async with (
            server_process(_serve_bare) as bare_port,
            server_process(serve_behind_chassis, secret, Path(folder) / "log") as chassis_port,
        ):
            bare: list[float] = []
            chassis: list[float] = []
            for _ in range(ROUNDS):
                for port, rates in ((bare_port, bare), (chassis_port, chassis)):
                    arguments = (port, METHOD, authorization(secret), make_messages, CLIENTS, round_seconds)
                    load: Load = await in_load_process(run_load, *arguments)
                    assert load.failures == 0, load
                    rates.append(load.calls_per_second)
    # The first round of each warmed it up.
    value, baseline = statistics.median(chassis[1:]), statistics.median(bare[1:])
    return Result(
        name="chassis_echo",
        value=round(value),
        unit="calls/s",
        baseline=f"bare grpc.aio echo, {round(baseline)} calls/s",
        ratio=round(value / baseline, 3),
    )


def make_messages() -> Callable[[], bytes]:
    """Makes the one message that is echoed."""
    message = b"x" * MESSAGE_BYTES
    return lambda: message


def authorization(secret: bytes) -> str:
    """The header of a caller that may echo."""
    claims = {"sub": "bench", "aud": AUDIENCE, "exp": time.time() + 3600, "scope": "bench.echo act_for:*"}
    return f"Bearer {jwt.encode(claims, secret, algorithm='HS256', headers={'kid': 'bench'})}"


async def _echo(request: bytes, _context: Any) -> bytes:
    return request


def _add_echo(server: Any) -> None:
    server.add_registered_method_handlers(SERVICE, {"Echo": grpc.unary_unary_rpc_method_handler(_echo)})


async def _serve_bare(announce: Announce) -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    _add_echo(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    announce(port)
    await asyncio.Event().wait()


async def serve_behind_chassis(announce: Announce, secret: bytes, log_file: Path) -> None:
    """Serves the echo behind the chassis until SIGTERM."""
    key = {"kty": "oct", "kid": "bench", "k": base64.urlsafe_b64encode(secret).decode().rstrip("=")}
    values: dict[str, Any] = {"listen_address": "127.0.0.1:0", "metrics_address": "127.0.0.1:0", "_env_file": None}
    with log_file.open("w") as stream:
        logs.configure(stream=stream)
        server = Server(
            ServerSettings(**values),
            ErrorTable("bench.punchcard", {}),
            {METHOD: "bench.echo"},
            Verifier({"keys": [key]}, AUDIENCE),
            _add_echo,
            [SERVICE],
        )
        port = await server.start()
        # As `serve` of the command line does.
        collect_seldom()
        announce(port)
        await server.wait_for_signal()
        await server.drain()
        logs.close()
