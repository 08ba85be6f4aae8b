"""The provider's limits, kept to by a whole batcher: what a model may enqueue, batches an hour, bytes, models."""

import random
from io import BytesIO

import pytest
from PIL import Image

from punchcard.batcher.v1 import batcher_pb2
from tests.batchers import request_of
from tests.provider_stage import QUEUED, SUCCEEDED, all_of, stage_in

ALL = ("red", "green", "blue", "yellow")
MODEL, OTHER = "gpt-4.1-mini", "gpt-4.1-nano"


@pytest.fixture
async def stage(tmp_path, monkeypatch):
    async with stage_in(tmp_path, monkeypatch) as made:
        yield made


async def tokens_of(stage, *job_ids):
    """What each of some jobs is estimated to have."""
    evidence = await stage.evidence()
    return [row["prompt_tokens"] for row in evidence.batcher["jobs"] if row["job_id"] in job_ids]


async def test_a_configured_limit_of_enqueued_tokens_is_kept_to_and_why_a_job_waits_says_so(stage):
    """There is room for one of the first jobs at a time, as the provider works on it; each of the others waits."""
    held = stage.strike("stalls", times=None, parameters={"after_lines": 0, "late_seconds": None})
    async with stage.batcher(100, enqueued_tokens=f"{MODEL}=100") as client:
        await stage.submit(*ALL)

        await stage.has_struck("stalls")
        waiting = [job for colour in ALL if (job := await client.get(colour)).state == QUEUED]
        said = await stage.waits(waiting[0].job_id, "enqueued tokens, 70 of them taken")
        estimates = await tokens_of(stage, *ALL)
        first = stage.lines_bought()
        stage.mend(held)
        jobs = await stage.ended(*ALL)

    bought = [sum(estimates[: batch.total]) for batch in stage.provider.bought()]
    assert said.startswith("provider limit of 100 enqueued tokens, ")
    assert (len(waiting), first) == (3, [1])
    assert max(bought) <= 100
    assert all_of(jobs, SUCCEEDED, 1, 1)
    await stage.audit()


async def test_a_limit_that_a_refusal_names_is_learnt_and_kept_to_after_a_restart(stage):
    """All four jobs at once are too much, said after the create; from then on batches are cut by what was said."""
    limit = 200
    stage.strike("enqueued_limit", parameters={"tokens_max": limit})
    async with stage.batcher(4, attempts_max=1):
        jobs = await stage.answered(*ALL)
    async with stage.batcher(4, attempts_max=1):
        await stage.submit(*ALL, again="again-")
        again = await stage.ended(*(f"again-{colour}" for colour in ALL))

    refused, *others = stage.provider.bought()
    line_tokens = max(await tokens_of(stage, *ALL))
    await stage.audit()
    assert (refused.status, refused.total) == ("failed", 4)
    assert refused.total * line_tokens > limit
    assert all(batch.total * line_tokens <= limit for batch in others)
    assert {job.state for job in (*jobs.values(), *again.values())} == {SUCCEEDED}


async def test_each_batch_has_one_model(stage):
    async with stage.batcher(4):
        await stage.submit("red", "green", model=MODEL)
        await stage.submit("blue", "yellow", model=OTHER)
        jobs = await stage.ended(*ALL)

    bought = {(batch.model, batch.total) for batch in stage.provider.bought()}
    assert bought <= {(MODEL, 1), (MODEL, 2), (OTHER, 1), (OTHER, 2)}
    assert {model for model, _ in bought} == {MODEL, OTHER}
    assert all_of(jobs, SUCCEEDED, 1, 1)
    await stage.audit()


async def test_a_limit_of_one_model_does_not_hold_up_another(stage):
    held = stage.strike("stalls", model=MODEL, times=None, parameters={"after_lines": 0, "late_seconds": None})
    async with stage.batcher(100, enqueued_tokens=f"{MODEL}=100"):
        await stage.submit("red", "green", "blue", model=MODEL)
        await stage.submit("yellow", model=OTHER)
        other = await stage.ended("yellow")
        stage.mend(held)
        jobs = await stage.ended("red", "green", "blue")

    assert all_of(jobs | other, SUCCEEDED, 1, 1)
    await stage.audit()


async def test_batches_grow_where_the_hours_creates_are_scarce(stage):
    """Four jobs would be four batches of one, and the hour has two creates left."""
    async with stage.batcher(1, batches_per_hour_max=2, cycle_seconds=1.0):
        jobs = await stage.answered(*ALL)

    assert len(stage.provider.bought()) == 2
    assert sum(stage.lines_bought()) == 4
    assert all_of(jobs, SUCCEEDED, 1, 1)
    await stage.audit()


async def test_when_the_hours_creates_are_spent_jobs_wait_and_say_until_when(stage):
    async with stage.batcher(1, batches_per_hour_max=1):
        await stage.answered("red")
        await stage.submit("green")
        said = await stage.waits("green", "provider limit until ")
    assert stage.lines_bought() == [1]
    assert len(said) == len("provider limit until 12:20:00Z")
    async with stage.batcher(1):
        jobs = await stage.ended("green")

    assert all_of(jobs, SUCCEEDED, 1, 1)
    await stage.audit()


async def test_batches_are_cut_by_the_bytes_of_their_lines(stage):
    """Each of the four lines has about 460,000 bytes, so that a file of a million holds two."""
    async with stage.batcher(4, batch_bytes_max=1_000_000) as client:
        noise = Image.frombytes("RGB", (340, 340), random.Random(4).randbytes(340 * 340 * 3))
        out = BytesIO()
        noise.save(out, "PNG")
        image_id = (await client.upload(out.getvalue())).image.image_id
        items = [request_of(colour, image_id) for colour in ALL]
        await client.call("SubmitJobs", batcher_pb2.SubmitJobsRequest(items=items))
        jobs = await stage.ended(*ALL)

    assert stage.lines_bought() == [2, 2]
    assert {(job.state, job.attempt) for job in jobs.values()} == {(SUCCEEDED, 1)}
    await stage.audit()
