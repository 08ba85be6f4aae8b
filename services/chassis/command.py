"""The command line of a service: `python -m services.<name> serve`, `migrate` and its own; what each exits with."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

from services.chassis import journal, logs
from services.chassis.database import Database, dialect_of, migrate, pending, sqlite_path
from services.chassis.errors import ServiceError, StoreDamaged, StoreUnavailable
from services.chassis.garbage import collect_seldom
from services.chassis.server import RefusesToStart, Server
from services.chassis.settings import ServerSettings

EXIT_FAILED: Final = 1

S = TypeVar("S", bound=ServerSettings)


class Failed(Exception):
    """A command could not be done, or found what it was to find; the message says what."""


@dataclass(frozen=True)
class Command(Generic[S]):
    """A command of a service's own. `run` writes its answer to stdout, and raises Failed where it has none."""

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[S, argparse.Namespace], Awaitable[None]]


def run(
    name: str,
    settings_class: type[S],
    migrations: Path,
    running: Callable[[S], AbstractAsyncContextManager[Server]],
    commands: Sequence[Command[S]] = (),
) -> int:
    """Runs what the command line asks for; `running` gives a server that serves until its block ends.

    0 when it ended well, 1 when it could not be done; exits with 2 by itself when it was not understood.
    """
    first_line = (settings_class.__doc__ or "").strip().splitlines()[0]
    asked = _parser(name, first_line, commands).parse_args()
    settings = settings_class.load()
    logs.configure(settings.log_level, settings.log_format)
    own = {command.name: command for command in commands}
    try:
        if asked.command == "migrate":
            migrate(settings.database_url, migrations)
        elif asked.command == "serve":
            asyncio.run(_serve(settings, running))
        else:
            asyncio.run(_answer(own[asked.command], settings, asked))
    except BrokenPipeError:
        # Whoever read the answer has seen enough; Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except StoreDamaged as error:
        print(f"{name}: {_damage(settings.database_url, error)}", file=sys.stderr)
        return EXIT_FAILED
    except StoreUnavailable as error:
        print(f"{name}: {error.detail} (has python -m services.{name} migrate been run?)", file=sys.stderr)
        return EXIT_FAILED
    except (ServiceError, RefusesToStart, Failed, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return EXIT_FAILED
    return 0


def _parser(name: str, description: str, commands: Sequence[Command[S]]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m services.{name}", description=description)
    known = parser.add_subparsers(dest="command", metavar="command", required=True)
    known.add_parser("serve", help="serve calls until SIGTERM or SIGINT")
    known.add_parser("migrate", help="bring the database up to date")
    for command in commands:
        command.add_arguments(known.add_parser(command.name, help=command.help, description=command.help))
    return parser


async def refuse_old_schema(name: str, database: Database, migrations: Path) -> None:
    """Raises RefusesToStart when migrations are missing, saying how to apply them."""
    if behind := await pending(database, migrations):
        raise RefusesToStart(f"the schema is behind by {', '.join(behind)}: run python -m services.{name} migrate")


async def refuse_damage(database: Database) -> None:
    """Raises StoreDamaged where that shows at once: the file's length, the schema, the journal's last rows and head.

    Takes as long for a large database as for a small one. To be called before anything is written.
    """
    await database.check()
    async with database.reading() as tx:
        await journal.check_tail(tx)


def _damage(url: str, error: StoreDamaged) -> str:
    file = f"file {sqlite_path(url)} " if dialect_of(url) == "sqlite" else ""
    copy = "a copy of it and of its -wal file" if file else "a copy of it"
    return (
        f"the database {file}is damaged: {error.detail}.\n"
        f"Stop everything that uses it, keep {copy}, and restore the newest backup: see README, "
        '"When the ledger is damaged".'
    )


async def _serve(settings: S, running: Callable[[S], AbstractAsyncContextManager[Server]]) -> None:
    async with running(settings) as server:
        collect_seldom()
        await server.wait_for_signal()


async def _answer(command: Command[S], settings: S, asked: argparse.Namespace) -> None:
    await command.run(settings, asked)
    sys.stdout.flush()
