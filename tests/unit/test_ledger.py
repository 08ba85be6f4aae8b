"""The ledger keeps its promises, whatever is asked of it in whatever order."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.wallet import ledger
from services.wallet.commands import (
    Amend,
    Command,
    Commit,
    Grant,
    Moment,
    OpenAccount,
    Outcome,
    Refund,
    Release,
    Reserve,
)
from services.wallet.economy import Rules
from services.wallet.errors import Refusal
from services.wallet.holdings import ISSUE, REVENUE, TOKEN, State
from services.wallet.journal_entry import apply, entry_on
from services.wallet.sweep import end_due
from tests.wallet_model import WalletModel, word

SECOND_US = 1_000_000
ACCOUNTS = st.sampled_from(["alice", "bob"])
MAKERS = st.sampled_from(["batcher", "other"])
IDS = st.sampled_from(["r1", "r2", "r3"])
AMENDS = st.sampled_from(["a1", "a2"])
AMOUNTS = st.integers(1, 12)
MAYBE_AMOUNTS = st.none() | AMOUNTS
HOLDS = st.sampled_from([SECOND_US, 20 * SECOND_US])


class LedgerAgainstModel(RuleBasedStateMachine):
    """Drives the ledger and the model with the same commands; after each, every promise is checked."""

    def __init__(self) -> None:
        super().__init__()
        self.economy = Rules(welcome_bonus=10)
        self.model = WalletModel(10)
        self.state = State()
        self.times: list[int] = []
        self.now_us = 1_000 * SECOND_US

    def end_due(self) -> None:
        accounts = [account_id for account_id, _ in self.state.accounts]
        end_due(self.state, accounts, Moment(self.now_us, self.economy), self.now_us + 1)

    def ask(self, command: Command) -> None:
        """Both must come to the same word; a refusal must leave the ledger as it was."""
        self.end_due()
        before = (dict(self.state.accounts), dict(self.state.reservations), len(self.state.entries))
        result: Outcome | Refusal
        try:
            result = ledger.decide(self.state, command, Moment(self.now_us, self.economy))
        except Refusal as refusal:
            result = refusal
        assert word(result) == self.model.run(command, self.now_us), command
        if isinstance(result, Refusal) or result.replayed:
            assert before == (self.state.accounts, self.state.reservations, len(self.state.entries))
        self.times += [self.now_us] * (len(self.state.entries) - len(self.times))

    @rule(seconds=st.integers(1, 30))
    def time_passes(self, seconds: int) -> None:
        self.now_us += seconds * SECOND_US
        self.model.pass_time(self.now_us)
        self.end_due()
        self.times += [self.now_us] * (len(self.state.entries) - len(self.times))

    @rule(account_id=ACCOUNTS)
    def open_account(self, account_id: str) -> None:
        self.ask(OpenAccount("boss", account_id))

    @rule(account_id=ACCOUNTS, grant_id=st.sampled_from(["g1", "g2", "g3"]), amount=AMOUNTS)
    def grant(self, account_id: str, grant_id: str, amount: int) -> None:
        self.ask(Grant("boss", account_id, grant_id, amount, ""))

    @rule(maker=MAKERS, account_id=ACCOUNTS, key=IDS, amount=AMOUNTS, hold_us=HOLDS, may_open=st.booleans())
    def reserve(self, maker: str, account_id: str, key: str, amount: int, hold_us: int, may_open: bool) -> None:
        self.ask(Reserve(maker, account_id, account_id, key, amount, hold_us, "v1", "", may_open))

    @rule(maker=MAKERS, key=IDS, amount=MAYBE_AMOUNTS, allow_late=st.booleans())
    def commit(self, maker: str, key: str, amount: int | None, allow_late: bool) -> None:
        self.ask(Commit(maker, maker, key, amount, allow_late))

    @rule(actor=MAKERS, maker=MAKERS, key=IDS)
    def release(self, actor: str, maker: str, key: str) -> None:
        self.ask(Release(actor, maker, key))

    @rule(maker=MAKERS, key=IDS, refund_id=st.sampled_from(["f1", "f2"]), amount=MAYBE_AMOUNTS)
    def refund(self, maker: str, key: str, refund_id: str, amount: int | None) -> None:
        self.ask(Refund(maker, maker, key, refund_id, amount))

    @rule(maker=MAKERS, key=IDS, amend_id=AMENDS, amount=MAYBE_AMOUNTS, hold_us=st.none() | HOLDS)
    def amend(self, maker: str, key: str, amend_id: str, amount: int | None, hold_us: int | None) -> None:
        self.ask(Amend(maker, maker, key, amend_id, amount, hold_us))

    @invariant()
    def accounts_are_as_the_model_says(self) -> None:
        assert {key[0]: account.balance for key, account in self.state.accounts.items()} == self.model.balance
        for (account_id, _), account in self.state.accounts.items():
            assert account.held == self.model.held(account_id)
            assert account.available >= 0
            assert account.held >= 0

    @invariant()
    def all_balances_add_up_to_nothing(self) -> None:
        system = self.state.system
        assert sum(account.balance for account in self.state.accounts.values()) + sum(system.values()) == 0
        assert system.get((ISSUE, TOKEN), 0) == -self.model.granted
        assert system.get((REVENUE, TOKEN), 0) == self.model.spent

    @invariant()
    def every_reservation_adds_up(self) -> None:
        for reservation in self.state.reservations.values():
            parts = reservation.committed + reservation.released + reservation.expired
            assert 0 <= reservation.refunded <= reservation.committed
            assert reservation.held == (0 if reservation.state != 1 else reservation.reserved - reservation.released)
            assert reservation.state == 1 or parts == reservation.reserved

    @invariant()
    def due_times_are_never_late(self) -> None:
        for reservation in self.state.reservations.values():
            if reservation.state == 1:
                due_time_us = self.state.accounts[reservation.payer_account_id, TOKEN].due_time_us
                assert due_time_us is not None
                assert due_time_us <= reservation.expire_time_us

    def teardown(self) -> None:
        """Replaying the journal rebuilds every projection."""
        replayed = State()
        for entry, time_us in zip(self.state.entries, self.times, strict=True):
            apply(replayed, entry, time_us)
        assert replayed.accounts == self.state.accounts
        assert replayed.reservations == self.state.reservations
        assert replayed.grants == self.state.grants
        assert replayed.operations == self.state.operations
        assert replayed.system == self.state.system
        self.check_histories()

    def check_histories(self) -> None:
        """Each entry names its account's entry before it."""
        last: dict[str, int] = {}
        for revision, entry in enumerate(self.state.entries, start=1):
            if entry.account_id:
                assert entry.previous == last.get(entry.account_id, 0)
                last[entry.account_id] = revision


