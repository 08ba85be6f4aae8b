"""Tokens with a life of their own are spent, given back and lapse as declared, whenever somebody looks."""

from services.wallet import ledger
from services.wallet.commands import (
    Amend,
    ChangeAccount,
    Command,
    Commit,
    Grant,
    Moment,
    OpenAccount,
    Outcome,
    Preview,
    Refund,
    Release,
    Reserve,
    Revoke,
)
from services.wallet.economy import Rules
from services.wallet.errors import Refusal
from services.wallet.holdings import ISSUE, LAPSED, TOKEN, Account, Lot, Reservation, State, read_pins
from services.wallet.lot import LOTS_MAX, spending_order
from services.wallet.sweep import end_due

SECOND = 1_000_000
GRACE_SECONDS = 100


class Ledger:
    """A ledger in memory with alice in it, who has 10 tokens without a lot; time is in seconds."""

    def __init__(self, grace_seconds: int = GRACE_SECONDS) -> None:
        self.state = State()
        self.now = 0
        self.rules = Rules(welcome_bonus=10, grace_us=grace_seconds * SECOND)
        self.do(OpenAccount("boss", "alice"))

    @property
    def moment(self) -> Moment:
        return Moment(self.now * SECOND, self.rules)

    def pass_time(self, at: int | None) -> None:
        """It is a later second, and what is due by then has ended."""
        self.now = self.now if at is None else at
        end_due(self.state, [account_id for account_id, _ in self.state.accounts], self.moment, self.now * SECOND + 1)

    def do(self, command: Command, at: int | None = None) -> Outcome:
        """Carries a command out, at a later second."""
        self.pass_time(at)
        return ledger.decide(self.state, command, self.moment)

    def refused(self, command: Command, at: int | None = None) -> str:
        """The name of the refusal of a command, which must change nothing."""
        self.pass_time(at)
        before = self.state.copy()
        try:
            self.do(command)
        except Refusal as refusal:
            assert self.state == before
            return type(refusal).__name__
        raise AssertionError(f"{command} was not refused")

    def grant(self, key: str, amount: int, lifetime: int | None = None, priority: int | None = None) -> None:
        self.do(Grant("boss", "alice", key, amount, "", None if lifetime is None else lifetime * SECOND, priority))

    def reserve(self, key: str, amount: int, seconds: int = 1000, at: int | None = None) -> list[tuple[str, int]]:
        """Holds tokens; says of which grants, in the order of spending."""
        outcome = self.do(Reserve("batcher", "alice", "alice", key, amount, seconds * SECOND, "", "", False), at)
        assert outcome.reservation is not None
        return self.named(outcome.reservation)

    def commit(self, key: str, amount: int | None = None, at: int | None = None, late: bool = False) -> Reservation:
        outcome = self.do(Commit("batcher", "batcher", key, amount, late), at)
        assert outcome.reservation is not None
        return outcome.reservation

    def release(self, key: str, at: int | None = None, grace: bool = False) -> None:
        self.do(Release("batcher", "batcher", key, grace), at)

    def refund(self, key: str, amount: int, at: int | None = None, grace: bool = False) -> None:
        refund_id = f"f{len(self.state.operations)}"
        self.do(Refund("batcher", "batcher", key, refund_id, amount, grace), at)

    def named(self, reservation: Reservation) -> list[tuple[str, int]]:
        """Pins with their grants' names; `plain` are the tokens without a lot."""
        lots = self.state.lots.get("alice", {})
        return [(lots[lot].grant_id if lot else "plain", amount) for lot, amount in read_pins(reservation.pins)]

    @property
    def account(self) -> Account:
        return self.state.accounts["alice", TOKEN]

    def left(self) -> list[tuple[str, int, int, float | None]]:
        """Lots with tokens left in the order of spending: grant, remaining, held, and the second of their end."""
        lots = [lot for lot in self.state.lots.get("alice", {}).values() if lot.remaining]
        return [(lot.grant_id, lot.remaining, lot.held, _seconds(lot)) for lot in spending_order(lots)]

    def system(self, name: str) -> int:
        return self.state.system.get((name, TOKEN), 0)


