"""Tokens with a life of their own: in which order they are spent, where they go back to, and when they are over.

    grant ──► lot ── pinned by a hold ──► taken by its Commit ── refund ──┐
               │ ▲          └──────── given back ────────────┬────────────┘
               │ └────────────── its time has not come ──────┤
               │                                             ├─ over, by our failure, once ──► a new lot, for the grace
               └── its time comes ──► lapse ◄────────────────┴─ over

An account's tokens without a lot are spent among the lots as if they were one of priority 50 that never ends.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from services.wallet.commands import Moment
from services.wallet.holdings import (
    LAPSED,
    PLAIN,
    PLAIN_PRIORITY,
    TOKEN,
    WALLET,
    Account,
    Lot,
    Pins,
    State,
)
from services.wallet.journal_entry import apply, entry_on

LOTS_MAX = 1_000
"""Lots with tokens left that grants may give to one account. Lots of grace come on top, bounded by what is held."""

_NEVER = float("inf")


class Return(NamedTuple):
    """Tokens that come back: when, and whether those whose lot is over then may live on for the grace."""

    pins: Pins
    at_us: int
    grace: bool


def spending_order(lots: Iterable[Lot]) -> list[Lot]:
    """Lots in the order in which they are spent."""
    return sorted(lots, key=_place)


def _place(lot: Lot) -> tuple[int, float, float]:
    ends: float = _NEVER if lot.expire_time_us is None else lot.expire_time_us
    return (lot.priority, ends, lot.lot_id)


def free_plain(state: State, account: Account) -> int:
    """What the account has available of tokens without a lot."""
    return account.available - sum(lot.free for lot in state.lots.get(account.account_id, {}).values())


def pick(state: State, account: Account, amount: int, now_us: int) -> Pins:
    """Which tokens an amount is spent from; the caller has seen that so much is available and nothing is due."""
    plain = free_plain(state, account)
    lots = [lot for lot in state.lots[account.account_id].values() if lot.free and not lot.is_over(now_us)]
    offers = [(_place(lot), lot.lot_id, lot.free) for lot in lots]
    offers.append(((PLAIN_PRIORITY, _NEVER, _NEVER), PLAIN, plain))
    pins: list[tuple[int, int]] = []
    for _, lot_id, free in sorted(offers):
        taken = min(free, amount)
        if taken:
            pins.append((lot_id, taken))
        amount -= taken
    return pins


def split(pins: Pins, amount: int) -> tuple[Pins, Pins]:
    """The first so many tokens of the pins, and the others."""
    first: list[tuple[int, int]] = []
    rest: list[tuple[int, int]] = []
    for lot_id, pinned in pins:
        taken = min(pinned, amount)
        amount -= taken
        if taken:
            first.append((lot_id, taken))
        if pinned > taken:
            rest.append((lot_id, pinned - taken))
    return first, rest


def moves(*parts: tuple[Pins, int, int]) -> list[list[int]]:
    """The fact `lots`: what pins do to their lots. A part is pins, and the signs by which remaining and held change."""
    total: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0])
    for pins, remaining_sign, held_sign in parts:
        for lot_id, amount in pins:
            if lot_id != PLAIN:
                total[lot_id][0] += remaining_sign * amount
                total[lot_id][1] += held_sign * amount
    return [[lot_id, *change] for lot_id, change in total.items()]


def come_back(state: State, account_id: str, back: Return, moment: Moment) -> None:
    """Deals with tokens that an entry has just brought back into lots that are over: they lapse, or form a new lot."""
    for lot_id, amount in back.pins:
        if lot_id == PLAIN:
            continue
        lot = state.lots[account_id][lot_id]
        if not lot.is_over(back.at_us):
            continue
        if back.grace and moment.rules.grace_us and not lot.grace and not lot.revoked:
            ends_us = back.at_us + moment.rules.grace_us
            _apply(state, lot, "grace", moment, {"amount": amount, "expire_time_us": ends_us}, amount)
        else:
            _apply(state, lot, "lapse", moment, {}, amount)


def lapse(state: State, lot: Lot, moment: Moment) -> None:
    """Ends a lot whose time has passed: what is not held goes."""
    if lot.free:
        _apply(state, lot, "lapse", moment, {}, lot.free)


def _apply(state: State, lot: Lot, kind: str, moment: Moment, facts: Mapping[str, Any], amount: int) -> None:
    gone = kind == "lapse"
    entry = entry_on(
        state.accounts[lot.account_id, TOKEN],
        kind,
        WALLET,
        balance_change=-amount if gone else 0,
        counterparty=LAPSED if gone else "",
        created_by=lot.created_by,
        key=lot.grant_id,
        facts={"lot": lot.lot_id, "lots": [[lot.lot_id, -amount, 0]], **facts},
    )
    apply(state, entry, moment.now_us)
