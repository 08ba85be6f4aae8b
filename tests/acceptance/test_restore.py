"""A backup is restored while work is under way: every job that the batcher still knows ends once and is charged once.

The stack is stopped, the database of the batcher, of the wallet, or of both is replaced by an older copy, and the stack
is started again. What callers were told after the batcher's copy was made is gone, and nothing else is.
"""

import asyncio
import itertools
import random
import re
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import asyncpg
import grpc
import pytest

from punchcard.batcher.v1 import batcher_pb2
from sandbox.openai_twin.batch_worker import Pace
from sandbox.plan import Part
from sandbox.stack import Stack
from tests import backups
from tests.acceptance.money import Evidence, gather, problems
from tests.acceptance.stacks import (
    PATIENCE_SECONDS,
    WELCOME_BONUS,
    Customer,
    books,
    customer_of,
    database_urls,
    painted,
    stack_in,
)
from tests.batchers import until

SUCCEEDED = batcher_pb2.JOB_STATE_SUCCEEDED
FAILED = batcher_pb2.JOB_STATE_FAILED
CANCELLED = batcher_pb2.JOB_STATE_CANCELLED
SETTLED = batcher_pb2.SETTLEMENT_STATE_SETTLED
PACE = Pace(validating_seconds=0.1, finalizing_seconds=0.1, image_seconds=0.1, lines_at_once=2)
SERVICES: Final[tuple[Part, ...]] = ("wallet", "batcher")
STORMS: Final = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(12)]
ON_BOTH = [pytest.param("sqlite", id="sqlite"), pytest.param("postgres", id="postgres", marks=pytest.mark.slow)]


class Restorable:
    """A stack and a customer, and copies of the two databases."""

    def __init__(self, stack: Stack, customer: Customer) -> None:
        self.stack = stack
        self.customer = customer
        self._urls = database_urls(stack)
        self._copies: dict[str, Any] = {}
        self._names = itertools.count()

    async def back_up(self, *parts: Part) -> None:
        """Copies databases as they are now. PostgreSQL makes a copy of one that nobody uses."""
        used = [part for part in parts if not self._urls[part].startswith("sqlite:")]
        for part in reversed(used):
            await asyncio.to_thread(self.stack.stop, part)
        for part in parts:
            self._copies[part] = await self._saved(self._urls[part])
        await self._start(*used)

    async def restore(self, *parts: Part) -> None:
        """Stops both services, takes databases back to their copies, and starts again."""
        for part in reversed(SERVICES):
            await asyncio.to_thread(self.stack.stop, part)
        for part in parts:
            await self._put_back(self._urls[part], self._copies[part])
        await self._start(*SERVICES)

    async def _start(self, *parts: Part) -> None:
        """Starts services, and waits until the customer's connections have noticed."""
        for part in parts:
            await asyncio.to_thread(self.stack.start, part)
        await self.customer.tokens()
        request = batcher_pb2.ListJobsRequest(account_id=self.customer.account_id)
        await self.customer.batcher.ListJobs(request, wait_for_ready=True, timeout=PATIENCE_SECONDS)

    async def has(self, balance: int, held: int) -> None:
        """Waits until the customer has so many tokens: the reconciler may still have to settle some again."""

        async def settled() -> bool:
            return await self.customer.tokens() == (balance, held)

        await until(settled)

    async def _saved(self, url: str) -> Any:
        if url.startswith("sqlite:"):
            return backups.saved(Path(url.removeprefix("sqlite:")), f"copy-{next(self._names)}")
        copy = f"copy_{secrets.token_hex(6)}"
        await _admin(url, f"CREATE DATABASE {copy} TEMPLATE {_name_of(url)}")
        return copy

    async def _put_back(self, url: str, copy: Any) -> None:
        if url.startswith("sqlite:"):
            backups.restore(Path(url.removeprefix("sqlite:")), copy)
            return
        await _admin(url, f"DROP DATABASE {_name_of(url)} WITH (FORCE)")
        await _admin(url, f"CREATE DATABASE {_name_of(url)} TEMPLATE {copy}")

    async def submit(self, *job_ids: str) -> list[str]:
        """Jobs about a picture of their own each."""
        for job_id in job_ids:
            colour = tuple(random.Random(job_id).randbytes(3))
            await self.customer.submit(job_id, await self.customer.upload(painted(colour)))  # type: ignore[arg-type]
        return list(job_ids)

    async def audited(self) -> Evidence:
        """Everything adds up, but for what the batcher can't know any more."""
        evidence = await gather(self.stack)
        found = [problem for problem in problems(evidence) if not is_forgotten(problem)]
        assert not found, "\n  ".join(["the audit found:", *found])
        return evidence


FORGOTTEN: Final = re.compile(r"was made by the batcher for no job|was bought and nobody (took|knows) it")
LEFT: Final = re.compile(r"has (\d+) jobs as (\S+); bought was {'id': '\2'.*'lines': (\d+)")


def is_forgotten(problem: str) -> bool:
    """Whether a restored batcher can't know better: jobs that came, or left their batch, after the backup."""
    left = LEFT.search(problem)
    return FORGOTTEN.search(problem) is not None or (left is not None and int(left[3]) < int(left[1]))


