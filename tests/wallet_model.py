"""An independent model of the wallet, written from the promises and not from the code: slow and obvious.

It answers each command with a word for what should happen: "ok", "replayed", or the class of the refusal, and with how
things should be right after it. Of all refusals that apply it gives the one that stands first in the proto; those of
the key come before all others.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from services.wallet import commands, errors
from services.wallet.commands import Command
from tests.wallet_model_lots import PLAIN_PRIORITY, Lot, Part, Purse, split, total

LOTS_MAX = 1_000
FIRST_IN_PROTO = [
    "AccountNotFound",
    "ReservationNotFound",
    "GrantNotFound",
    "IdempotencyMismatch",
    "ReservationCommitted",
    "ReservationReleased",
    "ReservationExpired",
    "ReservationNotCommitted",
    "CommitExceedsReservation",
    "RefundExceedsCommitted",
    "AmendNotAllowed",
    "AccountClosed",
    "AccountFrozen",
    "AccountNotEmpty",
    "LotLimit",
    "InsufficientFunds",
    "BalanceLimit",
]
"""The refusals in the order of the enum in error_reason.proto."""
OF_THE_KEY = ["IdempotencyMismatch", "ReservationReleased"]
"""Refusals because of what a key was used for before, a tombstone included: they are given before all others."""


@dataclass(eq=False)
class Hold:
    """A reservation as its maker would describe it; a tombstone was never asked for."""

    request: commands.Reserve | None
    reserved: int
    ends_us: int
    touched: int
    """When something last happened to it, counted over all reservations."""
    state: str = "held"
    committed: int = 0
    released: int = 0
    expired: int = 0
    refunded: int = 0
    parts: list[Part] = field(default_factory=list)
    """What it holds, or took and did not return, in the order of spending."""
    settled_by: commands.Commit | None = None

    @property
    def held(self) -> int:
        """What it holds now."""
        return total(self.parts) if self.state == "held" else 0


class AccountSeen(NamedTuple):
    """How an account should look."""

    account_id: str
    state: str
    balance: int
    held: int


class HoldSeen(NamedTuple):
    """How a reservation should look; pins name lots by their number on the payer's account."""

    state: str
    reserved: int
    committed: int
    released: int
    expired: int
    refunded: int
    ends_us: int
    pins: tuple[tuple[int, int], ...]


class LotSeen(NamedTuple):
    """How a lot should look after a Reserve that is only previewed."""

    number: int
    remaining: int
    held: int


class Answer(NamedTuple):
    """What should come of a command."""

    word: str
    account: AccountSeen | None = None
    reservation: HoldSeen | None = None
    revoked: int = 0
    lots: tuple[LotSeen, ...] = ()
    """Of a Preview that is no repeat, the lots that it would hold of, in the order of spending."""


