"""Faults of the provider at random: whatever they were, each job ends once, and at the end all books agree.

A storm strikes every kind of call, the batches on their way and the lines of both lanes; what it draws depends on its
seed alone. A seed that fails prints the command that plays it again.
"""

import pytest

from punchcard.batcher.v1 import batcher_pb2
from punchcard.wallet.v1 import wallet_pb2
from sandbox.openai_twin.batch_worker import Pace
from tests.batchers import FINAL, until
from tests.provider_stage import COLOURS, SETTLED, stage_in

RATE = 0.25
STRIKES = 12
GRANTED = 40
SEEDS = [*range(1, 3), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 44))]
# Little patience, so that what was put off while it stormed is soon over.
SETTINGS = {
    "retry_seconds_max": 0.5,
    "breaker_seconds_max": 0.5,
    "openai_timeout_seconds": 2.0,
    "openai_transfer_timeout_seconds": 2.0,
    "instant_timeout_seconds": 1.0,
    "reconcile_seconds": 0.5,
    "give_up_tries": 6,
    "give_up_hours": 0,
}


async def play(stage, seed):
    """Submits jobs of both lanes into a storm, ends it when it has struck often, and gives the jobs once all ended."""
    instant = {"lane": batcher_pb2.LANE_INSTANT}
    names = [lane + colour for lane in ("", "instant-", "either-") for colour in COLOURS]
    await stage.sandbox.wallet.call("OpenAccount", wallet_pb2.OpenAccountRequest(account_id="alice"))
    grant = wallet_pb2.GrantRequest(account_id="alice", grant_id="for-a-storm", amount=GRANTED)
    await stage.sandbox.wallet.call("Grant", grant)
    stage.storm(seed, RATE)
    async with stage.batcher(2, **SETTINGS):
        await stage.submit(*COLOURS)
        await stage.submit(*COLOURS, again="instant-", **instant)
        await stage.submit(*COLOURS, again="either-", allow_batch_fallback=True, **instant)

        async def enough():
            jobs = [await stage.client.get(name) for name in names]
            return sum(stage.struck().values()) >= STRIKES or all(job.state in FINAL for job in jobs)

        await until(enough)
        stage.mend()
        jobs = await stage.ended(*names)
        await stage.comes_to_agree()
    return jobs


@pytest.mark.parametrize("seed", SEEDS)
async def test_after_a_storm_every_job_has_ended_once_and_all_books_agree(tmp_path, monkeypatch, request, seed):
    async with stage_in(tmp_path, monkeypatch, Pace(image_seconds=0.05)) as stage:
        try:
            jobs = await play(stage, seed)
            balance, held = await stage.sandbox.wallet.balance("alice")
        except BaseException as error:
            error.add_note(f"struck: {dict(stage.struck())}")
            error.add_note(f"play it again: .venv/bin/pytest '{request.node.nodeid}'")
            raise

    assert stage.struck()
    assert {job.settlement.state for job in jobs.values()} == {SETTLED}
    assert (balance, held) == (10 + GRANTED - sum(job.settlement.charged for job in jobs.values()), 0)
