"""offer: what the pure rules of the marketplace say, and that an offer ends once whatever comes in whatever order."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.wallet import ledger
from services.wallet.commands import (
    Award,
    ChangeAccount,
    Command,
    Grant,
    Moment,
    OpenAccount,
    Outcome,
    Sweep,
)
from services.wallet.economy import EarningRules, Rules
from services.wallet.errors import (
    AccountFrozen,
    AccountNotEmpty,
    BalanceLimit,
    IdempotencyMismatch,
    InsufficientFunds,
    InsufficientPoints,
    LimitReached,
    Refusal,
)
from services.wallet.grpc_api import ERRORS
from services.wallet.holdings import POINT, TOKEN, Account, State
from services.wallet.journal_entry import apply, entry_on
from services.wallet.market import ESCROW, Offer, OfferState
from services.wallet.market_commands import CancelOffer, CreateOffer, TakeOffer
from services.wallet.market_errors import OfferEnded, OfferExceeded, OfferLimit, OfferNotFound, OfferTerms
from services.wallet.sharing_errors import WelcomeLocked
from services.wallet.sweep import end_due

DAY_US = 24 * 3600 * 1_000_000
EARNING = EarningRules(welcome_bonus=0)
RULES = Rules(welcome_bonus=0, earning=EARNING)
START_US = 20_000 * DAY_US


class Market:
    """A ledger in memory: alice has 100 tokens, bob and carol have 100 points each (profile_complete)."""

    def __init__(self, rules: Rules = RULES) -> None:
        self.state = State()
        self.rules = rules
        self.now_us = START_US
        for account_id in ("alice", "bob", "carol"):
            self.do(OpenAccount("boss", account_id))
        self.do(Grant("boss", "alice", "g", 100, ""))
        for account_id in ("bob", "carol"):
            self.do(Award("boss", account_id, "profile_complete"))

    def do(self, command: Command) -> Outcome:
        """Decides as a group of one command would: what is due ends before."""
        moment = Moment(self.now_us, self.rules)
        self.sweep(moment)
        return ledger.decide(self.state, command, moment)

    def sweep(self, moment: Moment) -> None:
        end_due(self.state, sorted({key[0] for key in self.state.accounts}), moment, moment.now_us + 1)

    def offer(self, offer_id: str = "o", tokens: int = 10, price: int = 10, lifetime_us: int | None = None) -> Offer:
        return made(self.do(CreateOffer("boss", "alice", offer_id, tokens, price, lifetime_us, "")))

    def take(self, tokens: int, take_id: str = "t", buyer: str = "bob", offer_id: str = "o") -> Outcome:
        return self.do(TakeOffer("boss", buyer, take_id, "alice", offer_id, tokens))

    def cancel(self, offer_id: str = "o") -> Offer:
        return made(self.do(CancelOffer("boss", "alice", offer_id)))

    def of(self, account_id: str) -> tuple[int, int]:
        """An account's tokens and points."""
        points = self.state.accounts.get((account_id, POINT))
        return self.state.accounts[account_id, TOKEN].balance, points.balance if points else 0

    @property
    def escrow(self) -> int:
        return self.state.system.get((ESCROW, TOKEN), 0)


def made(outcome: Outcome) -> Offer:
    assert outcome.offer is not None
    return outcome.offer


def test_offered_tokens_leave_the_balance_and_wait_in_escrow():
    market = Market()
    offer = market.offer(tokens=10)

    assert (offer.state, offer.left, market.of("alice"), market.escrow) == (OfferState.OPEN, 10, (90, 0), 10)
    assert offer.expire_time_us == START_US + EARNING.offer_days * DAY_US


def test_an_offer_is_sold_in_parts_and_the_last_part_fills_it():
    market = Market()
    market.offer(tokens=12)
    first = market.take(4)
    second = market.take(8, "t2", "carol")

    assert first.take is not None
    assert (first.take.tokens, first.take.points, made(first).left) == (4, 40, 8)
    assert (made(second).state, made(second).sold, made(second).returned) == (OfferState.FILLED, 12, 0)
    assert [market.of(each) for each in ("alice", "bob", "carol")] == [(88, 120), (4, 60), (8, 20)]
    assert (market.escrow, market.state.system["@transfer", POINT]) == (0, 0)


