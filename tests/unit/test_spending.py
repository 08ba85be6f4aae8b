"""spending: an account's own limits count what it pays for on the day of the Reserve, and stop what would pass them."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.wallet import calendar_day, ledger
from services.wallet.commands import (
    Amend,
    ChangeAccount,
    Command,
    Commit,
    Grant,
    Moment,
    OpenAccount,
    Preview,
    Refund,
    Release,
    Reserve,
)
from services.wallet.economy import Rules
from services.wallet.errors import AccountClosed, AccountNotFound, IdempotencyMismatch, LimitReached, Refusal
from services.wallet.holdings import TOKEN, State
from services.wallet.sharing import Role
from services.wallet.sharing_commands import OpenTeam, SetLimits, SetMember
from services.wallet.sharing_errors import LimitRaiseNotAllowed
from services.wallet.sweep import end_due

BEGIN_US = round(datetime(2026, 1, 30, 22, tzinfo=UTC).timestamp()) * 1_000_000
HOUR_US = 3600 * 1_000_000
LIMIT, MONTH_LIMIT = 10, 25


class Account:
    """alice with 10,000 tokens, and limits of 10 a day and 25 a month unless a test says otherwise."""

    def __init__(self, day_limit: int | None = LIMIT, month_limit: int | None = MONTH_LIMIT) -> None:
        self.state = State()
        self.now_us = BEGIN_US
        self.do(OpenAccount("boss", "alice"))
        self.do(Grant("boss", "alice", "g", 10_000, ""))
        self.limit("first", day_limit, month_limit)

    def do(self, command: Command) -> object:
        """Decides as a group of one command would: what is due ends before."""
        moment = Moment(self.now_us, Rules())
        end_due(self.state, sorted({key[0] for key in self.state.accounts}), moment, moment.now_us + 1)
        return ledger.decide(self.state, command, moment)

    def limit(self, key: str, day: int | None, month: int | None, *, may_raise: bool = True) -> object:
        return self.do(SetLimits("boss", "alice", key, day, month, "", may_raise))

    def reserve(self, key: str, amount: int) -> None:
        self.do(reserve(key, amount))

    def refusal(self, command: Command) -> dict[str, str]:
        with pytest.raises(LimitReached) as refused:
            self.do(command)
        return dict(refused.value.metadata)

    def used(self, counter: str, day: int) -> int:
        counted = self.state.counters.get(("alice", counter, day))
        return counted.amount if counted else 0


def reserve(key: str, amount: int, payer: str = "alice", account_id: str = "alice") -> Reserve:
    return Reserve("svc", account_id, payer, key, amount, 40 * 24 * HOUR_US, "", "", False)


def test_what_would_pass_the_limit_of_a_day_is_refused_with_its_numbers():
    account = Account()
    account.reserve("r1", 8)
    rows = len(account.state.entries)

    assert account.refusal(reserve("r2", 3)) == {
        "account_id": "alice",
        "limited": "spend",
        "requested": "3",
        "used": "8",
        "limit": "10",
        "resets_at": "2026-01-31T00:00:00Z",
    }
    assert account.refusal(Preview(reserve("r2", 3)))["limited"] == "spend"
    assert len(account.state.entries) == rows
    account.reserve("r2", 2)
    account.now_us += 2 * HOUR_US
    account.reserve("r3", 10)


def test_the_limit_of_a_month_begins_anew_with_the_next():
    account = Account()
    for day in range(2):
        account.reserve(f"r{day}", 10)
        account.now_us += 24 * HOUR_US
    account.now_us = BEGIN_US + 25 * HOUR_US

    assert account.refusal(reserve("r9", 6))["resets_at"] == "2026-02-01T00:00:00Z"
    account.now_us += 2 * HOUR_US
    account.reserve("r9", 6)


def test_a_release_after_midnight_gives_back_to_the_day_of_the_reserve_and_a_refund_to_none():
    account = Account()
    day = calendar_day.day_of(BEGIN_US, UTC)
    account.reserve("r1", 6)
    account.reserve("r2", 4)
    account.do(Commit("svc", "svc", "r2", 3, False))
    account.now_us += 4 * HOUR_US
    account.reserve("r3", 10)
    account.do(Release("svc", "svc", "r1"))
    account.do(Refund("svc", "svc", "r2", "back", 3))

    assert (account.used("spend", day), account.used("spend", day + 1)) == (3, 10)
    assert account.refusal(reserve("r4", 1))["used"] == "10"


def test_a_late_commit_has_to_fit_into_the_limits_again():
    account = Account()
    account.do(reserve("r1", 6)._replace(hold_us=HOUR_US))
    account.now_us += HOUR_US
    account.reserve("r2", 8)

    assert account.refusal(Commit("svc", "svc", "r1", None, True))["limited"] == "spend"
    account.do(Release("svc", "svc", "r2"))
    account.do(Commit("svc", "svc", "r1", None, True))


def test_whoever_is_capped_may_lower_a_limit_and_only_an_administrator_raise_or_remove_one():
    account = Account()
    for key, day, month, field in (("a", 11, 25, "day_limit"), ("b", 10, None, "month_limit")):
        with pytest.raises(LimitRaiseNotAllowed) as refused:
            account.limit(key, day, month, may_raise=False)
        assert refused.value.metadata["field"] == field
    account.limit("c", 4, 25, may_raise=False)

    assert account.refusal(reserve("r", 5))["limit"] == "4"
    account.limit("d", None, None)
    account.reserve("r", 5)


def test_the_key_finds_a_change_and_refuses_another_one():
    account = Account()
    account.limit("second", 5, None)
    rows = len(account.state.entries)
    account.limit("first", LIMIT, MONTH_LIMIT)
    with pytest.raises(IdempotencyMismatch) as mismatch:
        account.limit("first", LIMIT, None)

    assert mismatch.value.metadata["field"] == "month_limit"
    assert len(account.state.entries) == rows
    assert account.refusal(reserve("r", 6))["limit"] == "5"


def test_what_was_spent_in_the_same_group_before_a_limit_is_set_counts():
    account = Account(None, None)
    account.reserve("r1", 7)
    account.do(Commit("svc", "svc", "r1", 5, False))
    account.limit("now", LIMIT, None)

    assert account.refusal(reserve("r2", 6))["used"] == "5"


def test_an_account_without_limits_counts_nothing():
    account = Account(None, None)
    account.reserve("r1", 7)
    account.do(Commit("svc", "svc", "r1", 5, False))

    assert account.state.counters == {}
    assert account.state.accounts["alice", TOKEN].spend_since == 0


def test_a_removed_and_renewed_limit_counts_what_was_spent_between():
    account = Account()
    account.reserve("r1", 4)
    account.limit("off", None, None)
    account.reserve("r2", 30)
    account.do(Release("svc", "svc", "r1"))
    day = calendar_day.day_of(BEGIN_US, UTC)
    account.state.shared.spent = {}
    account.limit("on", LIMIT, None)

    assert account.used("spend", day) == 30


def test_a_limit_of_nothing_stops_an_account_and_not_what_it_holds():
    account = Account()
    account.reserve("r1", 5)
    account.limit("stop", 0, None)

    assert account.refusal(reserve("r2", 1))["limit"] == "0"
    account.do(Commit("svc", "svc", "r1", 5, False))


def test_a_closed_account_or_none_gets_no_limits():
    account = Account()
    account.do(ChangeAccount("boss", "alice", "c", "close", True, ""))
    with pytest.raises(AccountClosed):
        account.limit("more", 1, 1)
    with pytest.raises(AccountNotFound):
        account.do(SetLimits("boss", "nobody", "k", 1, 1, "", True))


def test_a_team_has_its_own_limits_beside_those_of_its_members():
    account = Account()
    account.do(OpenTeam("boss", "alice", "bob"))
    account.do(SetMember("boss", "alice", "m", "bob", "carol", int(Role.MEMBER), 4, None))
    account.do(reserve("r1", 8, account_id="bob"))

    assert account.refusal(reserve("r2", 5, account_id="carol"))["limited"] == "spend:carol"
    assert account.refusal(reserve("r2", 3, account_id="carol"))["limited"] == "spend"
    account.do(reserve("r2", 2, account_id="carol"))


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "reserve", "commit", "part", "release", "refund", "amend", "limit"]),
        st.integers(0, 7),
        st.integers(1, 6),
        st.integers(0, 13),
    ),
    max_size=60,
)


@given(STEPS)
def test_counts_are_what_reservations_hold_or_have_taken_and_no_limit_is_ever_passed(steps):
    account = Account()
    for number, (kind, which, amount, hours) in enumerate(steps):
        account.now_us += hours * HOUR_US
        key = f"r{which}"
        commands: dict[str, Command] = {
            "reserve": reserve(key, amount),
            "commit": Commit("svc", "svc", key, None, True),
            "part": Commit("svc", "svc", key, 1, True),
            "release": Release("svc", "svc", key),
            "refund": Refund("svc", "svc", key, f"f{number}", 1),
            "amend": Amend("svc", "svc", key, f"a{number}", 1, None),
            "limit": SetLimits("boss", "alice", f"l{number}", LIMIT, MONTH_LIMIT, "", True),
        }
        try:
            account.do(commands[kind])
        except Refusal:
            continue
        spent: dict[int, int] = {}
        for each in account.state.reservations.values():
            if each.payer_account_id:
                day = calendar_day.day_of(each.create_time_us, UTC)
                spent[day] = spent.get(day, 0) + each.held + each.committed
        for day, amount_spent in spent.items():
            assert account.used("spend", day) == amount_spent <= LIMIT
        months = {calendar_day.month_of(day) for day in spent}
        for month in months:
            of_month = sum(amount for day, amount in spent.items() if calendar_day.month_of(day) == month)
            assert account.used("spend_month", month) == of_month <= MONTH_LIMIT
