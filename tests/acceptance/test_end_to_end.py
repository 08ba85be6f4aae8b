"""Photographs through the whole of Punchcard, on both databases: what comes back is true, and paid for once."""

import asyncio
import copy
import re
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from PIL import Image, ImageStat

from punchcard.batcher.v1 import batcher_pb2
from punchcard.wallet.v1 import wallet_pb2
from sandbox.openai_twin.batch_worker import Pace
from sandbox.stack import Stack
from tests.acceptance.money import Evidence, audit, gather, problems
from tests.acceptance.stacks import (
    PHOTOGRAPHS,
    WELCOME_BONUS,
    Customer,
    books,
    customer_of,
    painted,
    refused,
    stack_in,
    state_of,
)

SUCCEEDED = batcher_pb2.JOB_STATE_SUCCEEDED
SETTLED = batcher_pb2.SETTLEMENT_STATE_SETTLED
STEPS = [
    batcher_pb2.JOB_STATE_ADMITTING,
    batcher_pb2.JOB_STATE_QUEUED,
    batcher_pb2.JOB_STATE_BATCHED,
    batcher_pb2.JOB_STATE_RUNNING,
    SUCCEEDED,
    SUCCEEDED,
]


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack for all tests of this module, in turn on SQLite files and on PostgreSQL."""
    server = request.getfixturevalue("postgres_server") if request.param == "postgres" else None
    pace = Pace(validating_seconds=0.1, finalizing_seconds=0.1, image_seconds=0.1, lines_at_once=2)
    with stack_in(tmp_path_factory.mktemp("stack"), postgres_server=server, pace=pace) as running:
        yield running


@pytest.fixture
async def customer(stack: Stack, request: pytest.FixtureRequest) -> AsyncIterator[Customer]:
    """An account of the test's own; afterwards the books of everybody must be right."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[-100:].strip("-")
    async with customer_of(stack, name) as made:
        await made.open()
        yield made
    await audit(stack)


async def test_six_photographs_and_an_instant_one_are_answered_truly_and_each_is_charged_once(customer):
    """Every answer names the real format, size and main colour; the balance falls by the prices and by no more."""
    await customer.open(granted=3)
    job_ids = await customer.submit_photographs()
    instant_image = await customer.upload(painted((250, 220, 20), (80, 60)))
    await customer.submit("instant", instant_image, lane=batcher_pb2.LANE_INSTANT)

    jobs = await customer.settled(*job_ids, "instant")

    for path, job in zip(PHOTOGRAPHS, jobs, strict=False):
        with Image.open(path) as image:
            said = f" {image.format} image of {image.width} x {image.height} pixels, mostly "
            assert said in job.answer.text
            assert re.findall(r"mostly (\w+)", job.answer.text)[0] in _true_colours(image)
    assert "PNG image of 80 x 60 pixels, mostly yellow." in jobs[-1].answer.text
    assert {job.answer.finish_reason for job in jobs} == {"stop"}
    assert all(job.answer.input_tokens and job.answer.output_tokens for job in jobs)
    assert {job.state for job in jobs} == {SUCCEEDED}
    assert {job.settlement.state for job in jobs} == {SETTLED}
    assert [job.settlement.charged for job in jobs] == [1] * 6 + [5]
    assert await customer.tokens() == (WELCOME_BONUS + 3 - 6 - 5, 0)
    history = await customer.wallet.ListTransactions(wallet_pb2.ListTransactionsRequest(account_id=customer.account_id))
    commits = [row for row in history.transactions if row.kind == wallet_pb2.TRANSACTION_KIND_COMMIT]
    assert sorted(row.reservation_id for row in commits) == sorted(job.uid for job in jobs)
    assert sum(row.balance_change for row in commits) == -11


def _true_colours(image: Image.Image) -> set[str]:
    """The words for the main colour that cannot be wrong: greyscale has no hue, and a night sky is black."""
    if image.mode == "L":
        return {"black", "grey", "white"}
    if ImageStat.Stat(image.convert("L")).median[0] < 46:
        return {"black"}
    return {"black", "grey", "white", "brown", "red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"}


