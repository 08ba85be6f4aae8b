"""A whole Punchcard in which everything that the batcher says to others passes a gate, and any part may be killed.

The wallet, the object store and the provider's twin are those of the sandbox's stack; the batcher is one process or
several replicas over one database, each with proxies of its own in front of its peers.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

from punchcard_client import connect
from sandbox import keys
from sandbox.launches import Launch, Launches
from sandbox.openai_twin.batch_worker import Pace
from sandbox.plan import HOST, Part, Plan
from sandbox.probes import serving
from sandbox.process import ManagedProcess, StartFailed
from sandbox.stack import Stack
from services.batcher.__main__ import MIGRATIONS
from services.chassis.database import migrate
from tests.acceptance.gates import Gate
from tests.acceptance.postgres_wire import CrashingPostgres, PostgresWire
from tests.acceptance.proxies import Wires, provider, wires
from tests.acceptance.stacks import DATABASES, QUICK
from tests.ports import free_port, free_ports

Victim = Literal["batcher", "wallet", "s3", "openai_twin", "postgres"]
Dialect = Literal["sqlite", "postgres"]

START_TIMEOUT_SECONDS: Final = 30.0
STOP_GRACE_SECONDS: Final = 10.0
SUPERVISION_SECONDS: Final = 0.2
MODELS: Final = ("gpt-4.1-mini", "gpt-4.1-nano", "gpt-4o-mini", "gpt-4.1")
PACE: Final = Pace(validating_seconds=0.1, finalizing_seconds=0.1, image_seconds=0.02, lines_at_once=4)
SETTINGS: Final = {
    **QUICK,
    "BATCHER_CYCLE_SECONDS": "0.4",
    "BATCHER_SUBMIT_TIMEOUT_SECONDS": "1",
    "BATCHER_SUBMIT_SETTLE_SECONDS": "0.5",
    "BATCHER_SUBMIT_RETRY_SECONDS": "0.2",
    "BATCHER_RETRY_SECONDS_MAX": "1",
    "BATCHER_LEASE_SECONDS": "1.5",
    "BATCHER_DATABASE_TIMEOUT_SECONDS": "2",
    "BATCHER_BREAKER_SECONDS": "0.2",
    "BATCHER_BREAKER_SECONDS_MAX": "0.5",
    "BATCHER_WALLET_TIMEOUT_SECONDS": "3",
    "BATCHER_OPENAI_TIMEOUT_SECONDS": "3",
    "BATCHER_OPENAI_TRANSFER_TIMEOUT_SECONDS": "3",
    "BATCHER_S3_TIMEOUT_SECONDS": "3",
    # So that the batcher itself fetches the images, and asks the object store for them.
    "BATCHER_IMAGE_TRANSPORT": "inline",
    "BATCHER_MODELS": ",".join(MODELS),
}


class Replica:
    """`python -m services.batcher serve` over the arena's database, behind wires of its own."""

    def __init__(self, folder: Path, name: str, launch: Launch, address: str) -> None:
        self.name = name
        self.address = address
        self._process = ManagedProcess(name, folder)
        self._launch = launch

    def launch(self) -> None:
        """Starts it and does not wait. It dies with the thread that calls this."""
        self._process.start(self._launch.command, self._launch.environment, tied=True)

    def wait_ready(self) -> None:
        """Returns when it serves; raises StartFailed if it ends before."""
        self._process.wait_ready(lambda: serving(self.address), START_TIMEOUT_SECONDS)

    def pid(self) -> int | None:
        """Its pid while it runs."""
        return self._process.pid()

    def kill(self) -> None:
        """SIGKILL, also to one that is frozen; returns when it is gone."""
        self._process.kill()

    def freeze(self) -> None:
        """SIGSTOP: it keeps what it has, and does nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT: it goes on, and does not know that time has passed."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """SIGTERM, and time to drain."""
        if self.pid() is not None:
            self.thaw()
        self._process.stop(STOP_GRACE_SECONDS)

    def log(self) -> str:
        """All that it has logged, restarts included."""
        path = self._process.log_path
        return path.read_text(errors="replace") if path.exists() else ""

    def _signal(self, number: signal.Signals) -> None:
        pid = self.pid()
        assert pid is not None, f"{self.name} does not run"
        os.kill(pid, number)


class Arena:
    """Everything that a round needs: the parts, the gate, and how to kill and start each part."""

    def __init__(self, stack: Stack, gate: Gate, postgres: CrashingPostgres | None) -> None:
        self.stack = stack
        self.gate = gate
        self.replicas: list[Replica] = []
        self._down: set[str] = set()
        self._postgres = postgres

    @property
    def target(self) -> str:
        """Where clients find the batcher: every replica that there is."""
        return "ipv4:" + ",".join(replica.address for replica in self.replicas)

    def replica(self, name: str) -> Replica:
        """A batcher by its name."""
        return next(replica for replica in self.replicas if replica.name == name)

    async def kill(self, victim: Victim, who: str = "") -> None:
        """SIGKILL; returns when it is gone. who: which batcher, where there are several."""
        if victim == "batcher":
            replica = self.replica(who or self.replicas[0].name)
            self._down.add(replica.name)
            await asyncio.to_thread(replica.kill)
        elif victim == "postgres":
            assert self._postgres is not None
            await asyncio.to_thread(self._postgres.kill)
        else:
            await asyncio.to_thread(self.stack.kill, victim)

    def launch(self, victim: Victim, who: str = "") -> asyncio.Future[None]:
        """Begins to start what was killed; the future is done when it serves."""
        if victim == "batcher":
            replica = self.replica(who or self.replicas[0].name)
            self._down.discard(replica.name)
            replica.launch()
            return asyncio.ensure_future(asyncio.to_thread(replica.wait_ready))
        if victim == "postgres":
            assert self._postgres is not None
            return asyncio.ensure_future(asyncio.to_thread(self._postgres.start))
        return asyncio.ensure_future(asyncio.to_thread(self.stack.start, victim))

    async def supervise(self) -> None:
        """Starts batchers that have ended by themselves, as whatever looks after services does, until it is cancelled:
        one that can't reach its object store when it starts says so and ends.
        """
        while True:
            for replica in self.replicas:
                if replica.pid() is None and replica.name not in self._down:
                    with suppress(StartFailed):
                        await self.launch("batcher", replica.name)
            await asyncio.sleep(SUPERVISION_SECONDS)

    def token(self, subject: str, scopes: str) -> str:
        """A bearer token for both services."""
        return self.stack.keys.sign(subject, [keys.WALLET, keys.BATCHER], scopes, 24 * 3600)

    def to_batcher(self, subject: str, scopes: str) -> Any:
        """A channel to whichever batcher answers."""
        return connect(self.target, self.token(subject, scopes))

    def to_wallet(self, subject: str, scopes: str) -> Any:
        """A channel to the wallet."""
        return connect(self.stack.wallet_address, self.token(subject, scopes))


@asynccontextmanager
async def arena_in(
    folder: Path,
    *,
    postgres: CrashingPostgres | None = None,
    postgres_server: str | None = None,
    replicas: int = 1,
    settings: Mapping[str, str] | None = None,
) -> AsyncIterator[Arena]:
    """An arena that is up, with databases on a server that may crash, on one that may not, or in SQLite files."""
    gate = Gate()
    stack = Stack(folder, _plan(postgres.url() if postgres else postgres_server, settings or {}))
    arena = Arena(stack, gate, postgres)
    async with AsyncExitStack() as exits:
        exits.callback(stack.down)
        await asyncio.to_thread(stack.up)
        database_url = stack.plan.batcher_database_url or f"sqlite:{folder / 'batcher.db'}"
        await asyncio.to_thread(migrate, database_url, MIGRATIONS)
        twin_url = stack.openai_base_url.removesuffix("/v1")
        to_provider = provider(gate, twin_url, stack.keys.openai_twin()).serving()
        provider_url = await exits.enter_async_context(to_provider)
        for number in range(replicas):
            name = f"batcher-{number}"
            ways = wires(gate, name, wallet=stack.wallet_address, s3=stack.s3_endpoint)
            found = await exits.enter_async_context(ways)
            url = database_url
            if postgres is not None:
                wire = await exits.enter_async_context(PostgresWire(gate, postgres.socket_folder, name).serving())
                url = wire.format(database=database_url.partition("?")[0].rpartition("/")[2])
            port = stack.plan.ports.batcher if number == 0 else free_port()
            arena.replicas.append(_replica(stack, name, port, found, provider_url, url))
            exits.callback(arena.replicas[-1].stop)
        exits.callback(gate.open)
        for replica in arena.replicas:
            replica.launch()
        await asyncio.gather(*(asyncio.to_thread(replica.wait_ready) for replica in arena.replicas))
        yield arena
        await asyncio.gather(*(asyncio.to_thread(replica.stop) for replica in arena.replicas))


def _replica(stack: Stack, name: str, port: int, found: Wires, provider_url: str, database_url: str) -> Replica:
    launch = Launches(stack.data, stack.plan, stack.keys).of("batcher")
    address = f"{HOST}:{port}"
    return Replica(
        stack.data,
        name,
        launch._replace(
            environment={
                **launch.environment,
                "BATCHER_LISTEN_ADDRESS": address,
                "BATCHER_DATABASE_URL": database_url,
                "BATCHER_WORK_FOLDER": str(stack.data / f"work-{name}"),
                "BATCHER_WALLET_ADDRESS": found.wallet,
                "BATCHER_S3_ENDPOINT": found.s3,
                "BATCHER_S3_PUBLIC_ENDPOINT": stack.s3_endpoint,
                "BATCHER_OPENAI_BASE_URL": f"{provider_url}/v1",
                # With a project the key is no part of whose batches are seen, and can say whose call it is.
                "BATCHER_OPENAI_PROJECT": "arena",
                "BATCHER_OPENAI_API_KEY": name,
            }
        ),
        address,
    )


def _plan(postgres_url: str | None, settings: Mapping[str, str]) -> Plan:
    parts: tuple[Part, ...] = ("s3", "openai_twin", "wallet")
    plan = Plan(ports=free_ports(), provider="twin", parts=parts, pace=PACE, settings={**SETTINGS, **settings})
    if postgres_url is None:
        return plan
    name = f"arena_{secrets.token_hex(6)}"
    wallet, batcher = (postgres_url.format(database=f"{name}_{service}") for service in DATABASES)
    return replace(plan, wallet_database_url=wallet, batcher_database_url=batcher)
