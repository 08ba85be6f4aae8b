"""The rules by which tokens and points come into the world, as data. Every number is configuration. Pure.

A set of earning rules is a version. The first is the configuration's; an administrator puts others at run time, each
with the time from which it is in force and the share of accounts that it is tried on. Whoever is not in that share
keeps the version in force before: an account always sees one version. Versions of one cohort draw the same accounts: a
larger share takes in all that were in the smaller.
"""

import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final, NamedTuple

from services.wallet.holdings import RuleSetRecord

WELCOME_GRANT_ID = "welcome"
"""The key of the welcome bonus among the grants of the wallet itself."""
FIRST_JOB: Final = "first_job"
"""The achievement of an account whose first reservation is committed."""
STREAK: Final = "streak_"
"""An achievement of this name and a number of days is earned by a streak of so many."""
AMOUNT_MAX: Final = 10**15
NAMES_MAX: Final = 1_000
NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9_]{1,64}")
"""How activities and achievements are named."""
STREAK_DAYS_MAX: Final = 3_660
OFFER_DAYS_MAX: Final = 366
OPEN_OFFERS_MAX: Final = 100
"""Open offers that any rules may allow to one account: all of them are loaded with it where they may have a part."""
RULE_SETS_MAX: Final = 1_000
"""Versions that may ever be put: all of them are looked at for every account."""


class Activity(NamedTuple):
    """What an activity gives, and how often a day it counts."""

    points: int
    per_day: int


class Achievement(NamedTuple):
    """What an achievement gives, once for ever: tokens or points. by_wallet: whether the wallet sees it by itself."""

    tokens: int
    points: int
    by_wallet: bool


_STREAKS: Final = {3: 1, 7: 2, 30: 3}
_ACTIVITIES: Final = {"feedback": Activity(10, 5), "share": Activity(20, 2), "invite": Activity(100, 1)}
_ACHIEVEMENTS: Final = {
    FIRST_JOB: Achievement(0, 50, True),
    "streak_7": Achievement(5, 0, True),
    "streak_30": Achievement(20, 0, True),
    "profile_complete": Achievement(0, 100, False),
}


class EarningRules(NamedTuple):
    """What accounts earn. Tokens are in the asset's smallest unit, points are whole."""

    welcome_bonus: int = 10
    """Granted once to every account, in the transaction that opens it. 0 grants nothing."""
    daily_bonus: int = 2
    """For the first claim of a calendar day."""
    streak_bonuses: Mapping[int, int] = _STREAKS
    """From this day of a streak on, so much more than the daily bonus; of several the one of the longest streak."""
    grace_days: int = 7
    """A missed day is forgiven when none was in so many days before it. 0: none ever is."""
    activities: Mapping[str, Activity] = _ACTIVITIES
    points_per_token: int = 100
    tokens_per_day: int = 5
    """How many tokens points may become in one day."""
    achievements: Mapping[str, Achievement] = _ACHIEVEMENTS
    gifts_per_day: int = 20
    """How many tokens an account may give away in one day."""
    welcome_lock_days: int = 30
    """So long after it was opened an account gives and offers nothing of its welcome bonus."""
    offers_per_day: int = 20
    """How many tokens an account may offer for points in one day; what comes back unsold counts no longer. 0: none."""
    offer_price_min: int = 10
    """For how many points a token may be offered at least: an offer for next to nothing would be a gift."""
    open_offers: int = 20
    """How many open offers an account may have."""
    offer_days: int = 7
    """How long an offer lives that says nothing else."""
    offer_days_max: int = 30
    """How long an offer may live."""

    def daily(self, streak_days: int) -> int:
        """What a claim gives on this day of a streak."""
        reached = [days for days in self.streak_bonuses if days <= streak_days]
        return self.daily_bonus + (self.streak_bonuses[max(reached)] if reached else 0)


class Rules(NamedTuple):
    """What the operator declared when the wallet was started. Amounts are in the asset's smallest unit."""

    welcome_bonus: int = 10
    """That of the first version of the earning rules."""
    token_scale: int = 0
    """Decimal places of TOKEN, fixed when the ledger is created."""
    grace_us: int = 7 * 24 * 3600 * 1_000_000
    """How long tokens live on that come back through our failure after their life has ended. 0 gives no grace."""
    earning: EarningRules = EarningRules(achievements={})
    """The first version but for its welcome bonus."""
    zone: str = "UTC"
    """Whose calendar days and months the economy goes by, as the IANA names it."""

    @property
    def first_version(self) -> EarningRules:
        """The earning rules of an account for which no version was put."""
        return self.earning._replace(welcome_bonus=self.welcome_bonus)


class InForce(NamedTuple):
    """The earning rules of one account at one instant; version: empty for those of the configuration."""

    version: str
    rules: EarningRules


