"""Holds and settlements against the real wallet: what a job costs whatever became of its hold meanwhile."""

from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import grpc
import pytest

from punchcard.wallet.v1 import wallet_pb2
from punchcard.wallet.v1.teams_pb2 import TEAM_ROLE_MEMBER, OpenTeamRequest, SetMemberRequest
from punchcard.wallet.v1.teams_pb2_grpc import TeamServiceStub
from services.batcher.admitter import Admitter, Listeners
from services.batcher.amender import Amender
from services.batcher.errors import InsufficientFunds, WalletRefused
from services.batcher.job import Answer, Failure, Job, Lane, SettlementState, State
from services.batcher.planner import Planned
from services.batcher.renewer import Renewer
from services.batcher.settler import Settler
from services.batcher.store import Submitted
from services.batcher.store_batches import Loss, Result
from services.batcher.wallet_client import WalletClient, WalletUnavailable
from tests.batcher_jobs import HOUR_US, LIMITS, Stores, image, new_job, new_uid, opened_stores
from tests.batchers import until
from tests.tokens import bearer, token
from tests.wallets import EVERY_SCOPE, wallet_at
from tests.wallets import WalletClient as Wallet

ANSWER = Answer("a cat", "stop", 10, 2)
BROKEN = Failure("provider_error", "It broke.")


class Bench(NamedTuple):
    """The stores, the wallet as its owner sees it, and the parts that talk to it."""

    stores: Stores
    wallet: Wallet
    client: WalletClient
    admitter: Admitter
    settler: Settler
    amender: Amender
    wallet_address: str

    async def admitted(self, job_id: str, **fields) -> Job | Exception:
        """A job, of alice's unless told otherwise, after admission."""
        await self.stores.jobs.add_image(image(fields.get("account_id", "alice")))
        (submitted,) = await self.stores.jobs.submit([new_job(job_id, **fields)])
        assert isinstance(submitted, Submitted)
        (outcome,) = await self.admitter.admit([submitted.job], 10)
        return outcome

    async def running(self, job: Job) -> str:
        """Brings a queued job to RUNNING; gives its batch."""
        batches, lease = self.stores.batches, self.stores.lease
        batch = await batches.plan(Planned("gpt-x", (job.uid,)), new_uid(), lease)
        assert batch is not None
        submission = await batches.freeze(batch.batch_id, {}, new_uid(), "org", lease)
        assert submission is not None
        await batches.adopt(submission, "batch_1", lease)
        return batch.batch_id

    async def fallen_back(self, job_id: str) -> Job:
        """An instant job whose only try has failed, so that it queues as a batch job; its hold was not lowered yet."""
        job = await self.admitted(job_id, lane=Lane.INSTANT, price=5, fallback_price=1)
        assert isinstance(job, Job)
        limits = LIMITS._replace(attempts_max=1)
        (change,) = await self.stores.jobs.lose(job.uid, 1, BROKEN, True, limits, HOUR_US)
        assert (change.job.state, change.job.lane, change.job.attempt) == (State.QUEUED, Lane.BATCH, 2)
        return change.job

    async def answered(self, job: Job) -> None:
        """A queued job's batch brings its answer."""
        batch_id = await self.running(job)
        result = Result(job.uid, job.attempt, ANSWER)
        assert await self.stores.batches.apply(batch_id, [result], LIMITS, self.stores.lease)

    async def settled(self, job_id: str):
        """The job once the settler has done its step."""
        assert not await self.settler.step(self.stores.lease)
        return await self.stores.jobs.view("alice", job_id)

    async def team(self, day_limit: int) -> None:
        """A team with 100 tokens, of which alice may spend so many a day."""
        metadata = bearer("boss", "wallet.team act_for:*", audience="punchcard.wallet")
        async with grpc.aio.insecure_channel(self.wallet_address) as channel:
            teams: Any = TeamServiceStub(channel)
            await teams.OpenTeam(OpenTeamRequest(team_id="team", owner_account_id="olga"), metadata=metadata)
            change = SetMemberRequest(
                team_id="team", change_id="c", member_account_id="alice", role=TEAM_ROLE_MEMBER, day_limit=day_limit
            )
            await teams.SetMember(change, metadata=metadata)
        await self.wallet.call("Grant", wallet_pb2.GrantRequest(account_id="team", grant_id="g", amount=100))

    async def end_hold(self, job: Job) -> None:
        """Releases a hold behind the batcher's back: unlike one that ran out, it can't be committed late."""
        await self.wallet.call("Refund", wallet_pb2.RefundRequest(reservation_id=job.uid))


