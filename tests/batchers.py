"""A real batcher in the test's own process, with a real wallet, a real S3 server and the provider's twin."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import grpc
from aiohttp import web
from aiohttp.test_utils import TestServer
from PIL import Image

from punchcard.batcher.v1 import batcher_pb2, batcher_pb2_grpc, pricing_pb2_grpc
from sandbox.openai_twin.batch_worker import Pace
from sandbox.openai_twin.http_api import Twin
from services.batcher.__main__ import MIGRATIONS, running
from services.batcher.settings import BatcherSettings
from tests.databases import migrated
from tests.object_stores import serve_s3
from tests.ports import free_port
from tests.tokens import bearer, token, write_jwks
from tests.wallets import EVERY_SCOPE, WalletClient, wallet_at

ROOT = Path(__file__).parents[1]
KEY = "sk-twin"
SCOPES = "image.upload job.submit job.read job.cancel job.admin price.admin act_for:*"
FINAL = {
    batcher_pb2.JOB_STATE_SUCCEEDED,
    batcher_pb2.JOB_STATE_FAILED,
    batcher_pb2.JOB_STATE_EXPIRED,
    batcher_pb2.JOB_STATE_CANCELLED,
    batcher_pb2.JOB_STATE_REJECTED,
}

Fault = Callable[[web.Request, Callable[[], Awaitable[web.StreamResponse]]], Awaitable[web.StreamResponse]]


def picture(color: tuple[int, int, int] = (200, 30, 30), size: int = 16) -> bytes:
    """A small PNG of one colour."""
    out = BytesIO()
    Image.new("RGB", (size, size), color).save(out, "PNG")
    return out.getvalue()


@dataclass
class Provider:
    """The twin as it is served. fault: what happens to a request instead of its handling, given it and its handler."""

    twin: Twin
    url: str = ""
    fault: Fault | None = None
    requests: list[str] = field(default_factory=list)

    @web.middleware
    async def middleware(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path}")
        if self.fault is None:
            return await handler(request)
        return await self.fault(request, lambda: handler(request))

    def bought(self) -> list[Any]:
        """The batches that were created, oldest first."""
        return sorted(self.twin._folder.batches.values(), key=lambda batch: batch.sequence)


class BatcherClient:
    """A stub and the metadata of a caller, one that may do everything unless a test says otherwise."""

    def __init__(self, channel: grpc.aio.Channel, address: str) -> None:
        self.address = address
        self.stub: Any = batcher_pb2_grpc.BatcherServiceStub(channel)
        self.pricing: Any = pricing_pb2_grpc.PricingServiceStub(channel)
        self.metadata = bearer("tester", SCOPES, audience="punchcard.batcher")

    async def call(self, method: str, request: Any, metadata: Any = None) -> Any:
        """The answer, or the `grpc.aio.AioRpcError`."""
        return await getattr(self.stub, method)(request, metadata=self.metadata if metadata is None else metadata)

    async def upload(self, data: bytes, account_id: str = "alice", **spec: Any) -> Any:
        """Uploads an image in two chunks; gives the response."""
        values = {"sha256": hashlib.sha256(data).hexdigest(), **spec}
        half = len(data) // 2

        async def parts() -> AsyncIterator[Any]:
            yield batcher_pb2.UploadImageRequest(spec=batcher_pb2.ImageSpec(account_id=account_id, **values))
            yield batcher_pb2.UploadImageRequest(chunk=batcher_pb2.ImageChunk(data=data[:half], offset=0))
            yield batcher_pb2.UploadImageRequest(chunk=batcher_pb2.ImageChunk(data=data[half:]))

        return await self.stub.UploadImage(parts(), metadata=self.metadata)

    async def submit(self, job_id: str, image_id: str, **fields: Any) -> Any:
        """Submits a job; gives the response."""
        return await self.call("SubmitJob", request_of(job_id, image_id, **fields))

    async def get(self, job_id: str, account_id: str = "alice") -> Any:
        """A job as it is now."""
        request = batcher_pb2.GetJobRequest(account_id=account_id, job_id=job_id)
        return (await self.call("GetJob", request)).job

    async def watch(self, job_id: str, account_id: str = "alice", resume_token: str = "") -> list[Any]:
        """All messages of a watch, to its end."""
        request = batcher_pb2.WatchJobRequest(account_id=account_id, job_id=job_id, resume_token=resume_token)
        return [message async for message in self.stub.WatchJob(request, metadata=self.metadata)]

    async def ended(self, job_id: str, account_id: str = "alice") -> Any:
        """A job once it is settled."""
        async with asyncio.timeout(60):
            await self.watch(job_id, account_id)
        return await self.get(job_id, account_id)


def request_of(job_id: str, image_id: str, **fields: Any) -> Any:
    """A request for a job of alice about an image."""
    values = {"account_id": "alice", "prompt": "What is this?", "lane": batcher_pb2.LANE_BATCH, **fields}
    images = [batcher_pb2.ImageSource(image_id=image_id)]
    return batcher_pb2.SubmitJobRequest(job_id=job_id, images=images, **values)


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[BatcherClient]:
    """A client of a batcher that is there, or will be soon."""
    async with grpc.aio.insecure_channel(address, options=[("grpc.max_reconnect_backoff_ms", 100)]) as channel:
        async with asyncio.timeout(30):
            await channel.channel_ready()
        yield BatcherClient(channel, address)


async def until(probe: Callable[[], Awaitable[bool]]) -> None:
    """Returns once the probe says yes."""
    async with asyncio.timeout(30):
        for _ in itertools.count():
            if await probe():
                return
            await asyncio.sleep(0.01)


class Sandbox:
    """All parts but the batcher, which a test starts, stops and starts again."""

    def __init__(self, folder: Path, settings: dict[str, Any], provider: Provider, wallet: WalletClient) -> None:
        self.folder = folder
        self.settings = settings
        self.provider = provider
        self.wallet = wallet

    def batcher_settings(self, **changes: Any) -> BatcherSettings:
        """The settings of a batcher of this sandbox: quick cycles and little patience."""
        return BatcherSettings(_env_file=None, **{**self.settings, **changes})  # type: ignore[call-arg]

    @asynccontextmanager
    async def batcher(self, **changes: Any) -> AsyncIterator[BatcherClient]:
        """A batcher that runs."""
        settings = self.batcher_settings(**changes)
        await migrated(settings.database_url, MIGRATIONS)
        async with running(settings) as server, connected(f"127.0.0.1:{server.port}") as client:
            yield client

    @asynccontextmanager
    async def process(self, **changes: Any) -> AsyncIterator[tuple[BatcherClient, subprocess.Popen[bytes]]]:
        """A batcher in a process of its own, which a test may kill."""
        port = free_port()
        values = {**self.settings, "listen_address": f"127.0.0.1:{port}", **changes}
        await migrated(values["database_url"], MIGRATIONS)
        environment = {f"BATCHER_{name.upper()}": str(value) for name, value in values.items()}
        roots = os.pathsep.join([str(ROOT), str(ROOT / "gen")])
        with (self.folder / "batcher.log").open("ab") as log:
            process = subprocess.Popen(  # noqa: ASYNC220 - it starts in a moment
                [sys.executable, "-m", "services.batcher", "serve"],
                env={**os.environ, **environment, "PYTHONPATH": roots},
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )
        try:
            async with connected(f"127.0.0.1:{port}") as client:
                yield client, process
        finally:
            process.kill()
            process.wait()


@asynccontextmanager
async def sandbox_in(folder: Path, database_url: str | None = None, pace: Pace | None = None) -> AsyncIterator[Sandbox]:
    """A sandbox whose wallet gives each new account 10 tokens."""
    async with AsyncExitStack() as stack:
        store = stack.enter_context(serve_s3(folder))
        provider = Provider(Twin(folder / "twin", api_key=KEY, pace=pace))
        app = provider.twin.app()
        app.middlewares.insert(0, provider.middleware)
        server = await stack.enter_async_context(TestServer(app))
        provider.url = str(server.make_url("/v1"))
        wallet_url = f"sqlite:{folder}/wallet.db"
        wallet, wallet_port = await stack.enter_async_context(wallet_at(wallet_url, folder))
        token_file = folder / "wallet_token"
        token_file.write_text(token("batcher", EVERY_SCOPE, audience="punchcard.wallet"))
        settings = {
            "listen_address": "127.0.0.1:0",
            "metrics_address": "off",
            "database_url": database_url or f"sqlite:{folder}/batcher.db",
            "jwks_file": write_jwks(folder),
            "work_folder": folder / "work",
            "wallet_address": f"127.0.0.1:{wallet_port}",
            "wallet_token_file": token_file,
            "s3_endpoint": store.endpoint,
            "s3_access_key": store.access_key,
            "s3_secret_key": store.secret_key,
            "openai_base_url": provider.url,
            "openai_api_key": KEY,
            "cycle_seconds": 0.5,
            "poll_seconds": 0.1,
            "submit_timeout_seconds": 2.0,
            "submit_settle_seconds": 0.5,
            "submit_retry_seconds": 0.5,
            "lease_seconds": 3.0,
            "drain_timeout_seconds": 5.0,
        }
        yield Sandbox(folder, settings, provider, wallet)
