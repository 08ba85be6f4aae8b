"""What teams declare, held against every row that concerns one. Written from the declarations, not from the code.

A day's count of a member is what its reservations of that day hold or have taken: the day of the Reserve, by the
judge's own calendar, whatever the rows say that they have counted.
"""

from collections import Counter
from collections.abc import Iterator
from datetime import date
from typing import Final, NamedTuple

from services.wallet.holdings import Entry
from services.wallet.sharing import Role

ENDS: Final = frozenset({"commit", "release", "expire", "amend"})
Limits = tuple[int | None, int | None]


class _Hold(NamedTuple):
    """Who reserved a team's tokens, and the day on which it counts."""

    team_id: str
    member_id: str
    day: int


class TeamPromises:
    """Watches the teams of one world."""

    def __init__(self) -> None:
        self._roles: dict[str, dict[str, int]] = {}
        self._limits: dict[tuple[str, str], Limits] = {}
        self._holds: dict[str, _Hold] = {}
        self._of_day: Counter[tuple[str, str, int]] = Counter()
        self._of_month: Counter[tuple[str, str, int]] = Counter()

    def problems(self, entry: Entry, day: int) -> Iterator[str]:
        """What one row breaks."""
        if entry.kind == "team":
            self._roles[entry.account_id] = {entry.facts["peer"]: int(Role.OWNER)}
            yield from _of_nothing(entry)
        elif entry.kind in ("member", "unmember"):
            yield from self._of_change(entry)
            yield from _of_nothing(entry)
        elif entry.kind == "reserve" and entry.account_id in self._roles:
            yield from self._of_reserve(entry, day)
        elif entry.kind in ENDS and entry.reservation_id in self._holds:
            hold = self._holds[entry.reservation_id]
            yield from self._counted(hold, entry.held_change - entry.balance_change)

    def _of_change(self, entry: Entry) -> Iterator[str]:
        roles, member_id = self._roles[entry.account_id], entry.facts["peer"]
        new_role, old_role = entry.facts.get("role", int(Role.REMOVED)), roles.get(member_id, int(Role.REMOVED))
        yield from self._of_right(entry, {old_role, new_role})
        roles[member_id] = new_role
        if new_role != Role.REMOVED:
            self._limits[entry.account_id, member_id] = entry.facts.get("day_limit"), entry.facts.get("month_limit")
        if Role.OWNER not in roles.values():
            yield f"{entry.account_id} was left without an owner"

    def _of_right(self, entry: Entry, roles: set[int]) -> Iterator[str]:
        """Owners change everybody, managers members, and everybody may leave."""
        acting_id = entry.facts["acting"]
        role = self._roles[entry.account_id].get(acting_id, int(Role.REMOVED))
        leaves = entry.kind == "unmember" and acting_id == entry.facts["peer"] and role != Role.REMOVED
        manages = role == Role.MANAGER and roles <= {Role.REMOVED, Role.MEMBER}
        if not (leaves or manages or role == Role.OWNER):
            yield f"{acting_id}, who is {Role(role).name.lower()}, changed {entry.facts['peer']} in {entry.account_id}"

    def _of_reserve(self, entry: Entry, day: int) -> Iterator[str]:
        member_id = entry.facts["for"]
        if not self._roles[entry.account_id].get(member_id):
            yield f"{member_id}, who is not in {entry.account_id}, spends its tokens"
            return
        hold = self._holds[entry.reservation_id] = _Hold(entry.account_id, member_id, day)
        yield from self._counted(hold, entry.held_change)

    def _counted(self, hold: _Hold, change: int) -> Iterator[str]:
        """Counts on the day of the Reserve and in its month; only what grows can go over a limit."""
        day, month = hold, hold._replace(day=date.fromordinal(hold.day).replace(day=1).toordinal())
        self._of_day[day] += change
        self._of_month[month] += change
        day_limit, month_limit = self._limits.get((hold.team_id, hold.member_id), (None, None))
        if change > 0 and day_limit is not None and self._of_day[day] > day_limit:
            yield f"{hold.member_id} spent {self._of_day[day]} of {hold.team_id} in a day, and may {day_limit}"
        if change > 0 and month_limit is not None and self._of_month[month] > month_limit:
            yield f"{hold.member_id} spent {self._of_month[month]} of {hold.team_id} in a month, and may {month_limit}"


def _of_nothing(entry: Entry) -> Iterator[str]:
    if entry.balance_change or entry.held_change:
        yield f"a change of {entry.account_id}'s members moved its tokens"
