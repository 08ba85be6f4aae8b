"""Where the ledger is kept: loads what a group of commands names, lets the ledger decide, writes what changed.

One visible transaction per group, always in this order, which is the lock order on PostgreSQL: learn who pays; lock the
accounts in the order of their ids; lock the reservations; lock the head of the journal; decide; write the projections;
append; end the transaction. Reading a reservation before its account is locked would let a Commit and a Refund from two
replicas both succeed. Holds that are due are read after the head: their accounts are locked, so nobody else wants them.

A crash before the end of the transaction leaves nothing; after it, everything. Nobody is answered in between.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from services.chassis import journal
from services.chassis.database import Database, Transaction
from services.chassis.errors import StoreUnavailable
from services.wallet import ledger
from services.wallet.commands import (
    Amend,
    Command,
    Grant,
    Moment,
    OpenAccount,
    Outcome,
    Refund,
    Reserve,
    Sweep,
)
from services.wallet.economy import Rules
from services.wallet.errors import Refusal
from services.wallet.journal_entry import (
    TOKEN,
    Account,
    AccountKey,
    GrantRecord,
    Operation,
    OperationKey,
    Reservation,
    ReservationKey,
    State,
)
from services.wallet.reservation import as_of, expire_due
from services.wallet.store_rows import account_update, changes, encode, journal_entry, reservation_update

SWEEP_HOLDS_MAX = 1_000
"""Holds expired in one transaction; when more are due, the next transaction goes on before any command is decided."""
ROUNDS_MAX = 1_000
"""Transactions for one group: a further one is needed when a payer was not locked, or when more holds are due."""


class Names(NamedTuple):
    """What a group of commands names, and so what has to be loaded for it."""

    accounts: set[str]
    reservations: set[ReservationKey]
    grants: set[ReservationKey]
    operations: set[OperationKey]


class Due(NamedTuple):
    """What of a group's accounts has to be expired before anything is decided on them."""

    accounts: Sequence[str]
    next_due_us: dict[str, int]
    more: bool
    """Whether even more is due than one transaction sweeps."""


class Loaded(NamedTuple):
    """All that a group works on, locked; when it is decided, and what has to be expired first."""

    state: State
    head: journal.Head
    moment: Moment
    due: Due


class Holdings(NamedTuple):
    """An account as it is now, and the journal's head, of one snapshot: the account holds all up to that revision."""

    account: Account
    head: journal.Head


