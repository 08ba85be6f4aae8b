"""What a group needs of spending limits: loaded only where an account of it has any, or is to get some.

Limits and counters belong to accounts whose tokens are locked before, so that they need no lock of their own.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import tzinfo
from typing import Final, NamedTuple

from services.chassis.database import Database, Transaction
from services.chassis.errors import StoreUnavailable
from services.wallet import calendar_day
from services.wallet.commands import Command, Moment, Preview, Reserve
from services.wallet.economy import Rules
from services.wallet.holdings import TOKEN, Account, CounterKey, CounterRecord, State
from services.wallet.sharing import LimitChange, SpendingLimits, day_counter, month_counter
from services.wallet.sharing_commands import SetLimits
from services.wallet.spending import ALL, own_day
from services.wallet.store_reads import decision_time_us
from services.wallet.store_rows import encode
from services.wallet.store_sharing import load_keys

COUNT_ROWS_MAX: Final = 20_000
"""Rows of an account's history that are looked at in one statement."""
COUNT_PAGES_MAX: Final = 100_000

Page = Callable[[], AbstractAsyncContextManager[Transaction]]


@dataclass(slots=True)
class SpendingNames:
    """What the commands of a group name of spending limits."""

    sets: list[SetLimits] = field(default_factory=list)


class Standing(NamedTuple):
    """What an account has spent in the current day and month; `zone` says whose calendar is meant."""

    limits: SpendingLimits
    day_used: int
    month_used: int
    day: int
    zone: tzinfo


async def load_spending(
    tx: Transaction, state: State, names: SpendingNames, commands: Iterable[Command], moment: Moment
) -> None:
    """Adds to a group's state what its commands may need; its accounts, reservations and what is due are loaded."""
    limited = {account.account_id for account in state.accounts.values() if account.spend_since}
    if not (limited or names.sets):
        return
    named = {command.account_id for command in names.sets}
    today = moment.day
    month = range(calendar_day.month_of(today), today + 1)
    days = {(account_id, day) for account_id in named for day in month} | _days(state, limited, commands, moment)
    found = await load_keys(
        tx,
        {
            "load_spending_limits": {(account_id,) for account_id in limited | named},
            "load_limit_changes": {(command.actor, command.change_id) for command in names.sets},
            "load_counters": {key for account_id, day in days for key in _counters(account_id, day)},
        },
    )
    state.shared.limits = {row[0]: SpendingLimits(*row) for row in found["load_spending_limits"]}
    state.shared.limit_changes = {(row[0], row[1]): LimitChange(*row) for row in found["load_limit_changes"]}
    state.counters.update({(row[0], row[1], row[2]): CounterRecord(*row) for row in found["load_counters"]})
    for account_id in named:
        account = state.accounts.get((account_id, TOKEN))
        if account is not None:
            state.shared.spent[account_id] = await _spent(tx, state, account, names, moment)


async def _spent(tx: Transaction, state: State, account: Account, names: SpendingNames, moment: Moment) -> Counter[int]:
    """What an account has spent on each day of this month: as it was counted, or as its journal tells."""
    account_id, today = account.account_id, moment.day
    if account.spend_since:
        keys = {day: (account_id, day_counter(ALL), day) for day in range(calendar_day.month_of(today), today + 1)}
        return Counter({day: state.counters[key].amount for day, key in keys.items() if key in state.counters})
    best = max((each for each in names.sets if each.account_id == account_id), key=lambda each: each.counted_to)
    spent = await _count(lambda: nullcontext(tx), account.revision, best.counted_to, today, moment.zone)
    spent.update(dict(best.counted))
    return spent


