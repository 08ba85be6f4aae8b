"""Rounds: a seeded load, kills at chosen points of it, and a look at everything afterwards.

A point is an arrow between the batcher and one of its peers, before or after the peer has acted, or in the middle of an
answer (`gates`). At each stroke of a round one call is held at its point, the victim is killed there, and what was held
has one of four fates, all of which a network may have in store for it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from enum import StrEnum
from typing import Any, Final, NamedTuple

import asyncpg
import pytest

from punchcard.wallet.v1 import wallet_pb2, wallet_pb2_grpc
from sandbox.process import StartFailed
from services.batcher.batch import ENDED
from tests.acceptance.arena import Arena, Victim
from tests.acceptance.crowd import FAULTS, Crowd
from tests.acceptance.gates import Held, Moment, Point
from tests.acceptance.money import Evidence, audit
from tests.acceptance.stacks import books, database_urls, twin
from tests.batchers import until

SEED: Final = int(os.environ.get("PROOF_SEED", "1"))
"""Chooses loads, fates and random moments: set it to try others, or those that failed."""

PATIENCE_SECONDS: Final = 90.0
JOURNEY: Final = ("wallet.BatchReserve", "wallet.commit", "wallet.release", "wallet.lower", "wallet.extend")
STORED: Final = ("s3.put_image", "s3.get_image", "s3.head_result", "s3.put_result")
BOUGHT: Final = (
    "files.create", "batches.create", "batches.retrieve", "batches.cancel", "files.content", "chat.create",
)  # fmt: skip
PRESENT: Final = (*JOURNEY, *STORED, *BOUGHT)
"""What every round comes by."""

AFTER_DOUBT: Final = ("batches.list", "files.delete")
"""What comes when nobody knows whether a batch was bought."""

AGAIN: Final = ("s3.get_result", "s3.head_bucket")
"""What comes after a restart alone."""


class Fate(StrEnum):
    """What becomes of the call that is held when somebody is killed."""

    LOST = "lost"
    AT_ONCE = "at_once"
    """It goes on as soon as the victim is gone."""
    LATER = "later"
    """It goes on when the victim is back."""
    LAST = "last"
    """It goes on when all work is done."""


class Stroke(NamedTuple):
    """A kill. who: `batcher` or a peer; nth: at the n-th call that comes to the point."""

    point: Point
    victim: Victim = "batcher"
    fate: Fate = Fate.LOST
    nth: int = 1

    def __str__(self) -> str:
        return f"{self.victim}-{self.point}-{self.fate}"


def strokes_to(stroke: Stroke) -> list[Stroke]:
    """The strokes that lead to a point: some arrows are drawn only after a crash."""
    if stroke.point.operation in AFTER_DOUBT:
        return [Stroke(Point("batches.create", Moment.BEFORE)), stroke]
    if stroke.point.operation in AGAIN:
        return [Stroke(Point("s3.put_result", Moment.AFTER)), stroke]
    return [stroke]


def peer_of(operation: str) -> Victim:
    """Who is asked."""
    kinds: dict[str, Victim] = {"wallet": "wallet", "s3": "s3", "commit": "postgres"}
    return kinds.get(operation.partition(".")[0], "openai_twin")


@contextmanager
def replayable(request: pytest.FixtureRequest) -> Iterator[None]:
    """Says with a failure how to try the same again."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"replay with: PROOF_SEED={SEED} pytest '{request.node.nodeid}'")
        raise


async def play(arena: Arena, strokes: Sequence[Stroke], name: str) -> Evidence:
    """One round; afterwards nothing is open, and all adds up. Raises AssertionError."""
    late: list[Held] = []
    held = arena.gate.arm(strokes[0].point, strokes[0].nth)
    async with working(arena, name) as (crowd, work):
        async with asyncio.timeout(PATIENCE_SECONDS):
            for stroke, following in zip(strokes, [*strokes[1:], None], strict=True):
                if not await reached(arena, held, work):
                    arena.gate.disarm(held)
                    break
                after = await strike(arena, stroke, held, following, late)
                held = after or held
            await work
            await quiet(arena)
            for each in late:
                each.deliver()
            await quiet(arena)
    return await verified(arena, crowd)


@asynccontextmanager
async def working(
    arena: Arena, name: str, faults: Sequence[Mapping[str, Any]] = (), only: str = ""
) -> AsyncIterator[tuple[Crowd, asyncio.Task[None]]]:
    """Customers at work, whose tasks are chosen by seed and name; at the end nothing is held any more.

    faults: of the twin, beside those of every round. only: the one job to be submitted, where it is not all.
    """
    crowd = Crowd(arena, f"round-{secrets.token_hex(4)}", f"{SEED}/{name}")
    crowd.errands = [errand for errand in crowd.errands if only in {"", errand.job_id}]
    script = {"seed": SEED, "faults": [*faults, *FAULTS]}
    await asyncio.to_thread(twin, arena.stack, "PUT", "faults", script)
    work = asyncio.create_task(crowd.work())
    supervision = asyncio.create_task(arena.supervise())
    try:
        yield crowd, work
    finally:
        arena.gate.open()
        supervision.cancel()
        work.cancel()
        await asyncio.gather(supervision, work, return_exceptions=True)


