"""Decisions about how a hold begins: a Reserve, its repeat, and what one would come to. Pure.

What becomes of a hold is in `reservation`; the diagram is in `ledger`.
"""

from typing import Any

from services.wallet.account import open_at, refuse_unusable, same, same_duration, welcome_bonus
from services.wallet.commands import Moment, Outcome, Preview, Reserve
from services.wallet.errors import AccountNotFound, InsufficientFunds, ReservationReleased
from services.wallet.holdings import PLAIN, TOKEN, Account, Reservation, State, read_pins
from services.wallet.journal_entry import apply, entry_on
from services.wallet.lot import moves, pick
from services.wallet.reservation import outcome_of, up_to_date
from services.wallet.spending import refuse_over_own, reserve_facts
from services.wallet.team import refuse_for_team


def reserve(state: State, command: Reserve, moment: Moment) -> Outcome:
    """Holds tokens of the payer, whose account may be opened on the way."""
    reservation_key = (command.actor, command.reservation_id)
    made = state.reservations.get(reservation_key)
    if made is not None:
        return _reserve_again(state, made, command, moment)
    payer, now_us = command.payer_account_id, moment.now_us
    key = (payer, TOKEN)
    account = state.accounts.get(key)
    if account is None and not command.may_open:
        raise AccountNotFound(payer)
    if account is not None:
        refuse_unusable(account)
        refuse_for_team(state, account, command.account_id, command.amount, moment)
        refuse_over_own(state, account, moment.day, command.amount, moment)
    available, held = (account.available, account.held) if account else (welcome_bonus(state, payer, moment), 0)
    if command.amount > available:
        raise InsufficientFunds(payer, command.amount, available, held)
    if account is None:
        open_at(state, command.actor, payer, moment)
        account = state.accounts[key]
    entry = entry_on(
        account,
        "reserve",
        command.actor,
        held_change=command.amount,
        created_by=command.actor,
        reservation_id=command.reservation_id,
        facts=_hold_facts(state, account, command, moment),
    )
    apply(state, entry, now_us)
    return Outcome(state.accounts[key], state.reservations[reservation_key], False)


def _hold_facts(state: State, account: Account, command: Reserve, moment: Moment) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "for": command.account_id,
        "hold_us": command.hold_us,
        "expire_time_us": moment.now_us + command.hold_us,
    }
    if command.price_version:
        facts["price_version"] = command.price_version
    if command.reference:
        facts["reference"] = command.reference
    if account.lots:
        pins = pick(state, account, command.amount, moment.now_us)
        facts |= {"pins": pins, "lots": moves((pins, 0, 1))}
    if account.team or account.spend_since:
        facts |= reserve_facts(account, command.account_id, command.amount, moment)
    return facts


def preview(state: State, command: Preview, moment: Moment) -> Outcome:
    """Tries a Reserve on a copy of the state, and says which lots it would hold of."""
    trial = state.copy()
    outcome = reserve(trial, command.reserve, moment)
    pins = read_pins(outcome.reservation.pins) if outcome.reservation else ()
    lots = trial.lots.get(command.reserve.payer_account_id, {})
    return outcome._replace(lots=tuple(lots[lot_id] for lot_id, _ in pins if lot_id != PLAIN))


def _reserve_again(state: State, made: Reservation, command: Reserve, moment: Moment) -> Outcome:
    if not made.payer_account_id:
        raise ReservationReleased(made.reservation_id, 0)
    same("account_id", made.account_id, command.account_id)
    same("payer_account_id", made.payer_account_id, command.payer_account_id)
    same("amount", made.reserved, command.amount)
    same_duration("hold_duration", made.hold_us, command.hold_us)
    same("price_version", made.price_version, command.price_version)
    same("reference", made.reference, command.reference)
    return outcome_of(state, up_to_date(state, made, moment), replayed=True)
