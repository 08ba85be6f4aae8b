"""What the marketplace declares with one rule left out."""

from collections.abc import Mapping
from typing import Any, Final

from sandbox.prover.hole import Hole, decided, replaced
from services.wallet import offer, sweep
from services.wallet.commands import Moment, Outcome
from services.wallet.economy import EarningRules
from services.wallet.errors import InsufficientFunds
from services.wallet.gift import DAY_US, TRANSFER
from services.wallet.holdings import ISSUE, POINT, TOKEN, Account, State
from services.wallet.journal_entry import apply, entry_on
from services.wallet.lot import free_plain
from services.wallet.market import ESCROW, Offer, OfferState
from services.wallet.market_commands import TakeOffer

_shipped_write: Final = offer._write  # noqa: SLF001 - a hole is made where no door is


def refuse_more_than_there_is(state: State, giver: Account, amount: int, _rules: EarningRules, _moment: Moment) -> None:
    """As if what an account was welcomed with were its own from the first day."""
    free = free_plain(state, giver)
    if amount > free:
        raise InsufficientFunds(giver.account_id, amount, free, giver.held)


def _ends_and_stays(state: State, found: Offer, moment: Moment) -> None:
    """As if the time of an offer that has passed gave the tokens back, and left the offer to be cancelled."""
    key = (found.account_id, found.offer_id)
    offer.expire(state, found, moment)
    late = found._replace(expire_time_us=found.expire_time_us + DAY_US)
    state.market.offers[key] = late._replace(state=int(OfferState.OPEN))


def _forgets_escrow(
    state: State, holder: Account, kind: str, actor: str, change: int, counterparty: str, *more: Any
) -> None:
    other = ISSUE if kind == "buy" and counterparty == ESCROW else counterparty
    _shipped_write(state, holder, kind, actor, change, other, *more)


def _rounds_down(state: State, holder: Account, kind: str, actor: str, change: int, *more: Any) -> None:
    """As if a buyer paid whole tens of points, and the seller got the price."""
    pays = kind == "buy" and holder.asset == POINT
    _shipped_write(state, holder, kind, actor, -(-change // 10 * 10) if pays else change, *more)


def _takes_of_itself(state: State, command: TakeOffer, moment: Moment) -> Outcome:
    found = state.market.offers.get((command.seller_id, command.offer_id))
    points = state.accounts.get((command.account_id, POINT))
    own = command.seller_id == command.account_id and found is not None and found.left >= command.tokens > 0
    if found is None or not own or points is None or points.balance < command.tokens * found.price_points:
        return offer.take_offer(state, command, moment)
    price = command.tokens * found.price_points
    about = {"peer": command.account_id, "offer": command.offer_id, "tokens": command.tokens, "points": price}
    for asset, kind, change in ((POINT, "buy", -price), (POINT, "sell", price), (TOKEN, "buy", command.tokens)):
        other = ESCROW if asset == TOKEN else TRANSFER
        holder = state.accounts[command.account_id, asset]
        entry = entry_on(
            holder,
            kind,
            command.actor,
            balance_change=change,
            counterparty=other,
            created_by=command.actor,
            key=command.take_id,
            facts=about,
        )
        apply(state, entry, moment.now_us)
    return Outcome(state.accounts[command.account_id, TOKEN], None, False)


MARKET_HOLES: Final[Mapping[str, Hole]] = {
    "two_ends": Hole("an offer that has expired can still be cancelled", replaced(sweep, "expire", _ends_and_stays)),
    "endless": Hole("offers have no end", replaced(sweep, "expire", lambda *_: None)),
    "escrow": Hole("what is bought does not leave the escrow", replaced(offer, "_write", _forgets_escrow)),
    "rounding": Hole("a buyer's price is rounded down to tens", replaced(offer, "_write", _rounds_down)),
    "fresh_offers": Hole(
        "what a new account was welcomed with can be offered",
        replaced(offer, "refuse_more_than_free", refuse_more_than_there_is),
    ),
    "cheap": Hole("a token may be offered for a point", replaced(offer, "_lifetime_us", lambda *_: DAY_US)),
    "offers": Hole("offers have no limit a day", replaced(offer, "refuse_over", lambda *_: None)),
    "own_offers": Hole("an account may buy of itself", decided(TakeOffer, _takes_of_itself)),
}
