"""What many accounts can bring to one of them: the declared cap, held against every row. Written from the declarations.

A ring is whoever has given to, or traded with, one another: it is read off the journal. Of N accounts and the one that
they bring to, within D calendar days from the first one's opening on, with the numbers of the rules:

    earned(D)   = the daily bonuses of a streak of D days, and the token achievements that D days can reach
    points(D)   = D times what a day's activities give, and the point achievements
    pot(N, D)   = N * (earned(D), and the welcome bonus once D is more than welcome_lock_days)
                  + min(N * D * tokens_per_day, (N + 1) * points(D) / points_per_token)

What the one has got of the others, less what it has given them, is at most pot(N, D). Whatever goes round in between,
K accounts give to it themselves at most K * D * gifts_per_day, and sell to it at most K * D * offers_per_day. And all
that a ring has made is at most (N + 1) * (welcome_bonus + earned(D)), and what its points can become.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, tzinfo
from typing import NamedTuple

from sandbox.prover.world import Row
from services.wallet.economy import STREAK, EarningRules
from services.wallet.holdings import POINT, Entry


def earned(rules: EarningRules, days: int) -> int:
    """The most tokens that one account is given in so many days, without its welcome and what points become."""
    daily = sum(max(rules.daily(streak) for streak in range(1, day + 1)) for day in range(1, days + 1))
    return daily + sum(won.tokens for name, won in rules.achievements.items() if _is_reached(name, days))


def points(rules: EarningRules, days: int) -> int:
    """The most points that one account is given in so many days."""
    of_day = sum(activity.points * activity.per_day for activity in rules.activities.values())
    return days * of_day + sum(won.points for name, won in rules.achievements.items() if _is_reached(name, days))


def _is_reached(name: str, days: int) -> bool:
    streak = name.removeprefix(STREAK)
    return not (name.startswith(STREAK) and streak.isdigit()) or int(streak) <= days


def pot(rules: EarningRules, others: int, days: int) -> int:
    """The most that so many accounts can bring to another one, on balance."""
    welcome = rules.welcome_bonus if days > rules.welcome_lock_days else 0
    return others * (earned(rules, days) + welcome) + _converted(rules, others, others + 1, days)


def supply(rules: EarningRules, accounts: int, days: int) -> int:
    """The most that so many accounts can make."""
    own = accounts * (rules.welcome_bonus + earned(rules, days))
    return own + _converted(rules, accounts, accounts, days)


def _converted(rules: EarningRules, accounts: int, with_points: int, days: int) -> int:
    of_points = with_points * points(rules, days) // rules.points_per_token
    return min(accounts * days * rules.tokens_per_day, of_points)


class Brought(NamedTuple):
    """What one account of a ring has come by. cap: the least that is declared for it."""

    account_id: str
    others: int
    days: int
    brought: int
    cap: int


class RingPromises:
    """Watches everybody of one world."""

    def __init__(self, rules: EarningRules, zone: tzinfo) -> None:
        self._rules = rules
        self._zone = zone
        self._leader: dict[str, str] = {}
        self._opened: dict[str, int] = {}
        self._got: Counter[str] = Counter()
        self._parted: Counter[str] = Counter()
        self._made: Counter[str] = Counter()
        self._doors: dict[str, dict[str, set[str]]] = {"receive": defaultdict(set), "buy": defaultdict(set)}
        self._through: dict[str, Counter[str]] = {"receive": Counter(), "buy": Counter()}
        self._day = 0

    def see(self, rows: Sequence[Row]) -> None:
        """Follows who has made, got and given what."""
        for entry, time_us in rows:
            self._day = datetime.fromtimestamp(time_us / 1_000_000, UTC).astimezone(self._zone).date().toordinal()
            if entry.kind == "open":
                self._opened[entry.account_id] = self._day
                self._leader[entry.account_id] = entry.account_id
            elif entry.asset != POINT:
                self._see_tokens(entry)

    def _see_tokens(self, entry: Entry) -> None:
        account_id, change = entry.account_id, entry.balance_change
        if entry.kind in ("grant", "earn", "convert"):
            self._made[account_id] += change
        elif entry.kind in ("receive", "buy"):
            giver = entry.facts["peer"]
            self._got[account_id] += change
            self._parted[giver] += change
            self._doors[entry.kind][account_id].add(giver)
            self._through[entry.kind][account_id] += change
            self._leader[self._leader_of(account_id)] = self._leader_of(giver)

    def _leader_of(self, account_id: str) -> str:
        while self._leader[account_id] != account_id:
            self._leader[account_id] = self._leader[self._leader[account_id]]
            account_id = self._leader[account_id]
        return account_id

    def rings(self) -> list[list[str]]:
        """All accounts, by ring."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for account_id in self._leader:
            found[self._leader_of(account_id)].append(account_id)
        return list(found.values())

    def brought(self) -> Iterator[Brought]:
        """How near everybody has come to what is declared for it."""
        for ring in self.rings():
            days = self._day - min(self._opened[account_id] for account_id in ring) + 1
            on_balance = pot(self._rules, len(ring) - 1, days)
            for account_id in ring:
                net = self._got[account_id] - self._parted[account_id]
                yield Brought(account_id, len(ring) - 1, days, net, on_balance)
                for kind, of_day in (("receive", self._rules.gifts_per_day), ("buy", self._rules.offers_per_day)):
                    givers = len(self._doors[kind][account_id])
                    yield Brought(account_id, givers, days, self._through[kind][account_id], givers * days * of_day)

    def broken(self) -> str | None:
        """The first cap that is passed."""
        for each in self.brought():
            if each.brought > each.cap:
                return (
                    f"{each.account_id} was brought {each.brought} tokens by {each.others} others in {each.days} days, "
                    f"and may be brought {each.cap}"
                )
        return next(self._of_supply(), None)

    def _of_supply(self) -> Iterator[str]:
        for ring in self.rings():
            days = self._day - min(self._opened[account_id] for account_id in ring) + 1
            made, cap = sum(self._made[account_id] for account_id in ring), supply(self._rules, len(ring), days)
            if made > cap:
                yield f"{len(ring)} accounts around {ring[0]} made {made} tokens in {days} days, and may make {cap}"
