"""Settlements where the wallet or the batcher was restored from an older backup: nobody pays twice, or for nothing."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from punchcard.wallet.v1 import wallet_pb2
from services.batcher.admitter import Admitter, Listeners
from services.batcher.job import Answer, Failure, Job, SettlementState, State
from services.batcher.planner import Planned
from services.batcher.renewer import Renewer
from services.batcher.settler import Settler
from services.batcher.store import Submitted
from services.batcher.store_batches import Loss, Result
from services.batcher.wallet_client import WalletClient
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

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self._running = AsyncExitStack()

    async def start(self, wallet_file: str = "wallet.db") -> None:
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

    async def stop(self) -> None:
        await self._running.aclose()

    async def go_back(self, name: str, copy: Path) -> None:
        """Takes the database of "wallet" or "batcher" back to a copy, with everything stopped meanwhile."""
        await self.stop()
        restore(self.folder / f"{name}.db", copy)
        await self.start()

    async def save(self, name: str) -> Path:
        await self.stop()
        copy = saved(self.folder / f"{name}.db", new_uid())
        await self.start()
        return copy

    async def submitted(self, job_id: str) -> Job:
        await self.stores.jobs.add_image(image())
        (submitted,) = await self.stores.jobs.submit([new_job(job_id)])
        assert isinstance(submitted, Submitted)
        return submitted.job

    async def admitted(self, job_id: str) -> Job:
        (outcome,) = await self.admitter.admit([await self.submitted(job_id)], 10)
        assert isinstance(outcome, Job)
        return outcome

    async def end(self, job: Job, outcome: Answer | Loss) -> None:
        """Brings a queued job to its end."""
        batches, lease = self.stores.batches, self.stores.lease
        batch = await batches.plan(Planned("gpt-x", (job.uid,)), new_uid(), lease)
        assert batch is not None
        submission = await batches.freeze(batch.batch_id, {}, new_uid(), "org", lease)
        assert submission is not None
        await batches.adopt(submission, "batch_1", lease)
        assert await batches.apply(batch.batch_id, [Result(job.uid, job.attempt, outcome)], LIMITS, lease)

    async def settled(self, job_id: str):
        await self.settler.step(self.stores.lease)
        return await self.stores.jobs.view("alice", job_id)

    async def reservation(self, job: Job) -> tuple[int, int, int]:
        """State, committed and refunded of a job's reservation."""
        request = wallet_pb2.GetReservationRequest(reservation_id=job.uid)
        found = (await self.wallet.call("GetReservation", request)).reservation
        return found.state, found.committed, found.refunded


@pytest.fixture
async def books(tmp_path) -> AsyncIterator[Books]:
    made = Books(tmp_path)
    await made.start()
    yield made
    await made.stop()


async def test_a_wallet_that_has_lost_a_hold_is_asked_for_it_and_its_price_once_more(books):
    await books.end(await books.admitted("older"), ANSWER)
    await books.settled("older")
    backup = await books.save("wallet")
    job = await books.admitted("a")
    await books.end(job, ANSWER)
    await books.go_back("wallet", backup)
    view = await books.settled("a")

    assert (view.settlement.state, view.settlement.charged) == (SettlementState.SETTLED, 1)
    assert await books.reservation(job) == (wallet_pb2.RESERVATION_STATE_COMMITTED, 1, 0)
    assert await books.wallet.balance("alice") == (8, 0)


async def test_a_wallet_that_does_not_know_us_at_all_is_asked_for_nothing(books):
    """Another wallet, or one in which we are somebody else: what was paid in the former one is not paid again."""
    await books.end(await books.admitted("older"), ANSWER)
    await books.settled("older")
    job = await books.admitted("a")
    await books.end(job, ANSWER)
    await books.stop()
    await books.start("another.db")
    await books.wallet.call("OpenAccount", wallet_pb2.OpenAccountRequest(account_id="alice"))
    view = await books.settled("a")

    assert (view.settlement.state, view.settlement.charged) == (SettlementState.REFUSED, 0)
    assert await books.wallet.balance("alice") == (10, 0)


async def test_a_job_that_was_paid_before_the_batcher_was_restored_is_admitted_and_not_charged_again(books):
    job = await books.submitted("a")
    backup = await books.save("batcher")
    (held,) = await books.admitter.admit([job], 10)
    await books.end(held, ANSWER)
    await books.settled("a")
    await books.go_back("batcher", backup)
    (again,) = await books.admitter.admit([job], 10)
    await books.end(again, ANSWER)
    view = await books.settled("a")

    assert again.state is State.QUEUED
    assert (view.job.state, view.settlement.state) == (State.SUCCEEDED, SettlementState.SETTLED)
    assert await books.wallet.balance("alice") == (9, 0)


async def test_a_job_that_was_paid_keeps_its_place_although_nothing_is_held_for_it_any_more(books):
    job = await books.admitted("a")
    backup = await books.save("batcher")
    await books.end(job, ANSWER)
    await books.settled("a")
    await books.go_back("batcher", backup)
    await Renewer(books.stores.jobs, books.client, HOUR_US).step(books.stores.lease, job.hold_expire_time_us)
    (kept,) = await books.stores.jobs.read([job.uid])

    assert kept.state is State.QUEUED
    assert kept.hold_expire_time_us > job.hold_expire_time_us


async def test_a_job_that_was_paid_and_has_no_answer_any_more_gets_its_tokens_back(books):
    job = await books.admitted("a")
    backup = await books.save("batcher")
    await books.end(job, ANSWER)
    await books.settled("a")
    await books.go_back("batcher", backup)
    await books.end(job, NO_ANSWER)
    view = await books.settled("a")
    again = await books.settled("a")

    assert (view.job.state, view.settlement.state, view.settlement.charged) == (
        State.FAILED,
        SettlementState.SETTLED,
        0,
    )
    assert again == view
    assert await books.reservation(job) == (wallet_pb2.RESERVATION_STATE_COMMITTED, 1, 1)
    assert await books.wallet.balance("alice") == (10, 0)
