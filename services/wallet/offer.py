"""Decisions about offers: tokens for points, between accounts. Pure.

    seller ── offer ──► @escrow ──┬── buy ──► buyer            and points: buyer ── buy ──► @transfer ── sell ──► seller
                                  └── unoffer ──► seller       what nobody bought: cancelled, or its time has passed

A take is one transaction of three rows, so that nobody pays for what they do not get. What can be offered is what can
be given, by the same rules: an offer for next to nothing is a gift. How many tokens a day, how cheap and for how long
is declared. What comes back is never refused, neither to a frozen account nor to one that is full.
"""

from collections.abc import Mapping
from typing import Any, Final

from services.wallet.account import check_balance_limit, find, refuse_closed, refuse_unusable, same, same_duration
from services.wallet.commands import Moment, Outcome
from services.wallet.counter import refuse_over
from services.wallet.economy import EarningRules, in_force
from services.wallet.economy_entry import points_of
from services.wallet.errors import InsufficientPoints
from services.wallet.gift import DAY_US, TRANSFER, refuse_more_than_free
from services.wallet.holdings import POINT, TOKEN, WALLET, Account, State
from services.wallet.journal_entry import apply, entry_on
from services.wallet.market import COUNTER, ESCROW, Offer, OfferState
from services.wallet.market_commands import CancelOffer, CreateOffer, TakeOffer
from services.wallet.market_errors import OfferEnded, OfferExceeded, OfferLimit, OfferNotFound, OfferTerms

SECOND_US: Final = 1_000_000


def create_offer(state: State, command: CreateOffer, moment: Moment) -> Outcome:
    """Puts tokens up for sale: they leave the seller's balance."""
    made = state.market.offers.get((command.account_id, command.offer_id))
    if made is not None:
        same("tokens", made.tokens, command.tokens)
        same("price_points", made.price_points, command.price_points)
        same_duration("lifetime", made.lifetime_us, command.lifetime_us)
        same("reference", made.reference, command.reference)
        return _outcome(state, command.account_id, made, replayed=True)
    seller = find(state, command.account_id)
    refuse_unusable(seller)
    rules = in_force(moment.rules, state.rule_sets.values(), seller.account_id, moment.now_us).rules
    if len(state.market.open_offers(seller.account_id)) >= rules.open_offers:
        raise OfferLimit(seller.account_id, rules.open_offers)
    lifetime_us = _lifetime_us(command, rules)
    day, limit = moment.day, rules.offers_per_day
    refuse_over(state, seller.account_id, COUNTER, day, command.tokens, limit, moment.next_day_us)
    refuse_more_than_free(state, seller, command.tokens, rules, moment)
    facts: dict[str, Any] = {
        "price": command.price_points,
        "day": day,
        "expire_time_us": moment.now_us + lifetime_us,
        "counts": [[COUNTER, day, command.tokens]],
    }
    if command.lifetime_us is not None:
        facts["lifetime_us"] = command.lifetime_us
    if command.reference:
        facts["reference"] = command.reference
    _write(state, seller, "offer", command.actor, -command.tokens, ESCROW, command.offer_id, facts, moment)
    return _outcome(state, seller.account_id, state.market.offers[seller.account_id, command.offer_id], replayed=False)


def _lifetime_us(command: CreateOffer, rules: EarningRules) -> int:
    """How long an offer lives; refuses what the rules in force do not allow."""
    if command.price_points < rules.offer_price_min:
        raise OfferTerms(command.account_id, "price_points", command.price_points, rules.offer_price_min)
    longest_us = rules.offer_days_max * DAY_US
    if command.lifetime_us is None:
        return min(rules.offer_days * DAY_US, longest_us)
    if command.lifetime_us > longest_us:
        said, limit = f"{command.lifetime_us / SECOND_US}s", f"{longest_us // SECOND_US}s"
        raise OfferTerms(command.account_id, "lifetime", said, limit)
    return command.lifetime_us


