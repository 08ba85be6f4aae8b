"""Backups of a SQLite database, and going back to one while its service is stopped."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path


def saved(path: Path, name: str) -> Path:
    """A copy of a database file as it is now, with what its -wal file holds."""
    copy = path.with_name(f"{path.name}.{name}")
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    return copy


def restore(path: Path, copy: Path) -> None:
    """Puts a copy in the database's place, as README says."""
    for beside in ("-wal", "-shm"):
        path.with_name(path.name + beside).unlink(missing_ok=True)
    shutil.copyfile(copy, path)
