"""A kill at every arrow between the batcher and its peers: no job is lost, charged twice or bought twice by it.

Each round is a load of its own on an arena that outlives it. The normal run has a few; the long one has every point, on
both databases, with the batcher and then the peer as the victim, and moments that a seed chooses.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio

from tests.acceptance.arena import Arena, arena_in
from tests.acceptance.arrows import (
    AFTER_DOUBT,
    AGAIN,
    PRESENT,
    SEED,
    Fate,
    Stroke,
    peer_of,
    play,
    replayable,
    strokes_to,
)
from tests.acceptance.gates import Moment, Point
from tests.acceptance.postgres_wire import COMMIT, CrashingPostgres, crashing_postgres

pytestmark = pytest.mark.asyncio(loop_scope="module")

BOTH_SIDES: Final = (Moment.BEFORE, Moment.AFTER)
POINTS: Final = [
    *(Point(operation, moment) for operation in (*PRESENT, *AFTER_DOUBT, *AGAIN) for moment in BOTH_SIDES),
    Point("files.content", Moment.MIDDLE),
    Point("s3.get_image", Moment.MIDDLE),
]
TABLES: Final = ("images", "jobs", "attempts", "batches", "submissions", "settlements", "lowerings", "leases")
COMMITS: Final = [Point(f"{COMMIT}.{table}", moment) for table in TABLES for moment in BOTH_SIDES]
COMMITS_MAX: Final = 3
SAMPLE: Final = [
    ("sqlite", Stroke(Point("batches.create", Moment.BEFORE), fate=Fate.LATER)),
    ("sqlite", Stroke(Point("files.content", Moment.MIDDLE))),
    ("sqlite", Stroke(Point("wallet.commit", Moment.AFTER), "wallet")),
    ("postgres", Stroke(Point("batches.create", Moment.AFTER))),
    ("postgres", Stroke(Point(f"{COMMIT}.settlements", Moment.AFTER), "postgres")),
]
RANDOM_ROUNDS: Final = 20
STROKES_MAX: Final = 3
NTH_MAX: Final = 40


class Arenas:
    """The arena of a module: a new one after a round that failed, so that the next is not to blame."""

    def __init__(self, folder: Path, postgres: CrashingPostgres | None) -> None:
        self._folder = folder
        self._postgres = postgres
        self._exits = AsyncExitStack()
        self._made = 0
        self._arena: Arena | None = None

    async def arena(self) -> Arena:
        """One that is up."""
        if self._arena is None:
            self._made += 1
            folder = self._folder / str(self._made)
            self._arena = await self._exits.enter_async_context(arena_in(folder, postgres=self._postgres))
        return self._arena

    async def close(self) -> None:
        """Ends it."""
        self._arena = None
        await self._exits.aclose()


@pytest.fixture(scope="module")
def postgres() -> Iterator[CrashingPostgres]:
    """A server that may crash."""
    with crashing_postgres() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def on_sqlite(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Arenas]:
    arenas = Arenas(tmp_path_factory.mktemp("sqlite"), None)
    yield arenas
    await arenas.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def on_postgres(tmp_path_factory: pytest.TempPathFactory, postgres: CrashingPostgres) -> AsyncIterator[Arenas]:
    arenas = Arenas(tmp_path_factory.mktemp("postgres"), postgres)
    yield arenas
    await arenas.close()


@pytest.fixture(params=["sqlite", "postgres"])
def arenas(request: pytest.FixtureRequest) -> Arenas:
    found: Arenas = request.getfixturevalue(f"on_{request.param}")
    return found


async def proven(arenas: Arenas, request: pytest.FixtureRequest, strokes: list[Stroke]) -> None:
    """Plays a round, whose name is the test's."""
    with replayable(request):
        arena = await arenas.arena()
        try:
            await play(arena, strokes, request.node.name)
        except BaseException:
            await arenas.close()
            raise


def fate_of(name: str) -> Fate:
    """Each fate in turn comes to every point, by the seed."""
    return random.Random(f"fate/{SEED}/{name}").choice(list(Fate))


@pytest.mark.parametrize(("arenas", "stroke"), SAMPLE, indirect=["arenas"], ids=str)
async def test_a_kill_at_an_arrow_loses_and_doubles_nothing(arenas, request, stroke):
    """The sample of the normal run."""
    await proven(arenas, request, strokes_to(stroke))


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS, ids=str)
async def test_a_batcher_killed_at_any_arrow_goes_on_where_it_was(arenas, request, point):
    """What it had sent arrives or is lost, at once, when it is back, or when all is over."""
    await proven(arenas, request, strokes_to(Stroke(point, fate=fate_of(request.node.name))))


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS, ids=str)
async def test_a_peer_killed_at_any_arrow_is_asked_again(arenas, request, point):
    """The wallet, the object store or the provider goes down with the call in its hands."""
    stroke = Stroke(point, peer_of(point.operation), fate_of(request.node.name))
    await proven(arenas, request, strokes_to(stroke))


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["batcher", "postgres"])
@pytest.mark.parametrize("point", COMMITS, ids=str)
async def test_a_kill_at_a_commit_leaves_the_transaction_whole_or_undone(on_postgres, request, point, victim):
    """The batcher never learns that it committed, or the server dies with it; one of the first such commits."""
    rare = point.operation in {f"{COMMIT}.images", f"{COMMIT}.lowerings"}
    nth = 1 if rare else random.Random(f"nth/{SEED}/{request.node.name}").randint(1, COMMITS_MAX)
    await proven(on_postgres, request, [Stroke(point, victim, fate_of(request.node.name), nth)])


@pytest.mark.slow
@pytest.mark.parametrize("number", range(RANDOM_ROUNDS))
async def test_any_moments_will_do(arenas, request, number):  # noqa: ARG001 - it is in the name, the round's seed
    """Up to three kills in a round, each at a call that the seed chooses, and of whom it chooses."""
    chance = random.Random(f"moments/{SEED}/{request.node.name}")
    strokes = []
    for _ in range(chance.randint(1, STROKES_MAX)):
        moment = chance.choice(BOTH_SIDES)
        victim = chance.choice(["batcher", "batcher", "wallet", "s3", "openai_twin"])
        strokes.append(Stroke(Point("*", moment), victim, chance.choice(list(Fate)), chance.randint(1, NTH_MAX)))
    await proven(arenas, request, strokes)
