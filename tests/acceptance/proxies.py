"""What stands between a service and its peers: it passes on bytes, knows which operation they are, and asks a gate.

What a client has sent is passed on though the client may be gone by then, and what a peer has done stays done, as on
any network. A call that is dropped ends without an answer. Nothing is tried again here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import aiohttp
import grpc
from aiohttp import web
from grpc import aio
from yarl import URL

from punchcard.wallet.v1 import wallet_pb2
from services.batcher.wallet_holds import LOWERED_ID
from tests.acceptance.gates import Gate, Moment

HOST: Final = "127.0.0.1"
CALL_SECONDS: Final = 10.0
BODY_BYTES_MAX: Final = 256 * 1024 * 1024
_HOP: Final = {"connection", "transfer-encoding", "content-length", "keep-alive", "expect"}
# A peer that comes back is noticed at once, and no call is repeated on the way.
_CHANNEL: Final = (
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.max_receive_message_length", -1),
)


class _Lost(Exception):
    """The call ends here, without an answer."""


class Wires(NamedTuple):
    """Where one batcher finds its wallet and its object store: the proxies in front of them."""

    wallet: str
    s3: str


def provider_operation(method: str, path: str) -> str:
    """An operation of the provider's API, in the words of its documentation."""
    parts = path.strip("/").split("/")[1:]
    kind, deeper = parts[0], parts[1:]
    if kind == "chat":
        return "chat.create"
    if deeper and deeper[-1] in {"content", "cancel"}:
        return f"{kind}.{deeper[-1]}"
    if method == "POST":
        return f"{kind}.create"
    if method == "DELETE":
        return f"{kind}.delete"
    return f"{kind}.retrieve" if deeper else f"{kind}.list"


def s3_operation(method: str, path: str) -> str:
    """An operation of the object store: what is done, and to an image, a batch's file or the bucket."""
    key = path.strip("/").partition("/")[2]
    kind = {"images": "image", "batches": "result"}.get(key.partition("/")[0], "bucket")
    return f"s3.{method.lower()}_{kind}"


def wallet_operations(method: str, request: bytes) -> list[str]:
    """What a call asks of the wallet; one settlement may ask for several things."""
    name = method.rpartition("/")[2]
    if name != "BatchSettle":
        return [f"wallet.{name}"]
    asked = set()
    for item in wallet_pb2.BatchSettleRequest.FromString(request).items:
        kind = str(item.WhichOneof("command"))
        if kind == "amend":
            kind = "lower" if item.amend.amend_id == LOWERED_ID else "extend"
        asked.add(f"wallet.{'release' if kind == 'refund' else kind}")
    return sorted(asked)


class HttpProxy:
    """In front of an HTTP server. upstream: its URL; who: whose calls these are.

    api_key: the server's key, where several use the proxy: each comes with its own name as its key.
    """

    def __init__(
        self, gate: Gate, upstream: str, operation: Callable[[str, str], str], *, who: str = "", api_key: str = ""
    ) -> None:
        self._gate = gate
        self._upstream = upstream
        self._operation = operation
        self._who = who
        self._api_key = api_key
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """The proxy's URL."""
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_route("*", "/{path:.*}", self._handle)
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as self._session:
            await runner.setup()
            site = web.TCPSite(runner, HOST, 0)
            await site.start()
            try:
                yield f"http://{HOST}:{runner.addresses[0][1]}"
            finally:
                await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        try:
            return await self._pass(request, self._operation(request.method, request.path))
        except (_Lost, aiohttp.ClientError, ConnectionError):
            if request.transport is not None:
                request.transport.abort()
            # Nobody reads it any more.
            return web.Response()

    async def _pass(self, request: web.Request, operation: str) -> web.StreamResponse:
        assert self._session is not None
        body = await request.read()
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in _HOP]
        who = self._who
        if self._api_key:
            who = request.headers.get("Authorization", "").removeprefix("Bearer ")
            headers = [*(each for each in headers if each[0] != "Authorization"), self._authorization()]
        await self._ask(operation, Moment.BEFORE, who)
        async with self._session.request(
            request.method,
            URL(self._upstream + request.raw_path, encoded=True),
            data=body or None,
            headers=headers,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            allow_redirects=False,
        ) as answer:
            content = await answer.read()
        await self._ask(operation, Moment.AFTER, who)
        response = web.StreamResponse(status=answer.status)
        for name, value in answer.headers.items():
            if name.lower() not in _HOP:
                response.headers.add(name, value)
        response.content_length = int(answer.headers.get("Content-Length", len(content)))
        await response.prepare(request)
        half = len(content) // 2
        await response.write(content[:half])
        await self._ask(operation, Moment.MIDDLE, who)
        await response.write(content[half:])
        await response.write_eof()
        return response

    def _authorization(self) -> tuple[str, str]:
        return "Authorization", f"Bearer {self._api_key}"

    async def _ask(self, operation: str, moment: Moment, who: str) -> None:
        if not await self._gate.goes_on([operation], moment, who):
            raise _Lost


