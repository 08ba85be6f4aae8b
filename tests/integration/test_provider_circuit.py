"""A provider that is down: after a few unanswered calls it is left alone, jobs say so, and its return is noticed."""

import pytest
from prometheus_client import REGISTRY

from punchcard.batcher.v1 import batcher_pb2
from services.batcher.backoff import Patience
from services.batcher.breaker import Limits, State
from services.batcher.provider_circuit import ProviderCircuit
from tests.provider_stage import RUNNING, SUCCEEDED, all_of, stage_in

ALL = ("red", "green", "blue")
LIMITS = Limits(3, 1_000_000, Patience(10_000_000, 40_000_000, 0, 0))


@pytest.fixture
async def stage(tmp_path, monkeypatch):
    async with stage_in(tmp_path, monkeypatch) as made:
        yield made


def openings():
    return REGISTRY.get_sample_value("batcher_provider_circuit_openings_total") or 0


async def test_a_provider_that_is_down_is_left_alone_and_jobs_say_until_when(stage):
    """Nothing is asked while the circuit is open, for an hour here, and the jobs keep their tokens and their place."""
    before = openings()
    stage.strike("unavailable", operation="files.create", times=None, parameters={"retry_after_seconds": 0})
    async with stage.batcher(breaker_failures=3, breaker_seconds=3600.0, breaker_seconds_max=3600.0):
        await stage.submit(*ALL)
        said = await stage.waits("red", "provider is down, asked again at ")
        asked = len(stage.provider.requests)
        job = await stage.client.get("green")
        # Loops go on meanwhile: many steps of each are over when the queue takes and shows another job.
        await stage.submit("yellow")
        await stage.waits("yellow", "provider is down, asked again at ")

        assert stage.calls("POST /v1/files") == 3
        assert len(stage.provider.requests) == asked
        assert said == job.waiting_for
    assert openings() == before + 1
    stage.mend()
    async with stage.batcher():
        jobs = await stage.ended(*ALL)

    assert all_of(jobs, SUCCEEDED, 1, 1)
    await stage.audit()


async def test_a_provider_that_goes_down_while_a_batch_runs_is_said_of_its_jobs_and_its_return_is_noticed(stage):
    """The end of the pause brings one call, and its success all the others."""
    held = stage.strike("stalls", parameters={"after_lines": 0, "late_seconds": None})
    async with stage.batcher(poll_seconds=0.05, breaker_failures=2, breaker_seconds=0.4, submit_retry_seconds=0.01):
        await stage.submit(*ALL)
        await stage.reaches("red", RUNNING)
        down = stage.strike("bad_gateway", operation="batches.retrieve", times=None)
        await stage.waits("red", "provider is down, asked again at ")
        stage.mend(down)
        stage.mend(held)
        jobs = await stage.ended(*ALL)

    assert all_of(jobs, SUCCEEDED, 1, 1)
    assert stage.lines_bought() == [3]
    await stage.audit()


async def test_instant_jobs_are_asked_while_the_batch_api_is_down(stage):
    """They have a deadline of their own and fail fast; a slow or broken batch API says nothing about them."""
    stage.strike("unavailable", operation="files.create", times=None, parameters={"retry_after_seconds": 0})
    async with stage.batcher(breaker_failures=2, breaker_seconds=3600.0, breaker_seconds_max=3600.0):
        await stage.submit(*ALL)
        await stage.waits("red", "provider is down")
        jobs = await stage.answered("yellow", lane=batcher_pb2.LANE_INSTANT)

    assert all_of(jobs, SUCCEEDED, 1, 5)


async def test_an_answer_of_whatever_kind_keeps_the_circuit_closed(stage):
    before = openings()
    stage.strike("rate_limited", operation="files.create", times=8, parameters={"retry_after_seconds": 0})
    async with stage.batcher(breaker_failures=2, submit_retry_seconds=0.01, retry_seconds_max=0.02):
        jobs = await stage.answered(*ALL)

    assert openings() == before
    assert all_of(jobs, SUCCEEDED, 1, 1)
    await stage.audit()


async def test_the_circuit_opens_probes_doubles_its_pause_and_closes_and_wakes_whoever_waits():
    now_us, woken = 0, []
    circuit = ProviderCircuit(LIMITS, lambda: now_us, lambda: 1.0, lambda: woken.append(now_us))
    for _ in range(3):
        assert circuit.wait_seconds() == 0
        circuit.tell(answered=False)
    assert (circuit.state(), circuit.open_until_us()) == (State.OPEN, 10_000_000)
    assert circuit.wait_seconds() == 10.0

    now_us = 10_000_000
    assert (circuit.state(), circuit.open_until_us()) == (State.HALF_OPEN, 0)
    assert circuit.wait_seconds() == 0
    assert circuit.wait_seconds() > 0, "one probe at a time"
    circuit.tell(answered=False)
    assert circuit.open_until_us() == 30_000_000

    now_us = 30_000_000
    assert circuit.wait_seconds() == 0
    circuit.tell(answered=True)
    circuit.close()
    assert (circuit.state(), woken) == (State.CLOSED, [30_000_000])