def _name_of(url: str) -> str:
    """The name of a PostgreSQL database, which stands before the options of its URL."""
    return url.partition("?")[0].rpartition("/")[2]


async def _admin(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url.replace(f"/{_name_of(url)}?", "/postgres?"))
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture(params=ON_BOTH)
def stack(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stack]:
    server = request.getfixturevalue("postgres_server") if request.param == "postgres" else None
    with stack_in(tmp_path, postgres_server=server, pace=PACE) as running:
        yield running


async def test_a_restored_batcher_fetches_what_was_bought_since_and_charges_nobody_twice(stack):
    async with customer_of(stack) as customer:
        await customer.open()
        here = Restorable(stack, customer)
        await customer.settled(*await here.submit("before"))
        # A batch of many jobs waits for a cycle, so that these are caught while they queue.
        await asyncio.to_thread(stack.stop, "openai_twin")
        waiting = await here.submit("answered-1", "answered-2", "cancelled")
        await here.back_up("batcher")
        await customer.batcher.CancelJob(batcher_pb2.CancelJobRequest(account_id="alice", job_id="cancelled"))
        await asyncio.to_thread(stack.start, "openai_twin")
        first = {job.job_id: job for job in await customer.settled(*waiting)}
        lines = sum(batch["lines"] for batch in books(stack)["batches"])
        await here.restore("batcher")
        again = {job.job_id: job for job in await customer.settled("before", *waiting)}

        assert [again[name].answer.text for name in waiting] == [first[name].answer.text for name in waiting]
        assert again["cancelled"].state in {FAILED, CANCELLED}
        assert {job.settlement.state for job in again.values()} == {SETTLED}
        assert sum(batch["lines"] for batch in books(stack)["batches"]) == lines
        assert await customer.tokens() == (WELCOME_BONUS - 3, 0)
        await here.audited()


@pytest.mark.slow
async def test_a_restored_wallet_is_told_again_what_it_has_lost_and_charges_nobody_twice(stack):
    async with customer_of(stack) as customer:
        await customer.open()
        here = Restorable(stack, customer)
        await customer.settled(*await here.submit("before"))
        await asyncio.to_thread(stack.stop, "openai_twin")
        await here.submit("held")
        await here.back_up("wallet")
        await here.submit("lost-hold")
        await asyncio.to_thread(stack.start, "openai_twin")
        await customer.settled("held", "lost-hold", *await here.submit("lost-charge"))
        await asyncio.to_thread(stack.stop, "openai_twin")
        await here.submit("open")
        await here.restore("wallet")
        await asyncio.to_thread(stack.start, "openai_twin")
        jobs = await customer.settled("before", "held", "lost-hold", "lost-charge", "open")
        await here.has(WELCOME_BONUS - len(jobs), 0)

        assert {(job.state, job.settlement.state) for job in jobs} == {(SUCCEEDED, SETTLED)}
        await here.audited()


@pytest.mark.parametrize("seed", STORMS)
async def test_whatever_is_restored_whenever_the_books_agree_again(tmp_path, seed):
    """Jobs come, end and are cancelled while both databases are backed up and restored, in an order of the seed's."""
    print(f"replay: .venv/bin/pytest tests/acceptance/test_restore.py -k 'whatever and {seed}'")  # noqa: T201 - a failure shows it
    chance = random.Random(seed)
    with stack_in(tmp_path, pace=PACE) as stack:
        async with customer_of(stack) as customer:
            await customer.open(granted=1_000)
            here = Restorable(stack, customer)
            names = (f"job-{number}" for number in itertools.count())
            await customer.settled(*await here.submit(next(names)))
            await here.back_up(*SERVICES)
            for _ in range(6):
                new = await here.submit(*itertools.islice(names, chance.randint(1, 4)))
                if chance.random() < 0.5:
                    await customer.settled(*chance.sample(new, chance.randint(1, len(new))))
                await cancel(customer, chance.choice(new))
                parts = chance.sample(SERVICES, chance.randint(1, 2))
                await (here.back_up if chance.random() < 0.4 else here.restore)(*parts)
            await here.restore(*chance.sample(SERVICES, 1))
            jobs = await customer.jobs()
            ended = await customer.settled(*(job.job_id for job in jobs))
            charged = sum(job.settlement.charged for job in ended)
            await until(lambda: is_charged(customer, WELCOME_BONUS + 1_000 - charged))

            assert {job.settlement.state for job in ended} == {SETTLED}, f"seed {seed}"
            await here.audited()


async def is_charged(customer: Customer, balance: int) -> bool:
    """Whether the account has no more than that: it may have paid for jobs that the batcher does not know any more."""
    return (await customer.tokens())[0] <= balance


async def cancel(customer: Customer, job_id: str) -> None:
    """Asks for it; the job may have ended meanwhile."""
    request = batcher_pb2.CancelJobRequest(account_id=customer.account_id, job_id=job_id)
    with suppress(grpc.aio.AioRpcError):
        await customer.batcher.CancelJob(request)
