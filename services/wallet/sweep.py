"""What ends by itself: holds, lots and offers whose time has passed, in the order in which it passed."""

from collections.abc import Iterable
from heapq import heapify, heappop, heappush

from services.wallet.commands import Moment, Outcome, Sweep
from services.wallet.holdings import TOKEN, Key, State
from services.wallet.lot import lapse
from services.wallet.offer import expire
from services.wallet.reservation import is_due, up_to_date

_HOLD, _LOT, _OFFER = 0, 1, 2
_Event = tuple[int, int, int, Key]
"""When, what, the revision that made it, and the hold's or offer's key, or the lot's account."""


def sweep(state: State, command: Sweep, _moment: Moment) -> Outcome:
    """Does nothing more than any command on the account: what is due was ended when the account was loaded."""
    return Outcome(state.accounts.get((command.account_id, TOKEN)), None, True)


def end_due(state: State, account_ids: Iterable[str], moment: Moment, horizon_us: int) -> None:
    """Ends every loaded hold that is due, and the due lots and offers of these accounts, in time order.

    Lots and offers only before `horizon_us`: when more holds are due than were loaded, they stand behind it, and would
    give back to those lots before their end.
    """
    events: list[_Event] = [
        (each.expire_time_us, _HOLD, each.revision, (each.created_by, each.reservation_id))
        for each in state.reservations.values()
        if is_due(each, moment.now_us)
    ]
    for account_id in account_ids:
        events += _ends_of_lots(state, account_id, 0, horizon_us)
        events += [
            (each.expire_time_us, _OFFER, each.number, (account_id, each.offer_id))
            for each in state.market.open_offers(account_id)
            if each.expire_time_us < horizon_us
        ]
    heapify(events)
    while events:
        _, kind, number, key = heappop(events)
        if kind == _LOT:
            lapse(state, state.lots[key[0]][number], moment)
            continue
        if kind == _OFFER:
            expire(state, state.market.offers[key], moment)
            continue
        before = state.revision
        ended = up_to_date(state, state.reservations[key], moment)
        # What came back may live on in lots of grace, and their time may have passed as well.
        for event in _ends_of_lots(state, ended.payer_account_id, before, horizon_us):
            heappush(events, event)


def _ends_of_lots(state: State, account_id: str, after_lot_id: int, horizon_us: int) -> list[_Event]:
    return [
        (lot.expire_time_us, _LOT, lot.lot_id, (account_id, ""))
        for lot in state.lots.get(account_id, {}).values()
        if lot.lot_id > after_lot_id and lot.expire_time_us is not None and lot.expire_time_us < horizon_us
    ]


def next_end_us(state: State, account_id: str, now_us: int) -> int | None:
    """When the first of an account's lots ends that has tokens left and is not over yet, or of its offers."""
    lots = state.lots.get(account_id, {}).values()
    ends = [lot.expire_time_us for lot in lots if lot.remaining and lot.expire_time_us is not None]
    ends += [each.expire_time_us for each in state.market.open_offers(account_id)]
    return min((end_us for end_us in ends if end_us > now_us), default=None)
