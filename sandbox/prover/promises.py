"""What the economy declares, held against every row that it writes. Written from the declarations, not from the code.

Tokens come into the world by welcome, daily bonus, conversion, achievement and refund alone; each has a cap that
follows from the rules, and is counted here by account and calendar day, from the rows of the journal.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, tzinfo
from typing import Final

from sandbox.prover.account_promises import AccountPromises
from sandbox.prover.market_promises import MarketPromises
from sandbox.prover.price_promises import PricePromises
from sandbox.prover.rule_promises import RulePromises
from sandbox.prover.team_promises import TeamPromises
from sandbox.prover.world import TILL, Row, Step, World
from services.wallet.economy import EarningRules
from services.wallet.holdings import POINT, Entry

FAUCETS: Final = frozenset({"grant", "earn", "convert", "refund", "receive", "buy", "sell", "unoffer"})


class Promises:
    """Watches one world, whose earning rules begin with these."""

    def __init__(self, rules: EarningRules, zone: tzinfo) -> None:
        self._rules = RulePromises(rules)
        self._zone = zone
        self._welcomed: dict[str, int] = {}
        self._claims: defaultdict[str, list[int]] = defaultdict(list)
        self._activities: Counter[tuple[str, int, str]] = Counter()
        self._converted: Counter[tuple[str, int]] = Counter()
        self._achieved: set[tuple[str, str]] = set()
        self._committed: Counter[str] = Counter()
        self._refunded: Counter[str] = Counter()
        self._given: Counter[tuple[str, int]] = Counter()
        self._opened_us: dict[str, int] = {}
        self._holds: dict[str, tuple[int, int]] = {}
        self._accounts = AccountPromises()
        self._teams = TeamPromises()
        self._market = MarketPromises(self._rules)
        self._prices = PricePromises()

    def broken(self, world: World, step: Step) -> str | None:
        """The first promise that one move has broken by what it wrote, or by what everybody has now."""
        return self.broken_rules(step) or (self.broken_sums(world) if step.rows else None)

    def broken_rules(self, step: Step) -> str | None:
        """The first promise that the rows of one move break, or that it breaks by writing none."""
        return next(self._problems(step), None)

    def broken_sums(self, world: World) -> str | None:
        """The first promise that is broken by what everybody has."""
        return next(_of_accounts(world), None)

    def _problems(self, step: Step) -> Iterator[str]:
        for event in step.events:
            yield from self._prices.of_event(event, step.time_us)
        for row in step.rows:
            entry, day = row.entry, self._day(row.time_us)
            yield from self._accounts.of_row(entry)
            yield from self._rules.of_row(entry, row.time_us)
            yield from self._of_rule(row, day)
            yield from self._of_gift(row, day)
            yield from self._teams.problems(entry, day)
            yield from self._market.problems(row, day)
            yield from self._prices.of_row(entry)
            yield from _of_money(entry)
            self._follow_hold(entry)
        yield from self._of_refusal(step)
        yield from self._of_conversion(step.rows)
        yield from self._market.of_step(step)
        yield from _of_transfer(step.rows)

    def _follow_hold(self, entry: Entry) -> None:
        """What is held, and until when; nothing of it once it has ended."""
        if entry.kind == "reserve":
            self._holds[entry.reservation_id] = entry.held_change, entry.facts["expire_time_us"]
        elif entry.reservation_id in self._holds and entry.kind != "amend":
            del self._holds[entry.reservation_id]

    def _of_refusal(self, step: Step) -> Iterator[str]:
        """What is held can be taken, and what was taken be refunded, whatever has happened to whoever held it."""
        move, written = step.move, {entry.kind for entry, _ in step.rows}
        held, until_us = self._holds.get(move.what, (0, 0))
        if move.kind == "commit" and step.time_us < until_us and move.amount <= held and "commit" not in written:
            yield f"the {held} that {move.what} holds could not be taken"
        left = 0 if self._accounts.is_over(move.what) else self._committed[move.what] - self._refunded[move.what]
        if move.kind in ("refund", "give_back") and left > 0 == move.amount and "refund" not in written:
            yield f"the {left} that were taken for {move.what} could not be refunded"
        elif move.kind == "give_back" and left:
            yield f"{left} of what was taken for {move.what} did not come back"

    def _day(self, time_us: int) -> int:
        return datetime.fromtimestamp(time_us / 1_000_000, UTC).astimezone(self._zone).date().toordinal()

    def _of_rule(self, row: Row, day: int) -> Iterator[str]:
        entry = row.entry
        match entry.kind, entry.facts.get("rule"):
            case "grant", _ if entry.actor != TILL:
                yield from self._of_welcome(row)
            case "earn", "daily":
                yield from self._of_claim(entry, day)
            case "earn", "activity":
                yield from self._of_activity(entry, day)
            case "earn", "achievement":
                yield from self._of_achievement(entry)
            case "commit", _:
                self._committed[entry.reservation_id] -= entry.balance_change
            case "refund", _:
                yield from self._of_refund(entry)

    def _of_welcome(self, row: Row) -> Iterator[str]:
        account_id, amount = row.entry.account_id, row.entry.balance_change
        if account_id in self._welcomed:
            yield f"{account_id} was welcomed twice"
        if amount > self._rules.most("welcome_bonus", row.time_us):
            yield f"{account_id} was welcomed with {amount}"
        self._welcomed[account_id] = amount

    def _of_claim(self, entry: Entry, day: int) -> Iterator[str]:
        """Once a day, and no more than the longest streak gives that these claims can make."""
        claims = self._claims[entry.account_id]
        if day in claims:
            yield f"{entry.account_id} was paid twice for one day"
        claims.append(day)
        rules = self._rules.named(entry)
        longest = _longest_streak(claims, rules.grace_days)
        if entry.balance_change > rules.daily(longest):
            yield f"{entry.account_id} was paid {entry.balance_change} for a streak of at most {longest} days"

    def _of_activity(self, entry: Entry, day: int) -> Iterator[str]:
        name = entry.facts["name"]
        declared = self._rules.named(entry).activities.get(name)
        if declared is None or entry.balance_change > declared.points:
            yield f"{entry.account_id} got {entry.balance_change} points for {name}"
            return
        self._activities[entry.account_id, day, name] += 1
        if self._activities[entry.account_id, day, name] > declared.per_day:
            yield f"{name} of {entry.account_id} counted more than {declared.per_day} times in one day"

    def _of_achievement(self, entry: Entry) -> Iterator[str]:
        name = entry.facts["name"]
        if (entry.account_id, name) in self._achieved:
            yield f"{entry.account_id} was paid twice for {name}"
        self._achieved.add((entry.account_id, name))
        declared = self._rules.named(entry).achievements.get(name)
        if declared is None or entry.balance_change > (declared.points if entry.asset == POINT else declared.tokens):
            yield f"{entry.account_id} got {entry.balance_change} for {name}"

    def _of_gift(self, row: Row, day: int) -> Iterator[str]:
        """So many a day; and a young account keeps as much as it was welcomed with, also of what it offers."""
        entry = row.entry
        if entry.kind == "open":
            self._opened_us[entry.account_id] = row.time_us
        if entry.kind == "give":
            self._given[entry.account_id, day] -= entry.balance_change
            limit = self._rules.most("gifts_per_day", row.time_us)
            if self._given[entry.account_id, day] > limit:
                yield f"{entry.account_id} gave more than {limit} tokens in one day"
        if entry.kind in ("give", "offer"):
            yield from self._of_lock(row)

    def _of_lock(self, row: Row) -> Iterator[str]:
        entry = row.entry
        welcome = self._welcomed.get(entry.account_id, 0)
        age_days = (row.time_us - self._opened_us[entry.account_id]) / (24 * 3600 * 1_000_000)
        if age_days < self._rules.least("welcome_lock_days", row.time_us) and entry.balance - entry.held < welcome:
            yield f"{entry.account_id} parted with what it was welcomed with, after {age_days:.0f} days"

    def _of_conversion(self, rows: Sequence[Row]) -> Iterator[str]:
        """Both sides of a conversion are in one transaction, and have the declared price."""
        converted = [row for row in rows if row.entry.kind == "convert"]
        points = -sum(entry.balance_change for entry, _ in converted if entry.asset == POINT)
        for entry, time_us in converted:
            if entry.asset == POINT:
                continue
            tokens, key, rules = entry.balance_change, (entry.account_id, self._day(time_us)), self._rules.named(entry)
            if points != tokens * rules.points_per_token:
                yield f"{entry.account_id} got {tokens} tokens for {points} points"
            self._converted[key] += tokens
            if self._converted[key] > rules.tokens_per_day:
                yield f"{entry.account_id} converted more than {rules.tokens_per_day} tokens in one day"

    def _of_refund(self, entry: Entry) -> Iterator[str]:
        self._refunded[entry.reservation_id] += entry.balance_change
        if self._refunded[entry.reservation_id] > self._committed[entry.reservation_id]:
            yield f"more of {entry.reservation_id} was refunded than was ever paid for it"


def _longest_streak(claims: Sequence[int], grace_days: int) -> int:
    """Days back from the last claim without a gap of more than one day, nor two forgiven gaps in one grace."""
    days, forgiven = 1, 0
    for later, earlier in zip(reversed(claims), reversed(claims[:-1]), strict=False):
        missed = later - earlier - 1
        too_soon = 0 < forgiven - (later - 1) < grace_days
        if missed and (missed > 1 or not grace_days or too_soon):
            break
        forgiven = later - 1 if missed else forgiven
        days += 1
    return days


def _of_money(entry: Entry) -> Iterator[str]:
    if entry.balance_change > 0 and entry.kind not in FAUCETS:
        yield f"a {entry.kind} made {entry.balance_change} {entry.asset} from nothing"
    if entry.balance_change and not entry.counterparty:
        yield f"a {entry.kind} moved {entry.balance_change} {entry.asset} from nobody"


def _of_transfer(rows: Sequence[Row]) -> Iterator[str]:
    passed: Counter[str] = Counter()
    for entry, _ in rows:
        if entry.counterparty == "@transfer":
            passed[entry.asset] += entry.balance_change
    yield from (f"{change} {asset} came out of a transfer" for asset, change in passed.items() if change)


def _of_accounts(world: World) -> Iterator[str]:
    sums: Counter[str] = Counter()
    for (account_id, asset), account in world.accounts.items():
        sums[asset] += account.balance
        if not 0 <= account.held <= account.balance:
            yield f"{account_id} has {account.balance} {asset} and holds {account.held}"
    for (_, asset), balance in world.state.system.items():
        sums[asset] += balance
    yield from (f"all {asset} come to {total}" for asset, total in sums.items() if total)
