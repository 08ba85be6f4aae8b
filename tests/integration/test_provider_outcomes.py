"""Each failure that users of the Batch API met, played by the twin to a whole batcher: what it comes to, by its number.

Here stand those of uploads, creates and the following of batches; those of results are in `test_provider_results`. The
numbers are those of `sandbox.openai_twin.known_failures`.
"""

import json
import re
import signal
from pathlib import Path

import pytest

from punchcard.batcher.v1 import batcher_pb2
from sandbox.openai_twin.known_failures import KNOWN_FAILURES
from tests.batchers import until
from tests.provider_stage import CANCELLED, FAILED, RUNNING, SUCCEEDED, all_of, stage_in, states

ALL = ("red", "green", "blue")
UPLOAD, CREATE = "POST /v1/files", "POST /v1/batches"
TWO_LEASES = {"lease_seconds": 1.2, "submit_timeout_seconds": 1.0}


@pytest.fixture
async def stage(tmp_path, monkeypatch):
    async with stage_in(tmp_path, monkeypatch) as made:
        yield made


def test_each_of_the_known_failures_has_a_test_under_its_number():
    here = Path(__file__).parent
    text = "".join((here / name).read_text() for name in ("test_provider_outcomes.py", "test_provider_results.py"))

    assert {int(number) for number in re.findall(r"^async def test_(\d\d)_", text, re.MULTILINE)} == set(KNOWN_FAILURES)


async def test_01_a_crash_between_create_and_record_is_found_again_and_buys_nothing_twice(stage):
    """The provider has the batch, the process is killed before it hears so, and the next one finds it by its tag."""
    held = stage.strike("late_reply", operation="batches.create", parameters={"late_seconds": None})
    async with stage.process(**TWO_LEASES) as process:
        await stage.submit(*ALL)

        async def bought():
            return bool(stage.provider.bought())

        await until(bought)
        process.send_signal(signal.SIGKILL)
        process.wait()
    stage.mend(held)
    async with stage.batcher(**TWO_LEASES):
        jobs = await stage.ended(*ALL)

    assert all_of(jobs, SUCCEEDED, 1, 1)
    assert (stage.calls(CREATE), stage.lines_bought()) == (1, [3])
    await stage.audit()


async def test_02_a_create_whose_answer_is_lost_is_looked_for_and_never_just_tried_again(stage):
    stage.strike("reply_lost_after", operation="batches.create")
    async with stage.batcher():
        jobs = await stage.answered(*ALL)

    assert all_of(jobs, SUCCEEDED, 1, 1)
    assert (stage.calls(CREATE), stage.lines_bought()) == (1, [3])
    await stage.audit()


async def test_03_a_token_limit_told_after_the_create_makes_jobs_wait_costs_no_attempt_and_leaves_no_file(stage):
    stage.strike("token_limit_exceeded")
    async with stage.batcher(attempts_max=1):
        jobs = await stage.answered(*ALL)

        async def no_input_is_left():
            return not any(file.purpose == "batch" for file in stage.provider.twin._folder.files.values())

        await until(no_input_is_left)

    assert all_of(jobs, SUCCEEDED, 2, 1)
    assert [batch.status for batch in stage.provider.bought()] == ["failed", "completed"]
    await stage.audit()


async def test_04_a_limit_that_stays_full_for_long_makes_jobs_wait_for_longer_and_longer(stage):
    """Refused three times in a row with nothing in progress: the jobs keep their tokens and say how long they wait."""
    stage.strike("token_limit_exceeded", times=3)
    async with stage.batcher(attempts_max=1, submit_retry_seconds=0.2):
        await stage.submit(*ALL)
        await stage.waits("red", "provider limit until ")
        held = await stage.sandbox.wallet.balance("alice")
        jobs = await stage.ended(*ALL)

    assert held == (10, 3)
    assert {(job.state, job.settlement.charged) for job in jobs.values()} == {(SUCCEEDED, 1)}
    assert [batch.status for batch in stage.provider.bought()].count("failed") == 3
    await stage.audit()


async def test_05_a_limit_of_enqueued_requests_makes_jobs_wait_as_one_of_tokens_does(stage):
    said = "Enqueued request limit reached for gpt-4.1-mini: 1,000,000 enqueued requests."
    more = {"code": "request_limit_exceeded", "message": said, "lines": []}
    stage.strike("validation_failed", parameters=more)
    async with stage.batcher(attempts_max=1):
        jobs = await stage.answered(*ALL)

    assert {job.state for job in jobs.values()} == {SUCCEEDED}
    await stage.audit()


async def test_14_a_file_that_is_not_visible_yet_is_doubt_and_then_another_try(stage):
    stage.strike("file_not_found_yet", operation="batches.create")
    stage.strike("input_file_lost")
    async with stage.batcher():
        jobs = await stage.answered(*ALL)

    assert all_of(jobs, SUCCEEDED, 2, 1)
    assert [batch.status for batch in stage.provider.bought()] == ["failed", "completed"]
    await stage.audit()


