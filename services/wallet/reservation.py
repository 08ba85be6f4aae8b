"""Decisions about what becomes of a hold, which `hold` began; the diagram is in `ledger`.

Each function checks everything before it makes an entry, so that a refusal changes nothing. The one exception is on
purpose: a hold found past its time is expired first, which would have happened anyway.
"""

from collections.abc import Mapping
from typing import Any

from services.wallet.account import check_balance_limit, refuse_closed, refuse_unusable, same, same_duration
from services.wallet.commands import Amend, Commit, Moment, OnReservation, Outcome, Refund, Release
from services.wallet.earning import first_job
from services.wallet.errors import (
    AmendNotAllowed,
    CommitExceedsReservation,
    InsufficientFunds,
    RefundExceedsCommitted,
    ReservationCommitted,
    ReservationExpired,
    ReservationNotCommitted,
    ReservationNotFound,
    ReservationReleased,
    rfc3339,
)
from services.wallet.holdings import (
    NO_FACTS,
    REVENUE,
    TOKEN,
    WALLET,
    Entry,
    Pins,
    Reservation,
    ReservationState,
    State,
    read_pins,
)
from services.wallet.journal_entry import apply, entry_on
from services.wallet.lot import Return, come_back, moves, pick, split
from services.wallet.spending import change_facts, own_day, refuse_over_own
from services.wallet.team import refuse_over_limit

HELD = ReservationState.HELD
COMMITTED = ReservationState.COMMITTED
RELEASED = ReservationState.RELEASED
EXPIRED = ReservationState.EXPIRED


def commit(state: State, command: Commit, moment: Moment) -> Outcome:
    """Takes held tokens, or late ones from what is available."""
    found = _find(state, command, moment)
    if found.state == COMMITTED:
        same("amount", found.commit_amount, command.amount)
        same("allow_late", bool(found.commit_late), command.allow_late)
        return outcome_of(state, found, replayed=True)
    if found.state == RELEASED:
        raise ReservationReleased(found.reservation_id, found.released)
    late = found.state == EXPIRED
    if late and not command.allow_late:
        raise ReservationExpired(found.reservation_id, found.expired, found.expire_time_us)
    open_amount = found.expired if late else found.held
    amount = open_amount if command.amount is None else command.amount
    if amount > open_amount:
        raise CommitExceedsReservation(found.reservation_id, amount, open_amount)
    facts: dict[str, Any] = {}
    if command.amount is not None:
        facts["amount"] = command.amount
    if command.allow_late:
        facts["allow_late"] = 1
    if late:
        return _commit_late(state, found, command, moment, amount, facts)
    taken, rest = split(read_pins(found.pins), amount) if found.pins else ((), ())
    if found.pins:
        facts |= {"pins": taken, "lots": moves((taken, -1, -1), (rest, 0, -1))}
    before = state.accounts[found.payer_account_id, TOKEN]
    outcome = _change(
        state,
        found,
        "commit",
        command.actor,
        moment,
        balance_change=-amount,
        held_change=-open_amount,
        counterparty=REVENUE,
        facts=facts,
        back=Return(rest, moment.now_us, False),
    )
    return outcome if before.worked else _after_first(state, found, outcome, moment)


def _after_first(state: State, found: Reservation, outcome: Outcome, moment: Moment) -> Outcome:
    """What an account's first commit is worth to it, if it was for its own work."""
    if found.account_id != found.payer_account_id:
        return outcome
    first_job(state, found, moment)
    return outcome._replace(account=state.accounts[found.payer_account_id, TOKEN])


