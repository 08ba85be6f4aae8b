"""What the ledger keeps: the journal's entries, and the accounts, reservations, lots and keys that they make.

Everything but the entries is a projection: `journal_entry.apply` makes it, and an audit makes it again. The fields are
the columns.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType
from typing import Any, NamedTuple

from services.wallet.market import Market
from services.wallet.sharing import Shared

TOKEN = "TOKEN"  # noqa: S105 - the name of an asset
POINT = "POINT"
"""What activities earn. Points can't be held or spent, only changed into tokens or traded for them."""
ISSUE = "@issue"
REVENUE = "@revenue"
LAPSED = "@lapsed"
"""Takes what nobody spent in time: tokens whose life has ended, and what a closed account leaves behind."""
WALLET = "@wallet"
"""The actor of what the wallet does by itself: sweeps and welcome bonuses."""

PLAIN_PRIORITY = 50
"""Where tokens without a lot stand among the lots."""
PLAIN = 0
"""Stands for the tokens without a lot where a lot's id is asked for."""


class AccountState(IntEnum):
    """Whether an account may be used; the numbers are those of the proto."""

    OPEN = 1
    FROZEN = 2
    CLOSED = 3


class ReservationState(IntEnum):
    """Where a reservation stands; the numbers are those of the proto."""

    HELD = 1
    COMMITTED = 2
    RELEASED = 3
    EXPIRED = 4


class Account(NamedTuple):
    """One account's holdings of one asset."""

    account_id: str
    asset: str
    balance: int
    held: int
    due_time_us: int | None
    """No hold and no lot ends before this; None when nothing can. May be early, never late."""
    create_time_us: int
    revision: int
    state: int = 1
    lots: int = 0
    """How many lots with tokens left it has: those of an account with none are never looked for."""
    worked: int = 0
    """1 once a reservation that it pays for was committed."""
    team: int = 0
    """1 for a team, which pays for its members alone."""
    spend_since: int = 0
    """The first calendar day whose spending its own limits count; 0 without limits, and then none are looked for."""

    @property
    def available(self) -> int:
        """What can be reserved now, if nothing is due."""
        return self.balance - self.held


class Reservation(NamedTuple):
    """A hold and what became of it."""

    created_by: str
    reservation_id: str
    account_id: str
    payer_account_id: str
    state: int
    reserved: int
    committed: int
    released: int
    expired: int
    refunded: int
    hold_us: int
    expire_time_us: int
    create_time_us: int
    price_version: str
    reference: str
    commit_amount: int | None
    """The amount that the Commit sent; None when it sent none, or when there was no Commit."""
    commit_late: int
    """1 when the Commit allowed to be late."""
    revision: int
    pins: str = ""
    """What it holds of which lot, or has taken and not returned; see `Pins`. Empty when lots have no part in it."""
    spend_day: int = 0
    """The calendar day on which a team counts it for its member; 0 when no team pays."""

    @property
    def held(self) -> int:
        """What is still held; 0 once it has ended."""
        return self.reserved - self.committed - self.released - self.expired


class Lot(NamedTuple):
    """Tokens of one grant that have a life of their own."""

    lot_id: int
    """The revision that made it."""
    account_id: str
    asset: str
    created_by: str
    grant_id: str
    priority: int
    expire_time_us: int | None
    granted: int
    remaining: int
    held: int
    grace: int
    """1 for tokens that came back into a lot whose time had passed: this happens once."""
    revoked: int
    revision: int

    @property
    def free(self) -> int:
        """What is left and not held."""
        return self.remaining - self.held

    def is_over(self, at_us: int) -> bool:
        """Whether its tokens fund nothing any more at an instant."""
        return self.expire_time_us is not None and self.expire_time_us <= at_us


class GrantRecord(NamedTuple):
    """A grant that was made: what its key is compared with."""

    created_by: str
    grant_id: str
    account_id: str
    asset: str
    amount: int
    reference: str
    revision: int
    lifetime_us: int | None = None
    priority: int | None = None
    revoked: int | None = None
    """How many tokens a revocation took; None before one."""

    @property
    def made_a_lot(self) -> bool:
        """Whether its tokens have a life of their own."""
        return self.lifetime_us is not None or self.priority is not None


class Operation(NamedTuple):
    """A Refund or Amend that was done: what its key is compared with."""

    created_by: str
    reservation_id: str
    operation_id: str
    kind: str
    amount: int | None
    hold_us: int | None
    revision: int


class AccountChange(NamedTuple):
    """A freeze, unfreeze or close that was done: what its key is compared with."""

    created_by: str
    change_id: str
    account_id: str
    kind: str
    forfeit: int
    reference: str
    revision: int