async def test_15_an_upload_that_is_too_large_is_cut_until_it_fits(stage):
    """413 far below the documented limit: four jobs are sent as two and two, and then one by one."""
    stage.strike("payload_too_large", times=None, parameters={"bytes_max": 1_200})
    async with stage.batcher(4, attempts_max=1):
        jobs = await stage.answered(*ALL, "yellow")

    assert all_of(jobs, SUCCEEDED, 1, 1)
    assert stage.lines_bought() == [1, 1, 1, 1]
    await stage.audit()


async def test_15_a_job_that_is_too_large_alone_fails_and_its_tokens_come_back(stage):
    stage.strike("payload_too_large", times=None)
    async with stage.batcher(1):
        jobs = await stage.answered("red")

    assert all_of(jobs, FAILED, 1, 0)
    assert stage.lines_bought() == []
    assert await stage.sandbox.wallet.balance("alice") == (10, 0)
    await stage.audit()


async def test_16_too_many_lines_told_misleadingly_cut_the_batch_in_two(stage):
    said = "The batch input file has a number of requests in it that can not be."
    stage.strike("validation_failed", parameters={"code": "invalid_file", "message": said, "lines": []})
    async with stage.batcher(attempts_max=1):
        jobs = await stage.answered(*ALL)

    assert all_of(jobs, SUCCEEDED, 2, 1)
    assert sorted(stage.lines_bought()) == [1, 2, 3]
    await stage.audit()


async def test_17_uploads_that_break_again_and_again_are_repeated_and_buy_nothing_meanwhile(stage):
    stage.strike("reply_lost_before", operation="files.create", times=6)
    async with stage.batcher(submit_retry_seconds=0.02, retry_seconds_max=0.1, give_up_hours=0, give_up_tries=100):
        jobs = await stage.answered(*ALL)

    assert all_of(jobs, SUCCEEDED, 1, 1)
    assert (stage.calls(CREATE), stage.lines_bought()) == (1, [3])
    await stage.audit()


async def test_18_an_upload_that_hangs_is_given_up_in_time_and_made_anew(stage):
    stage.strike("late_act", operation="files.create", parameters={"late_seconds": None})
    async with stage.batcher(openai_transfer_timeout_seconds=0.3):
        jobs = await stage.answered(*ALL)
        stage.mend()

    assert all_of(jobs, SUCCEEDED, 1, 1)
    assert (stage.calls(UPLOAD), stage.lines_bought()) == (2, [3])
    await stage.audit()


async def test_19_a_line_that_is_refused_after_the_create_fails_its_job_alone(stage):
    stage.strike("validation_failed", parameters={"lines": [2]})
    async with stage.batcher(attempts_max=1):
        jobs = await stage.answered(*ALL)

    # Lines stand in the order of our ids.
    first, second, third = (job.job_id for job in sorted(jobs.values(), key=lambda job: job.uid))
    assert states(jobs) == {first: (SUCCEEDED, 2, 1), second: (FAILED, 1, 0), third: (SUCCEEDED, 2, 1)}
    assert jobs[second].failure.code == "invalid_json_line"
    assert await stage.sandbox.wallet.balance("alice") == (8, 0)
    await stage.audit()


@pytest.mark.parametrize("said", ["creates_per_hour", "server_error"])
async def test_20_the_hours_creates_being_used_up_is_waited_for_even_where_a_gateway_says_500(stage, said):
    parameters = {"creates_max": 0, "retry_after_seconds": 0} if said == "creates_per_hour" else {}
    stage.strike(said, operation="batches.create", parameters=parameters)
    async with stage.batcher():
        jobs = await stage.answered(*ALL)

    assert all_of(jobs, SUCCEEDED, 1, 1)
    assert (stage.calls(CREATE), stage.lines_bought()) == (2, [3])
    await stage.audit()


async def test_23_every_line_names_the_endpoint_of_its_batch_and_a_refusal_of_that_fails_the_jobs(stage):
    stage.strike("validation_failed", parameters={"code": "invalid_url", "lines": [1, 2, 3]})
    inputs = []

    async def look(request, handle):
        response = await handle()
        if request.method == "POST" and request.path == "/v1/batches":
            shown = json.loads(response.body)
            path = stage.provider.twin._folder.content_path(shown["input_file_id"])
            inputs.extend((shown["endpoint"], json.loads(line)["url"]) for line in path.read_text().splitlines())
        return response

    stage.provider.fault = look
    async with stage.batcher():
        jobs = await stage.answered(*ALL)

    assert inputs == [("/v1/chat/completions", "/v1/chat/completions")] * 3
    assert all_of(jobs, FAILED, 1, 0)
    assert stage.lines_bought() == [3]
    await stage.audit()