def take_offer(state: State, command: TakeOffer, moment: Moment) -> Outcome:
    """Buys tokens of an open offer for their price: three rows, or none."""
    made = state.market.takes.get((command.actor, command.take_id))
    if made is not None:
        same("account_id", made.account_id, command.account_id)
        same("seller_account_id", made.seller_id, command.seller_id)
        same("offer_id", made.offer_id, command.offer_id)
        same("tokens", made.tokens, command.tokens)
        return _taken(state, command, replayed=True)
    buyer, offer = find(state, command.account_id), _find(state, command.seller_id, command.offer_id)
    if offer.account_id == buyer.account_id:
        # The edge refuses it as bad input; nobody else may bring it about: both sides would begin from one balance.
        raise OfferNotFound(offer.account_id, offer.offer_id)
    seller = find(state, offer.account_id)
    refuse_closed(buyer)
    refuse_unusable(seller)
    refuse_unusable(buyer)
    if offer.state != OfferState.OPEN:
        raise OfferEnded(offer)
    if command.tokens > offer.left:
        raise OfferExceeded(offer, command.tokens)
    points = command.tokens * offer.price_points
    purse = points_of(state, buyer.account_id, moment.now_us)
    if points > purse.balance:
        raise InsufficientPoints(buyer.account_id, points, purse.balance)
    check_balance_limit(buyer, command.tokens)
    income = points_of(state, seller.account_id, moment.now_us)
    check_balance_limit(income, points)
    actor, key, tokens = command.actor, command.take_id, command.tokens
    about = {"offer": offer.offer_id, "tokens": tokens}
    of_buyer, of_seller = {"peer": seller.account_id, **about}, {"peer": buyer.account_id, **about}
    _write(state, purse, "buy", actor, -points, TRANSFER, key, of_buyer, moment)
    _write(state, income, "sell", actor, points, TRANSFER, key, of_seller, moment)
    _write(state, buyer, "buy", actor, tokens, ESCROW, key, of_buyer | {"points": points}, moment)
    return _taken(state, command, replayed=False)


def cancel_offer(state: State, command: CancelOffer, moment: Moment) -> Outcome:
    """Ends an offer: what nobody has bought goes back, even to a frozen account."""
    offer = _find(state, command.account_id, command.offer_id)
    if offer.state == OfferState.CANCELLED:
        return _outcome(state, command.account_id, offer, replayed=True)
    if offer.state != OfferState.OPEN:
        raise OfferEnded(offer)
    _return(state, offer, command.actor, {}, moment)
    ended = state.market.offers[command.account_id, command.offer_id]
    return _outcome(state, command.account_id, ended, replayed=False)


def expire(state: State, offer: Offer, moment: Moment) -> None:
    """Ends an offer whose time has passed."""
    _return(state, offer, WALLET, {"expired": 1}, moment)


def _return(state: State, offer: Offer, actor: str, facts: Mapping[str, Any], moment: Moment) -> None:
    seller = state.accounts[offer.account_id, TOKEN]
    # It counts no longer for the day on which it was offered, which may be long ago.
    facts = {**facts, "counts": [[COUNTER, offer.day, -offer.left]]}
    _write(state, seller, "unoffer", actor, offer.left, ESCROW, offer.offer_id, facts, moment)


def _write(
    state: State,
    holder: Account,
    kind: str,
    actor: str,
    change: int,
    counterparty: str,
    key: str,
    facts: Mapping[str, Any],
    moment: Moment,
) -> None:
    entry = entry_on(
        holder,
        kind,
        actor,
        balance_change=change,
        counterparty=counterparty,
        created_by=actor,
        key=key,
        facts=facts,
    )
    apply(state, entry, moment.now_us)


def _find(state: State, account_id: str, offer_id: str) -> Offer:
    offer = state.market.offers.get((account_id, offer_id))
    if offer is None:
        raise OfferNotFound(account_id, offer_id)
    return offer


def _taken(state: State, command: TakeOffer, *, replayed: bool) -> Outcome:
    offer = state.market.offers[command.seller_id, command.offer_id]
    outcome = _outcome(state, command.account_id, offer, replayed=replayed)
    return outcome._replace(take=state.market.takes[command.actor, command.take_id])


def _outcome(state: State, account_id: str, offer: Offer, *, replayed: bool) -> Outcome:
    return Outcome(
        state.accounts[account_id, TOKEN],
        None,
        replayed,
        points=state.accounts.get((account_id, POINT)),
        offer=offer,
    )