def _commit_late(
    state: State, found: Reservation, command: Commit, moment: Moment, amount: int, facts: dict[str, Any]
) -> Outcome:
    account = state.accounts[found.payer_account_id, TOKEN]
    refuse_unusable(account)
    if found.spend_day:
        refuse_over_limit(state, account.account_id, found.account_id, found.spend_day, amount, moment)
    if day := own_day(state, found, moment):
        refuse_over_own(state, account, day, amount, moment)
    if amount > account.available:
        raise InsufficientFunds(account.account_id, amount, account.available, account.held)
    if account.lots:
        pins = pick(state, account, amount, moment.now_us)
        facts |= {"pins": pins, "lots": moves((pins, -1, 0))}
    outcome = _change(
        state, found, "commit", command.actor, moment, balance_change=-amount, counterparty=REVENUE, facts=facts
    )
    return outcome if account.worked else _after_first(state, found, outcome, moment)


def release(state: State, command: Release, moment: Moment) -> Outcome:
    """Gives a hold back, or blocks an id that was never used."""
    key = (command.created_by, command.reservation_id)
    found = state.reservations.get(key)
    if found is None:
        if command.actor != command.created_by:
            # Only the would-be owner may block an id.
            raise ReservationNotFound(command.reservation_id)
        created_by, reservation_id = key
        entry = Entry("release", command.actor, "", created_by=created_by, reservation_id=reservation_id)
        apply(state, entry, moment.now_us)
        return Outcome(None, state.reservations[key], False)
    found = up_to_date(state, found, moment)
    if found.state == COMMITTED:
        raise ReservationCommitted(found.reservation_id, found.committed)
    if found.state != HELD:
        # Released or expired: nothing is held any more, which is all that a release wants.
        return outcome_of(state, found, replayed=True)
    pins = read_pins(found.pins)
    return _change(
        state,
        found,
        "release",
        command.actor,
        moment,
        held_change=-found.held,
        facts=_freed(pins),
        back=Return(pins, moment.now_us, command.grace),
    )


def refund(state: State, command: Refund, moment: Moment) -> Outcome:
    """Returns committed tokens."""
    found = _find(state, command, moment)
    done = state.operations.get((command.created_by, command.reservation_id, command.refund_id))
    if done is not None:
        same("refund_id", f"{done.kind} {command.refund_id}", f"refund {command.refund_id}")
        same("amount", done.amount, command.amount)
        return outcome_of(state, found, replayed=True)
    if found.state == HELD:
        raise ReservationNotCommitted(found.reservation_id, found.reserved)
    _require(found, COMMITTED)
    left = found.committed - found.refunded
    amount = left if command.amount is None else command.amount
    if amount > left or not left:
        raise RefundExceedsCommitted(found.reservation_id, amount, found.committed, found.refunded)
    account = state.accounts[found.payer_account_id, TOKEN]
    refuse_closed(account)
    check_balance_limit(account, amount)
    facts: dict[str, Any] = {} if command.amount is None else {"amount": command.amount}
    back: Pins = ()
    if found.pins:
        kept, back = split(read_pins(found.pins), left - amount)
        facts |= {"pins": kept, "lots": moves((back, 1, 0))}
    return _change(
        state,
        found,
        "refund",
        command.actor,
        moment,
        balance_change=amount,
        counterparty=REVENUE,
        key=command.refund_id,
        facts=facts,
        back=Return(back, moment.now_us, command.grace),
    )


def amend(state: State, command: Amend, moment: Moment) -> Outcome:
    """Lowers a hold, or lets it end later."""
    found = _find(state, command, moment)
    done = state.operations.get((command.created_by, command.reservation_id, command.amend_id))
    if done is not None:
        same("amend_id", f"{done.kind} {command.amend_id}", f"amend {command.amend_id}")
        same("amount", done.amount, command.amount)
        same_duration("hold_duration", done.hold_us, command.hold_us)
        return outcome_of(state, found, replayed=True)
    _require(found, HELD)
    amount = found.held if command.amount is None else command.amount
    if amount > found.held:
        raise AmendNotAllowed(found.reservation_id, "amount", amount, found.held)
    expire_time_us = found.expire_time_us if command.hold_us is None else moment.now_us + command.hold_us
    if expire_time_us < found.expire_time_us:
        requested, current = rfc3339(expire_time_us), rfc3339(found.expire_time_us)
        raise AmendNotAllowed(found.reservation_id, "expire_time", requested, current)
    facts: dict[str, Any] = {"expire_time_us": expire_time_us}
    if command.amount is not None:
        facts["amount"] = command.amount
    if command.hold_us is not None:
        facts["hold_us"] = command.hold_us
    back: Pins = ()
    if found.pins:
        kept, back = split(read_pins(found.pins), amount)
        facts |= {"pins": kept, "lots": moves((back, 0, -1))}
    return _change(
        state,
        found,
        "amend",
        command.actor,
        moment,
        held_change=amount - found.held,
        key=command.amend_id,
        facts=facts,
        back=Return(back, moment.now_us, False),
    )


