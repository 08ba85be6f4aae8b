"""Three replicas of the batcher over one database: any of them may die or freeze at any arrow, and the others go on.

A frozen one keeps its connections and what it was about to write. When it wakes up its leases are gone, and what it
still sends and writes must change nothing. How long the others took is counted in lease terms, from the last sign of
life that the database has of the one that is gone.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from enum import StrEnum
from typing import Final, NamedTuple

import asyncpg
import pytest
import pytest_asyncio

from sandbox.probes import serving
from tests.acceptance.arena import Arena, Replica, arena_in
from tests.acceptance.arrows import (
    PATIENCE_SECONDS,
    PRESENT,
    SEED,
    Fate,
    quiet,
    reached,
    replayable,
    verified,
    working,
)
from tests.acceptance.crowd import ORDINARY
from tests.acceptance.gates import Held, Moment, Point
from tests.acceptance.stacks import books, database_urls
from tests.batchers import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

REPLICAS: Final = 3
LEASE_SECONDS: Final = 3.0
TERMS_MAX: Final = 4.0
"""Two are promised; a machine that is busy with other things may take its time to begin a step."""

# What a frozen replica has locked is free before its leases are over, as it is by the defaults.
SETTINGS: Final = {
    "BATCHER_LEASE_SECONDS": str(LEASE_SECONDS),
    "BATCHER_DATABASE_TIMEOUT_SECONDS": "1",
    "BATCHER_RECONCILE_SECONDS": "1",
}
HIDDEN_WALKS: Final = 12
"""More readings of the list than it takes to buy again what is not in it."""
BOTH_SIDES: Final = (Moment.BEFORE, Moment.AFTER)
POINTS: Final = [Point(operation, moment) for operation in PRESENT for moment in BOTH_SIDES]


class Absence(StrEnum):
    """How a replica is gone."""

    KILLED = "killed"
    FROZEN = "frozen"


class LeaseRow(NamedTuple):
    """Who holds a lease; each change of hands has a fence of its own."""

    holder: str
    fence: int
    expire_time_us: int


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def arena(tmp_path_factory: pytest.TempPathFactory, postgres_server: str) -> AsyncIterator[Arena]:
    """Three replicas, used by all tests of the module."""
    folder = tmp_path_factory.mktemp("replicas")
    async with arena_in(folder, postgres_server=postgres_server, replicas=REPLICAS, settings=SETTINGS) as made:
        yield made


async def leases(arena: Arena) -> dict[str, LeaseRow]:
    """All leases by their names."""
    connection = await asyncpg.connect(database_urls(arena.stack)["batcher"])
    try:
        rows = await connection.fetch("SELECT name, holder, fence, expire_time_us FROM leases")
    finally:
        await connection.close()
    return {row["name"]: LeaseRow(row["holder"], row["fence"], row["expire_time_us"]) for row in rows}


async def taken_over(arena: Arena, lost: dict[str, LeaseRow]) -> dict[str, float]:
    """How many lease terms after its last renewal each lease had a new holder; returns when all have."""
    terms: dict[str, float] = {}

    async def all_taken() -> bool:
        for name, row in (await leases(arena)).items():
            if name in lost and name not in terms and row.fence > lost[name].fence:
                terms[name] = (row.expire_time_us - lost[name].expire_time_us) / (LEASE_SECONDS * 1_000_000)
        return terms.keys() == lost.keys()

    await until(all_taken)
    return terms


async def outlived(arena: Arena, point: Point, absence: Absence, fate: Fate, name: str) -> dict[str, float]:
    """One round in which the replica that comes to a point is gone; gives how its leases were taken over."""
    held = arena.gate.arm(point)
    async with asyncio.timeout(PATIENCE_SECONDS), working(arena, name) as (crowd, work):
        await reached(arena, held, work)
        gone = arena.replica(held.who)
        mark = f"-{gone.pid()}-"
        await leave(arena, gone, held, absence, fate)
        lost = {name: row for name, row in (await leases(arena)).items() if mark in row.holder}
        terms = await taken_over(arena, lost)
        await work
        await quiet(arena)
        await come_back(arena, gone, held, absence, fate)
        await quiet(arena)
    await verified(arena, crowd)
    return terms


async def leave(arena: Arena, gone: Replica, held: Held, absence: Absence, fate: Fate) -> None:
    """Takes a replica away. A call of a dead one arrives or not; a frozen one's is held until it wakes up."""
    if absence is Absence.FROZEN:
        gone.freeze()
        return
    await arena.kill("batcher", gone.name)
    if fate is Fate.LOST:
        held.drop()
    elif fate is Fate.AT_ONCE:
        held.deliver()


