"""What the marketplace declares, held against every row of it. Written from the declarations, not from the code.

What open offers have left is counted here from what was offered, bought and returned; what @escrow has, from every row
that names it. The two must be the same after each move.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sandbox.prover.rule_promises import RulePromises
from sandbox.prover.world import Row, Step
from services.wallet.holdings import POINT

ESCROW = "@escrow"
Key = tuple[str, str]


@dataclass
class _Offer:
    """Tokens for points, and how many of them are left."""

    left: int
    price: int
    until_us: int
    day: int


class MarketPromises:
    """Watches the marketplace of one world."""

    def __init__(self, rules: RulePromises) -> None:
        self._rules = rules
        self._offers: dict[Key, _Offer] = {}
        self._escrow = 0
        self._offered: Counter[tuple[str, int]] = Counter()

    def problems(self, row: Row, day: int) -> Iterator[str]:
        """What one row breaks."""
        entry = row.entry
        if entry.counterparty == ESCROW:
            self._escrow -= entry.balance_change
        if entry.kind == "offer":
            yield from self._of_offer(row, day)
        elif entry.kind == "unoffer":
            yield from self._of_end(row)
        elif entry.kind == "buy" and entry.asset != POINT:
            yield from self._of_take(row)

    def _of_offer(self, row: Row, day: int) -> Iterator[str]:
        entry, rules, now_us = row.entry, self._rules, row.time_us
        seller, tokens, price = entry.account_id, -entry.balance_change, entry.facts["price"]
        if (seller, entry.key) in self._offers:
            yield f"{seller} offered {entry.key} twice"
        if price < rules.least("offer_price_min", now_us):
            yield f"{seller} offered tokens for {price} points"
        self._offers[seller, entry.key] = _Offer(tokens, price, entry.facts["expire_time_us"], day)
        self._offered[seller, day] += tokens
        of_day, at_once = rules.most("offers_per_day", now_us), rules.most("open_offers", now_us)
        if self._offered[seller, day] > of_day:
            yield f"{seller} offered more than {of_day} tokens in one day"
        if sum(key[0] == seller and offer.left > 0 for key, offer in self._offers.items()) > at_once:
            yield f"{seller} had more than {at_once} open offers"

    def _of_end(self, row: Row) -> Iterator[str]:
        """An offer ends once, with all that nobody has bought, and by its time no sooner than that has come."""
        entry = row.entry
        offer = self._offers[entry.account_id, entry.key]
        if not offer.left:
            yield f"{entry.key} of {entry.account_id} ended twice"
        if entry.balance_change != offer.left:
            yield f"{entry.balance_change} came back of the {offer.left} that {entry.key} had left"
        if entry.facts.get("expired") and row.time_us < offer.until_us:
            yield f"{entry.key} of {entry.account_id} expired too early"
        self._offered[entry.account_id, offer.day] -= entry.balance_change
        offer.left = 0

    def _of_take(self, row: Row) -> Iterator[str]:
        entry = row.entry
        seller, tokens = entry.facts["peer"], entry.balance_change
        offer = self._offers[seller, entry.facts["offer"]]
        if seller == entry.account_id:
            yield f"{seller} bought of itself"
        if tokens > offer.left:
            yield f"{tokens} were bought of the {offer.left} that {entry.facts['offer']} had left"
        if row.time_us >= offer.until_us:
            yield f"{entry.facts['offer']} of {seller} was bought of after its time"
        offer.left -= tokens

    def of_step(self, step: Step) -> Iterator[str]:
        """What is broken by all rows of a move together, or by the refusal of one."""
        yield from self._of_price(step.rows)
        left = sum(offer.left for offer in self._offers.values())
        if left != self._escrow:
            yield f"@escrow has {self._escrow}, and open offers have {left} left"
        for (seller, key), offer in self._offers.items():
            if offer.left and step.time_us >= offer.until_us:
                yield f"{key} of {seller} is open after its time"
        move = step.move
        mine = self._offers.get((move.who, move.what))
        if move.kind == "cancel" and mine is not None and mine.left:
            yield f"{move.who} could not cancel {move.what}"

    def _of_price(self, rows: Sequence[Row]) -> Iterator[str]:
        """Whoever buys pays the price of the offer, and whoever sells gets it."""
        for entry, _ in rows:
            if entry.kind in ("buy", "sell") and entry.asset == POINT:
                seller = entry.account_id if entry.kind == "sell" else entry.facts["peer"]
                tokens, paid = entry.facts["tokens"], abs(entry.balance_change)
                points = self._offers[seller, entry.facts["offer"]].price * tokens
                if paid != points:
                    yield f"{paid} points were moved for {tokens} tokens, not {points}"
