"""Decisions about what accounts earn: daily bonuses, points for activities, achievements, and tokens for points.

    claim a day ──► tokens ─┬─ streak of so many days ──► achievement ──► tokens
    do something ──► points ┴─ convert, so many a day ──► tokens

Everything comes from @issue. What may happen once a day, or once for ever, is counted on the account, so that neither
another key nor another replica gets it twice; the day is that of the operator's calendar, taken inside the transaction.
"""

from typing import Any, Final

from services.wallet import calendar_day
from services.wallet.account import check_balance_limit, find, refuse_closed, same
from services.wallet.commands import Award, ClaimDaily, Convert, Moment, Outcome, PutRules, RecordActivity
from services.wallet.counter import refuse_over
from services.wallet.economy import FIRST_JOB, RULE_SETS_MAX, STREAK, Achievement, EarningRules, InForce, in_force
from services.wallet.economy_entry import points_of
from services.wallet.errors import (
    BalanceLimit,
    DailyBonusClaimed,
    InsufficientPoints,
    RuleNotFound,
    RulesLimit,
)
from services.wallet.grant import check_issue
from services.wallet.holdings import (
    ISSUE,
    POINT,
    TOKEN,
    WALLET,
    Account,
    Earning,
    Entry,
    Reservation,
    State,
    Streak,
)
from services.wallet.journal_entry import apply, entry_on

CONVERT: Final = "convert"
"""The counter of tokens that points have become in a day."""
EVER: Final = 0
"""The day of a counter that is for ever."""


def activity_counter(name: str) -> str:
    """The counter of how often an activity has counted in a day."""
    return f"activity:{name}"


def achievement_counter(name: str) -> str:
    """The counter of an achievement, for ever."""
    return f"achievement:{name}"


def achievement_key(name: str, account_id: str) -> str:
    """The key of an achievement among what the wallet itself gives."""
    return f"{name}:{account_id}"


def claim_daily(state: State, command: ClaimDaily, moment: Moment) -> Outcome:
    """Gives the bonus of the day, once, and what a streak that has come so far is worth."""
    made = state.earnings.get((command.actor, command.claim_id))
    if made is not None:
        return _again(state, made, "daily", command.account_id)
    account = _earner(state, command.account_id)
    day, before = moment.day, state.streaks.get(account.account_id)
    if before is not None and before.day >= day:
        raise DailyBonusClaimed(account.account_id, calendar_day.start_us(before.day + 1, moment.zone))
    version, rules = _rules(state, account.account_id, moment)
    streak = next_streak(before, account.account_id, day, rules.grace_days)
    facts = _facts("daily", day, version) | {"streak": [streak.days, streak.best_days, streak.grace_day]}
    _give(state, account, moment, command.actor, command.claim_id, rules.daily(streak.days), facts)
    _award_streak(state, account.account_id, streak.days, rules, version, moment)
    return _outcome(state, state.earnings[command.actor, command.claim_id])


def next_streak(before: Streak | None, account_id: str, day: int, grace_days: int) -> Streak:
    """How far a streak has come with a claim on a day after its last; its revision is left at 0.

    One missed day is forgiven when none was in the `grace_days` before it, and does not itself count.
    """
    if before is None:
        return Streak(account_id, day, 1, 1, 0, 0)
    days, grace_day = 1, before.grace_day
    if day == before.day + 1:
        days = before.days + 1
    elif day == before.day + 2 and grace_days and (not grace_day or day - 1 - grace_day >= grace_days):
        days, grace_day = before.days + 1, day - 1
    return Streak(account_id, day, days, max(days, before.best_days), grace_day, 0)


