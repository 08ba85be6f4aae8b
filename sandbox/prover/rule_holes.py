"""What versions of the earning rules declare with one rule left out."""

from collections.abc import Mapping
from typing import Final

from sandbox.prover.hole import Hole, decided, replaced
from services.wallet import earning, economy
from services.wallet.commands import Moment, Outcome, PutRules
from services.wallet.holdings import RuleSetRecord, State


def _draws_each(each: RuleSetRecord, account_id: str) -> bool:
    """As if every version drew its own accounts, whatever its cohort."""
    return each.rollout_percent >= 100 or economy.share_of(each.version, account_id) < each.rollout_percent * 100


def _forgets_achievements(state: State, command: PutRules, moment: Moment) -> Outcome:
    """As if what was achieved by other rules counted no longer."""
    state.earnings = {key: each for key, each in state.earnings.items() if each.kind != "achievement"}
    state.counters = {key: each for key, each in state.counters.items() if each.day != earning.EVER}
    return earning.put_rules(state, command, moment)


def _forgets_today(state: State, command: PutRules, moment: Moment) -> Outcome:
    """As if what was done today by other rules counted no longer."""
    state.counters = {key: each for key, each in state.counters.items() if each.day == earning.EVER}
    return earning.put_rules(state, command, moment)


RULE_HOLES: Final[Mapping[str, Hole]] = {
    "cohorts": Hole("each version of the rules draws its own accounts", replaced(economy, "_is_in", _draws_each)),
    "repaid": Hole("new earning rules pay for what was achieved before", decided(PutRules, _forgets_achievements)),
    "fresh_limits": Hole("new earning rules begin the day's limits anew", decided(PutRules, _forgets_today)),
}