@pytest.fixture
async def bench(tmp_path) -> AsyncIterator[Bench]:
    async with (
        opened_stores(f"sqlite:{tmp_path}/batcher.db") as stores,
        wallet_at(f"sqlite:{tmp_path}/wallet.db", tmp_path) as (wallet, port),
    ):
        token_file = tmp_path / "token"
        token_file.write_text(token("batcher", EVERY_SCOPE, audience="punchcard.wallet"))
        client = WalletClient(f"127.0.0.1:{port}", token_file, 10)
        admitter = Admitter(stores.jobs, client, Listeners(lambda _: None, lambda: None), HOUR_US)
        admitter.start()
        amender = Amender(stores.jobs, client, lambda: None)
        yield Bench(stores, wallet, client, admitter, Settler(stores.jobs, client), amender, f"127.0.0.1:{port}")
        await admitter.close()
        await client.close()


async def test_a_success_takes_the_price_once_however_often_it_is_settled(bench):
    job = await bench.admitted("a")
    batch_id = await bench.running(job)
    await bench.stores.batches.apply(batch_id, [Result(job.uid, 1, ANSWER)], LIMITS, bench.stores.lease)
    view = await bench.settled("a")
    await bench.settled("a")

    assert view.settlement.state is SettlementState.SETTLED
    assert await bench.wallet.balance("alice") == (9, 0)


async def test_a_failure_gives_the_hold_back(bench):
    job = await bench.admitted("a")
    batch_id = await bench.running(job)
    lost = Loss(Failure("refused", "No."), retryable=False)
    await bench.stores.batches.apply(batch_id, [Result(job.uid, 1, lost)], LIMITS, bench.stores.lease)
    view = await bench.settled("a")

    assert (view.settlement.state, view.settlement.charged) == (SettlementState.SETTLED, 0)
    assert await bench.wallet.balance("alice") == (10, 0)


async def test_an_answer_that_the_configuration_gives_away_costs_nothing(bench):
    job = await bench.admitted("a")
    batch_id = await bench.running(job)
    refusal = ANSWER._replace(finish_reason="content_filter")
    await bench.stores.batches.apply(batch_id, [Result(job.uid, 1, refusal)], LIMITS, bench.stores.lease)
    view = await bench.settled("a")

    assert view.job.state is State.SUCCEEDED
    assert await bench.wallet.balance("alice") == (10, 0)


async def test_an_answer_that_comes_after_its_hold_ran_out_is_charged_from_what_the_account_has(bench):
    job = await bench.admitted("a", hold_duration_us=1_000_000)
    batch_id = await bench.running(job)

    async def hold_ran_out():
        found = await bench.wallet.call("GetReservation", wallet_pb2.GetReservationRequest(reservation_id=job.uid))
        return found.reservation.state == wallet_pb2.RESERVATION_STATE_EXPIRED

    await until(hold_ran_out)
    await bench.stores.batches.apply(batch_id, [Result(job.uid, 1, ANSWER)], LIMITS, bench.stores.lease)
    view = await bench.settled("a")

    assert (view.settlement.state, view.settlement.charged) == (SettlementState.SETTLED, 1)
    assert await bench.wallet.balance("alice") == (9, 0)


async def test_a_settlement_that_the_wallet_refuses_is_final_and_the_answer_stays(bench):
    job = await bench.admitted("a")
    batch_id = await bench.running(job)
    await bench.end_hold(job)
    await bench.stores.batches.apply(batch_id, [Result(job.uid, 1, ANSWER)], LIMITS, bench.stores.lease)
    view = await bench.settled("a")

    assert (view.settlement.state, view.settlement.charged) == (SettlementState.REFUSED, 0)
    assert view.answer == ANSWER
    assert await bench.stores.jobs.pending_settlements("", 10) == []


