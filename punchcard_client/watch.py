"""Watching a job to its end, or a balance without end, through lost connections and restarts of the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import grpc
from grpc import aio

from punchcard.batcher.v1 import batcher_pb2
from punchcard.wallet.v1 import wallet_pb2
from punchcard_client.backoff import Backoff, BackoffPolicy
from punchcard_client.errors import reason_of, retry_seconds_of

if TYPE_CHECKING:
    from punchcard.batcher.v1.batcher_pb2_grpc import BatcherServiceAsyncStub
    from punchcard.wallet.v1.wallet_pb2_grpc import WalletServiceAsyncStub

FINAL_STATES: Final = frozenset(
    {
        batcher_pb2.JOB_STATE_SUCCEEDED,
        batcher_pb2.JOB_STATE_FAILED,
        batcher_pb2.JOB_STATE_EXPIRED,
        batcher_pb2.JOB_STATE_CANCELLED,
        batcher_pb2.JOB_STATE_REJECTED,
    }
)
SETTLED_STATES: Final = frozenset({batcher_pb2.SETTLEMENT_STATE_SETTLED, batcher_pb2.SETTLEMENT_STATE_REFUSED})

# Bookmarks come at least each 30 seconds: three missed ones are a dead connection, whatever TCP says.
SILENCE_SECONDS: Final = 90.0

# A server under a storm of new streams drops some as CANCELLED without a word.
_RESUMABLE: Final = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED}
)


def is_settled(message: batcher_pb2.WatchJobResponse) -> bool:
    """Whether nothing more can happen to the job after this message."""
    told = message.snapshot if message.HasField("snapshot") else message.change
    return told.state in FINAL_STATES and told.settlement.state in SETTLED_STATES


async def watch_job(
    stub: BatcherServiceAsyncStub,
    account_id: str,
    job_id: str,
    *,
    resume_token: str = "",
    backoff: BackoffPolicy | None = None,
    silence_seconds: float = SILENCE_SECONDS,
) -> AsyncIterator[batcher_pb2.WatchJobResponse]:
    """Every message about a job until it has ended and its tokens are settled, as one stream.

    A connection that is lost, or silent for `silence_seconds`, is made again and goes on behind the last message;
    changes come once and in order. Where the server can't go on from there, the stream goes on with a snapshot. With
    a `resume_token` of an earlier watch it begins behind that. When the bearer token ends under it, it goes on with
    the next one of the channel's source. Raises AioRpcError for what no retry mends, and when the outage is longer than
    the backoff allows.
    """
    request = batcher_pb2.WatchJobRequest(account_id=account_id, job_id=job_id, resume_token=resume_token)
    watched = _resumed(stub.WatchJob, request, is_settled, f"job {job_id}", backoff, silence_seconds)
    async with aclosing(watched) as messages:
        async for message in messages:
            yield message


async def watch_balance(
    stub: WalletServiceAsyncStub,
    account_id: str,
    *,
    resume_token: str = "",
    backoff: BackoffPolicy | None = None,
    silence_seconds: float = SILENCE_SECONDS,
) -> AsyncIterator[wallet_pb2.WatchBalanceResponse]:
    """Every message about an account's balance, without end: a snapshot, bookmarks, and each change once and in order.

    It lives through what `watch_job` lives through, and raises what that raises.
    """
    request = wallet_pb2.WatchBalanceRequest(account_id=account_id, resume_token=resume_token)
    watched = _resumed(stub.WatchBalance, request, _never, f"account {account_id}", backoff, silence_seconds)
    async with aclosing(watched) as messages:
        async for message in messages:
            yield message


def _never(_: object) -> bool:
    return False


class _Resumable(Protocol):
    resume_token: str


M = TypeVar("M", bound=_Resumable)


async def _resumed(
    method: Callable[[Any], aio.UnaryStreamCall[Any, M]],
    request: _Resumable,
    is_last: Callable[[M], bool],
    subject: str,
    backoff: BackoffPolicy | None,
    silence_seconds: float,
) -> AsyncGenerator[M, None]:
    """The messages of as many calls of `method` as it takes, up to the last one; `request` moves on with them."""
    waits = Backoff(backoff or BackoffPolicy())
    while True:
        error: aio.AioRpcError | None = None
        heard = False
        try:
            async with aclosing(_messages(method(request), silence_seconds)) as messages:
                async for message in messages:
                    heard = True
                    waits.succeeded()
                    request.resume_token = message.resume_token
                    yield message
                    if is_last(message):
                        return
            # It ended, and nothing said that it is over: perhaps the token was the last message's. A snapshot tells.
            request.resume_token = ""
        except aio.AioRpcError as lost:
            error = lost
            if lost.code() is grpc.StatusCode.OUT_OF_RANGE and request.resume_token:
                request.resume_token = ""
            elif lost.code() not in _RESUMABLE and not (heard and _outlived_its_token(lost)):
                raise
        except TimeoutError:
            pass
        asked = retry_seconds_of(error) if error is not None else None
        wait_seconds = waits.failed(time.monotonic(), asked or 0.0)
        if wait_seconds is None:
            raise error or TimeoutError(f"the watch of {subject} stayed without a message")
        await asyncio.sleep(wait_seconds)


def _outlived_its_token(error: aio.AioRpcError) -> bool:
    """Whether the bearer token ended under the stream: the channel asks its source for another with each call."""
    reason = reason_of(error)
    return reason is not None and reason.name == "TOKEN_EXPIRED"


async def _messages(call: aio.UnaryStreamCall[Any, M], silence_seconds: float) -> AsyncGenerator[M, None]:
    """The messages of one call, which is ended with the iteration; raises TimeoutError when none comes for too long."""
    messages = aiter(call)
    try:
        while True:
            try:
                async with asyncio.timeout(silence_seconds):
                    message = await anext(messages)
            except StopAsyncIteration:
                return
            yield message
    finally:
        call.cancel()