class Store:
    """The wallet's database: the only writer of the ledger's tables."""

    def __init__(self, database: Database, rules: Rules) -> None:
        self._database = database
        self._rules = rules

    async def run_group(self, commands: Sequence[Command]) -> list[Outcome | Refusal]:
        """Carries out commands in order, in one transaction; each has its own outcome or refusal.

        Raises `StoreUnavailable` (or its subclass for lost races) when nothing of the group was done, or when its end
        is unknown: running it again is safe, because every command carries a key.
        """
        payers: set[str] = set()
        for _ in range(ROUNDS_MAX):
            async with self._database.transaction() as tx:
                state, head, moment, due = await self._load(tx, commands, payers)
                if unlocked := _unlocked_payers(state):
                    # Either a Reserve repeats a key and names another payer than before, or another replica made the
                    # reservation after this group had learnt who pays. Locks are taken in order: begin again with all.
                    payers |= unlocked
                    continue
                loaded = _copy(state)
                _sweep(state, moment, due)
                results = [] if due.more else [_decide(state, command, moment) for command in commands]
                await _save(tx, head, loaded, state, moment.now_us)
            if not due.more:
                return results
        raise StoreUnavailable("more holds are due at once than a group may sweep")

    async def _load(self, tx: Transaction, commands: Sequence[Command], payers: set[str]) -> Loaded:
        names = _names(commands)
        reservations = encode(sorted(names.reservations))
        account_ids = names.accounts | payers
        if any(not isinstance(command, Reserve | Grant | OpenAccount | Sweep) for command in commands):
            account_ids.update(row["payer_account_id"] for row in await tx.rows("learn_payers", keys=reservations))
        # One hop to the database's thread costs more than all the statements; their order is the lock order.
        accounts, held, grants, operations, (head,), *issued = await tx.rows_all(
            [
                ("load_accounts", {"ids": encode(sorted(account_ids))}),
                ("load_reservations", {"keys": reservations}),
                ("load_grants", {"keys": encode(sorted(names.grants))}),
                ("load_operations", {"keys": encode(sorted(names.operations))}),
                journal.LOCK_HEAD,
                *([("load_issued", {})] if names.grants else []),
            ]
        )
        state = State(
            accounts={(row[0], row[1]): Account(*row) for row in accounts},
            reservations={(row[0], row[1]): Reservation(*row) for row in held},
            grants={(row[0], row[1]): GrantRecord(*row) for row in grants},
            operations={(row[0], row[1], row[2]): Operation(*row) for row in operations},
            issued=sum(row[0] for rows in issued for row in rows),
        )
        locked = journal.Head(*head)
        state.revision = locked.revision
        moment = Moment(max(await tx.now_us(), locked.time_us), self._rules)
        return Loaded(state, locked, moment, await _load_due(tx, state, moment.now_us))

    async def open(self, epoch: str) -> int:
        """Starts the ledger if nobody has yet; gives the scale of TOKEN, which the first start has fixed for ever."""
        async with self._database.transaction() as tx:
            await journal.open_head(tx, epoch, await tx.now_us())
            await tx.run("open_asset", asset=TOKEN, scale=self._rules.token_scale)
            row = await tx.row("get_asset_scale", asset=TOKEN)
        return int(row["scale"]) if row else self._rules.token_scale

    async def holdings(self, account_id: str) -> Holdings | None:
        """An account as it is now: holds whose time has passed no longer count as held. None when there is none."""
        async with self._database.reading() as tx:
            row = await tx.row("get_account", account_id=account_id)
            if row is None:
                return None
            head = await journal.read_head(tx)
            account = Account(*row)
            now_us = max(await tx.now_us(), head.time_us)
            if account.due_time_us is None or account.due_time_us > now_us:
                return Holdings(account, head)
            due = await tx.row("get_due_amount", account_id=account_id, now_us=now_us)
        return Holdings(account._replace(held=account.held - (due["due"] if due else 0)), head)

    async def account(self, account_id: str) -> Account | None:
        """An account as it is now."""
        found = await self.holdings(account_id)
        return None if found is None else found.account

    async def reservation(self, created_by: str, reservation_id: str) -> Reservation | None:
        """A reservation as it is now: a hold whose time has passed reads as expired."""
        async with self._database.reading() as tx:
            row = await tx.row("get_reservation", created_by=created_by, reservation_id=reservation_id)
            if row is None:
                return None
            return as_of(Reservation(*row), await _now_us(tx))

    async def transactions(self, account_id: str, before: int | None, limit: int) -> list[journal.Row] | None:
        """An account's journal, newest first: at most `limit` rows from revision `before` (None: from the newest).

        None for an account that does not exist, or when `before` is not a row of it.
        """
        async with self._database.reading() as tx:
            row = await tx.row("get_account", account_id=account_id)
            if row is None:
                return None
            rows = await journal.walk_back(tx, row["revision"] if before is None else before, limit)
        return rows if not rows or rows[0].subject == account_id else None

    async def due_accounts(self, limit: int) -> list[str]:
        """Accounts on which something is due, longest overdue first."""
        async with self._database.reading() as tx:
            rows = await tx.rows("list_due_accounts", now_us=await tx.now_us(), limit=limit)
        return [row["account_id"] for row in rows]

    async def asset_sums(self) -> dict[str, int]:
        """The sum of all balances per asset, system accounts included: 0 unless something is badly wrong."""
        async with self._database.reading() as tx:
            return {row["asset"]: row["balance"] for row in await tx.rows("sum_balances")}


