"""What a group needs of the economy: loaded only where a command of it has a part in the group.

Points, streaks and counters belong to accounts whose tokens are locked before, so that they need no lock of their own.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from services.chassis import journal
from services.chassis.database import Database, Transaction
from services.wallet import calendar_day
from services.wallet.commands import Award, Convert, Earn, Moment, RecordActivity
from services.wallet.earning import CONVERT, EVER, achievement_counter, achievement_key, activity_counter
from services.wallet.economy import FIRST_JOB, InForce, Rules, in_force
from services.wallet.holdings import (
    TOKEN,
    WALLET,
    Account,
    CounterKey,
    CounterRecord,
    Earning,
    Key,
    RuleSetRecord,
    State,
    Streak,
)
from services.wallet.market import COUNTER
from services.wallet.store_reads import as_of_now
from services.wallet.store_rows import encode


@dataclass(slots=True)
class EconomyNames:
    """What the commands of a group name of the economy."""

    accounts: set[str] = field(default_factory=set)
    keys: set[Key] = field(default_factory=set)
    daily: set[tuple[str, str]] = field(default_factory=set)
    """(account, counter of a day)."""
    ever: set[tuple[str, str]] = field(default_factory=set)
    """(account, counter that is for ever)."""
    puts: bool = False
    """Whether earning rules are put."""
    commits: bool = False
    """Whether a hold is committed, which may be an account's first."""

    def add(self, command: Earn) -> None:
        """Takes in what a command names."""
        account_id = command.account_id
        self.accounts.add(account_id)
        match command:
            case RecordActivity():
                self.keys.add((command.actor, command.activity_id))
                self.daily.add((account_id, activity_counter(command.activity)))
            case Convert():
                self.keys.add((command.actor, command.conversion_id))
                self.daily.add((account_id, CONVERT))
            case Award():
                self.keys.add((WALLET, achievement_key(command.achievement, account_id)))
                self.ever.add((account_id, achievement_counter(command.achievement)))
            case _:
                self.keys.add((command.actor, command.claim_id))


class Standing(NamedTuple):
    """What an account has earned and used, at one instant: as the next command will find it."""

    account: Account
    points: Account | None
    streak: Streak | None
    counters: Sequence[CounterRecord]
    """Of today, of this month, and for ever."""
    in_force: InForce
    moment: Moment


async def load_economy(
    tx: Transaction, state: State, names: EconomyNames, account_ids: Collection[str], moment: Moment
) -> None:
    """Adds to a group's state what its commands may need of the economy; its accounts are loaded."""
    opens = any((account_id, TOKEN) not in state.accounts for account_id in account_ids)
    new_earners = _without_commit(state) if names.commits else set()
    if not (opens or new_earners or names.puts or names.accounts):
        return
    state.rule_sets = {row[0]: RuleSetRecord(*row) for row in await tx.rows("load_rule_sets")}
    if not (names.accounts or new_earners):
        return
    if not state.issued:
        state.issued = sum(row[0] for row in await tx.rows("load_issued"))
    ids = encode(sorted(names.accounts | new_earners))
    queries = (
        ("load_points", {"ids": ids}),
        ("load_streaks", {"ids": ids}),
        ("load_earnings", {"keys": encode(sorted(names.keys))}),
        ("load_counters", {"keys": encode(sorted(_counters(state, names, new_earners, moment)))}),
    )
    points, streaks, earnings, counters = await tx.rows_all(queries)
    for row in points:
        state.accounts[row[0], row[1]] = Account(*row)
    state.streaks = {row[0]: Streak(*row) for row in streaks}
    state.earnings = {(row[0], row[1]): Earning(*row) for row in earnings}
    state.counters = {(row[0], row[1], row[2]): CounterRecord(*row) for row in counters}


def _without_commit(state: State) -> set[str]:
    """Accounts of the group that have never paid for a committed reservation."""
    return {account.account_id for account in state.accounts.values() if not account.worked}


def _counters(state: State, names: EconomyNames, new_earners: Collection[str], moment: Moment) -> set[CounterKey]:
    day, first = moment.day, achievement_counter(FIRST_JOB)
    found: set[CounterKey] = {(account_id, counter, day) for account_id, counter in names.daily}
    found |= {(account_id, counter, EVER) for account_id, counter in names.ever}
    found |= {(account_id, first, EVER) for account_id in new_earners}
    for account_id in names.accounts:
        _, rules = in_force(moment.rules, state.rule_sets.values(), account_id, moment.now_us)
        own = [name for name, each in rules.achievements.items() if each.by_wallet]
        found |= {(account_id, achievement_counter(name), EVER) for name in own}
    return found


class EconomyReads:
    """What can be asked of the economy without changing it."""

    def __init__(self, database: Database, rules: Rules) -> None:
        self._database = database
        self._rules = rules
        self._zone = calendar_day.zone_of(rules.zone)

    async def standing(self, account_id: str) -> Standing | None:
        """What an account has earned and used; None when there is no such account."""
        async with self._database.reading() as tx:
            row = await tx.row("get_account", account_id=account_id)
            if row is None:
                return None
            head = await journal.read_head(tx)
            moment = Moment(max(await tx.now_us(), head.time_us), self._rules, self._zone)
            account, _ = await as_of_now(tx, Account(*row), head.revision, moment)
            sets = [RuleSetRecord(*each) for each in await tx.rows("load_rule_sets")]
            points = await tx.row("get_points", account_id=account_id)
            streak = await tx.row("get_streak", account_id=account_id)
            since_day = calendar_day.month_of(moment.day)
            counters = await tx.rows("list_counters", account_id=account_id, since_day=since_day)
            # Offers whose time has passed count no longer, whether or not a sweep has run.
            offered = await tx.rows("list_due_offered", account_id=account_id, now_us=moment.now_us)
        back = {(COUNTER, each["day"]): each["due"] for each in offered}
        counted = [CounterRecord(*each) for each in counters]
        return Standing(
            account,
            None if points is None else Account(*points),
            None if streak is None else Streak(*streak),
            [each._replace(amount=each.amount - back.get((each.counter, each.day), 0)) for each in counted],
            in_force(self._rules, sets, account_id, moment.now_us),
            moment,
        )

    async def rule_sets(self) -> list[RuleSetRecord]:
        """All versions of the earning rules that were put, in the order in which they were."""
        async with self._database.reading() as tx:
            return [RuleSetRecord(*row) for row in await tx.rows("load_rule_sets")]
