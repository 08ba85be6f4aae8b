"""The search: stories of a few users who try everything, each from a seed, and the shortest form of a bad one."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final, NamedTuple

from sandbox.prover.move import Move, about
from sandbox.prover.promises import Promises
from sandbox.prover.story import BEGIN_US, story
from sandbox.prover.world import World
from services.batcher.errors import NoPriceInForce
from services.wallet.economy import Rules

SHRINKS_MAX: Final = 2_000
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
        world, moves = World(rules, BEGIN_US, zone, zone_of), list[Move]()
        problem = _watch(world, _kept(story(world, random.Random(seed)), moves))  # noqa: S311 - a seed gives it again
        if problem is not None:
            return Finding(seed, problem, shorten(moves, lambda rest: tell(rules, rest, zone, zone_of) is not None))
    return None


def tell(rules: Rules, moves: Iterable[Move], zone: tzinfo, zone_of: ZoneOf) -> str | None:
    """The first promise that a story breaks."""
    return _watch(World(rules, BEGIN_US, zone, zone_of), moves)


def _watch(world: World, moves: Iterable[Move]) -> str | None:
    promises = Promises(world.rules.first_version, world.zone)
    for move in moves:
        try:
            problem = promises.broken(world, world.do(move))
        except ValueError as error:
            # A row that does not follow from those before it: the ledger would have stopped there.
            problem = str(error)
        except NoPriceInForce:
            problem = "there is no price"
        if problem is not None:
            return problem
    return None


def _kept(moves: Iterable[Move], told: list[Move]) -> Iterator[Move]:
    for move in moves:
        told.append(move)
        yield move


def shorten(moves: Sequence[Move], is_bad: Callable[[Sequence[Move]], bool]) -> Sequence[Move]:
    """Leaves out whatever a story can do without and still be bad: halves first, single moves last."""
    size, tries = len(moves) // 2, 0
    while size and tries < SHRINKS_MAX:
        start, removed = 0, False
        while start < len(moves) and tries < SHRINKS_MAX:
            tries += 1
            rest = without(moves, start, size)
            if is_bad(rest):
                moves, removed = rest, True
            else:
                start += size
        size = size if removed and size == 1 else size // 2
    return moves


def without(moves: Sequence[Move], start: int, size: int) -> Sequence[Move]:
    """A story without some moves; the time that they took passes all the same."""
    gone, after = moves[start : start + size], list(moves[start + size :])
    if after:
        after[0] = after[0]._replace(wait_us=after[0].wait_us + sum(move.wait_us for move in gone))
    return [*moves[:start], *after]


def told(finding: Finding) -> str:
    """A finding as a person reads it."""
    lines = [f"seed {finding.seed}: {finding.problem}", f"in {len(finding.moves)} moves:"]
    now = datetime.fromtimestamp(BEGIN_US / 1_000_000, UTC)
    for move in finding.moves:
        now += timedelta(microseconds=move.wait_us)
        lines.append(f"  {now:%Y-%m-%d %H:%M}  {about(move)}")
    return "\n".join(lines)