@dataclass
class WalletModel:
    """Purses by name; holds by (maker, id); everything that has a key by what kind of thing it is and its key."""

    welcome: int
    grace_us: int = 7 * 24 * 3600 * 1_000_000
    purses: dict[str, Purse] = field(default_factory=dict)
    holds: dict[tuple[str, str], Hold] = field(default_factory=dict)
    keys: dict[tuple[str, ...], Command] = field(default_factory=dict)
    revoked: dict[tuple[str, str], int] = field(default_factory=dict)
    touches: int = 0

    @property
    def balance(self) -> dict[str, int]:
        """What everybody has."""
        return {account_id: purse.balance for account_id, purse in self.purses.items()}

    @property
    def granted(self) -> int:
        """What @issue has given and not taken back."""
        return sum(purse.issued for purse in self.purses.values())

    @property
    def spent(self) -> int:
        """What @revenue has taken and not given back."""
        return sum(purse.spent for purse in self.purses.values())

    @property
    def lapsed(self) -> int:
        """What @lapsed has taken."""
        return sum(purse.lapsed for purse in self.purses.values())

    def held(self, account_id: str) -> int:
        """What the account's holds add up to."""
        return self.purses[account_id].held

    def holds_of(self, account_id: str) -> list[Hold]:
        """The open holds that the account pays for."""
        return [hold for hold in self.holds.values() if hold.state == "held" and _payer(hold) == account_id]

    def next_end_us(self) -> int | None:
        """The next instant at which anything ends by itself."""
        ends = [hold.ends_us for hold in self.holds.values() if hold.state == "held"]
        ends += [lot.ends_us for purse in self.purses.values() for lot in purse.lots if lot.free and lot.ends_us]
        return min(ends, default=None)

    def ends_under_holds_us(self, now_us: int) -> list[int]:
        """The instants to come at which lots end of which something is held."""
        held = [lot for purse in self.purses.values() for lot in purse.lots if lot.held and not lot.over(now_us)]
        return [lot.ends_us for lot in held if lot.ends_us is not None]

    def pass_time(self, now_us: int) -> None:
        """Ends what is due until now, in time order; at one instant holds before lots."""
        while (end_us := self.next_end_us()) is not None and end_us <= now_us:
            due = [hold for hold in self.holds.values() if hold.state == "held" and hold.ends_us == end_us]
            for hold in sorted(due, key=lambda hold: hold.touched):
                self._expire(hold)
            for purse in self.purses.values():
                for lot in [lot for lot in purse.lots if lot.ends_us == end_us]:
                    purse.lapse(lot)

    def _expire(self, hold: Hold) -> None:
        parts, hold.expired = hold.parts, hold.held
        hold.state, hold.parts = "expired", []
        self.purses[_payer(hold)].give_back(parts, hold.ends_us, grace=True)
        self._touch(hold)

    def _touch(self, hold: Hold) -> None:
        self.touches += 1
        hold.touched = self.touches

    def run(self, command: Command, now_us: int) -> str:
        """The word for what should come of the command."""
        return self.answer(command, now_us).word

    def answer(self, command: Command, now_us: int) -> Answer:
        """What should come of the command."""
        self.pass_time(now_us)
        return _ANSWERS[type(command)](self, command, now_us)

    def _preview(self, command: commands.Preview, now_us: int) -> Answer:
        then = copy.deepcopy(self)
        answer = then.answer(command.reserve, now_us)
        if answer.word != "ok":
            return answer
        hold = then.holds[command.reserve.actor, command.reserve.reservation_id]
        lots = [source for source, _ in hold.parts if source is not None]
        return answer._replace(lots=tuple(LotSeen(lot.number, lot.remaining, lot.held) for lot in lots))

    def _sweep(self, command: commands.Sweep, _now_us: int) -> Answer:
        return self._about("replayed", command.account_id)

    def _about(self, word: str, account_id: str | None, hold: Hold | None = None, revoked: int = 0) -> Answer:
        """The word and how things are now, which for a repeat is also the answer."""
        purse = None if account_id is None else self.purses.get(account_id)
        account = None
        if purse is not None and account_id is not None:
            account = AccountSeen(account_id, purse.state, purse.balance, purse.held)
        return Answer(word, account, None if hold is None else seen(hold), revoked)

    def _missing(self, account_id: str) -> list[str]:
        return [] if account_id in self.purses else ["AccountNotFound"]

    def _closed(self, account_id: str) -> list[str]:
        purse = self.purses.get(account_id)
        return ["AccountClosed"] if purse is not None and purse.state == "closed" else []

    def _frozen(self, account_id: str) -> list[str]:
        purse = self.purses.get(account_id)
        return ["AccountFrozen"] if purse is not None and purse.state == "frozen" else []

    def _other(self, key: tuple[str, ...]) -> list[str]:
        """Whether the key was used before: then, not being a repeat, with other content."""
        return ["IdempotencyMismatch"] if key in self.keys else []

    def _repeats(self, key: tuple[str, ...], command: Command) -> bool:
        return self.keys.get(key) == command

    def _new_purse(self, account_id: str) -> Purse:
        purse = Purse(self.grace_us)
        purse.grant(self.welcome)
        self.purses[account_id] = purse
        return purse

    def _open(self, command: commands.OpenAccount, _now_us: int) -> Answer:
        if refused := self._closed(command.account_id):
            return first(refused)
        word = "replayed" if command.account_id in self.purses else "ok"
        if word == "ok":
            self._new_purse(command.account_id)
        return self._about(word, command.account_id)

    def _grant(self, command: commands.Grant, now_us: int) -> Answer:
        key = ("grant", command.actor, command.grant_id)
        if self._repeats(key, command):
            return self._about("replayed", command.account_id)
        has_lot = command.lifetime_us is not None or command.priority is not None
        refused = self._missing(command.account_id) + self._other(key) + self._closed(command.account_id)
        if has_lot and command.account_id in self.purses and len(self.purses[command.account_id].live()) >= LOTS_MAX:
            refused.append("LotLimit")
        if refused:
            return first(refused)
        purse = self.purses[command.account_id]
        if has_lot:
            priority = PLAIN_PRIORITY if command.priority is None else command.priority
            ends_us = None if command.lifetime_us is None else now_us + command.lifetime_us
            purse.grant_lot(command.actor, command.grant_id, priority, ends_us, command.amount)
        else:
            purse.grant(command.amount)
        self.keys[key] = command
        return self._about("ok", command.account_id)

    def _revoke(self, command: commands.Revoke, now_us: int) -> Answer:
        grant = self.keys.get(("grant", command.created_by, command.grant_id))
        refused = self._missing(command.account_id)
        if not isinstance(grant, commands.Grant) or grant.account_id != command.account_id:
            refused.append("GrantNotFound")
        if refused:
            return first(refused)
        assert isinstance(grant, commands.Grant)
        key = (command.created_by, command.grant_id)
        if key in self.revoked:
            return self._about("replayed", command.account_id, revoked=self.revoked[key])
        purse = self.purses[command.account_id]
        if grant.lifetime_us is None and grant.priority is None:
            self.revoked[key] = purse.revoke_plain(grant.amount)
        else:
            self.revoked[key] = purse.revoke_lots(*key, now_us)
        return self._about("ok", command.account_id, revoked=self.revoked[key])

    def _reserve(self, command: commands.Reserve, now_us: int) -> Answer:
        hold = self.holds.get((command.actor, command.reservation_id))
        payer = command.payer_account_id
        if hold is not None and hold.request is not None:
            if hold.request._replace(may_open=command.may_open) == command:
                return self._about("replayed", payer, hold)
            return first(["IdempotencyMismatch", *([] if command.may_open else self._missing(payer))])
        refused = [] if command.may_open else self._missing(payer)
        refused += [] if hold is None else ["ReservationReleased"]
        refused += self._closed(payer) + self._frozen(payer)
        if command.amount > (self.purses[payer].available if payer in self.purses else self.welcome):
            refused.append("InsufficientFunds")
        if refused:
            return first(refused)
        purse = self.purses.get(payer) or self._new_purse(payer)
        hold = Hold(command, command.amount, now_us + command.hold_us, 0)
        hold.parts = purse.hold(command.amount, now_us)
        self.holds[command.actor, command.reservation_id] = hold
        self._touch(hold)
        return self._about("ok", payer, hold)

    def _commit(self, command: commands.Commit, now_us: int) -> Answer:
        hold = self.holds.get((command.created_by, command.reservation_id))
        if hold is None:
            return first(["ReservationNotFound"])
        payer = _payer(hold)
        if hold.state == "committed":
            assert hold.settled_by is not None
            if hold.settled_by[3:] == command[3:]:
                return self._about("replayed", payer, hold)
            return first(["IdempotencyMismatch"])
        if hold.state == "released":
            return first(["ReservationReleased"])
        late = hold.state == "expired"
        most = hold.expired if late else hold.held
        amount = most if command.amount is None else command.amount
        purse = self.purses[payer]
        refused = ["CommitExceedsReservation"] if amount > most else []
        if late:
            refused += self._closed(payer) + self._frozen(payer)
            refused += ["InsufficientFunds"] if amount > purse.available else []
            refused += [] if command.allow_late else ["ReservationExpired"]
        if refused:
            return first(refused)
        if late:
            hold.expired -= amount
            hold.parts = purse.hold(amount, now_us)
        hold.parts, rest = split(hold.parts, amount)
        purse.spend(hold.parts)
        purse.give_back(rest, now_us, grace=False)
        hold.released += total(rest)
        hold.state, hold.committed, hold.settled_by = "committed", amount, command
        self._touch(hold)
        return self._about("ok", payer, hold)

    def _release(self, command: commands.Release, now_us: int) -> Answer:
        key = (command.created_by, command.reservation_id)
        hold = self.holds.get(key)
        if hold is None:
            if command.actor != command.created_by:
                return first(["ReservationNotFound"])
            hold = self.holds[key] = Hold(None, 0, 0, 0, "released")
            return self._about("ok", None, hold)
        if hold.state == "committed":
            return first(["ReservationCommitted"])
        payer = None if hold.request is None else _payer(hold)
        if hold.state != "held" or payer is None:
            return self._about("replayed", payer, hold)
        parts, hold.parts = hold.parts, []
        self.purses[payer].give_back(parts, now_us, command.grace)
        hold.released += total(parts)
        hold.state = "released"
        self._touch(hold)
        return self._about("ok", payer, hold)

    def _refund(self, command: commands.Refund, now_us: int) -> Answer:
        hold = self.holds.get((command.created_by, command.reservation_id))
        if hold is None:
            return first(["ReservationNotFound"])
        key = ("operation", command.created_by, command.reservation_id, command.refund_id)
        fingerprint = command._replace(actor="", grace=False)
        if self._repeats(key, fingerprint):
            return self._about("replayed", _payer(hold), hold)
        refused = self._other(key)
        if hold.state != "committed":
            states = {"held": "NotCommitted", "released": "Released", "expired": "Expired"}
            return first([*refused, f"Reservation{states[hold.state]}"])
        payer = _payer(hold)
        left = hold.committed - hold.refunded
        amount = left if command.amount is None else command.amount
        refused += ["RefundExceedsCommitted"] if amount > left or left == 0 else []
        refused += self._closed(payer)
        if refused:
            return first(refused)
        hold.parts, back = split(hold.parts, left - amount)
        self.purses[payer].refund(back, now_us, command.grace)
        hold.refunded += amount
        self.keys[key] = fingerprint
        self._touch(hold)
        return self._about("ok", payer, hold)

    def _amend(self, command: commands.Amend, now_us: int) -> Answer:
        hold = self.holds.get((command.created_by, command.reservation_id))
        if hold is None:
            return first(["ReservationNotFound"])
        key = ("operation", command.created_by, command.reservation_id, command.amend_id)
        fingerprint = command._replace(actor="")
        if self._repeats(key, fingerprint):
            return self._about("replayed", _payer(hold), hold)
        refused = self._other(key)
        if hold.state != "held":
            return first([*refused, f"Reservation{hold.state.capitalize()}"])
        amount = hold.held if command.amount is None else command.amount
        ends_us = hold.ends_us if command.hold_us is None else now_us + command.hold_us
        refused += ["AmendNotAllowed"] if amount > hold.held or ends_us < hold.ends_us else []
        if refused:
            return first(refused)
        payer = _payer(hold)
        hold.parts, rest = split(hold.parts, amount)
        self.purses[payer].give_back(rest, now_us, grace=False)
        hold.released += total(rest)
        hold.ends_us = ends_us
        self.keys[key] = fingerprint
        self._touch(hold)
        return self._about("ok", payer, hold)

    def _change(self, command: commands.ChangeAccount, _now_us: int) -> Answer:
        key = ("change", command.actor, command.change_id)
        if self._repeats(key, command):
            return self._about("replayed", command.account_id)
        refused = self._missing(command.account_id) + self._other(key) + self._closed(command.account_id)
        purse = self.purses.get(command.account_id)
        if purse is not None and command.kind == "close" and (purse.held or (purse.balance and not command.forfeit)):
            refused.append("AccountNotEmpty")
        if refused or purse is None:
            return first(refused)
        if command.kind == "close":
            purse.forfeit()
        purse.state = {"freeze": "frozen", "unfreeze": "open", "close": "closed"}[command.kind]
        self.keys[key] = command
        return self._about("ok", command.account_id)