async def test_refusals_are_told_with_the_wallets_numbers_and_block_the_id(bench):
    poor = await bench.admitted("a", price=11)
    view = await bench.settled("a")
    stranger = await bench.admitted("b", payer_account_id="nobody-here", price=11)

    assert isinstance(poor, InsufficientFunds)
    assert poor.metadata["requested"] == "11"
    assert (view.job.state, view.settlement.state) == (State.REJECTED, SettlementState.SETTLED)
    assert isinstance(stranger, InsufficientFunds | WalletRefused)


async def test_a_team_pays_for_the_jobs_of_its_members_within_their_limits(bench):
    """One that the team does not pay for is REJECTED with the wallet's reason and numbers, and may be sent again."""
    await bench.team(day_limit=3)
    paid = await bench.admitted("paid", payer_account_id="team", price=2)
    over = await bench.admitted("over", payer_account_id="team", price=2)
    stranger = await bench.admitted("strange", account_id="mallory", payer_account_id="team", price=1)
    rejected = await bench.stores.jobs.view("alice", "over")
    await bench.end_hold(paid)
    again = await bench.admitted("over", payer_account_id="team", price=2)

    assert isinstance(paid, Job)
    assert (paid.state, rejected.job.state) == (State.QUEUED, State.REJECTED)
    assert isinstance(over, WalletRefused)
    resets_at = over.metadata.pop("resets_at")
    assert resets_at.endswith("T00:00:00Z")
    assert over.metadata == {
        "account_id": "team",
        "wallet_reason": "LIMIT_REACHED",
        "limited": "spend:alice",
        "requested": "2",
        "used": "2",
        "limit": "3",
    }
    assert isinstance(stranger, WalletRefused)
    assert stranger.metadata == {"account_id": "team", "wallet_reason": "NOT_A_MEMBER", "team_id": "team"}
    assert isinstance(again, Job)
    assert await bench.wallet.balance("team") == (100, 2)


