"""A ledger in memory with users who do something at a time: moves in, rows of the journal out."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, tzinfo
from typing import Final, NamedTuple

from sandbox.prover.move import BACKEND, HOUR_US, Move
from sandbox.prover.shop import SHOP_KINDS, Event, Shop
from services.wallet import calendar_day, ledger
from services.wallet.commands import (
    Award,
    ChangeAccount,
    ClaimDaily,
    Command,
    Commit,
    Convert,
    Grant,
    Moment,
    OpenAccount,
    PutRules,
    RecordActivity,
    Refund,
    Release,
    Reserve,
)
from services.wallet.economy import EarningRules, Rules, write_rules
from services.wallet.errors import Refusal
from services.wallet.holdings import Account, Entry, Reservation, State
from services.wallet.market import Offer
from services.wallet.market_commands import CancelOffer, CreateOffer, TakeOffer
from services.wallet.sharing_commands import Give, OpenTeam, RemoveMember, SetMember
from services.wallet.sweep import end_due

TILL: Final = "till"
"""Whoever grants what was bought for money."""


NEVER_US: Final = 2**62


class Row(NamedTuple):
    """A row of the journal, and when it was written."""

    entry: Entry
    time_us: int


class Step(NamedTuple):
    """What came of a move: the rows that it wrote, none when it was refused. time_us: when it was made."""

    move: Move
    rows: Sequence[Row]
    time_us: int
    events: Sequence[Event] = ()
    """What the batcher told of it."""


class World:
    """Users of one ledger. zone_of: whose calendar a move is decided by; the operator's, unless that is the hole."""

    def __init__(
        self,
        rules: Rules,
        now_us: int,
        zone: tzinfo = UTC,
        zone_of: Callable[[Move, tzinfo], tzinfo] = lambda _, zone: zone,
    ) -> None:
        self.rules = rules
        self.now_us = now_us
        self.zone = zone
        self.state = State()
        self.shop = Shop()
        self._zone_of = zone_of
        self._due_us = NEVER_US

    def do(self, move: Move) -> Step:
        """Lets a move happen."""
        self.now_us += move.wait_us
        moment = Moment(self.now_us, self.rules, self._zone_of(move, self.zone))
        if self.now_us >= self._due_us:
            self._end_due(moment)
        events: Sequence[Event] = ()
        if move.kind in SHOP_KINDS:
            events = self.shop.do(move, self.now_us, lambda command: self._accepts(command, moment))
        else:
            self._accepts(_COMMANDS[move.kind](move), moment)
        rows = [Row(entry, self.now_us) for entry in self.state.entries]
        self.state.entries.clear()
        self._due_us = min([self._due_us, *(entry.facts.get("expire_time_us", NEVER_US) for entry, _ in rows)])
        return Step(move, rows, self.now_us, events)

    def _accepts(self, command: Command, moment: Moment) -> bool:
        try:
            ledger.decide(self.state, command, moment)
        except Refusal:
            return False
        return True

    def _end_due(self, moment: Moment) -> None:
        """Ends the holds and offers whose time has passed, and sees when the next one's does."""
        market = self.state.market
        sellers = {each.account_id for each in market.offers.values() if each.left}
        end_due(self.state, sellers, moment, self.now_us + 1)
        ends = [each.expire_time_us for each in self.state.reservations.values() if each.held]
        ends += [each.expire_time_us for each in market.offers.values() if each.left]
        self._due_us = min(ends, default=NEVER_US)

    def forget(self) -> None:
        """Lets go of what no further move names: a year has more keys than memory, and none is used twice."""
        state, today = self.state, calendar_day.day_of(self.now_us, self.zone)
        state.earnings = {key: each for key, each in state.earnings.items() if each.kind == "achievement"}
        state.operations.clear()
        state.shared.gifts.clear()
        state.market.takes.clear()
        state.market.offers = {key: each for key, each in state.market.offers.items() if each.left}
        state.reservations = {key: each for key, each in state.reservations.items() if each.held}
        state.counters = {key: each for key, each in state.counters.items() if not 0 < each.day < today}

    @property
    def accounts(self) -> Mapping[tuple[str, str], Account]:
        """What everybody has."""
        return self.state.accounts

    @property
    def offers(self) -> Mapping[tuple[str, str], Offer]:
        """What everybody has offered."""
        return self.state.market.offers

    @property
    def reservations(self) -> Mapping[tuple[str, str], Reservation]:
        """Who holds what."""
        return self.state.reservations


def _reserve(move: Move) -> Command:
    payer = move.of or move.who
    return Reserve(BACKEND, move.who, payer, move.key, move.amount, move.hours * HOUR_US, "", "", False)


def _member(move: Move) -> Command:
    return SetMember(move.who, move.of, move.key, move.who, move.what, move.role, *move.limits)


def _put_rules(move: Move) -> Command:
    rules = move.rules or EarningRules()
    return PutRules(move.who, move.key, None, move.amount, move.what, write_rules(rules))


def _change(move: Move) -> Command:
    return ChangeAccount(move.who, move.what, move.key, move.kind, True, "")


def _offer(move: Move) -> Command:
    lifetime_us = move.hours * HOUR_US or None
    return CreateOffer(move.who, move.who, move.key, move.amount, move.price, lifetime_us, "")


_COMMANDS: Final[Mapping[str, Callable[[Move], Command]]] = {
    "open": lambda move: OpenAccount(move.who, move.who),
    "claim": lambda move: ClaimDaily(move.who, move.who, move.key),
    "activity": lambda move: RecordActivity(BACKEND, move.who, move.what, move.key),
    "award": lambda move: Award(BACKEND, move.who, move.what),
    "convert": lambda move: Convert(move.who, move.who, move.key, move.amount),
    "reserve": _reserve,
    "commit": lambda move: Commit(BACKEND, BACKEND, move.what, move.amount or None, True),
    "release": lambda move: Release(BACKEND, BACKEND, move.what),
    "top_up": lambda move: Grant(TILL, move.of or move.who, move.key, move.amount, ""),
    "team": lambda move: OpenTeam(move.who, move.of, move.who),
    "member": _member,
    "unmember": lambda move: RemoveMember(move.who, move.of, move.key, move.who, move.what),
    "put_rules": _put_rules,
    "freeze": _change,
    "unfreeze": _change,
    "close": _change,
    "offer": _offer,
    "take": lambda move: TakeOffer(move.who, move.who, move.key, move.of, move.what, move.amount),
    "cancel": lambda move: CancelOffer(move.who, move.who, move.what),
    "give": lambda move: Give(move.who, move.who, move.what, move.key, move.amount, ""),
    "refund": lambda move: Refund(BACKEND, BACKEND, move.what, move.key, move.amount or None),
}
KINDS: Final = tuple(_COMMANDS)
