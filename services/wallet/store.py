"""Where the ledger is kept: loads what a group of commands names, lets the ledger decide, writes what changed.

One visible transaction per group, always in this order, which is the lock order on PostgreSQL: learn who pays; lock the
accounts in the order of their ids; lock the reservations; lock the head of the journal; decide; write the projections;
append; end the transaction. Reading a reservation before its account is locked would let a Commit and a Refund from two
replicas both succeed. Holds that are due are read after the head: their accounts are locked, so nobody else wants them.

A crash before the end of the transaction leaves nothing; after it, everything. Nobody is answered in between.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from services.chassis import journal
from services.chassis.database import Row, Transaction
from services.chassis.errors import StoreUnavailable
from services.wallet import gift, ledger, market
from services.wallet.account import welcome_key
from services.wallet.commands import (
    Amend,
    Award,
    ChangeAccount,
    ClaimDaily,
    Command,
    Commit,
    Convert,
    Earn,
    Grant,
    Moment,
    OpenAccount,
    Outcome,
    Preview,
    PutRules,
    RecordActivity,
    Refund,
    Release,
    Reserve,
    Revoke,
    Sweep,
)
from services.wallet.errors import Refusal
from services.wallet.holdings import (
    TOKEN,
    WALLET,
    Account,
    AccountChange,
    AccountKey,
    GrantRecord,
    Key,
    Lot,
    Operation,
    OperationKey,
    Reservation,
    State,
    read_pins,
)
from services.wallet.market_commands import CancelOffer, CreateOffer, OnOffer, TakeOffer
from services.wallet.sharing_commands import ChangeMember, Give, OpenTeam, RemoveMember, SetLimits, SetMember
from services.wallet.store_economy import EconomyNames, load_economy
from services.wallet.store_market import MarketNames, load_market
from services.wallet.store_reads import Reads
from services.wallet.store_rows import encode, journal_entry, statements
from services.wallet.store_sharing import SharingNames, load_sharing
from services.wallet.store_spending import SpendingNames, load_spending
from services.wallet.sweep import end_due, next_end_us

SWEEP_HOLDS_MAX = 1_000
"""Holds expired in one transaction; when more are due, the next transaction goes on before any command is decided."""
ROUNDS_MAX = 1_000
"""Transactions for one group: a further one is needed when a payer was not locked, or when more holds are due."""


class Names(NamedTuple):
    """What a group of commands names, and so what has to be loaded for it."""

    accounts: set[str]
    reservations: set[Key]
    settled: set[Key]
    """Those reservations whose payer the command does not name."""
    grants: set[Key]
    operations: set[OperationKey]
    changes: set[Key]
    economy: EconomyNames
    sharing: SharingNames
    market: MarketNames
    spending: SpendingNames


class Due(NamedTuple):
    """What of a group's accounts has to be ended before anything is decided on them."""

    accounts: Sequence[str]
    next_due_us: dict[str, int]
    horizon_us: int
    """Up to where all that is due was loaded."""
    more: bool
    """Whether even more is due than one transaction sweeps."""


class Loaded(NamedTuple):
    """All that a group works on, locked; when it is decided, and what has to be ended first."""

    state: State
    head: journal.Head
    moment: Moment
    due: Due


class Store(Reads):
    """The wallet's database: the only writer of the ledger's tables."""

    async def run_group(self, commands: Sequence[Command]) -> list[Outcome | Refusal]:
        """Carries out commands in order, in one transaction; each has its own outcome or refusal.

        Raises `StoreUnavailable` (or its subclass for lost races) when nothing of the group was done, or when its end
        is unknown: running it again is safe, because every command carries a key.
        """
        payers: set[str] = set()
        names = _names(commands)
        for _ in range(ROUNDS_MAX):
            async with self._database.transaction() as tx:
                state, head, moment, due = await self._load(tx, commands, names, payers)
                if unlocked := _unlocked_payers(state):
                    # Either a Reserve repeats a key and names another payer than before, or another replica made the
                    # reservation after this group had learnt who pays. Locks are taken in order: begin again with all.
                    payers |= unlocked
                    continue
                loaded = state.copy()
                _sweep(state, moment, due)
                results = [] if due.more else [_decide(state, command, moment) for command in commands]
                await _save(tx, head, loaded, state, moment.now_us)
            if not due.more:
                return results
        raise StoreUnavailable("more holds are due at once than a group may sweep")

    async def _load(self, tx: Transaction, commands: Sequence[Command], names: Names, payers: set[str]) -> Loaded:
        account_ids = names.accounts | payers
        if names.settled:
            keys = encode(sorted(names.settled))
            account_ids.update(row["payer_account_id"] for row in await tx.rows("learn_payers", keys=keys))
        # One hop to the database's thread costs more than all the statements; their order is the lock order.
        found = await _found(tx, names, account_ids)
        state = State(
            accounts={(row[0], row[1]): Account(*row) for row in found["load_accounts"]},
            reservations={(row[0], row[1]): Reservation(*row) for row in found["load_reservations"]},
            grants={(row[0], row[1]): GrantRecord(*row) for row in found["load_grants"]},
            operations={(row[0], row[1], row[2]): Operation(*row) for row in found["load_operations"]},
            changes={(row[0], row[1]): AccountChange(*row) for row in found["load_account_changes"]},
            issued=sum(row[0] for row in found["load_issued"]),
        )
        head = journal.Head(*found["journal_lock"][0])
        state.revision = head.revision
        await _load_lots(tx, state, names.grants)
        moment = Moment(max(await tx.now_us(), head.time_us), self._rules, self._zone)
        await load_economy(tx, state, names.economy, account_ids, moment)
        due = await _load_due(tx, state, moment.now_us)
        await load_market(tx, state, names.market, due.accounts)
        await load_sharing(tx, state, names.sharing, commands, moment)
        await load_spending(tx, state, names.spending, commands, moment)
        return Loaded(state, head, moment, due)

    async def open(self, epoch: str) -> int:
        """Starts the ledger if nobody has yet; gives the scale of TOKEN, which the first start has fixed for ever."""
        async with self._database.transaction() as tx:
            await journal.open_head(tx, epoch, await tx.now_us())
            await tx.run("open_asset", asset=TOKEN, scale=self._rules.token_scale)
            row = await tx.row("get_asset_scale", asset=TOKEN)
        return int(row["scale"]) if row else self._rules.token_scale


