"""What the ledger keeps of teams and gifts. Pure.

Like `holdings`, everything here is a projection that `apply` makes of the journal. The fields are the columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

Key = tuple[str, str]


class Role(IntEnum):
    """What a member of a team may do; the numbers are those of the proto, but for 0, which is never sent."""

    REMOVED = 0
    OWNER = 1
    MANAGER = 2
    MEMBER = 3


class Team(NamedTuple):
    """An account whose tokens its members spend."""

    team_id: str
    """The id of the account."""
    created_by: str
    owner_id: str
    """Its first owner."""
    members: int
    """How many it has, owners included."""
    owners: int
    create_time_us: int
    revision: int


class Member(NamedTuple):
    """Who may spend a team's tokens, and how many. One that was removed stays, with the role REMOVED."""

    team_id: str
    member_id: str
    role: int
    day_limit: int | None
    """How many tokens in one calendar day; None for as many as there are."""
    month_limit: int | None
    revision: int

    @property
    def is_in(self) -> bool:
        """Whether it belongs to the team now."""
        return self.role != Role.REMOVED


class TeamChange(NamedTuple):
    """A change of a team's members that was made: what its key is compared with."""

    created_by: str
    change_id: str
    team_id: str
    kind: str
    """`member` or `unmember`."""
    acting_id: str
    member_id: str
    role: int
    day_limit: int | None
    month_limit: int | None
    revision: int


class Gift(NamedTuple):
    """Tokens that one account gave to another: what its key is compared with."""

    created_by: str
    gift_id: str
    account_id: str
    """Who gave."""
    receiver_id: str
    amount: int
    reference: str
    revision: int
    """Of the receiver's row."""


@dataclass(slots=True)
class Shared:
    """The part of a group's state that only teams and gifts have; see `holdings.State`."""

    teams: dict[str, Team] = field(default_factory=dict)
    members: dict[Key, Member] = field(default_factory=dict)
    """By (team, member)."""
    team_changes: dict[Key, TeamChange] = field(default_factory=dict)
    gifts: dict[Key, Gift] = field(default_factory=dict)

    def copy(self) -> Shared:
        """Another one with the same content."""
        return Shared(dict(self.teams), dict(self.members), dict(self.team_changes), dict(self.gifts))


def day_counter(member_id: str) -> str:
    """The counter, on a team's account, of what a member has spent in a day."""
    return f"spend:{member_id}"


def month_counter(member_id: str) -> str:
    """The counter, on a team's account, of what a member has spent in a month."""
    return f"spend_month:{member_id}"
