"""Why the wallet refuses what is asked of teams, gifts and limits: as `errors`, of which these are a part. Pure."""

from services.wallet.errors import Refusal, rfc3339


class TeamNotFound(Refusal):
    """The account is no team, or the caller acts for none of its members."""

    def __init__(self, team_id: str) -> None:
        super().__init__(f"there is no team {team_id!r} that you are in", team_id=team_id)


class RoleTooLow(Refusal):
    """A member asks for a change that its role does not allow."""

    def __init__(self, team_id: str, account_id: str, role: str) -> None:
        super().__init__(
            f"{account_id!r} is {role} in team {team_id!r}, which is too little for this change",
            team_id=team_id,
            account_id=account_id,
            role=role,
        )


class LimitRaiseNotAllowed(Refusal):
    """A spending limit would be raised or removed by somebody who may only lower it."""

    def __init__(self, account_id: str, field: str, requested: int | None, current: int) -> None:
        said = "(absent)" if requested is None else requested
        super().__init__(
            f"{field} of account {account_id!r} is {current}, and only an administrator may make it {said}",
            account_id=account_id,
            field=field,
            requested=said,
            current=current,
        )


class NotAMember(Refusal):
    """A team pays for its members alone."""

    def __init__(self, team_id: str, account_id: str) -> None:
        super().__init__(f"{account_id!r} is not in team {team_id!r}", team_id=team_id, account_id=account_id)


class LastOwner(Refusal):
    """A team would be left without an owner."""

    def __init__(self, team_id: str, account_id: str) -> None:
        super().__init__(
            f"{account_id!r} is the only owner of team {team_id!r}: make somebody else one first",
            team_id=team_id,
            account_id=account_id,
        )


class MemberLimit(Refusal):
    """The team has as many members as it may have."""

    def __init__(self, team_id: str, limit: int) -> None:
        super().__init__(f"team {team_id!r} has {limit} members, and no more may be", team_id=team_id, limit=limit)


class WelcomeLocked(Refusal):
    """A young account would give away what it was welcomed with."""

    def __init__(self, account_id: str, requested: int, available: int, locked: int, unlocks_at_us: int) -> None:
        unlocks_at = rfc3339(unlocks_at_us)
        super().__init__(
            f"account {account_id!r} may give {available} ({locked} are its welcome bonus until {unlocks_at}), and "
            f"{requested} were asked for",
            account_id=account_id,
            requested=requested,
            available=available,
            locked=locked,
            unlocks_at=unlocks_at,
        )
