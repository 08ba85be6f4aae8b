"""Open jobs and recent settlements against a wallet that was taken back in time, or that is another one."""

from collections.abc import AsyncIterator

import pytest

from punchcard.wallet.v1 import wallet_pb2
from services.batcher import wallet_reconciler, wallet_settlements
from services.batcher.job import Failure, Lane, SettlementState, State
from services.batcher.purchases import UNREAD
from services.batcher.reconciled import RECONCILED
from services.batcher.reconciliation import Finding
from services.batcher.renewer import Renewer
from services.batcher.store_batches import Result
from services.batcher.store_reconciliation import Side
from tests.batcher_books import ANSWER, Books
from tests.batcher_jobs import HOUR_US, LIMITS

HELD = wallet_pb2.RESERVATION_STATE_HELD
COMMITTED = wallet_pb2.RESERVATION_STATE_COMMITTED


@pytest.fixture
async def books(tmp_path) -> AsyncIterator[Books]:
    made = Books(tmp_path)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def found():
    """What was found since the test began, by finding."""
    before = {finding: RECONCILED.labels(finding.value)._value.get() for finding in Finding}

    def since() -> dict[Finding, int]:
        now = {finding: RECONCILED.labels(finding.value)._value.get() for finding in Finding}
        return {finding: int(now[finding] - before[finding]) for finding in Finding if now[finding] != before[finding]}

    return since


def top_up(account_id, amount):
    return wallet_pb2.GrantRequest(account_id=account_id, grant_id="top-up", amount=amount)


async def reconcile(books):
    await books.reconciler.step(books.stores.lease)


async def test_books_that_agree_are_left_as_they_are(books, found):
    await books.charged("a")
    await books.admitted("b")
    before = (await books.stores.journal(), await books.wallet.balance("alice"))
    await reconcile(books)

    assert found() == {}
    assert (await books.stores.journal(), await books.wallet.balance("alice")) == before


async def test_a_hold_that_the_wallet_has_lost_is_made_again(books, found):
    await books.charged("older")
    backup = await books.save("wallet")
    queued, running = await books.admitted("a"), await books.admitted("b")
    await books.running(running)
    await books.go_back("wallet", backup)
    await reconcile(books)
    await reconcile(books)

    assert found() == {Finding.FORGOTTEN_HOLD: 2}
    assert [(await books.reservation(job))[0] for job in (queued, running)] == [HELD, HELD]
    assert await books.wallet.balance("alice") == (9, 2)


async def test_a_hold_that_was_made_longer_after_the_backup_is_known_to_end_earlier(books, found):
    job = await books.admitted("a", hold_duration_us=HOUR_US)
    backup = await books.save("wallet")
    renewer = Renewer(books.stores.jobs, books.client, margin_us=2 * HOUR_US)
    await renewer.step(books.stores.lease, job.hold_expire_time_us)
    longer = await books.read(job)
    await books.go_back("wallet", backup)
    await reconcile(books)

    assert longer.hold_expire_time_us > job.hold_expire_time_us
    assert (await books.read(job)).hold_expire_time_us == job.hold_expire_time_us
    assert found() == {Finding.SHORTER_HOLD: 1}


async def test_a_hold_for_which_the_tokens_are_not_there_any_more_ends_a_queued_job_and_lets_a_bought_one_go_on(
    books, found
):
    await books.charged("older")
    backup = await books.save("wallet")
    await books.wallet.call("Grant", top_up("alice", 20))
    queued, bought = await books.admitted("a", price=15), await books.admitted("b", price=10)
    batch_id = await books.running(bought)
    await books.go_back("wallet", backup)
    await reconcile(books)
    gone = [(await books.read(job)).hold_expire_time_us for job in (queued, bought)]
    renewer = Renewer(books.stores.jobs, books.client, margin_us=HOUR_US)
    await renewer.step(books.stores.lease, queued.hold_expire_time_us)
    await books.stores.batches.apply(batch_id, [Result(bought.uid, 1, ANSWER)], LIMITS, books.stores.lease)
    ended, answered = await books.settled("a"), await books.settled("b")

    assert gone == [0, 0]
    assert found() == {Finding.LOST_HOLD: 2}
    assert (ended.job.state, ended.failure.code) == (State.FAILED, "hold_lost")
    assert (answered.job.state, answered.settlement.state) == (State.SUCCEEDED, SettlementState.REFUSED)
    assert await books.wallet.balance("alice") == (9, 0)


