"""What SQLite's errors mean for whoever asked, and what shows at a glance that its file is damaged."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from services.chassis.errors import StoreDamaged, StoreUnavailable
from services.chassis.sql.transaction import Conflict, Statement

_RETRIABLE: Final = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_LOST: Final = {
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_NOMEM,
}
_DAMAGED: Final = {
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_IOERR_CORRUPTFS,
    sqlite3.SQLITE_IOERR_DATA,
}
# What is written is UTF-8, so that what can't be read as such was not written. The module gives this error no code.
_UNREADABLE: Final = "Could not decode to UTF-8"
# The second is what the module makes of an error of SQLite that quotes a damaged schema.
DRIVER_ERRORS: Final = (sqlite3.Error, UnicodeDecodeError)
_WAL_HEADER_BYTES: Final = 32
_WAL_FRAME_HEADER_BYTES: Final = 24


def translated(error: sqlite3.Error | UnicodeDecodeError) -> Exception:
    """The error that callers know: Conflict, StoreUnavailable or StoreDamaged; the same one for a mistake of ours."""
    extended = getattr(error, "sqlite_errorcode", 0)
    code = extended & 0xFF
    unreadable = isinstance(error, UnicodeDecodeError) or str(error).startswith(_UNREADABLE)
    if unreadable or extended in _DAMAGED or code in _DAMAGED:
        return StoreDamaged(str(error))
    if code in _RETRIABLE:
        return Conflict(str(error))
    return StoreUnavailable(str(error)) if code in _LOST else error


def check_writable(path: Path, connection: sqlite3.Connection) -> None:
    """SQLite reads a file of a format that it does not know, and refuses to write it.

    The file itself is never opened here: when any handle of it is closed, POSIX takes away all locks that the process
    has on it, and whoever closes the database next, alone as it seems, deletes the WAL that we go on writing to.
    """
    try:
        connection.execute("BEGIN IMMEDIATE")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        connection.execute(f"PRAGMA user_version = {version}")
        connection.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_READONLY and os.access(path, os.W_OK):
            raise StoreDamaged(f"{path} says that it is of a format that is not known") from error
        raise


def check_length(path: Path, connection: sqlite3.Connection) -> None:
    """SQLite misses the end of a file only when it reads there, as long as there is a WAL or a part of a page."""
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    if path.stat().st_size // page_bytes >= pages:
        return
    # In this order: what leaves the WAL meanwhile has come into the file before its size is read.
    in_wal = _pages_in_wal(path.with_name(f"{path.name}-wal"), page_bytes)
    file_bytes = path.stat().st_size
    if not in_wal.issuperset(range(file_bytes // page_bytes + 1, pages + 1)):
        raise StoreDamaged(f"{path} has {file_bytes} bytes and should have {pages * page_bytes}")


def _pages_in_wal(wal: Path, page_bytes: int) -> set[int]:
    """The numbers of all pages that a WAL may hold; those of old frames, which count no longer, are among them."""
    numbers: set[int] = set()
    if not wal.exists():
        return numbers
    with wal.open("rb") as file:
        for offset in range(_WAL_HEADER_BYTES, wal.stat().st_size, _WAL_FRAME_HEADER_BYTES + page_bytes):
            file.seek(offset)
            numbers.add(int.from_bytes(file.read(4), "big"))
    return numbers


def check_schema(statements: Sequence[Statement], connection: sqlite3.Connection) -> None:
    """Every statement finds its tables and columns; raises StoreDamaged."""
    for statement in statements:
        try:
            connection.execute(f"EXPLAIN {statement.sql}", [None] * len(statement.parameters)).fetchall()
        except sqlite3.OperationalError as error:
            if translated(error) is not error:
                raise
            raise StoreDamaged(f"the schema is not the one that was made: {error}") from error
