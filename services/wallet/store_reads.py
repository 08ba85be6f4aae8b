"""What can be asked of the ledger without changing it: everything as it is now, whether or not a sweep has run."""

from collections.abc import Sequence
from typing import NamedTuple

from services.chassis import journal
from services.chassis.database import Transaction
from services.chassis.errors import StoreUnavailable
from services.wallet.commands import Moment
from services.wallet.holdings import TOKEN, Account, Lot, Reservation, State
from services.wallet.lot import spending_order
from services.wallet.reservation import as_of
from services.wallet.store_history import History
from services.wallet.sweep import end_due

DUE_HOLDS_MAX = 1_000
"""Overdue holds that a read looks at in one page."""
DUE_PAGES_MAX = 1_000


class Holdings(NamedTuple):
    """An account as it is now, with its lots in the order in which they are spent, and the journal's head."""

    account: Account
    lots: Sequence[Lot]
    """A lot that the next sweep will make has the id 0."""
    head: journal.Head


class Place(NamedTuple):
    """A place in the list of an account's open reservations."""

    expire_time_us: int
    created_by: str
    reservation_id: str


FIRST_PLACE = Place(0, "", "")


class Reads(History):
    """The reading half of the wallet's database; each method sees one consistent snapshot."""

    async def holdings(self, account_id: str) -> Holdings | None:
        """An account and its lots: what has ended counts no longer. None when there is no such account."""
        async with self._database.reading() as tx:
            row = await tx.row("get_account", account_id=account_id)
            if row is None:
                return None
            head = await journal.read_head(tx)
            moment = Moment(max(await tx.now_us(), head.time_us), self._rules)
            account, lots = await as_of_now(tx, Account(*row), head.revision, moment)
        return Holdings(account, lots, head)

    async def account(self, account_id: str) -> Account | None:
        """An account as it is now."""
        found = await self.holdings(account_id)
        return None if found is None else found.account

    async def lots(self, account_id: str) -> Sequence[Lot]:
        """The lots of an account that have tokens left, in the order in which they are spent."""
        found = await self.holdings(account_id)
        return () if found is None else found.lots

    async def reservation(self, created_by: str, reservation_id: str) -> Reservation | None:
        """A reservation as it is now: a hold whose time has passed reads as expired."""
        async with self._database.reading() as tx:
            row = await tx.row("get_reservation", created_by=created_by, reservation_id=reservation_id)
            if row is None:
                return None
            return as_of(Reservation(*row), await decision_time_us(tx))

    async def open_reservations(self, account_id: str, after: Place, limit: int) -> list[Reservation] | None:
        """The reservations that an account pays for and that are held now, at most `limit` behind a place.

        Those that end first come first. None for an account that does not exist.
        """
        async with self._database.reading() as tx:
            if await tx.row("get_account", account_id=account_id) is None:
                return None
            # What is overdue is not open any more, and stands before everything that is.
            after = max(after, Place(await decision_time_us(tx) + 1, "", ""))
            rows = await tx.rows(
                "list_open_reservations",
                account_id=account_id,
                after_us=after.expire_time_us,
                after_created_by=after.created_by,
                after_reservation_id=after.reservation_id,
                limit=limit,
            )
        return [Reservation(*row) for row in rows]

    async def revision(self) -> int:
        """The journal's newest revision."""
        async with self._database.reading() as tx:
            return (await journal.read_head(tx)).revision

    async def now_us(self) -> int:
        """The time at which a command would be decided now."""
        async with self._database.reading() as tx:
            return await decision_time_us(tx)

    async def due_accounts(self, limit: int) -> list[str]:
        """Accounts on which something is due, longest overdue first."""
        async with self._database.reading() as tx:
            rows = await tx.rows("list_due_accounts", now_us=await tx.now_us(), limit=limit)
        return [row["account_id"] for row in rows]

    async def asset_sums(self) -> dict[str, int]:
        """The sum of all balances per asset, system accounts included: 0 unless something is badly wrong."""
        async with self._database.reading() as tx:
            return {row["asset"]: row["balance"] for row in await tx.rows("sum_balances")}


async def decision_time_us(tx: Transaction) -> int:
    """The time at which a group would be decided now: never before the journal's last row, whatever the clock does."""
    return max(await tx.now_us(), (await journal.read_head(tx)).time_us)


async def as_of_now(tx: Transaction, account: Account, revision: int, moment: Moment) -> tuple[Account, Sequence[Lot]]:
    """A stored account as the next command will find it, and its lots in the order in which they are spent."""
    account_id = account.account_id
    is_due = account.due_time_us is not None and account.due_time_us <= moment.now_us
    if is_due:
        row = await tx.row("get_due_offered", account_id=account_id, now_us=moment.now_us)
        account = account._replace(balance=account.balance + (row["due"] if row else 0))
    if not account.lots:
        if is_due:
            row = await tx.row("get_due_amount", account_id=account_id, now_us=moment.now_us)
            account = account._replace(held=account.held - (row["due"] if row else 0))
        return account, ()
    # Who has spent what is not asked here, and so not counted.
    uncounted = account._replace(spend_since=0)
    state = State(accounts={(account_id, TOKEN): uncounted}, revision=revision)
    state.add_lots(Lot(*row) for row in await tx.rows("list_lots", account_id=account_id))
    if is_due:
        await _end_due(tx, state, account_id, moment)
    lots = spending_order(lot for lot in state.lots.get(account_id, {}).values() if lot.remaining)
    # A change that is not written yet has no revision: what it makes is shown without an id, but in its place.
    named = [lot if lot.lot_id <= revision else lot._replace(lot_id=0) for lot in lots]
    after = state.accounts[account_id, TOKEN]
    return after._replace(revision=account.revision, spend_since=account.spend_since), named


async def _end_due(tx: Transaction, state: State, account_id: str, moment: Moment) -> None:
    """Ends in memory what the next sweep will end in the database."""
    after_us, after_revision = 0, 0
    for _ in range(DUE_PAGES_MAX):
        rows = await tx.rows(
            "list_due_reservations",
            account_id=account_id,
            now_us=moment.now_us,
            after_us=after_us,
            after_revision=after_revision,
            limit=DUE_HOLDS_MAX,
        )
        due = [Reservation(*row)._replace(spend_day=0) for row in rows]
        state.reservations = {(each.created_by, each.reservation_id): each for each in due}
        more = len(due) == DUE_HOLDS_MAX
        end_due(state, [account_id], moment, due[-1].expire_time_us if more else moment.now_us + 1)
        if not more:
            return
        after_us, after_revision = due[-1].expire_time_us, due[-1].revision
    raise StoreUnavailable("more holds are overdue than a read may look at")