async def test_a_watch_is_a_snapshot_a_bookmark_the_changes_in_order_the_settlement_and_the_end(customer):
    """Two watchers see the same changes; revisions never fall; progress only comes while the job runs."""
    image_id = await customer.upload(painted((10, 200, 10)))
    await customer.submit("watched", image_id)

    messages, others = await asyncio.gather(customer.watch_raw("watched"), customer.watch_raw("watched"))

    kinds = [message.WhichOneof("event") for message in messages]
    assert kinds[:2] == ["snapshot", "bookmark"]
    changes = [message for message in messages if message.WhichOneof("event") == "change"]
    states = [messages[0].snapshot.state, *map(state_of, changes)]
    assert states == STEPS[-len(states) :]
    assert changes[-2].change.answer.text
    assert changes[-2].change.settlement.state == batcher_pb2.SETTLEMENT_STATE_PENDING
    assert (changes[-1].change.settlement.state, changes[-1].change.settlement.charged) == (SETTLED, 1)
    assert messages[-1] is changes[-1]
    revisions = [message.revision for message in messages]
    assert revisions == sorted(revisions)
    assert len({message.revision for message in changes}) == len(changes)
    ended = messages.index(changes[-2])
    assert "progress" not in kinds[ended:]
    told = [message.change for message in changes]
    assert [message.change for message in others if message.WhichOneof("event") == "change"][-len(told) :] == told


async def test_a_watch_of_a_settled_job_tells_it_at_once_and_ends(customer):
    """The answer is in the snapshot."""
    image_id = await customer.upload(painted((10, 10, 200)))
    await customer.submit("over", image_id, lane=batcher_pb2.LANE_INSTANT)
    await customer.settled("over")

    messages = await customer.watch_raw("over")

    assert [message.WhichOneof("event") for message in messages] == ["snapshot", "bookmark"]
    assert "mostly blue" in messages[0].snapshot.answer.text
    assert messages[0].snapshot.settlement.state == SETTLED


async def test_a_job_id_that_was_used_replays_the_job_and_charges_nothing(customer):
    """Also when it has ended; with another prompt it is refused, and the field is named."""
    image_id = await customer.upload(painted((200, 10, 10)))
    first = await customer.submit("again", image_id)
    at_once = await customer.submit("again", image_id)
    await customer.settled("again")
    later = await customer.submit("again", image_id)
    code, reason, metadata, _ = await refused(customer.submit("again", image_id, prompt="And this?"))

    assert [first.replayed, at_once.replayed, later.replayed] == [False, True, True]
    assert {first.job.uid, at_once.job.uid, later.job.uid} == {first.job.uid}
    assert (later.job.state, later.job.settlement.charged) == (SUCCEEDED, 1)
    assert "mostly red" in later.job.answer.text
    assert (code, reason) == ("ALREADY_EXISTS", "IDEMPOTENCY_MISMATCH")
    assert metadata == {"field": "prompt", "stored": "What is this?", "received": "And this?"}
    assert await customer.tokens() == (WELCOME_BONUS - 1, 0)


async def test_too_few_tokens_are_refused_with_the_numbers_and_nothing_is_held(customer):
    """The same job is admitted after a top-up."""
    image_id = await customer.upload(painted((90, 90, 90)))
    await asyncio.gather(*(customer.submit(f"dear-{n}", image_id, lane=batcher_pb2.LANE_INSTANT) for n in range(2)))
    await customer.settled("dear-0", "dear-1")

    code, reason, metadata, _ = await refused(customer.submit("poor", image_id))
    tokens = await customer.tokens()
    rejected = await customer.job("poor")
    await customer.open(granted=1)
    admitted = await customer.submit("poor", image_id)

    assert (code, reason) == ("FAILED_PRECONDITION", "INSUFFICIENT_FUNDS")
    assert metadata == {"account_id": customer.account_id, "requested": "1", "available": "0", "held": "0"}
    assert tokens == (0, 0)
    assert rejected.state == batcher_pb2.JOB_STATE_REJECTED
    assert (rejected.settlement.charged, rejected.failure.code) == (0, "insufficient_funds")
    assert not admitted.replayed
    assert admitted.job.uid != rejected.uid
    (job,) = await customer.settled("poor")
    assert job.state == SUCCEEDED
    assert await customer.tokens() == (0, 0)


async def test_cancelling_a_queued_job_gives_its_tokens_back(customer):
    """It ends CANCELLED, is charged nothing, stays out of every batch, and can be cancelled again."""
    image_id = await customer.upload(painted((30, 30, 30)))
    # A cycle may begin between the submit and the cancel: then the job is on its way, and the next one is tried.
    for number in range(10):
        submitted = await customer.submit(f"cancelled-{number}", image_id)
        held = await customer.tokens()
        answer = await customer.batcher.CancelJob(key(customer, f"cancelled-{number}"))
        if answer.job.state == batcher_pb2.JOB_STATE_CANCELLED and not answer.job.batch_id:
            break
        await customer.settled(f"cancelled-{number}")
    else:
        pytest.fail("no cancel ever came before its cycle")

    again = await customer.batcher.CancelJob(key(customer, submitted.job.job_id))
    (job,) = await customer.settled(submitted.job.job_id)

    assert held[1] == 1
    assert (answer.replayed, again.replayed) == (False, True)
    assert (job.state, job.failure.code) == (batcher_pb2.JOB_STATE_CANCELLED, "cancelled")
    assert (job.settlement.state, job.settlement.charged) == (SETTLED, 0)
    assert await customer.tokens() == (held[0], 0)