TestLedgerAgainstModel = LedgerAgainstModel.TestCase
TestLedgerAgainstModel.settings = settings(max_examples=250, stateful_step_count=50, deadline=None)

NOW_US = 1_000 * SECOND_US
MOMENT = Moment(NOW_US, Rules(welcome_bonus=10))


def held(amount: int = 5) -> State:
    """An account of alice's with one hold of the batcher's."""
    state = State()
    ledger.decide(state, reserve(amount), MOMENT)
    return state


def reserve(amount: int = 5, **changes: Any) -> Reserve:
    """A Reserve by the batcher for alice."""
    command = Reserve("batcher", "alice", "alice", "job-1", amount, 60 * SECOND_US, "v1", "", True)
    return command._replace(**changes)


def refusal(state: State, command: Command, moment: Moment = MOMENT) -> Refusal:
    """The refusal that the command must meet."""
    try:
        ledger.decide(state, command, moment)
    except Refusal as found:
        return found
    raise AssertionError(f"{command} was not refused")


def test_a_refused_reserve_says_the_numbers_and_opens_nothing() -> None:
    """An account that would be opened is judged as if its bonus were there, and is not opened by a refusal."""
    state = State()
    found = refusal(state, reserve(11))

    assert found.metadata == {"account_id": "alice", "requested": "11", "available": "10", "held": "0"}
    assert state == State()


def test_committing_less_releases_the_rest() -> None:
    """The four words add up after a partial commit."""
    state = held(5)
    outcome = ledger.decide(state, Commit("batcher", "batcher", "job-1", 3, False), MOMENT)

    assert outcome.reservation is not None
    assert (outcome.reservation.committed, outcome.reservation.released) == (3, 2)
    assert outcome.account is not None
    assert (outcome.account.balance, outcome.account.held) == (7, 0)


