"""The batcher's wiring: `python -m services.batcher migrate` once, then `python -m services.batcher serve`."""

import asyncio
import secrets
import ssl
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from punchcard.batcher.v1 import batcher_pb2_grpc, pricing_pb2_grpc
from services.batcher import grpc_pricing
from services.batcher.command_line import give_up_command
from services.batcher.grpc_api import ERRORS, SCOPES, SERVICE
from services.batcher.grpc_watch import Watches
from services.batcher.result_files import delete_leftovers
from services.batcher.settings import BatcherSettings
from services.batcher.webhook import Hasten, Webhooks
from services.batcher.wiring import Parts, new_id
from services.chassis import command, journal
from services.chassis.database import Database, SqliteMemory, connect
from services.chassis.loops import Runner
from services.chassis.server import Server, refuse_plain, split_address
from services.chassis.watch_stream import WatchStreams

FOLDER: Final = Path(__file__).parent
MIGRATIONS: Final = FOLDER / "migrations"
# Jobs come and go by their age, so that caches help little; what is mapped counts as the process's own memory.
SQLITE_MEMORY: Final = SqliteMemory(writer_cache_kib=16_384, reader_cache_kib=2_048, mapped_kib=0)


@asynccontextmanager
async def webhooks(settings: BatcherSettings, hasten: Hasten) -> AsyncIterator[None]:
    """Takes the provider's webhooks meanwhile, where that is configured. Raises RefusesToStart and OSError."""
    if settings.webhook_address == "off":
        yield
        return
    refuse_plain(settings, settings.webhook_address)
    tls = None
    if settings.tls_certificate_file and settings.tls_key_file:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(settings.tls_certificate_file, settings.tls_key_file)
    taker = Webhooks(settings.openai_webhook_secret.get_secret_value(), hasten)
    try:
        await taker.start(*split_address(settings.webhook_address), tls)
        yield
    finally:
        await taker.close()


@asynccontextmanager
async def opened(settings: BatcherSettings) -> AsyncIterator[tuple[Database, journal.Head]]:
    """The batcher's database, with a schema that is up to date, and its journal."""
    seconds, sql = settings.database_timeout_seconds, [FOLDER / "sql"]
    async with await connect(settings.database_url, sql, timeout_seconds=seconds, memory=SQLITE_MEMORY) as database:
        await command.refuse_old_schema("batcher", database, MIGRATIONS)
        await command.refuse_damage(database)
        async with database.transaction() as tx:
            head = await journal.open_head(tx, secrets.token_hex(8), await tx.now_us())
        yield database, head


@asynccontextmanager
async def running(settings: BatcherSettings) -> AsyncIterator[Server]:
    """A batcher that serves and works; at the end it is drained, and nothing that was begun is lost."""
    settings.work_folder.mkdir(parents=True, exist_ok=True)
    await asyncio.to_thread(delete_leftovers, settings.work_folder, time.time())
    async with AsyncExitStack() as stack:
        parts = Parts(settings, *await stack.enter_async_context(opened(settings)))
        stack.push_async_callback(parts.close)
        await parts.seed_prices()
        await parts.objects.ensure_bucket()
        await parts.start()
        runner = Runner(parts.loops())
        stack.push_async_callback(runner.stop)

        def add_servicers(registrar: Any) -> None:
            batcher_pb2_grpc.add_BatcherServiceServicer_to_server(api, registrar)
            pricing_pb2_grpc.add_PricingServiceServicer_to_server(parts.pricing_api(server.shielded), registrar)

        server = Server(
            settings,
            ERRORS,
            {**SCOPES, **grpc_pricing.SCOPES},
            settings.verifier(),
            add_servicers,
            [SERVICE, grpc_pricing.SERVICE],
        )
        streams = WatchStreams(parts.epoch, server.draining)
        api = parts.api(server.shielded, Watches(parts.store, parts.tailer, streams))
        ending = asyncio.create_task(streams.end_when_draining(), name="watches")
        stack.callback(ending.cancel)
        stack.push_async_callback(server.drain)
        await server.start()
        await stack.enter_async_context(webhooks(settings, parts.hasten))
        runner.start()
        yield server


if __name__ == "__main__":
    sys.exit(command.run("batcher", BatcherSettings, MIGRATIONS, running, [give_up_command(opened, new_id)]))
