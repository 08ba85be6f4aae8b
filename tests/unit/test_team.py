"""team: what members hold and take is counted on the day of the Reserve, whatever becomes of it and whenever."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.wallet import calendar_day, ledger
from services.wallet.commands import Amend, Command, Commit, Grant, Moment, Refund, Release, Reserve
from services.wallet.economy import Rules
from services.wallet.errors import LimitReached, Refusal
from services.wallet.holdings import State
from services.wallet.sharing import Role
from services.wallet.sharing_commands import OpenTeam, SetMember

BEGIN_US = round(datetime(2026, 1, 30, 22, tzinfo=UTC).timestamp()) * 1_000_000
HOUR_US = 3600 * 1_000_000
LIMIT, MONTH_LIMIT = 10, 25


def team_at(now_us: int) -> State:
    state, moment = State(), Moment(now_us, Rules())
    ledger.decide(state, OpenTeam("boss", "team", "alice"), moment)
    ledger.decide(state, Grant("boss", "team", "g", 10_000, ""), moment)
    change = SetMember("boss", "team", "c", "alice", "bob", int(Role.MEMBER), LIMIT, MONTH_LIMIT)
    ledger.decide(state, change, moment)
    return state


def reserve(key: str, amount: int) -> Reserve:
    return Reserve("svc", "bob", "team", key, amount, 40 * 24 * HOUR_US, "", "", False)


def test_a_release_after_midnight_gives_back_to_the_day_of_the_reserve() -> None:
    state = team_at(BEGIN_US)
    ledger.decide(state, reserve("r1", 10), Moment(BEGIN_US, Rules()))
    tomorrow = Moment(BEGIN_US + 4 * HOUR_US, Rules())
    ledger.decide(state, reserve("r2", 10), tomorrow)

    ledger.decide(state, Release("svc", "svc", "r1"), tomorrow)

    with pytest.raises(LimitReached) as refused:
        ledger.decide(state, reserve("r3", 1), tomorrow)
    assert refused.value.metadata["used"] == "10"


def test_the_limit_of_a_month_begins_anew_with_the_next() -> None:
    state = team_at(BEGIN_US)
    for day in range(2):
        moment = Moment(BEGIN_US + day * 24 * HOUR_US, Rules())
        ledger.decide(state, reserve(f"r{day}", 10), moment)
    last = Moment(BEGIN_US + 25 * HOUR_US, Rules())
    with pytest.raises(LimitReached) as refused:
        ledger.decide(state, reserve("r9", 6), last)
    assert refused.value.metadata["resets_at"] == "2026-02-01T00:00:00Z"

    ledger.decide(state, reserve("r10", 6), Moment(BEGIN_US + 27 * HOUR_US, Rules()))


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "commit", "part", "release", "refund", "amend"]),
        st.integers(0, 7),
        st.integers(1, 6),
        st.integers(0, 13),
    ),
    max_size=60,
)


@given(STEPS)
def test_counts_are_what_reservations_hold_or_have_taken_and_no_limit_is_ever_passed(steps) -> None:
    state, now_us = team_at(BEGIN_US), BEGIN_US
    for number, (kind, which, amount, hours) in enumerate(steps):
        now_us += hours * HOUR_US
        key = f"r{which}"
        commands: dict[str, Command] = {
            "reserve": reserve(f"r{which}", amount),
            "commit": Commit("svc", "svc", key, None, True),
            "part": Commit("svc", "svc", key, 1, True),
            "release": Release("svc", "svc", key),
            "refund": Refund("svc", "svc", key, f"f{number}", 1),
            "amend": Amend("svc", "svc", key, f"a{number}", 1, None),
        }
        try:
            ledger.decide(state, commands[kind], Moment(now_us, Rules()))
        except Refusal:
            continue
        expected: dict[int, int] = {}
        for each in state.reservations.values():
            if each.spend_day:
                expected[each.spend_day] = expected.get(each.spend_day, 0) + each.held + each.committed
        days = {day: each.amount for (_, name, day), each in state.counters.items() if name == "spend:bob"}
        assert {day: used for day, used in days.items() if used} == {d: used for d, used in expected.items() if used}
        assert all(used <= LIMIT for used in days.values())
        months: dict[int, int] = {}
        for day, used in days.items():
            months[calendar_day.month_of(day)] = months.get(calendar_day.month_of(day), 0) + used
        assert all(used <= MONTH_LIMIT for used in months.values())
