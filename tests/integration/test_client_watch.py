"""A client's watch of a balance, against the real wallet."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from grpc import aio

from punchcard.wallet.v1 import wallet_pb2
from punchcard.wallet.v1.wallet_pb2_grpc import WalletServiceStub
from punchcard_client import BackoffPolicy, connect, reason_of, watch_balance
from tests.tokens import token
from tests.wallets import EVERY_SCOPE, WalletClient, wallet_at

if TYPE_CHECKING:
    from punchcard.wallet.v1.wallet_pb2_grpc import WalletServiceAsyncStub

QUICK = BackoffPolicy(first_seconds=0.001, longest_seconds=0.01, outage_seconds=30.0)


def signed(lifetime_seconds: float = 3600.0) -> str:
    return token("batcher", EVERY_SCOPE, audience="punchcard.wallet", lifetime_seconds=lifetime_seconds)


def watched(stub: WalletServiceAsyncStub, account_id: str = "alice", **more: Any) -> Any:
    return aclosing(watch_balance(stub, account_id, backoff=QUICK, **more))


@pytest.fixture
async def served(database_url: str, tmp_path: Path) -> AsyncIterator[tuple[WalletClient, str]]:
    """A wallet in which alice has an account, and its address."""
    async with wallet_at(database_url, tmp_path) as (wallet, port):
        await wallet.call("OpenAccount", wallet_pb2.OpenAccountRequest(account_id="alice"))
        yield wallet, f"127.0.0.1:{port}"


async def grant(wallet: WalletClient, number: int) -> None:
    await wallet.call("Grant", wallet_pb2.GrantRequest(account_id="alice", grant_id=f"g{number}", amount=number))


async def changes(watch: AsyncIterator[wallet_pb2.WatchBalanceResponse], count: int) -> list[str]:
    """The keys of the next changes; a snapshot in between would show as one."""
    keys: list[str] = []
    while len(keys) < count:
        message = await anext(watch)
        if not message.HasField("bookmark"):
            keys.append(message.change.key or "snapshot")
    return keys


async def test_a_watch_of_a_balance_survives_the_restart_of_its_wallet(database_url: str, tmp_path: Path) -> None:
    """Each change once and in order, those of the time in between too."""
    async with wallet_at(database_url, tmp_path) as (wallet, port):
        await wallet.call("OpenAccount", wallet_pb2.OpenAccountRequest(account_id="alice"))
    address = f"127.0.0.1:{port}"
    async with connect(address, signed()) as channel, watched(WalletServiceStub(channel)) as watch:
        for number in range(3):
            async with wallet_at(database_url, tmp_path, listen_address=address) as (wallet, _):
                await grant(wallet, 2 * number + 1)
                if number == 0:
                    assert (await anext(watch)).snapshot.tokens.balance == 11
                else:
                    assert await changes(watch, 2) == [f"g{2 * number}", f"g{2 * number + 1}"]
            async with wallet_at(database_url, tmp_path) as (elsewhere, _):
                await grant(elsewhere, 2 * number + 2)


async def test_a_watch_goes_on_with_the_next_bearer_token(served: tuple[WalletClient, str]) -> None:
    """One that ends under the stream is replaced by what the source gives next."""
    wallet, address = served
    given = (signed(lifetime) for lifetime in itertools.chain([1.2], itertools.repeat(3600.0)))
    async with connect(address, lambda: next(given)) as channel, watched(WalletServiceStub(channel)) as watch:
        told = [await anext(watch) for _ in range(3)]
        await grant(wallet, 1)
        assert await changes(watch, 1) == ["g1"]

    assert [message.WhichOneof("event") for message in told] == ["snapshot", "bookmark", "bookmark"]


async def test_a_bearer_token_that_stays_ended_is_an_error(served: tuple[WalletClient, str]) -> None:
    """A text has no successor: the second refusal is raised."""
    _, address = served
    async with connect(address, signed(1.2)) as channel, watched(WalletServiceStub(channel)) as watch:
        with pytest.raises(aio.AioRpcError) as ended:
            await changes(watch, 2)

    reason = reason_of(ended.value)
    assert reason is not None
    assert reason.name == "TOKEN_EXPIRED"


async def test_an_account_that_is_not_there_is_an_error(served: tuple[WalletClient, str]) -> None:
    """No retry opens it."""
    _, address = served
    async with connect(address, signed()) as channel, watched(WalletServiceStub(channel), "nobody") as watch:
        with pytest.raises(aio.AioRpcError) as missing:
            await anext(watch)

    reason = reason_of(missing.value)
    assert reason is not None
    assert reason.name == "ACCOUNT_NOT_FOUND"
