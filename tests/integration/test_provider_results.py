"""Each failure that users of the Batch API met with results, played by the twin to a whole batcher, by its number.

Those of uploads, creates and the following of batches are in `test_provider_outcomes`, and so is the list.
"""

import asyncio
import json

import pytest

from punchcard.batcher.v1 import batcher_pb2
from tests.provider_stage import FAILED, RUNNING, SUCCEEDED, all_of, is_own_answer, stage_in, states

ALL = ("red", "green", "blue")


@pytest.fixture
async def stage(tmp_path, monkeypatch):
    async with stage_in(tmp_path, monkeypatch) as made:
        yield made


async def test_06_all_lines_failed_and_no_output_file_fails_each_job_and_releases_its_tokens(stage):
    stage.strike("all_lines_failed", parameters={"line": "line_bad_request"})
    async with stage.batcher():
        jobs = await stage.answered(*ALL)

    (bought,) = stage.provider.bought()
    assert (bought.status, bought.output_file_id, bought.failed) == ("completed", None, 3)
    assert all_of(jobs, FAILED, 1, 0)
    assert {job.failure.code for job in jobs.values()} == {"invalid_value"}
    assert await stage.sandbox.wallet.balance("alice") == (10, 0)
    await stage.audit()


async def test_07_a_mixed_result_is_read_from_both_files_and_each_job_has_its_own_end(stage):
    stage.strike("line_bad_request", operation="batch.line", nth=2)
    async with stage.batcher():
        jobs = await stage.answered(*ALL)

    assert sorted(states(jobs).values()) == [(SUCCEEDED, 1, 1), (SUCCEEDED, 1, 1), (FAILED, 1, 0)]
    assert is_own_answer(jobs)
    assert await stage.sandbox.wallet.balance("alice") == (8, 0)
    await stage.audit()


async def test_07_a_line_that_is_counted_and_in_no_file_is_given_up_in_the_end_and_costs_nothing(stage):
    """The provider was paid for it, so that it is not bought again: its file is read until the patience is over."""
    stage.strike("result_missing")
    async with stage.batcher(give_up_tries=3, give_up_hours=0):
        jobs = await stage.answered(*ALL)

    assert sorted(states(jobs).values()) == [(SUCCEEDED, 1, 1), (SUCCEEDED, 1, 1), (FAILED, 1, 0)]
    assert "result_lost" in {job.failure.code for job in jobs.values()}
    assert stage.lines_bought() == [3]
    await stage.audit()


async def test_08_a_file_id_that_is_an_empty_string_means_no_file_and_is_never_asked_for(stage):
    stage.strike("file_id_empty")
    async with stage.batcher():
        jobs = await stage.answered(*ALL)

    assert stage.provider.bought()[0].error_file_id == ""
    assert not [call for call in stage.provider.requests if "/files//" in call]
    assert all_of(jobs, SUCCEEDED, 1, 1)
    await stage.audit()


async def test_09_what_an_expired_batch_has_answered_counts_and_the_rest_is_asked_again_at_no_attempt(stage):
    await ends_early(stage, "ends_expired", "expired")


async def test_10_what_a_cancelled_batch_has_answered_counts_and_the_rest_is_asked_again_at_no_attempt(stage):
    """Somebody else has cancelled it, such as an operator at the provider's console."""
    await ends_early(stage, "ends_cancelled", "cancelled")


async def ends_early(stage, fault, status):
    stage.strike(fault)
    async with stage.batcher(attempts_max=1):
        jobs = await stage.answered(*ALL)

    assert [(batch.status, batch.completed) for batch in stage.provider.bought()] == [(status, 1), ("completed", 2)]
    assert sorted(states(jobs).values()) == [(SUCCEEDED, 1, 1), (SUCCEEDED, 2, 1), (SUCCEEDED, 2, 1)]
    assert is_own_answer(jobs)
    assert await stage.sandbox.wallet.balance("alice") == (7, 0)
    await stage.audit()