def test_what_nobody_bought_comes_back_when_the_offer_is_cancelled():
    market = Market()
    market.offer(tokens=10)
    market.take(3)
    offer = market.cancel()

    assert (offer.state, offer.sold, offer.returned, market.of("alice"), market.escrow) == (3, 3, 7, (97, 30), 0)


def test_what_nobody_bought_comes_back_at_the_instant_at_which_the_offer_ends():
    market = Market()
    offer = market.offer(tokens=10, lifetime_us=60_000_000)
    market.now_us = offer.expire_time_us - 1
    market.take(1)
    market.now_us += 1

    with pytest.raises(OfferEnded) as refused:
        market.take(1, "t2")
    assert refused.value.metadata["state"] == "EXPIRED"
    assert (market.of("alice"), market.escrow) == ((99, 10), 0)
    assert market.state.entries[-1].actor == "@wallet"


def test_the_same_key_finds_what_was_done_and_another_content_is_refused_with_its_field():
    market = Market()
    market.offer(tokens=10, price=10)
    market.take(2)
    rows = len(market.state.entries)

    assert market.do(CreateOffer("boss", "alice", "o", 10, 10, None, "")).replayed
    assert market.take(2).replayed
    for command, field in (
        (CreateOffer("boss", "alice", "o", 9, 10, None, ""), "tokens"),
        (CreateOffer("boss", "alice", "o", 10, 11, None, ""), "price_points"),
        (CreateOffer("boss", "alice", "o", 10, 10, DAY_US, ""), "lifetime"),
        (CreateOffer("boss", "alice", "o", 10, 10, None, "x"), "reference"),
        (TakeOffer("boss", "carol", "t", "alice", "o", 2), "account_id"),
        (TakeOffer("boss", "bob", "t", "carol", "o", 2), "seller_account_id"),
        (TakeOffer("boss", "bob", "t", "alice", "p", 2), "offer_id"),
        (TakeOffer("boss", "bob", "t", "alice", "o", 3), "tokens"),
    ):
        with pytest.raises(IdempotencyMismatch) as mismatch:
            market.do(command)
        assert mismatch.value.metadata["field"] == field
    assert len(market.state.entries) == rows


def test_a_replay_after_the_end_says_how_it_ended():
    market = Market()
    market.offer(tokens=10)
    market.take(2)
    market.cancel()

    assert made(market.do(CreateOffer("boss", "alice", "o", 10, 10, None, ""))).state == OfferState.CANCELLED
    assert market.take(2).take == market.state.market.takes["boss", "t"]
    assert market.do(CancelOffer("boss", "alice", "o")).replayed


def test_every_refusal_says_its_numbers_and_changes_nothing():
    market = Market(Rules(welcome_bonus=0, earning=EARNING._replace(open_offers=2)))
    market.offer("o", 10)
    market.offer("gone", 1)
    market.take(1, "all", offer_id="gone")
    market.offer("p", 1, 1_000)
    before = len(market.state.entries)
    cases: Sequence[tuple[Command, type[Refusal], dict[str, Any]]] = (
        (CreateOffer("boss", "alice", "q", 1, 10, None, ""), OfferLimit, {"limit": "2"}),
        (TakeOffer("boss", "bob", "x", "alice", "none", 1), OfferNotFound, {"offer_id": "none"}),
        (TakeOffer("boss", "alice", "x", "alice", "o", 1), OfferNotFound, {"account_id": "alice"}),
        (TakeOffer("boss", "bob", "x", "alice", "o", 11), OfferExceeded, {"requested": "11", "left": "10"}),
        (TakeOffer("boss", "bob", "x", "alice", "gone", 1), OfferEnded, {"state": "FILLED", "sold": "1"}),
        (TakeOffer("boss", "bob", "x", "alice", "p", 1), InsufficientPoints, {"requested": "1000", "available": "90"}),
        (CancelOffer("boss", "alice", "gone"), OfferEnded, {"state": "FILLED"}),
        (CancelOffer("boss", "alice", "none"), OfferNotFound, {"offer_id": "none"}),
    )
    for command, refusal, numbers in cases:
        with pytest.raises(refusal) as refused:
            market.do(command)
        assert numbers.items() <= refused.value.metadata.items()
    assert len(market.state.entries) == before


def test_an_offer_keeps_to_the_terms_of_the_rules():
    market = Market()
    with pytest.raises(OfferTerms) as cheap:
        market.offer(price=EARNING.offer_price_min - 1)
    with pytest.raises(OfferTerms) as long:
        market.offer(lifetime_us=EARNING.offer_days_max * DAY_US + 1_000_000)

    assert (cheap.value.metadata["field"], cheap.value.metadata["limit"]) == ("price_points", "10")
    assert (long.value.metadata["field"], long.value.metadata["limit"]) == ("lifetime", "2592000s")


