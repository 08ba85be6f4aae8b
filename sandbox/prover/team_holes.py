"""What teams declare with one rule left out."""

from collections.abc import Mapping
from typing import Any, Final

from sandbox.prover.hole import Hole, both, decided, replaced
from services.wallet import counter, hold, reservation, spending, team
from services.wallet.commands import Moment, Outcome
from services.wallet.holdings import Reservation, ReservationState, State
from services.wallet.sharing import day_counter, month_counter
from services.wallet.sharing_commands import RemoveMember, SetMember
from services.wallet.spending import counts_of

_FORGIVEN: Final = "forgiven "
_shipped_refuse_for_team: Final = team.refuse_for_team
_shipped_refuse_over_limit: Final = team.refuse_over_limit
_shipped_change_facts: Final = spending.change_facts
_shipped_change: Final = reservation._change  # noqa: SLF001 - a hole is made where no door is


def _forgives(state: State, command: SetMember, moment: Moment) -> Outcome:
    """As if a member that is taken in again began with nothing spent."""
    before = state.shared.members.get((command.team_id, command.member_id))
    outcome = team.set_member(state, command, moment)
    if before is not None and not before.is_in and not outcome.replayed:
        own = (day_counter(command.member_id), month_counter(command.member_id))
        for found in [
            each for each in state.counters.values() if each.account_id == command.team_id and each.counter in own
        ]:
            gone = found._replace(counter=_FORGIVEN + found.counter)
            state.counters[gone.account_id, gone.counter, gone.day] = gone
    return outcome


def _refuse_over_unforgiven(
    state: State, account_id: str, name: str, day: int, amount: int, limit: int, resets_at_us: int
) -> None:
    forgiven = state.counters.get((account_id, _FORGIVEN + name, day))
    counter.refuse_over(
        state, account_id, name, day, amount, limit + (forgiven.amount if forgiven else 0), resets_at_us
    )


def _refuse_over_day(
    state: State, account_id: str, name: str, day: int, amount: int, limit: int, resets_at_us: int
) -> None:
    if not name.startswith(month_counter("")):
        counter.refuse_over(state, account_id, name, day, amount, limit, resets_at_us)


def _refuse_strangers(state: State, payer: Any, member_id: str, amount: int, moment: Moment) -> None:
    """As if whoever was a member once still were."""
    member = state.shared.members.get((payer.account_id, member_id))
    if member is not None and not member.is_in:
        _shipped_refuse_over_limit(state, payer.account_id, member_id, moment.day, amount, moment)
    else:
        _shipped_refuse_for_team(state, payer, member_id, amount, moment)


def _counts_refunds(
    state: State, found: Reservation, balance_change: int, held_change: int, moment: Moment
) -> Mapping[str, Any]:
    return _shipped_change_facts(state, found, 0, held_change - balance_change, moment)


def _gives_back_today(state: State, found: Reservation, kind: str, actor: str, moment: Moment, **more: Any) -> Outcome:
    """As if what a hold gives back were given to the day on which it does, as far as that day has any."""
    change = more.get("held_change", 0) + max(-more.get("balance_change", 0), 0)
    if change >= 0 or not found.spend_day:
        return _shipped_change(state, found, kind, actor, moment, **more)
    for name, day, _ in counts_of(found.account_id, moment.day, 0):
        key = (found.payer_account_id, name, day)
        counted = state.counters.get(key)
        if counted is not None:
            state.counters[key] = counted._replace(amount=max(counted.amount + change, 0))
    return _shipped_change(state, found._replace(spend_day=0), kind, actor, moment, **more)


def _ends_its_holds(state: State, command: RemoveMember, moment: Moment) -> Outcome:
    """As if whoever is removed could not settle what it holds."""
    outcome = team.remove_member(state, command, moment)
    own = (command.team_id, command.member_id)
    for key, each in state.reservations.items():
        if (each.payer_account_id, each.account_id) == own and each.state == ReservationState.HELD:
            state.reservations[key] = each._replace(state=int(ReservationState.RELEASED))
    return outcome


TEAM_HOLES: Final[Mapping[str, Hole]] = {
    "readmission": Hole(
        "a member that is taken in again begins with nothing spent",
        both(decided(SetMember, _forgives), replaced(spending, "refuse_over", _refuse_over_unforgiven)),
    ),
    "month": Hole("members have no limit a month", replaced(spending, "refuse_over", _refuse_over_day)),
    "removed": Hole("who was removed from a team may spend on", replaced(hold, "refuse_for_team", _refuse_strangers)),
    "refund_counts": Hole("a refund gives the limit back", replaced(reservation, "change_facts", _counts_refunds)),
    "release_day": Hole(
        "what a hold gives back is given to the day on which it does",
        replaced(reservation, "_change", _gives_back_today),
    ),
    "late_commits": Hole(
        "a late commit looks at no limit", replaced(reservation, "refuse_over_limit", lambda *_: None)
    ),
    "unheld": Hole("who is removed can't settle what it holds", decided(RemoveMember, _ends_its_holds)),
    "roles": Hole("every member may change every other", replaced(team, "_may", lambda *_: True)),
    "last_owner": Hole("the last owner may go", replaced(team, "_refuse_last_owner", lambda *_: None)),
}
