"""Random commands about a small world in which keys come back, accounts run dry and ends fall on one instant."""

from collections.abc import Callable
from typing import Any, Protocol

from hypothesis import strategies as st

from services.wallet.commands import (
    Amend,
    ChangeAccount,
    Command,
    Commit,
    Grant,
    OpenAccount,
    Preview,
    Refund,
    Release,
    Reserve,
    Revoke,
    Sweep,
)
from tests.fixed_time import SECOND_US
from tests.wallet_model import WalletModel

ACCOUNTS = ["alice", "bob", "carol", "dave"]
MAKERS = ["batcher", "batcher", "batcher", "other"]
GRANTED = st.integers(1, 5)
AMOUNTS = st.integers(1, 12)
"""Larger than grants, so that a hold is of several lots."""
MAYBE_AMOUNTS = st.none() | st.integers(1, 6)
HOLDS_US = st.sampled_from([5, 2, 5, 10, 30]).map(lambda seconds: seconds * SECOND_US)
LIVES_US = st.sampled_from([2, 1, 3, 5, 2, 10, 20, None]).map(lambda seconds: seconds and seconds * SECOND_US)
PRIORITIES = st.sampled_from([None, None, 1, 50, 51, 100])
RECENT = 8
"""Commands are about the latest so many reservations and grants, so that several meet on one."""


class Draw(Protocol):
    """Takes a value out of a strategy, such as `data.draw` of Hypothesis."""

    def __call__(self, strategy: st.SearchStrategy[Any], /) -> Any: ...


