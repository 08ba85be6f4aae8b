"""What a group needs of teams and gifts: loaded only where a command or an account has a part in it.

Teams and members belong to accounts whose tokens are locked before, so that they need no lock of their own.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import tzinfo
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from services.chassis.database import Database, Row, Transaction
from services.wallet import calendar_day
from services.wallet.commands import Command, Moment, Preview, Reserve
from services.wallet.economy import Rules
from services.wallet.holdings import CounterKey, CounterRecord, State
from services.wallet.sharing import Gift, Key, Member, Team, TeamChange, day_counter, month_counter
from services.wallet.sharing_commands import ChangeMember, OpenTeam
from services.wallet.store_reads import decision_time_us
from services.wallet.store_rows import encode


@dataclass(slots=True)
class SharingNames:
    """What the commands of a group name of teams and gifts."""

    teams: set[str] = field(default_factory=set)
    members: set[Key] = field(default_factory=set)
    team_changes: set[Key] = field(default_factory=set)
    gifts: set[Key] = field(default_factory=set)

    def add_team(self, command: OpenTeam | ChangeMember) -> None:
        """Takes in what a command on a team names."""
        self.teams.add(command.team_id)
        if isinstance(command, OpenTeam):
            self.members.add((command.team_id, command.owner_id))
            return
        self.members |= {(command.team_id, command.acting_id), (command.team_id, command.member_id)}
        self.team_changes.add((command.actor, command.change_id))


async def load_sharing(
    tx: Transaction, state: State, names: SharingNames, commands: Iterable[Command], moment: Moment
) -> None:
    """Adds to a group's state what its commands may need; its accounts, reservations and what is due are loaded."""
    paying = {account.account_id for account in state.accounts.values() if account.team}
    if not (paying or names.teams or names.gifts):
        return
    spenders = _spenders(state, paying, commands, moment.day)
    asked: dict[str, set[Any]] = {
        "load_teams": {(team_id,) for team_id in names.teams},
        "load_members": names.members | {(team_id, member_id) for team_id, member_id, _ in spenders},
        "load_team_changes": names.team_changes,
        "load_gifts": names.gifts,
        "load_counters": _counters(spenders),
    }
    found = await load_keys(tx, asked)
    shared = state.shared
    shared.teams = {row[0]: Team(*row) for row in found["load_teams"]}
    shared.members = {(row[0], row[1]): Member(*row) for row in found["load_members"]}
    shared.team_changes = {(row[0], row[1]): TeamChange(*row) for row in found["load_team_changes"]}
    shared.gifts = {(row[0], row[1]): Gift(*row) for row in found["load_gifts"]}
    state.counters.update({(row[0], row[1], row[2]): CounterRecord(*row) for row in found["load_counters"]})


async def load_keys(tx: Transaction, asked: Mapping[str, set[Any]]) -> dict[str, Sequence[Row]]:
    """The rows of each query; nothing is asked for that has no key."""
    queries = [(name, {"keys": encode(sorted(keys))}) for name, keys in asked.items() if keys]
    found: dict[str, Sequence[Row]] = dict.fromkeys(asked, ())
    for (name, _), rows in zip(queries, await tx.rows_all(queries), strict=True):
        found[name] = rows
    return found


def _spenders(state: State, paying: set[str], commands: Iterable[Command], today: int) -> set[tuple[str, str, int]]:
    """(team, member, day) of all that the group may count: new reservations, and those that it may end."""
    spenders = {
        (each.payer_account_id, each.account_id, each.spend_day)
        for each in state.reservations.values()
        if each.spend_day
    }
    for command in commands:
        reserve = command.reserve if isinstance(command, Preview) else command
        if isinstance(reserve, Reserve) and reserve.payer_account_id in paying:
            spenders.add((reserve.payer_account_id, reserve.account_id, today))
    return spenders


def _counters(spenders: Iterable[tuple[str, str, int]]) -> set[CounterKey]:
    counters: set[CounterKey] = set()
    for team_id, member_id, day in spenders:
        counters.add((team_id, day_counter(member_id), day))
        counters.add((team_id, month_counter(member_id), calendar_day.month_of(day)))
    return counters


class Spender(NamedTuple):
    """A member, and what it has spent in the current day and month."""

    member: Member
    day: int
    month: int


class Spenders(NamedTuple):
    """Members of a team at one instant; `zone` says whose calendar is meant."""

    members: Sequence[Spender]
    day: int
    zone: tzinfo


class TeamReads:
    """What can be asked of teams without changing them."""

    def __init__(self, database: Database, rules: Rules) -> None:
        self._database = database
        self._zone = ZoneInfo(rules.zone)

    async def team(self, team_id: str, acting_id: str) -> Team | None:
        """A team, as one of its members may see it; with an empty acting_id, whoever acts for its account."""
        async with self._database.reading() as tx:
            return await self._team(tx, team_id, acting_id)

    async def members(self, team_id: str, acting_id: str, after: str, limit: int) -> Spenders | None:
        """At most `limit` members behind one, in the order of their ids; None as for `team`."""
        async with self._database.reading() as tx:
            if await self._team(tx, team_id, acting_id) is None:
                return None
            rows = await tx.rows("list_members", team_id=team_id, after_member_id=after, limit=limit)
            return await self._spenders(tx, team_id, [Member(*row) for row in rows])

    async def member(self, team_id: str, acting_id: str, member_id: str) -> Spenders | None:
        """One member, or nobody; None as for `team`."""
        async with self._database.reading() as tx:
            if await self._team(tx, team_id, acting_id) is None:
                return None
            row = await tx.row("get_member", team_id=team_id, member_id=member_id)
            return await self._spenders(tx, team_id, [Member(*row)] if row else [])

    async def _team(self, tx: Transaction, team_id: str, acting_id: str) -> Team | None:
        if acting_id and await tx.row("get_member", team_id=team_id, member_id=acting_id) is None:
            return None
        row = await tx.row("get_team", team_id=team_id)
        return None if row is None else Team(*row)

    async def _spenders(self, tx: Transaction, team_id: str, members: Sequence[Member]) -> Spenders:
        now_us = await decision_time_us(tx)
        today = calendar_day.day_of(now_us, self._zone)
        month = calendar_day.month_of(today)
        keys = encode(sorted(_counters((team_id, each.member_id, today) for each in members)))
        used: Counter[tuple[str, int]] = Counter()
        for row in await tx.rows("load_counters", keys=keys):
            each = CounterRecord(*row)
            used[each.counter, each.day] = each.amount
        # Holds whose time has passed count no longer, whether or not a sweep has run.
        for row in await tx.rows("list_due_spending", account_id=team_id, now_us=now_us):
            used[day_counter(row["member_id"]), row["spend_day"]] -= row["due"]
            used[month_counter(row["member_id"]), calendar_day.month_of(row["spend_day"])] -= row["due"]
        spenders = [
            Spender(each, used[day_counter(each.member_id), today], used[month_counter(each.member_id), month])
            for each in members
        ]
        return Spenders(spenders, today, self._zone)
