"""A load client for unary gRPC calls that costs a tenth of the server's work, so that the server is what is measured.

grpc's own client needs as much time for a call as its server, and two of them on two cores measure each other. This one
speaks the little HTTP/2 that it takes: after the first call of a connection all headers are one byte each (HPACK's
dynamic table, as real clients do it), and of the answers only the frames' heads are read. An answer with a message
counts as a call, one without as a failure.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, cast

import grpc

Messages = Callable[[], bytes]

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 0x1, 0x1, 0x4
_WINDOW_MAX: Final = 2**31 - 1
_FRAME_HEAD_BYTES: Final = 9


@dataclass(frozen=True, slots=True)
class Load:
    """What one load did."""

    calls: int
    failures: int
    seconds: float
    p50_seconds: float
    p99_seconds: float

    @property
    def calls_per_second(self) -> float:
        """Answered calls in a second."""
        return self.calls / self.seconds


def run_load(
    port: int, method: str, authorization: str, make_messages: Callable[[], Messages], clients: int, seconds: float
) -> Load:
    """Let `clients` connections call `method` one call after the other for `seconds`.

    It blocks, being meant for a process of its own. `make_messages()` makes the function that gives each call its
    serialized request; both must be importable by name.
    """
    return asyncio.run(_run(port, _Headers(port, method, authorization), make_messages(), clients, seconds))


async def _run(port: int, headers: _Headers, messages: Messages, clients: int, seconds: float) -> Load:
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    connections = [
        (await loop.create_connection(lambda: _Client(headers, messages, started + seconds), "127.0.0.1", port))[1]
        for _ in range(clients)
    ]
    await asyncio.gather(*(client.finished for client in connections))
    elapsed = time.perf_counter() - started
    latencies = sorted(latency for client in connections for latency in client.latencies)
    return Load(
        calls=len(latencies),
        failures=sum(client.failures for client in connections),
        seconds=elapsed,
        p50_seconds=_quantile(latencies, 0.5),
        p99_seconds=_quantile(latencies, 0.99),
    )


def run_large_load(
    port: int, method: str, authorization: str, make_messages: Callable[[], Messages], clients: int, seconds: float
) -> Load:
    """Like `run_load` for messages of many kilobytes, which need flow control: through grpc's own client, as raw bytes.

    A call of a thousand items costs this client little beside the server's work.
    """
    return asyncio.run(_run_large(port, method, authorization, make_messages(), clients, seconds))


async def _run_large(
    port: int, method: str, authorization: str, messages: Messages, clients: int, seconds: float
) -> Load:
    latencies: list[float] = []
    metadata = (("authorization", authorization),)
    started = time.perf_counter()

    async def client(call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]) -> None:
        while (begun := time.perf_counter()) < started + seconds:
            await call(messages(), metadata=metadata)
            latencies.append(time.perf_counter() - begun)

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await asyncio.gather(*(client(channel.unary_unary(method)) for _ in range(clients)))
    elapsed = time.perf_counter() - started
    latencies.sort()
    return Load(len(latencies), 0, elapsed, _quantile(latencies, 0.5), _quantile(latencies, 0.99))


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


class _Headers:
    """The header blocks of the first call of a connection, which fills the table, and of all later ones."""

    def __init__(self, port: int, method: str, authorization: str) -> None:
        fields = [(4, "", method), (1, "", f"127.0.0.1:{port}"), (31, "", "application/grpc"), (0, "te", "trailers")]
        if authorization:
            fields.append((23, "", authorization))
        # 0x83 and 0x86 are ":method: POST" and ":scheme: http" of the static table, which has 61 entries.
        self.first: Final = b"\x83\x86" + b"".join(_literal(index, name, value) for index, name, value in fields)
        self.later: Final = b"\x83\x86" + bytes(0x80 | (61 + place) for place in range(len(fields), 0, -1))


def _literal(index: int, name: str, value: str) -> bytes:
    """A field that enters the dynamic table (RFC 7541, 6.2.1)."""
    return bytes([0x40 | index]) + (_string(name) if name else b"") + _string(value)


def _string(text: str) -> bytes:
    raw = text.encode()
    if len(raw) < 127:
        return bytes([len(raw)]) + raw
    rest, head = len(raw) - 127, [127]
    while rest >= 128:
        head.append(rest % 128 + 128)
        rest //= 128
    return bytes([*head, rest]) + raw


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


class _Client(asyncio.Protocol):
    """One connection with one call under way."""

    def __init__(self, headers: _Headers, messages: Messages, stop_at: float) -> None:
        self.finished: Final = asyncio.get_running_loop().create_future()
        self.latencies: Final[list[float]] = []
        self.failures = 0
        self._headers = headers
        self._messages = messages
        self._stop_at = stop_at
        self._stream = -1
        self._begun = 0.0
        self._answered = False
        self._unread = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Open the window as wide as it goes and make the first call."""
        self._transport = cast("asyncio.Transport", transport)
        wide = (_WINDOW_MAX - 65_535).to_bytes(4, "big")
        self._transport.write(_PREFACE + _frame(_SETTINGS, 0, 0) + _frame(_WINDOW_UPDATE, 0, 0, wide))
        self._call()

    def connection_lost(self, _error: Exception | None) -> None:
        """Count the call that was under way, unless the load was over."""
        if not self.finished.done():
            self.failures += 1
            self.finished.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Read whole frames and keep the rest."""
        data = self._unread + data
        at = 0
        while len(data) - at >= _FRAME_HEAD_BYTES:
            end = at + _FRAME_HEAD_BYTES + int.from_bytes(data[at : at + 3], "big")
            if end > len(data):
                break
            self._on_frame(data[at + 3], data[at + 4], data[at + _FRAME_HEAD_BYTES : end])
            at = end
        self._unread = data[at:]

    def _on_frame(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == _DATA:
            self._answered = self._answered or len(payload) > 0
        elif kind == _HEADERS and flags & _END_STREAM:
            self._end_call()
        elif kind == _RST_STREAM:
            self._answered = False
            self._end_call()
        elif kind == _GOAWAY and self._transport is not None:
            self._transport.close()
        elif kind in (_SETTINGS, _PING) and not flags & _ACK and self._transport is not None:
            self._transport.write(_frame(kind, _ACK, 0, payload if kind == _PING else b""))

    def _call(self) -> None:
        assert self._transport is not None
        message = self._messages()
        self._stream += 2
        self._begun = time.perf_counter()
        self._answered = False
        headers = self._headers.first if self._stream == 1 else self._headers.later
        self._transport.write(
            _frame(_HEADERS, _END_HEADERS, self._stream, headers)
            + _frame(_DATA, _END_STREAM, self._stream, b"\0" + len(message).to_bytes(4, "big") + message)
        )

    def _end_call(self) -> None:
        now = time.perf_counter()
        if self._answered:
            self.latencies.append(now - self._begun)
        else:
            self.failures += 1
        if now < self._stop_at:
            self._call()
        elif self._transport is not None and not self.finished.done():
            self.finished.set_result(None)
            self._transport.close()