def _seconds(lot: Lot) -> float | None:
    return None if lot.expire_time_us is None else lot.expire_time_us / SECOND


def test_promotional_tokens_burn_before_bought_ones_and_among_equals_those_that_end_first() -> None:
    """Priority, then the end of life, then age; tokens without a lot stand at 50, behind every lot of 50."""
    book = Ledger()
    book.grant("last", 1, priority=51)
    book.grant("late", 1, lifetime=90)
    book.grant("soon", 1, lifetime=50)
    book.grant("promo", 1, lifetime=95, priority=10)
    book.grant("ageless", 1, priority=50)

    spent = book.reserve("r", 15)

    assert spent == [("promo", 1), ("soon", 1), ("late", 1), ("ageless", 1), ("plain", 10), ("last", 1)]


def test_an_account_without_lots_has_no_pins() -> None:
    """What has no life of its own leaves no trace of lots."""
    book = Ledger()

    assert book.reserve("r", 5) == []
    assert "lots" not in book.state.entries[-1].facts


def test_a_part_is_committed_from_the_first_pins_and_the_rest_goes_back_to_its_lots() -> None:
    """What burns first is taken first."""
    book = Ledger()
    book.grant("promo", 4, lifetime=90, priority=1)
    book.reserve("r", 8)

    taken = book.commit("r", 6)

    assert book.named(taken) == [("promo", 4), ("plain", 2)]
    assert (book.account.balance, book.account.held) == (8, 0)


def test_a_released_hold_gives_its_tokens_back_to_the_same_lots() -> None:
    """As if it had never been."""
    book = Ledger()
    book.grant("a", 4, lifetime=90)
    book.grant("b", 4, lifetime=95)
    before = book.left()
    book.reserve("r", 6)
    assert [held for _, _, held, _ in book.left()] == [4, 2]

    book.release("r")

    assert book.left() == before


def test_an_amendment_gives_back_what_would_have_been_spent_last() -> None:
    book = Ledger()
    book.grant("promo", 4, lifetime=90, priority=1)
    book.reserve("r", 8)

    outcome = book.do(Amend("batcher", "batcher", "r", "a1", 3, None))

    assert outcome.reservation is not None
    assert book.named(outcome.reservation) == [("promo", 3)]
    assert (book.account.held, book.left()) == (3, [("promo", 4, 3, 90.0)])


def test_expired_tokens_fund_nothing_from_the_instant_of_their_end() -> None:
    """At the last microsecond they do, at their end they don't; they go to @lapsed."""
    book = Ledger()
    book.grant("promo", 5, lifetime=60)
    book.now = 59
    assert book.reserve("r", 15) != []
    book.release("r")

    assert (
        book.refused(Reserve("batcher", "alice", "alice", "s", 11, SECOND, "", "", False), at=60) == "InsufficientFunds"
    )

    assert (book.account.balance, book.system(LAPSED), book.left()) == (10, 5, [])


def test_pinned_tokens_may_be_committed_after_their_end() -> None:
    """The hold was made in time: that is what counts."""
    book = Ledger()
    book.grant("promo", 5, lifetime=60, priority=1)
    book.reserve("r", 3)

    book.commit("r", at=70)

    assert book.system(LAPSED) == 2
    assert (book.account.balance, book.left()) == (10, [])


def test_what_comes_back_after_its_end_lapses() -> None:
    """A hold that is given back for the holder's own reasons has outlived its tokens; likewise the rest of a Commit."""
    book = Ledger()
    book.grant("promo", 6, lifetime=60, priority=1)
    book.reserve("r", 3)
    book.reserve("s", 3)

    book.release("r", at=70)
    book.commit("s", 1)

    assert [entry.kind for entry in book.state.entries[-4:]] == ["release", "lapse", "commit", "lapse"]
    assert (book.account.balance, book.system(LAPSED)) == (10, 5)


