"""The wallet's wiring: `python -m services.wallet migrate` once, then `python -m services.wallet serve`."""

import asyncio
import secrets
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from punchcard.wallet.v1 import wallet_pb2_grpc
from services.chassis import command
from services.chassis.database import Database, connect, migrate
from services.chassis.group_commit import GroupCommitter
from services.chassis.loops import Loop, Runner
from services.chassis.server import RefusesToStart, Server
from services.wallet.commands import Command, Outcome
from services.wallet.expirer import Expirer
from services.wallet.grpc_api import ERRORS, SCOPES, SERVICE, WalletApi
from services.wallet.settings import WalletSettings
from services.wallet.store import Store
from services.wallet.store_audit import Audit

FOLDER: Final = Path(__file__).parent
MIGRATIONS: Final = FOLDER / "migrations"


@asynccontextmanager
async def opened(settings: WalletSettings) -> AsyncIterator[Database]:
    """The wallet's database, with a schema that is up to date."""
    async with await connect(settings.database_url, [FOLDER / "sql"]) as database:
        await command.refuse_old_schema("wallet", database, MIGRATIONS)
        yield database


@asynccontextmanager
async def scratch() -> AsyncIterator[Database]:
    """An empty ledger for an audit, in the folder for temporary files (TMPDIR); it grows as large as the other."""
    with tempfile.TemporaryDirectory(prefix="punchcard-audit-") as folder:
        url = f"sqlite:{folder}/ledger.db"
        await asyncio.to_thread(migrate, url, MIGRATIONS)
        async with await connect(url, [FOLDER / "sql"]) as database:
            yield database


@asynccontextmanager
async def running(settings: WalletSettings) -> AsyncIterator[Server]:
    """A wallet that serves; at the end it is drained, and nothing that was begun is lost."""
    async with opened(settings) as database:
        store = Store(database, settings.rules())
        scale = await store.open(secrets.token_hex(8))
        if scale != settings.token_scale:
            raise RefusesToStart(f"this ledger counts tokens with scale {scale}: WALLET_TOKEN_SCALE can't be changed")
        committer: GroupCommitter[Command, Outcome] = GroupCommitter(store.run_group)
        committer.start()
        server = Server(
            settings,
            ERRORS,
            SCOPES,
            settings.verifier(),
            lambda registrar: wallet_pb2_grpc.add_WalletServiceServicer_to_server(api, registrar),
            [SERVICE],
        )
        api = WalletApi(store, committer, Audit(database, scratch), scale)
        expirer = Loop("expirer", Expirer(store, committer).step, settings.expiry_interval_seconds)
        runner = Runner([expirer])
        try:
            await server.start()
            runner.start()
            yield server
        finally:
            await server.drain()
            await runner.stop()
            await committer.close()


if __name__ == "__main__":
    sys.exit(command.run("wallet", WalletSettings, MIGRATIONS, running))
