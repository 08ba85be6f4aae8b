"""The batcher's stores and a real wallet, each of which can be taken back to a backup while everything is stopped."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from punchcard.wallet.v1 import wallet_pb2
from services.batcher.admitter import Admitter, Listeners
from services.batcher.job import Answer, Failure, Job
from services.batcher.planner import Planned
from services.batcher.purchases import Purchases
from services.batcher.settler import Settler
from services.batcher.store import Submitted
from services.batcher.store_batches import Loss, Result
from services.batcher.store_reconciliation import ReconciliationStore
from services.batcher.store_rows import JobView
from services.batcher.wallet_client import WalletClient
from services.batcher.wallet_reconciler import WalletReconciler
from tests.backups import restore, saved
from tests.batcher_jobs import HOUR_US, LIMITS, Stores, image, new_job, new_uid, opened_stores
from tests.tokens import token
from tests.wallets import EVERY_SCOPE, wallet_at

ANSWER = Answer("a cat", "stop", 10, 2)
NO_ANSWER = Loss(Failure("result_lost", "Gone."), retryable=False)


class Books:
    """The batcher's stores and a wallet, each of which can be stopped, taken back to a backup and started again."""

    stores: Stores
    client: WalletClient
    admitter: Admitter
    settler: Settler
    reconciler: WalletReconciler

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self._running = AsyncExitStack()

    async def start(self, wallet_file: str = "wallet.db") -> None:
        """Starts everything."""
        enter = self._running.enter_async_context
        self.stores = await enter(opened_stores(f"sqlite:{self.folder}/batcher.db"))
        url = f"sqlite:{self.folder}/{wallet_file}"
        self.wallet, self.port = await enter(wallet_at(url, self.folder, listen_address=f"127.0.0.1:{self.port}"))
        token_file = self.folder / "token"
        token_file.write_text(token("batcher", EVERY_SCOPE, audience="punchcard.wallet"))
        self.client = WalletClient(f"127.0.0.1:{self.port}", token_file, 10)
        self.admitter = Admitter(self.stores.jobs, self.client, Listeners(lambda _: None, lambda: None), HOUR_US)
        self.admitter.start()
        self._running.push_async_callback(self.client.close)
        self._running.push_async_callback(self.admitter.close)
        self.settler = Settler(self.stores.jobs, self.client)
        self.books = ReconciliationStore(self.stores.database, lambda: None)
        self.purchases = Purchases(self.books, "org")
        await self.purchases.start()
        self.reconciler = WalletReconciler(self.stores.jobs, self.books, self.client, self.purchases, 0)

    async def stop(self) -> None:
        """Stops everything."""
        await self._running.aclose()

    async def go_back(self, name: str, copy: Path) -> None:
        """Takes the database of "wallet" or "batcher" back to a copy, with everything stopped meanwhile."""
        await self.stop()
        restore(self.folder / f"{name}.db", copy)
        await self.start()

    async def save(self, name: str) -> Path:
        """A copy of the database of "wallet" or "batcher"."""
        # The lease of the tests lasts for hours, and would still be held when the copy is used.
        await self.stores.lease.release()
        copy = await asyncio.to_thread(saved, self.folder / f"{name}.db", new_uid())
        assert await self.stores.lease.hold()
        return copy

    async def submitted(self, job_id: str, **fields: Any) -> Job:
        """A job of alice's that the wallet does not know yet."""
        await self.stores.jobs.add_image(image())
        (submitted,) = await self.stores.jobs.submit([new_job(job_id, **fields)])
        assert isinstance(submitted, Submitted)
        return submitted.job

    async def admitted(self, job_id: str, **fields: Any) -> Job:
        """A job of alice's whose tokens are held."""
        (outcome,) = await self.admitter.admit([await self.submitted(job_id, **fields)], 10)
        assert isinstance(outcome, Job)
        return outcome

    async def running(self, job: Job) -> str:
        """Brings a queued job into a batch that was bought; gives the batch."""
        batches, lease = self.stores.batches, self.stores.lease
        batch = await batches.plan(Planned("gpt-x", (job.uid,)), new_uid(), lease)
        assert batch is not None
        submission = await batches.freeze(batch.batch_id, {}, new_uid(), "org", lease)
        assert submission is not None
        await batches.adopt(submission, "batch_1", lease)
        return batch.batch_id

    async def end(self, job: Job, outcome: Answer | Loss) -> None:
        """Brings a queued job to its end."""
        batch_id = await self.running(job)
        results = [Result(job.uid, job.attempt, outcome)]
        assert await self.stores.batches.apply(batch_id, results, LIMITS, self.stores.lease)

    async def charged(self, job_id: str) -> Job:
        """A job that was answered and has paid for it."""
        job = await self.admitted(job_id)
        await self.end(job, ANSWER)
        await self.settled(job_id)
        return job

    async def read(self, job: Job) -> Job:
        """A job as it is now."""
        (found,) = await self.stores.jobs.read([job.uid])
        return found

    async def settled(self, job_id: str) -> JobView:
        """A job once the settler has done its step."""
        await self.settler.step(self.stores.lease)
        return await self.stores.jobs.view("alice", job_id)

    async def reservation(self, job: Job) -> tuple[int, int, int]:
        """State, committed and refunded of a job's reservation."""
        request = wallet_pb2.GetReservationRequest(reservation_id=job.uid)
        found = (await self.wallet.call("GetReservation", request)).reservation
        return found.state, found.committed, found.refunded