@pytest.mark.parametrize("attempts_max", [1, 2])
async def test_11_an_opaque_error_of_an_expired_batch_costs_an_attempt_and_is_tried_again(stage, attempts_max):
    stage.strike("ends_expired_opaquely")
    async with stage.batcher(attempts_max=attempts_max):
        jobs = await stage.answered(*ALL)

    rest = (SUCCEEDED, 2, 1) if attempts_max == 2 else (FAILED, 1, 0)
    assert sorted(states(jobs).values()) == [(SUCCEEDED, 1, 1), rest, rest]
    assert {job.failure.code for job in jobs.values()} <= {"", "server_error"}
    await stage.audit()


@pytest.mark.parametrize("other_answer", [False, True])
async def test_12_a_custom_id_that_comes_twice_gives_its_job_one_answer_its_own(stage, other_answer):
    stage.strike("custom_id_duplicated", parameters={"other_answer": other_answer})
    async with stage.batcher():
        jobs = await stage.answered(*ALL)

    assert all_of(jobs, SUCCEEDED, 1, 1)
    await stage.audit()


async def test_13_lines_in_another_order_and_of_nobody_reach_the_jobs_that_they_name_alone(stage):
    """The line whose custom_id nobody asked for was somebody's: this job is asked again, and no other gets it."""
    stage.strike("results_reversed")
    stage.strike("custom_id_unknown")
    async with stage.batcher():
        jobs = await stage.answered(*ALL)

    assert sorted(states(jobs).values()) == [(SUCCEEDED, 1, 1), (SUCCEEDED, 1, 1), (SUCCEEDED, 2, 1)]
    assert is_own_answer(jobs)
    assert stage.lines_bought() == [3, 1]
    await stage.audit()


@pytest.mark.parametrize("timeout", [False, True])
async def test_21_an_image_that_could_not_be_downloaded_is_tried_again_though_it_says_bad_request(stage, timeout):
    stage.strike("line_image_unreachable", operation="batch.line", times=2, parameters={"timeout": timeout})
    async with stage.batcher():
        jobs = await stage.answered(*ALL)

    assert sorted(states(jobs).values()) == [(SUCCEEDED, 1, 1), (SUCCEEDED, 2, 1), (SUCCEEDED, 2, 1)]
    await stage.audit()


async def test_22_a_part_of_the_wrong_shape_fails_its_job_at_once_and_ours_are_of_the_endpoints_shape(stage):
    stage.strike("line_bad_request", operation="batch.line")
    bodies = []

    async def look(request, handle):
        response = await handle()
        if request.method == "POST" and request.path == "/v1/batches":
            path = stage.provider.twin._folder.content_path(json.loads(response.body)["input_file_id"])
            bodies.extend(json.loads(line)["body"] for line in path.read_text().splitlines())
        return response

    stage.provider.fault = look
    async with stage.batcher():
        jobs = await stage.answered(*ALL)

    parts = [part for body in bodies for part in body["messages"][-1]["content"]]
    assert [part["type"] for part in parts] == ["text", "image_url"] * 3
    assert {part["image_url"]["url"][:11] for part in parts if part["type"] == "image_url"} == {"data:image/"}
    assert sorted(states(jobs).values()) == [(SUCCEEDED, 1, 1), (SUCCEEDED, 1, 1), (FAILED, 1, 0)]
    assert stage.lines_bought() == [3]
    await stage.audit()


async def test_24_a_listed_model_that_answers_404_on_each_line_fails_the_jobs_and_is_not_tried_again(stage):
    stage.strike("line_model_not_found", operation="batch.line", times=None)
    async with stage.batcher():
        jobs = await stage.answered(*ALL)

    assert all_of(jobs, FAILED, 1, 0)
    assert {job.failure.code for job in jobs.values()} == {"model_not_found"}
    assert stage.lines_bought() == [3]
    assert await stage.sandbox.wallet.balance("alice") == (10, 0)
    await stage.audit()


async def test_26_however_often_a_batch_is_polled_each_job_is_charged_once(stage):
    """Its end is seen, unseen and seen again, and its files are read more than once."""
    stage.strike("short_download", operation="files.content", times=2, parameters={"whole_lines": True})
    stage.strike("stale_status", nth=3, times=3)
    async with stage.batcher():
        jobs = await stage.answered(*ALL)

    evidence = await stage.audit()
    commits = [row["body"] for row in evidence.wallet["journal"] if row["kind"] == "commit"]
    assert all_of(jobs, SUCCEEDED, 1, 1)
    assert len(commits) == 3
    assert await stage.sandbox.wallet.balance("alice") == (7, 0)


