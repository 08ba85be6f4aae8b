"""Holding tokens around work, against the real wallet."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc import aio

from punchcard.wallet.v1 import wallet_pb2
from punchcard.wallet.v1.wallet_pb2_grpc import WalletServiceStub
from punchcard_client import BackoffPolicy, Hold, HoldLost, NotHeld, OutcomeUnknown, connect, reason_of, reserved
from tests.listening import Listener
from tests.tokens import token
from tests.wallets import EVERY_SCOPE, wallet_at

if TYPE_CHECKING:
    from punchcard.wallet.v1.wallet_pb2_grpc import WalletServiceAsyncStub

MINUTE = timedelta(minutes=1)
SHORT = timedelta(seconds=2)
NOT_AGAIN = BackoffPolicy(first_seconds=0.001, longest_seconds=0.002, outage_seconds=0.0)


@pytest.fixture
async def wallet(tmp_path: Path) -> AsyncIterator[WalletServiceAsyncStub]:
    """The wallet as a principal that may open, reserve and settle for everybody."""
    bearer = token("worker", EVERY_SCOPE, audience="punchcard.wallet")
    async with (
        wallet_at(f"sqlite:{tmp_path}/wallet.db", tmp_path) as (_, port),
        connect(f"127.0.0.1:{port}", bearer) as channel,
    ):
        yield WalletServiceStub(channel)


@pytest.fixture
def listener(wallet: WalletServiceAsyncStub) -> Any:
    """The same, with a test that listens."""
    return Listener(wallet)


@pytest.fixture
async def nobody() -> AsyncIterator[WalletServiceAsyncStub]:
    """A wallet that can't be reached: at a port that is taken, on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with connect(f"127.0.0.1:{taken.getsockname()[1]}", "") as channel:
            yield WalletServiceStub(channel)


async def funds(wallet: WalletServiceAsyncStub, account_id: str) -> tuple[int, int]:
    account = (await wallet.GetAccount(wallet_pb2.GetAccountRequest(account_id=account_id))).account
    return account.tokens.balance, account.tokens.held


async def test_tokens_are_held_during_the_work_and_taken_after_it(wallet: WalletServiceAsyncStub) -> None:
    """10 of the welcome bonus, 5 held, 5 left."""
    async with reserved(wallet, "ann", "ann-1", 5, MINUTE) as hold:
        assert hold.amount == 5
        assert await funds(wallet, "ann") == (10, 5)

    assert await funds(wallet, "ann") == (5, 0)


async def test_less_may_be_taken_than_was_held(wallet: WalletServiceAsyncStub) -> None:
    """Also nothing at all."""
    async with reserved(wallet, "ben", "ben-1", 5, MINUTE) as hold:
        hold.amount = 2
    async with reserved(wallet, "ben", "ben-2", 5, MINUTE) as hold:
        hold.amount = 0

    assert await funds(wallet, "ben") == (8, 0)


async def test_failed_work_costs_nothing(wallet: WalletServiceAsyncStub) -> None:
    """The error goes on to the caller, the tokens go back."""
    with pytest.raises(ZeroDivisionError):
        async with reserved(wallet, "cat", "cat-1", 5, MINUTE):
            _ = 1 / 0

    assert await funds(wallet, "cat") == (10, 0)


async def test_cancelled_work_costs_nothing(wallet: WalletServiceAsyncStub) -> None:
    """The giving back outlives the task that was cancelled."""
    begun = asyncio.Event()

    async def work() -> None:
        async with reserved(wallet, "dan", "dan-1", 5, MINUTE):
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert await funds(wallet, "dan") == (10, 0)


async def test_work_that_was_done_is_not_done_again(wallet: WalletServiceAsyncStub) -> None:
    """The same id finds the reservation committed, and the block does not run."""
    async with reserved(wallet, "eve", "eve-1", 5, MINUTE):
        pass

    with pytest.raises(NotHeld) as ended:
        async with reserved(wallet, "eve", "eve-1", 5, MINUTE):
            pytest.fail("the block ran")

    assert ended.value.reservation.state == wallet_pb2.RESERVATION_STATE_COMMITTED
    assert await funds(wallet, "eve") == (5, 0)


