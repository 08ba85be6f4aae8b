"""A TCP connection to a server that is cut where a test says, in the middle of gRPC's frames."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import Enum, auto

PREFACE_BYTES = 24
HEAD_BYTES = 9
DATA, HEADERS = 0, 1
END_STREAM = 0x1


class Cut(Enum):
    """Where the next call loses its connection."""

    BEFORE_REQUEST = auto()
    """Nothing of the call reaches the server."""
    IN_REQUEST = auto()
    """The server sees the call begin, and half of its message."""
    BEFORE_REPLY = auto()
    """The server has done what it was asked; nothing of its answer comes back."""
    IN_REPLY = auto()
    """Half of the answer's message comes back."""
    BEFORE_STATUS = auto()
    """The whole message comes back, and no status that says that it is one."""

    @property
    def is_after_the_deed(self) -> bool:
        """Whether the server has done what it was asked."""
        return self not in {Cut.BEFORE_REQUEST, Cut.IN_REQUEST}


class _Severed(Exception):
    pass


class Wire:
    """Passes on what clients and the server say, frame by frame, until the next cut."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._connections: set[asyncio.Task[None]] = set()
        self.port = 0
        self.next_cut: Cut | None = None
        self.cuts = 0

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carries one connection to its end."""
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
        ways = [
            asyncio.create_task(self._carry_requests(reader, to_server)),
            asyncio.create_task(self._carry_replies(from_server, writer)),
        ]
        with suppress(asyncio.CancelledError):
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        to_server.transport.abort()
        # What was passed on before the cut still arrives.
        writer.close()
        self._connections.discard(task)

    async def close(self) -> None:
        """Ends all connections."""
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _carry_requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            writer.write(await reader.readexactly(PREFACE_BYTES))
            async for frame in _frames(reader):
                if frame[3] == HEADERS:
                    self._cut_at(Cut.BEFORE_REQUEST, writer, b"")
                elif frame[3] == DATA:
                    self._cut_at(Cut.IN_REQUEST, writer, frame[: (HEAD_BYTES + len(frame)) // 2])
                writer.write(frame)

    async def _carry_replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            async for frame in _frames(reader):
                if frame[3] == HEADERS:
                    self._cut_at(Cut.BEFORE_REPLY, writer, b"")
                    if frame[4] & END_STREAM:
                        self._cut_at(Cut.BEFORE_STATUS, writer, b"")
                elif frame[3] == DATA:
                    self._cut_at(Cut.IN_REPLY, writer, frame[: (HEAD_BYTES + len(frame)) // 2])
                writer.write(frame)

    def _cut_at(self, cut: Cut, writer: asyncio.StreamWriter, last_bytes: bytes) -> None:
        if self.next_cut is cut:
            self.next_cut = None
            self.cuts += 1
            writer.write(last_bytes)
            raise _Severed


async def _frames(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """HTTP/2 frames: nine bytes of head (length, type, flags, stream), then the content."""
    while True:
        head = await reader.readexactly(HEAD_BYTES)
        yield head + await reader.readexactly(int.from_bytes(head[:3]))


@asynccontextmanager
async def wire_to(server_port: int) -> AsyncIterator[Wire]:
    """A wire to a server on this machine, with a free port of its own."""
    wire = Wire(server_port)
    listener = await asyncio.start_server(wire.connected, "127.0.0.1", 0)
    wire.port = listener.sockets[0].getsockname()[1]
    try:
        yield wire
    finally:
        listener.close()
        await wire.close()
        await listener.wait_closed()
