"""Teams on the wire: decode, hand to the ledger, encode."""

from collections.abc import Mapping
from typing import Any, Final

from punchcard.wallet.v1 import teams_pb2, teams_pb2_grpc
from services.chassis.auth import current_principal
from services.chassis.fields import Checks
from services.chassis.group_commit import GroupCommitter
from services.wallet import calendar_day, grpc_pages
from services.wallet.commands import Command, Outcome
from services.wallet.grpc_messages import check_account, spending_message, timestamp
from services.wallet.sharing import Member, Role, Team
from services.wallet.sharing_commands import OpenTeam, RemoveMember, SetMember
from services.wallet.sharing_errors import NotAMember, TeamNotFound
from services.wallet.store_sharing import Spender, Spenders, TeamReads

SERVICE: Final = "punchcard.wallet.v1.TeamService"

SCOPES: Final[Mapping[str, str]] = {
    f"/{SERVICE}/OpenTeam": "wallet.team",
    f"/{SERVICE}/SetMember": "wallet.team",
    f"/{SERVICE}/RemoveMember": "wallet.team",
    f"/{SERVICE}/GetTeam": "wallet.read",
    f"/{SERVICE}/ListMembers": "wallet.read",
    f"/{SERVICE}/GetSpending": "wallet.read",
}
"""Which scope a method asks for. A method that is not here is open to nobody."""


class TeamApi(teams_pb2_grpc.TeamServiceServicer):
    """The methods of teams."""

    def __init__(self, committer: GroupCommitter[Command, Outcome], reads: TeamReads) -> None:
        self._committer = committer
        self._reads = reads

    async def OpenTeam(self, request: teams_pb2.OpenTeamRequest, context: Any) -> teams_pb2.OpenTeamResponse:
        checks = Checks()
        team_id = checks.id("team_id", request.team_id)
        owner_id = _other(checks, "owner_account_id", request.owner_account_id, team_id)
        checks.done()
        principal = current_principal()
        check_account(principal, team_id)
        check_account(principal, owner_id)
        outcome = await self._committer.submit(OpenTeam(principal.subject, team_id, owner_id))
        return teams_pb2.OpenTeamResponse(team=_team(outcome), replayed=outcome.replayed)

    async def SetMember(self, request: teams_pb2.SetMemberRequest, context: Any) -> teams_pb2.SetMemberResponse:
        checks = Checks()
        team_id = checks.id("team_id", request.team_id)
        change_id = checks.id("change_id", request.change_id)
        acting_id = checks.optional_id("acting_account_id", request.acting_account_id)
        member_id = _other(checks, "member_account_id", request.member_account_id, team_id)
        role = checks.number("role", request.role, int(Role.OWNER), int(Role.MEMBER))
        day_limit = month_limit = None
        if request.HasField("day_limit"):
            day_limit = checks.amount("day_limit", request.day_limit, 0)
        if request.HasField("month_limit"):
            month_limit = checks.amount("month_limit", request.month_limit, 0)
        checks.done()
        _check_acting(team_id, acting_id)
        actor = current_principal().subject
        command = SetMember(actor, team_id, change_id, acting_id, member_id, role, day_limit, month_limit)
        outcome = await self._committer.submit(command)
        member = outcome.member if outcome.member and outcome.member.is_in else None
        return teams_pb2.SetMemberResponse(
            team=_team(outcome), member=None if member is None else member_message(member), replayed=outcome.replayed
        )

    async def RemoveMember(
        self, request: teams_pb2.RemoveMemberRequest, context: Any
    ) -> teams_pb2.RemoveMemberResponse:
        checks = Checks()
        team_id = checks.id("team_id", request.team_id)
        change_id = checks.id("change_id", request.change_id)
        acting_id = checks.optional_id("acting_account_id", request.acting_account_id)
        member_id = checks.id("member_account_id", request.member_account_id)
        checks.done()
        _check_acting(team_id, acting_id)
        command = RemoveMember(current_principal().subject, team_id, change_id, acting_id, member_id)
        outcome = await self._committer.submit(command)
        return teams_pb2.RemoveMemberResponse(team=_team(outcome), replayed=outcome.replayed)

    async def GetTeam(self, request: teams_pb2.GetTeamRequest, context: Any) -> teams_pb2.GetTeamResponse:
        team_id, acting_id = _reader(request.team_id, request.acting_account_id)
        team = await self._reads.team(team_id, acting_id)
        if team is None:
            raise TeamNotFound(team_id)
        return teams_pb2.GetTeamResponse(team=team_message(team))

    async def ListMembers(self, request: teams_pb2.ListMembersRequest, context: Any) -> teams_pb2.ListMembersResponse:
        size = grpc_pages.page_size(request.page_size)
        team_id, acting_id = _reader(request.team_id, request.acting_account_id)
        after = grpc_pages.members_place(request.page_token, team_id)
        found = await self._reads.members(team_id, acting_id, after, size)
        if found is None:
            raise TeamNotFound(team_id)
        more = len(found.members) == size
        return teams_pb2.ListMembersResponse(
            members=[_spending_message(each, found) for each in found.members],
            next_page_token=grpc_pages.members_token(team_id, found.members[-1].member.member_id) if more else "",
        )

    async def GetSpending(self, request: teams_pb2.GetSpendingRequest, context: Any) -> teams_pb2.GetSpendingResponse:
        checks = Checks()
        member_id = checks.id("member_account_id", request.member_account_id)
        checks.done()
        team_id, acting_id = _reader(request.team_id, request.acting_account_id)
        found = await self._reads.member(team_id, acting_id, member_id)
        if found is None:
            raise TeamNotFound(team_id)
        if not found.members:
            raise NotAMember(team_id, member_id)
        return teams_pb2.GetSpendingResponse(spending=_spending_message(found.members[0], found))


