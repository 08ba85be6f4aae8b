"""An independent model of the wallet, written from the promises and not from the code: slow and obvious.

It answers each command with a short word for what should happen: "ok", "replayed", or the reason of the refusal.
"""

from dataclasses import dataclass, field

from services.wallet import commands, errors
from services.wallet.commands import Command


@dataclass
class Hold:
    """A hold as its maker would describe it."""

    request: commands.Reserve | None
    held: int
    ends_us: int
    state: str = "held"
    committed: int = 0
    refunded: int = 0
    expired: int = 0
    settled_by: commands.Commit | None = None


@dataclass
class WalletModel:
    """Balances by name; holds by (maker, id)."""

    welcome: int
    balance: dict[str, int] = field(default_factory=dict)
    granted: int = 0
    spent: int = 0
    holds: dict[tuple[str, str], Hold] = field(default_factory=dict)
    keys: dict[tuple[str, ...], Command] = field(default_factory=dict)

    def held(self, account_id: str) -> int:
        """What the account's holds add up to."""
        return sum(hold.held for hold in self.holds.values() if self._pays(hold, account_id))

    @staticmethod
    def _pays(hold: Hold, account_id: str) -> bool:
        return hold.state == "held" and hold.request is not None and hold.request.payer_account_id == account_id

    def pass_time(self, now_us: int) -> None:
        """Ends the holds whose time has passed."""
        for hold in self.holds.values():
            if hold.state == "held" and hold.ends_us <= now_us:
                hold.state, hold.expired, hold.held = "expired", hold.held, 0

    def open(self, account_id: str) -> None:
        """Opens an account if there is none."""
        if account_id not in self.balance:
            self.balance[account_id] = self.welcome
            self.granted += self.welcome

    def run(self, command: Command, now_us: int) -> str:
        """What should come of the command."""
        self.pass_time(now_us)
        match command:
            case commands.OpenAccount():
                known = command.account_id in self.balance
                self.open(command.account_id)
                return "replayed" if known else "ok"
            case commands.Grant():
                return self._grant(command)
            case commands.Reserve():
                return self._reserve(command, now_us)
            case commands.Commit():
                return self._commit(command)
            case commands.Release():
                return self._release(command)
            case commands.Refund():
                return self._refund(command)
            case commands.Amend():
                return self._amend(command, now_us)
            case _:
                return "replayed"

    def _seen(self, key: tuple[str, ...], command: Command) -> str | None:
        before = self.keys.get(key)
        if before is None:
            return None
        return "replayed" if before == command else "IdempotencyMismatch"

    def _grant(self, command: commands.Grant) -> str:
        key = ("grant", command.actor, command.grant_id)
        if seen := self._seen(key, command):
            return seen
        if command.account_id not in self.balance:
            return "AccountNotFound"
        self.balance[command.account_id] += command.amount
        self.granted += command.amount
        self.keys[key] = command
        return "ok"

    def _reserve(self, command: commands.Reserve, now_us: int) -> str:
        hold = self.holds.get((command.actor, command.reservation_id))
        if hold is not None:
            if hold.request is None:
                return "ReservationReleased"
            same = hold.request._replace(may_open=command.may_open) == command
            return "replayed" if same else "IdempotencyMismatch"
        payer = command.payer_account_id
        if payer not in self.balance and not command.may_open:
            return "AccountNotFound"
        if self.balance.get(payer, self.welcome) - self.held(payer) < command.amount:
            return "InsufficientFunds"
        self.open(payer)
        self.holds[command.actor, command.reservation_id] = Hold(command, command.amount, now_us + command.hold_us)
        return "ok"

    def _commit(self, command: commands.Commit) -> str:
        hold = self.holds.get((command.created_by, command.reservation_id))
        if hold is None:
            return "ReservationNotFound"
        if hold.state == "committed":
            assert hold.settled_by is not None
            same = hold.settled_by[3:] == command[3:]
            return "replayed" if same else "IdempotencyMismatch"
        if hold.state == "released":
            return "ReservationReleased"
        if hold.state == "expired" and not command.allow_late:
            return "ReservationExpired"
        assert hold.request is not None
        payer = hold.request.payer_account_id
        most = hold.held if hold.state == "held" else hold.expired
        amount = most if command.amount is None else command.amount
        if amount > most:
            return "CommitExceedsReservation"
        if hold.state == "expired":
            if amount > self.balance[payer] - self.held(payer):
                return "InsufficientFunds"
            hold.expired -= amount
        self.balance[payer] -= amount
        self.spent += amount
        hold.state, hold.held, hold.committed, hold.settled_by = "committed", 0, amount, command
        return "ok"

    def _release(self, command: commands.Release) -> str:
        key = (command.created_by, command.reservation_id)
        hold = self.holds.get(key)
        if hold is None:
            if command.actor != command.created_by:
                return "ReservationNotFound"
            self.holds[key] = Hold(None, 0, 0, "released")
            return "ok"
        if hold.state == "committed":
            return "ReservationCommitted"
        if hold.state != "held":
            return "replayed"
        hold.state, hold.held = "released", 0
        return "ok"

    def _refund(self, command: commands.Refund) -> str:
        hold = self.holds.get((command.created_by, command.reservation_id))
        if hold is None:
            return "ReservationNotFound"
        key = ("op", command.created_by, command.reservation_id, command.refund_id)
        if seen := self._seen(key, command):
            return seen
        if hold.state != "committed":
            return {
                "held": "ReservationNotCommitted",
                "released": "ReservationReleased",
                "expired": "ReservationExpired",
            }[hold.state]
        left = hold.committed - hold.refunded
        amount = left if command.amount is None else command.amount
        if amount > left or left == 0:
            return "RefundExceedsCommitted"
        assert hold.request is not None
        hold.refunded += amount
        self.balance[hold.request.payer_account_id] += amount
        self.spent -= amount
        self.keys[key] = command
        return "ok"

    def _amend(self, command: commands.Amend, now_us: int) -> str:
        hold = self.holds.get((command.created_by, command.reservation_id))
        if hold is None:
            return "ReservationNotFound"
        key = ("op", command.created_by, command.reservation_id, command.amend_id)
        if seen := self._seen(key, command):
            return seen
        if hold.state != "held":
            return f"Reservation{hold.state.capitalize()}"
        amount = hold.held if command.amount is None else command.amount
        ends_us = hold.ends_us if command.hold_us is None else now_us + command.hold_us
        if amount > hold.held or ends_us < hold.ends_us:
            return "AmendNotAllowed"
        hold.held, hold.ends_us = amount, ends_us
        self.keys[key] = command
        return "ok"


def word(result: object) -> str:
    """The word for an outcome of the real ledger, to be compared with the model's."""
    if isinstance(result, errors.Refusal):
        return type(result).__name__
    assert isinstance(result, commands.Outcome)
    return "replayed" if result.replayed else "ok"
