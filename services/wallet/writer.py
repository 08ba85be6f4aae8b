"""The process that runs the wallet's groups: `python -m services.wallet.writer`, started by the wallet itself."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, get_args

from services.chassis.database import connect
from services.chassis.group_process import Codec, GroupProcess, RunGroup, serve_groups
from services.wallet.commands import (
    Command,
    Outcome,
)
from services.wallet.economy import Rules
from services.wallet.holdings import Account, Earning, Lot, Reservation, RuleSetRecord, Streak
from services.wallet.market import Offer, Take
from services.wallet.sharing import Gift, Member, SpendingLimits, Team
from services.wallet.store import Store

SQL_FOLDER: Final = Path(__file__).parent / "sql"
COMMANDS: Final[Sequence[type[Command]]] = get_args(Command)


def _flatten(outcome: Outcome) -> tuple[Any, ...]:
    account, reservation, replayed, lots, revoked, *earned = outcome
    return (
        account and tuple(account),
        reservation and tuple(reservation),
        replayed,
        lots and [tuple(lot) for lot in lots],
        revoked,
        *[each and tuple(each) for each in earned],
    )


def _restore(values: tuple[Any, ...]) -> Outcome:
    account, reservation, replayed, lots, revoked, earning, points, streak, rule_set, *shared = values
    team, member, gift, offer, take, limits = shared
    return Outcome(
        account and Account._make(account),
        reservation and Reservation._make(reservation),
        replayed,
        lots and tuple([Lot._make(lot) for lot in lots]),
        revoked,
        earning and Earning._make(earning),
        points and Account._make(points),
        streak and Streak._make(streak),
        rule_set and RuleSetRecord._make(rule_set),
        team and Team._make(team),
        member and Member._make(member),
        gift and Gift._make(gift),
        offer and Offer._make(offer),
        take and Take._make(take),
        limits and SpendingLimits._make(limits),
    )


CODEC: Final = Codec[Command, Outcome](COMMANDS, _flatten, _restore)


def writer_of(database_url: str, rules: Rules) -> GroupProcess[Command, Outcome]:
    """The wallet's end of it: where the ledger is, and by which rules it is kept."""
    return GroupProcess("services.wallet.writer", (database_url, rules), CODEC)


@asynccontextmanager
async def _opened(argument: tuple[str, Rules]) -> AsyncIterator[RunGroup[Command, Outcome]]:
    database_url, rules = argument
    async with await connect(database_url, [SQL_FOLDER], writes_only=True) as database:
        yield Store(database, rules).run_group


if __name__ == "__main__":
    serve_groups(CODEC, _opened)
