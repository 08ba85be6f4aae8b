"""What a client of the wallet may ask for, at random out of a seed, and what it must find in the ledger afterwards."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from google.protobuf.duration_pb2 import Duration

from punchcard.wallet.v1 import wallet_pb2
from services.wallet.holdings import Entry
from tests.wallet_audit import Key, Ledger

MAKER: Final = "batcher"
LONG_HOLD_SECONDS: Final = 3600
SHORT_HOLD_SECONDS: Final = 1
"""The shortest hold there is, so that it runs out under the load."""
DONE: Final = "done"
REPLAYED: Final = "replayed"
LOST: Final = "lost"
"""The words for what became of a command beside the reasons of refusals; LOST is no answer at all."""
SHORT_LIFE_SECONDS: Final = 1
SETTLEMENTS: Final = {"Commit": "commit", "Refund": "refund", "Amend": "amend"}


class Act(NamedTuple):
    """One command: the method that sends it alone, and its request."""

    method: str
    request: Any

    @property
    def key(self) -> Key:
        """The key of the journal's row that it makes, as `key_of` gives it."""
        request = self.request
        match self.method:
            case "OpenAccount":
                return ("open", request.account_id, "", "")
            case "Grant":
                return ("grant", MAKER, "", request.grant_id)
            case "Refund" if not request.refund_id:
                return ("release", MAKER, request.reservation_id, "")
            case "Refund":
                return ("refund", MAKER, request.reservation_id, request.refund_id)
            case "Amend":
                return ("amend", MAKER, request.reservation_id, request.amend_id)
            case "RevokeGrant":
                return ("revoke", MAKER, "", request.grant_id)
            case "FreezeAccount" | "UnfreezeAccount" | "CloseAccount":
                return (self.method.removesuffix("Account").lower(), MAKER, "", request.change_id)
            case _:
                return (self.method.lower(), MAKER, request.reservation_id, "")


class Tried(NamedTuple):
    """A command, and the words for all that was heard of it."""

    act: Act
    words: list[str]


class Commons:
    """What clients fight over: some of the reservations that they make, and accounts that they freeze and close."""

    def __init__(self) -> None:
        self.reservations: deque[str] = deque(maxlen=200)
        self.accounts: deque[str] = deque(maxlen=50)


