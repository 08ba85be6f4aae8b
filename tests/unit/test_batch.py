"""The state machine of a batch and of its submissions."""

from services.batcher import batch as batches
from services.batcher.batch import Counts, State, Step, Submission, SubmissionState
from services.batcher.job import Failure

OPEN = Submission("b1", 1, "intent-1", "org/project", "file-1", "", SubmissionState.OPEN, 100, 0)


def test_a_submission_without_an_input_file_was_never_bought():
    assert batches.next_step(OPEN._replace(input_file_id=""), "org/project", 60, 500) is Step.ABANDON


def test_a_submission_in_doubt_deletes_its_file_waits_and_only_then_gives_up():
    doubted = OPEN._replace(doubt_time_us=500)

    assert batches.next_step(OPEN, "org/project", 60, 500) is Step.DELETE_INPUT
    assert batches.next_step(doubted, "org/project", 60, 559) is Step.WAIT
    assert batches.next_step(doubted, "org/project", 60, 560) is Step.ABANDON


def test_a_submission_of_another_provider_identity_is_never_bought_again():
    assert batches.next_step(OPEN, "other/project", 60, 10_000) is Step.HOLD


def test_a_batch_comes_back_to_planned_when_nothing_was_bought():
    frozen = batches.freeze(batches.plan("b1", "m", 5, 0), 4, 1)
    back = batches.abandon(frozen, 90, 2)

    assert (frozen.state, frozen.submission, frozen.jobs) == (State.SUBMITTING, 1, 4)
    assert (back.state, back.not_before_us) == (State.PLANNED, 90)
    assert batches.freeze(back, 4, 3).submission == 2


def test_progress_is_told_only_when_it_is_one():
    running = batches.adopt(batches.plan("b1", "m", 5, 0), "batch_1", 1)
    moved = batches.progress(running, "in_progress", Counts(5, 2, 0), 2)

    assert moved is not None
    assert (moved.total, moved.completed) == (5, 2)
    assert batches.progress(moved, "in_progress", Counts(5, 2, 0), 3) is None
    assert batches.progress(running, "validating", Counts(0, 0, 0), 3) is None


def test_absent_and_empty_file_ids_are_the_same():
    ended = batches.end(batches.plan("b1", "m", 5, 0), None, "", 1)

    assert (ended.output_file_id, ended.error_file_id) == ("", "")


def test_a_full_provider_queue_waits_and_other_refusals_fail():
    waits = batches.judge([("other", ""), ("token_limit_exceeded", "Enqueued token limit reached.")])
    fails = batches.judge([("model_not_found", "No such model.")])

    assert waits.wait
    assert (fails.wait, fails.failure) == (False, Failure("model_not_found", "No such model."))
    assert batches.judge([]).failure.code == "provider_error"


def test_missing_lines_are_judged_only_when_the_files_are_whole():
    assert batches.is_complete(Counts(5, 3, 1), 4)
    assert not batches.is_complete(Counts(5, 3, 1), 3)


def test_only_inline_images_weigh_in_a_line():
    assert batches.line_bytes(100, 3_000_000, inline=True) > 4_000_000
    assert batches.line_bytes(100, 3_000_000, inline=False) < 3_000
