"""Settlements where the wallet or the batcher was restored from an older backup: nobody pays twice, or for nothing."""

from collections.abc import AsyncIterator

import pytest

from punchcard.wallet.v1 import wallet_pb2
from services.batcher.job import SettlementState, State
from services.batcher.renewer import Renewer
from tests.batcher_books import ANSWER, NO_ANSWER, Books
from tests.batcher_jobs import HOUR_US


@pytest.fixture
async def books(tmp_path) -> AsyncIterator[Books]:
    made = Books(tmp_path)
    await made.start()
    yield made
    await made.stop()


async def test_a_wallet_that_has_lost_a_hold_is_asked_for_it_and_its_price_once_more(books):
    await books.charged("older")
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
    await books.charged("older")
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
