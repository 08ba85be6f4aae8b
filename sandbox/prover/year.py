"""A year of the economy: thousands of users with habits, and what comes into and goes out of the world each day."""

import random
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, tzinfo
from typing import Final, NamedTuple

from sandbox.prover.move import Move
from sandbox.prover.promises import Promises
from sandbox.prover.world import Row, World
from services.wallet import calendar_day
from services.wallet.economy import Rules
from services.wallet.holdings import TOKEN

BEGIN_US: Final = round(datetime(2026, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
DAY_US: Final = 24 * 3600 * 1_000_000
JOB_PRICES: Final = (1, 1, 1, 5)
"""What jobs cost: three of four go by batch."""
REFUNDS: Final = 0.02
"""How many paid jobs are refunded."""
NEWCOMERS: Final = 0.4
"""How many of all users are there on the first day; the others come over the year."""


class Habits(NamedTuple):
    """What a user does of a day, each as a probability; jobs: how many at most."""

    begins_day: int
    comes: float
    claims: float
    acts: float
    converts: float
    jobs: int


class Day(NamedTuple):
    """One day of the economy, in tokens but for the points."""

    day: str
    users: int
    supply: int
    points: int
    welcome: int
    daily: int
    convert: int
    achievement: int
    refunded: int
    spent: int

    @property
    def made(self) -> int:
        """Tokens that came into the world."""
        return self.welcome + self.daily + self.convert + self.achievement + self.refunded


class BrokenPromise(Exception):
    """The economy did what it declares never to do."""


def year(rules: Rules, users: int, days: int, seed: int, zone: tzinfo = UTC) -> Iterator[Day]:
    """The days one after the other. BrokenPromise: as in the search."""
    rng = random.Random(seed)  # noqa: S311 - a seed has to give the same year again
    world = World(rules, BEGIN_US, zone)
    promises = Promises(rules.first_version, zone)
    habits = {f"user-{number}": _habits(rng, days) for number in range(users)}
    for number in range(days):
        world.now_us = calendar_day.start_us(calendar_day.day_of(BEGIN_US, zone) + number, zone)
        rows: list[Row] = []
        for move in _moves(world, habits, number, rng):
            step = world.do(move)
            if problem := promises.broken_rules(step):
                raise BrokenPromise(f"day {number}, {move}: {problem}")
            rows += step.rows
        if problem := promises.broken_sums(world):
            raise BrokenPromise(f"day {number}: {problem}")
        yield _day(world, rows)
        world.forget()


def _habits(rng: random.Random, days: int) -> Habits:
    begins = 0 if rng.random() < NEWCOMERS else rng.randrange(days)
    keen = rng.random() ** 2
    return Habits(begins, 0.1 + 0.85 * keen, 0.5 + 0.5 * keen, 0.1 + 0.3 * keen, 0.5, rng.choice((1, 2, 3, 8)))


def _moves(world: World, habits: dict[str, Habits], number: int, rng: random.Random) -> Iterator[Move]:
    """What all users do in one day. A job is held and paid at once: how long it takes changes no sum."""
    earning = world.rules.first_version
    for user, habit in habits.items():
        if number == habit.begins_day:
            yield Move("open", user, "")
        if number < habit.begins_day or rng.random() > habit.comes:
            continue
        key = f"{user}-{number}"
        if rng.random() < habit.claims:
            yield Move("claim", user, f"{key}-claim")
        for name in earning.activities:
            if rng.random() < habit.acts:
                yield Move("activity", user, f"{key}-{name}", name)
        if rng.random() < habit.converts:
            yield from _conversion(world, user, key)
        for job in range(rng.randint(0, habit.jobs)):
            yield from _job(rng, user, f"{key}-{job}")


def _conversion(world: World, user: str, key: str) -> Iterator[Move]:
    """All that the points and the limit of the day allow."""
    earning = world.rules.first_version
    points = world.accounts.get((user, "POINT"))
    tokens = min(points.balance // earning.points_per_token if points else 0, earning.tokens_per_day)
    if tokens:
        yield Move("convert", user, f"{key}-convert", amount=tokens)


def _job(rng: random.Random, user: str, key: str) -> Iterator[Move]:
    yield Move("reserve", user, key, amount=rng.choice(JOB_PRICES))
    yield Move("commit", user, f"{key}-c", key)
    if rng.random() < REFUNDS:
        yield Move("refund", user, f"{key}-r", key)


def _day(world: World, rows: list[Row]) -> Day:
    moved: Counter[str] = Counter()
    for entry, _ in rows:
        if entry.asset == TOKEN and entry.balance_change:
            moved[entry.facts.get("rule", entry.kind)] += entry.balance_change
    tokens = [each.balance for (_, asset), each in world.accounts.items() if asset == TOKEN]
    points = [each.balance for (_, asset), each in world.accounts.items() if asset != TOKEN]
    return Day(
        calendar_day.text_of(calendar_day.day_of(world.now_us, world.zone)),
        len(tokens),
        sum(tokens),
        sum(points),
        moved["grant"],
        moved["daily"],
        moved["convert"],
        moved["achievement"],
        moved["refund"],
        -moved["commit"],
    )