def record_activity(state: State, command: RecordActivity, moment: Moment) -> Outcome:
    """Gives points for an activity, so often a day."""
    made = state.earnings.get((command.actor, command.activity_id))
    if made is not None:
        return _again(state, made, "activity", command.account_id, command.activity)
    account = _earner(state, command.account_id)
    version, rules = _rules(state, account.account_id, moment)
    activity = rules.activities.get(command.activity)
    if activity is None:
        raise RuleNotFound("activity", command.activity)
    day, counter = moment.day, activity_counter(command.activity)
    refuse_over(state, account.account_id, counter, day, 1, activity.per_day, moment.next_day_us)
    facts = _facts("activity", day, version) | {"name": command.activity, "counts": [[counter, day, 1]]}
    points = points_of(state, account.account_id, moment.now_us)
    _give(state, points, moment, command.actor, command.activity_id, activity.points, facts)
    return _outcome(state, state.earnings[command.actor, command.activity_id])


def convert(state: State, command: Convert, moment: Moment) -> Outcome:
    """Changes points into tokens, so many a day: both rows or none."""
    made = state.earnings.get((command.actor, command.conversion_id))
    if made is not None:
        outcome = _again(state, made, "convert", command.account_id)
        same("tokens", made.tokens, command.tokens)
        return outcome
    account = _earner(state, command.account_id)
    version, rules = _rules(state, account.account_id, moment)
    day, limit = moment.day, rules.tokens_per_day
    refuse_over(state, account.account_id, CONVERT, day, command.tokens, limit, moment.next_day_us)
    points, now_us = points_of(state, account.account_id, moment.now_us), moment.now_us
    needed = command.tokens * rules.points_per_token
    if needed > points.balance:
        raise InsufficientPoints(account.account_id, needed, points.balance)
    check_issue(state, account, command.tokens)
    facts = {"day": day, "points": -needed, "counts": [[CONVERT, day, command.tokens]]}
    if version:
        facts["rules"] = version
    for holder, change, of_row in ((points, -needed, {"day": day}), (account, command.tokens, facts)):
        entry = entry_on(
            holder,
            "convert",
            command.actor,
            balance_change=change,
            counterparty=ISSUE,
            created_by=command.actor,
            key=command.conversion_id,
            facts=of_row,
        )
        apply(state, entry, now_us)
    return _outcome(state, state.earnings[command.actor, command.conversion_id])


def award(state: State, command: Award, moment: Moment) -> Outcome:
    """Gives the tokens of an achievement that a backend has seen, once for ever."""
    account = _earner(state, command.account_id)
    made = state.earnings.get((WALLET, achievement_key(command.achievement, command.account_id)))
    if made is not None:
        return _outcome(state, made, replayed=True)
    version, rules = _rules(state, account.account_id, moment)
    achievement = rules.achievements.get(command.achievement)
    if achievement is None or achievement.by_wallet:
        raise RuleNotFound("achievement", command.achievement)
    return _outcome(state, _award(state, command.actor, command.achievement, account, rules, version, moment))


def first_job(state: State, paid: Reservation, moment: Moment) -> None:
    """Gives what the first committed reservation of an account is worth; the caller has seen that it is the first."""
    account = state.accounts[paid.payer_account_id, TOKEN]
    version, rules = _rules(state, account.account_id, moment)
    won = rules.achievements.get(FIRST_JOB)
    # Other rules may have left it to a backend, which has reported it: then it is paid.
    paid_before = (account.account_id, achievement_counter(FIRST_JOB), EVER) in state.counters
    if won is not None and won.by_wallet and not paid_before and _fits(state, account.account_id, won, moment):
        _award(state, WALLET, FIRST_JOB, account, rules, version, moment)


def _award_streak(state: State, account_id: str, days: int, rules: EarningRules, version: str, moment: Moment) -> None:
    for name, achievement in rules.achievements.items():
        reached = achievement.by_wallet and name.startswith(STREAK) and int(name.removeprefix(STREAK)) <= days
        if reached and (account_id, achievement_counter(name), EVER) not in state.counters:
            # What passes the largest balance is refused before anything is written, and here the claim is: it is left
            # to a claim after the balance has fallen.
            if not _fits(state, account_id, achievement, moment):
                continue
            _award(state, WALLET, name, state.accounts[account_id, TOKEN], rules, version, moment)


