"""What must hold of a wallet after every step, each promise a method with a name that says it.

They look at what is stored, past the store, at what the store answers, and at the model.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from services.chassis import journal
from services.wallet.commands import Command, OpenAccount, Outcome, Preview, Sweep
from services.wallet.errors import Refusal
from services.wallet.holdings import Account, Reservation, State
from services.wallet.journal_entry import apply
from services.wallet.store_reads import FIRST_PLACE
from services.wallet.store_rows import entry_of
from tests.wallet_books import Ledger, Tables
from tests.wallet_model import AccountSeen, Answer, HoldSeen, LotSeen, WalletModel, seen, word

ACCOUNT_STATES = {1: "open", 2: "frozen", 3: "closed"}
STATES = {1: "held", 2: "committed", 3: "released", 4: "expired"}
HELD, COMMITTED, EXPIRED = 1, 2, 4

PROMISES: Final[list[Callable[["Promises"], None]]] = []
"""All that must hold after every step."""


def promise(check: Callable[["Promises"], None]) -> Callable[["Promises"], None]:
    """Adds a method to the `PROMISES`."""
    PROMISES.append(check)
    return check


@dataclass
class Step:
    """What was just done, and what it came to."""

    commands: list[Command]
    results: list[Outcome | Refusal]
    expected: list[Answer]
    now_us: int
    before: Tables
    overdue_before: bool


class Promises:
    """A wallet, its model, and what was last seen of both."""

    ledger: Ledger
    model: WalletModel
    last: Step | None = None
    """None after a step in which only time has passed."""
    tables: Tables
    """All that is stored but the journal."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[journal.Row] = []
        self.replayed = State()
        self.done: dict[tuple[type, Command], int] = {}

    async def look(self) -> None:
        """Reads what is stored."""
        self.tables = await self.ledger.tables(len(self.rows))
        self.new_rows = [journal.Row(**row) for row in self.tables.pop("journal")]
        self.rows += self.new_rows
        self.accounts = {row["account_id"]: row for row in self.tables["accounts"]}
        self.reservations = {(row["created_by"], row["reservation_id"]): row for row in self.tables["reservations"]}
        self.lots = {row["lot_id"]: row for row in self.tables["lots"]}
        by_account: Counter[str] = Counter()
        self.numbers: dict[int, int] = {}
        for lot_id, lot in sorted(self.lots.items()):
            self.numbers[lot_id] = by_account[lot["account_id"]]
            by_account[lot["account_id"]] += 1
        await self.read()

    async def read(self) -> None:
        """Asks the store how things are now, whether or not they were swept."""
        store = self.ledger.store
        open_keys = [key for key, row in self.reservations.items() if row["state"] == HELD]
        self.current: dict[str, Any] = {
            "accounts": [await store.account(account_id) for account_id in self.accounts],
            "lots": [await store.lots(account_id) for account_id in self.accounts],
            "open": [await store.open_reservations(account_id, FIRST_PLACE, 1_000) for account_id in self.accounts],
            "reservations": [(key, await store.reservation(*key)) for key in open_keys],
            "due": await store.due_accounts(1_000),
            "sums": await store.asset_sums(),
        }

    def overdue(self, account: dict[str, Any]) -> bool:
        """Whether something of a stored account waits for a sweep."""
        due_us = account["due_time_us"]
        return due_us is not None and due_us <= self.ledger.clock.now_us

    def plain_of(self, account: dict[str, Any]) -> tuple[int, int]:
        """Balance and held part of the tokens without a lot."""
        lots = [lot for lot in self.lots.values() if lot["account_id"] == account["account_id"]]
        balance, held = account["balance"], account["held"]
        return balance - sum(lot["remaining"] for lot in lots), held - sum(lot["held"] for lot in lots)

    # What the last group was answered

    @promise
    def every_command_comes_to_what_the_model_says(self) -> None:
        if self.last is not None:
            done = zip(self.last.commands, self.last.results, self.last.expected, strict=True)
            for command, result, expected in done:
                told = self.told(command, result)
                assert told == expected, f"{command} came to {told}, not to {expected}"

    def told(self, command: Command, result: Outcome | Refusal) -> Answer:
        if isinstance(result, Refusal):
            return Answer(word(result))
        account = None if result.account is None else account_seen(result.account)
        hold = None if result.reservation is None else self.hold_seen(result.reservation)
        lots: tuple[LotSeen, ...] = ()
        if isinstance(command, Preview) and not result.replayed:
            lots = tuple(LotSeen(self.numbers[lot.lot_id], lot.remaining, lot.held) for lot in result.lots)
        return Answer(word(result), account, hold, result.revoked, lots)

    def hold_seen(self, row: Reservation) -> HoldSeen:
        amounts = (row.reserved, row.committed, row.released, row.expired, row.refunded)
        ends_us = row.expire_time_us if row.reserved else 0
        pins = tuple((self.numbers[lot_id], amount) for lot_id, amount in pins_of(row.pins))
        return HoldSeen(STATES[row.state], *amounts, ends_us, pins)

    @promise
    def a_refused_group_changes_nothing(self) -> None:
        """Nor does one of repeats, previews and idle sweeps: not a byte of any table differs."""
        if self.last is None or self.last.overdue_before:
            return
        idle = [
            isinstance(command, Preview | Sweep) or answer.word != "ok"
            for command, answer in zip(self.last.commands, self.last.expected, strict=True)
        ]
        if all(idle):
            assert self.new_rows == []
            assert self.last.before == self.tables

    @promise
    def the_same_key_gives_the_same_outcome(self) -> None:
        """What was done once is answered as done, however things stand by now."""
        if self.last is None:
            return
        for command, result in zip(self.last.commands, self.last.results, strict=True):
            if isinstance(command, Preview | Sweep | OpenAccount):
                continue
            # A Release that finds the hold expired is answered as a repeat, and does nothing: a late Commit may follow.
            key = (type(command), command)
            if key in self.done:
                assert isinstance(result, Outcome)
                assert (result.replayed, result.revoked) == (True, self.done[key])
            elif isinstance(result, Outcome) and not result.replayed:
                self.done[key] = result.revoked

    @promise
    def expired_tokens_fund_no_later_hold(self) -> None:
        """What was newly held, or taken late, is of lots that were alive then."""
        if self.last is None:
            return
        states = {(row["created_by"], row["reservation_id"]): row["state"] for row in self.last.before["reservations"]}
        for key, row in self.reservations.items():
            if key not in states or (states[key] == EXPIRED and row["state"] == COMMITTED):
                for lot_id, _ in pins_of(row["pins"]):
                    lot = self.lots[lot_id]
                    assert lot["revoked"] or lot["expire_time_us"] is None or lot["expire_time_us"] > self.last.now_us

    @promise
    def a_reservation_ends_once(self) -> None:
        if self.last is None:
            return
        for before in self.last.before["reservations"]:
            row = self.reservations[before["created_by"], before["reservation_id"]]
            late = before["state"] == EXPIRED and row["state"] == COMMITTED
            assert before["state"] in {HELD, row["state"]} or late
            assert row["refunded"] >= before["refunded"]
            assert before["state"] != COMMITTED or row["committed"] == before["committed"]
            assert row["reserved"] == before["reserved"]

    # What is stored

    @promise
    def all_balances_add_up_to_nothing(self) -> None:
        assert set(self.current["sums"].values()) <= {0}
        everybody = [*self.tables["accounts"], *self.tables["system_accounts"]]
        for asset in {row["asset"] for row in everybody}:
            assert sum(row["balance"] for row in everybody if row["asset"] == asset) == 0

    @promise
    def nobody_has_less_than_nothing_available(self) -> None:
        for account in self.accounts.values():
            assert 0 <= account["held"] <= account["balance"]

    @promise
    def held_is_the_sum_of_open_reservations(self) -> None:
        held: Counter[str] = Counter()
        for row in self.reservations.values():
            if row["state"] == HELD:
                held[row["payer_account_id"]] += row["reserved"] - row["released"]
        assert {account_id: row["held"] for account_id, row in self.accounts.items()} == {
            account_id: held[account_id] for account_id in self.accounts
        }

    @promise
    def lots_keep_their_bounds_and_are_counted(self) -> None:
        left: Counter[str] = Counter()
        for lot in self.lots.values():
            assert 0 <= lot["held"] <= lot["remaining"] <= lot["granted"]
            left[lot["account_id"]] += lot["remaining"] > 0
        assert all(row["lots"] == left[account_id] for account_id, row in self.accounts.items())

    @promise
    def a_balance_is_its_plain_tokens_and_what_remains_in_lots(self) -> None:
        for account_id, account in self.accounts.items():
            plain, plain_held = self.plain_of(account)
            assert 0 <= plain_held <= plain
            if not self.overdue(account):
                purse = self.model.purses[account_id]
                assert (plain, plain_held) == (purse.plain, purse.plain_held)

    @promise
    def open_pins_add_up_to_what_lots_hold(self) -> None:
        pinned: Counter[int] = Counter()
        for row in self.reservations.values():
            pins = pins_of(row["pins"])
            assert len({lot_id for lot_id, _ in pins}) == len(pins)
            assert all(amount > 0 for _, amount in pins)
            most = {HELD: row["reserved"] - row["released"], COMMITTED: row["committed"] - row["refunded"]}
            assert sum(amount for _, amount in pins) <= most.get(row["state"], 0)
            for lot_id, amount in pins:
                assert self.lots[lot_id]["account_id"] == row["payer_account_id"]
                pinned[lot_id] += amount if row["state"] == HELD else 0
        assert {lot_id: lot["held"] for lot_id, lot in self.lots.items()} == {
            lot_id: pinned[lot_id] for lot_id in self.lots
        }

    @promise
    def tokens_go_back_to_the_lots_that_they_came_from(self) -> None:
        """Of every lot what remains, what is taken and not returned, and what left unspent is what was granted."""
        taken: Counter[int] = Counter()
        for row in self.reservations.values():
            if row["state"] == COMMITTED:
                taken.update(dict(pins_of(row["pins"])))
        for lot_id, lot in self.lots.items():
            if not self.overdue(self.accounts[lot["account_id"]]):
                gone = self.model.purses[lot["account_id"]].lots[self.numbers[lot_id]].gone
                assert lot["granted"] == lot["remaining"] + taken[lot_id] + gone

    @promise
    def reservations_add_up(self) -> None:
        for row in self.reservations.values():
            parts = row["committed"] + row["released"] + row["expired"]
            assert parts == row["reserved"] if row["state"] != HELD else parts < row["reserved"]
            assert 0 <= row["refunded"] <= row["committed"]

    @promise
    def nothing_is_due_unnoticed(self) -> None:
        """An account's due time is never later than the first end of anything, and a sweep leaves nothing due."""
        for account_id, account in self.accounts.items():
            ends = [row["expire_time_us"] for row in self.reservations.values() if is_open_of(row, account_id)]
            lots = [lot for lot in self.lots.values() if lot["account_id"] == account_id]
            ends += [lot["expire_time_us"] for lot in lots if lot["expire_time_us"] and lot["remaining"] > lot["held"]]
            assert not ends or (account["due_time_us"] is not None and account["due_time_us"] <= min(ends))
        overdue = {account_id for account_id, row in self.accounts.items() if self.overdue(row)}
        assert set(self.current["due"]) == overdue
        if self.last is not None:
            swept = {command.account_id for command in self.last.commands if isinstance(command, Sweep)}
            assert not swept & overdue

    # The journal

    @promise
    def the_chain_recomputes(self) -> None:
        """Each row's hash is that of its fields and the hash before it; revisions have no gaps, time never falls."""
        first = len(self.rows) - len(self.new_rows)
        for place, row in enumerate(self.new_rows, start=first):
            before = self.rows[place - 1] if place else None
            fields = (before.hash if before else journal.FIRST_HASH, *map(str, row[:-1]))
            assert row.hash == sha256("\0".join(fields).encode()).hexdigest()
            assert row.revision == place + 1
            assert before is None or row.time_us >= before.time_us
        head = self.tables["journal_head"][0]
        assert head["revision"] == len(self.rows)
        assert head["hash"] == (self.rows[-1].hash if self.rows else journal.FIRST_HASH)

    @promise
    def replaying_the_journal_rebuilds_every_projection(self) -> None:
        for row in self.rows[self.replayed.revision :]:
            apply(self.replayed, entry_of(row), row.time_us)
        self.check_projections()

    def check_projections(self) -> None:
        state = self.replayed
        accounts = [{**account._asdict(), "due_time_us": None} for account in state.accounts.values()]
        rebuilt: dict[str, list[dict[str, Any]]] = {
            "accounts": accounts,
            "reservations": [each._asdict() for each in state.reservations.values()],
            "lots": [lot._asdict() for lots in state.lots.values() for lot in lots.values()],
            "grants": [each._asdict() for each in state.grants.values()],
            "operations": [each._asdict() for each in state.operations.values()],
            "account_changes": [each._asdict() for each in state.changes.values()],
        }
        stored = {**self.tables, "accounts": [{**row, "due_time_us": None} for row in self.tables["accounts"]]}
        for name, rows in rebuilt.items():
            assert sorted(rows, key=key_of) == sorted(stored[name], key=key_of), name
        system = {row["account_id"]: row["balance"] for row in self.tables["system_accounts"]}
        assert {account_id: balance for (account_id, _), balance in state.system.items() if balance} == {
            account_id: balance for account_id, balance in system.items() if balance
        }

    @promise
    def histories_are_complete(self) -> None:
        """The walk along `previous` from an account's last row meets each of its rows."""
        for account_id, account in self.accounts.items():
            walked, revision = [], account["revision"]
            while revision:
                row = self.rows[revision - 1]
                walked.append(row)
                revision = row.previous
            assert walked == [row for row in reversed(self.rows) if row.subject == account_id]

    # The model

    @promise
    def the_system_accounts_are_as_the_model_says(self) -> None:
        if any(self.overdue(row) for row in self.accounts.values()):
            return
        system = Counter({row["account_id"]: row["balance"] for row in self.tables["system_accounts"]})
        assert system["@issue"] == -self.model.granted
        assert system["@revenue"] == self.model.spent
        assert system["@lapsed"] == self.model.lapsed

    @promise
    def reads_are_as_the_model_says_whether_or_not_a_sweep_has_run(self) -> None:
        assert set(self.accounts) == set(self.model.purses)
        for account_id, account, lots, held in zip(
            self.accounts, *(self.current[name] for name in ("accounts", "lots", "open")), strict=True
        ):
            purse = self.model.purses[account_id]
            assert account_seen(account) == AccountSeen(account_id, purse.state, purse.balance, purse.held)
            assert [lot_facts(lot) for lot in lots] == [lot_facts(lot) for lot in purse.live()]
            assert Counter(self.hold_seen(row) for row in held) == Counter(map(seen, self.model.holds_of(account_id)))
            assert [row.expire_time_us for row in held] == sorted(row.expire_time_us for row in held)
        for key, row in self.current["reservations"]:
            assert self.hold_seen(row) == seen(self.model.holds[key])


def account_seen(account: Account) -> AccountSeen:
    """How an account looks."""
    return AccountSeen(account.account_id, ACCOUNT_STATES[account.state], account.balance, account.held)


def lot_facts(lot: Any) -> tuple[object, ...]:
    """What can be said of a lot of the store and of the model's alike."""
    ends_us = lot.ends_us if hasattr(lot, "ends_us") else lot.expire_time_us
    amounts = (lot.granted, lot.remaining, lot.held)
    return (lot.created_by, lot.grant_id, lot.priority, ends_us, *amounts, bool(lot.grace))


def pins_of(text: str) -> list[tuple[int, int]]:
    """The pins of a reservation on lots, (lot_id, amount) in the order of spending; 0 stands for tokens without one."""
    return [(lot_id, amount) for lot_id, amount in json.loads(text) if lot_id] if text else []


def key_of(row: dict[str, Any]) -> str:
    """Something to sort rows by, whatever the order of their columns."""
    return repr(sorted(row.items()))


def is_open_of(row: dict[str, Any], account_id: str) -> bool:
    """Whether a reservation is open and this account pays for it."""
    return bool(row["state"] == HELD and row["payer_account_id"] == account_id)
