"""What is asked again, until when, and what is said when nobody knows; against a server that answers as a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

from punchcard.wallet.v1 import wallet_pb2, wallet_pb2_grpc
from punchcard_client import BackoffPolicy, OutcomeUnknown, ask
from punchcard_client.retry import see_through

SOON = BackoffPolicy(first_seconds=0.001, longest_seconds=0.002, outage_seconds=30.0)
NOT_AGAIN = BackoffPolicy(first_seconds=0.001, longest_seconds=0.002, outage_seconds=0.0)
REQUEST = wallet_pb2.CommitRequest(reservation_id="r1", amount=3)
Code = grpc.StatusCode


class Scripted(wallet_pb2_grpc.WalletServiceServicer):
    """Fails as the script says, code by code, then answers; keeps the requests."""

    def __init__(self) -> None:
        self.script: list[tuple[grpc.StatusCode, str, bool]] = []
        self.requests: list[wallet_pb2.CommitRequest] = []
        self.arrived = asyncio.Event()
        self.silent = 0

    async def Commit(self, request: wallet_pb2.CommitRequest, context: Any) -> wallet_pb2.CommitResponse:
        """The next line of the script."""
        self.requests.append(request)
        self.arrived.set()
        if self.silent:
            self.silent -= 1
            await asyncio.Event().wait()
        if self.script:
            code, reason, retry = self.script.pop(0)
            await context.abort(code, "no", _details(code, reason, retry))
        return wallet_pb2.CommitResponse(replayed=True)


def _details(code: grpc.StatusCode, reason: str, retry: bool) -> tuple[tuple[str, bytes], ...]:
    """The trailer with a reason and a RetryInfo, as our services send them; none without a reason."""
    if not reason:
        return ()
    details = [_packed(error_details_pb2.ErrorInfo(reason=reason, domain="wallet.punchcard"))]
    if retry:
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=Duration(nanos=1_000_000))))
    status = status_pb2.Status(code=code.value[0], message="no", details=details)
    return (("grpc-status-details-bin", status.SerializeToString()),)


def _packed(message: Any) -> Packed:
    packed = Packed()
    packed.Pack(message)
    return packed


@pytest.fixture
def service() -> Scripted:
    """A service that answers."""
    return Scripted()  # type: ignore[abstract]


@pytest.fixture
async def channel(service: Scripted) -> AsyncIterator[aio.Channel]:
    """A channel to it that retries nothing by itself."""
    server = aio.server()
    wallet_pb2_grpc.add_WalletServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_retries", 0)]) as channel:
        yield channel
    await server.stop(None)


def commit(channel: aio.Channel) -> Any:
    """The method that is asked."""
    return wallet_pb2_grpc.WalletServiceStub(channel).Commit


@pytest.mark.parametrize(
    "failure",
    [
        (Code.UNAVAILABLE, "", False),
        (Code.UNAVAILABLE, "STORE_UNAVAILABLE", True),
        (Code.UNAVAILABLE, "SERVER_DRAINING", True),
        (Code.DEADLINE_EXCEEDED, "TIMED_OUT", False),
        (Code.CANCELLED, "", False),
        (Code.INTERNAL, "", False),
        (Code.UNKNOWN, "", False),
        (Code.RESOURCE_EXHAUSTED, "SERVER_BUSY", True),
        (Code.RESOURCE_EXHAUSTED, "", False),
    ],
    ids=str,
)
async def test_what_leaves_open_whether_it_was_done_is_asked_again_with_the_same_request(
    service: Scripted, channel: aio.Channel, failure: tuple[grpc.StatusCode, str, bool]
) -> None:
    """Until there is an answer."""
    service.script = [failure, failure]

    answer: Any = await ask(commit(channel), REQUEST, SOON)

    assert answer.replayed
    assert service.requests == [REQUEST] * 3


@pytest.mark.parametrize(
    "code",
    [
        Code.INVALID_ARGUMENT,
        Code.NOT_FOUND,
        Code.ALREADY_EXISTS,
        Code.FAILED_PRECONDITION,
        Code.OUT_OF_RANGE,
        Code.UNAUTHENTICATED,
        Code.PERMISSION_DENIED,
        Code.UNIMPLEMENTED,
    ],
)
async def test_a_definite_no_is_raised_at_once(service: Scripted, channel: aio.Channel, code: grpc.StatusCode) -> None:
    """Asking again would not help."""
    service.script = [(code, "SOME_REASON", False)]

    with pytest.raises(aio.AioRpcError) as refused:
        await ask(commit(channel), REQUEST, SOON)

    assert refused.value.code() is code
    assert len(service.requests) == 1


async def test_a_no_after_doubt_is_a_no_when_it_is_the_ledgers(service: Scripted, channel: aio.Channel) -> None:
    """What had been done would have been answered, so that the first try was not done either."""
    service.script = [(Code.UNAVAILABLE, "", False), (Code.FAILED_PRECONDITION, "RESERVATION_EXPIRED", False)]

    with pytest.raises(aio.AioRpcError) as refused:
        await ask(commit(channel), REQUEST, SOON)

    assert refused.value.code() is Code.FAILED_PRECONDITION


async def test_who_is_turned_away_after_doubt_does_not_know_what_became_of_it(
    service: Scripted, channel: aio.Channel
) -> None:
    """A token that ran out between two tries says nothing of the first one."""
    service.script = [(Code.UNAVAILABLE, "", False), (Code.UNAUTHENTICATED, "TOKEN_EXPIRED", False)]

    with pytest.raises(OutcomeUnknown, match="UNAUTHENTICATED") as unknown:
        await ask(commit(channel), REQUEST, SOON)

    assert unknown.value.request == REQUEST


@pytest.mark.parametrize("code", [Code.INTERNAL, Code.DATA_LOSS])
async def test_a_mistake_of_the_service_is_not_asked_again_and_leaves_doubt(
    service: Scripted, channel: aio.Channel, code: grpc.StatusCode
) -> None:
    """It may have been made after the command was done."""
    service.script = [(code, "INTERNAL", False)]

    with pytest.raises(OutcomeUnknown):
        await ask(commit(channel), REQUEST, SOON)

    assert len(service.requests) == 1


async def test_an_outage_that_is_too_long_ends_in_doubt_and_says_how_to_go_on(
    service: Scripted, channel: aio.Channel
) -> None:
    """The request is in the exception, and sent again it is answered."""
    service.script = [(Code.UNAVAILABLE, "", False)] * 2

    with pytest.raises(OutcomeUnknown, match=r"Commit was done .*UNAVAILABLE.* the same request again") as unknown:
        await ask(commit(channel), REQUEST, NOT_AGAIN)

    answer: Any = await ask(commit(channel), unknown.value.request, SOON)
    assert answer.replayed


async def test_a_service_that_is_busy_for_too_long_has_done_nothing(service: Scripted, channel: aio.Channel) -> None:
    """Which is no doubt, but its refusal."""
    service.script = [(Code.RESOURCE_EXHAUSTED, "SERVER_BUSY", True)] * 2

    with pytest.raises(aio.AioRpcError) as busy:
        await ask(commit(channel), REQUEST, NOT_AGAIN)

    assert busy.value.code() is Code.RESOURCE_EXHAUSTED


async def test_a_reply_that_never_comes_costs_one_try(service: Scripted, channel: aio.Channel) -> None:
    """Each try has a deadline of its own."""
    service.silent = 1

    answer: Any = await ask(commit(channel), REQUEST, SOON, try_seconds=0.2)

    assert answer.replayed


async def test_a_channel_that_is_closed_meanwhile_does_not_look_like_a_cancelled_task(
    service: Scripted, channel: aio.Channel
) -> None:
    """Nobody has cancelled anything: it is doubt."""
    service.silent = 1
    asking = asyncio.create_task(ask(commit(channel), REQUEST, SOON))
    await service.arrived.wait()

    await channel.close()

    with pytest.raises(OutcomeUnknown, match="closed"):
        await asking


async def test_who_asks_can_be_cancelled(service: Scripted, channel: aio.Channel) -> None:
    """A cancellation ends the call and is passed on."""
    service.silent = 1
    asking = asyncio.create_task(ask(commit(channel), REQUEST, SOON))
    await service.arrived.wait()

    asking.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_what_is_seen_through_ends_before_the_cancellation_goes_on() -> None:
    """However often it is cancelled; and what came of it is the cancellation's cause."""
    begun, may_end, told = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        await may_end.wait()
        told.set()
        raise ZeroDivisionError

    task = asyncio.create_task(see_through(work()))
    await begun.wait()
    task.cancel()
    asyncio.get_running_loop().call_soon(task.cancel)
    asyncio.get_running_loop().call_soon(may_end.set)

    with pytest.raises(asyncio.CancelledError):
        await task
    assert told.is_set()
