"""A batcher whose loops a test runs by hand, and gates at which its calls wait: races without a clock."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from punchcard.wallet.v1 import wallet_pb2
from services.batcher.__main__ import MIGRATIONS, opened
from services.batcher.job import Job
from services.batcher.settler import Settler
from services.batcher.store import Submitted
from services.batcher.store_rows import JobView
from services.batcher.wiring import Parts
from services.chassis.leases import Lease, LeaseLost
from tests.batcher_jobs import image, new_job
from tests.batchers import Sandbox, picture
from tests.databases import migrated

MODEL = "gpt-4.1-mini"
PATIENT = {
    "batch_jobs": 1,
    "submit_settle_seconds": 0.0,
    "submit_retry_seconds": 0.001,
    "instant_timeout_seconds": 20.0,
}


class Gate:
    """Holds whoever comes until it is opened. times: how many it holds; those behind them pass."""

    def __init__(self, times: int = 1) -> None:
        self._times = times
        self._open = asyncio.Event()
        self._reached = asyncio.Event()

    async def hold(self) -> None:
        """Waits here, if it is one of those that are held."""
        if self._times:
            self._times -= 1
            if not self._times:
                self._reached.set()
            await self._open.wait()

    async def reached(self) -> None:
        """Returns once all whom it holds are there."""
        async with asyncio.timeout(30):
            await self._reached.wait()

    def open(self) -> None:
        """Lets all go."""
        self._open.set()

    def before(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """The call, done only once the gate is open."""

        async def held(*arguments: Any, **named: Any) -> Any:
            await self.hold()
            return await call(*arguments, **named)

        return held

    def behind(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """The call, done at once, whose answer comes only once the gate is open."""

        async def held(*arguments: Any, **named: Any) -> Any:
            answer = await call(*arguments, **named)
            await self.hold()
            return answer

        return held


class Replica:
    """One batcher over a database, of which nothing moves by itself."""

    def __init__(self, sandbox: Sandbox, parts: Parts, name: str) -> None:
        self.sandbox = sandbox
        self.parts = parts
        self.name = name
        self._leases: dict[str, Lease] = {}

    async def lease(self, loop: str) -> Lease:
        """The lease of a loop, taken from whoever had it. What is taken back is over at once, so that anybody may."""
        if loop not in self._leases:
            self._leases[loop] = Lease(self.parts.database, loop, self.name, -1)
            assert await self._leases[loop].hold()
        return self._leases[loop]

    async def plan_and_submit(self, later_us: int = 0) -> None:
        """One step of the submitter."""
        await self.parts.submitter.step(await self.lease("submitter"), now_us() + later_us)

    async def poll(self, later_us: int = 0) -> None:
        """One step of the poller, which asks about all batches."""
        self.parts.poller.hasten()
        await self.parts.poller.step(await self.lease("poller"), now_us() + later_us)

    async def settle(self) -> None:
        """One step of the settler."""
        await Settler(self.parts.store, self.parts.wallet).step(await self.lease("settler"))

    async def bought(self) -> None:
        """What waits is planned and bought, and the provider is done with it."""
        await self.plan_and_submit()
        await self.sandbox.provider.twin.worker.idle()

    async def store(self, job_id: str, **fields: Any) -> Job:
        """Stores a job of alice's about a picture; nobody has asked the wallet yet."""
        data = picture()
        row = image(image_id=hashlib.sha256(data).hexdigest())
        await self.parts.objects.put(row.object_key, data)
        await self.parts.store.add_image(row)
        new = new_job(job_id, **{"image_ids": (row.image_id,), "model": MODEL, **fields})
        (submitted,) = await self.parts.store.submit([new])
        assert isinstance(submitted, Submitted), submitted
        return submitted.job

    async def admit(self, job: Job) -> Job | Exception:
        """Asks the wallet about a stored job."""
        (answer,) = await self.parts.admitter.admit([job], 30)
        return answer

    async def queued(self, *job_ids: str, **fields: Any) -> list[Job]:
        """Jobs that have come out of admission."""
        jobs = [await self.admit(await self.store(job_id, **fields)) for job_id in job_ids]
        return [job for job in jobs if isinstance(job, Job)]

    async def cancel(self, job_id: str) -> Job:
        """Asks to end a job of alice's; gives it as it is then."""
        view, _ = await self.parts.store.cancel("alice", job_id, "alice")
        return view.job

    async def view(self, job_id: str) -> JobView:
        """A job of alice's as it is now."""
        return await self.parts.store.view("alice", job_id)

    async def balance(self) -> tuple[int, int]:
        """What alice has, and what of it is held."""
        return await self.sandbox.wallet.balance("alice")


@asynccontextmanager
async def replicas_in(sandbox: Sandbox, count: int = 1, **changes: Any) -> AsyncIterator[list[Replica]]:
    """Batchers over the sandbox's database, and an account of alice's with 10 tokens."""
    settings = sandbox.batcher_settings(**{**PATIENT, **changes})
    settings.work_folder.mkdir(parents=True, exist_ok=True)
    await migrated(settings.database_url, MIGRATIONS)
    await sandbox.wallet.call("OpenAccount", wallet_pb2.OpenAccountRequest(account_id="alice"))
    async with AsyncExitStack() as stack:
        replicas = []
        for number in range(count):
            parts = Parts(settings, *await stack.enter_async_context(opened(settings)))
            stack.push_async_callback(parts.close)
            await parts.seed_prices()
            await parts.objects.ensure_bucket()
            await parts.start()
            await _read_the_books(parts)
            replicas.append(Replica(sandbox, parts, f"replica-{number}"))
        yield replicas


async def _read_the_books(parts: Parts) -> None:
    """Compares the books with the provider's and the wallet's once, as nothing is bought before."""
    for loop in parts._reconcilers():
        if loop.lease is not None:
            assert await loop.lease.hold()
            await loop.step()
            await loop.lease.release()
    assert await parts.purchases.is_begun()


def hold_requests(sandbox: Sandbox, gate: Gate, wanted: str, *, done: bool = False) -> None:
    """Holds requests like "POST /v1/batches" at the provider, before they are handled or once they are done."""

    async def fault(request: web.Request, handle: Callable[[], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        method, _, path = wanted.partition(" ")
        if request.method != method or not (request.path == path or request.path.endswith(f"/{path}")):
            return await handle()
        if not done:
            await gate.hold()
            return await handle()
        response = await handle()
        await gate.hold()
        return response

    sandbox.provider.fault = fault


async def lost_the_lease(step: asyncio.Task[None]) -> None:
    """The step ends because another replica has its lease."""
    with pytest.raises(LeaseLost):
        await step


def now_us() -> int:
    """The time of now."""
    return time.time_ns() // 1000