def test_so_many_tokens_are_offered_in_a_day_and_what_comes_back_counts_no_longer():
    market = Market()
    market.offer("o", EARNING.offers_per_day)
    with pytest.raises(LimitReached) as refused:
        market.offer("p", 1)
    market.take(5)
    market.cancel()

    assert refused.value.metadata["limited"] == "offer"
    assert refused.value.metadata["resets_at"] == "2024-10-05T00:00:00Z"
    market.offer("p", EARNING.offers_per_day - 5)
    with pytest.raises(LimitReached):
        market.offer("q", 1)


def test_tokens_that_come_back_on_a_later_day_do_not_count_for_that_day():
    market = Market()
    market.offer("o", EARNING.offers_per_day)
    market.now_us += DAY_US
    market.offer("p", EARNING.offers_per_day)
    market.cancel("o")

    with pytest.raises(LimitReached):
        market.offer("q", 1)


def test_a_young_account_does_not_sell_its_welcome_bonus():
    market = Market(Rules(welcome_bonus=10, earning=EARNING))
    market.do(Award("boss", "alice", "profile_complete"))
    with pytest.raises(WelcomeLocked) as refused:
        market.do(CreateOffer("boss", "bob", "o", 1, 10, None, ""))
    market.now_us += EARNING.welcome_lock_days * DAY_US

    assert refused.value.metadata["locked"] == "10"
    assert made(market.do(CreateOffer("boss", "bob", "o", 10, 10, None, ""))).tokens == 10


def test_tokens_with_a_life_of_their_own_are_not_for_sale():
    market = Market()
    market.do(Grant("boss", "bob", "promo", 50, "", DAY_US))
    with pytest.raises(InsufficientFunds):
        market.do(CreateOffer("boss", "bob", "o", 1, 10, None, ""))


def test_a_frozen_seller_sells_nothing_and_gets_back_what_is_left():
    market = Market()
    market.offer()
    market.do(ChangeAccount("boss", "alice", "c", "freeze", False, ""))
    with pytest.raises(AccountFrozen):
        market.take(1)
    with pytest.raises(AccountFrozen):
        market.offer("p")

    assert market.cancel().returned == 10


def test_an_account_with_open_offers_is_not_closed_even_when_it_forfeits():
    market = Market()
    market.offer()
    with pytest.raises(AccountNotEmpty) as refused:
        market.do(ChangeAccount("boss", "alice", "c", "close", True, ""))
    market.cancel()

    assert refused.value.metadata["offered"] == "10"
    assert market.do(ChangeAccount("boss", "alice", "c", "close", True, "")).account is not None


def test_what_comes_back_is_not_refused_where_the_balance_is_full():
    market = Market()
    market.offer()
    account = market.state.accounts["alice", TOKEN]
    market.state.accounts["alice", TOKEN] = account._replace(balance=10**18)

    assert market.cancel().returned == 10


def test_points_that_would_pass_the_largest_balance_are_not_taken():
    market = Market()
    market.offer(price=10)
    market.state.accounts["alice", POINT] = Account("alice", POINT, 10**18, 0, None, START_US, 0)
    with pytest.raises(BalanceLimit):
        market.take(1)

    assert market.of("bob") == (0, 100)


def test_a_price_that_no_integer_of_the_database_could_hold_is_only_too_dear():
    market = Market(Rules(welcome_bonus=0, earning=EARNING._replace(offers_per_day=10**15)))
    market.do(Grant("boss", "alice", "g2", 10**15, ""))
    market.offer(tokens=10**15, price=10**15)
    with pytest.raises(InsufficientPoints) as refused:
        market.take(10**15)

    assert refused.value.metadata["requested"] == str(10**30)


