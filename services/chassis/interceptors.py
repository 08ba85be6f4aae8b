"""What surrounds every handler. From the outside in:

    mask unknown errors > request id, log line > metrics > authentication > scope > concurrency > time limit > handler

It is one closure per method, built when the method is registered, rather than a row of grpc interceptors, each of which
would wrap the handler anew for every call. Handlers raise errors of their service's table and stream with `yield`.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final, NoReturn

import grpc

from services.chassis import logs
from services.chassis.auth import Principal, Verifier, set_principal
from services.chassis.errors import (
    ErrorTable,
    InvalidField,
    Outcome,
    ScopeMissing,
    ServerBusy,
    ServerDraining,
    StoreDamaged,
    StoreUnavailable,
    TokenExpired,
    TokenMissing,
    Violation,
)
from services.chassis.fields import ID_PATTERN
from services.chassis.traffic import Call, Method, TimeLimit, Traffic

MESSAGE_CHARS_MAX: Final = 1_000

Context = grpc.aio.ServicerContext[Any, Any]
Behavior = Callable[[Any, Context], Any]
Codec = Callable[[Any], Any]

_log = logs.get_logger(__name__)
_request_prefix = secrets.token_hex(6)
_request_numbers = itertools.count(1)


class Chain:
    """Wraps the handlers of one server.

    `scopes` maps each full method name to the scope that it needs or to PUBLIC; a method that it lacks is refused to
    everybody. Without a `verifier` every caller is `everybody`.
    """

    def __init__(
        self,
        table: ErrorTable,
        scopes: Mapping[str, str],
        verifier: Verifier | None,
        traffic: Traffic,
        request_timeout_seconds: float,
    ) -> None:
        self._table = table
        self._scopes = scopes
        self._verifier = verifier
        self._traffic = traffic
        self._time_limit = TimeLimit(traffic.calls, request_timeout_seconds)
        self._everybody = Principal("anyone", frozenset({*scopes.values(), "act_for:*"}), float("inf"))

    def wrap(self, name: str, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        """The handler of the method `name` ("/package.Service/Method") inside the chain."""
        method = Method(name, self._scopes.get(name))
        decode, encode = _decoder(handler.request_deserializer), handler.response_serializer or _unchanged
        if handler.request_streaming and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._out_stream(method, _generator(handler.stream_stream), _unchanged, encode), decode, None
            )
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(
                self._in_stream(method, handler.stream_unary, encode), decode, None
            )
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._out_stream(method, _generator(handler.unary_stream), decode, encode), None, None
            )
        return grpc.unary_unary_rpc_method_handler(self._unary(method, handler.unary_unary, decode, encode), None, None)

    def _unary(self, method: Method, behavior: Any, decode: Codec, encode: Codec) -> Behavior:
        calls, calls_max, watch = self._traffic.calls, self._traffic.calls_max, self._time_limit.watch

        async def call_unary(raw: bytes, context: Context) -> bytes:
            call = Call(method)
            task = asyncio.current_task()
            assert task is not None
            try:
                self._admit(call, context)
                if len(calls) >= calls_max and not method.public:
                    raise ServerBusy(calls_max)
                calls[task] = call
                watch()
                encoded: bytes = encode(await behavior(decode(raw), context))
                return encoded
            except (Exception, asyncio.CancelledError) as error:
                await self._refuse(call, self._time_limit.judge(call, task, error), context)
            finally:
                calls.pop(task, None)
                call.finish()

        return call_unary

    def _in_stream(self, method: Method, behavior: Any, encode: Codec) -> Behavior:
        async def call_in_stream(requests: AsyncIterator[Any], context: Context) -> bytes:
            call = Call(method)
            try:
                async with self._stream(call, context):
                    encoded: bytes = encode(await behavior(requests, context))
                return encoded
            except (Exception, asyncio.CancelledError) as error:
                await self._refuse(call, error, context)
            finally:
                call.finish()

        return call_in_stream

    def _out_stream(self, method: Method, behavior: Behavior, decode: Codec, encode: Codec) -> Behavior:
        async def call_out_stream(request: Any, context: Context) -> None:
            call = Call(method)
            sent = 0
            try:
                # Writing here, and not by `yield`, keeps the write inside the time limit of the stream: a limit that
                # strikes while grpc writes what a generator yielded would leave the client without a status.
                async with (
                    self._stream(call, context),
                    contextlib.aclosing(behavior(decode(request), context)) as responses,
                ):
                    async for response in responses:
                        await context.write(encode(response))
                        sent += 1
            except (Exception, asyncio.CancelledError) as error:
                await self._refuse(call, error, context)
            finally:
                call.fields["sent"] = sent
                call.finish()

        return call_out_stream

    def _admit(self, call: Call, context: Context) -> Principal | None:
        """Request id, principal, scope, and whether we still take calls. None is the caller of a public method."""
        method = call.method
        authorization = ""
        for key, value in context.invocation_metadata() or ():
            if key == "authorization":
                authorization = value if isinstance(value, str) else ""
            elif key == "x-request-id" and isinstance(value, str) and ID_PATTERN.fullmatch(value):
                call.request_id = value
        call.request_id = call.request_id or f"{_request_prefix}-{next(_request_numbers)}"
        call.fields["request_id"] = call.request_id
        logs.begin_call(call.fields)
        if method.public:
            return None
        principal = self._authenticate(authorization)
        call.fields["subject"] = principal.subject
        if method.scope is None or method.scope not in principal.scopes:
            raise ScopeMissing(method.name, method.scope or "")
        if self._traffic.draining.is_set():
            self._traffic.turned_away += 1
            raise ServerDraining
        set_principal(principal)
        return principal

    def _authenticate(self, authorization: str) -> Principal:
        if self._verifier is None:
            return self._everybody
        if authorization[:7].lower() != "bearer ":
            raise TokenMissing
        return self._verifier.verify(authorization[7:].strip(), time.time())

    @contextlib.asynccontextmanager
    async def _stream(self, call: Call, context: Context) -> AsyncIterator[None]:
        """Admit a stream and end it when its token ends or the server can wait no longer."""
        principal = self._admit(call, context)
        traffic = self._traffic
        task = asyncio.current_task()
        assert task is not None
        # Apart, so that whoever has no token can neither fill the server's memory nor take a stream from those who do.
        streams = traffic.public_streams if principal is None else traffic.streams
        if len(streams) >= traffic.streams_max:
            raise ServerBusy(traffic.streams_max)
        lifetime_seconds = principal.expire_time_seconds - time.time() if principal else None
        timeout = asyncio.timeout(lifetime_seconds if lifetime_seconds != float("inf") else None)
        try:
            async with timeout:
                streams[task] = timeout
                yield
        except TimeoutError:
            if not timeout.expired():
                raise
            if traffic.draining.is_set() or principal is None:
                raise ServerDraining from None
            raise TokenExpired(principal.expire_time_seconds) from None
        finally:
            streams.pop(task, None)

    async def _refuse(self, call: Call, error: BaseException, context: Context) -> NoReturn:
        """End the call with a status of our table; the client's own cancellation and aborts pass."""
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError):
            if task is not None and task.cancelling():
                call.code = "CANCELLED"
                raise error
            # Something that the handler waited for was cancelled, not the call. Passed on, it would leave the client
            # without any status until its deadline.
            error = StoreUnavailable(f"a task underneath was cancelled: {error!r}").with_traceback(error.__traceback__)
        if isinstance(error, grpc.aio.AbortError):
            call.code = _code_name(context)
            raise error
        outcome = self._table.outcome(error)
        _tell(call, outcome, error)
        await context.abort(outcome.code, outcome.message[:MESSAGE_CHARS_MAX], self._trailers(call, outcome))

    def _trailers(self, call: Call, outcome: Outcome) -> tuple[tuple[str, str | bytes], ...]:
        details = self._table.status(outcome).SerializeToString()
        trailers: tuple[tuple[str, str | bytes], ...] = (
            ("grpc-status-details-bin", details),
            ("x-request-id", call.request_id),
        )
        if outcome.retry_seconds is None:
            return trailers
        # gRPC's own retries read this trailer and not RetryInfo, which is for the application.
        return (*trailers, ("grpc-retry-pushback-ms", str(int(outcome.retry_seconds * 1000))))