async def test_a_job_that_has_ended_cannot_be_cancelled(customer):
    """The refusal says how it ended, and the charge stays."""
    image_id = await customer.upload(painted((250, 250, 250)))
    await customer.submit("ended", image_id, lane=batcher_pb2.LANE_INSTANT)
    await customer.settled("ended")

    code, reason, metadata, _ = await refused(customer.batcher.CancelJob(key(customer, "ended")))

    assert (code, reason) == ("FAILED_PRECONDITION", "JOB_ENDED")
    assert metadata == {"job_id": "ended", "state": "SUCCEEDED"}
    assert await customer.tokens() == (WELCOME_BONUS - 5, 0)


async def test_many_jobs_in_one_call_share_batches_and_each_is_answered(stack, customer):
    """A refused item does not touch its neighbours, and the provider is asked once for each accepted one."""
    image_id = await customer.upload(painted((120, 60, 20)))
    lines_before = sum(batch["lines"] for batch in books(stack)["batches"])
    orders = [customer.order(f"many-{number}", image_id) for number in range(8)]
    orders.insert(4, customer.order("bad", image_id, prompt=""))

    answer = await customer.batcher.SubmitJobs(batcher_pb2.SubmitJobsRequest(items=orders))
    jobs = await customer.settled(*(f"many-{number}" for number in range(8)))

    refusals = [place for place, result in enumerate(answer.results) if result.HasField("refusal")]
    assert refusals == [4]
    assert answer.results[4].refusal.metadata["field"] == "items[4].prompt"
    assert {job.state for job in jobs} == {SUCCEEDED}
    assert await customer.tokens() == (WELCOME_BONUS - 8, 0)
    assert sum(batch["lines"] for batch in books(stack)["batches"]) == lines_before + 8


def key(customer: Customer, job_id: str) -> batcher_pb2.CancelJobRequest:
    """Names a job to cancel."""
    return batcher_pb2.CancelJobRequest(account_id=customer.account_id, job_id=job_id)


FORGERIES: dict[str, Callable[[Evidence], object]] = {
    "a token from nowhere": lambda e: e.wallet["accounts"][0].update(balance=e.wallet["accounts"][0]["balance"] + 1),
    "a hold that nobody made": lambda e: e.wallet["accounts"][0].update(held=1),
    "a lost reservation": lambda e: e.wallet["reservations"].pop(),
    "a commit in the table alone": lambda e: _reservation_of_a_success(e).update(committed=0, released=1),
    "a changed row of the journal": lambda e: e.wallet["journal"][-1].update(actor="mallory"),
    "a row cut off the journal": lambda e: e.batcher["journal"].pop(),
    "a job without its settlement": lambda e: e.batcher["settlements"].pop(),
    "a settlement that waits": lambda e: e.batcher["settlements"][0].update(state="PENDING"),
    "a batch bought twice": lambda e: e.books["batches"].append(dict(e.books["batches"][0])),
    "a batch of strangers": lambda e: e.books["batches"].append(
        {"id": "x", "lines": 1, "metadata": {"batch_id": "x", "intent_id": "x"}}
    ),
    "a line too many": lambda e: e.books["batches"][0].update(lines=99),
}


def _reservation_of_a_success(evidence: Evidence) -> dict[str, object]:
    uid = next(row["uid"] for row in evidence.batcher["jobs"] if row["state"] == "SUCCEEDED" and row["price"] == 1)
    return next(row for row in evidence.wallet["reservations"] if row["reservation_id"] == uid)


async def test_the_auditor_itself_finds_every_forgery(stack, customer):
    """What these tests trust to find a lost token, finds one."""
    await customer.submit("audited", await customer.upload(painted((1, 2, 3))))
    await customer.settled("audited")
    evidence = await gather(stack)
    assert list(problems(evidence)) == []

    blind = [name for name in FORGERIES if not list(problems(_forged(evidence, FORGERIES[name])))]

    assert blind == []


def _forged(evidence: Evidence, forge: Callable[[Evidence], object]) -> Evidence:
    forged = copy.deepcopy(evidence)
    forge(forged)
    return forged