def _days(state: State, limited: set[str], commands: Iterable[Command], moment: Moment) -> set[tuple[str, int]]:
    """(account, day) of all that the group may count: new reservations, and those that it may end."""
    if not limited:
        return set()
    days = {
        (each.payer_account_id, own_day(state, each, moment))
        for each in state.reservations.values()
        if each.payer_account_id in limited
    }
    for command in commands:
        reserve = command.reserve if isinstance(command, Preview) else command
        if isinstance(reserve, Reserve) and reserve.payer_account_id in limited:
            days.add((reserve.payer_account_id, moment.day))
    return {(account_id, day) for account_id, day in days if day}


def _counters(account_id: str, day: int) -> tuple[CounterKey, CounterKey]:
    month = calendar_day.month_of(day)
    return (account_id, day_counter(ALL), day), (account_id, month_counter(ALL), month)


async def _count(page: Page, revision: int, after: int, today: int, zone: tzinfo) -> Counter[int]:
    """What an account spent by its rows behind a revision, by the days of this month on which it reserved.

    It walks back from the row `revision`, page by page, as far as the month goes.
    """
    month = calendar_day.month_of(today)
    starts_us = [calendar_day.start_us(day, zone) for day in range(month, today + 2)]
    days = list(zip(range(month, today + 1), starts_us, starts_us[1:], strict=False))
    spent: Counter[int] = Counter()
    for _ in range(COUNT_PAGES_MAX):
        async with page() as tx:
            rows = await tx.rows(
                "sum_spending",
                revision=revision,
                after=after,
                since_us=starts_us[0],
                days=encode(days),
                scan=COUNT_ROWS_MAX,
            )
        if not rows:
            return spent
        spent.update({row["day"]: row["amount"] for row in rows if row["day"]})
        revision = min(row["next_revision"] for row in rows)
    raise StoreUnavailable("an account has a longer history in this month than may be looked at")


class SpendingReads:
    """What can be asked of spending limits without changing them."""

    def __init__(self, database: Database, rules: Rules) -> None:
        self._database = database
        self._zone = calendar_day.zone_of(rules.zone)

    async def counted(self, account_id: str) -> tuple[int, tuple[tuple[int, int], ...]]:
        """What an account without limits has spent in this month, up to which revision: (day, tokens).

        Found before limits are set, page by page: however long its history is, the transaction that sets them holds
        everybody up for its newest rows alone. Nothing, up to revision 0, where nobody has to look.
        """
        async with self._database.reading() as tx:
            row = await tx.row("get_account", account_id=account_id)
            today = calendar_day.day_of(await decision_time_us(tx), self._zone)
        if row is None or Account(*row).spend_since:
            return 0, ()
        revision = Account(*row).revision
        spent = await _count(self._database.reading, revision, 0, today, self._zone)
        return revision, tuple(sorted(spent.items()))

    async def standing(self, account_id: str) -> Standing | None:
        """What an account has spent and may spend; None when there is no such account.

        One without limits has spent 0, as nothing is counted there.
        """
        async with self._database.reading() as tx:
            row = await tx.row("get_account", account_id=account_id)
            if row is None:
                return None
            now_us = await decision_time_us(tx)
            day = calendar_day.day_of(now_us, self._zone)
            found = await tx.row("get_spending_limits", account_id=account_id)
            limits = SpendingLimits(*found) if found else SpendingLimits(account_id, None, None, 0)
            if not Account(*row).spend_since:
                return Standing(limits, 0, 0, day, self._zone)
            used = dict.fromkeys(_counters(account_id, day), 0)
            for each in await tx.rows("load_counters", keys=encode(sorted(used))):
                used[each[0], each[1], each[2]] = CounterRecord(*each).amount
            # Holds whose time has passed count no longer, whether or not a sweep has run.
            begins = {"day_us": day, "month_us": calendar_day.month_of(day)}
            begins_us = {name: calendar_day.start_us(begin, self._zone) for name, begin in begins.items()}
            (due,) = await tx.rows("get_due_own_spending", account_id=account_id, now_us=now_us, **begins_us)
        day_used, month_used = used.values()
        return Standing(limits, day_used - due["day"], month_used - due["month"], day, self._zone)
