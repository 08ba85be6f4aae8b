"""What a waiting job is said to wait for."""

from services.batcher import batch as batches
from services.batcher.allowance import Room
from services.batcher.job import Lane, State
from services.batcher.progress import Outlook, waiting_for
from tests.unit.test_job import job

NOON_US = 1_795_521_600_000_000  # 2026-11-24 12:00:00 UTC
NEXT_US = NOON_US + 300_000_000


def test_each_state_has_its_sentence():
    planned = batches.plan("b1", "m", 6, NOON_US)
    running = batches.adopt(planned, "batch_1", NOON_US)._replace(provider_state="in_progress", completed=2, failed=1)
    cases = [
        (job(State.ADMITTING), None, "the wallet to answer"),
        (job(State.QUEUED), None, "next cycle at 12:05:00Z"),
        (job(State.QUEUED, not_before_us=NOON_US + 60_000_000), None, "provider limit until 12:01:00Z"),
        (job(State.BATCHED), planned, "its batch to be submitted"),
        (
            job(State.BATCHED),
            planned._replace(not_before_us=NEXT_US),
            "the provider to take its batch, again at 12:05:00Z",
        ),
        (job(State.BATCHED), batches.freeze(planned, 6, NOON_US), "the provider to take its batch"),
        (job(State.RUNNING), running, "the provider (in_progress, 3 of 6 done)"),
        (
            job(State.RUNNING),
            running._replace(not_before_us=NEXT_US),
            "the provider (in_progress, 3 of 6 done), asked again at 12:05:00Z",
        ),
        (job(State.RUNNING), batches.end(running, "f", "", NOON_US), "its batch's answers to be stored"),
        (
            job(State.RUNNING),
            running._replace(problem="the provider has lost it"),
            "held for an operator: the provider has lost it",
        ),
        (job(State.RUNNING, lane=Lane.INSTANT), None, "the provider's answer (try 1)"),
        (job(State.SUCCEEDED), running, ""),
    ]
    for waiting, batch, sentence in cases:
        assert waiting_for(waiting, batch, Outlook(NEXT_US), NOON_US) == sentence


def test_what_holds_up_more_than_one_job_is_said_of_each_with_its_end_where_that_is_known():
    planned = batches.plan("b1", "m", 6, NOON_US)
    held = planned._replace(problem="purse empty (insufficient_quota)")
    down = Outlook(NEXT_US, down_until_us=NOON_US + 60_000_000)
    spent = Outlook(NEXT_US, creates_until_us=NOON_US + 120_000_000)
    paused = Outlook(NEXT_US, rooms={"m": Room(None, 0, NOON_US + 180_000_000)})
    full = Outlook(NEXT_US, rooms={"m": Room(2_000, 1_700)}, wanted={"m": 101})
    enough = full._replace(wanted={"m": 100})
    limit = "provider limit of 2,000 enqueued tokens, 1,700 of them taken; next cycle at 12:05:00Z"
    cases = [
        (State.BATCHED, planned, down, "provider is down, asked again at 12:01:00Z"),
        (State.RUNNING, None, down, "provider is down, asked again at 12:01:00Z"),
        (State.BATCHED, held, down, "held for an operator: purse empty (insufficient_quota)"),
        (State.QUEUED, None, down, "next cycle at 12:05:00Z"),
        (State.QUEUED, None, spent, "provider limit until 12:02:00Z"),
        (State.QUEUED, None, paused, "provider limit until 12:03:00Z"),
        (State.QUEUED, None, full, limit),
        (State.QUEUED, None, enough, "next cycle at 12:05:00Z"),
    ]
    for state, batch, outlook, sentence in cases:
        assert waiting_for(job(state, model="m"), batch, outlook, NOON_US) == sentence