async def test_30_a_result_that_answers_502_again_and_again_is_fetched_until_it_comes(stage):
    stage.strike("bad_gateway", operation="files.content", times=6)
    async with stage.batcher(attempts_max=1, submit_retry_seconds=0.02, retry_seconds_max=0.1):
        jobs = await stage.answered(*ALL)

    assert all_of(jobs, SUCCEEDED, 1, 1)
    assert stage.lines_bought() == [3]
    await stage.audit()


async def test_31_a_line_that_met_a_rate_limit_or_an_empty_purse_is_asked_again(stage):
    stage.strike("line_rate_limited", operation="batch.line")
    async with stage.batcher():
        jobs = await stage.answered(*ALL)

    assert sorted(states(jobs).values()) == [(SUCCEEDED, 1, 1), (SUCCEEDED, 1, 1), (SUCCEEDED, 2, 1)]
    await stage.audit()


async def test_32_answers_that_are_on_their_way_when_the_batcher_stops_are_fetched_by_the_next(stage):
    reached, release = asyncio.Event(), asyncio.Event()

    async def stuck(request, handle):
        if request.path.endswith("/content") and not release.is_set():
            reached.set()
            await release.wait()
        return await handle()

    stage.provider.fault = stuck
    async with stage.batcher(openai_transfer_timeout_seconds=1.0):
        await stage.submit(*ALL)
        async with asyncio.timeout(30):
            await reached.wait()
    release.set()
    async with stage.batcher():
        jobs = await stage.ended(*ALL)

    assert all_of(jobs, SUCCEEDED, 1, 1)
    assert stage.lines_bought() == [3]
    await stage.audit()


async def test_33_counts_below_zero_and_backwards_are_shown_to_nobody_and_end_nothing(stage):
    held = stage.strike("stalls", parameters={"after_lines": 2, "late_seconds": None})
    stage.strike("counts_wrong", nth=2, times=3)
    stage.strike("stale_status", nth=3, times=2)
    async with stage.batcher():
        await stage.submit(*ALL)
        watch = asyncio.create_task(stage.client.watch("red"))
        await stage.waits("red", "2 of 3 done")
        await stage.has_struck("counts_wrong", 3)
        await stage.has_struck("stale_status", 2)
        stage.mend(held)
        jobs = await stage.ended(*ALL)

    progress = [each.progress for each in await watch if each.WhichOneof("event") == "progress"]
    assert progress
    assert all(0 <= each.completed <= each.total == 3 and each.failed == 0 for each in progress)
    assert all_of(jobs, SUCCEEDED, 1, 1)
    await stage.audit()


async def test_33_a_job_that_is_tried_again_never_looks_failed_meanwhile(stage):
    stage.strike("all_lines_failed")
    async with stage.batcher():
        await stage.submit(*ALL)
        told = await stage.client.watch("red")
        jobs = await stage.ended(*ALL)

    seen = [each.change.state for each in told if each.WhichOneof("event") == "change"]
    assert batcher_pb2.JOB_STATE_FAILED not in seen
    assert RUNNING in seen
    assert all_of(jobs, SUCCEEDED, 2, 1)
    await stage.audit()


async def test_34_a_line_that_was_cut_is_asked_again_alone_and_its_neighbours_keep_their_answers(stage):
    stage.strike("garbage_line")
    async with stage.batcher():
        jobs = await stage.answered(*ALL)

    assert sorted(states(jobs).values()) == [(SUCCEEDED, 1, 1), (SUCCEEDED, 1, 1), (SUCCEEDED, 2, 1)]
    assert stage.lines_bought() == [3, 1]
    await stage.audit()


@pytest.mark.parametrize("fault", ["truncated_download", "short_download"])
async def test_34_a_file_that_broke_off_is_fetched_again_and_nothing_is_bought_again(stage, fault):
    stage.strike(fault, operation="files.content")
    async with stage.batcher(attempts_max=1):
        jobs = await stage.answered(*ALL)

    assert all_of(jobs, SUCCEEDED, 1, 1)
    assert stage.lines_bought() == [3]
    await stage.audit()
