"""The table of outcomes: every outcome has a row, every row is reached, and every failure that was met stands in it."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.batcher import outcome
from services.batcher.outcome import TABLE, Action, Place, Signal, classify

DOUBT, DROP, FAIL, HOLD = Action.DOUBT, Action.DROP, Action.FAIL_JOB, Action.HOLD_AND_ALERT
LINE, BATCH, SPLIT, WAIT = Action.RETRY_LINE, Action.RETRY_BATCH, Action.SPLIT_BATCH, Action.WAIT_UNTIL

MET = [
    (1, "the create's answer is lost by a timeout", Signal(Place.CREATE, outcome.NO_ANSWER), DOUBT),
    (1, "the create's answer is lost by a 502", Signal(Place.CREATE, "http_502", 502), DOUBT),
    (2, "a retried create would be a second batch", Signal(Place.CREATE, outcome.CONNECTION_LOST), DOUBT),
    (3, "the enqueued limit is told after the create", Signal(Place.FAILED, "token_limit_exceeded"), WAIT),
    (4, "the enqueued limit is released late", Signal(Place.FAILED, "x", None, "Enqueued token limit reached"), WAIT),
    (5, "enqueued requests have a limit too", Signal(Place.CREATE, "x", 400, "Enqueued request limit"), WAIT),
    (6, "completed without an output file", Signal(Place.ENDED, outcome.NO_FILE), DROP),
    (6, "no line at all for a job", Signal(Place.ENDED, "completed"), LINE),
    (7, "a job's line is in neither file", Signal(Place.ENDED, "completed"), LINE),
    (8, "a file's id is empty", Signal(Place.ENDED, outcome.NO_FILE), DROP),
    (8, "a result file answers 404", Signal(Place.DOWNLOAD, "http_404", 404), BATCH),
    (9, "expired with a part done", Signal(Place.ENDED, "expired"), LINE),
    (9, "a line of an expired batch", Signal(Place.LINE, "batch_expired"), LINE),
    (10, "cancelled with a part done", Signal(Place.ENDED, "cancelled"), LINE),
    (10, "a line of a cancelled batch", Signal(Place.LINE, "batch_cancelled"), LINE),
    (11, "expired with an opaque error in a line", Signal(Place.LINE, "server_error", 500), LINE),
    (12, "a custom_id comes twice", Signal(Place.LINE, outcome.DUPLICATE_LINE), DROP),
    (13, "a line names nobody", Signal(Place.LINE, outcome.FOREIGN_LINE), DROP),
    (14, "the file is not visible after its upload", Signal(Place.CREATE, "http_404", 404), DOUBT),
    (14, "the same as a no", Signal(Place.CREATE, "x", 400, "Cannot find file f, or it does not have access"), BATCH),
    (14, "the same after the create", Signal(Place.FAILED, "x", None, "Cannot find file f"), LINE),
    (15, "a 413 below the documented limit", Signal(Place.UPLOAD, "http_413", 413), SPLIT),
    (15, "the file is too large", Signal(Place.UPLOAD, "x", 400, "File is too large."), SPLIT),
    (15, "one line is too large", Signal(Place.UPLOAD, outcome.ALONE_TOO_LARGE, 413), FAIL),
    (16, "too many lines", Signal(Place.FAILED, "too_many_tasks"), SPLIT),
    (17, "an upload times out", Signal(Place.UPLOAD, outcome.NO_ANSWER), BATCH),
    (18, "an upload hangs or breaks", Signal(Place.UPLOAD, outcome.CONNECTION_LOST), BATCH),
    (19, "a malformed line is told after the create", Signal(Place.FAILED, "invalid_json_line"), FAIL),
    (19, "its neighbours are not to blame", Signal(Place.FAILED, outcome.BESIDE_BAD_LINE), LINE),
    (20, "2,000 batches an hour", Signal(Place.CREATE, "rate_limit_exceeded", 429), WAIT),
    (
        21,
        "an image is downloaded too slowly",
        Signal(Place.LINE, "invalid_image_url", 400, "Timeout downloading"),
        LINE,
    ),
    (22, "the image part is of the other endpoint", Signal(Place.LINE, "invalid_type", 400), FAIL),
    (23, "a line's url is not the batch's", Signal(Place.FAILED, "invalid_url"), FAIL),
    (24, "a listed model answers 404", Signal(Place.LINE, "model_not_found", 404), FAIL),
    (25, "a long finalizing", Signal(Place.RETRIEVE, outcome.UNFINISHED), WAIT),
    (25, "files named before they are whole", Signal(Place.ENDED, outcome.SHORT_FILES), BATCH),
    (27, "a cancel is refused", Signal(Place.CANCEL, "x", 400), DROP),
    (29, "a batch of another project answers 404", Signal(Place.RETRIEVE, "http_404", 404), HOLD),
    (29, "the key was changed", Signal(Place.RETRIEVE, "invalid_api_key", 401), HOLD),
    (30, "a download answers 502 again and again", Signal(Place.DOWNLOAD, "http_502", 502), BATCH),
    (31, "insufficient_quota is a 429", Signal(Place.CREATE, "insufficient_quota", 429), HOLD),
    (31, "our money ends while the batch runs", Signal(Place.LINE, "insufficient_quota", 429), WAIT),
    (32, "the files end before the counts", Signal(Place.ENDED, outcome.SHORT_FILES), BATCH),
    (33, "counts go below zero", Signal(Place.RETRIEVE, outcome.BAD_COUNT), DROP),
    (33, "the files never match the counts", Signal(Place.ENDED, outcome.SHORT_FILES), BATCH),
]
"""Failures that users of the API met, by number, with what they look like here and what is done."""

OURS = {
    26: "spend is charged once per poll: a settlement is one row a job",
    28: "a killed process leaves work in progress for ever: every step is found again by its row",
    34: "a restart does everything again: results are joined by custom_id, which holds the attempt",
    35: "elapsed time is taken for death: only the provider's word ends a batch",
}
"""Failures of programs and not of the provider, each with what keeps us from it."""


@pytest.mark.parametrize(
    ("number", "signal", "action"),
    [pytest.param(n, s, a, id=f"{n}: {name}: {a.lower()}") for n, name, s, a in MET],
)
def test_each_failure_that_was_met_has_its_row(number, signal, action):
    row = classify(signal)

    assert row.action is action
    assert number in row.sources


def test_each_of_the_failures_is_the_providers_or_ours():
    theirs = {number for number, *_ in MET}

    assert theirs | set(OURS) == set(range(1, 36))
    assert theirs & set(OURS) == set()
    assert {number for row in TABLE for number in row.sources} == theirs


def test_each_row_is_reached():
    codes = {"", *(code for row in TABLE for code in row.codes)}
    statuses = {None, 418, *(status for row in TABLE for status in row.statuses)}
    words = {"", *(word for row in TABLE for word in row.words)}
    signals = itertools.starmap(Signal, itertools.product(Place, codes, statuses, words))

    assert {row.name for row in TABLE} == {classify(signal).name for signal in signals}


def test_no_two_rows_have_one_name_and_each_says_why():
    assert len({row.name for row in TABLE}) == len(TABLE)
    assert all(row.why.endswith(".") for row in TABLE)
    assert all(outcome.row(row.name) is row for row in TABLE)


@given(st.sampled_from(Place), st.text(max_size=20), st.none() | st.integers(100, 599), st.text(max_size=40))
def test_every_outcome_has_a_row(place, code, status, message):
    assert place in classify(Signal(place, code, status, message)).places


@given(st.text(max_size=20), st.none() | st.integers(500, 599), st.text(max_size=40))
def test_what_a_create_did_is_never_guessed(code, status, message):
    """A create that ended without an answer, or with a 5xx, is bought again by no row but one that knows better."""
    row = classify(Signal(Place.CREATE, outcome.NO_ANSWER if status is None else code, status, message))

    assert row.action is DOUBT or row.name in {
        "purse_empty",
        "queue_full",
        "too_large",
        "too_large_alone",
        "never_sent",
    }


def test_only_what_costs_nothing_to_ask_is_asked_for_ever():
    """A step that is done again has a bound, after which something definite happens."""
    assert all(row.afterwards for row in TABLE if row.action is BATCH)
    assert {row.afterwards for row in TABLE} == {None, HOLD, FAIL}