def test_what_comes_back_through_our_failure_lives_on_for_the_grace_once() -> None:
    """They form a new lot of the same grant and priority, which ends the grace after their return; no second."""
    book = Ledger()
    book.grant("promo", 4, lifetime=60, priority=1)
    book.reserve("r", 3)

    book.release("r", at=70, grace=True)
    assert book.left() == [("promo", 3, 0, 170.0)]
    assert book.reserve("s", 4) == [("promo", 3), ("plain", 1)]

    book.release("s", at=200, grace=True)
    assert (book.left(), book.account.balance) == ([], 10)


def test_a_refund_of_committed_tokens_follows_them_home() -> None:
    """Into the living lot as such; into one that is over with grace or to lapse; last spent is first returned."""
    book = Ledger()
    book.grant("promo", 4, lifetime=60, priority=1)
    book.reserve("r", 6)
    book.commit("r")

    book.refund("r", 3, at=50)
    assert book.left() == [("promo", 1, 0, 60.0)]

    book.refund("r", 1, at=70, grace=True)
    assert book.left() == [("promo", 1, 0, 170.0)]

    book.refund("r", 2)
    assert (book.left(), book.account.balance) == ([("promo", 1, 0, 170.0)], 11)


def test_a_hold_that_ran_out_is_our_failure_and_its_grace_counts_from_its_own_end() -> None:
    """Whenever the sweep runs: a late one finds the same, and what has ended meanwhile ends with it."""
    soon, late = Ledger(), Ledger()
    for book in (soon, late):
        book.grant("promo", 5, lifetime=60, priority=1)
        book.reserve("r", 5, seconds=80)

    soon.pass_time(at=81)
    assert soon.left() == [("promo", 5, 0, 180.0)]
    soon.pass_time(at=500)
    late.pass_time(at=500)

    assert soon.left() == late.left() == []
    assert soon.account._replace(due_time_us=None) == late.account._replace(due_time_us=None)


def test_a_hold_that_ran_out_before_its_lot_gives_back_to_the_living_lot_even_in_a_late_sweep() -> None:
    """What is due is ended in the order of time: the tokens came back in time, and lapse without a grace."""
    book = Ledger()
    book.grant("promo", 5, lifetime=60, priority=1)
    book.reserve("r", 5, seconds=30)

    book.pass_time(at=500)

    assert [entry.kind for entry in book.state.entries[-2:]] == ["expire", "lapse"]
    assert book.account.balance == 10


def test_a_ledger_may_declare_no_grace() -> None:
    book = Ledger(grace_seconds=0)
    book.grant("promo", 5, lifetime=60, priority=1)
    book.reserve("r", 5)

    book.release("r", at=70, grace=True)

    assert (book.left(), book.system(LAPSED)) == ([], 5)


def test_a_late_commit_takes_from_lots_in_the_order_of_spending() -> None:
    book = Ledger()
    book.reserve("r", 5, seconds=10)
    book.grant("promo", 2, lifetime=60, priority=1)

    taken = book.commit("r", at=20, late=True)

    assert book.named(taken) == [("promo", 2), ("plain", 3)]
    assert (book.account.balance, book.left()) == (7, [])


def test_revoking_a_lot_takes_what_is_not_held_and_lets_the_rest_lapse_when_it_comes_back() -> None:
    """Held tokens stay with their work: they may be committed, but not come back to life."""
    book = Ledger()
    book.grant("promo", 8, lifetime=60, priority=1)
    book.reserve("r", 2)
    book.reserve("s", 3)

    outcome = book.do(Revoke("boss", "alice", "boss", "promo", "chargeback"))
    assert (outcome.revoked, outcome.replayed, book.system(ISSUE)) == (3, False, -15)
    assert book.do(Revoke("boss", "alice", "boss", "promo", "again")).replayed

    book.commit("r")
    book.release("s", grace=True)
    assert (book.account.balance, book.left(), book.system(LAPSED)) == (10, [], 3)


def test_a_refund_into_a_revoked_lot_lapses_although_it_was_used_up_when_revoked() -> None:
    book = Ledger()
    book.grant("promo", 2, lifetime=60, priority=1)
    book.reserve("r", 2)
    book.commit("r")
    assert book.do(Revoke("boss", "alice", "boss", "promo", "")).revoked == 0

    book.refund("r", 2, grace=True)

    assert (book.account.balance, book.system(LAPSED)) == (10, 2)


