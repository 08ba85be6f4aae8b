"""What callers ask of the ledger about teams, gifts and spending limits. Plain values, as in `commands`. Pure."""

from typing import NamedTuple


class OpenTeam(NamedTuple):
    """Make an account a team; its id is the key."""

    actor: str
    team_id: str
    owner_id: str


class SetMember(NamedTuple):
    """Take somebody into a team, or change what a member may do; (actor, change_id) is the key."""

    actor: str
    team_id: str
    change_id: str
    acting_id: str
    """The member on whose behalf it is asked; empty for who may act for the team's own account."""
    member_id: str
    role: int
    day_limit: int | None
    month_limit: int | None


class RemoveMember(NamedTuple):
    """Take somebody out of a team; (actor, change_id) is the key."""

    actor: str
    team_id: str
    change_id: str
    acting_id: str
    member_id: str


class Give(NamedTuple):
    """Give tokens of one account to another; (actor, gift_id) is the key."""

    actor: str
    account_id: str
    receiver_id: str
    gift_id: str
    amount: int
    reference: str


class SetLimits(NamedTuple):
    """Set the spending limits of an account anew; (actor, change_id) is the key."""

    actor: str
    account_id: str
    change_id: str
    day_limit: int | None
    month_limit: int | None
    reference: str
    may_raise: bool
    """Whether the caller's scopes allow it to raise or remove a limit."""
    counted_to: int = 0
    """Up to which revision the edge has counted what was spent. No part of the fingerprint, nor is what it found."""
    counted: tuple[tuple[int, int], ...] = ()
    """What it found: (day, tokens)."""


ChangeMember = SetMember | RemoveMember