class CounterRecord(NamedTuple):
    """How much an account has used of something that is limited, in one calendar day (or month, or ever: day 0)."""

    account_id: str
    counter: str
    day: int
    """See `calendar_day`; of a month its first day, and 0 for what is counted for ever."""
    amount: int
    revision: int


class Earning(NamedTuple):
    """Something earned by a rule, or exchanged: what its key is compared with."""

    created_by: str
    earning_id: str
    account_id: str
    kind: str
    """`daily`, `activity`, `convert` or `achievement`."""
    name: str
    """Of an activity or achievement."""
    tokens: int
    points: int
    """How many points came (or, for a conversion, went: negative)."""
    day: int
    rules: str
    """The version of the rules that it was earned by; empty for those of the configuration."""
    revision: int


class Streak(NamedTuple):
    """On how many days in a row an account has claimed its daily bonus."""

    account_id: str
    day: int
    """The last day with a claim."""
    days: int
    best_days: int
    grace_day: int
    """The last day that was missed and forgiven; 0 for none."""
    revision: int


class RuleSetRecord(NamedTuple):
    """A version of the earning rules that was put: `document` is their JSON."""

    version: str
    actor: str
    effective_time_us: int
    at_once: int
    """1 when the request named no time."""
    rollout_percent: int
    cohort: str
    """Versions with the same cohort are tried on the same accounts."""
    document: str
    revision: int


NO_FACTS: Mapping[str, Any] = MappingProxyType({})


class Entry(NamedTuple):
    """One row of the journal before it has a place in the chain."""

    kind: str
    actor: str
    account_id: str
    """Empty for a tombstone, which is on nobody's account."""
    previous: int = 0
    """The account's row before this one; 0 for its first."""
    balance_change: int = 0
    held_change: int = 0
    balance: int = 0
    """Afterwards, like held."""
    held: int = 0
    counterparty: str = ""
    created_by: str = ""
    reservation_id: str = ""
    key: str = ""
    facts: Mapping[str, Any] = NO_FACTS
    """What else the kind needs to be applied; see `journal_entry`."""
    asset: str = TOKEN


AccountKey = tuple[str, str]
Key = tuple[str, str]
"""(who made it, the id that they chose)."""
OperationKey = tuple[str, str, str]
CounterKey = tuple[str, str, int]
Pins = Sequence[Sequence[int]]
"""(lot id, amount) in the order of spending; PLAIN stands for tokens without a lot."""


@dataclass(slots=True)
class State:
    """What a group of commands works on: all that they name, and nothing else."""

    accounts: dict[AccountKey, Account] = field(default_factory=dict)
    reservations: dict[Key, Reservation] = field(default_factory=dict)
    lots: dict[str, dict[int, Lot]] = field(default_factory=dict)
    """By account, then by id; also those without tokens when a reservation names them."""
    grants: dict[Key, GrantRecord] = field(default_factory=dict)
    operations: dict[OperationKey, Operation] = field(default_factory=dict)
    changes: dict[Key, AccountChange] = field(default_factory=dict)
    counters: dict[CounterKey, CounterRecord] = field(default_factory=dict)
    earnings: dict[Key, Earning] = field(default_factory=dict)
    streaks: dict[str, Streak] = field(default_factory=dict)
    rule_sets: dict[str, RuleSetRecord] = field(default_factory=dict)
    shared: Shared = field(default_factory=Shared)
    market: Market = field(default_factory=Market)
    system: dict[AccountKey, int] = field(default_factory=dict)
    """How much the balances of the system accounts changed."""
    issued: int = 0
    """What @issue had given before; loaded for grants alone."""
    revision: int = 0
    """The last one used; entries take the next ones."""
    entries: list[Entry] = field(default_factory=list)

    def copy(self) -> State:
        """Another state with the same content; values are immutable, so that it costs no more than its dictionaries."""
        return State(
            dict(self.accounts),
            dict(self.reservations),
            {account_id: dict(lots) for account_id, lots in self.lots.items()},
            dict(self.grants),
            dict(self.operations),
            dict(self.changes),
            dict(self.counters),
            dict(self.earnings),
            dict(self.streaks),
            dict(self.rule_sets),
            self.shared.copy(),
            self.market.copy(),
            dict(self.system),
            self.issued,
            self.revision,
            list(self.entries),
        )

    def add_lots(self, lots: Iterable[Lot]) -> None:
        """Takes lots in, each under its account."""
        for lot in lots:
            self.lots.setdefault(lot.account_id, {})[lot.lot_id] = lot


def read_pins(text: str) -> Pins:
    """Pins as they are stored."""
    pins: Pins = json.loads(text) if text else ()
    return pins


def write_pins(pins: Pins) -> str:
    """How pins are stored."""
    return json.dumps(pins, separators=(",", ":")) if pins else ""
