"""A command that is sent again until its answer comes, or until nobody can say what became of it.

an answer        it is done, now or by an earlier try: the key in it makes the repeats harmless
AioRpcError      it is not done and no repeat would help: the service said so, or did not let us in
OutcomeUnknown   it may be done or not: the request goes on from there, sent again as it is
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import Message
from grpc import aio

from punchcard_client.backoff import Backoff, BackoffPolicy
from punchcard_client.errors import reason_of, retry_seconds_of

TRY_SECONDS: Final = 5.0
"""How long one try waits for its answer; a lost one says nothing by itself."""
COMMAND_BACKOFF: Final = BackoffPolicy(first_seconds=0.1, longest_seconds=2.0, outage_seconds=30.0)
"""How long a command is tried: until an outage has lasted half a minute."""

# Decided by the service from what it remembers. A repeat of something done is answered, and never refused, so that
# these are a no to all tries at once.
_REFUSED: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.OUT_OF_RANGE,
    }
)
# Decided at the door, before anybody looks whether the command was done by an earlier try.
_TURNED_AWAY: Final = frozenset(
    {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNIMPLEMENTED}
)
# What a connection that is lost, reset or drowned looks like. A stream that is reset with CANCEL ends as CANCELLED, one
# that is reset otherwise as INTERNAL, and a proxy's answer that is none of gRPC's as UNKNOWN.
_LOST: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)

Request = TypeVar("Request", bound=Message)
Answer = TypeVar("Answer")
Result = TypeVar("Result")


class OutcomeUnknown(Exception):
    """Nobody knows whether the command was done. `request` is the command: sent again as it is, it finds out."""

    def __init__(self, request: Message, problem: str) -> None:
        command = request.DESCRIPTOR.name.removesuffix("Request")
        super().__init__(
            f"nobody knows whether this {command} was done ({problem}); its key makes it safe to send the same request "
            f"again, which does it or tells that it was done: {str(request).strip()}"
        )
        self.request = request


async def ask(
    method: aio.UnaryUnaryMultiCallable[Request, Answer],
    request: Request,
    backoff: BackoffPolicy = COMMAND_BACKOFF,
    try_seconds: float = TRY_SECONDS,
) -> Answer:
    """Sends a command until it is answered: the same request each time, each try with a deadline of its own.

    Raises AioRpcError for a definite no, and OutcomeUnknown when the outage is longer than the backoff allows or when
    no repeat would help.
    """
    waits = Backoff(backoff)
    doubtful = False
    while True:
        try:
            return await _try_once(method, request, try_seconds)
        except aio.AioRpcError as error:
            code = error.code()
            doubtful = doubtful or not _is_known_not_done(error)
            if code in _REFUSED or (code in _TURNED_AWAY and not doubtful):
                raise
            asked_seconds = retry_seconds_of(error) or 0.0
            wait_seconds = waits.failed(time.monotonic(), asked_seconds) if _may_pass(error) else None
            if wait_seconds is None:
                if not doubtful:
                    raise
                raise OutcomeUnknown(request, f"{code.name}: {error.details()}") from error
        await asyncio.sleep(wait_seconds)


async def see_through(work: Coroutine[Any, Any, Result]) -> Result:
    """Runs something that must not be cut in the middle: a cancellation waits until it has ended, and goes on then."""
    task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled from (None if task.cancelled() else task.exception())
    return task.result()


async def _try_once(
    method: aio.UnaryUnaryMultiCallable[Request, Answer], request: Request, try_seconds: float
) -> Answer:
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    try:
        return await method(request, timeout=try_seconds)
    except asyncio.CancelledError as error:
        if task is None or task.cancelling() > before:
            raise
        # gRPC cancels the calls of a channel that is closed, which must not look as if somebody had cancelled us.
        raise OutcomeUnknown(request, "the channel was closed") from error


def _is_known_not_done(error: aio.AioRpcError) -> bool:
    """Whether this try by itself was turned away: at the door, or because the service has too much to do."""
    busy = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and retry_seconds_of(error) is not None
    return busy or error.code() in _TURNED_AWAY


def _may_pass(error: aio.AioRpcError) -> bool:
    """Whether the same command may fare better later. INTERNAL with a reason is a mistake that stays."""
    if error.code() is grpc.StatusCode.INTERNAL:
        return reason_of(error) is None
    return error.code() in _LOST
