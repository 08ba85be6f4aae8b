"""Tokens that are held, and what keeps them held for as long as the work takes."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from google.protobuf.message import Message
from grpc import aio

from punchcard.wallet.v1 import wallet_pb2
from punchcard_client.backoff import BackoffPolicy
from punchcard_client.errors import reason_of
from punchcard_client.retry import OutcomeUnknown, ask

if TYPE_CHECKING:
    from punchcard.wallet.v1.wallet_pb2_grpc import WalletServiceAsyncStub

PAUSE_SECONDS_MIN: Final = 0.1
"""Between two extensions; it bounds how many are tried in the last moments of a hold that can't be extended."""

# The reservation is over, or not known to this wallet: no extension and no commit will ever succeed.
OVER: Final = frozenset(
    {"RESERVATION_EXPIRED", "RESERVATION_RELEASED", "RESERVATION_COMMITTED", "RESERVATION_NOT_FOUND"}
)

Request = TypeVar("Request", bound=Message)
Answer = TypeVar("Answer")


class NotHeld(Exception):
    """The reservation exists and does not hold tokens any more, so the work must not be done; see its state."""

    def __init__(self, reservation: wallet_pb2.Reservation) -> None:
        state = wallet_pb2.ReservationState.Name(reservation.state)
        super().__init__(f"reservation {reservation.reservation_id} is {state}")
        self.reservation = reservation


class HoldLost(Exception):
    """The tokens are not held any more although the work was not done with them: nothing was taken for it.

    `reservation` is the last that was known; the cause is the wallet's refusal, or why it could not be asked.
    """

    def __init__(self, reservation: wallet_pb2.Reservation, cause: BaseException) -> None:
        why = wallet_reason(cause) or "it could not be extended in time"
        super().__init__(f"the hold of reservation {reservation.reservation_id} was lost: {why}")
        self.reservation = reservation


class Hold:
    """Tokens held for the work in the block. Lower `amount` to take less than is held; 0 takes nothing."""

    def __init__(self, reservation: wallet_pb2.Reservation) -> None:
        self._held = reservation.reserved - reservation.released
        self._amount = self._held
        self._over = False
        self.reservation = reservation
        """As the wallet last told it: extended, and in the end committed or released."""

    @property
    def amount(self) -> int:
        """How many tokens the end of the block takes."""
        return self._amount

    @amount.setter
    def amount(self, amount: int) -> None:
        """Raises TypeError or ValueError for what is no number of held tokens, and RuntimeError after the block."""
        if self._over:
            raise RuntimeError(f"the block of reservation {self.reservation.reservation_id} is over")
        if type(amount) is not int:
            raise TypeError(f"hold.amount is a whole number of tokens, not {amount!r}")
        if not 0 <= amount <= self._held:
            raise ValueError(f"hold.amount is 0 to the {self._held} that are held, not {amount}")
        self._amount = amount

    def close(self) -> None:
        """Ends what may be changed; the block's end does it."""
        self._over = True


class Calls(NamedTuple):
    """How the wallet is asked."""

    stub: WalletServiceAsyncStub
    backoff: BackoffPolicy
    try_seconds: float

    async def ask(self, method: aio.UnaryUnaryMultiCallable[Request, Answer], request: Request) -> Answer:
        """The answer; raises AioRpcError or OutcomeUnknown, see `retry.ask`."""
        return await ask(method, request, self.backoff, self.try_seconds)


class Keeper:
    """Extends a hold for as long as its block runs; cancels the block's task when the hold is lost."""

    def __init__(self, calls: Calls, reserve: wallet_pb2.ReserveRequest, allow_late: bool) -> None:
        self._calls = calls
        self._reserve = reserve
        self._allow_late = allow_late
        self._hold_seconds = reserve.hold_duration.ToNanoseconds() / 1e9
        self._end_seconds = 0.0
        self._keeping: asyncio.Task[None] | None = None
        self.lost: BaseException | None = None
        """Why the hold was lost; the block's task was then cancelled, once."""

    async def take(self) -> Hold:
        """The hold, with its whole duration before it. Raises NotHeld, and what `ask` raises."""
        began_seconds = time.monotonic()
        answer = await self._calls.ask(self._calls.stub.Reserve, self._reserve)
        if answer.reservation.state != wallet_pb2.RESERVATION_STATE_HELD:
            raise NotHeld(answer.reservation)
        hold = Hold(answer.reservation)
        # The wallet's clock began to count at the first try or later.
        self._end_seconds = began_seconds + self._hold_seconds
        if answer.replayed:
            # Perhaps by another run of this block, long ago.
            await self._extend(hold)
        return hold

    def start(self, hold: Hold, block: asyncio.Task[object]) -> None:
        """Begins to extend."""
        self._keeping = asyncio.create_task(self._keep(hold, block), name=f"hold {self._reserve.reservation_id}")

    def stop(self) -> None:
        """From here on the block's task is not cancelled any more."""
        if self._keeping is not None:
            self._keeping.cancel()

    async def stopped(self) -> None:
        """Waits until nothing of it runs."""
        if self._keeping is not None:
            await asyncio.wait([self._keeping])

    def _left_seconds(self) -> float:
        return self._end_seconds - time.monotonic()

    async def _keep(self, hold: Hold, block: asyncio.Task[object]) -> None:
        try:
            while self._left_seconds() > 0:
                await asyncio.sleep(max(self._left_seconds() / 2, PAUSE_SECONDS_MIN))
                await self._try_to_extend(hold)
        except Exception as error:
            # Whatever it is, a hold that nobody extends is about to be lost.
            self.lost = error
            block.cancel()

    async def _try_to_extend(self, hold: Hold) -> None:
        """Raises when the hold is lost for certain, or nobody can say any more that it is not."""
        try:
            async with asyncio.timeout(self._left_seconds()):
                await self._extend(hold)
        except (aio.AioRpcError, OutcomeUnknown, TimeoutError) as error:
            if wallet_reason(error) in OVER - {"RESERVATION_EXPIRED"}:
                raise
            if not self._allow_late and (self._left_seconds() <= 0 or wallet_reason(error) in OVER):
                raise

    async def _extend(self, hold: Hold) -> None:
        """Makes the hold last for its whole duration from now. Raises what `ask` raises."""
        began_seconds = time.monotonic()
        amend = wallet_pb2.AmendRequest(
            reservation_id=self._reserve.reservation_id,
            amend_id=f"extend-{uuid.uuid4().hex}",
            hold_duration=self._reserve.hold_duration,
        )
        try:
            hold.reservation = (await self._calls.ask(self._calls.stub.Amend, amend)).reservation
        except aio.AioRpcError as error:
            # Somebody has made it last even longer.
            if wallet_reason(error) != "AMEND_NOT_ALLOWED":
                raise
        self._end_seconds = began_seconds + self._hold_seconds


def wallet_reason(error: BaseException | None) -> str:
    """The wallet's reason for a refusal; empty for everything else."""
    reason = reason_of(error) if isinstance(error, aio.AioRpcError) else None
    return reason.name if reason is not None else ""
