"""Kill -9 in the middle of the work: every job finishes, is charged once, and each batch is bought once.

Each test waits for a moment that can be seen from outside, kills, starts again, and then looks at everything.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from punchcard.batcher.v1 import batcher_pb2
from sandbox.openai_twin.batch_worker import Pace
from sandbox.plan import Part
from sandbox.stack import Stack
from tests.acceptance.money import Evidence, audit
from tests.acceptance.stacks import (
    PATIENCE_SECONDS,
    WELCOME_BONUS,
    Customer,
    books,
    customer_of,
    painted,
    stack_in,
    state_of,
)

ADMITTING = batcher_pb2.JOB_STATE_ADMITTING
QUEUED = batcher_pb2.JOB_STATE_QUEUED
RUNNING = batcher_pb2.JOB_STATE_RUNNING
SUCCEEDED = batcher_pb2.JOB_STATE_SUCCEEDED
# Slow enough that each moment of a batch can be caught, one line after the other.
PACE = Pace(validating_seconds=0.2, finalizing_seconds=0.2, image_seconds=0.15, lines_at_once=1)
VICTIMS: list[list[Part]] = [["batcher"], ["wallet"], ["batcher", "wallet"]]
ON_BOTH = [pytest.param("sqlite", id="sqlite"), pytest.param("postgres", id="postgres", marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=ON_BOTH)
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One stack, killed and started again by each test."""
    server = request.getfixturevalue("postgres_server") if request.param == "postgres" else None
    with stack_in(tmp_path_factory.mktemp("stack"), postgres_server=server, pace=PACE) as running:
        yield running


@pytest.fixture
async def customer(stack: Stack, request: pytest.FixtureRequest) -> AsyncIterator[Customer]:
    """An account of the test's own."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[-100:].strip("-")
    async with customer_of(stack, name) as made:
        await made.open()
        yield made


async def kill(stack: Stack, *parts: Part) -> None:
    """SIGKILL to each, as near to the same time as can be; returns when they are gone."""
    await asyncio.gather(*(asyncio.to_thread(stack.kill, part) for part in parts))


async def start(stack: Stack, *parts: Part) -> None:
    """Starts again what was killed."""
    for part in parts:
        await asyncio.to_thread(stack.start, part)


async def finish(stack: Stack, customer: Customer, job_ids: list[str]) -> Evidence:
    """Everything that must be true at the end, whatever was killed: all answered, charged once, bought once."""
    jobs = await customer.settled(*job_ids)
    assert {job.state for job in jobs} == {SUCCEEDED}
    assert {job.settlement.state for job in jobs} == {batcher_pb2.SETTLEMENT_STATE_SETTLED}
    assert all(job.answer.text for job in jobs)
    assert await customer.tokens() == (WELCOME_BONUS - sum(job.price for job in jobs), 0)
    evidence = await audit(stack)
    uids = {job.uid for job in jobs}
    settled = [row["uid"] for row in evidence.batcher["settlements"] if row["uid"] in uids]
    assert sorted(settled) == sorted(uids)
    return evidence


async def a_new_purchase(stack: Stack, before: int) -> None:
    """Returns as soon as the twin's books show a batch more."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while len((await asyncio.to_thread(books, stack))["batches"]) <= before:
            pass


async def at_once(_: Stack, __: Customer, ___: str) -> None:
    """The submit has returned."""


async def running_with_progress(_: Stack, customer: Customer, job_id: str) -> None:
    """Some lines of the batch are done, and some are not."""
    await customer.wait_for(job_id, lambda seen: 0 < seen.progress.completed < seen.progress.total)


async def answered(_: Stack, customer: Customer, job_id: str) -> None:
    """The first answer is out, and the wallet may not have been told."""
    await customer.wait_for(job_id, lambda seen: state_of(seen) == SUCCEEDED)


MOMENTS: list[Callable[[Stack, Customer, str], Awaitable[None]]] = [at_once, running_with_progress, answered]


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.__name__)
async def test_a_killed_batcher_goes_on_where_it_was(stack, customer, moment):
    """Six jobs at once; a watch that began before the kill is resumed and sees each job's end."""
    job_ids = await customer.submit_photographs()
    watch = asyncio.create_task(customer.settled(*job_ids))
    await moment(stack, customer, job_ids[0])

    await kill(stack, "batcher")
    await start(stack, "batcher")

    evidence = await finish(stack, customer, job_ids)
    assert {job.state for job in await watch} == {SUCCEEDED}
    assert attempts_of(evidence, customer) == [1] * len(job_ids)


