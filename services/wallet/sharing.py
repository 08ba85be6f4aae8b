"""What the ledger keeps of teams, gifts and spending limits. Pure.

Like `holdings`, everything here is a projection that `apply` makes of the journal. The fields are the columns.
"""

from __future__ import annotations

from collections.abc import Mapping
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


class SpendingLimits(NamedTuple):
    """How many tokens an account may spend, as a payer. One without limits stays, if it ever had any."""

    account_id: str
    day_limit: int | None
    """How many tokens in one calendar day; None for as many as there are."""
    month_limit: int | None
    revision: int


class LimitChange(NamedTuple):
    """Spending limits that were set: what its key is compared with."""

    created_by: str
    change_id: str
    account_id: str
    day_limit: int | None
    month_limit: int | None
    reference: str
    revision: int


@dataclass(slots=True)
class Shared:
    """The part of a group's state that only teams, gifts and spending limits have; see `holdings.State`."""

    teams: dict[str, Team] = field(default_factory=dict)
    members: dict[Key, Member] = field(default_factory=dict)
    """By (team, member)."""
    team_changes: dict[Key, TeamChange] = field(default_factory=dict)
    gifts: dict[Key, Gift] = field(default_factory=dict)
    limits: dict[str, SpendingLimits] = field(default_factory=dict)
    limit_changes: dict[Key, LimitChange] = field(default_factory=dict)
    spent: dict[str, Mapping[int, int]] = field(default_factory=dict)
    """By account and day of this month, what it had spent before this group; loaded where limits are set, and no
    projection.
    """

    def copy(self) -> Shared:
        """Another one with the same content."""
        return Shared(
            dict(self.teams),
            dict(self.members),
            dict(self.team_changes),
            dict(self.gifts),
            dict(self.limits),
            dict(self.limit_changes),
            dict(self.spent),
        )


def day_counter(spender: str) -> str:
    """The counter of what was spent of an account in a day: by a team's member, or, of nobody, by all."""
    return f"spend:{spender}" if spender else "spend"


def month_counter(spender: str) -> str:
    """As `day_counter`, in a month."""
    return f"spend_month:{spender}" if spender else "spend_month"