def as_of(reservation: Reservation, now_us: int) -> Reservation:
    """How a stored reservation reads at an instant: held no longer once its time has passed."""
    if not is_due(reservation, now_us):
        return reservation
    return reservation._replace(state=EXPIRED, expired=reservation.held, pins="")


def is_due(reservation: Reservation, now_us: int) -> bool:
    """Whether it reads as held although its time has passed."""
    return reservation.state == HELD and reservation.expire_time_us <= now_us


def up_to_date(state: State, found: Reservation, moment: Moment) -> Reservation:
    """The reservation, expired if it is due: its tokens come back at its expire_time, by our failure."""
    if not is_due(found, moment.now_us):
        return found
    pins = read_pins(found.pins)
    back = Return(pins, found.expire_time_us, True)
    _change(state, found, "expire", WALLET, moment, held_change=-found.held, facts=_freed(pins), back=back)
    return state.reservations[found.created_by, found.reservation_id]


def _freed(pins: Pins) -> Mapping[str, Any]:
    """The facts of an entry that gives all pins back."""
    return {"pins": [], "lots": moves((pins, 0, -1))} if pins else NO_FACTS


def _find(state: State, command: OnReservation, moment: Moment) -> Reservation:
    found = state.reservations.get((command.created_by, command.reservation_id))
    if found is None:
        raise ReservationNotFound(command.reservation_id)
    return up_to_date(state, found, moment)


def _require(found: Reservation, wanted: ReservationState) -> None:
    if found.state == wanted:
        return
    if found.state == COMMITTED:
        raise ReservationCommitted(found.reservation_id, found.committed)
    if found.state == RELEASED:
        raise ReservationReleased(found.reservation_id, found.released)
    raise ReservationExpired(found.reservation_id, found.expired, found.expire_time_us)


def _change(
    state: State,
    found: Reservation,
    kind: str,
    actor: str,
    moment: Moment,
    *,
    balance_change: int = 0,
    held_change: int = 0,
    counterparty: str = "",
    key: str = "",
    facts: Mapping[str, Any] = NO_FACTS,
    back: Return | None = None,
) -> Outcome:
    """Makes the entry that changes a reservation and its payer's account, and deals with what it brings back."""
    payer = state.accounts[found.payer_account_id, TOKEN]
    if found.spend_day or payer.spend_since:
        facts = {**facts, **change_facts(state, found, balance_change, held_change, moment)}
    entry = entry_on(
        payer,
        kind,
        actor,
        balance_change=balance_change,
        held_change=held_change,
        counterparty=counterparty,
        created_by=found.created_by,
        reservation_id=found.reservation_id,
        key=key,
        facts=facts,
    )
    apply(state, entry, moment.now_us)
    if back is not None and back.pins:
        come_back(state, found.payer_account_id, back, moment)
    return outcome_of(state, state.reservations[found.created_by, found.reservation_id], replayed=False)


def outcome_of(state: State, reservation: Reservation, *, replayed: bool) -> Outcome:
    """What a command on a reservation came to: the reservation, and whoever pays for it."""
    account = state.accounts.get((reservation.payer_account_id, TOKEN))
    return Outcome(account, reservation, replayed)