async def reached(arena: Arena, held: Held, work: asyncio.Task[None]) -> bool:
    """Returns when a call is held; fails with the load, if that does. False: all is done, and so many calls of any kind
    did not come.
    """
    reaching = asyncio.create_task(held.reached.wait())
    try:
        async with asyncio.timeout(PATIENCE_SECONDS / 2):
            await asyncio.wait({reaching, work}, return_when=asyncio.FIRST_COMPLETED)
            if not reaching.done():
                await work
            if held.point.operation == "*":
                ending = asyncio.create_task(quiet(arena))
                await asyncio.wait({reaching, ending}, return_when=asyncio.FIRST_COMPLETED)
                ending.cancel()
                await asyncio.gather(ending, return_exceptions=True)
                return reaching.done()
            await reaching
            return True
    except TimeoutError:
        passed = {str(point): count for point, count in sorted(arena.gate.passed.items())}
        raise AssertionError(f"nothing came to {held.point}; what came by: {passed}") from None
    finally:
        reaching.cancel()


async def strike(arena: Arena, stroke: Stroke, held: Held, following: Stroke | None, late: list[Held]) -> Held | None:
    """Kills the victim while the call is held, starts it again, and deals with the call; gives what is held next."""
    await arena.kill(stroke.victim, held.who)
    if stroke.fate is Fate.LOST:
        held.drop()
    elif stroke.fate is Fate.AT_ONCE:
        held.deliver()
    after = arena.gate.arm(following.point, following.nth) if following else None
    starting = arena.launch(stroke.victim, held.who)
    # A batcher may come to the next point before it serves.
    waits: set[asyncio.Future[Any]] = {starting}
    if after is not None:
        waits.add(asyncio.ensure_future(after.reached.wait()))
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        with suppress(StartFailed):
            # What it needs may still be locked, or gone: it is started again, as all that end by themselves.
            starting.result()
    else:
        # The next stroke may cut it short; where it fails otherwise, the round does too.
        starting.add_done_callback(lambda start: start.cancelled() or start.exception())
    for wait in waits - {starting}:
        wait.cancel()
    if stroke.fate is Fate.LATER:
        held.deliver()
    elif stroke.fate is Fate.LAST:
        late.append(held)
    return after


OPEN: Final = (
    "SELECT count(*) FROM jobs WHERE state IN ('ADMITTING', 'QUEUED', 'BATCHED', 'RUNNING')",
    "SELECT count(*) FROM settlements WHERE state = 'PENDING'",
    "SELECT count(*) FROM lowerings WHERE state = 'PENDING'",
    "SELECT count(*) FROM batches WHERE state <> 'CLOSED'",
    "SELECT count(*) FROM submissions WHERE state = 'OPEN'",
)


async def quiet(arena: Arena, *, provider: bool = True) -> None:
    """Returns when nothing is left to be done. provider: nor by the provider."""
    url = database_urls(arena.stack)["batcher"]

    async def is_quiet() -> bool:
        return not (any(await counted(url)) or (provider and await asyncio.to_thread(at_work, arena)))

    try:
        await until(is_quiet)
    except TimeoutError:
        left = dict(
            zip(("jobs", "settlements", "lowerings", "batches", "submissions"), await counted(url), strict=True)
        )
        raise AssertionError(f"the work does not come to its end; open are {left}") from None


def at_work(arena: Arena) -> bool:
    """Whether the provider has a batch that may still change."""
    return any(row["status"] not in ENDED for row in books(arena.stack)["batches"])


async def counted(url: str) -> list[int]:
    """How many jobs, settlements, lowerings, batches and submissions are open."""
    if url.startswith("sqlite:"):
        return await asyncio.to_thread(_counted, url.removeprefix("sqlite:"))
    connection = await asyncpg.connect(url)
    try:
        return [await connection.fetchval(query) for query in OPEN]
    finally:
        await connection.close()


def _counted(path: str) -> list[int]:
    with closing(sqlite3.connect(path)) as connection:
        return [connection.execute(query).fetchone()[0] for query in OPEN]


async def verified(arena: Arena, crowd: Crowd) -> Evidence:
    """Every errand has an end that it may have, all books agree, and the wallet's own check of its ledger passes."""
    evidence = await audit(arena.stack, second_batches=True)
    ended = {(row["account_id"], row["job_id"]): row["state"] for row in evidence.batcher["jobs"]}
    wrong = {
        errand.job_id: ended.get((errand.account_id, errand.job_id), "lost")
        for errand in crowd.errands
        if ended.get((errand.account_id, errand.job_id)) not in errand.endings
    }
    assert wrong == {}, f"jobs ended otherwise than they may: {wrong}"
    async with arena.to_wallet("auditor", "wallet.admin") as channel:
        check = wallet_pb2_grpc.WalletServiceStub(channel).VerifyLedger(wallet_pb2.VerifyLedgerRequest())
        *_, last = [message async for message in check]
    assert last.result.intact, last
    return evidence