async def test_25_a_batch_that_finalizes_for_long_is_waited_for_and_no_file_is_asked_for(stage):
    stage.strike("slow_finalizing", parameters={"late_seconds": None})
    async with stage.batcher():
        await stage.submit(*ALL)
        said = await stage.waits("red", "finalizing, 3 of 3 done")
        asked = [call for call in stage.provider.requests if call.endswith("/content")]
        stage.mend()
        jobs = await stage.ended(*ALL)

    assert said == "the provider (finalizing, 3 of 3 done)"
    assert asked == []
    assert all_of(jobs, SUCCEEDED, 1, 1)
    await stage.audit()


async def test_27_a_cancel_that_gets_lost_is_sent_again_until_the_batch_is_cancelled(stage):
    stage.strike("stalls", parameters={"after_lines": 0, "late_seconds": None})
    stage.strike("reply_lost_before", operation="batches.cancel")
    async with stage.batcher():
        await stage.submit(*ALL)
        await stage.waits("red", "in_progress")
        for colour in ALL:
            request = batcher_pb2.CancelJobRequest(account_id="alice", job_id=colour)
            await stage.client.call("CancelJob", request)
        jobs = await stage.ended(*ALL)

    assert all_of(jobs, CANCELLED, 1, 0)
    assert await stage.sandbox.wallet.balance("alice") == (10, 0)
    await stage.audit()


@pytest.mark.parametrize("how", ["cancel_refused", "cancel_ignored"])
async def test_27_a_cancel_that_is_refused_or_ignored_leaves_the_answers_which_count(stage, how):
    held = stage.strike("stalls", parameters={"after_lines": 1, "late_seconds": None})
    stage.strike(how, times=None)
    async with stage.batcher():
        await stage.submit(*ALL)
        await stage.waits("red", "in_progress")
        for colour in ALL:
            request = batcher_pb2.CancelJobRequest(account_id="alice", job_id=colour)
            await stage.client.call("CancelJob", request)

        async def sent():
            return any(call.endswith("/cancel") for call in stage.provider.requests)

        await until(sent)
        stage.mend(held)
        jobs = await stage.ended(*ALL)

    assert all_of(jobs, SUCCEEDED, 1, 1)
    await stage.audit()


async def test_28_a_batcher_that_is_killed_takes_up_the_batch_in_progress_and_no_job_runs_for_ever(stage):
    held = stage.strike("stalls", parameters={"after_lines": 1, "late_seconds": None})
    async with stage.process(**TWO_LEASES) as process:
        await stage.submit(*ALL)
        await stage.reaches("red", RUNNING)
        process.send_signal(signal.SIGKILL)
        process.wait()
    async with stage.batcher(**TWO_LEASES):
        waiting = await stage.client.get("red")
        stage.mend(held)
        jobs = await stage.ended(*ALL)

    assert (waiting.state, waiting.attempt) == (RUNNING, 1)
    assert all_of(jobs, SUCCEEDED, 1, 1)
    assert stage.lines_bought() == [3]
    await stage.audit()


async def test_29_a_batch_that_another_key_hides_is_held_for_an_operator_and_never_bought_again(stage):
    slow = stage.strike("slow_finalizing", parameters={"late_seconds": None})
    hidden = stage.strike("other_key", operation="batches.retrieve", times=None)
    async with stage.batcher():
        await stage.submit(*ALL)
        said = await stage.waits("red", "operator")
        stage.mend(hidden)
        stage.mend(slow)
        jobs = await stage.ended(*ALL)

    assert said.startswith("held for an operator: batch unknown")
    assert all_of(jobs, SUCCEEDED, 1, 1)
    assert stage.lines_bought() == [3]
    await stage.audit()


async def test_31_an_empty_purse_is_no_rate_limit_and_is_told_to_an_operator(stage):
    """It is a 429 as well. Nothing is bought, nothing fails, and once there is money the jobs go on by themselves."""
    empty = stage.strike("insufficient_quota", operation="batches.create", times=None)
    async with stage.batcher(attempts_max=1):
        await stage.submit(*ALL)
        said = await stage.waits("red", "operator")
        stage.mend(empty)
        jobs = await stage.ended(*ALL)

    assert said == "held for an operator: purse empty (insufficient_quota)"
    assert all_of(jobs, SUCCEEDED, 1, 1)
    assert stage.lines_bought() == [3]
    await stage.audit()


async def test_35_a_batch_that_runs_for_longer_than_every_lease_is_not_taken_for_dead(stage):
    """Only the provider's word ends a batch: it is asked through many lease times, and the work is done once."""
    held = stage.strike("stalls", parameters={"after_lines": 1, "late_seconds": None})
    async with stage.batcher(lease_seconds=0.2, submit_timeout_seconds=0.15, poll_seconds=0.05):
        await stage.submit(*ALL)
        await stage.reaches("red", RUNNING)

        async def asked_often():
            return sum(call.startswith("GET /v1/batches/") for call in stage.provider.requests) >= 20

        await until(asked_often)
        waiting = await stage.client.get("red")
        stage.mend(held)
        jobs = await stage.ended(*ALL)

    assert (waiting.state, waiting.attempt) == (RUNNING, 1)
    assert all_of(jobs, SUCCEEDED, 1, 1)
    assert stage.lines_bought() == [3]
    await stage.audit()
