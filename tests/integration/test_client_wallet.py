"""Holding tokens around work, against the real wallet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from grpc import aio

from punchcard.wallet.v1 import wallet_pb2
from punchcard.wallet.v1.wallet_pb2_grpc import WalletServiceStub
from punchcard_client import NotHeld, connect, reason_of, reserved
from sandbox import keys
from sandbox.plan import Plan, Ports
from sandbox.stack import Stack

if TYPE_CHECKING:
    from punchcard.wallet.v1.wallet_pb2_grpc import WalletServiceAsyncStub

MINUTE = timedelta(minutes=1)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(Path(tmp_path_factory.mktemp("stack")), Plan(ports=Ports.free(), parts=("wallet",))) as running:
        yield running


@pytest.fixture
async def wallet(stack: Stack) -> AsyncIterator[WalletServiceAsyncStub]:
    """The wallet as a principal that may open, reserve and settle for everybody."""
    scopes = "account.open wallet.read wallet.reserve wallet.settle act_for:*"
    async with connect(stack.wallet_address, stack.keys.sign("worker", [keys.WALLET], scopes, 600)) as channel:
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