def test_a_row_that_brings_back_another_amount_or_ends_an_offer_again_does_not_follow():
    """What an audit goes by: such rows are told at once, whatever balances they lead to."""
    market = Market()
    market.offer("short", 5)
    market.offer("over", 5)
    market.cancel("over")
    for offer_id, change, problem in (
        ("short", 4, "4 come back of 5"),
        ("over", 5, "is CANCELLED"),
        ("over", 0, "is CANCELLED"),
    ):
        seller = market.state.accounts["alice", TOKEN]
        back = entry_on(seller, "unoffer", "boss", balance_change=change, counterparty=ESCROW, key=offer_id)
        with pytest.raises(ValueError, match=problem):
            apply(market.state.copy(), back, market.now_us)
    points = Account("alice", POINT, 0, 0, None, START_US, 0)
    for offer_id, tokens, paid in (("short", 2, 19), ("short", 6, 60), ("over", 1, 10)):
        facts = {"peer": "bob", "offer": offer_id, "tokens": tokens}
        sold = entry_on(points, "sell", "boss", balance_change=paid, counterparty="@transfer", facts=facts)
        with pytest.raises(ValueError, match=r"points for|is CANCELLED"):
            apply(market.state.copy(), sold, market.now_us)


def test_of_several_refusals_the_one_that_the_proto_names_first_is_given():
    """Each is met in turn, as the one before it is taken away."""
    earning = EARNING._replace(open_offers=1)
    market = Market(Rules(welcome_bonus=10, earning=earning))
    welcomed = CreateOffer("boss", "bob", "o", 21, 9, None, "")
    market.do(Grant("boss", "bob", "one-more", 1, ""))
    market.do(CreateOffer("boss", "bob", "first", 1, 10, None, ""))
    market.do(ChangeAccount("boss", "bob", "c1", "freeze", False, ""))
    refusals = [refused(market, welcomed)]
    market.do(ChangeAccount("boss", "bob", "c2", "unfreeze", False, ""))
    refusals.append(refused(market, welcomed))
    market.do(CancelOffer("boss", "bob", "first"))
    refusals.append(refused(market, welcomed))
    refusals += [refused(market, welcomed._replace(price_points=10, tokens=tokens)) for tokens in (21, 20, 11)]

    names = ["AccountFrozen", "OfferLimit", "OfferTerms", "LimitReached", "InsufficientFunds", "WelcomeLocked"]
    assert refusals == names
    reasons = [row.reason for kind, row in ERRORS.rows.items() if kind.__name__ in names]
    assert reasons == [ERRORS.rows[kind].reason for name in names for kind in ERRORS.rows if kind.__name__ == name]


def refused(market: Market, command: Command) -> str:
    with pytest.raises(Refusal) as caught:
        market.do(command)
    return type(caught.value).__name__


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.sampled_from(["bob", "carol"]), st.integers(1, 12), st.integers(0, 9)),
        st.tuples(st.just("cancel"), st.sampled_from(["o", "p"]), st.just(0), st.just(0)),
        st.tuples(st.just("create"), st.sampled_from(["o", "p"]), st.integers(1, 12), st.integers(1, 40)),
        st.tuples(st.just("wait"), st.just(""), st.integers(1, 30), st.just(0)),
        st.tuples(st.just("freeze"), st.sampled_from(["freeze", "unfreeze"]), st.integers(0, 9), st.just(0)),
    ),
    max_size=25,
)


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_in_whatever_order_things_happen_escrow_and_balances_stay_constant_and_each_offer_ends_once(steps):
    market = Market()
    total = sum(balance for balance, _ in map(market.of, ("alice", "bob", "carol")))
    ended: dict[tuple[str, str], Offer] = {}
    for name, word, amount, number in steps:
        with suppress(Refusal):
            step(market, name, word, amount, number)
        balances = [market.of(each) for each in ("alice", "bob", "carol")]
        offers = market.state.market.offers
        assert sum(balance for balance, _ in balances) + market.escrow == total
        assert sum(points for _, points in balances) == 200
        assert market.escrow == sum(each.left for each in offers.values())
        assert market.state.system.get(("@transfer", POINT), 0) == 0
        for key, offer in offers.items():
            assert ended.get(key, offer) == offer
            if offer.state != OfferState.OPEN:
                ended[key] = offer
                assert (offer.sold + offer.returned, offer.left) == (offer.tokens, 0)


def step(market: Market, name: str, word: str, amount: int, number: int) -> None:
    match name:
        case "take":
            market.take(amount, f"t{number}", word, "op"[number % 2])
        case "cancel":
            market.cancel(word)
        case "create":
            market.offer(word, amount, number, amount * 3_600_000_000)
        case "wait":
            market.now_us += amount * 1_800_000_000
            market.do(Sweep("alice"))
        case _:
            market.do(ChangeAccount("boss", "alice", f"{word}{amount}", word, False, ""))