def test_revoking_a_grant_without_a_lot_takes_at_most_its_amount_and_nothing_that_is_held() -> None:
    book = Ledger()
    book.grant("bought", 20)
    book.reserve("r", 25)

    assert book.do(Revoke("boss", "alice", "boss", "bought", "")).revoked == 5
    assert (book.account.balance, book.account.held) == (25, 25)
    assert book.refused(Revoke("boss", "alice", "boss", "never", "")) == "GrantNotFound"


def test_a_preview_says_from_which_lots_and_changes_nothing() -> None:
    book = Ledger()
    book.grant("promo", 3, lifetime=60, priority=1)
    before = book.state.copy()

    outcome = book.do(Preview(Reserve("batcher", "alice", "alice", "r", 5, SECOND, "", "", False)))

    assert outcome.reservation is not None
    assert book.named(outcome.reservation) == [("promo", 3), ("plain", 2)]
    assert [(lot.grant_id, lot.held) for lot in outcome.lots] == [("promo", 3)]
    assert book.state == before


def test_the_lots_of_an_account_have_a_limit() -> None:
    """An account's lots are loaded with it, so that there must not be any number of them."""
    book = Ledger()
    for number in range(LOTS_MAX):
        book.grant(f"g{number}", 1, lifetime=60)

    assert book.refused(Grant("boss", "alice", "one-more", 1, "", 60 * SECOND, None)) == "LotLimit"
    book.grant("plain", 1)


def change(kind: str, key: str, *, forfeit: bool = False) -> ChangeAccount:
    return ChangeAccount("boss", "alice", key, kind, forfeit, "")


def test_a_frozen_account_lets_what_runs_end_and_nothing_begin() -> None:
    """Reserve and late Commit are refused; commits, releases, refunds and grants go on."""
    book = Ledger()
    for key in ("r", "s", "late"):
        book.reserve(key, 2, seconds=10 if key == "late" else 1000)
    book.do(change("freeze", "c1"))

    assert book.refused(Reserve("batcher", "alice", "alice", "t", 1, SECOND, "", "", False)) == "AccountFrozen"
    assert book.refused(Commit("batcher", "batcher", "late", None, True), at=20) == "AccountFrozen"
    book.commit("r")
    book.release("s")
    book.refund("r", 1)
    book.grant("more", 1)
    assert (book.account.balance, book.account.held) == (10, 0)

    book.do(change("unfreeze", "c2"))
    assert book.do(change("freeze", "c1")).replayed
    book.reserve("t", 1)


def test_an_account_is_closed_only_when_nothing_is_held_or_left_behind_unasked() -> None:
    """What is forfeited goes to @lapsed; nothing comes in or out any more, and repeats are still answered."""
    book = Ledger()
    book.grant("promo", 3, lifetime=60)
    book.reserve("r", 2)
    assert book.refused(change("close", "c1", forfeit=True)) == "AccountNotEmpty"
    book.commit("r")
    assert book.refused(change("close", "c1")) == "AccountNotEmpty"

    book.do(change("close", "c1", forfeit=True))

    assert (book.account.balance, book.account.lots, book.left(), book.system(LAPSED)) == (0, 0, [], 11)
    assert book.do(change("close", "c1", forfeit=True)).replayed
    assert book.refused(change("close", "c2", forfeit=True)) == "AccountClosed"
    assert book.refused(OpenAccount("boss", "alice")) == "AccountClosed"
    assert book.refused(Grant("boss", "alice", "g", 1, "")) == "AccountClosed"
    assert book.refused(Reserve("batcher", "alice", "alice", "t", 1, SECOND, "", "", True)) == "AccountClosed"
    assert book.refused(Refund("batcher", "batcher", "r", "f", 1)) == "AccountClosed"


def test_a_change_is_compared_with_what_its_key_was_used_for() -> None:
    book = Ledger()
    book.do(change("freeze", "c1"))

    assert book.refused(change("unfreeze", "c1")) == "IdempotencyMismatch"
    assert book.refused(change("freeze", "c1")._replace(reference="other")) == "IdempotencyMismatch"
