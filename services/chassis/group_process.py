"""A process of its own in which groups of commands run, so that they do not compete with the calls for Python's lock.

    calls ── GroupCommitter ── GroupProcess ═══ socket ═══ serve_groups ── run_group ── database
             '-------- this process --------'              '------ the other process ------'

A frame is its length in four bytes and a body. The other process answers its frames in order, first of all whether it
is ready; it ends when the socket does, so that it can't outlive its parent for longer than a group takes. What it had
begun by then it either ends whole or leaves to the database to undo. When it ends by itself, the outcome of the groups
under way is unknown, which `StoreUnavailable` says: they are run again by another process, and keys make that safe.
"""

from __future__ import annotations

import asyncio
import contextlib
import marshal
import pickle
import signal
import socket
import sys
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, TypeAlias, TypeVar, cast

from services.chassis.errors import StoreUnavailable
from services.chassis.garbage import collect_seldom

STOP_SECONDS_MAX: Final = 10.0

_HEAD_BYTES: Final = 4
_READY: Final = b"+"
_RESULTS: Final = b"="
_ERROR: Final = b"!"

C = TypeVar("C")
R = TypeVar("R")

RunGroup: TypeAlias = Callable[[list[C]], Awaitable[Sequence[R | Exception]]]
OpenStore: TypeAlias = Callable[[Any], contextlib.AbstractAsyncContextManager[RunGroup[C, R]]]


class Codec(Generic[C, R]):
    """How commands and results travel. The other process runs the same code, so that nothing has to be compatible.

    `commands` are all classes of commands: NamedTuples of plain values. `flatten` makes plain tuples of a result and
    `restore` the result again. marshal takes a fifth of pickle's time, but takes plain values only; a group that has
    any other goes by pickle.
    """

    def __init__(
        self,
        commands: Sequence[type[C]],
        flatten: Callable[[R], tuple[Any, ...]],
        restore: Callable[[tuple[Any, ...]], R],
    ) -> None:
        self._classes = tuple(commands)
        self._numbers = {kind: number for number, kind in enumerate(commands)}
        self._flatten = flatten
        self._restore = restore

    def pack_commands(self, commands: Sequence[C]) -> bytes:
        """A group's commands."""
        numbers = self._numbers
        return _packed([(numbers[type(command)], tuple(cast("tuple[Any, ...]", command))) for command in commands])

    def unpack_commands(self, body: bytes) -> list[C]:
        """The commands again."""
        classes, make = self._classes, cast("Any", tuple.__new__)
        return [make(classes[number], values) for number, values in _unpacked(body)]

    def pack_results(self, results: Sequence[R | Exception]) -> bytes:
        """A result or a refusal for each command."""
        flatten = self._flatten
        return _packed([pack_error(each) if isinstance(each, Exception) else flatten(each) for each in results])

    def unpack_results(self, body: bytes) -> list[R | Exception]:
        """The results again."""
        restore = self._restore
        return [unpack_error(each) if isinstance(each, bytes) else restore(each) for each in _unpacked(body)]


def _packed(values: list[Any]) -> bytes:
    try:
        return b"m" + marshal.dumps(values)
    except ValueError:
        return b"p" + pickle.dumps(values)


def _unpacked(body: bytes) -> list[Any]:
    # Both come from a process of our own, by a socket that nobody else has.
    values: list[Any] = marshal.loads(body[1:]) if body[:1] == b"m" else pickle.loads(body[1:])  # noqa: S301, S302
    return values


def pack_error(error: Exception) -> bytes:
    """An exception without its traceback, or a RuntimeError in its place when it can't travel."""
    try:
        return pickle.dumps((type(error), error.args, error.__dict__))
    except Exception:
        return pack_error(RuntimeError(repr(error)))


def unpack_error(packed: bytes) -> Exception:
    """The exception again, past its own `__init__`, which may want other arguments than it left in `args`."""
    kind, arguments, state = pickle.loads(packed)  # noqa: S301 - see above
    error: Exception = kind.__new__(kind, *arguments)
    error.args = arguments
    error.__dict__.update(state)
    return error


