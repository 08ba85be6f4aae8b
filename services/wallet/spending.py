"""Decisions about spending: what of an account's tokens is counted as spent, and what passes a limit. Pure.

    an account's own limits      all that it pays for
    a member's limits in a team  what the team pays for that member

Both are of a calendar day and of a month. What a hold takes is counted on the day, and in the month, of the Reserve.
What the hold gives back later, at its release, its end or by a smaller Commit, is given back to that day and month,
whenever that is; a refund of what was taken gives nothing back. So a day's count is what its reservations hold or have
taken.

An account without limits of its own counts nothing. When it gets some, what it has spent in this month is found in its
journal and counted at once, so that a limit holds for the whole of the day and month in which it is set.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from services.wallet import calendar_day
from services.wallet.account import find, refuse_closed, same
from services.wallet.commands import Moment, Outcome
from services.wallet.counter import refuse_over
from services.wallet.holdings import TOKEN, Account, Reservation, State
from services.wallet.journal_entry import apply, entry_on
from services.wallet.sharing import LimitChange, Member, SpendingLimits, day_counter, month_counter
from services.wallet.sharing_commands import SetLimits
from services.wallet.sharing_errors import LimitRaiseNotAllowed

ALL: Final = ""
"""Stands for all that an account pays for where a member's id is asked for."""
Counts = list[list[Any]]
"""(counter, day, change), as an entry's fact `counts` has them."""


def set_limits(state: State, command: SetLimits, moment: Moment) -> Outcome:
    """Sets an account's spending limits anew; without any, nothing is counted any more."""
    made = state.shared.limit_changes.get((command.actor, command.change_id))
    if made is not None:
        _refuse_other(made, command)
        return _outcome(state, command.account_id, replayed=True)
    account = find(state, command.account_id)
    if not command.may_raise:
        _refuse_raise(state.shared.limits.get(account.account_id), command)
    refuse_closed(account)
    limits = {"day_limit": command.day_limit, "month_limit": command.month_limit}
    facts: dict[str, Any] = {name: limit for name, limit in limits.items() if limit is not None}
    if facts:
        facts["since"] = account.spend_since or calendar_day.month_of(moment.day)
        if not account.spend_since and (begun := _begun(state, account.account_id, moment)):
            facts["counts"] = begun
    if command.reference:
        facts["reference"] = command.reference
    actor = command.actor
    entry = entry_on(account, "limit", actor, created_by=actor, key=command.change_id, facts=facts)
    apply(state, entry, moment.now_us)
    return _outcome(state, account.account_id, replayed=False)


def _refuse_other(made: LimitChange, command: SetLimits) -> None:
    same("account_id", made.account_id, command.account_id)
    same("day_limit", made.day_limit, command.day_limit)
    same("month_limit", made.month_limit, command.month_limit)
    same("reference", made.reference, command.reference)


def _refuse_raise(before: SpendingLimits | None, command: SetLimits) -> None:
    if before is None:
        return
    for field, current, requested in (
        ("day_limit", before.day_limit, command.day_limit),
        ("month_limit", before.month_limit, command.month_limit),
    ):
        if current is not None and (requested is None or requested > current):
            raise LimitRaiseNotAllowed(command.account_id, field, requested, current)


def _begun(state: State, account_id: str, moment: Moment) -> Counts:
    """What brings the counters of this month, which may be left over from earlier limits, to what was spent."""
    month = calendar_day.month_of(moment.day)
    spent: Counter[int] = Counter(state.shared.spent.get(account_id, {}))
    for entry in state.entries:
        if entry.account_id == account_id and entry.reservation_id:
            found = state.reservations[entry.created_by, entry.reservation_id]
            day = calendar_day.day_of(found.create_time_us, moment.zone)
            spent[day] += _change(entry.balance_change, entry.held_change)
    wanted = {(day_counter(ALL), day): spent[day] for day in range(month, moment.day + 1)}
    wanted[month_counter(ALL), month] = sum(wanted.values())
    counted = {key: _used(state, account_id, *key) for key in wanted}
    return [[*key, amount - counted[key]] for key, amount in wanted.items() if amount != counted[key]]


def refuse_over_own(state: State, account: Account, day: int, amount: int, moment: Moment) -> None:
    """Refuses what would pass the limits of whoever pays, if that has any."""
    if account.spend_since and day >= account.spend_since:
        limits = state.shared.limits[account.account_id]
        refuse_over_limits(state, account.account_id, ALL, limits, day, amount, moment)


def refuse_over_limits(
    state: State,
    account_id: str,
    spender: str,
    limits: SpendingLimits | Member,
    day: int,
    amount: int,
    moment: Moment,
) -> None:
    """Refuses what would pass the limit of a day, or of its month."""
    month = calendar_day.month_of(day)
    # The month first: whom it stops, tomorrow does not help.
    for limit, counter, begins, ends in (
        (limits.month_limit, month_counter(spender), month, calendar_day.next_month(day)),
        (limits.day_limit, day_counter(spender), day, day + 1),
    ):
        if limit is not None:
            resets_at_us = calendar_day.start_us(ends, moment.zone)
            refuse_over(state, account_id, counter, begins, amount, limit, resets_at_us)


def reserve_facts(payer: Account, member_id: str, amount: int, moment: Moment) -> Mapping[str, Any]:
    """What the entry of a Reserve says of whom a team pays for, and of what is counted."""
    facts: dict[str, Any] = {"peer": member_id} if payer.team else {}
    counts = counts_of(member_id, moment.day, amount) if payer.team else []
    if payer.spend_since:
        counts += counts_of(ALL, moment.day, amount)
    return facts | {"counts": counts} if counts else facts


def change_facts(
    state: State, found: Reservation, balance_change: int, held_change: int, moment: Moment
) -> Mapping[str, Any]:
    """The same of an entry that changes a reservation: how the counts of the Reserve's day change."""
    facts: dict[str, Any] = {"peer": found.account_id} if found.spend_day else {}
    change = _change(balance_change, held_change)
    if not change:
        return facts
    counts = counts_of(found.account_id, found.spend_day, change) if found.spend_day else []
    day = own_day(state, found, moment)
    if day:
        # The operator may have moved to another calendar since the Reserve: no count falls below nothing.
        counts += [
            [counter, counted_day, max(change, -_used(state, found.payer_account_id, counter, counted_day))]
            for counter, counted_day, _ in counts_of(ALL, day, change)
        ]
    return facts | {"counts": counts} if counts else facts


def own_day(state: State, found: Reservation, moment: Moment) -> int:
    """The day on which a reservation counts for the limits of whoever pays; 0 where it does not."""
    since = state.accounts[found.payer_account_id, TOKEN].spend_since
    day = calendar_day.day_of(found.create_time_us, moment.zone) if since else 0
    return day if day >= since else 0


def _change(balance_change: int, held_change: int) -> int:
    """How much more an entry spends: what is held and what was taken both count, and no refund gives back."""
    return held_change + max(-balance_change, 0)


def counts_of(spender: str, day: int, change: int) -> Counts:
    """The fact `counts` of an entry by which so much more (or less) of a day's reservations is held or taken."""
    return [[day_counter(spender), day, change], [month_counter(spender), calendar_day.month_of(day), change]]


def _used(state: State, account_id: str, counter: str, day: int) -> int:
    counted = state.counters.get((account_id, counter, day))
    return counted.amount if counted else 0


def _outcome(state: State, account_id: str, *, replayed: bool) -> Outcome:
    return Outcome(state.accounts[account_id, TOKEN], None, replayed, limits=state.shared.limits[account_id])
