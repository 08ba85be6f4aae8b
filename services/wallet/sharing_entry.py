"""What the journal's rows mean for teams, gifts and spending limits; called by `journal_entry.apply`. Pure."""

from __future__ import annotations

from services.wallet.holdings import TOKEN, Entry, State
from services.wallet.sharing import Gift, LimitChange, Member, Role, SpendingLimits, Team, TeamChange


def open_team(state: State, entry: Entry, now_us: int) -> None:
    """Makes an account a team of one member, its owner."""
    team_id, owner_id = entry.account_id, entry.facts["peer"]
    key = (team_id, TOKEN)
    state.accounts[key] = state.accounts[key]._replace(team=1)
    state.shared.teams[team_id] = Team(team_id, entry.created_by, owner_id, 1, 1, now_us, state.revision)
    state.shared.members[team_id, owner_id] = Member(team_id, owner_id, int(Role.OWNER), None, None, state.revision)


def change_member(state: State, entry: Entry, _now_us: int) -> None:
    """Takes a member in, changes it, or takes it out, and remembers the change under its key."""
    shared, facts, team_id, revision = state.shared, entry.facts, entry.account_id, state.revision
    member_id, role = facts["peer"], facts.get("role", int(Role.REMOVED))
    before = shared.members.get((team_id, member_id))
    old_role = before.role if before else int(Role.REMOVED)
    # Who is out keeps its limits: what it still holds may be taken late, within them.
    kept = (before.day_limit, before.month_limit) if before and not role else (None, None)
    limits = (facts.get("day_limit", kept[0]), facts.get("month_limit", kept[1]))
    shared.members[team_id, member_id] = Member(team_id, member_id, role, *limits, revision)
    team = shared.teams[team_id]
    owner, removed = int(Role.OWNER), int(Role.REMOVED)
    shared.teams[team_id] = team._replace(
        members=team.members + (role != removed) - (old_role != removed),
        owners=team.owners + (role == owner) - (old_role == owner),
        revision=revision,
    )
    shared.team_changes[entry.created_by, entry.key] = TeamChange(
        entry.created_by,
        entry.key,
        team_id,
        entry.kind,
        facts.get("acting", ""),
        member_id,
        role,
        facts.get("day_limit"),
        facts.get("month_limit"),
        revision,
    )


def give(state: State, entry: Entry, _now_us: int) -> None:
    """Remembers a gift under its key; its receiver's row, which comes next, says the revision."""
    facts = entry.facts
    state.shared.gifts[entry.created_by, entry.key] = Gift(
        entry.created_by,
        entry.key,
        entry.account_id,
        facts["peer"],
        -entry.balance_change,
        facts.get("reference", ""),
        state.revision + 1,
    )


def receive(_state: State, _entry: Entry, _now_us: int) -> None:
    """The other half of a gift is nothing but the move of its tokens."""


def set_limits(state: State, entry: Entry, _now_us: int) -> None:
    """Sets an account's spending limits, and from which day on they count; remembers the change under its key."""
    facts, key = entry.facts, (entry.account_id, TOKEN)
    limits = (facts.get("day_limit"), facts.get("month_limit"))
    state.accounts[key] = state.accounts[key]._replace(spend_since=facts.get("since", 0))
    state.shared.limits[entry.account_id] = SpendingLimits(entry.account_id, *limits, state.revision)
    state.shared.limit_changes[entry.created_by, entry.key] = LimitChange(
        entry.created_by, entry.key, entry.account_id, *limits, facts.get("reference", ""), state.revision
    )
