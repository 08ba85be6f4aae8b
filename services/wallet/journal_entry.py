"""What the journal records, and what each record means for accounts and reservations.

`apply` is the only function that changes a balance. The ledger decides by making entries and applying them; an audit
reads the same entries back, applies them to nothing, and must arrive at the same accounts and reservations.

    kind      balance          held              counterparty
    open                                                            an account begins
    grant     + amount                           @issue             new tokens
    reserve                    + amount                             a hold begins
    amend                      - released                           a hold shrinks, or ends later
    commit    - committed      - (all that was held)   @revenue     a hold is taken; the rest goes back
    release                    - (all that was held)                a hold goes back; on an unused id, a tombstone
    expire                     - (all that was held)                a hold's time has passed
    refund    + amount                           @revenue           committed tokens come back
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType
from typing import Any, NamedTuple

TOKEN = "TOKEN"  # noqa: S105 - the name of an asset
ISSUE = "@issue"
REVENUE = "@revenue"
WALLET = "@wallet"
"""The actor of what the wallet does by itself: sweeps and welcome bonuses."""


class ReservationState(IntEnum):
    """Where a reservation stands; the numbers are those of the proto."""

    HELD = 1
    COMMITTED = 2
    RELEASED = 3
    EXPIRED = 4


class Account(NamedTuple):
    """One account's holdings of one asset, as stored: the fields are the columns."""

    account_id: str
    asset: str
    balance: int
    held: int
    due_time_us: int | None
    """No hold ends before this; None when nothing can. May be early, never late."""
    create_time_us: int
    revision: int

    @property
    def available(self) -> int:
        """What can be reserved now, if nothing is due."""
        return self.balance - self.held


class Reservation(NamedTuple):
    """A hold and what became of it, as stored: the fields are the columns."""

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

    @property
    def held(self) -> int:
        """What is still held; 0 once it has ended."""
        return self.reserved - self.committed - self.released - self.expired


class GrantRecord(NamedTuple):
    """A grant that was made, as stored: what its key is compared with."""

    created_by: str
    grant_id: str
    account_id: str
    asset: str
    amount: int
    reference: str
    revision: int


class Operation(NamedTuple):
    """A Refund or Amend that was done, as stored: what its key is compared with."""

    created_by: str
    reservation_id: str
    operation_id: str
    kind: str
    amount: int | None
    hold_us: int | None
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
    """What else the kind needs to be applied; see the functions below."""


def entry_on(
    account: Account,
    kind: str,
    actor: str,
    *,
    balance_change: int = 0,
    held_change: int = 0,
    counterparty: str = "",
    created_by: str = "",
    reservation_id: str = "",
    key: str = "",
    facts: Mapping[str, Any] = NO_FACTS,
) -> Entry:
    """The entry that changes an account by so much: it follows the account's last one and says what comes out."""
    return Entry(
        kind,
        actor,
        account.account_id,
        account.revision,
        balance_change,
        held_change,
        account.balance + balance_change,
        account.held + held_change,
        counterparty,
        created_by,
        reservation_id,
        key,
        facts,
    )


AccountKey = tuple[str, str]
ReservationKey = tuple[str, str]
OperationKey = tuple[str, str, str]


@dataclass(slots=True)
class State:
    """What a group of commands works on: all that they name, and nothing else."""

    accounts: dict[AccountKey, Account] = field(default_factory=dict)
    reservations: dict[ReservationKey, Reservation] = field(default_factory=dict)
    grants: dict[ReservationKey, GrantRecord] = field(default_factory=dict)
    operations: dict[OperationKey, Operation] = field(default_factory=dict)
    system: dict[AccountKey, int] = field(default_factory=dict)
    """How much the balances of the system accounts changed."""
    issued: int = 0
    """What @issue had given before; loaded for grants alone."""
    revision: int = 0
    """The last one used; entries take the next ones."""
    entries: list[Entry] = field(default_factory=list)


def apply(state: State, entry: Entry, now_us: int) -> None:
    """Changes the state by one entry, which becomes the next revision.

    Raises `ValueError` for an entry whose own balances do not follow from the state: in an audit, the first wrong row.
    """
    state.revision += 1
    state.entries.append(entry)
    kind = entry.kind
    if kind == "open":
        _open(state, entry, now_us)
    elif entry.account_id:
        _move(state, entry)
    if kind == "reserve":
        _reserve(state, entry, now_us)
    elif kind == "grant":
        _grant(state, entry)
    elif kind != "open":
        _change_reservation(state, entry, now_us)


