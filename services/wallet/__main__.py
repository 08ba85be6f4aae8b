"""The wallet's wiring: `python -m services.wallet migrate` once, then `python -m services.wallet serve`."""

import asyncio
import secrets
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from punchcard.wallet.v1 import (
    earning_pb2_grpc,
    giving_pb2_grpc,
    market_pb2_grpc,
    spending_pb2_grpc,
    teams_pb2_grpc,
    wallet_pb2_grpc,
)
from services.chassis import command, journal
from services.chassis.database import Database, connect, migrate
from services.chassis.group_commit import GroupCommitter
from services.chassis.loops import Loop, Runner
from services.chassis.server import RefusesToStart, Server
from services.chassis.watch import Tailer, reader, refuse_behind
from services.chassis.watch_stream import WatchStreams
from services.wallet import grpc_earning, grpc_giving, grpc_market, grpc_spending, grpc_teams
from services.wallet.command_line import statement_command, verify_command
from services.wallet.commands import Command, Outcome
from services.wallet.economy import Rules
from services.wallet.expirer import Expirer
from services.wallet.grpc_api import ERRORS, SCOPES, SERVICE, WalletApi
from services.wallet.grpc_earning import EarningApi
from services.wallet.grpc_teams import TeamApi
from services.wallet.grpc_watch import Watches
from services.wallet.settings import WalletSettings
from services.wallet.store import Store
from services.wallet.store_audit import Audit
from services.wallet.store_economy import EconomyReads
from services.wallet.store_market import MarketReads
from services.wallet.store_sharing import TeamReads
from services.wallet.store_spending import SpendingReads
from services.wallet.writer import SQL_FOLDER, writer_of

FOLDER: Final = Path(__file__).parent
MIGRATIONS: Final = FOLDER / "migrations"
SERVICES: Final = (
    SERVICE,
    grpc_earning.SERVICE,
    grpc_teams.SERVICE,
    grpc_giving.SERVICE,
    grpc_market.SERVICE,
    grpc_spending.SERVICE,
)
ALL_SCOPES: Final = {
    **SCOPES,
    **grpc_earning.SCOPES,
    **grpc_teams.SCOPES,
    **grpc_giving.SCOPES,
    **grpc_market.SCOPES,
    **grpc_spending.SCOPES,
}
TAIL_SECONDS: Final = 0.5
"""How often watchers are told of what other replicas wrote."""


@asynccontextmanager
async def opened(settings: WalletSettings) -> AsyncIterator[Database]:
    """The wallet's database, with a schema that is up to date."""
    async with await connect(settings.database_url, [SQL_FOLDER]) as database:
        await command.refuse_old_schema("wallet", database, MIGRATIONS)
        yield database


@asynccontextmanager
async def scratch() -> AsyncIterator[Database]:
    """An empty ledger for an audit, in the folder for temporary files (TMPDIR); it grows as large as the other."""
    with tempfile.TemporaryDirectory(prefix="punchcard-audit-") as folder:
        url = f"sqlite:{folder}/ledger.db"
        building = asyncio.create_task(asyncio.to_thread(migrate, url, MIGRATIONS))
        try:
            await asyncio.shield(building)
        finally:
            # Whoever asked may have left. The thread writes on all the same, and its folder has to outlive it.
            await asyncio.wait([building])
        async with await connect(url, [SQL_FOLDER]) as database:
            yield database


@asynccontextmanager
async def begun(settings: WalletSettings) -> AsyncIterator[tuple[Database, Store]]:
    """The ledger of a wallet that may serve: no damage shows at a glance, it has a head, and its scale is ours."""
    async with opened(settings) as database:
        await command.refuse_damage(database)
        store = Store(database, settings.rules())
        scale = await store.open(secrets.token_hex(8))
        if scale != settings.token_scale:
            raise RefusesToStart(f"this ledger counts tokens with scale {scale}: WALLET_TOKEN_SCALE can't be changed")
        yield database, store


@asynccontextmanager
async def running(settings: WalletSettings) -> AsyncIterator[Server]:
    """A wallet that serves; at the end it is drained, and nothing that was begun is lost."""
    async with begun(settings) as (database, store):
        scale = settings.token_scale
        async with database.reading() as tx:
            head = await journal.read_head(tx)
        tailer = Tailer(reader(database), head.revision, read_subjects=refuse_behind)
        tail = Loop("tailer", tailer.step, TAIL_SECONDS)
        writer = writer_of(settings.database_url, settings.rules())

        async def run_group(commands: Sequence[Command]) -> list[Outcome | Exception]:
            results = await writer.run_group(commands)
            if tailer.watched:
                tail.wake()
            return results

        committer: GroupCommitter[Command, Outcome] = GroupCommitter(run_group)
        server = Server(
            settings,
            ERRORS,
            ALL_SCOPES,
            settings.verifier(),
            lambda registrar: _add_services(registrar, api, committer, database, settings.rules()),
            SERVICES,
        )
        streams = WatchStreams(head.epoch, server.draining)
        watches = Watches(store, database, tailer, streams, scale)
        api = WalletApi(store, committer, Audit(database, scratch), watches, scale)
        ending = asyncio.create_task(streams.end_when_draining(), name="watches")
        expirer = Loop("expirer", Expirer(store, committer).step, settings.expiry_interval_seconds)
        runner = Runner([expirer, tail])
        try:
            await writer.start()
            committer.start()
            await server.start()
            runner.start()
            yield server
        finally:
            await server.drain()
            ending.cancel()
            await runner.stop()
            await committer.close()
            await writer.close()


def _add_services(
    registrar: Any, api: WalletApi, committer: GroupCommitter[Command, Outcome], database: Database, rules: Rules
) -> None:
    wallet_pb2_grpc.add_WalletServiceServicer_to_server(api, registrar)
    earning = EarningApi(committer, EconomyReads(database, rules))
    earning_pb2_grpc.add_EarningServiceServicer_to_server(earning, registrar)
    teams_pb2_grpc.add_TeamServiceServicer_to_server(TeamApi(committer, TeamReads(database, rules)), registrar)
    giving_pb2_grpc.add_GivingServiceServicer_to_server(grpc_giving.GivingApi(committer), registrar)
    market = grpc_market.MarketApi(committer, MarketReads(database))
    market_pb2_grpc.add_MarketServiceServicer_to_server(market, registrar)
    spending = grpc_spending.SpendingApi(committer, SpendingReads(database, rules))
    spending_pb2_grpc.add_SpendingServiceServicer_to_server(spending, registrar)


if __name__ == "__main__":
    commands = [statement_command(opened), verify_command(opened, scratch)]
    sys.exit(command.run("wallet", WalletSettings, MIGRATIONS, running, commands))