class WalletProxy:
    """In front of a wallet: calls with one request and one answer, as bytes."""

    def __init__(self, gate: Gate, upstream: str, who: str) -> None:
        self._gate = gate
        self._upstream = upstream
        self._who = who
        self._calls: set[asyncio.Task[bytes]] = set()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """The proxy's host:port."""
        server = aio.server()
        server.add_generic_rpc_handlers([_Bytes(self._handle)])
        port = server.add_insecure_port(f"{HOST}:0")
        async with aio.insecure_channel(self._upstream, options=_CHANNEL) as self._channel:
            await server.start()
            try:
                yield f"{HOST}:{port}"
            finally:
                await server.stop(None)
                await asyncio.gather(*self._calls, return_exceptions=True)

    async def _handle(self, method: str, request: bytes, context: Any) -> bytes:
        # In a task of its own, as the handler is cancelled when its client is gone.
        metadata = [(key, value) for key, value in context.invocation_metadata() if not key.startswith("grpc-")]
        call = self._spawn(self._pass(method, request, metadata))
        try:
            return await asyncio.shield(call)
        except aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "", error.trailing_metadata() or ())
        except _Lost:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection was lost")
        raise AssertionError("abort has raised")

    async def _pass(self, method: str, request: bytes, metadata: Sequence[tuple[str, str]]) -> bytes:
        operations = wallet_operations(method, request)
        await self._ask(operations, Moment.BEFORE)
        call: Any = self._channel.unary_unary(method)
        answer: bytes = await call(request, metadata=metadata, timeout=CALL_SECONDS)
        await self._ask(operations, Moment.AFTER)
        return answer

    async def _ask(self, operations: list[str], moment: Moment) -> None:
        if not await self._gate.goes_on(operations, moment, self._who):
            raise _Lost

    def _spawn(self, work: Coroutine[Any, Any, bytes]) -> asyncio.Task[bytes]:
        task = asyncio.create_task(work)
        self._calls.add(task)

        def done(ended: asyncio.Task[bytes]) -> None:
            self._calls.discard(ended)
            if not ended.cancelled():
                # Where nobody waits any more nobody asks for the error.
                ended.exception()

        task.add_done_callback(done)
        return task


class _Bytes(grpc.GenericRpcHandler):
    """Takes every method, and leaves requests and answers as they are."""

    def __init__(self, handle: Callable[[str, bytes, Any], Coroutine[Any, Any, bytes]]) -> None:
        self._handle = handle

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        method = handler_call_details.method

        async def call(request: bytes, context: Any) -> bytes:
            return await self._handle(method, request, context)

        return grpc.unary_unary_rpc_method_handler(call)


@asynccontextmanager
async def wires(gate: Gate, who: str, *, wallet: str, s3: str) -> AsyncIterator[Wires]:
    """Proxies in front of one batcher's own peers. wallet: host:port; s3: a URL."""
    async with (
        WalletProxy(gate, wallet, who).serving() as to_wallet,
        HttpProxy(gate, s3, s3_operation, who=who).serving() as to_s3,
    ):
        yield Wires(to_wallet, to_s3)


def provider(gate: Gate, upstream: str, api_key: str) -> HttpProxy:
    """The proxy in front of the provider, one for all, as its address is part of whose batches are seen."""
    return HttpProxy(gate, upstream, provider_operation, api_key=api_key)