class GroupProcess(Generic[C, R]):
    """Runs groups in `python -m module`, which calls `serve_groups`; `argument` is what that process is told first."""

    def __init__(self, module: str, argument: object, codec: Codec[C, R]) -> None:
        self._module = module
        self._argument = argument
        self._codec = codec
        self._starting = asyncio.Lock()
        self._wire: _Wire | None = None
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Starts the process unless it runs. Raises StoreUnavailable when it can't work, saying why."""
        async with self._starting:
            if self._wire is not None and self._wire.open:
                return
            await self._end()
            ours, theirs = socket.socketpair()
            with theirs:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", self._module, str(theirs.fileno()), pass_fds=[theirs.fileno()]
                )
            _, self._wire = await asyncio.get_running_loop().create_connection(_Wire, sock=ours)
            _good(await self._wire.ask(pickle.dumps(self._argument)))

    async def run_group(self, commands: Sequence[C]) -> list[R | Exception]:
        """What the other process's `run_group` returned or raised; StoreUnavailable when it ended meanwhile."""
        if self._wire is None or not self._wire.open:
            await self.start()
        assert self._wire is not None
        return self._codec.unpack_results(_good(await self._wire.ask(self._codec.pack_commands(commands))))

    async def close(self) -> None:
        """Ends the process once it has done what it was given."""
        async with self._starting:
            await self._end()

    async def _end(self) -> None:
        if self._wire is not None:
            self._wire.close()
        process, self._process, self._wire = self._process, None, None
        if process is None:
            return
        try:
            async with asyncio.timeout(STOP_SECONDS_MAX):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


class _Wire(asyncio.Protocol):
    """Our end of the socket: frames out, and answers to them in order."""

    def __init__(self) -> None:
        self.open = False
        self._transport: asyncio.Transport | None = None
        self._asked: deque[asyncio.Future[bytes]] = deque()
        self._unread = bytearray()

    def ask(self, body: bytes) -> asyncio.Future[bytes]:
        """The answer's body; StoreUnavailable when none will come."""
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        if self._transport is None or not self.open:
            answer.set_exception(_ended())
            return answer
        self._asked.append(answer)
        self._transport.write(len(body).to_bytes(_HEAD_BYTES, "big") + body)
        return answer

    def close(self) -> None:
        """No more frames; the other end stops when it has read those that were sent."""
        self.open = False
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is there from the beginning."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.open = True

    def data_received(self, data: bytes) -> None:
        """Hand whole frames to who asked, oldest first."""
        unread = self._unread
        unread += data
        while len(unread) >= _HEAD_BYTES:
            end = _HEAD_BYTES + int.from_bytes(unread[:_HEAD_BYTES], "big")
            if len(unread) < end:
                return
            body = bytes(unread[_HEAD_BYTES:end])
            del unread[:end]
            answer = self._asked.popleft()
            if not answer.done():
                answer.set_result(body)

    def connection_lost(self, _error: Exception | None) -> None:
        """The other process has ended, or we are closing."""
        self.open = False
        while self._asked:
            answer = self._asked.popleft()
            if not answer.done():
                answer.set_exception(_ended())


def _ended() -> StoreUnavailable:
    return StoreUnavailable("the process that runs the groups has ended, so that nobody knows what came of the last")


def _good(answer: bytes) -> bytes:
    """The body of a good answer; raises what the other process raised."""
    if answer[:1] == _ERROR:
        raise unpack_error(answer[1:])
    return answer[1:]


def serve_groups(codec: Codec[C, R], open_store: OpenStore[C, R]) -> None:
    """The other process: opens the store that the argument names, and runs groups until the socket is closed.

    `open_store(argument)` gives `run_group` for the length of its block.
    """
    # What a terminal or a container sends to all processes is for the parent, which has groups to send while it drains.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as wire:
        asyncio.run(_serve(wire, codec, open_store))


async def _serve(wire: socket.socket, codec: Codec[C, R], open_store: OpenStore[C, R]) -> None:
    reader, writer = await asyncio.open_connection(sock=wire)
    # The socket's end is the only way out: the parent has closed it, or is no more.
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        argument = pickle.loads(await _frame(reader))  # noqa: S301 - from the process that started this one
        try:
            async with open_store(argument) as run_group:
                collect_seldom()
                _answer(writer, _READY)
                while True:
                    _answer(writer, await _group_answer(codec, run_group, await _frame(reader)))
        except (asyncio.IncompleteReadError, ConnectionError):
            raise
        except Exception as error:
            _answer(writer, _failure(error))
            await writer.drain()


async def _group_answer(codec: Codec[C, R], run_group: RunGroup[C, R], body: bytes) -> bytes:
    try:
        return _RESULTS + codec.pack_results(await run_group(codec.unpack_commands(body)))
    except Exception as error:
        return _failure(error)


def _failure(error: Exception) -> bytes:
    """The exception for the parent, with the place where it was raised as a note."""
    error.add_note("".join(traceback.format_exception(error)))
    return _ERROR + pack_error(error)


async def _frame(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(int.from_bytes(await reader.readexactly(_HEAD_BYTES), "big"))


def _answer(writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(len(body).to_bytes(_HEAD_BYTES, "big") + body)
