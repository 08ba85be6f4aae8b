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
from services.wallet.sharing_commands import Give
from services.wallet.sweep import end_due

BACKEND: Final = "backend"
HOLD_US: Final = 3600 * 1_000_000


class Move(NamedTuple):
    """One thing that a user does. It carries its key, so that it is the same move when others are left out."""

    kind: str
    who: str
    key: str
    what: str = ""
    """An activity or achievement, who is given to, or the key of the move that made a reservation."""
    amount: int = 0
    wait_us: int = 0
    """How much time passes before it."""
    zone_hours: int = 0
    """Where the user says that they are: no rule may believe it."""


class Row(NamedTuple):
    """A row of the journal, and when it was written."""

    entry: Entry
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

    def do(self, move: Move) -> Sequence[Row]:
        """Lets a move happen; what it wrote, which is nothing when it was refused."""
        self.now_us += move.wait_us
        moment = Moment(self.now_us, self.rules, self._zone_of(move, self.zone))
        end_due(self.state, (), moment, self.now_us + 1)
        with suppress(Refusal):
            ledger.decide(self.state, _COMMANDS[move.kind](move), moment)
        rows = [Row(entry, self.now_us) for entry in self.state.entries]
        self.state.entries.clear()
        return rows

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
    def reservations(self) -> Mapping[tuple[str, str], Reservation]:
        """Who holds what."""
        return self.state.reservations


def _reserve(move: Move) -> Command:
    return Reserve(BACKEND, move.who, move.who, move.key, move.amount, HOLD_US, "", "", False)


_COMMANDS: Final[Mapping[str, Callable[[Move], Command]]] = {
    "open": lambda move: OpenAccount(move.who, move.who),
    "claim": lambda move: ClaimDaily(move.who, move.who, move.key),
    "activity": lambda move: RecordActivity(BACKEND, move.who, move.what, move.key),
    "award": lambda move: Award(BACKEND, move.who, move.what),
    "convert": lambda move: Convert(move.who, move.who, move.key, move.amount),
    "reserve": _reserve,
    "commit": lambda move: Commit(BACKEND, BACKEND, move.what, move.amount or None, True),
    "release": lambda move: Release(BACKEND, BACKEND, move.what),
    "give": lambda move: Give(move.who, move.who, move.what, move.key, move.amount, ""),
    "refund": lambda move: Refund(BACKEND, BACKEND, move.what, move.key, move.amount or None),
}
KINDS: Final = tuple(_COMMANDS)
