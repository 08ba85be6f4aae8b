"""A whole Punchcard of real processes, a customer who talks to it over gRPC, and what outsiders see of it."""

from __future__ import annotations

import asyncio
import json
import secrets
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Final, NamedTuple

import grpc
import pytest
from PIL import Image

from punchcard.batcher.v1 import batcher_pb2, batcher_pb2_grpc
from punchcard.wallet.v1 import wallet_pb2, wallet_pb2_grpc
from punchcard_client import connect, reason_of, upload_image, watch_job
from sandbox import keys
from sandbox.openai_twin.batch_worker import Pace
from sandbox.plan import Plan
from sandbox.stack import Stack
from tests.ports import free_ports

ROOT: Final = Path(__file__).parents[2]
SAMPLES: Final = ROOT / "sandbox" / "samples"
PHOTOGRAPHS: Final = sorted(path for path in SAMPLES.iterdir() if path.suffix in {".jpg", ".png", ".webp"})
PATIENCE_SECONDS: Final = 60.0
WELCOME_BONUS: Final = 10
DATABASES: Final = ("wallet", "batcher")

# A cycle and a lease are over in the time that a test may take, and a doubt about the twin is settled as soon.
QUICK: Final = {
    "BATCHER_CYCLE_SECONDS": "0.5",
    "BATCHER_POLL_SECONDS": "0.1",
    "BATCHER_SUBMIT_TIMEOUT_SECONDS": "1.5",
    "BATCHER_SUBMIT_SETTLE_SECONDS": "1",
    "BATCHER_SUBMIT_RETRY_SECONDS": "0.5",
    "BATCHER_LEASE_SECONDS": "2",
    "BATCHER_INSTANT_TIMEOUT_SECONDS": "1",
    # Two ports fewer that somebody else may take while a killed service is down.
    "BATCHER_METRICS_ADDRESS": "off",
    "WALLET_METRICS_ADDRESS": "off",
}


@contextmanager
def stack_in(
    folder: Path,
    *,
    postgres_server: str | None = None,
    pace: Pace | None = None,
    settings: Mapping[str, str] | None = None,
    faults: Mapping[str, Any] | None = None,
    webhook_url: str | None = None,
) -> Iterator[Stack]:
    """A stack on free ports that dies with the tests; with a PostgreSQL server each service has a database there.

    faults: a script for the twin, as its PUT /twin/faults takes it; webhook_url: whom the twin tells of ended batches.
    """
    urls: dict[str, Any] = {}
    if postgres_server is not None:
        name = f"stack_{secrets.token_hex(6)}"
        urls = {f"{part}_database_url": postgres_server.format(database=f"{name}_{part}") for part in DATABASES}
    plan = Plan(
        ports=free_ports(),
        provider="twin",
        pace=pace or Pace(),
        settings={**QUICK, **(settings or {})},
        faults=dict(faults or {}),
        webhook_url=webhook_url,
        **urls,
    )
    with Stack(folder, plan) as stack:
        yield stack


def database_urls(stack: Stack) -> dict[str, str]:
    """Where each service remembers."""
    given = {"wallet": stack.plan.wallet_database_url, "batcher": stack.plan.batcher_database_url}
    return {name: url or f"sqlite:{stack.data / name}.db" for name, url in given.items()}


