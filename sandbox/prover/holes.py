"""The shipped rules with one of them left out, to see that the search finds what that lets in."""

from collections.abc import Mapping
from datetime import timedelta, timezone, tzinfo
from typing import Final

from sandbox.prover.account_holes import ACCOUNT_HOLES
from sandbox.prover.hole import Hole, decided, replaced
from sandbox.prover.market_holes import MARKET_HOLES, refuse_more_than_there_is
from sandbox.prover.move import Move
from sandbox.prover.price_holes import PRICE_HOLES
from sandbox.prover.rule_holes import RULE_HOLES
from sandbox.prover.team_holes import TEAM_HOLES
from services.wallet import earning, gift, reservation
from services.wallet.commands import Award, ClaimDaily, Convert, Moment, Outcome, Refund
from services.wallet.economy_entry import points_of
from services.wallet.holdings import State


def _claims_again(state: State, command: ClaimDaily, moment: Moment) -> Outcome:
    state.streaks.pop(command.account_id, None)
    return earning.claim_daily(state, command, moment)


def _awards_again(state: State, command: Award, moment: Moment) -> Outcome:
    state.earnings = {key: each for key, each in state.earnings.items() if each.kind != "achievement"}
    return earning.award(state, command, moment)


def _keeps_the_points(state: State, command: Convert, moment: Moment) -> Outcome:
    """As if a conversion could be undone on the side of the points alone."""
    before = points_of(state, command.account_id, moment.now_us)
    outcome = earning.convert(state, command, moment)
    if not outcome.replayed:
        key = before.account_id, before.asset
        state.accounts[key] = state.accounts[key]._replace(balance=before.balance)
    return outcome


def _refunds_again(state: State, command: Refund, moment: Moment) -> Outcome:
    key = (command.created_by, command.reservation_id)
    made = state.reservations.get(key)
    if made is not None:
        state.reservations[key] = made._replace(refunded=0)
    return reservation.refund(state, command, moment)


def _users_zone(move: Move, _zone: tzinfo) -> tzinfo:
    return timezone(timedelta(hours=move.zone_hours))


HOLES: Final[Mapping[str, Hole]] = {
    "claims": Hole("a day may be claimed again by another key", decided(ClaimDaily, _claims_again)),
    "zone": Hole("the day is that of wherever a user says to be", zone_of=_users_zone),
    "limits": Hole(
        "activities and conversions have no limit a day",
        replaced(earning, "refuse_over", lambda *_: None),
    ),
    "welcome": Hole(
        "what a new account was welcomed with can be given away",
        replaced(gift, "refuse_more_than_free", refuse_more_than_there_is),
    ),
    "gifts": Hole("gifts have no limit a day", replaced(gift, "refuse_over", lambda *_: None)),
    "awards": Hole("an achievement is forgotten once it is paid", decided(Award, _awards_again)),
    "points": Hole("a conversion leaves the points where they are", decided(Convert, _keeps_the_points)),
    "refunds": Hole("what was refunded before is not counted", decided(Refund, _refunds_again)),
    **ACCOUNT_HOLES,
    **RULE_HOLES,
    **TEAM_HOLES,
    **MARKET_HOLES,
    **PRICE_HOLES,
}