async def test_a_job_that_fell_back_is_asked_about_by_the_amendment_that_it_owes(books, found):
    """Its first amount is not written down any more, so that its Reserve can't be repeated."""
    job = await books.admitted("a", lane=Lane.INSTANT, price=5, fallback_price=1)
    limits = LIMITS._replace(attempts_max=1)
    broken = Failure("provider_error", "It broke.")
    await books.stores.jobs.lose(job.uid, 1, broken, True, limits, HOUR_US)
    await reconcile(books)

    assert found() == {}
    assert await books.wallet.balance("alice") == (10, 1)


async def test_a_job_that_was_paid_for_before_the_batcher_was_restored_is_told_and_goes_on(books, found):
    job = await books.admitted("a")
    backup = await books.save("batcher")
    await books.end(job, ANSWER)
    await books.settled("a")
    await books.go_back("batcher", backup)
    await reconcile(books)

    assert found() == {Finding.PAID_HOLD: 1}
    assert await books.read(job) == job


async def test_charges_that_the_wallet_has_lost_are_made_again_once(books, found):
    """Of one the hold is in the backup, of the other nothing is."""
    await books.charged("older")
    held = await books.admitted("held")
    backup = await books.save("wallet")
    await books.end(held, ANSWER)
    await books.settled("held")
    lost = await books.charged("lost")
    await books.go_back("wallet", backup)
    before = await books.wallet.balance("alice")
    await reconcile(books)
    await reconcile(books)

    assert (before, await books.wallet.balance("alice")) == ((9, 1), (7, 0))
    assert [(await books.reservation(job))[:2] for job in (held, lost)] == [(COMMITTED, 1), (COMMITTED, 1)]
    assert found() == {Finding.FORGOTTEN_SETTLEMENT: 2}


async def test_a_release_that_the_wallet_has_lost_is_made_again(books, found):
    await books.charged("older")
    await books.admitted("a")
    backup = await books.save("wallet")
    await books.stores.jobs.cancel("alice", "a", "alice")
    await books.settled("a")
    await books.go_back("wallet", backup)
    held = await books.wallet.balance("alice")
    await reconcile(books)

    assert (held, await books.wallet.balance("alice")) == ((9, 1), (9, 0))
    assert found() == {Finding.FORGOTTEN_SETTLEMENT: 1}


async def test_a_charge_that_can_not_be_made_again_is_uncollected(books, found):
    await books.charged("older")
    backup = await books.save("wallet")
    await books.wallet.call("Grant", top_up("alice", 20))
    job = await books.admitted("a", price=15)
    await books.end(job, ANSWER)
    await books.settled("a")
    await books.go_back("wallet", backup)
    await reconcile(books)
    view = await books.settled("a")

    assert (view.settlement.state, view.settlement.charged) == (SettlementState.REFUSED, 0)
    assert found() == {Finding.FORGOTTEN_SETTLEMENT: 1}
    assert await books.wallet.balance("alice") == (9, 0)


async def test_a_wallet_that_knows_none_of_our_charges_is_another_one_and_is_asked_for_none(books, found):
    await books.charged("a")
    await books.charged("b")
    await books.stop()
    await books.start("another.db")
    await books.wallet.call("OpenAccount", wallet_pb2.OpenAccountRequest(account_id="alice"))
    await reconcile(books)

    assert found() == {Finding.UNKNOWN_WALLET: 1}
    assert await books.wallet.balance("alice") == (10, 0)


async def test_settlements_are_sent_again_no_further_back_than_the_wallet_has_lost_them(books, found, monkeypatch):
    monkeypatch.setattr(wallet_reconciler, "PAGE", 2)
    monkeypatch.setattr(wallet_settlements, "WITNESSES", 1)
    for number in range(3):
        await books.charged(f"older-{number}")
    backup = await books.save("wallet")
    for number in range(3):
        await books.charged(f"lost-{number}")
    await books.go_back("wallet", backup)
    sent: set[str] = set()
    settle_many = books.client.settle_many

    async def noting(commands):
        sent.update(command.reservation_id for command in commands)
        return await settle_many(commands)

    monkeypatch.setattr(books.client, "settle_many", noting)
    await reconcile(books)
    first = len(sent)
    sent.clear()
    await reconcile(books)

    assert found() == {Finding.FORGOTTEN_SETTLEMENT: 3}
    assert await books.wallet.balance("alice") == (4, 0)
    # All three lost ones, a page that was known, and the witness; then one page, and the witness.
    assert (first, len(sent)) == (6, 3)


async def test_books_are_read_at_the_start_and_then_in_their_time(books):
    books.reconciler._interval_us = HOUR_US
    before = await books.purchases.obstacle()
    await reconcile(books)
    first = await books.books.last(Side.WALLET)
    await reconcile(books)

    assert before == UNREAD
    assert await books.purchases.is_read(Side.WALLET)
    assert first == await books.books.last(Side.WALLET)
