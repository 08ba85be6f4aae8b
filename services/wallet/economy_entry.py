"""What the journal's rows of the economy mean for points, counters, streaks and keys; called by `apply`."""

from __future__ import annotations

from typing import Any

from services.wallet.holdings import POINT, Account, CounterRecord, Earning, Entry, RuleSetRecord, State, Streak


def points_of(state: State, account_id: str, now_us: int) -> Account:
    """An account's points; where it never had any, as they are before its first row of them."""
    return state.accounts.get((account_id, POINT)) or Account(account_id, POINT, 0, 0, None, now_us, 0)


def count(state: State, entry: Entry) -> None:
    """Moves the counters that an entry names. `ValueError`: one would fall below zero."""
    for counter, day, change in entry.facts["counts"]:
        key = (entry.account_id, counter, day)
        before = state.counters.get(key)
        amount = (before.amount if before else 0) + change
        if amount < 0:
            raise ValueError(f"revision {state.revision}: counter {counter} of day {day} comes to {amount}")
        state.counters[key] = CounterRecord(entry.account_id, counter, day, amount, state.revision)


def earn(state: State, entry: Entry, _now_us: int) -> None:
    """Remembers what was earned under its key, and how far a streak has come."""
    facts = entry.facts
    _remember(state, entry, facts["rule"], facts.get("name", ""))
    if "streak" in facts:
        days, best_days, grace_day = facts["streak"]
        streak = Streak(entry.account_id, facts["day"], days, best_days, grace_day, state.revision)
        state.streaks[entry.account_id] = streak


def convert(state: State, entry: Entry, _now_us: int) -> None:
    """Remembers a conversion with its second row, which tells what both came to."""
    if entry.asset != POINT:
        _remember(state, entry, "convert", "")


def _remember(state: State, entry: Entry, kind: str, name: str) -> None:
    facts = entry.facts
    tokens = 0 if entry.asset == POINT else entry.balance_change
    points = entry.balance_change if entry.asset == POINT else facts.get("points", 0)
    state.earnings[entry.created_by, entry.key] = Earning(
        entry.created_by,
        entry.key,
        entry.account_id,
        kind,
        name,
        tokens,
        points,
        facts["day"],
        facts.get("rules", ""),
        state.revision,
    )


def put_rules(state: State, entry: Entry, _now_us: int) -> None:
    """Adds a version of the earning rules."""
    facts: Any = entry.facts
    state.rule_sets[entry.key] = RuleSetRecord(
        entry.key,
        entry.actor,
        facts["effective_time_us"],
        facts.get("at_once", 0),
        facts["percent"],
        facts["cohort"],
        facts["document"],
        state.revision,
    )