async def come_back(arena: Arena, gone: Replica, held: Held, absence: Absence, fate: Fate) -> None:
    """Brings it back; what is still held arrives now, or never."""
    if absence is Absence.KILLED:
        await arena.launch("batcher", gone.name)
    else:
        gone.thaw()
    if fate is Fate.LOST:
        held.drop()
    else:
        held.deliver()

    async def answers() -> bool:
        return await asyncio.to_thread(serving, gone.address)

    await until(answers)


async def proven(
    arena: Arena, request: pytest.FixtureRequest, point: Point, absence: Absence, fate: Fate | None = None
) -> None:
    """Plays a round named like its test, and keeps the figure with the test's report."""
    name = request.node.name
    drawn = fate or random.Random(f"fate/{SEED}/{name}").choice(list(Fate))
    with replayable(request):
        terms = await outlived(arena, point, absence, drawn, name)
    request.node.user_properties.append(("lease_terms", {lease: round(count, 2) for lease, count in terms.items()}))
    assert max(terms.values(), default=0.0) < TERMS_MAX, terms


async def test_a_create_of_a_replica_that_freezes_and_wakes_up_late_buys_nothing(arena, request):
    """The others close its attempt and buy the batch; when its create arrives, it names a file that is gone."""
    await proven(arena, request, Point("batches.create", Moment.BEFORE), Absence.FROZEN, Fate.LAST)


@pytest.mark.slow
async def test_a_second_batch_that_a_frozen_replica_had_bought_is_found_and_cancelled_and_charged_to_nobody(
    arena, request
):
    """The provider's list hides the first one until the others have closed its attempt and bought it again."""
    faults = [
        {"name": "batch_listed_late", "parameters": {"walks": HIDDEN_WALKS}},
        {"name": "stalls", "model": ORDINARY, "parameters": {"after_lines": 0, "late_seconds": None}},
    ]
    held = arena.gate.arm(Point("batches.create", Moment.AFTER))
    with replayable(request):
        async with (
            asyncio.timeout(PATIENCE_SECONDS),
            working(arena, request.node.name, faults, only="plain-0") as (crowd, work),
        ):
            await reached(arena, held, work)
            first = (await asyncio.to_thread(books, arena.stack))["batches"][-1]
            gone = arena.replica(held.who)
            gone.freeze()
            await work
            await quiet(arena, provider=False)
            await come_back(arena, gone, held, Absence.FROZEN, Fate.LAST)
            await quiet(arena)
        await verified(arena, crowd)
    batches = (await asyncio.to_thread(books, arena.stack))["batches"]
    same = [row for row in batches if row["metadata"]["batch_id"] == first["metadata"]["batch_id"]]
    assert [row["status"] for row in same] == ["cancelled", "completed"]


@pytest.mark.slow
@pytest.mark.parametrize("absence", Absence)
@pytest.mark.parametrize("point", POINTS, ids=str)
async def test_a_replica_that_is_gone_at_any_arrow_is_outlived(arena, request, point, absence):
    """Its work is taken over, and nothing is done twice when it comes back."""
    await proven(arena, request, point, absence)
