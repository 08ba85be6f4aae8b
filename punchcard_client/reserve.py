"""Holding tokens around a piece of work: taken when it succeeds, given back when it fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from google.protobuf import duration_pb2

from punchcard.wallet.v1 import wallet_pb2

if TYPE_CHECKING:
    from punchcard.wallet.v1.wallet_pb2_grpc import WalletServiceAsyncStub


class NotHeld(Exception):
    """The reservation exists and does not hold tokens any more, so the work must not be done; see its state."""

    def __init__(self, reservation: wallet_pb2.Reservation) -> None:
        state = wallet_pb2.ReservationState.Name(reservation.state)
        super().__init__(f"reservation {reservation.reservation_id} is {state}")
        self.reservation = reservation


@dataclass
class Hold:
    """Tokens held for the work in the block. Lower `amount` to take less than was reserved; 0 takes nothing."""

    reservation: wallet_pb2.Reservation
    amount: int


@asynccontextmanager
async def reserved(
    stub: WalletServiceAsyncStub, account_id: str, reservation_id: str, amount: int, hold_duration: timedelta
) -> AsyncIterator[Hold]:
    """Reserves on entry; commits `hold.amount` at the end of the block, or gives all back if the block raises.

    The reservation_id is the key: the same block run again after a crash goes on with the same hold. Raises NotHeld
    when that hold has ended, and AioRpcError when the wallet refuses. When the commit itself fails, the hold stays
    until its time passes, since nobody knows whether it was done; run the block again, or commit by hand.
    """
    held_for = duration_pb2.Duration()
    held_for.FromTimedelta(hold_duration)
    answer = await stub.Reserve(
        wallet_pb2.ReserveRequest(
            account_id=account_id, reservation_id=reservation_id, amount=amount, hold_duration=held_for
        )
    )
    if answer.reservation.state != wallet_pb2.RESERVATION_STATE_HELD:
        raise NotHeld(answer.reservation)
    hold = Hold(answer.reservation, answer.reservation.reserved)
    try:
        yield hold
    except BaseException:
        # Also when the task is cancelled, which must not cancel the giving back.
        await asyncio.shield(_release(stub, reservation_id))
        raise
    if hold.amount == 0:
        await _release(stub, reservation_id)
    else:
        await stub.Commit(wallet_pb2.CommitRequest(reservation_id=reservation_id, amount=hold.amount))


async def _release(stub: WalletServiceAsyncStub, reservation_id: str) -> None:
    await stub.Refund(wallet_pb2.RefundRequest(reservation_id=reservation_id))
