"""The command line of a service: `python -m services.<name> serve` and `migrate`, and what each exits with."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final, TypeVar

from services.chassis import logs
from services.chassis.database import Database, migrate, pending
from services.chassis.errors import ServiceError, StoreUnavailable
from services.chassis.server import RefusesToStart, Server
from services.chassis.settings import ServerSettings

EXIT_FAILED: Final = 1

S = TypeVar("S", bound=ServerSettings)


def run(
    name: str,
    settings_class: type[S],
    migrations: Path,
    running: Callable[[S], AbstractAsyncContextManager[Server]],
) -> int:
    """Runs what the command line asks for; `running` gives a server that serves until its block ends.

    0 when it ended well, 1 when it could not be done; exits with 2 by itself when it was not understood.
    """
    first_line = (settings_class.__doc__ or "").strip().splitlines()[0]
    parser = argparse.ArgumentParser(prog=f"python -m services.{name}", description=first_line)
    parser.add_argument("command", choices=["serve", "migrate"], help="serve calls, or bring the database up to date")
    command = parser.parse_args().command
    settings = settings_class.load()
    logs.configure(settings.log_level, settings.log_format)
    try:
        if command == "migrate":
            migrate(settings.database_url, migrations)
        else:
            asyncio.run(_serve(settings, running))
    except StoreUnavailable as error:
        print(f"{name}: {error.detail} (has python -m services.{name} migrate been run?)", file=sys.stderr)
        return EXIT_FAILED
    except (ServiceError, RefusesToStart, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return EXIT_FAILED
    return 0


async def refuse_old_schema(name: str, database: Database, migrations: Path) -> None:
    """Raises RefusesToStart when migrations are missing, saying how to apply them."""
    if behind := await pending(database, migrations):
        raise RefusesToStart(f"the schema is behind by {', '.join(behind)}: run python -m services.{name} migrate")


async def _serve(settings: S, running: Callable[[S], AbstractAsyncContextManager[Server]]) -> None:
    async with running(settings) as server:
        await server.wait_for_signal()
