"""The wallet's wiring: `python -m services.wallet migrate` once, then `python -m services.wallet serve`."""

import argparse
import asyncio
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from punchcard.wallet.v1 import wallet_pb2_grpc
from services.chassis import journal, logs
from services.chassis.database import Database, connect, migrate, pending
from services.chassis.errors import ServiceError
from services.chassis.group_commit import GroupCommitter
from services.chassis.loops import Loop, Runner
from services.chassis.metrics import loop_failed, loop_succeeded
from services.chassis.server import RefusesToStart, Server
from services.wallet.commands import Command, Outcome
from services.wallet.expirer import Expirer
from services.wallet.grpc_api import ERRORS, SCOPES, SERVICE, WalletApi
from services.wallet.settings import WalletSettings
from services.wallet.store import Store

FOLDER: Final = Path(__file__).parent
MIGRATIONS: Final = FOLDER / "migrations"

_log = logs.get_logger(__name__)


@asynccontextmanager
async def opened(settings: WalletSettings) -> AsyncIterator[Database]:
    """The wallet's database, with a schema that is up to date and an open journal."""
    async with await connect(settings.database_url, [FOLDER / "sql"]) as database:
        if behind := await pending(database, MIGRATIONS):
            raise RefusesToStart(
                f"the schema is behind by {', '.join(behind)}: run `python -m services.wallet migrate`"
            )
        async with database.transaction() as tx:
            await journal.open_head(tx, secrets.token_hex(8), await tx.now_us())
        yield database


@asynccontextmanager
async def running(settings: WalletSettings) -> AsyncIterator[Server]:
    """A wallet that serves; at the end it is drained, and nothing that was begun is lost."""
    async with opened(settings) as database:
        store = Store(database, settings.rules())
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
        api = WalletApi(store, committer, server.shielded, settings.token_scale)
        expirer = Loop("expirer", Expirer(store, committer).step, settings.expiry_interval_seconds)
        runner = Runner([expirer], on_success=loop_succeeded, on_failure=_tell_failure)
        try:
            await server.start()
            runner.start()
            yield server
        finally:
            await server.drain()
            await runner.stop()
            await committer.close()


def _tell_failure(loop: str, error: Exception) -> None:
    loop_failed(loop)
    _log.warning("loop_failed", loop=loop, error=repr(error))


async def serve(settings: WalletSettings) -> None:
    """Serves until SIGTERM or SIGINT."""
    async with running(settings) as server:
        await server.wait_for_signal()


def main() -> int:
    """Runs a command; 0 when it ended well, 1 when it could not be done, 2 when it was not understood."""
    parser = argparse.ArgumentParser(
        prog="python -m services.wallet", description="The wallet owns balances of tokens."
    )
    parser.add_argument("command", choices=["serve", "migrate"], help="serve calls, or bring the database up to date")
    command = parser.parse_args().command
    settings = WalletSettings.load()
    logs.configure(settings.log_level, settings.log_format)
    try:
        if command == "migrate":
            migrate(settings.database_url, MIGRATIONS)
        else:
            asyncio.run(serve(settings))
    except (ServiceError, RefusesToStart, OSError) as error:
        print(f"wallet: {getattr(error, 'detail', '') or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