async def test_a_refusal_is_the_wallets_error(wallet: WalletServiceAsyncStub) -> None:
    """Too few tokens: FAILED_PRECONDITION, with the numbers."""
    with pytest.raises(aio.AioRpcError) as refused:
        async with reserved(wallet, "fay", "fay-1", 11, MINUTE):
            pytest.fail("the block ran")

    reason = reason_of(refused.value)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert reason is not None
    assert (reason.name, reason.metadata["requested"]) == ("INSUFFICIENT_FUNDS", "11")


async def state_of(wallet: WalletServiceAsyncStub, reservation_id: str) -> str:
    """Where a reservation stands."""
    request = wallet_pb2.GetReservationRequest(reservation_id=reservation_id)
    state = (await wallet.GetReservation(request)).reservation.state
    return wallet_pb2.ReservationState.Name(state).removeprefix("RESERVATION_STATE_")


async def test_work_may_take_longer_than_its_hold(wallet: WalletServiceAsyncStub, listener: Any) -> None:
    """The hold is extended at half of its life, each time under a key of its own, as long as the block runs."""
    async with reserved(listener, "ann", "ann-1", 5, SHORT) as hold:
        ends = [hold.reservation.expire_time.ToNanoseconds()]
        for _ in range(3):
            await listener.answers["Amend"].get()
            ends.append(hold.reservation.expire_time.ToNanoseconds())
        assert await state_of(wallet, "ann-1") == "HELD"

    keys = [amend.amend_id for amend in listener.sent(wallet_pb2.AmendRequest)]
    assert len(set(keys)) == len(keys) >= 3
    assert ends == sorted(set(ends))
    assert hold.reservation.state == wallet_pb2.RESERVATION_STATE_COMMITTED
    assert await funds(wallet, "ann") == (5, 0)


async def forever(ended: list[BaseException] | None = None) -> None:
    """Waits until it is cancelled, and notes that."""
    try:
        await asyncio.Event().wait()
    except BaseException as error:
        if ended is not None:
            ended.append(error)
        raise


async def lose(wallet: WalletServiceAsyncStub, reservation_id: str) -> None:
    """Gives the hold back under the feet of its block."""
    await wallet.Refund(wallet_pb2.RefundRequest(reservation_id=reservation_id))


async def test_work_whose_hold_is_lost_is_cancelled(wallet: WalletServiceAsyncStub) -> None:
    """The block ends with HoldLost, nothing is taken, and the task itself is not cancelled."""
    ended: list[BaseException] = []

    async def work() -> None:
        async with reserved(wallet, "ann", "ann-1", 5, SHORT):
            await lose(wallet, "ann-1")
            await forever(ended)

    with pytest.raises(HoldLost, match="RESERVATION_RELEASED") as lost:
        await work()

    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    assert isinstance(ended[0], asyncio.CancelledError)
    assert isinstance(lost.value.__cause__, aio.AioRpcError)
    assert await funds(wallet, "ann") == (10, 0)


async def test_work_that_does_not_heed_the_loss_of_its_hold_is_not_charged(wallet: WalletServiceAsyncStub) -> None:
    """Whoever swallows the cancellation learns of the loss at the end of the block."""

    async def work() -> None:
        async with reserved(wallet, "ann", "ann-1", 5, SHORT):
            await lose(wallet, "ann-1")
            with suppress(asyncio.CancelledError):
                await forever()

    with pytest.raises(HoldLost):
        await work()

    assert await funds(wallet, "ann") == (10, 0)


async def test_an_error_of_work_whose_hold_was_lost_goes_on_and_mentions_it(wallet: WalletServiceAsyncStub) -> None:
    """The error is the work's, and a note tells of the hold."""

    async def work() -> None:
        async with reserved(wallet, "ann", "ann-1", 5, SHORT):
            await lose(wallet, "ann-1")
            try:
                await forever()
            except asyncio.CancelledError as cancelled:
                raise ZeroDivisionError from cancelled

    with pytest.raises(ZeroDivisionError) as failed:
        await work()

    assert "was lost: RESERVATION_RELEASED" in "".join(failed.value.__notes__)


async def test_a_task_that_is_cancelled_while_its_hold_is_lost_stays_cancelled(wallet: WalletServiceAsyncStub) -> None:
    """Somebody else's cancellation is not turned into an error."""

    async def work() -> None:
        task = asyncio.current_task()
        assert task is not None
        async with reserved(wallet, "ann", "ann-1", 5, SHORT):
            await lose(wallet, "ann-1")
            try:
                await forever()
            finally:
                task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(work())


