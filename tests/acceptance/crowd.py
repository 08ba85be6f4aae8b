"""What a few customers do in one round: all that a job can meet on either lane, chosen by a seed.

Each keeps at it until it has its answer, through any outage. Some lines fail, some calls do, one job falls back and one
is cancelled at the provider: the faults of the twin that see to this are the round's, and told by model.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

import grpc

from punchcard.batcher.v1 import batcher_pb2, batcher_pb2_grpc
from punchcard.wallet.v1 import wallet_pb2, wallet_pb2_grpc
from punchcard_client import upload_image
from punchcard_client.retry import ask
from sandbox import keys
from tests.acceptance.arena import MODELS, Arena
from tests.acceptance.stacks import painted
from tests.batchers import until

PATIENCE_SECONDS: Final = 60.0
TRY_SECONDS: Final = 3.0
PAUSE_SECONDS: Final = 0.05
GRANTED: Final = 100
ORDINARY, CALLED, BARRED, STALLING = MODELS
SUCCEEDED: Final = "SUCCEEDED"

FAULTS: Final = [
    {"name": "line_server_error", "operation": "batch.line", "model": ORDINARY, "probability": 0.3, "count": 2},
    {"name": "server_error", "operation": "chat.create", "model": CALLED, "count": None},
    {"name": "line_bad_request", "operation": "batch.line", "model": BARRED, "count": None},
    {"name": "stalls", "model": STALLING, "count": None, "parameters": {"after_lines": 0, "late_seconds": None}},
]


class Errand(NamedTuple):
    """A job to be submitted, and how it may end. cancelled: as soon as it is submitted, or once it runs."""

    account_id: str
    job_id: str
    fields: dict[str, Any]
    endings: frozenset[str]
    cancelled: str = ""


def errands(name: str, chance: random.Random) -> list[Errand]:
    """The jobs of a round. Every second account's name is the round's own, so that rounds do not meet."""
    accounts = [f"{name}-{letter}" for letter in "ab"]
    ended = frozenset({SUCCEEDED, "CANCELLED"})
    kinds: list[tuple[str, dict[str, Any], frozenset[str], str]] = [
        *((f"plain-{number}", {}, frozenset({SUCCEEDED}), "") for number in range(chance.randint(2, 4))),
        ("unwanted", {}, ended, "submitted"),
        ("barred", {"model": BARRED}, frozenset({"FAILED"}), ""),
        ("stalling", {"model": STALLING}, ended, "running"),
        ("instant", {"lane": batcher_pb2.LANE_INSTANT}, frozenset({SUCCEEDED, "FAILED"}), ""),
        (
            "falling",
            {"lane": batcher_pb2.LANE_INSTANT, "model": CALLED, "allow_batch_fallback": True},
            frozenset({SUCCEEDED}),
            "",
        ),
    ]
    chance.shuffle(kinds)
    return [Errand(chance.choice(accounts), *kind) for kind in kinds]


class Crowd:
    """The customers of a round."""

    def __init__(self, arena: Arena, name: str, seed: str) -> None:
        chance = random.Random(f"crowd/{seed}")
        self.errands = errands(name, chance)
        self._arena = arena
        self._picture = painted((chance.randrange(256), chance.randrange(256), chance.randrange(256)))

    async def work(self) -> None:
        """Opens the accounts, uploads, submits and cancels; returns when all of that is answered."""
        accounts = sorted({errand.account_id for errand in self.errands})
        scopes = f"{keys.USER_SCOPES} {keys.OPERATOR_SCOPES}"
        async with (
            asyncio.timeout(PATIENCE_SECONDS),
            self._arena.to_batcher("customers", scopes) as batchers,
            self._arena.to_wallet("customers", scopes) as wallets,
        ):
            wallet = wallet_pb2_grpc.WalletServiceStub(wallets)
            batcher: Any = batcher_pb2_grpc.BatcherServiceStub(batchers)
            for account_id in accounts:
                await ask(wallet.OpenAccount, wallet_pb2.OpenAccountRequest(account_id=account_id))
                grant = wallet_pb2.GrantRequest(account_id=account_id, grant_id=account_id, amount=GRANTED)
                await ask(wallet.Grant, grant)
            images = {account_id: await self._upload(batcher, account_id) for account_id in accounts}
            async with asyncio.TaskGroup() as group:
                for errand in self.errands:
                    group.create_task(self._run(batcher, errand, images[errand.account_id]))

    async def _upload(self, batcher: Any, account_id: str) -> str:
        async def upload() -> str:
            async with asyncio.timeout(TRY_SECONDS):
                return (await upload_image(batcher, account_id, self._picture, tries_max=1)).image_id

        return await persist(upload)

    async def _run(self, batcher: Any, errand: Errand, image_id: str) -> None:
        order = batcher_pb2.SubmitJobRequest(
            account_id=errand.account_id,
            job_id=errand.job_id,
            images=[batcher_pb2.ImageSource(image_id=image_id)],
            prompt="What is this?",
            **{"lane": batcher_pb2.LANE_BATCH, **errand.fields},
        )
        await ask(batcher.SubmitJob, order, try_seconds=TRY_SECONDS)
        if errand.cancelled == "running":
            await self._running(batcher, errand)
        if errand.cancelled:
            cancel = batcher_pb2.CancelJobRequest(account_id=errand.account_id, job_id=errand.job_id)
            try:
                await ask(batcher.CancelJob, cancel, try_seconds=TRY_SECONDS)
            except grpc.aio.AioRpcError as error:
                has_ended = error.code() is grpc.StatusCode.FAILED_PRECONDITION
                if not has_ended:
                    raise

    async def _running(self, batcher: Any, errand: Errand) -> None:
        """Returns once the provider has the job, or it has ended."""
        request = batcher_pb2.GetJobRequest(account_id=errand.account_id, job_id=errand.job_id)
        waiting = {batcher_pb2.JOB_STATE_ADMITTING, batcher_pb2.JOB_STATE_QUEUED, batcher_pb2.JOB_STATE_BATCHED}

        async def is_on_its_way() -> bool:
            return (await ask(batcher.GetJob, request, try_seconds=TRY_SECONDS)).job.state not in waiting

        await until(is_on_its_way)


async def persist(act: Callable[[], Awaitable[str]]) -> str:
    """Does something that may be repeated, until it is done. A refusal is a mistake of the test."""
    passing = {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
    }
    while True:
        try:
            return await act()
        except TimeoutError:
            continue
        except grpc.aio.AioRpcError as error:
            if error.code() not in passing:
                raise
        await asyncio.sleep(PAUSE_SECONDS)
