"""Decisions about teams: who is in one, and what a member may spend. Pure.

    owner    takes anybody in and out, in every role; a team always has one
    manager  takes members in and out, and sets their limits
    member   spends the team's tokens, and may leave

How spending is counted is in `spending`.
"""

from typing import Any, Final

from services.wallet.account import find, refuse_closed, same
from services.wallet.commands import Moment, Outcome
from services.wallet.holdings import TOKEN, Account, Entry, State
from services.wallet.journal_entry import apply, entry_on
from services.wallet.sharing import Member, Role, Team
from services.wallet.sharing_commands import ChangeMember, OpenTeam, RemoveMember, SetMember
from services.wallet.sharing_errors import LastOwner, MemberLimit, NotAMember, RoleTooLow, TeamNotFound
from services.wallet.spending import refuse_over_limits

MEMBERS_MAX: Final = 10_000
"""Members of one team."""


def open_team(state: State, command: OpenTeam, moment: Moment) -> Outcome:
    """Makes an account a team. One that is not open yet is opened, without a welcome: its members have had theirs."""
    key = (command.team_id, TOKEN)
    team = state.shared.teams.get(command.team_id)
    if team is not None:
        same("owner_account_id", team.owner_id, command.owner_id)
        return _outcome(state, team.team_id, command.owner_id, replayed=True)
    if key not in state.accounts:
        apply(state, Entry("open", command.actor, command.team_id, created_by=command.actor), moment.now_us)
    account = state.accounts[key]
    refuse_closed(account)
    entry = entry_on(
        account, "team", command.actor, created_by=command.actor, key=command.team_id, facts={"peer": command.owner_id}
    )
    apply(state, entry, moment.now_us)
    return _outcome(state, command.team_id, command.owner_id, replayed=False)


def set_member(state: State, command: SetMember, moment: Moment) -> Outcome:
    """Takes somebody in, or changes the role and the limits of a member."""
    if _was_made(state, command, "member", command.role, command.day_limit, command.month_limit):
        return _outcome(state, command.team_id, command.member_id, replayed=True)
    team, before = _begin(state, command)
    _refuse_last_owner(team, before, command.role)
    if not (before and before.is_in) and team.members >= MEMBERS_MAX:
        raise MemberLimit(team.team_id, MEMBERS_MAX)
    limits = {"day_limit": command.day_limit, "month_limit": command.month_limit}
    facts = {"role": command.role} | {name: limit for name, limit in limits.items() if limit is not None}
    return _change(state, command, "member", facts, moment)


def remove_member(state: State, command: RemoveMember, moment: Moment) -> Outcome:
    """Takes somebody out of a team. What it holds stays held, and may be settled."""
    if _was_made(state, command, "unmember", int(Role.REMOVED), None, None):
        return _outcome(state, command.team_id, command.member_id, replayed=True)
    team, before = _begin(state, command)
    if before is None or not before.is_in:
        raise NotAMember(team.team_id, command.member_id)
    _refuse_last_owner(team, before, int(Role.REMOVED))
    return _change(state, command, "unmember", {}, moment)


def _was_made(
    state: State, command: ChangeMember, kind: str, role: int, day_limit: int | None, month_limit: int | None
) -> bool:
    made = state.shared.team_changes.get((command.actor, command.change_id))
    if made is None:
        return False
    same("team_id", made.team_id, command.team_id)
    same("change_id", f"{made.kind} {command.change_id}", f"{kind} {command.change_id}")
    same("acting_account_id", made.acting_id, command.acting_id)
    same("member_account_id", made.member_id, command.member_id)
    same("role", made.role, role)
    same("day_limit", made.day_limit, day_limit)
    same("month_limit", made.month_limit, month_limit)
    return True


def _begin(state: State, command: ChangeMember) -> tuple[Team, Member | None]:
    """The team and the one who is to be changed, if whoever asks may do that."""
    team = find_team(state, command.team_id)
    acting = _acting(state, command)
    before = state.shared.members.get((team.team_id, command.member_id))
    old_role = before.role if before else int(Role.REMOVED)
    new_role = command.role if isinstance(command, SetMember) else int(Role.REMOVED)
    leaves = isinstance(command, RemoveMember) and acting is not None and acting.member_id == command.member_id
    if acting is not None and not leaves and not _may(acting.role, old_role, new_role):
        raise RoleTooLow(team.team_id, acting.member_id, Role(acting.role).name)
    refuse_closed(find(state, team.team_id))
    return team, before


def _acting(state: State, command: ChangeMember) -> Member | None:
    """The member who asks; None for whoever acts for the team's own account, and may do what an owner may."""
    if not command.acting_id:
        return None
    acting = state.shared.members.get((command.team_id, command.acting_id))
    if acting is None or not acting.is_in:
        # Strangers learn nothing about a team, not even that there is one.
        raise TeamNotFound(command.team_id)
    return acting


def _may(acting_role: int, old_role: int, new_role: int) -> bool:
    if acting_role == Role.OWNER:
        return True
    return acting_role == Role.MANAGER and {old_role, new_role} <= {Role.REMOVED, Role.MEMBER}


def _refuse_last_owner(team: Team, before: Member | None, new_role: int) -> None:
    if before is not None and before.role == Role.OWNER != new_role and team.owners == 1:
        raise LastOwner(team.team_id, before.member_id)


def _change(state: State, command: ChangeMember, kind: str, facts: dict[str, Any], moment: Moment) -> Outcome:
    facts = {"peer": command.member_id, **facts}
    if command.acting_id:
        facts["acting"] = command.acting_id
    entry = entry_on(
        state.accounts[command.team_id, TOKEN],
        kind,
        command.actor,
        created_by=command.actor,
        key=command.change_id,
        facts=facts,
    )
    apply(state, entry, moment.now_us)
    return _outcome(state, command.team_id, command.member_id, replayed=False)


def find_team(state: State, team_id: str) -> Team:
    """The team, or a refusal where there is none."""
    team = state.shared.teams.get(team_id)
    if team is None:
        raise TeamNotFound(team_id)
    return team


def refuse_for_team(state: State, payer: Account, member_id: str, amount: int, moment: Moment) -> None:
    """Refuses to let a team pay for who is not in it, or for more than a member may spend now."""
    if not payer.team:
        return
    member = state.shared.members.get((payer.account_id, member_id))
    if member is None or not member.is_in:
        raise NotAMember(payer.account_id, member_id)
    refuse_over_limit(state, payer.account_id, member_id, moment.day, amount, moment)


def refuse_over_limit(state: State, team_id: str, member_id: str, day: int, amount: int, moment: Moment) -> None:
    """Refuses what would pass a member's limit of a day, or of its month. Who was removed keeps the last limits."""
    member = state.shared.members[team_id, member_id]
    refuse_over_limits(state, team_id, member_id, member, day, amount, moment)


def _outcome(state: State, team_id: str, member_id: str, *, replayed: bool) -> Outcome:
    shared = state.shared
    account = state.accounts[team_id, TOKEN]
    return Outcome(account, None, replayed, team=shared.teams[team_id], member=shared.members.get((team_id, member_id)))
