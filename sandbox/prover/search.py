"""The search: stories of a few users who try everything, each from a seed, and the shortest form of a bad one."""

import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final, NamedTuple

from sandbox.prover.promises import Promises
from sandbox.prover.world import Move, World
from services.wallet.economy import Rules

MOVES: Final = 400
USERS: Final = 6
BEGIN_US: Final = round(datetime(2026, 2, 26, 22, 30, tzinfo=UTC).timestamp()) * 1_000_000
"""Shortly before a midnight, so that days change early in a story."""
HOUR_US: Final = 3600 * 1_000_000
GOES_ON: Final = 0.5
"""How often the same user does the same thing again at once: limits of a day are only met by who insists."""
SHRINKS_MAX: Final = 2_000
KINDS: Final = ("claim", "claim", "activity", "award", "convert", "reserve", "commit", "release", "refund", "give")
ZoneOf = Callable[[Move, tzinfo], tzinfo]


class Finding(NamedTuple):
    """A promise that was broken, and the moves that break it."""

    seed: int
    problem: str
    moves: Sequence[Move]


def operators_zone(_move: Move, zone: tzinfo) -> tzinfo:
    """The shipped rule: wherever a user says that they are, the day is the operator's."""
    return zone


def search(rules: Rules, seeds: Sequence[int], zone: tzinfo = UTC, zone_of: ZoneOf = operators_zone) -> Finding | None:
    """The first finding of these seeds, shortened; None when every story kept every promise."""
    for seed in seeds:
        moves = story(rules, random.Random(seed))  # noqa: S311 - a seed has to give the same story again
        told = tell(rules, moves, zone, zone_of)
        if told is not None:
            problem, end = told
            return Finding(seed, problem, shorten(rules, moves[: end + 1], zone, zone_of))
    return None


def tell(rules: Rules, moves: Sequence[Move], zone: tzinfo, zone_of: ZoneOf) -> tuple[str, int] | None:
    """The first promise that a story breaks, and the place of the move that does."""
    world = World(rules, BEGIN_US, zone, zone_of)
    promises = Promises(rules.first_version, zone)
    for place, move in enumerate(moves):
        problem = promises.broken(world, world.do(move))
        if problem is not None:
            return problem, place
    return None


def shorten(rules: Rules, moves: Sequence[Move], zone: tzinfo, zone_of: ZoneOf) -> Sequence[Move]:
    """Leaves out whatever a story can do without and still break a promise: halves first, single moves last."""
    size, tries = len(moves) // 2, 0
    while size and tries < SHRINKS_MAX:
        start, removed = 0, False
        while start < len(moves) and tries < SHRINKS_MAX:
            tries += 1
            rest = _without(moves, start, size)
            if tell(rules, rest, zone, zone_of) is not None:
                moves, removed = rest, True
            else:
                start += size
        size = size if removed and size == 1 else size // 2
    return moves


def _without(moves: Sequence[Move], start: int, size: int) -> Sequence[Move]:
    """A story without some moves; the time that they took passes all the same."""
    gone, after = moves[start : start + size], list(moves[start + size :])
    if after:
        after[0] = after[0]._replace(wait_us=after[0].wait_us + sum(move.wait_us for move in gone))
    return [*moves[:start], *after]


def story(rules: Rules, rng: random.Random) -> list[Move]:
    """What a few users do: all that there is, in no order, with repeats, at hours that favour the edges of days."""
    users = [f"user-{number}" for number in range(USERS)]
    moves = [Move("open", user, f"open-{user}") for user in users]
    made: list[str] = []
    user, kind = users[0], KINDS[0]
    for number in range(MOVES):
        key, goes_on = f"k{number}", rng.random() < GOES_ON
        if not goes_on:
            user, kind = rng.choice(users), rng.choice(KINDS)
        what, amount = _what(kind, rules, rng, made), 0
        if kind in ("reserve", "convert", "give"):
            amount = rng.randint(1, 9)
        if kind == "refund":
            amount = rng.choice((0, 1, 3))
        if kind == "reserve":
            made.append(key)
        if kind in ("claim", "activity", "convert") and rng.random() < 0.1:
            key = f"k{rng.randrange(number + 1)}"
        moves.append(Move(kind, user, key, what, amount, 0 if goes_on else _wait_us(rng), rng.choice((0, 0, -11, 13))))
    return moves


def _what(kind: str, rules: Rules, rng: random.Random, made: Sequence[str]) -> str:
    earning = rules.first_version
    if kind == "activity":
        return rng.choice(sorted(earning.activities))
    if kind == "give":
        return f"user-{rng.randrange(USERS)}"
    if kind == "award":
        return rng.choice(sorted(earning.achievements))
    return rng.choice(made[-8:]) if made and kind in ("commit", "release", "refund") else "none"


def _wait_us(rng: random.Random) -> int:
    return rng.choice((0, 0, 1, HOUR_US // 2, HOUR_US, 6 * HOUR_US, 12 * HOUR_US, 24 * HOUR_US, 47 * HOUR_US))


def told(finding: Finding) -> str:
    """A finding as a person reads it."""
    lines = [f"seed {finding.seed}: {finding.problem}", f"in {len(finding.moves)} moves:"]
    now = datetime.fromtimestamp(BEGIN_US / 1_000_000, UTC)
    for move in finding.moves:
        now += timedelta(microseconds=move.wait_us)
        about = " ".join(part for part in (move.what, str(move.amount or "")) if part and part != "none")
        abroad = f" (says it is at UTC{move.zone_hours:+d})" if move.zone_hours else ""
        lines.append(
            f"  {now:%Y-%m-%d %H:%M}  {move.who} {move.kind} {about} [{move.key}]{abroad}".replace("  [", " [")
        )
    return "\n".join(lines)