def _open(state: State, entry: Entry, now_us: int) -> None:
    key = (entry.account_id, TOKEN)
    state.accounts[key] = Account(entry.account_id, TOKEN, 0, 0, None, now_us, state.revision)


def _move(state: State, entry: Entry) -> None:
    key = (entry.account_id, TOKEN)
    account = state.accounts[key]
    balance, held = account.balance + entry.balance_change, account.held + entry.held_change
    if (balance, held) != (entry.balance, entry.held):
        raise ValueError(
            f"revision {state.revision}: account {entry.account_id!r} comes to balance {balance} and held {held}, "
            f"and the entry says {entry.balance} and {entry.held}"
        )
    due_time_us = account.due_time_us
    expire_time_us = entry.facts.get("expire_time_us")
    if expire_time_us is not None and (due_time_us is None or expire_time_us < due_time_us):
        due_time_us = expire_time_us
    state.accounts[key] = Account(
        account.account_id, TOKEN, balance, held, due_time_us, account.create_time_us, state.revision
    )
    if entry.counterparty:
        other = (entry.counterparty, TOKEN)
        state.system[other] = state.system.get(other, 0) - entry.balance_change


def _grant(state: State, entry: Entry) -> None:
    state.grants[entry.created_by, entry.key] = GrantRecord(
        entry.created_by,
        entry.key,
        entry.account_id,
        TOKEN,
        entry.balance_change,
        entry.facts.get("reference", ""),
        state.revision,
    )


def _reserve(state: State, entry: Entry, now_us: int) -> None:
    facts = entry.facts
    state.reservations[entry.created_by, entry.reservation_id] = Reservation(
        entry.created_by,
        entry.reservation_id,
        facts["for"],
        entry.account_id,
        1,
        entry.held_change,
        0,
        0,
        0,
        0,
        facts["hold_us"],
        facts["expire_time_us"],
        now_us,
        facts.get("price_version", ""),
        facts.get("reference", ""),
        None,
        0,
        state.revision,
    )


def _change_reservation(state: State, entry: Entry, now_us: int) -> None:
    key = (entry.created_by, entry.reservation_id)
    revision, facts = state.revision, entry.facts
    old = state.reservations.get(key)
    if old is None:
        state.reservations[key] = tombstone(key, now_us, revision)
        return
    freed = -entry.held_change
    match entry.kind:
        case "commit":
            taken = -entry.balance_change
            state.reservations[key] = old._replace(
                state=ReservationState.COMMITTED,
                committed=taken,
                released=old.released + max(freed - taken, 0),
                expired=old.expired if freed else old.expired - taken,
                commit_amount=facts.get("amount"),
                commit_late=int(facts.get("allow_late", 0)),
                revision=revision,
            )
        case "release":
            state.reservations[key] = old._replace(
                state=ReservationState.RELEASED, released=old.released + freed, revision=revision
            )
        case "expire":
            state.reservations[key] = old._replace(state=ReservationState.EXPIRED, expired=freed, revision=revision)
        case "amend":
            state.reservations[key] = old._replace(
                released=old.released + freed, expire_time_us=facts["expire_time_us"], revision=revision
            )
            _remember(state, entry)
        case "refund":
            state.reservations[key] = old._replace(refunded=old.refunded + entry.balance_change, revision=revision)
            _remember(state, entry)
        case _:
            raise ValueError(f"revision {revision}: there is no kind {entry.kind!r}")


def _remember(state: State, entry: Entry) -> None:
    state.operations[entry.created_by, entry.reservation_id, entry.key] = Operation(
        entry.created_by,
        entry.reservation_id,
        entry.key,
        entry.kind,
        entry.facts.get("amount"),
        entry.facts.get("hold_us"),
        state.revision,
    )


def tombstone(key: ReservationKey, now_us: int, revision: int) -> Reservation:
    """The reservation that a release of an unused id leaves behind, so that a late Reserve finds it released."""
    created_by, reservation_id = key
    released = int(ReservationState.RELEASED)
    return Reservation(
        created_by, reservation_id, "", "", released, 0, 0, 0, 0, 0, 0, now_us, now_us, "", "", None, 0, revision
    )
