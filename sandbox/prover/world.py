"""A ledger in memory with users who do something at a time: moves in, rows of the journal out."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, tzinfo
from typing import Final, NamedTuple

from services.wallet import calendar_day, ledger
from services.wallet.commands import (
    Award,
    ClaimDaily,
    Command,
    Commit,
    Convert,
    Grant,
    Moment,
    OpenAccount,
    RecordActivity,
    Refund,
    Release,
    Reserve,
)
from services.wallet.economy import Rules
from services.wallet.errors import Refusal
from services.wallet.holdings import Account, Entry, Reservation, State
from services.wallet.market import Offer
from services.wallet.market_commands import CancelOffer, CreateOffer, TakeOffer
from services.wallet.sharing import Role
from services.wallet.sharing_commands import Give, OpenTeam, RemoveMember, SetMember
from services.wallet.sweep import end_due

BACKEND: Final = "backend"
SHOP: Final = "shop"
"""Whoever grants what was bought for money."""
HOUR_US: Final = 3600 * 1_000_000


class Move(NamedTuple):
    """One thing that a user does. It carries its key, so that it is the same move when others are left out."""

    kind: str
    who: str
    key: str
    what: str = ""
    """An activity, an achievement, who is given to or taken in, or the key of the move that made what this is about."""
    amount: int = 0
    wait_us: int = 0
    """How much time passes before it."""
    zone_hours: int = 0
    """Where the user says that they are: no rule may believe it."""
    of: str = ""
    """The team that pays for what is reserved, or whose members change; or the seller of an offer."""
    role: int = int(Role.MEMBER)
    limits: tuple[int | None, int | None] = (None, None)
    """Of a member, for a day and a month."""
    hours: int = 1
    """How long what is reserved is held, or an offer is open: 0 for what the rules say."""
    price: int = 0
    """In points, for each token that is offered."""


class Row(NamedTuple):
    """A row of the journal, and when it was written."""

    entry: Entry
    time_us: int


class Step(NamedTuple):
    """What came of a move: the rows that it wrote, none when it was refused. time_us: when it was made."""

    move: Move
    rows: Sequence[Row]
    time_us: int


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
        self._zone_of = zone_of

    def do(self, move: Move) -> Step:
        """Lets a move happen."""
        self.now_us += move.wait_us
        moment = Moment(self.now_us, self.rules, self._zone_of(move, self.zone))
        end_due(self.state, self._sellers(), moment, self.now_us + 1)
        with suppress(Refusal):
            ledger.decide(self.state, _COMMANDS[move.kind](move), moment)
        rows = [Row(entry, self.now_us) for entry in self.state.entries]
        self.state.entries.clear()
        return Step(move, rows, self.now_us)

    def _sellers(self) -> set[str]:
        return {each.account_id for each in self.state.market.offers.values() if each.left}

    def forget(self) -> None:
        """Lets go of what no further move names: a year has more keys than memory, and none is used twice."""
        state, today = self.state, calendar_day.day_of(self.now_us, self.zone)
        state.earnings.clear()
        state.operations.clear()
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
    "top_up": lambda move: Grant(SHOP, move.of or move.who, move.key, move.amount, ""),
    "team": lambda move: OpenTeam(move.who, move.of, move.who),
    "member": _member,
    "unmember": lambda move: RemoveMember(move.who, move.of, move.key, move.who, move.what),
    "offer": _offer,
    "take": lambda move: TakeOffer(move.who, move.who, move.key, move.of, move.what, move.amount),
    "cancel": lambda move: CancelOffer(move.who, move.who, move.what),
    "give": lambda move: Give(move.who, move.who, move.what, move.key, move.amount, ""),
    "refund": lambda move: Refund(BACKEND, BACKEND, move.what, move.key, move.amount or None),
}
KINDS: Final = tuple(_COMMANDS)