async def _now_us(tx: Transaction) -> int:
    """The time at which a group would be decided now: never before the journal's last row, whatever the clock does."""
    return max(await tx.now_us(), (await journal.read_head(tx)).time_us)


def _names(commands: Iterable[Command]) -> Names:
    names = Names(set(), set(), set(), set())
    for command in commands:
        match command:
            case Reserve():
                names.accounts.add(command.payer_account_id)
                names.reservations.add((command.actor, command.reservation_id))
            case Grant():
                names.accounts.add(command.account_id)
                names.grants.add((command.actor, command.grant_id))
            case OpenAccount() | Sweep():
                names.accounts.add(command.account_id)
            case _:
                names.reservations.add((command.created_by, command.reservation_id))
                if isinstance(command, Refund):
                    names.operations.add((command.created_by, command.reservation_id, command.refund_id))
                elif isinstance(command, Amend):
                    names.operations.add((command.created_by, command.reservation_id, command.amend_id))
    return names


async def _load_due(tx: Transaction, state: State, now_us: int) -> Due:
    due = [
        account.account_id
        for account in state.accounts.values()
        if account.due_time_us is not None and account.due_time_us <= now_us
    ]
    if not due:
        return Due((), {}, False)
    ids = encode(sorted(due))
    rows = await tx.rows("load_due_reservations", ids=ids, now_us=now_us, limit=SWEEP_HOLDS_MAX)
    for row in rows:
        found = Reservation(*row)
        state.reservations[found.created_by, found.reservation_id] = found
    later = await tx.rows("load_next_due", ids=ids, now_us=now_us)
    next_due_us = {row["payer_account_id"]: row["due_time_us"] for row in later}
    return Due(due, next_due_us, len(rows) == SWEEP_HOLDS_MAX)


def _unlocked_payers(state: State) -> set[str]:
    payers = {each.payer_account_id for each in state.reservations.values()}
    return payers - {account_id for account_id, _ in state.accounts} - {""}


def _sweep(state: State, moment: Moment, due: Due) -> None:
    if not due.accounts:
        return
    expire_due(state, moment.now_us)
    if due.more:
        return
    for account_id in due.accounts:
        key: AccountKey = (account_id, TOKEN)
        state.accounts[key] = state.accounts[key]._replace(due_time_us=due.next_due_us.get(account_id))


def _decide(state: State, command: Command, moment: Moment) -> Outcome | Refusal:
    try:
        return ledger.decide(state, command, moment)
    except Refusal as refusal:
        return refusal


def _copy(state: State) -> State:
    return State(
        accounts=dict(state.accounts),
        reservations=dict(state.reservations),
        grants=dict(state.grants),
        operations=dict(state.operations),
    )


async def _save(tx: Transaction, head: journal.Head, loaded: State, state: State, now_us: int) -> None:
    """Writes what differs from what was loaded, and appends the entries to the journal."""
    if not state.entries and loaded.accounts == state.accounts:
        return
    accounts, changed_accounts = changes(loaded.accounts, state.accounts)
    reservations, changed_reservations = changes(loaded.reservations, state.reservations)
    grants, _ = changes(loaded.grants, state.grants)
    operations, _ = changes(loaded.operations, state.operations)
    moves = [(account_id, asset, change) for (account_id, asset), change in state.system.items() if change]
    new_head, rows = journal.chain(head, [journal_entry(entry) for entry in state.entries], now_us)
    await tx.finish(
        [
            ("insert_account", accounts),
            ("update_account", [account_update(account) for account in changed_accounts]),
            ("insert_reservation", reservations),
            ("update_reservation", [reservation_update(each) for each in changed_reservations]),
            ("insert_grant", grants),
            ("insert_operation", operations),
            ("move_system_account", moves),
            *journal.statements(new_head, rows),
        ]
    )
