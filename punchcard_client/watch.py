"""Watching a job to its end, through lost connections and restarts of the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

import grpc
from grpc import aio

from punchcard.batcher.v1 import batcher_pb2
from punchcard_client.backoff import Backoff, BackoffPolicy
from punchcard_client.errors import retry_seconds_of

if TYPE_CHECKING:
    from punchcard.batcher.v1.batcher_pb2_grpc import BatcherServiceAsyncStub

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
    a `resume_token` of an earlier watch it begins behind that. Raises AioRpcError for what no retry mends, and when
    the outage is longer than the backoff allows.
    """
    request = batcher_pb2.WatchJobRequest(account_id=account_id, job_id=job_id, resume_token=resume_token)
    waits = Backoff(backoff or BackoffPolicy())
    while True:
        error: aio.AioRpcError | None = None
        try:
            async for message in _messages(stub.WatchJob(request), silence_seconds):
                waits.succeeded()
                request.resume_token = message.resume_token
                yield message
                if is_settled(message):
                    return
            # It ended, and no settled job was seen: perhaps the token was that of the last message. A snapshot tells.
            request.resume_token = ""
        except aio.AioRpcError as lost:
            error = lost
            if lost.code() is grpc.StatusCode.OUT_OF_RANGE and request.resume_token:
                request.resume_token = ""
            elif lost.code() not in _RESUMABLE:
                raise
        except TimeoutError:
            pass
        asked = retry_seconds_of(error) if error is not None else None
        wait_seconds = waits.failed(time.monotonic(), asked or 0.0)
        if wait_seconds is None:
            raise error or TimeoutError(f"the watch of job {job_id} stayed without a message")
        await asyncio.sleep(wait_seconds)


async def _messages(
    call: aio.UnaryStreamCall[batcher_pb2.WatchJobRequest, batcher_pb2.WatchJobResponse], silence_seconds: float
) -> AsyncIterator[batcher_pb2.WatchJobResponse]:
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