class World:
    """What was named and sent so far, and the next command about it; the model says what there is to find."""

    def __init__(self, model: WalletModel) -> None:
        self._model = model
        self._reservations: list[tuple[str, str]] = []
        self._grants: list[tuple[str, str, str]] = []
        self._changes: list[str] = []
        self._sent: list[Command] = []

    def command(self, draw: Draw, kind: str) -> Command:
        """A command of one of the `KINDS`."""
        command = _COMMANDS[kind](self, draw)
        self._sent.append(command)
        return command

    def open(self, draw: Draw) -> Command:
        """Of any account."""
        return OpenAccount("boss", draw(st.sampled_from(ACCOUNTS)))

    def grant(self, draw: Draw) -> Command:
        """With and without a life of its own; now and then with a key that was used."""
        account_id, lifetime_us, priority = self._account(draw), draw(LIVES_US), draw(PRIORITIES)
        actor, grant_id = draw(st.sampled_from(["boss", "boss", "shop"])), f"g{len(self._grants)}"
        if self._grants and _seldom(draw):
            actor, _, grant_id = draw(st.sampled_from(self._grants))
        self._grants.append((actor, account_id, grant_id))
        return Grant(actor, account_id, grant_id, draw(GRANTED), "", lifetime_us, priority)

    def revoke(self, draw: Draw) -> Command:
        """Mostly of a grant that was made to the account named."""
        actor, account_id, grant_id = draw(st.sampled_from([("boss", "alice", "none"), *self._grants[-RECENT:]]))
        if _seldom(draw):
            account_id = draw(st.sampled_from(ACCOUNTS))
        return Revoke("boss", account_id, actor, grant_id, draw(st.sampled_from(["", "fraud"])))

    def reserve(self, draw: Draw) -> Reserve:
        """Mostly under a new key and of the account itself."""
        account_id = self._account(draw)
        payer = self._account(draw) if _seldom(draw) else account_id
        key = (draw(st.sampled_from(MAKERS)), f"r{len(self._reservations)}")
        if self._reservations and _seldom(draw):
            key = draw(st.sampled_from(self._reservations))
        self._reservations.append(key)
        may_open = draw(st.sampled_from([True, True, False]))
        return Reserve(key[0], account_id, payer, key[1], draw(AMOUNTS), draw(HOLDS_US), "v1", "", may_open)

    def preview(self, draw: Draw) -> Command:
        """Of a Reserve that is not sent."""
        return Preview(self.reserve(draw))

    def commit(self, draw: Draw) -> Command:
        """Whole, in part, and late."""
        maker, key = self._reservation(draw, "held", "expired")
        return Commit(_actor(draw, maker), maker, key, draw(MAYBE_AMOUNTS), draw(st.booleans()))

    def release(self, draw: Draw) -> Command:
        """Also of the id that the next Reserve will use."""
        maker, key = self._reservation(draw, "held")
        return Release(_actor(draw, maker), maker, key, draw(st.booleans()))

    def refund(self, draw: Draw) -> Command:
        """All and in parts; one of its keys is also an amendment's."""
        maker, key = self._reservation(draw, "committed")
        refund_id = draw(st.sampled_from(["f1", "f2", "f3", "f4", "x"]))
        return Refund(_actor(draw, maker), maker, key, refund_id, draw(MAYBE_AMOUNTS), draw(st.booleans()))

    def amend(self, draw: Draw) -> Command:
        """Smaller, for longer, or both."""
        maker, key = self._reservation(draw, "held")
        amend_id = draw(st.sampled_from(["a1", "a2", "a3", "a4", "x"]))
        amount, hold_us = draw(st.tuples(MAYBE_AMOUNTS, st.none() | HOLDS_US).filter(any))
        return Amend(_actor(draw, maker), maker, key, amend_id, amount, hold_us)

    def change(self, draw: Draw) -> Command:
        """Freezes that end again, and a close now and then, mostly of an account on which nothing is held."""
        kind = draw(st.sampled_from(["unfreeze", "freeze", "unfreeze", "close"]))
        change_id = f"c{len(self._changes)}"
        if self._changes and _seldom(draw):
            change_id = draw(st.sampled_from(self._changes))
        self._changes.append(change_id)
        idle = [account_id for account_id in self._model.purses if not self._model.held(account_id)]
        account_id = draw(st.sampled_from(idle)) if kind == "close" and idle else self._account(draw)
        forfeit = kind == "close" and draw(st.sampled_from([True, False]))
        return ChangeAccount("boss", account_id, change_id, kind, forfeit, "")

    def sweep(self, draw: Draw) -> Command:
        """Of one account."""
        return Sweep(self._account(draw))

    def repeat(self, draw: Draw) -> Command:
        """What was sent before, word for word."""
        command: Command = draw(st.sampled_from(self._sent[-4 * RECENT :])) if self._sent else self.open(draw)
        return command

    def _account(self, draw: Draw) -> str:
        known = [account_id for account_id, purse in self._model.purses.items() if purse.state != "closed"]
        account_id: str = draw(st.sampled_from(known if known and not _seldom(draw) else ACCOUNTS))
        return account_id

    def _reservation(self, draw: Draw, *states: str) -> tuple[str, str]:
        fitting = [key for key, hold in self._model.holds.items() if hold.state in states]
        if not fitting or _seldom(draw):
            fitting = [*self._reservations[-RECENT:], ("batcher", f"r{len(self._reservations)}")]
        key: tuple[str, str] = draw(st.sampled_from(fitting[-RECENT:]))
        return key


def _seldom(draw: Draw) -> bool:
    return bool(draw(st.integers(0, 7)) == 7)


def _actor(draw: Draw, maker: str) -> str:
    return "admin" if _seldom(draw) else maker


_COMMANDS: dict[str, Callable[[World, Draw], Command]] = {
    "open": World.open,
    "grant": World.grant,
    "revoke": World.revoke,
    "reserve": World.reserve,
    "preview": World.preview,
    "commit": World.commit,
    "release": World.release,
    "refund": World.refund,
    "amend": World.amend,
    "change": World.change,
    "sweep": World.sweep,
    "repeat": World.repeat,
}
OFTEN = {"grant": 4, "reserve": 5, "commit": 4, "refund": 4, "release": 3}
KINDS = st.sampled_from([kind for kind in _COMMANDS for _ in range(OFTEN.get(kind, 1))])
FURNISHED = ["open", *["grant"] * 4, "reserve", "grant", "reserve"]
"""A group to begin with: an account with lots and holds."""
GROUPS = st.lists(KINDS, min_size=2, max_size=10)