def _fits(state: State, account_id: str, won: Achievement, moment: Moment) -> bool:
    """Whether an account can take what an achievement gives."""
    account = state.accounts[account_id, TOKEN]
    try:
        holder = points_of(state, account_id, moment.now_us) if won.points else account
        _check_room(state, holder, won.points or won.tokens)
    except BalanceLimit:
        return False
    return True


def _check_room(state: State, account: Account, amount: int) -> None:
    if account.asset == TOKEN:
        check_issue(state, account, amount)
    else:
        check_balance_limit(account, amount)


def _award(
    state: State, actor: str, name: str, account: Account, rules: EarningRules, version: str, moment: Moment
) -> Earning:
    facts = _facts("achievement", moment.day, version)
    facts |= {"name": name, "counts": [[achievement_counter(name), EVER, 1]]}
    key = achievement_key(name, account.account_id)
    won = rules.achievements[name]
    holder = points_of(state, account.account_id, moment.now_us) if won.points else account
    _give(state, holder, moment, actor, key, won.points or won.tokens, facts, created_by=WALLET)
    return state.earnings[WALLET, key]


def put_rules(state: State, command: PutRules, moment: Moment) -> Outcome:
    """Adds a version of the earning rules, from now on or from a later time."""
    made = state.rule_sets.get(command.version)
    if made is not None:
        same("effective_time", None if made.at_once else made.effective_time_us, command.effective_time_us)
        same("rollout_percent", made.rollout_percent, command.rollout_percent)
        same("cohort", made.cohort, command.cohort)
        same("rules", made.document, command.document)
        return Outcome(None, None, True, rule_set=made)
    if len(state.rule_sets) >= RULE_SETS_MAX:
        raise RulesLimit(RULE_SETS_MAX)
    facts: dict[str, Any] = {
        "effective_time_us": moment.now_us if command.effective_time_us is None else command.effective_time_us,
        "percent": command.rollout_percent,
        "cohort": command.cohort,
        "document": command.document,
    }
    if command.effective_time_us is None:
        facts["at_once"] = 1
    apply(state, Entry("rules", command.actor, "", key=command.version, facts=facts), moment.now_us)
    return Outcome(None, None, False, rule_set=state.rule_sets[command.version])


def _give(
    state: State,
    account: Account,
    moment: Moment,
    actor: str,
    key: str,
    amount: int,
    facts: dict[str, Any],
    created_by: str = "",
) -> None:
    _check_room(state, account, amount)
    entry = entry_on(
        account,
        "earn",
        actor,
        balance_change=amount,
        counterparty=ISSUE if amount else "",
        created_by=created_by or actor,
        key=key,
        facts=facts,
    )
    apply(state, entry, moment.now_us)


def _facts(rule: str, day: int, version: str) -> dict[str, Any]:
    return {"rule": rule, "day": day} | ({"rules": version} if version else {})


def _earner(state: State, account_id: str) -> Account:
    account = find(state, account_id)
    refuse_closed(account)
    return account


def _rules(state: State, account_id: str, moment: Moment) -> InForce:
    return in_force(moment.rules, state.rule_sets.values(), account_id, moment.now_us)


def _again(state: State, made: Earning, kind: str, account_id: str, name: str = "") -> Outcome:
    same("account_id", made.account_id, account_id)
    same("kind", made.kind, kind)
    same("activity", made.name, name)
    return _outcome(state, made, replayed=True)


def _outcome(state: State, earning: Earning, *, replayed: bool = False) -> Outcome:
    account_id = earning.account_id
    return Outcome(
        state.accounts.get((account_id, TOKEN)),
        None,
        replayed,
        earning=earning,
        points=state.accounts.get((account_id, POINT)),
        streak=state.streaks.get(account_id),
    )
