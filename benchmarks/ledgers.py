"""Large ledgers for benchmarks, written without commands: what commands would have left, hash chain included."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from benchmarks.wallets import BONUS
from services.chassis import journal
from services.chassis.database import Transaction, connect, migrate
from services.wallet.__main__ import MIGRATIONS
from services.wallet.commands import OpenAccount
from services.wallet.economy import Rules
from services.wallet.holdings import Account, Entry, Reservation, ReservationState
from services.wallet.journal_entry import entry_on
from services.wallet.store import Store
from services.wallet.store_rows import account_update, journal_entry
from services.wallet.writer import SQL_FOLDER

CHUNK_RESERVATIONS: Final = 10_000
ACTOR: Final = "bench"
HOLD_US: Final = 3_600_000_000


async def seed(url: str, account_ids: Sequence[str], payers: Iterable[str]) -> list[Account]:
    """Makes a ledger with these accounts and, for each of `payers`, a reservation that was released: two rows.

    Gives the accounts as they are then.
    """
    migrate(url, MIGRATIONS)
    async with await connect(url, [SQL_FOLDER], writes_only=True) as database:
        store = Store(database, Rules(welcome_bonus=BONUS))
        await store.open("seeded")
        outcomes = await store.run_group([OpenAccount(ACTOR, account_id) for account_id in account_ids])
        accounts = {
            each.account.account_id: each.account
            for each in outcomes
            if not isinstance(each, Exception) and each.account
        }
        places = iter(payers)
        run = os.urandom(4).hex()
        numbers = itertools.count()
        while chunk := list(itertools.islice(places, CHUNK_RESERVATIONS)):
            async with database.transaction() as tx:
                await _append(tx, accounts, [(payer, f"{run}-{next(numbers):010d}") for payer in chunk])
    return list(accounts.values())


async def _append(tx: Transaction, accounts: dict[str, Account], made: Sequence[tuple[str, str]]) -> None:
    head = await journal.lock_head(tx)
    now_us = max(time.time_ns() // 1_000, head.time_us)
    entries = [journal_entry(entry) for payer, key in made for entry in _entries(accounts[payer], key, now_us)]
    new_head, rows = journal.chain(head, entries, now_us)
    released = rows[1::2]
    for row in released:
        accounts[row.subject] = accounts[row.subject]._replace(revision=row.revision)
    ended = [_released(row.subject, key, now_us, row.revision) for row, (_, key) in zip(released, made, strict=True)]
    changed = [account_update(accounts[payer]) for payer in dict.fromkeys(payer for payer, _ in made)]
    await tx.finish([("insert_reservation", ended), ("update_account", changed), *journal.statements(new_head, rows)])


def _entries(account: Account, key: str, now_us: int) -> Iterator[Entry]:
    """A hold of 1, and its end; the chain gives them their places in the account's history."""
    facts = {"for": account.account_id, "hold_us": HOLD_US, "expire_time_us": now_us + HOLD_US, "price_version": "v1"}
    yield entry_on(account, "reserve", ACTOR, held_change=1, created_by=ACTOR, reservation_id=key, facts=facts)
    holding = account._replace(held=account.held + 1)
    yield entry_on(holding, "release", ACTOR, held_change=-1, created_by=ACTOR, reservation_id=key)


def _released(payer: str, key: str, now_us: int, revision: int) -> Reservation:
    return Reservation(
        created_by=ACTOR,
        reservation_id=key,
        account_id=payer,
        payer_account_id=payer,
        state=int(ReservationState.RELEASED),
        reserved=1,
        committed=0,
        released=1,
        expired=0,
        refunded=0,
        hold_us=HOLD_US,
        expire_time_us=now_us + HOLD_US,
        create_time_us=now_us,
        price_version="v1",
        reference="",
        commit_amount=None,
        commit_late=0,
        revision=revision,
    )
