"""A connection that is lost at any point of any command loses nothing and does nothing twice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from punchcard.wallet.v1 import wallet_pb2
from punchcard.wallet.v1.wallet_pb2_grpc import WalletServiceStub
from punchcard_client import CHANNEL_OPTIONS, ask, connect, reserved
from services.chassis import journal
from services.chassis.database import Database
from tests.databases import opened
from tests.listening import Listener
from tests.tokens import bearer, token
from tests.wallet_scenarios import is_replayed, said, scenarios
from tests.wallets import EVERY_SCOPE, WalletClient, wallet_at
from tests.wires import Cut, Wire, wire_to

SCOPES = f"{EVERY_SCOPE} wallet.admin"
WALLET = Path("services/wallet")
# Without the channel's own retries each loss is seen, and the waits between two connections stay short.
OPTIONS = [("grpc.enable_retries", 0), *(each for each in CHANNEL_OPTIONS if each[0] != "grpc.service_config")]


@pytest.fixture
async def wire(database_url: str, tmp_path: Path) -> AsyncIterator[Wire]:
    """The way to a real wallet on each database in turn."""
    # Without the achievement of a first job, so that each command is as many rows as it says.
    rules = '{"achievements": {}}'
    async with wallet_at(database_url, tmp_path, earning_rules=rules) as (_, port), wire_to(port) as wire:
        yield wire


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """The wallet's own database, to look at."""
    async with opened(database_url, WALLET) as database:
        yield database


async def rows(database: Database) -> int:
    """How long the journal is."""
    async with database.reading() as tx:
        return (await journal.read_head(tx)).revision


@pytest.mark.parametrize("cut", Cut)
async def test_each_command_whose_connection_is_cut_is_done_once_when_it_is_sent_again(
    wire: Wire, database: Database, cut: Cut
) -> None:
    """The retry is answered as the lost call would have been, and says whether that was done; no more changes."""
    async with aio.insecure_channel(f"127.0.0.1:{wire.port}", options=OPTIONS) as channel:
        client = WalletClient(channel)
        client.metadata = bearer("batcher", SCOPES, audience="punchcard.wallet")
        for number, scenario in enumerate(scenarios(cut.name)):
            for name, request in scenario.before:
                await client.call(name, request)
            before = await rows(database)
            wire.next_cut = cut

            with pytest.raises(aio.AioRpcError) as lost:
                await client.call(scenario.method, scenario.request)
            # The channel may not have noticed yet that the connection is gone, so that the next call is lost with it.
            method: Any = partial(getattr(client.stub, scenario.method), metadata=client.metadata, wait_for_ready=True)
            retried: Any = await ask(method, scenario.request)
            third: Any = await ask(method, scenario.request)

            assert lost.value.code() is grpc.StatusCode.UNAVAILABLE, scenario.name
            assert wire.cuts == number + 1, scenario.name
            assert is_replayed(retried) is cut.is_after_the_deed, scenario.name
            assert is_replayed(third), scenario.name
            assert said(third) == said(retried), scenario.name
            assert await rows(database) - before == scenario.rows, scenario.name


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("cut", Cut)
@pytest.mark.parametrize("fails", [False, True], ids=["committed", "released"])
async def test_a_block_does_not_notice_that_each_of_its_commands_loses_its_connection(
    wire: Wire, cut: Cut, fails: bool
) -> None:
    """The Reserve, an extension of the hold, and the Commit or the Refund: each is cut once, and done once."""
    async with connect(f"127.0.0.1:{wire.port}", token("batcher", SCOPES, audience="punchcard.wallet")) as channel:
        wallet = Listener(WalletServiceStub(channel))

        async def block() -> None:
            wire.next_cut = cut
            async with reserved(wallet, "ann", "ann-1", 4, timedelta(seconds=2)):  # type: ignore[arg-type]
                if cut.is_after_the_deed:
                    # A Reserve that had been done looks like another run's, so that its hold is extended at once.
                    await wallet.answers["Amend"].get()
                wire.next_cut = cut
                extended = await wallet.answers["Amend"].get()
                assert extended.reservation.state == wallet_pb2.RESERVATION_STATE_HELD
                wire.next_cut = cut
                if fails:
                    raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError) if fails else nullcontext():
            await block()

        account = await WalletServiceStub(channel).GetAccount(wallet_pb2.GetAccountRequest(account_id="ann"))
    assert (account.account.tokens.balance, account.account.tokens.held) == ((10, 0) if fails else (6, 0))
    assert wire.cuts == 3