def _tell(call: Call, outcome: Outcome, error: BaseException) -> None:
    """Put the outcome on the call's line; what we hide from the client gets a line of its own."""
    call.code = outcome.code.name
    call.fields["reason"] = outcome.reason
    call.fields["message"] = outcome.message
    call.fields.update(outcome.metadata)
    if outcome.code is grpc.StatusCode.INTERNAL:
        call.level = "error"
        call.method.metrics.masked.inc()
    elif isinstance(error, StoreDamaged):
        call.level = "error"
    elif isinstance(error, StoreUnavailable):
        call.level = "warning"
    log_cause(outcome, error)


def log_cause(outcome: Outcome, error: BaseException) -> None:
    """Log what the client is not told: why an error was masked, and what is the matter with the store."""
    if outcome.code is grpc.StatusCode.INTERNAL:
        _log.error("masked_error", error_id=outcome.metadata.get("error_id"), exc_info=error)
    elif isinstance(error, StoreDamaged):
        _log.error("store_damaged", detail=error.detail)
    elif isinstance(error, StoreUnavailable):
        _log.warning("store_unavailable", detail=error.detail, cause=repr(error.__cause__ or error.__context__))


def _decoder(deserialize: Codec | None) -> Codec:
    """`deserialize`, refusing what is no message of the method as bad input."""
    if deserialize is None:
        return _unchanged

    def decode(raw: bytes) -> Any:
        try:
            return deserialize(raw)
        except Exception as error:
            violation = Violation("request", f"{len(raw)} bytes", "is not a message of this method")
            raise InvalidField([violation]) from error

    return decode


def _generator(behavior: Any) -> Behavior:
    if not inspect.isasyncgenfunction(behavior):
        raise TypeError(f"{behavior!r} streams without `yield`")
    checked: Behavior = behavior
    return checked


def _unchanged(message: Any) -> Any:
    return message


def _code_name(context: Context) -> str:
    code: object = context.code()
    return code.name if isinstance(code, grpc.StatusCode) else "UNKNOWN"
