"""The state machine of a batch and of its submissions."""

from services.batcher import batch as batches
from services.batcher.batch import BatchError, Counts, State, Step, Submission, SubmissionState
from services.batcher.job import Failure
from services.batcher.outcome import Action, row

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


def test_what_heals_by_waiting_comes_before_what_does_not():
    said = [BatchError("other", "", 0), BatchError("token_limit_exceeded", "Enqueued token limit reached.", 0)]
    refused = batches.judge([BatchError("model_not_found", "No such model.", 0)])

    assert batches.judge(said).row.action is Action.WAIT_UNTIL
    assert (refused.row.action, refused.failure) == (Action.FAIL_JOB, Failure("model_not_found", "No such model."))
    assert batches.judge([]).failure.code == "provider_error"


def test_bad_lines_are_to_blame_only_where_every_error_names_one():
    bad = [BatchError("invalid_json_line", "line 2: No JSON.", 2), BatchError("invalid_url", "line 5: No.", 5)]

    assert batches.judge(bad).bad_lines == {2, 5}
    assert batches.judge([*bad, BatchError("odd", "No.", 0)]).bad_lines == frozenset()
    assert batches.judge([BatchError("server_error", "line 2: Oh.", 2)]).bad_lines == frozenset()


def test_failures_are_counted_from_the_first_and_forgotten_at_a_success():
    running = batches.adopt(batches.plan("b1", "m", 5, 0), "batch_1", 1)
    twice = batches.stumble(batches.stumble(running, 90, "", 10), 99, "batch unknown (http_404)", 20)

    assert (twice.failures, twice.failing_since_us, twice.not_before_us) == (2, 10, 99)
    assert twice.state is State.RUNNING
    assert batches.steady(twice) == running._replace(update_time_us=20)


def test_a_person_is_told_at_once_or_at_the_bound():
    unknown, broke = row("batch_unknown"), row("download_broke")

    assert batches.problem_of(unknown, "http_404", over=False) == "batch unknown (http_404)"
    assert batches.problem_of(broke, "http_502", over=False) == ""
    assert batches.problem_of(broke, "http_502", over=True) == "download broke (http_502)"
    assert batches.problem_of(row("results_gone"), "http_404", over=True) == ""


def test_a_batch_that_is_cut_loses_nothing():
    whole = batches.abandon(batches.freeze(batches.plan("b1", "m", 5, 0, 500), 5, 1), 90, 2)
    left, new = batches.split(whole, "b2", 2, 150, 3)

    assert (left.jobs, left.tokens, left.not_before_us, left.submission) == (3, 350, 0, 1)
    assert (new.jobs, new.tokens, new.batch_id, new.submission) == (2, 150, "b2", 0)


def test_missing_lines_are_judged_only_when_the_files_are_whole():
    assert batches.is_complete(Counts(5, 3, 1), 4)
    assert not batches.is_complete(Counts(5, 3, 1), 3)


def test_only_inline_images_weigh_in_a_line():
    assert batches.line_bytes(100, 3_000_000, inline=True) > 4_000_000
    assert batches.line_bytes(100, 3_000_000, inline=False) < 3_000