class Mix:
    """A client's own stream of commands; it shares the commons with those that were given the same."""

    def __init__(self, seed: str, accounts: Sequence[str], commons: Commons) -> None:
        self.random = random.Random(seed)
        self._name = seed.replace("/", "-")
        self._accounts = accounts
        self._commons = commons
        self._count = 0
        self._held: list[str] = []
        self._committed: list[str] = []
        self._granted: list[wallet_pb2.GrantRequest] = []
        self.tried: list[Tried] = []

    def acts(self) -> list[Act]:
        """What to send next: one command, or several for a batch call."""
        kind = self.random.random()
        size = 1 if self.random.random() < 0.8 else self.random.randint(2, 12)
        if kind < 0.4 or (kind < 0.5 and not self._held):
            return [self._reserve() for _ in range(size)]
        if kind < 0.85:
            return [self._settle() for _ in range(size)]
        if kind < 0.92:
            return [self._grant()]
        if kind < 0.94 and self._granted:
            return [self._revoke()]
        return [self._open() if kind < 0.97 else self._change()]

    def earlier(self) -> Tried | None:
        """One of its own commands that was done, to be sent again."""
        done = [tried for tried in self.tried[-50:] if DONE in tried.words]
        return self.random.choice(done) if done else None

    def question(self) -> tuple[str, Any]:
        """Something to read: the method, and its request."""
        account_id = self._some_account()
        match self.random.randrange(5):
            case 0:
                return "GetAccount", wallet_pb2.GetAccountRequest(account_id=account_id)
            case 1:
                return "ListReservations", wallet_pb2.ListReservationsRequest(account_id=account_id, page_size=20)
            case 2:
                return "ListTransactions", wallet_pb2.ListTransactionsRequest(account_id=account_id, page_size=20)
            case 3:
                reservation_id = self._some_hold(keep=True)
                return "GetReservation", wallet_pb2.GetReservationRequest(reservation_id=reservation_id)
            case _:
                return "PreviewReserve", wallet_pb2.PreviewReserveRequest(reserve=self._reserve().request)

    def tell(self, act: Act, word: str) -> None:
        """What became of a command, so that the next ones follow from it."""
        if word not in {DONE, REPLAYED}:
            return
        if act.method == "Reserve":
            reservation_id = act.request.reservation_id
            (self._commons.reservations if self.random.random() < 0.2 else self._held).append(reservation_id)
        elif act.method == "Commit":
            self._committed.append(act.request.reservation_id)
        elif act.method == "Grant":
            self._granted.append(act.request)
        elif act.method == "OpenAccount" and act.request.account_id not in self._accounts:
            self._commons.accounts.append(act.request.account_id)

    def _new_id(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}-{self._name}-{self._count}"

    def _reserve(self) -> Act:
        seconds = SHORT_HOLD_SECONDS if self.random.random() < 0.3 else LONG_HOLD_SECONDS
        account_id = self._some_account()
        request = wallet_pb2.ReserveRequest(
            account_id=account_id,
            payer_account_id=account_id if self.random.random() < 0.1 else "",
            reservation_id=self._new_id("r"),
            amount=self.random.randint(1, 6),
            hold_duration=Duration(seconds=seconds),
            reference="under load",
        )
        return Act("Reserve", request)

    def _settle(self) -> Act:
        maybe_amount = self.random.choice([None, self.random.randint(1, 4)])
        kind = self.random.random()
        if kind < 0.2 and self._committed:
            refund = wallet_pb2.RefundRequest(
                reservation_id=self.random.choice(self._committed),
                refund_id=self._new_id("f"),
                amount=maybe_amount,
                grace=self.random.random() < 0.5,
            )
            return Act("Refund", refund)
        reservation_id = self._some_hold(keep=kind > 0.75)
        if kind < 0.5:
            late = self.random.random() < 0.5
            commit = wallet_pb2.CommitRequest(reservation_id=reservation_id, amount=maybe_amount, allow_late=late)
            return Act("Commit", commit)
        if kind < 0.75:
            grace = self.random.random() < 0.5
            return Act("Refund", wallet_pb2.RefundRequest(reservation_id=reservation_id, grace=grace))
        longer = None if maybe_amount else Duration(seconds=LONG_HOLD_SECONDS + self.random.randint(60, 600))
        amend = wallet_pb2.AmendRequest(
            reservation_id=reservation_id, amend_id=self._new_id("a"), amount=maybe_amount, hold_duration=longer
        )
        return Act("Amend", amend)

    def _some_hold(self, *, keep: bool) -> str:
        """A hold of its own, one that others want too, or one that nobody has made."""
        if self._commons.reservations and self.random.random() < 0.2:
            return self.random.choice(self._commons.reservations)
        if not self._held or self.random.random() < 0.03:
            return self._new_id("unknown")
        place = self.random.randrange(len(self._held))
        return self._held[place] if keep else self._held.pop(place)

    def _some_account(self) -> str:
        """Mostly one of the many; those of the commons are frozen and closed now and then."""
        common = self._commons.accounts and self.random.random() < 0.1
        return self.random.choice(self._commons.accounts if common else self._accounts)

    def _grant(self) -> Act:
        """Half of the grants have a life of their own, and of these half a short one."""
        seconds = self.random.choice([None, None, SHORT_LIFE_SECONDS, LONG_HOLD_SECONDS])
        request = wallet_pb2.GrantRequest(
            account_id=self._some_account(),
            grant_id=self._new_id("g"),
            amount=self.random.randint(1, 9),
            lifetime=None if seconds is None else Duration(seconds=seconds),
            priority=self.random.choice([None, None, 1, 50, 100]),
        )
        return Act("Grant", request)

    def _revoke(self) -> Act:
        grant = self._granted.pop(self.random.randrange(len(self._granted)))
        return Act("RevokeGrant", wallet_pb2.RevokeGrantRequest(account_id=grant.account_id, grant_id=grant.grant_id))

    def _open(self) -> Act:
        new = self.random.random() < 0.5
        account_id = self._new_id("own") if new else self.random.choice(self._accounts)
        return Act("OpenAccount", wallet_pb2.OpenAccountRequest(account_id=account_id))

    def _change(self) -> Act:
        if not self._commons.accounts:
            return self._open()
        names = {"account_id": self.random.choice(self._commons.accounts), "change_id": self._new_id("c")}
        match self.random.randrange(4):
            case 0:
                return Act("FreezeAccount", wallet_pb2.FreezeAccountRequest(**names))
            case 1:
                return Act("UnfreezeAccount", wallet_pb2.UnfreezeAccountRequest(**names))
            case _:
                forfeit = self.random.random() < 0.7
                return Act("CloseAccount", wallet_pb2.CloseAccountRequest(**names, forfeit_balance=forfeit))


def settle_item(act: Act) -> wallet_pb2.SettleItem:
    """The command as an item of a BatchSettle."""
    return wallet_pb2.SettleItem(**{SETTLEMENTS[act.method]: act.request})


def unkept(ledger: Ledger, tried: Sequence[Tried]) -> list[str]:
    """What was acknowledged and is not in the ledger as it was asked for, or is there although it was refused."""
    return [problem for each in tried if (problem := _unkept(ledger, each))]


def _unkept(ledger: Ledger, tried: Tried) -> str:
    act, words = tried
    entry = ledger.by_key.get(act.key)
    if DONE in words and (entry is None or not _as_asked(act, entry)):
        return f"{act} was acknowledged as {words}, and the journal has {entry}"
    if REPLAYED in words and entry is None and not _nothing_to_release(ledger, act):
        return f"{act} was acknowledged as {words}, and the journal has nothing of it"
    only_refused = not {DONE, REPLAYED, LOST} & set(words)
    if only_refused and entry is not None and act.method in {"Reserve", "Grant", "Amend"}:
        return f"{act} was refused as {words}, and the journal has {entry}"
    return ""


def _as_asked(act: Act, entry: Entry) -> bool:
    """Whether the journal's row says what the request said, where it said anything."""
    request = act.request
    if act.method == "OpenAccount":
        return bool(entry.account_id == request.account_id)
    if act.method in {"RevokeGrant", "FreezeAccount", "UnfreezeAccount", "CloseAccount"}:
        return bool(entry.account_id == request.account_id)
    if act.method in {"Grant", "Reserve"}:
        moved = entry.held_change if act.method == "Reserve" else entry.balance_change
        return bool((entry.account_id, moved) == (request.account_id, request.amount))
    found = entry.facts.get("amount") if act.method == "Amend" else abs(entry.balance_change)
    return not request.HasField("amount") or bool(found == request.amount)


def _nothing_to_release(ledger: Ledger, act: Act) -> bool:
    """A release of what has run out by itself has nothing left to do."""
    return act.key[0] == "release" and ("expire", *act.key[1:]) in ledger.ended_by_themselves
