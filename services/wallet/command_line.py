"""What the wallet does on the command line beside serving: `python -m services.wallet statement alice`."""

import argparse
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

from services.chassis import journal
from services.chassis.command import Command, Failed
from services.chassis.database import Database
from services.wallet.audit import Progress
from services.wallet.grpc_messages import transaction_message
from services.wallet.settings import WalletSettings
from services.wallet.statement import FORMATS, Line, heading, read_time, text_of, time_of
from services.wallet.store_audit import Audit

TIME_US_MAX: Final = 2**63 - 1

Opened = Callable[[WalletSettings], AbstractAsyncContextManager[Database]]
Scratch = Callable[[], AbstractAsyncContextManager[Database]]


def statement_command(opened: Opened) -> Command[WalletSettings]:
    """`statement`: an account's whole history, or a part of it, to stdout."""

    async def run(settings: WalletSettings, asked: argparse.Namespace) -> None:
        since_us = _time("--from", asked.since, 0)
        until_us = _time("--to", asked.until, TIME_US_MAX)
        # A locale may not know every letter, and a CSV's lines end in CR LF wherever it is written.
        sys.stdout.reconfigure(encoding="utf-8", newline="")  # type: ignore[union-attr]
        async with opened(settings) as database:
            revision = await newest_revision(database, asked.account)
            sys.stdout.write(heading(asked.format))
            async for lines in statement(database, revision, since_us, until_us):
                sys.stdout.write(text_of(lines, asked.format))

    return Command("statement", "write an account's history, oldest row first, to stdout", _add_arguments, run)


def verify_command(opened: Opened, scratch: Scratch) -> Command[WalletSettings]:
    """`verify`: audits the whole ledger, as VerifyLedger does, without a server."""

    async def run(settings: WalletSettings, asked: argparse.Namespace) -> None:
        async with opened(settings) as database:
            async for event in Audit(database, scratch).run(asked.up_to_revision):
                if isinstance(event, Progress):
                    _tell(event)
                elif event.fault is not None:
                    fault = event.fault
                    found = f" (expected {fault.expected or '-'}, found {fault.found or '-'})"
                    raise Failed(f"the ledger is damaged at revision {fault.revision}{found}: {fault.message}")
                else:
                    counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in event.counts.items())
                    print(f"intact up to revision {event.revision}, hash {event.hash}: {counts}")

    return Command("verify", "rebuild the ledger from its journal and compare", _add_verify_arguments, run)


def _add_verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--up-to-revision", type=int, default=0, help="the last revision to check (the newest)")


def _tell(progress: Progress) -> None:
    of = f" of {progress.total}" if progress.total else ""
    print(f"{progress.step}: {progress.done}{of} rows", file=sys.stderr)


async def newest_revision(database: Database, account_id: str) -> int:
    """The account's newest row in the journal; raises Failed when there is no such account."""
    async with database.reading() as tx:
        account = await tx.row("get_account", account_id=account_id)
    if account is None:
        raise Failed(f"there is no account {account_id!r}")
    return int(account["revision"])


async def statement(
    database: Database, revision: int, since_us: int = 0, until_us: int = TIME_US_MAX
) -> AsyncIterator[list[Line]]:
    """The pages of a statement up to the account's row of this revision: since_us <= time < until_us, oldest first."""
    async for rows in journal.history(database, revision, since_us=since_us):
        yield [_line(row) for row in rows if row.time_us < until_us]
        if rows[-1].time_us >= until_us:
            return


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("account", help="the account's id")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="one JSON object a line, or CSV")
    parser.add_argument("--from", dest="since", metavar="TIME", help="leave out what was before this time (RFC 3339)")
    parser.add_argument("--to", dest="until", metavar="TIME", help="leave out what was at this time or later")


def _time(option: str, text: str | None, absent_us: int) -> int:
    if text is None:
        return absent_us
    try:
        return read_time(text)
    except ValueError as error:
        raise Failed(f"{option}: {error}") from error


def _line(row: journal.Row) -> Line:
    told = transaction_message(row)
    return Line(
        revision=row.revision,
        time=time_of(row.time_us),
        kind=row.kind,
        balance_change=told.balance_change,
        held_change=told.held_change,
        balance=told.balance,
        held=told.held,
        counterparty=told.counterparty,
        actor=told.actor,
        reservation_id=told.reservation_id,
        created_by=told.created_by,
        key=told.key,
        reference=told.reference,
        lot_id=told.lot_id or None,
        peer_account_id=told.peer_account_id,
        offer_id=told.offer_id,
    )