def _other(checks: Checks, field: str, account_id: str, team_id: str) -> str:
    checks.id(field, account_id)
    if account_id and account_id == team_id:
        checks.fail(field, account_id, "must be another account than the team's own")
    return account_id


def _check_acting(team_id: str, acting_id: str) -> None:
    """Whoever names a member must be allowed to act for it, and whoever names none for the team's account."""
    check_account(current_principal(), acting_id or team_id)


def _reader(team_id: str, acting_id: str) -> tuple[str, str]:
    checks = Checks()
    checks.id("team_id", team_id)
    checks.optional_id("acting_account_id", acting_id)
    checks.done()
    _check_acting(team_id, acting_id)
    return team_id, acting_id


def _team(outcome: Outcome) -> teams_pb2.Team:
    if outcome.team is None:
        raise ValueError("a command on a team came to no team")
    return team_message(outcome.team)


def team_message(team: Team) -> teams_pb2.Team:
    """A team."""
    return teams_pb2.Team(
        team_id=team.team_id,
        first_owner_account_id=team.owner_id,
        members=team.members,
        owners=team.owners,
        create_time=timestamp(team.create_time_us),
        revision=team.revision,
    )


def member_message(member: Member) -> teams_pb2.TeamMember:
    """A member of a team."""
    return teams_pb2.TeamMember(
        account_id=member.member_id,
        role=teams_pb2.TeamRole.ValueType(member.role),
        day_limit=member.day_limit,
        month_limit=member.month_limit,
        revision=member.revision,
    )


def _spending_message(each: Spender, found: Spenders) -> teams_pb2.MemberSpending:
    next_day, next_month = found.day + 1, calendar_day.next_month(found.day)
    return teams_pb2.MemberSpending(
        member=member_message(each.member),
        day=spending_message(each.day, each.member.day_limit, calendar_day.start_us(next_day, found.zone)),
        month=spending_message(each.month, each.member.month_limit, calendar_day.start_us(next_month, found.zone)),
    )