async def test_a_hold_that_nears_its_end_is_made_longer(bench):
    job = await bench.admitted("a", hold_duration_us=HOUR_US)
    renewer = Renewer(bench.stores.jobs, bench.client, margin_us=HOUR_US // 2)
    now_us = job.hold_expire_time_us - HOUR_US // 4
    await renewer.step(bench.stores.lease, now_us)
    (renewed,) = await bench.stores.jobs.read([job.uid])

    assert renewed.hold_expire_time_us == now_us + HOUR_US
    assert renewed.state is State.QUEUED
    assert await bench.wallet.balance("alice") == (10, 1)


async def test_a_hold_of_which_the_wallet_says_nothing_keeps_no_other_from_being_made_longer(bench, monkeypatch):
    silent, other = await bench.admitted("a"), await bench.admitted("b")
    settle_many = bench.client.settle_many

    async def without_one(commands):
        answers = await settle_many(commands)
        silence = WalletUnavailable("INTERNAL", "our mistake")
        return [silence if c.reservation_id == silent.uid else a for c, a in zip(commands, answers, strict=True)]

    monkeypatch.setattr(bench.client, "settle_many", without_one)
    now_us = other.hold_expire_time_us
    with pytest.raises(WalletUnavailable):
        await Renewer(bench.stores.jobs, bench.client, margin_us=HOUR_US).step(bench.stores.lease, now_us)

    jobs = {job.uid: job for job in await bench.stores.jobs.read([silent.uid, other.uid])}
    assert jobs[silent.uid] == silent
    assert jobs[other.uid].hold_expire_time_us == now_us + other.hold_duration_us


async def test_a_queued_job_whose_hold_is_gone_ends_and_a_running_one_goes_on(bench):
    queued, running = await bench.admitted("a"), await bench.admitted("b")
    await bench.running(running)
    for job in (queued, running):
        await bench.end_hold(job)
    renewer = Renewer(bench.stores.jobs, bench.client, margin_us=HOUR_US)
    await renewer.step(bench.stores.lease, queued.hold_expire_time_us)
    ended = await bench.settled("a")
    other = await bench.stores.jobs.view("alice", "b")

    assert (ended.job.state, ended.failure.code) == (State.FAILED, "hold_lost")
    assert other.job.state is State.RUNNING
    assert not await renewer.step(bench.stores.lease, queued.hold_expire_time_us)


async def test_a_job_that_falls_back_holds_and_costs_what_a_batch_job_does(bench):
    job = await bench.fallen_back("a")
    before = await bench.wallet.balance("alice")
    assert not await bench.amender.step(bench.stores.lease)
    lowered = await bench.wallet.balance("alice")
    await bench.answered(job)
    view = await bench.settled("a")

    assert (before, lowered) == ((10, 5), (10, 1))
    assert (view.job.state, view.settlement.state, view.settlement.charged) == (
        State.SUCCEEDED,
        SettlementState.SETTLED,
        1,
    )
    assert await bench.wallet.balance("alice") == (9, 0)


async def test_a_job_that_is_answered_before_its_hold_was_lowered_costs_the_lower_price(bench):
    """As after a crash between the fall back and its Amend: the settlement frees the rest, the Amend does nothing."""
    await bench.answered(await bench.fallen_back("a"))
    await bench.settled("a")
    await bench.amender.step(bench.stores.lease)
    view = await bench.settled("a")

    assert (view.job.state, view.settlement.charged) == (State.SUCCEEDED, 1)
    assert await bench.wallet.balance("alice") == (9, 0)
    assert await bench.stores.jobs.pending_lowerings(10) == []


@pytest.mark.parametrize("lost", ["before", "behind"])
async def test_an_amend_whose_call_breaks_off_is_sent_again_until_the_wallet_has_answered(bench, monkeypatch, lost):
    job = await bench.fallen_back("a")
    settle_many = bench.client.settle_many

    async def broken_off(commands):
        if lost == "behind":
            await settle_many(commands)
        raise WalletUnavailable("UNAVAILABLE", "gone")

    with monkeypatch.context() as patched:
        patched.setattr(bench.client, "settle_many", broken_off)
        with pytest.raises(WalletUnavailable):
            await bench.amender.step(bench.stores.lease)
    assert await bench.stores.jobs.pending_lowerings(10) == [(job.uid, 1)]
    await bench.amender.step(bench.stores.lease)

    assert await bench.stores.jobs.pending_lowerings(10) == []
    assert await bench.wallet.balance("alice") == (10, 1)


@pytest.mark.parametrize("order", ["amend, settle", "settle, amend"])
async def test_a_cancel_while_a_job_falls_back_frees_everything(bench, order):
    await bench.fallen_back("a")
    view, _ = await bench.stores.jobs.cancel("alice", "a", "alice")
    assert view.job.state is State.CANCELLED
    for step in order.split(", "):
        await (bench.amender if step == "amend" else bench.settler).step(bench.stores.lease)
    view = await bench.settled("a")

    assert (view.job.state, view.settlement.state) == (State.CANCELLED, SettlementState.SETTLED)
    assert await bench.wallet.balance("alice") == (10, 0)
    assert await bench.stores.jobs.pending_lowerings(10) == []


async def test_a_job_that_falls_back_without_a_hold_ends_while_it_queues_and_goes_on_once_it_is_bought(bench):
    queued, bought = await bench.fallen_back("a"), await bench.fallen_back("b")
    batch_id = await bench.running(bought)
    for job in (queued, bought):
        await bench.end_hold(job)
    await bench.amender.step(bench.stores.lease)
    await bench.stores.batches.apply(batch_id, [Result(bought.uid, 2, ANSWER)], LIMITS, bench.stores.lease)
    ended, answered = await bench.settled("a"), await bench.settled("b")

    assert (ended.job.state, ended.failure.code) == (State.FAILED, "hold_lost")
    assert (answered.job.state, answered.settlement.state) == (State.SUCCEEDED, SettlementState.REFUSED)
    assert await bench.wallet.balance("alice") == (10, 0)