async def test_a_hold_that_cannot_be_extended_is_lost_at_its_end(
    wallet: WalletServiceAsyncStub, listener: Any, nobody: WalletServiceAsyncStub
) -> None:
    """Nobody can say then that the tokens are still held; they are given back in any case."""
    listener.lead("Amend", nobody)

    with pytest.raises(HoldLost, match="could not be extended in time"):
        async with reserved(listener, "ann", "ann-1", 5, SHORT):
            await forever()

    assert await state_of(wallet, "ann-1") in {"RELEASED", "EXPIRED"}
    assert await funds(wallet, "ann") == (10, 0)


async def test_work_may_be_charged_late_where_that_is_allowed(
    wallet: WalletServiceAsyncStub, listener: Any, nobody: WalletServiceAsyncStub
) -> None:
    """The hold runs out, the block goes on, and its end takes what the account has."""
    listener.lead("Amend", nobody)

    async with reserved(listener, "ann", "ann-1", 5, SHORT, allow_late=True):
        while await state_of(wallet, "ann-1") == "HELD":
            pass

    assert await funds(wallet, "ann") == (5, 0)


async def test_a_block_that_is_run_again_has_the_whole_duration_before_it(
    wallet: WalletServiceAsyncStub, listener: Any
) -> None:
    """A hold that is found, from before a crash, is extended before the block begins."""
    request = wallet_pb2.ReserveRequest(account_id="ann", reservation_id="ann-1", amount=5, reference="report")
    request.hold_duration.FromTimedelta(MINUTE)
    before = (await wallet.Reserve(request)).reservation

    async with reserved(listener, "ann", "ann-1", 5, MINUTE, reference="report") as hold:
        assert len(listener.sent(wallet_pb2.AmendRequest)) == 1
        assert hold.reservation.expire_time.ToNanoseconds() > before.expire_time.ToNanoseconds()

    assert await funds(wallet, "ann") == (5, 0)


async def test_the_reserve_says_who_pays_and_for_what(wallet: WalletServiceAsyncStub) -> None:
    """Payer, price version and reference are the reservation's."""
    async with reserved(
        wallet, "ann", "ann-1", 5, MINUTE, payer_account_id="firm", price_version="v7", reference="report"
    ) as hold:
        made = hold.reservation

    assert (made.account_id, made.payer_account_id) == ("ann", "firm")
    assert (made.price_version, made.reference) == ("v7", "report")
    assert await funds(wallet, "firm") == (5, 0)


@pytest.mark.parametrize(
    ("amount", "error"), [(6, ValueError), (-1, ValueError), (2.5, TypeError), ("2", TypeError), (True, TypeError)]
)
async def test_an_amount_that_is_none_ends_the_block(
    wallet: WalletServiceAsyncStub, amount: Any, error: type[Exception]
) -> None:
    """It is refused where it is written, and the hold is given back."""
    with pytest.raises(error, match=r"hold\.amount is"):
        async with reserved(wallet, "ann", "ann-1", 5, MINUTE) as hold:
            hold.amount = amount

    assert await state_of(wallet, "ann-1") == "RELEASED"


@pytest.mark.parametrize("amount", [True, 2.5, "2"])
async def test_an_amount_to_reserve_is_a_whole_number(wallet: WalletServiceAsyncStub, amount: Any) -> None:
    """Python would take True for 1."""
    with pytest.raises(TypeError, match="whole number"):
        reserved(wallet, "ann", "ann-1", amount, MINUTE)


async def test_a_block_runs_once(wallet: WalletServiceAsyncStub) -> None:
    """The context can't be entered again, during the block or after it, and its amount is fixed by its end."""
    block = reserved(wallet, "ann", "ann-1", 5, MINUTE)
    async with block as hold:
        with pytest.raises(RuntimeError, match="has run"):
            await block.__aenter__()
    with pytest.raises(RuntimeError, match="has run"):
        await block.__aenter__()
    with pytest.raises(RuntimeError, match="is over"):
        hold.amount = 1

    assert await funds(wallet, "ann") == (5, 0)


async def test_a_block_that_is_never_entered_is_warned_about(wallet: WalletServiceAsyncStub) -> None:
    """Like a coroutine that nobody awaits: without `async with` nothing is held."""
    with pytest.warns(RuntimeWarning, match="held nothing"):
        reserved(wallet, "ann", "ann-1", 5, MINUTE)