def _payer(hold: Hold) -> str:
    return "" if hold.request is None else hold.request.payer_account_id


def first(refused: list[str]) -> Answer:
    """The answer of a command to which these refusals apply."""
    return Answer(min(refused, key=[*OF_THE_KEY, *FIRST_IN_PROTO].index))


def seen(hold: Hold) -> HoldSeen:
    """How a hold should look now."""
    pins = tuple((source.number, amount) for source, amount in hold.parts if isinstance(source, Lot))
    ended = (hold.reserved, hold.committed, hold.released, hold.expired, hold.refunded)
    return HoldSeen(hold.state, *ended, hold.ends_us, pins)


_ANSWERS: dict[type, Callable[[WalletModel, Any, int], Answer]] = {
    commands.OpenAccount: WalletModel._open,
    commands.Grant: WalletModel._grant,
    commands.Revoke: WalletModel._revoke,
    commands.Reserve: WalletModel._reserve,
    commands.Preview: WalletModel._preview,
    commands.Commit: WalletModel._commit,
    commands.Release: WalletModel._release,
    commands.Refund: WalletModel._refund,
    commands.Amend: WalletModel._amend,
    commands.ChangeAccount: WalletModel._change,
    commands.Sweep: WalletModel._sweep,
}


def word(result: object) -> str:
    """The word for an outcome of the real ledger, to be compared with the model's."""
    if isinstance(result, errors.Refusal):
        return type(result).__name__
    assert isinstance(result, commands.Outcome)
    return "replayed" if result.replayed else "ok"