def _names(commands: Iterable[Command]) -> Names:
    names = Names(
        set(), set(), set(), set(), set(), set(), EconomyNames(), SharingNames(), MarketNames(), SpendingNames()
    )
    for command in commands:
        _NAMING[type(command)](names, command)
    names.reservations.update(names.settled)
    return names


def _name_reserve(names: Names, command: Reserve) -> None:
    names.accounts.add(command.payer_account_id)
    names.reservations.add((command.actor, command.reservation_id))


def _name_preview(names: Names, command: Preview) -> None:
    _name_reserve(names, command.reserve)


def _name_grant(names: Names, command: Grant) -> None:
    names.accounts.add(command.account_id)
    names.grants.add((command.actor, command.grant_id))


def _name_revoke(names: Names, command: Revoke) -> None:
    names.accounts.add(command.account_id)
    names.grants.add((command.created_by, command.grant_id))


def _name_change(names: Names, command: ChangeAccount) -> None:
    names.accounts.add(command.account_id)
    names.changes.add((command.actor, command.change_id))
    if command.kind == "close":
        names.market.sellers.add(command.account_id)


def _name_account(names: Names, command: OpenAccount | Sweep) -> None:
    names.accounts.add(command.account_id)


def _name_settled(names: Names, command: Commit | Release) -> None:
    names.settled.add((command.created_by, command.reservation_id))
    names.economy.commits |= type(command) is Commit


def _name_refund(names: Names, command: Refund) -> None:
    names.settled.add((command.created_by, command.reservation_id))
    names.operations.add((command.created_by, command.reservation_id, command.refund_id))


def _name_amend(names: Names, command: Amend) -> None:
    names.settled.add((command.created_by, command.reservation_id))
    names.operations.add((command.created_by, command.reservation_id, command.amend_id))


def _name_earner(names: Names, command: Earn) -> None:
    names.accounts.add(command.account_id)
    names.economy.add(command)


def _name_rules(names: Names, _command: PutRules) -> None:
    names.economy.puts = True


def _name_team(names: Names, command: OpenTeam | ChangeMember) -> None:
    names.accounts.add(command.team_id)
    names.sharing.add_team(command)


def _name_gift(names: Names, command: Give) -> None:
    names.accounts.update((command.account_id, command.receiver_id))
    names.grants.add((WALLET, welcome_key(command.account_id)))
    names.economy.daily.add((command.account_id, gift.COUNTER))
    names.economy.accounts.add(command.account_id)
    names.sharing.gifts.add((command.actor, command.gift_id))


def _name_offer(names: Names, command: OnOffer) -> None:
    names.accounts.add(command.account_id)
    names.market.add(command)
    match command:
        case CreateOffer():
            names.grants.add((WALLET, welcome_key(command.account_id)))
            names.economy.daily.add((command.account_id, market.COUNTER))
            names.economy.accounts.add(command.account_id)
        case TakeOffer():
            names.accounts.add(command.seller_id)
            # Both have points.
            names.economy.accounts.update((command.account_id, command.seller_id))
        case _:
            pass


def _name_limits(names: Names, command: SetLimits) -> None:
    names.accounts.add(command.account_id)
    names.spending.sets.append(command)


