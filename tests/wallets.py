"""A real wallet in the test's own process, on either database, and a client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from punchcard.wallet.v1 import wallet_pb2, wallet_pb2_grpc
from services.wallet.__main__ import MIGRATIONS, running
from services.wallet.settings import WalletSettings
from tests.databases import migrated
from tests.tokens import bearer, write_jwks

EVERY_SCOPE = "account.open wallet.grant wallet.reserve wallet.settle wallet.read act_for:*"


class WalletClient:
    """A stub and the metadata of a caller, `batcher` with every scope unless a test says otherwise."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub: Any = wallet_pb2_grpc.WalletServiceStub(channel)
        self.metadata = bearer("batcher", EVERY_SCOPE, audience="punchcard.wallet")

    async def call(self, method: str, request: Any, metadata: Any = None) -> Any:
        """The answer, or the `grpc.aio.AioRpcError`."""
        return await getattr(self.stub, method)(request, metadata=self.metadata if metadata is None else metadata)

    async def balance(self, account_id: str) -> tuple[int, int]:
        """Balance and held part of an account."""
        request = wallet_pb2.GetAccountRequest(account_id=account_id)
        tokens = (await self.call("GetAccount", request)).account.tokens
        return tokens.balance, tokens.held


@asynccontextmanager
async def wallet_at(url: str, folder: Path, **changes: Any) -> AsyncIterator[tuple[WalletClient, int]]:
    """A wallet on a free port over this database; gives a client and the port."""
    await migrated(url, MIGRATIONS)
    values = {"listen_address": "127.0.0.1:0", "metrics_address": "off", "drain_timeout_seconds": 5.0, **changes}
    settings = WalletSettings(database_url=url, jwks_file=write_jwks(folder), _env_file=None, **values)  # type: ignore[call-arg]
    async with running(settings) as server, grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield WalletClient(channel), server.port


@pytest.fixture
async def wallet(database_url: str, tmp_path: Path) -> AsyncIterator[WalletClient]:
    """A wallet on each database in turn."""
    async with wallet_at(database_url, tmp_path) as (client, _):
        yield client


def reason_of(error: grpc.aio.AioRpcError) -> tuple[str, str, dict[str, str]]:
    """Code, reason and metadata of a refused call."""
    status = rpc_status.from_call(error)
    assert status is not None, error
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return error.code().name, info.reason, dict(info.metadata)


async def refused(call: Any) -> tuple[str, str, dict[str, str]]:
    """Code, reason and metadata of a call that must be refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return reason_of(caught.value)