class Customer:
    """An account's owner with a token of its own, and an operator who may give it tokens."""

    def __init__(self, account_id: str, wallet: Any, batcher: Any, operator: Any) -> None:
        self.account_id = account_id
        self.wallet = wallet
        self.batcher = batcher
        self._operator = operator

    async def open(self, granted: int = 0) -> None:
        """Opens the account, with so many tokens beside the welcome bonus."""
        await self.wallet.OpenAccount(wallet_pb2.OpenAccountRequest(account_id=self.account_id))
        if granted:
            await self._operator.Grant(
                wallet_pb2.GrantRequest(account_id=self.account_id, grant_id=f"for-{self.account_id}", amount=granted)
            )

    async def tokens(self) -> tuple[int, int]:
        """Balance and held part."""
        request = wallet_pb2.GetAccountRequest(account_id=self.account_id)
        # The wallet may have just come back, and the channel not have noticed.
        answer = await self.wallet.GetAccount(request, wait_for_ready=True, timeout=PATIENCE_SECONDS)
        return answer.account.tokens.balance, answer.account.tokens.held

    async def upload(self, image: bytes | Path) -> str:
        """Stores an image; gives its id."""
        return (await upload_image(self.batcher, self.account_id, image)).image_id

    async def submit(self, job_id: str, image_id: str, **fields: Any) -> batcher_pb2.SubmitJobResponse:
        """Submits a job, on BATCH unless it says otherwise."""
        answer: batcher_pb2.SubmitJobResponse = await self.batcher.SubmitJob(self.order(job_id, image_id, **fields))
        return answer

    def order(self, job_id: str, image_id: str, **fields: Any) -> batcher_pb2.SubmitJobRequest:
        """The request for a job."""
        values = {"prompt": "What is this?", "lane": batcher_pb2.LANE_BATCH, **fields}
        images = [batcher_pb2.ImageSource(image_id=image_id)]
        return batcher_pb2.SubmitJobRequest(account_id=self.account_id, job_id=job_id, images=images, **values)

    async def submit_photographs(self) -> list[str]:
        """Uploads the six samples and submits a job about each; gives the jobs' ids."""
        image_ids = await asyncio.gather(*(self.upload(path) for path in PHOTOGRAPHS))
        await asyncio.gather(
            *(self.submit(path.stem, image_id) for path, image_id in zip(PHOTOGRAPHS, image_ids, strict=True))
        )
        return [path.stem for path in PHOTOGRAPHS]

    async def job(self, job_id: str) -> batcher_pb2.Job:
        """A job as it is now."""
        request = batcher_pb2.GetJobRequest(account_id=self.account_id, job_id=job_id)
        job: batcher_pb2.Job = (await self.batcher.GetJob(request)).job
        return job

    async def jobs(self) -> list[batcher_pb2.Job]:
        """All jobs as they are now."""
        request = batcher_pb2.ListJobsRequest(account_id=self.account_id, page_size=1000)
        return list((await self.batcher.ListJobs(request)).jobs)

    def watch(self, job_id: str) -> AsyncIterator[batcher_pb2.WatchJobResponse]:
        """The messages of a watch that outlives restarts of the batcher."""
        return watch_job(self.batcher, self.account_id, job_id)

    async def watch_raw(self, job_id: str) -> list[batcher_pb2.WatchJobResponse]:
        """All messages of one call of WatchJob, which must end by itself."""
        request = batcher_pb2.WatchJobRequest(account_id=self.account_id, job_id=job_id)
        async with asyncio.timeout(PATIENCE_SECONDS):
            return [message async for message in self.batcher.WatchJob(request)]

    async def wait_for(self, job_id: str, seen: Callable[[batcher_pb2.WatchJobResponse], bool]) -> None:
        """Returns with the first message of a watch that is the one waited for."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            async for message in self.watch(job_id):
                if seen(message):
                    return
        raise AssertionError(f"the watch of {job_id} ended without the message")

    async def settled(self, *job_ids: str) -> list[batcher_pb2.Job]:
        """The jobs once nothing more can happen to them."""

        async def follow(job_id: str) -> batcher_pb2.Job:
            async for _ in self.watch(job_id):
                pass
            return await self.job(job_id)

        async with asyncio.timeout(PATIENCE_SECONDS):
            return list(await asyncio.gather(*map(follow, job_ids)))


@asynccontextmanager
async def customer_of(stack: Stack, account_id: str = "alice") -> AsyncIterator[Customer]:
    """A customer with connections of its own."""
    token = stack.keys.sign(account_id, [keys.WALLET, keys.BATCHER], keys.USER_SCOPES, 3600)
    operator = stack.keys.sign("operator", [keys.WALLET], keys.OPERATOR_SCOPES, 3600)
    async with AsyncExitStack() as channels:
        wallet = await channels.enter_async_context(connect(stack.wallet_address, token))
        batcher = await channels.enter_async_context(connect(stack.batcher_address, token))
        grants = await channels.enter_async_context(connect(stack.wallet_address, operator))
        yield Customer(
            account_id,
            wallet_pb2_grpc.WalletServiceStub(wallet),
            batcher_pb2_grpc.BatcherServiceStub(batcher),
            wallet_pb2_grpc.WalletServiceStub(grants),
        )


class Refused(NamedTuple):
    """How a call was refused, and the error itself."""

    code: str
    reason: str
    metadata: dict[str, str]
    error: grpc.aio.AioRpcError


async def refused(call: Any) -> Refused:
    """The refusal of a call that must be refused, with a reason."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    reason = reason_of(caught.value)
    assert reason is not None, caught.value
    return Refused(caught.value.code().name, reason.name, reason.metadata, caught.value)


def state_of(message: batcher_pb2.WatchJobResponse) -> batcher_pb2.JobState.ValueType:
    """The state that a message of a watch tells; unspecified for progress and bookmarks."""
    kind = message.WhichOneof("event")
    return message.snapshot.state if kind == "snapshot" else message.change.state


def books(stack: Stack) -> dict[str, Any]:
    """What was bought at the twin."""
    return twin(stack, "GET", "books")


def twin(stack: Stack, method: str, path: str, body: Any = None) -> dict[str, Any]:
    """Calls one of the twin's own routes, such as PUT faults."""
    request = urllib.request.Request(
        stack.openai_base_url.removesuffix("/v1") + f"/twin/{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {stack.keys.openai_twin()}"},
        method=method,
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
        read: dict[str, Any] = json.loads(answer.read())
        return read


def objects(stack: Stack) -> list[tuple[str, int]]:
    """All that lies in the object store: path and size."""
    folder = stack.data / "objects"
    return sorted((str(path.relative_to(folder)), path.stat().st_size) for path in folder.rglob("*") if path.is_file())


def painted(colour: tuple[int, int, int], size: tuple[int, int] = (64, 48)) -> bytes:
    """A PNG of one colour."""
    out = BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()
