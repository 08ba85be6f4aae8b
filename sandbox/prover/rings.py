"""Rings: thousands of accounts that farm whatever is given for nothing, and bring it to one of them each.

direct   everybody gives to the collector           chain    everybody gives to the one before
funnel   everybody gives to one who gives it on     market   everybody sells to the collector, as cheap as may be
shells   every other account is the team of the one before it, which gives to it, and earns and gives as well
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, tzinfo
from typing import Final, NamedTuple

from sandbox.prover.move import HOUR_US, Move
from sandbox.prover.ring_promises import Brought, RingPromises
from sandbox.prover.search import Finding, ZoneOf, operators_zone, shorten
from sandbox.prover.story import BEGIN_US
from sandbox.prover.world import World
from services.wallet.economy import Rules
from services.wallet.holdings import POINT, TOKEN

WAYS: Final = ("direct", "funnel", "chain", "market", "shells")
SIZES: Final = (2, 4, 12, 50, 200)
SKIPS: Final = (0.0, 0.02, 0.3)
"""How often the members of a ring miss a day."""
LATER: Final = 0.2
"""How many join on a later day than the first."""
DAY_US: Final = 24 * HOUR_US


class Ring(NamedTuple):
    """Accounts that bring what they have to the first of them. begins: on which day each opens its account."""

    way: str
    members: Sequence[str]
    begins: Sequence[int]
    skips: float = 0.0

    def is_team(self, place: int) -> bool:
        """Whether a member is the team of the one before it."""
        return self.way == "shells" and place > 1 and place % 2 == 0

    def receiver(self, place: int) -> str:
        """Whom a member gives to."""
        if self.way == "chain":
            return self.members[place - 1]
        if self.way == "shells" and place % 2 and place + 1 < len(self.members):
            return self.members[place + 1]
        return self.members[1] if self.way == "funnel" and place > 1 else self.members[0]


class Run(NamedTuple):
    """What a run came to. nearest: the account that came nearest to what is declared for it."""

    accounts: int
    rings: int
    moves: int
    nearest: Brought
    finding: Finding | None


def run(rules: Rules, users: int, days: int, seed: int, zone: tzinfo = UTC, zone_of: ZoneOf = operators_zone) -> Run:
    """Lets so many users in rings live for so many days. What is found is made small: fewer users, days and moves."""
    world, told = World(rules, BEGIN_US, zone, zone_of), _Counted()
    judge = RingPromises(rules.first_version, zone)
    problem = watch(world, judge, told.through(live(world, users, days, seed)))
    finding = None if problem is None else _small(rules, users, days, seed, zone, zone_of)
    nearest = max(judge.brought(), key=lambda each: each.brought / max(each.cap, 1))
    return Run(sum(asset == TOKEN for _, asset in world.accounts), len(judge.rings()), told.count, nearest, finding)


class _Counted:
    """Counts what passes."""

    def __init__(self) -> None:
        self.count = 0

    def through(self, moves: Iterable[Move]) -> Iterator[Move]:
        for move in moves:
            self.count += 1
            yield move


def watch(world: World, judge: RingPromises, moves: Iterable[Move]) -> str | None:
    """The first cap that is passed: the judge is asked whenever time has passed, and at the end."""
    for move in moves:
        if move.wait_us:
            problem = judge.broken()
            if problem is not None:
                return problem
            world.forget()
        judge.see(world.do(move).rows)
    return judge.broken()


def tell(rules: Rules, moves: Sequence[Move], zone: tzinfo, zone_of: ZoneOf) -> str | None:
    """The first cap that these moves pass."""
    return watch(World(rules, BEGIN_US, zone, zone_of), RingPromises(rules.first_version, zone), moves)


def _small(rules: Rules, users: int, days: int, seed: int, zone: tzinfo, zone_of: ZoneOf) -> Finding:
    """The fewest users and days, halving them, that still pass a cap; then the fewest moves."""

    def lived(users: int, days: int) -> tuple[str | None, list[Move]]:
        world, moves = World(rules, BEGIN_US, zone, zone_of), list[Move]()

        def kept() -> Iterator[Move]:
            for move in live(world, users, days, seed):
                moves.append(move)
                yield move

        return watch(world, RingPromises(rules.first_version, zone), kept()), moves

    while users > 2 and lived(users // 2, days)[0] is not None:
        users //= 2
    while days > 1 and lived(users, days // 2)[0] is not None:
        days //= 2
    problem, moves = lived(users, days)
    moves = list(shorten(moves, lambda rest: tell(rules, rest, zone, zone_of) is not None))
    return Finding(seed, tell(rules, moves, zone, zone_of) or problem or "", moves)


def live(world: World, users: int, days: int, seed: int) -> Iterator[Move]:
    """What so many users in rings of all kinds do."""
    rng = random.Random(seed)  # noqa: S311 - a seed has to give the same rings again
    return live_in(world, list(_rings(users, days, rng)), days, rng)


def live_in(world: World, rings: Sequence[Ring], days: int, rng: random.Random) -> Iterator[Move]:
    """All that the rings do, day after day: the first move of each day carries the time between."""
    for number in range(days):
        wait_us = DAY_US if number else 0
        for ring in rings:
            # The collector last: what is offered on a day is bought on it.
            for place in reversed(range(len(ring.members))):
                for move in _day_of(world, ring, place, number, rng):
                    yield move._replace(wait_us=wait_us)
                    wait_us = 0


def _rings(users: int, days: int, rng: random.Random) -> Iterator[Ring]:
    number = 0
    while number < users:
        size = min(rng.choice(SIZES), users - number)
        members = [f"user-{number + place}" for place in range(size)]
        begins = [rng.randrange(1, days) if days > 1 and rng.random() < LATER else 0 for _ in members]
        yield Ring(rng.choice(WAYS), members, begins, rng.choice(SKIPS))
        number += size


def _day_of(world: World, ring: Ring, place: int, number: int, rng: random.Random) -> Iterator[Move]:
    """One member's day: it tries a little more than it may of everything, and parts with all that it can."""
    who, key = ring.members[place], f"{ring.members[place]}-{number}"
    if number < ring.begins[place] or (number and rng.random() < ring.skips):
        return
    if (who, TOKEN) not in world.accounts:
        yield from _opening(ring, place, key)
    yield from _earning(world, who, key, rng)
    if not place and ring.way == "market":
        yield from _buying(world, ring, key)
    yield from _converting(world, who, key)
    if place:
        yield from _parting(world, ring, place, key)


