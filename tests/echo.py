"""A service without a proto, in the four shapes of gRPC, to try the chassis with: its messages are plain bytes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from services.chassis.auth import Verifier, current_principal
from services.chassis.errors import ErrorTable, Row
from services.chassis.server import Server
from services.chassis.settings import ServerSettings
from tests.tokens import JWKS, bearer

SERVICE = "punchcard.test.v1.EchoService"
SCOPES = {f"/{SERVICE}/{name}": "echo" for name in ("Unary", "OutStream", "InStream", "BothStream")}
SCOPES[f"/{SERVICE}/WhoAmI"] = "whoami"


class OutOfPatience(Exception):
    """An error of the service's own."""

    metadata = {"patience": "0"}  # noqa: RUF012


class OutOfPatienceAgain(OutOfPatience):
    """One that has no row of its own."""


TABLE = ErrorTable("test.punchcard", {OutOfPatience: Row(grpc.StatusCode.FAILED_PRECONDITION, "OUT_OF_PATIENCE")})

Work = Callable[[bytes, Any], Any]


async def echo(request: bytes, _context: Any) -> bytes:
    return request


class Echo:
    """Each method awaits `work`, which a test replaces, for each message."""

    def __init__(self, work: Work = echo) -> None:
        self.work = work

    async def unary(self, request: bytes, context: Any) -> Any:
        return await self.work(request, context)

    async def out_stream(self, request: bytes, context: Any) -> AsyncIterator[Any]:
        for part in request.split():
            yield await self.work(part, context)

    async def in_stream(self, requests: AsyncIterator[bytes], context: Any) -> Any:
        return b" ".join([await self.work(request, context) async for request in requests])

    async def both_stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield await self.work(request, context)

    async def who_am_i(self, _request: bytes, _context: Any) -> bytes:
        return current_principal().subject.encode()

    def add_to(self, server: Any) -> None:
        server.add_registered_method_handlers(
            SERVICE,
            {
                "Unary": grpc.unary_unary_rpc_method_handler(self.unary, decode_text),
                "OutStream": grpc.unary_stream_rpc_method_handler(self.out_stream),
                "InStream": grpc.stream_unary_rpc_method_handler(self.in_stream),
                "BothStream": grpc.stream_stream_rpc_method_handler(self.both_stream),
                "WhoAmI": grpc.unary_unary_rpc_method_handler(self.who_am_i),
                "Unlisted": grpc.unary_unary_rpc_method_handler(self.unary),
            },
        )


def decode_text(raw: bytes) -> bytes:
    """Refuses what is not UTF-8, as protobuf refuses what is not a message."""
    return raw.decode().encode()


def settings(**changes: Any) -> ServerSettings:
    """Settings of a server on a free port of loopback, whatever the environment says."""
    values: dict[str, Any] = {"listen_address": "127.0.0.1:0", "metrics_address": "off", "drain_timeout_seconds": 5.0}
    return ServerSettings(**{**values, **changes, "_env_file": None})


class Client:
    """Calls the echo service in its four shapes, with a token of the scope that it needs."""

    def __init__(self, channel: grpc.aio.Channel, server: Server) -> None:
        self.channel: Any = channel
        self.server = server
        self.metadata = bearer(scope="echo")

    def unary(self, request: bytes = b"hello", method: str = "Unary", **options: Any) -> Any:
        return self.channel.unary_unary(f"/{SERVICE}/{method}")(request, **{"metadata": self.metadata, **options})

    def out_stream(self, request: bytes = b"a b c", **options: Any) -> Any:
        return self.channel.unary_stream(f"/{SERVICE}/OutStream")(request, **{"metadata": self.metadata, **options})

    def in_stream(self, requests: list[bytes], **options: Any) -> Any:
        return self.channel.stream_unary(f"/{SERVICE}/InStream")(requests, **{"metadata": self.metadata, **options})

    def both_stream(self, **options: Any) -> Any:
        return self.channel.stream_stream(f"/{SERVICE}/BothStream")(**{"metadata": self.metadata, **options})

    async def every_shape(self, **options: Any) -> Mapping[str, Any]:
        """How each shape ends: the answer, or the error."""
        both = self.both_stream(**options)
        return {
            "unary": await outcome_of(self.unary(b"hello", **options)),
            "out_stream": await outcome_of(collect(self.out_stream(b"hello", **options))),
            "in_stream": await outcome_of(self.in_stream([b"hello"], **options)),
            "both_stream": await outcome_of(converse(both, b"hello")),
        }


async def collect(call: Any) -> bytes:
    return b" ".join([part async for part in call])


async def converse(call: Any, request: bytes) -> Any:
    # The server may refuse before it has read anything.
    with contextlib.suppress(asyncio.InvalidStateError):
        await call.write(request)
        await call.done_writing()
    return await collect(call)


async def outcome_of(call: Any) -> Any:
    """The answer of a call, or its error."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return error


def info_of(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    """The ErrorInfo of an error, whose status must agree with its details."""
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (status.code, status.message) == (error.code().value[0], error.details())
    return info


@contextlib.asynccontextmanager
async def serving(work: Work = echo, **changes: Any) -> AsyncIterator[Client]:
    """A running echo server and a client of it."""
    verifier = None if changes.get("insecure") else Verifier(JWKS, "punchcard.test")
    server = Server(settings(**changes), TABLE, SCOPES, verifier, Echo(work).add_to, [SERVICE])
    port = await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Client(channel, server)
    finally:
        await server.drain()
