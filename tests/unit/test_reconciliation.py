"""What is done where the books disagree: each row of the table in ARCHITECTURE.md, and what holds for all of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.batcher import batch as batches
from services.batcher.batch import State, Submission, SubmissionState
from services.batcher.outcome import row
from services.batcher.reconciliation import (
    FINE,
    HOLD_SLACK_US,
    UNKNOWN_PROBLEM,
    Act,
    Finding,
    HoldVerdict,
    Listed,
    Verdict,
    judge_batch,
    judge_hold,
    obstacle_of,
)

TAGS = {"intent_id": "intent-1", "batch_id": "b1", "deployment_id": "home"}
RUNNING = Listed("batch_1", "in_progress", TAGS)
OPEN = Submission("b1", 1, "intent-1", "org", "file-1", "", SubmissionState.OPEN, 100, 0)
ADOPTED = OPEN._replace(state=SubmissionState.ADOPTED, provider_batch_id="batch_1")
ABANDONED = OPEN._replace(state=SubmissionState.ABANDONED)
PLANNED = batches.plan("b1", "m", 1, 0)._replace(submission=1)
SUBMITTING = PLANNED._replace(state=State.SUBMITTING)
BOUGHT = batches.adopt(SUBMITTING, "batch_1", 1)
ADOPT = Verdict(Act.ADOPT, Finding.FORGOTTEN_BATCH)

STATUSES = ["validating", "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled"]
LIVE = {"validating", "in_progress", "finalizing"}

# Only one that was adopted names a batch of the provider: the table has a CHECK for it.
submissions = (
    st.none()
    | st.builds(
        OPEN._replace,
        state=st.sampled_from([SubmissionState.OPEN, SubmissionState.ABANDONED]),
        input_file_id=st.sampled_from(["", "file-1"]),
        attempt=st.integers(1, 3),
    )
    | st.builds(
        ADOPTED._replace,
        input_file_id=st.sampled_from(["", "file-1"]),
        provider_batch_id=st.sampled_from(["batch_1", "batch_2"]),
        attempt=st.integers(1, 3),
    )
)
known_batches = st.none() | st.builds(
    PLANNED._replace, state=st.sampled_from(State), submission=st.integers(1, 3), provider_batch_id=st.just("batch_1")
)
listed_batches = st.builds(
    Listed,
    st.sampled_from(["batch_1", "batch_2"]),
    st.sampled_from(STATUSES),
    st.fixed_dictionaries({}, optional={name: st.sampled_from([value, "other"]) for name, value in TAGS.items()}),
)


@pytest.mark.parametrize(
    ("listed", "submission", "batch", "verdict"),
    [
        (RUNNING, ADOPTED, BOUGHT, FINE),
        (RUNNING._replace(provider_batch_id="batch_2"), ADOPTED, BOUGHT, Verdict(Act.CANCEL, Finding.SECOND_BATCH)),
        (RUNNING, ABANDONED, BOUGHT, Verdict(Act.CANCEL, Finding.LATE_BATCH)),
        (RUNNING, ABANDONED, SUBMITTING._replace(submission=2), Verdict(Act.CANCEL, Finding.LATE_BATCH)),
        (RUNNING, ABANDONED, PLANNED, ADOPT),
        (RUNNING, OPEN, SUBMITTING, FINE),
        (RUNNING, OPEN._replace(input_file_id=""), SUBMITTING, ADOPT),
        (RUNNING, None, PLANNED, ADOPT),
        (RUNNING, None, SUBMITTING, ADOPT),
        (RUNNING, None, BOUGHT, Verdict(Act.CANCEL, Finding.SECOND_BATCH)),
        (RUNNING, None, None, Verdict(Act.REBUILD, Finding.FORGOTTEN_BATCH)),
        (RUNNING._replace(metadata=TAGS | {"deployment_id": "other"}), None, None, FINE),
        (RUNNING._replace(metadata={}), None, None, FINE),
    ],
)
def test_each_batch_of_the_providers_list_has_its_row(listed, submission, batch, verdict):
    assert judge_batch(listed, "home", submission, batch) == verdict


@given(listed_batches, submissions, known_batches)
def test_only_a_live_batch_of_our_deployment_that_we_know_to_be_bought_otherwise_is_ended(listed, submission, batch):
    act, finding = judge_batch(listed, "home", submission, batch)
    if act is Act.CANCEL:
        assert listed.status in LIVE
        assert listed.metadata["deployment_id"] == "home"
        assert submission is not None or batch is not None
        assert submission is None or submission.provider_batch_id != listed.provider_batch_id or batch is not None
        assert finding in {Finding.SECOND_BATCH, Finding.LATE_BATCH}
    assert (act is Act.NOTHING) == (finding is None)


@given(listed_batches, submissions, known_batches)
def test_nothing_is_adopted_into_a_batch_that_is_bought(listed, submission, batch):
    act, _ = judge_batch(listed, "home", submission, batch)
    if act in {Act.ADOPT, Act.REBUILD}:
        assert batch is None or batch.state in {State.PLANNED, State.SUBMITTING}
        assert listed.status != "failed"
        assert submission is None or submission.state is not SubmissionState.ADOPTED


@pytest.mark.parametrize(
    ("state", "expire_time_us", "replayed", "verdict"),
    [
        ("HELD", 10**9, True, HoldVerdict(None, None)),
        ("HELD", 10**9 - HOLD_SLACK_US - 1, True, HoldVerdict(Finding.SHORTER_HOLD, 10**9 - HOLD_SLACK_US - 1)),
        ("HELD", 2 * 10**9, True, HoldVerdict(None, None)),
        ("HELD", 2 * 10**9, False, HoldVerdict(Finding.FORGOTTEN_HOLD, 2 * 10**9)),
        ("COMMITTED", 0, True, HoldVerdict(Finding.PAID_HOLD, None)),
        ("RELEASED", 0, True, HoldVerdict(Finding.LOST_HOLD, 0)),
        ("EXPIRED", 0, True, HoldVerdict(Finding.LOST_HOLD, 0)),
        ("", 0, True, HoldVerdict(Finding.LOST_HOLD, 0)),
    ],
)
def test_each_answer_about_a_hold_has_its_row(state, expire_time_us, replayed, verdict):
    assert judge_hold(state, expire_time_us, replayed, 10**9) == verdict


def test_a_hold_that_is_known_to_be_gone_is_told_once():
    assert judge_hold("EXPIRED", 0, True, 0) == HoldVerdict(None, None)


def test_a_batch_that_the_provider_does_not_know_or_of_another_identity_stops_buying():
    unknown = batches.problem_of(row("batch_unknown"), "not_found", over=False)

    assert unknown.startswith(UNKNOWN_PROBLEM)
    assert obstacle_of("batch_1", unknown, "org", "org") == (
        "the provider does not know the batch batch_1 that it was paid for"
    )
    assert obstacle_of("batch_1", "", "org", "other").startswith("a batch was bought under another provider identity")
    assert obstacle_of("batch_1", "reading refused (x)", "org", "org") == ""
