"""A whole stack for benchmarks, with one image in it, accounts that never run dry, and calls that submit jobs."""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from benchmarks.wallets import BONUS
from punchcard.batcher.v1 import batcher_pb2
from punchcard.batcher.v1.batcher_pb2_grpc import BatcherServiceStub
from punchcard_client import connect, upload_image
from sandbox import keys
from sandbox.plan import Plan, Ports
from sandbox.stack import Stack

if TYPE_CHECKING:
    from punchcard.batcher.v1.batcher_pb2_grpc import BatcherServiceAsyncStub

SUBMIT: Final = "/punchcard.batcher.v1.BatcherService/SubmitJob"
SUBMIT_MANY: Final = "/punchcard.batcher.v1.BatcherService/SubmitJobs"
ACCOUNT: Final = "bench"
ITEMS: Final = 1_000
READY_BATCHES: Final = 40
IMAGE: Final = Path(__file__).parent.parent / "sandbox" / "samples" / "cat.webp"
# No cycle comes while jobs are submitted, so that accepting them is all that is measured.
SETTINGS: Final = {
    "WALLET_WELCOME_BONUS": str(BONUS),
    "BATCHER_CYCLE_SECONDS": "3600",
    "BATCHER_BATCH_JOBS": "50000",
    "BATCHER_ADMISSION_WAIT_SECONDS": "20",
}


class Bench(NamedTuple):
    """A stack that is up, and who calls it."""

    port: int
    authorization: str
    image_id: str
    batcher_database: Path
    batcher_pid: int
    stub: BatcherServiceAsyncStub


@contextlib.asynccontextmanager
async def stack(**settings: str) -> AsyncIterator[Bench]:
    """Starts everything on free ports, uploads the image, and stops everything at the end.

    settings: of the batcher and the wallet, by their whole names, beside or instead of SETTINGS.
    """
    plan = Plan(ports=Ports.free(), settings={**SETTINGS, **settings})
    with tempfile.TemporaryDirectory() as name, Stack(Path(name), plan) as up:
        scopes = f"{keys.USER_SCOPES} act_for:*"
        token = up.keys.sign(ACCOUNT, [keys.BATCHER], scopes, 3600)
        pid = up.pid("batcher")
        assert pid is not None
        async with connect(up.batcher_address, token) as channel:
            stub = BatcherServiceStub(channel)
            image = await upload_image(stub, ACCOUNT, IMAGE)
            yield Bench(up.plan.ports.batcher, f"Bearer {token}", image.image_id, Path(name) / "batcher.db", pid, stub)


def count_admitted(database: Path) -> int:
    """How many jobs have come out of admission: all that were acknowledged as QUEUED must be among them."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM jobs WHERE state <> 'ADMITTING'").fetchone()
    return int(count)


class Submits:
    """Makes serialized SubmitJobs of fresh ids about one image; it goes to the load's process by pickling."""

    def __init__(self, image_id: str) -> None:
        self._image_id = image_id

    def __call__(self) -> Callable[[], bytes]:
        """The function that gives each call its request."""
        run, numbers = os.urandom(4).hex(), itertools.count()
        return lambda: self.job(run, next(numbers)).SerializeToString()

    def job(self, run: str, number: int) -> batcher_pb2.SubmitJobRequest:
        """One job."""
        return batcher_pb2.SubmitJobRequest(
            account_id=ACCOUNT,
            job_id=f"{run}-{number:010d}",
            images=[batcher_pb2.ImageSource(image_id=self._image_id)],
            prompt="What does this photograph show?",
            lane=batcher_pb2.LANE_BATCH,
        )


class SubmitsOfMany(Submits):
    """Makes serialized SubmitJobs messages of 1,000 jobs each, most of them before the clock runs."""

    def __call__(self) -> Callable[[], bytes]:
        """The function that gives each call its request."""
        run, numbers = os.urandom(4).hex(), itertools.count()

        def batch() -> bytes:
            items = [self.job(run, next(numbers)) for _ in range(ITEMS)]
            return batcher_pb2.SubmitJobsRequest(items=items).SerializeToString()

        ready = [batch() for _ in range(READY_BATCHES)]
        return lambda: ready.pop() if ready else batch()