async def test_a_batcher_killed_as_soon_as_its_batch_is_bought_does_not_buy_it_again(stack, customer):
    """Whether or not it had written down that the provider took the batch."""
    bought = len((await asyncio.to_thread(books, stack))["batches"])
    image_id = await customer.upload(painted((9, 99, 9)))
    purchase = asyncio.create_task(a_new_purchase(stack, bought))
    await customer.batcher.SubmitJobs(
        batcher_pb2.SubmitJobsRequest(items=[customer.order(f"job-{number}", image_id) for number in range(4)])
    )
    await purchase

    await kill(stack, "batcher")
    await start(stack, "batcher")

    evidence = await finish(stack, customer, [f"job-{number}" for number in range(4)])
    assert attempts_of(evidence, customer) == [1] * 4
    assert len(evidence.books["batches"]) == bought + len(batches_of(evidence, customer))


@pytest.mark.slow
async def test_an_instant_job_outlives_the_batcher_and_is_charged_once(stack, customer):
    """The provider may be asked twice; the user never pays twice."""
    image_id = await customer.upload(painted((200, 200, 0)))
    answer = await customer.submit("now", image_id, lane=batcher_pb2.LANE_INSTANT)

    await kill(stack, "batcher")
    await start(stack, "batcher")

    assert answer.job.price == 5
    await finish(stack, customer, ["now"])


@pytest.mark.slow
async def test_a_wallet_that_is_killed_delays_the_money_and_not_the_answers(stack, customer):
    """Jobs that were admitted are answered without it; one that comes meanwhile is kept, and admitted afterwards."""
    job_ids = await customer.submit_photographs()
    image_id = await customer.upload(painted((0, 0, 0)))
    await customer.wait_for(job_ids[0], lambda seen: state_of(seen) == RUNNING)

    await kill(stack, "wallet")
    meanwhile = await customer.submit("meanwhile", image_id)
    await customer.wait_for(job_ids[0], lambda seen: state_of(seen) == SUCCEEDED)
    unsettled = await customer.job(job_ids[0])
    await start(stack, "wallet")

    assert meanwhile.job.state == ADMITTING
    assert unsettled.settlement.state == batcher_pb2.SETTLEMENT_STATE_PENDING
    assert unsettled.answer.text
    await finish(stack, customer, [*job_ids, "meanwhile"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    [pytest.param(running_with_progress, id="running", marks=pytest.mark.slow), pytest.param(answered, id="answered")],
)
async def test_both_services_killed_at_once_lose_nothing(stack, customer, moment):
    """The batcher comes up first and finds no wallet."""
    job_ids = await customer.submit_photographs()
    await moment(stack, customer, job_ids[0])

    await kill(stack, "wallet", "batcher")
    await start(stack, "batcher", "wallet")

    await finish(stack, customer, job_ids)


@pytest.mark.slow
async def test_a_submit_that_was_cut_off_is_done_once_when_it_is_repeated(stack, customer):
    """The client saw no answer and sends the same again, as often as it takes."""
    image_id = await customer.upload(painted((70, 0, 70)))
    orders = [customer.order(f"cut-{number}", image_id) for number in range(8)]
    calls = [asyncio.ensure_future(customer.batcher.SubmitJob(order)) for order in orders]
    await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)

    await kill(stack, "batcher", "wallet")
    await start(stack, "wallet", "batcher")
    await asyncio.gather(*calls, return_exceptions=True)
    again = await asyncio.gather(*(customer.batcher.SubmitJob(order, wait_for_ready=True) for order in orders))

    assert len({answer.job.uid for answer in again}) == len(orders)
    await finish(stack, customer, [f"cut-{number}" for number in range(8)])


@pytest.mark.slow
@pytest.mark.parametrize("round_number", range(8))
async def test_any_instant_will_do(stack: Stack, customer: Customer, round_number: int) -> None:
    """Kills at an instant that the work itself decides: after so many messages of a watch."""
    job_ids = await customer.submit_photographs()
    seen = 0

    def enough(_: batcher_pb2.WatchJobResponse) -> bool:
        nonlocal seen
        seen += 1
        return seen > round_number

    await customer.wait_for(job_ids[-1], enough)
    parts = VICTIMS[round_number % len(VICTIMS)]
    await kill(stack, *parts)
    await start(stack, *parts)

    await finish(stack, customer, job_ids)


def uids_of(evidence: Evidence, customer: Customer) -> set[str]:
    return {row["uid"] for row in evidence.batcher["jobs"] if row["account_id"] == customer.account_id}


def attempts_of(evidence: Evidence, customer: Customer) -> list[int]:
    """How often each job was tried."""
    uids = uids_of(evidence, customer)
    return [row["attempt"] for row in evidence.batcher["jobs"] if row["uid"] in uids]


def batches_of(evidence: Evidence, customer: Customer) -> set[str]:
    """The batches that its jobs were in."""
    uids = uids_of(evidence, customer)
    return {row["batch_id"] for row in evidence.batcher["attempts"] if row["uid"] in uids}
