"""A batcher that was down for two days: every hold has run out meanwhile, and what was bought is delivered still."""

import functools
from typing import NamedTuple

import pytest

from punchcard.wallet.v1 import wallet_pb2
from services.batcher.job import Lane, SettlementState, State
from services.batcher.renewer import Renewer
from services.batcher.wallet_settlements import UNCOLLECTED, reserve_of
from tests.batchers import sandbox_in, until
from tests.hand_run import Replica, now_us, replicas_in

TWO_DAYS_US = 48 * 3600 * 1_000_000
SHORT = {"hold_duration_us": 1_000_000}


class Down(NamedTuple):
    """A batcher that comes up again after two days."""

    replica: Replica

    async def holds_ran_out(self, *job_ids):
        """Returns once the wallet holds nothing for these jobs any more."""
        for job_id in job_ids:
            uid = (await self.replica.view(job_id)).job.uid
            await until(functools.partial(self._has_expired, uid))

    async def _has_expired(self, uid):
        request = wallet_pb2.GetReservationRequest(reservation_id=uid)
        found = await self.replica.sandbox.wallet.call("GetReservation", request)
        return found.reservation.state == wallet_pb2.RESERVATION_STATE_EXPIRED

    async def spend_everything(self):
        """Alice's tokens go elsewhere."""
        wallet = self.replica.sandbox.wallet
        request = wallet_pb2.ReserveRequest(account_id="alice", reservation_id="elsewhere", amount=10)
        request.hold_duration.FromSeconds(3600)
        await wallet.call("Reserve", request)
        await wallet.call("Commit", wallet_pb2.CommitRequest(reservation_id="elsewhere"))


@pytest.fixture
async def down(tmp_path):
    async with sandbox_in(tmp_path) as sandbox, replicas_in(sandbox) as (replica,):
        yield Down(replica)


async def bought(down, *job_ids):
    """Jobs whose batch the provider has answered, and whose holds have run out since: they are not made longer when the
    batch is bought, as if they had been long enough.
    """
    replica = down.replica
    submitter = replica.parts.submitter
    long_enough = submitter._limits
    submitter._limits = long_enough._replace(window_us=0)
    await replica.queued(*job_ids, **SHORT)
    await replica.bought()
    submitter._limits = long_enough
    await down.holds_ran_out(*job_ids)


async def test_answers_that_waited_are_delivered_and_charged_late_from_what_the_account_has(down):
    replica = down.replica
    await bought(down, "a")
    await replica.poll(later_us=TWO_DAYS_US)
    await replica.settle()
    view = await replica.view("a")

    assert (view.job.state, view.settlement.state, view.settlement.charged) == (
        State.SUCCEEDED,
        SettlementState.SETTLED,
        1,
    )
    assert await replica.balance() == (9, 0)


async def test_answers_that_nobody_can_pay_for_any_more_are_delivered_and_counted_as_uncollected(down):
    replica = down.replica
    before = UNCOLLECTED.labels("INSUFFICIENT_FUNDS")._value.get()
    await bought(down, "a")
    await down.spend_everything()
    await replica.poll(later_us=TWO_DAYS_US)
    await replica.settle()
    await replica.settle()
    view = await replica.view("a")

    assert view.job.state is State.SUCCEEDED
    assert view.answer is not None
    assert (view.settlement.state, view.settlement.charged) == (SettlementState.REFUSED, 0)
    assert UNCOLLECTED.labels("INSUFFICIENT_FUNDS")._value.get() == before + 1
    assert await replica.balance() == (0, 0)


@pytest.mark.parametrize("first", ["renewer", "submitter"])
async def test_jobs_that_were_not_bought_end_with_the_loss_of_their_hold_as_cause(down, first):
    """Whichever loop comes first: one that queues ends, one that is in a planned batch leaves it; nothing is bought."""
    replica = down.replica
    await replica.queued("a", "b", **SHORT)
    await down.holds_ran_out("a", "b")
    if first == "renewer":
        renewer = Renewer(replica.parts.store, replica.parts.wallet, 3_600_000_000)
        await renewer.step(await replica.lease("renewer"), now_us() + TWO_DAYS_US)
    await replica.plan_and_submit(later_us=TWO_DAYS_US)
    await replica.settle()

    for job_id in ("a", "b"):
        view = await replica.view(job_id)
        assert (view.job.state, view.failure.code) == (State.FAILED, "hold_lost")
        assert view.settlement.charged == 0
    assert replica.sandbox.provider.bought() == await replica.parts.batches.open_batches() == []
    assert await replica.balance() == (10, 0)


async def test_a_purchase_in_doubt_is_found_and_its_answers_are_delivered(down):
    """The create went through, its answer was lost, and then the batcher was down."""
    replica = down.replica
    submitter = replica.parts.submitter
    long_enough = submitter._limits
    submitter._limits = long_enough._replace(window_us=0)

    async def lost(request, handle):
        response = await handle()
        if request.method == "POST" and request.path == "/v1/batches":
            raise ConnectionResetError
        return response

    replica.sandbox.provider.fault = lost
    await replica.queued("a", **SHORT)
    await replica.bought()
    replica.sandbox.provider.fault = None
    submitter._limits = long_enough
    await down.holds_ran_out("a")
    await replica.plan_and_submit(later_us=TWO_DAYS_US)
    await replica.poll(later_us=TWO_DAYS_US)
    await replica.settle()
    view = await replica.view("a")

    assert (view.job.state, view.settlement.charged) == (State.SUCCEEDED, 1)
    assert len(replica.sandbox.provider.bought()) == 1
    assert await replica.balance() == (9, 0)


async def test_an_instant_job_that_was_interrupted_is_tried_once_more_and_charged_late(down):
    replica = down.replica
    stored = await replica.store("a", lane=Lane.INSTANT, price=5, **SHORT)
    held = await replica.parts.wallet.reserve_many([reserve_of(stored)])
    # The attempt was begun by a process that is gone: its lease is over.
    await replica.parts.store.admit({stored.uid: held[0].expire_time_us}, lease_us=-1)
    await down.holds_ran_out("a")
    await replica.parts.instant.sweep()
    await until(functools.partial(_is_answered, replica))
    await replica.settle()
    view = await replica.view("a")

    assert (view.job.state, view.job.attempt, view.settlement.charged) == (State.SUCCEEDED, 2, 5)
    assert replica.sandbox.provider.requests.count("POST /v1/chat/completions") == 1
    assert await replica.balance() == (5, 0)


async def _is_answered(replica):
    return (await replica.view("a")).settlement is not None