async def test_a_timeout_around_the_block_is_a_timeout_and_costs_nothing(wallet: WalletServiceAsyncStub) -> None:
    """Its cancellation is not ours, and goes on until it becomes a TimeoutError."""

    async def work() -> None:
        async with asyncio.timeout(30) as limit, reserved(wallet, "ann", "ann-1", 5, MINUTE):
            limit.reschedule(0)
            await forever()

    with pytest.raises(TimeoutError):
        await work()

    assert await funds(wallet, "ann") == (10, 0)


async def test_grace_is_asked_for_when_the_work_failed_and_not_when_it_was_cancelled(listener: Any) -> None:
    """The one is our fault, the other somebody's wish; work that takes nothing has not failed either."""

    async def work() -> None:
        async with reserved(listener, "ann", "ann-2", 5, MINUTE):
            begun.set()
            await forever()

    begun = asyncio.Event()
    with pytest.raises(ZeroDivisionError):
        async with reserved(listener, "ann", "ann-1", 5, MINUTE):
            _ = 1 / 0
    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with reserved(listener, "ann", "ann-3", 5, MINUTE) as hold:
        hold.amount = 0

    refunds = listener.sent(wallet_pb2.RefundRequest)
    assert [(refund.reservation_id, refund.grace) for refund in refunds] == [
        ("ann-1", True),
        ("ann-2", False),
        ("ann-3", False),
    ]


async def test_who_is_cancelled_while_reserving_holds_nothing(wallet: WalletServiceAsyncStub, listener: Any) -> None:
    """The release blocks a Reserve that may still be on its way."""

    async def work() -> None:
        async with reserved(listener, "ann", "ann-1", 5, MINUTE):
            pytest.fail("the block ran")

    task = asyncio.create_task(work())
    await listener.asked["Reserve"].get()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert await state_of(wallet, "ann-1") == "RELEASED"


async def test_who_is_cancelled_while_committing_has_paid(wallet: WalletServiceAsyncStub, listener: Any) -> None:
    """The work was done, so that its commit is seen through."""

    async def work() -> Hold:
        async with reserved(listener, "ann", "ann-1", 5, MINUTE) as hold:
            pass
        return hold

    task = asyncio.create_task(work())
    await listener.asked["Commit"].get()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert await funds(wallet, "ann") == (5, 0)


async def test_a_reserve_without_an_answer_runs_no_block(nobody: WalletServiceAsyncStub) -> None:
    """Nobody knows whether the tokens are held."""
    with pytest.raises(OutcomeUnknown) as unknown:
        async with reserved(nobody, "ann", "ann-1", 5, MINUTE, backoff=NOT_AGAIN):
            pytest.fail("the block ran")

    assert isinstance(unknown.value.request, wallet_pb2.ReserveRequest)


async def test_a_commit_without_an_answer_can_be_sent_again(
    wallet: WalletServiceAsyncStub, listener: Any, nobody: WalletServiceAsyncStub
) -> None:
    """The exception has the request; the hold is kept for it."""
    listener.lead("Commit", nobody)
    with pytest.raises(OutcomeUnknown) as unknown:
        async with reserved(listener, "ann", "ann-1", 5, MINUTE, backoff=NOT_AGAIN):
            pass
    assert await funds(wallet, "ann") == (10, 5)

    assert isinstance(unknown.value.request, wallet_pb2.CommitRequest)
    await wallet.Commit(unknown.value.request)
    assert await funds(wallet, "ann") == (5, 0)


async def test_an_error_of_the_work_goes_on_although_its_hold_cannot_be_given_back(
    listener: Any, nobody: WalletServiceAsyncStub
) -> None:
    """A note says that the tokens stay held for a while."""
    listener.lead("Refund", nobody)

    with pytest.raises(ZeroDivisionError) as failed:
        async with reserved(listener, "ann", "ann-1", 5, MINUTE, backoff=NOT_AGAIN):
            _ = 1 / 0

    assert "ann-1 may go on until its end" in "".join(failed.value.__notes__)


async def test_a_commit_of_a_hold_that_is_gone_is_told_as_such(wallet: WalletServiceAsyncStub) -> None:
    """Also when it is the commit that finds out."""
    with pytest.raises(HoldLost, match="RESERVATION_RELEASED"):
        async with reserved(wallet, "ann", "ann-1", 5, MINUTE):
            await lose(wallet, "ann-1")

    assert await funds(wallet, "ann") == (10, 0)
