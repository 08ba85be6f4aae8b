"""Servers and load clients in processes of their own, so that none is measured with another's work."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, Final, TypeVar

STOP_SECONDS_MAX: Final = 30.0

# Forking would take grpc's threads apart.
_spawn = multiprocessing.get_context("spawn")
T = TypeVar("T")

Announce = Callable[[int], None]
ServerMain = Callable[..., Awaitable[None]]


@contextlib.asynccontextmanager
async def server_process(main: ServerMain, *args: Any) -> AsyncIterator[int]:
    """Run `await main(announce, *args)` in a process until the end of the block, which sends SIGTERM; its port.

    `main` is importable by name, calls announce(port) when it listens, and ends at SIGTERM by itself or at once.
    """
    ours, theirs = _spawn.Pipe(duplex=False)
    process = _spawn.Process(target=_run_server, args=(theirs, main, *args), daemon=True)
    process.start()
    theirs.close()
    try:
        yield await asyncio.to_thread(ours.recv)
    finally:
        ours.close()
        process.terminate()
        await asyncio.to_thread(process.join, STOP_SECONDS_MAX)
        process.close()


def _run_server(ready: Connection, main: ServerMain, *args: Any) -> None:
    async def run() -> None:
        await main(ready.send, *args)

    asyncio.run(run())


@contextlib.contextmanager
def load_process() -> Iterator[Callable[..., Awaitable[Any]]]:
    """A process for load clients: `await call(function, *args)` runs a blocking function in it."""
    with ProcessPoolExecutor(1, mp_context=_spawn) as pool:

        def call(function: Callable[..., T], *args: Any) -> Awaitable[T]:
            return asyncio.get_running_loop().run_in_executor(pool, function, *args)

        yield call