def _opening(ring: Ring, place: int, key: str) -> Iterator[Move]:
    """Opens the account; its first job is worth something, and comes to nothing."""
    who = ring.members[place]
    if ring.is_team(place):
        yield Move("team", ring.members[place - 1], f"{key}-open", of=who)
        return
    yield Move("open", who, f"{key}-open")
    yield Move("reserve", who, f"{key}-job", amount=1)
    yield Move("commit", who, f"{key}-job-done", f"{key}-job")
    yield Move("refund", who, f"{key}-job-back", f"{key}-job")


def _earning(world: World, who: str, key: str, rng: random.Random) -> Iterator[Move]:
    earning = world.rules.first_version
    yield Move("claim", who, f"{key}-claim")
    if rng.random() < 0.1:
        yield Move("claim", who, f"{key}-claim-again", zone_hours=13)
    for name, activity in earning.activities.items():
        for count in range(activity.per_day + 1):
            yield Move("activity", who, f"{key}-{name}-{count}", name)
    for name, won in earning.achievements.items():
        if not won.by_wallet:
            yield Move("award", who, key, name)


def _converting(world: World, who: str, key: str) -> Iterator[Move]:
    """All that its points and the day allow, and once more."""
    earning = world.rules.first_version
    for count in range(2):
        points = world.accounts.get((who, POINT))
        tokens = min(points.balance // earning.points_per_token if points else 0, earning.tokens_per_day)
        if tokens:
            yield Move("convert", who, f"{key}-convert-{count}", amount=tokens)


def _parting(world: World, ring: Ring, place: int, key: str) -> Iterator[Move]:
    """All that it has; all but its welcome; what may be given in a day: whichever is let through, and again."""
    earning, who = world.rules.first_version, ring.members[place]
    for count in range(4):
        account = world.accounts[who, TOKEN]
        tries = (account.available, account.available - earning.welcome_bonus, earning.gifts_per_day)
        for number, amount in enumerate(tries):
            if amount <= 0:
                continue
            part = f"{key}-{count}-{number}"
            if ring.way == "market":
                yield Move("offer", who, part, amount=amount, price=earning.offer_price_min, hours=23)
            else:
                yield Move("give", who, part, ring.receiver(place), amount)
            if world.accounts[who, TOKEN].balance < account.balance:
                break
        if world.accounts[who, TOKEN].balance == account.balance:
            return


def _buying(world: World, ring: Ring, key: str) -> Iterator[Move]:
    """As much as its points can buy of the ring."""
    who, members = ring.members[0], frozenset(ring.members)
    for number, offer in enumerate(list(world.offers.values())):
        points = world.accounts.get((who, POINT))
        tokens = min(offer.left, points.balance // offer.price_points if points else 0)
        if tokens and offer.account_id in members:
            yield Move("take", who, f"{key}-take-{number}", offer.offer_id, tokens, of=offer.account_id)