_NAMING: Final[Mapping[type, Callable[[Names, Any], None]]] = {
    OpenAccount: _name_account,
    Sweep: _name_account,
    Grant: _name_grant,
    Revoke: _name_revoke,
    Reserve: _name_reserve,
    Preview: _name_preview,
    Commit: _name_settled,
    Release: _name_settled,
    Refund: _name_refund,
    Amend: _name_amend,
    ChangeAccount: _name_change,
    ClaimDaily: _name_earner,
    RecordActivity: _name_earner,
    Convert: _name_earner,
    Award: _name_earner,
    PutRules: _name_rules,
    OpenTeam: _name_team,
    SetMember: _name_team,
    RemoveMember: _name_team,
    Give: _name_gift,
    CreateOffer: _name_offer,
    TakeOffer: _name_offer,
    CancelOffer: _name_offer,
    SetLimits: _name_limits,
}


async def _found(tx: Transaction, names: Names, account_ids: set[str]) -> dict[str, Sequence[Row]]:
    """The rows of each query that loads a group; nothing is asked for that no command names."""
    asked: list[tuple[str, str, Collection[Any]]] = [
        ("load_accounts", "ids", account_ids),
        ("load_reservations", "keys", names.reservations),
        ("load_grants", "keys", names.grants),
        ("load_operations", "keys", names.operations),
        ("load_account_changes", "keys", names.changes),
    ]
    queries: list[tuple[str, dict[str, object]]] = [
        (name, {parameter: encode(sorted(values))}) for name, parameter, values in asked if values
    ]
    queries.append(journal.LOCK_HEAD)
    if names.grants or names.economy.accounts:
        queries.append(("load_issued", {}))
    found: dict[str, Sequence[Row]] = dict.fromkeys([*(name for name, _, _ in asked), "load_issued"], ())
    for (name, _), rows in zip(queries, await tx.rows_all(queries), strict=True):
        found[name] = rows
    return found


async def _load_lots(tx: Transaction, state: State, grants: Collection[Key]) -> None:
    """The lots that have a part in the group; none is looked for where there can be none."""
    accounts = [account.account_id for account in state.accounts.values() if account.lots]
    pinned = {lot_id for each in state.reservations.values() if each.pins for lot_id, _ in read_pins(each.pins)}
    keys = [key for key in grants if key in state.grants and state.grants[key].made_a_lot]
    if accounts or pinned or keys:
        parameters = {"account_ids": accounts, "lot_ids": pinned, "keys": keys}
        encoded = {name: encode(sorted(values)) for name, values in parameters.items()}
        state.add_lots(Lot(*row) for row in await tx.rows("load_lots", **encoded))


async def _load_due(tx: Transaction, state: State, now_us: int) -> Due:
    due = [
        account.account_id
        for account in state.accounts.values()
        if account.due_time_us is not None and account.due_time_us <= now_us
    ]
    if not due:
        return Due((), {}, now_us, False)
    ids = encode(sorted(due))
    rows = await tx.rows("load_due_reservations", ids=ids, now_us=now_us, limit=SWEEP_HOLDS_MAX)
    for row in rows:
        found = Reservation(*row)
        state.reservations[found.created_by, found.reservation_id] = found
    later = await tx.rows("load_next_due", ids=ids, now_us=now_us)
    next_due_us = {row["payer_account_id"]: row["due_time_us"] for row in later}
    more = len(rows) == SWEEP_HOLDS_MAX
    horizon_us = Reservation(*rows[-1]).expire_time_us if more else now_us + 1
    return Due(due, next_due_us, horizon_us, more)


def _unlocked_payers(state: State) -> set[str]:
    payers = {each.payer_account_id for each in state.reservations.values()}
    return payers - {account_id for account_id, _ in state.accounts} - {""}


def _sweep(state: State, moment: Moment, due: Due) -> None:
    if not due.accounts:
        return
    end_due(state, due.accounts, moment, due.horizon_us)
    if due.more:
        return
    for account_id in due.accounts:
        key: AccountKey = (account_id, TOKEN)
        ends = (due.next_due_us.get(account_id), next_end_us(state, account_id, moment.now_us))
        next_due_us = min((end_us for end_us in ends if end_us is not None), default=None)
        state.accounts[key] = state.accounts[key]._replace(due_time_us=next_due_us)


def _decide(state: State, command: Command, moment: Moment) -> Outcome | Refusal:
    try:
        return ledger.decide(state, command, moment)
    except Refusal as refusal:
        return refusal


async def _save(tx: Transaction, head: journal.Head, loaded: State, state: State, now_us: int) -> None:
    """Writes what differs from what was loaded, and appends the entries to the journal."""
    if not state.entries and loaded.accounts == state.accounts:
        return
    new_head, rows = journal.chain(head, [journal_entry(entry) for entry in state.entries], now_us)
    await tx.finish([*statements(loaded, state), *journal.statements(new_head, rows)])