def in_force(rules: Rules, sets: Iterable[RuleSetRecord], account_id: str, now_us: int) -> InForce:
    """The version of the account that came into force last; of two of one instant, the one that was put later."""
    chosen = max(
        (each for each in sets if each.effective_time_us <= now_us and _is_in(each, account_id)),
        key=lambda each: (each.effective_time_us, each.revision),
        default=None,
    )
    if chosen is None:
        return InForce("", rules.first_version)
    return InForce(chosen.version, read_rules(chosen.document))


def _is_in(each: RuleSetRecord, account_id: str) -> bool:
    return each.rollout_percent >= 100 or share_of(each.cohort, account_id) < each.rollout_percent * 100


def share_of(cohort: str, account_id: str) -> int:
    """Where an account stands, 0 to 9,999, among all for a trial: whoever stands below the share is in it."""
    return int.from_bytes(sha256(f"{cohort}/{account_id}".encode()).digest()[:8], "big") % 10_000


@lru_cache(256)
def read_rules(document: str) -> EarningRules:
    """Reads earning rules from their JSON; what it leaves out is as in the code.

    {"daily_bonus": 2, "streak_bonuses": {"7": 2}, "activities": {"share": {"points": 20, "per_day": 2}},
     "achievements": {"first_job": {"tokens": 0, "points": 50, "by_wallet": true}}}
    ValueError: says which name or number is wrong, and why.
    """
    try:
        found = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError("must be an object")  # noqa: TRY004 - a mistake in a document, not in the code
    if unknown := found.keys() - set(EarningRules._fields):
        raise ValueError(f"has no rule {min(unknown)!r}; its rules are {', '.join(EarningRules._fields)}")
    read = {name: _READERS.get(name, _amount)(name, value) for name, value in found.items()}
    rules = EarningRules(**read)
    if rules.points_per_token < 1:
        raise ValueError("points_per_token must be at least 1")
    if not 1 <= rules.offer_days <= rules.offer_days_max <= OFFER_DAYS_MAX:
        raise ValueError(f"offer_days and offer_days_max must be 1 to {OFFER_DAYS_MAX}, and the first not the larger")
    if rules.offer_price_min < 1 or rules.open_offers > OPEN_OFFERS_MAX:
        raise ValueError(f"offer_price_min must be at least 1, and open_offers at most {OPEN_OFFERS_MAX}")
    return rules


def write_rules(rules: EarningRules) -> str:
    """The JSON of earning rules: equal rules give equal texts."""
    value = rules._asdict()
    value["streak_bonuses"] = {str(days): more for days, more in rules.streak_bonuses.items()}
    for name in ("activities", "achievements"):
        value[name] = {key: each._asdict() for key, each in value[name].items()}
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _amount(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= AMOUNT_MAX:
        raise ValueError(f"{name} must be a whole number of 0 to {AMOUNT_MAX}, not {value!r}")
    return value


def _table(name: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict) or len(value) > NAMES_MAX:
        raise ValueError(f"{name} must be an object of at most {NAMES_MAX} entries")
    if wrong := [key for key in value if not NAME_PATTERN.fullmatch(key)]:
        raise ValueError(f"{name} must be named by 1 to 64 letters, digits and _, not {wrong[0]!r}")
    return value


def _streaks(name: str, value: object) -> Mapping[int, int]:
    table = _table(name, value)
    if wrong := [days for days in table if not days.isdecimal() or not 0 < int(days) <= STREAK_DAYS_MAX]:
        raise ValueError(f"{name} must be by days of 1 to {STREAK_DAYS_MAX}, not {wrong[0]!r}")
    return {int(days): _amount(f"{name}[{days}]", more) for days, more in table.items()}


def _parts(name: str, value: object, fields: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != set(fields):
        raise ValueError(f"{name} must have {' and '.join(fields)}")
    return value


def _activities(name: str, value: object) -> Mapping[str, Activity]:
    read = {}
    for key, each in _table(name, value).items():
        parts = _parts(f"{name}[{key}]", each, Activity._fields)
        read[key] = Activity(*(_amount(f"{name}[{key}].{part}", parts[part]) for part in Activity._fields))
    return read


def _achievements(name: str, value: object) -> Mapping[str, Achievement]:
    read = {}
    for key, each in _table(name, value).items():
        parts = _parts(f"{name}[{key}]", each, Achievement._fields)
        by_wallet = parts["by_wallet"]
        if not isinstance(by_wallet, bool):
            raise ValueError(f"{name}[{key}].by_wallet must be true or false")  # noqa: TRY004 - a mistake in a document
        if by_wallet and key != FIRST_JOB and not key.removeprefix(STREAK).isdigit():
            raise ValueError(f"{name}[{key}]: the wallet sees {FIRST_JOB} and {STREAK}<days>, and no other by itself")
        tokens, points = (_amount(f"{name}[{key}].{part}", parts[part]) for part in ("tokens", "points"))
        if tokens and points:
            raise ValueError(f"{name}[{key}] must give tokens or points, and not both")
        read[key] = Achievement(tokens, points, by_wallet)
    return read


_READERS: Final[Mapping[str, Any]] = {
    "streak_bonuses": _streaks,
    "activities": _activities,
    "achievements": _achievements,
}
