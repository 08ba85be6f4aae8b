"""Holding tokens around a piece of work: taken when it succeeds, given back when it fails, kept while it runs.

    the block            the tokens
    ends                 `hold.amount` of them are taken, the others go back
    raises               all go back, with `grace`: the work failed on our side
    is cancelled         all go back, without it: whoever wanted the work wants it no more
    takes long           stay held: the hold is extended at half of its life, again and again
    has lost its hold    are gone: it is cancelled, and HoldLost raised

A reply that is lost changes nothing of this: each command is sent again with the same key.
"""

from __future__ import annotations

import asyncio
import warnings
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration
from grpc import aio

from punchcard.wallet.v1 import wallet_pb2
from punchcard_client.backoff import BackoffPolicy
from punchcard_client.hold import OVER, Calls, Hold, HoldLost, Keeper, wallet_reason
from punchcard_client.retry import COMMAND_BACKOFF, TRY_SECONDS, OutcomeUnknown, see_through

if TYPE_CHECKING:
    from punchcard.wallet.v1.wallet_pb2_grpc import WalletServiceAsyncStub


def reserved(
    stub: WalletServiceAsyncStub,
    account_id: str,
    reservation_id: str,
    amount: int,
    hold_duration: timedelta,
    *,
    payer_account_id: str = "",
    price_version: str = "",
    reference: str = "",
    allow_late: bool = False,
    backoff: BackoffPolicy = COMMAND_BACKOFF,
    try_seconds: float = TRY_SECONDS,
) -> AbstractAsyncContextManager[Hold]:
    """Reserves on entry; commits `hold.amount` at the end of the block, or gives all back if the block raises.

    The reservation_id is the key: the same block run again after a crash goes on with the same hold, for its whole
    duration from then on. The same means: with the same account, amount, duration, payer, price_version and reference.
    One block at a time may run under a key.

    hold_duration: how long the tokens stay held when this process dies, 1 second to 45 days; while the block runs, it
        is no limit.
    allow_late: whether the block may go on when its hold has run out because the wallet could not be asked in time: it
        is then charged from what the account has.
    backoff, try_seconds: how long each command is tried, and each try of it. The end of the block may take that long,
        also when it was cancelled.

    Raises NotHeld when the hold has ended before, HoldLost when it is lost on the way, AioRpcError when the wallet
    refuses, and OutcomeUnknown when it did not answer: before the block has begun (the Reserve), or after it (the
    Commit). Go on by sending the exception's `request` again; before the block, by running the block again. A hold that
    could not be given back ends by itself, and a note of the exception says so.
    """
    if type(amount) is not int:
        raise TypeError(f"the amount is a whole number of tokens, not {amount!r}")
    held_for = Duration()
    held_for.FromTimedelta(hold_duration)
    request = wallet_pb2.ReserveRequest(
        account_id=account_id,
        payer_account_id=payer_account_id,
        reservation_id=reservation_id,
        amount=amount,
        hold_duration=held_for,
        price_version=price_version,
        reference=reference,
    )
    return _Block(Calls(stub, backoff, try_seconds), request, allow_late)


class _Block(AbstractAsyncContextManager[Hold]):
    """The context of one block; it can be entered once."""

    _waits = False

    def __init__(self, calls: Calls, reserve: wallet_pb2.ReserveRequest, allow_late: bool) -> None:
        self._calls = calls
        self._reservation_id = reserve.reservation_id
        self._allow_late = allow_late
        self._keeper = Keeper(calls, reserve, allow_late)
        self._hold: Hold | None = None
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._waits = True

    def __del__(self) -> None:
        if self._waits:
            message = f"reserved(...) of {self._reservation_id} held nothing: write `async with reserved(...) as hold:`"
            warnings.warn(message, RuntimeWarning, stacklevel=2)

    async def __aenter__(self) -> Hold:
        if not self._waits:
            raise RuntimeError(f"this block of reservation {self._reservation_id} has run: call reserved(...) again")
        self._waits = False
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a block runs in a task, so that it can be cancelled when its hold is lost")
        self._task, self._cancelling = task, task.cancelling()
        try:
            hold = self._hold = await self._keeper.take()
        except asyncio.CancelledError as cancelled:
            # The Reserve may be on its way: a release that comes first blocks it.
            await see_through(self._give_back(cancelled))
            raise
        self._keeper.start(hold, task)
        return hold

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        hold, task = self._hold, self._task
        if hold is None or task is None:
            raise RuntimeError("the block was never entered")
        hold.close()
        self._keeper.stop()
        if self._keeper.lost is not None:
            await self._end_lost(HoldLost(hold.reservation, self._keeper.lost), task, error)
        elif error is not None:
            await see_through(self._give_back(error))
        else:
            await see_through(self._end(hold))

    async def _end_lost(self, lost: HoldLost, task: asyncio.Task[object], error: BaseException | None) -> None:
        """Raises `lost` in place of the cancellation that was ours alone, as asyncio.timeout does; others go on."""
        ours_alone = task.uncancel() <= self._cancelling
        if error is not None and not (ours_alone and isinstance(error, asyncio.CancelledError)):
            error.add_note(str(lost))
            await see_through(self._give_back(error))
            return
        await see_through(self._give_back(lost))
        raise lost from self._keeper.lost

    async def _end(self, hold: Hold) -> None:
        """Takes what the block says, or gives all back when it is nothing."""
        await self._keeper.stopped()
        if hold.amount == 0:
            hold.reservation = await self._release(grace=False)
            return
        commit = wallet_pb2.CommitRequest(
            reservation_id=self._reservation_id, amount=hold.amount, allow_late=self._allow_late
        )
        try:
            hold.reservation = (await self._calls.ask(self._calls.stub.Commit, commit)).reservation
        except aio.AioRpcError as error:
            if wallet_reason(error) in OVER:
                raise HoldLost(hold.reservation, error) from error
            raise

    async def _give_back(self, error: BaseException) -> None:
        """Releases what may still be held, because of this error, which goes on to the caller whatever comes of it."""
        await self._keeper.stopped()
        if wallet_reason(self._keeper.lost) in OVER:
            return
        try:
            await self._release(grace=isinstance(error, Exception))
        except (aio.AioRpcError, OutcomeUnknown) as kept:
            error.add_note(f"the hold of reservation {self._reservation_id} may go on until its end: {kept!r}")

    async def _release(self, *, grace: bool) -> wallet_pb2.Reservation:
        refund = wallet_pb2.RefundRequest(reservation_id=self._reservation_id, grace=grace)
        return (await self._calls.ask(self._calls.stub.Refund, refund)).reservation