def test_a_hold_ends_exactly_at_its_expiry() -> None:
    """It is held while now < expire_time: one microsecond before it may be committed, at it no more."""
    commit = Commit("batcher", "batcher", "job-1", None, False)
    before = Moment(NOW_US + 60 * SECOND_US - 1, MOMENT.rules)
    at = Moment(NOW_US + 60 * SECOND_US, MOMENT.rules)

    assert not ledger.decide(held(), commit, before).replayed
    assert type(refusal(held(), commit, at)).__name__ == "ReservationExpired"


def test_every_differing_field_of_a_repeated_reserve_is_named() -> None:
    """The first field that differs is in the refusal, with what was stored and what came."""
    differences: dict[str, Any] = {
        "account_id": "bob",
        "payer_account_id": "bob",
        "amount": 6,
        "hold_us": SECOND_US,
        "price_version": "v2",
        "reference": "other",
    }
    names = {"hold_us": "hold_duration"}
    for field, value in differences.items():
        found = refusal(held(), reserve(**{field: value}))
        assert found.metadata["field"] == names.get(field, field)


def test_a_balance_that_was_tampered_with_is_found_by_replay() -> None:
    """`apply` raises at the first entry whose balances do not follow from those before it."""
    state = held()
    entry = state.entries[-1]._replace(held=4)
    replayed = State()
    for earlier in state.entries[:-1]:
        apply(replayed, earlier, NOW_US)

    with pytest.raises(ValueError, match="revision 3"):
        apply(replayed, entry, NOW_US)


def test_a_commit_comes_late_out_of_what_is_available() -> None:
    """What expired goes down by what is committed late, so that the four words still add up."""
    state = held(5)
    late = Moment(NOW_US + 61 * SECOND_US, MOMENT.rules)
    outcome = ledger.decide(state, Commit("batcher", "batcher", "job-1", 4, True), late)

    assert outcome.reservation is not None
    assert (outcome.reservation.committed, outcome.reservation.expired) == (4, 1)
    kinds = [entry.kind for entry in state.entries]
    assert kinds == ["open", "grant", "reserve", "expire", "commit"]


def test_a_late_commit_takes_nothing_that_is_held_for_other_work() -> None:
    """What expired was free again and may be held by another reservation: that one's tokens are not taken."""
    state = held(5)
    late = Moment(NOW_US + 61 * SECOND_US, MOMENT.rules)
    end_due(state, ["alice"], late, late.now_us + 1)
    ledger.decide(state, reserve(8, reservation_id="job-2"), late)
    before = (dict(state.accounts), dict(state.reservations))

    found = refusal(state, Commit("batcher", "batcher", "job-1", None, True), late)

    assert type(found).__name__ == "InsufficientFunds"
    assert found.metadata == {"account_id": "alice", "requested": "5", "available": "2", "held": "8"}
    assert before == (state.accounts, state.reservations)


def test_refunds_together_return_no_more_than_was_committed() -> None:
    """The refund that would go past it is refused with the numbers, and so is one of nothing that is left."""
    state = held(5)
    ledger.decide(state, Commit("batcher", "batcher", "job-1", None, False), MOMENT)
    ledger.decide(state, Refund("batcher", "batcher", "job-1", "f1", 3), MOMENT)
    too_much = refusal(state, Refund("batcher", "batcher", "job-1", "f2", 3))
    ledger.decide(state, Refund("batcher", "batcher", "job-1", "f3", None), MOMENT)
    nothing_left = refusal(state, Refund("batcher", "batcher", "job-1", "f4", None))

    assert {type(too_much).__name__, type(nothing_left).__name__} == {"RefundExceedsCommitted"}
    assert too_much.metadata == {"reservation_id": "job-1", "requested": "3", "committed": "5", "refunded": "3"}
    assert state.accounts["alice", TOKEN].balance == 10


def test_entries_carry_their_kind_in_one_vocabulary() -> None:
    """An unknown kind in the journal is an error and not a silent nothing."""
    state = held()
    account = state.accounts["alice", TOKEN]
    entry = entry_on(account, "melt", "x", created_by="batcher", reservation_id="job-1")

    with pytest.raises(ValueError, match="melt"):
        apply(state, entry, NOW_US)
