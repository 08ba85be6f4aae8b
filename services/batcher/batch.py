"""A batch's life and what its provider's words mean, as pure functions.

    PLANNED ── freeze ──► SUBMITTING ── adopt ──► RUNNING ── end ──► INGESTING ── close ──► CLOSED
       ▲  │                   │
       │  └─► CLOSED          └── abandon: nothing was bought ──► PLANNED
       └──────────────────────────┘

Membership is frozen from SUBMITTING on: the input file can be built again, byte for byte, from the rows. Each try to
buy the batch is a submission, numbered from 1; a batch that is too large is cut in two while it is PLANNED:

    OPEN ──► ADOPTED     the provider has the batch, under the id that is written down
      └────► ABANDONED   it has not, and never will have: the input file is gone and the list has been read

A submission in doubt is closed by `next_step`, in this order: look for it; delete its input file, so that a late
create names a file that is gone; let `settle_us` pass; look again; adopt what was found or abandon. Without an input
file no create can have happened. What the provider may do, and why the order is this, is in facts of its API: a
create carries no idempotency key, and a lost answer may hide a paid batch.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from services.batcher.job import Change, Failure, Job
from services.batcher.outcome import PROVIDER_ERROR, Action, Place, Row, Signal, classify

BASE64_GROWTH = 4 / 3
LINE_OVERHEAD_BYTES = 1024
URL_BYTES = 1024
FOREIGN_PROBLEM = "the batch was submitted under another provider identity than the configured one"
LOOK_BACK_US = 3600 * 1_000_000


class State(StrEnum):
    """Where a batch stands."""

    PLANNED = "PLANNED"
    SUBMITTING = "SUBMITTING"
    RUNNING = "RUNNING"
    INGESTING = "INGESTING"
    CLOSED = "CLOSED"


class SubmissionState(StrEnum):
    """Where a try to buy a batch stands."""

    OPEN = "OPEN"
    ADOPTED = "ADOPTED"
    ABANDONED = "ABANDONED"


class Counts(NamedTuple):
    """How far the provider is, in lines."""

    total: int
    completed: int
    failed: int


class Batch(NamedTuple):
    """Jobs of one model that are bought together. `problem` is why it stands still and needs a person, or empty.

    tokens: of all its prompts, estimated. failures: of its present step, in a row, the first at `failing_since_us`.
    """

    batch_id: str
    model: str
    state: State
    jobs: int
    create_time_us: int
    update_time_us: int
    not_before_us: int
    submission: int
    provider_batch_id: str
    provider_state: str
    total: int
    completed: int
    failed: int
    output_file_id: str
    error_file_id: str
    cancel_sent: bool
    problem: str
    last_revision: int
    tokens: int
    failures: int
    failing_since_us: int


class Submission(NamedTuple):
    """One try to buy a batch. doubt_time_us: since when its input file is gone, or it was found in the provider's
    list; 0 while neither was needed.
    """

    batch_id: str
    attempt: int
    intent_id: str
    provider_identity: str
    input_file_id: str
    provider_batch_id: str
    state: SubmissionState
    create_time_us: int
    doubt_time_us: int


class Step(StrEnum):
    """What brings a submission in doubt nearer to its end."""

    HOLD = "HOLD"
    ABANDON = "ABANDON"
    DELETE_INPUT = "DELETE_INPUT"
    WAIT = "WAIT"


class BatchError(NamedTuple):
    """Why a batch failed. line: of its input file, from 1; 0 where the error names none."""

    code: str
    message: str
    line: int


class Verdict(NamedTuple):
    """What becomes of the jobs of a batch that the provider refused after its create.

    bad_lines: the lines of the input file that alone are to blame, from 1; where there are some, the row and the
    failure are theirs, and the other lines are asked again.
    """

    row: Row
    failure: Failure
    bad_lines: frozenset[int]


ENDED = frozenset({"completed", "expired", "cancelled", "failed"})
"""The provider's words for a batch that will not change any more."""


def plan(batch_id: str, model: str, jobs: int, now_us: int, tokens: int = 0) -> Batch:
    """A new batch."""
    return Batch(
        batch_id=batch_id,
        model=model,
        state=State.PLANNED,
        jobs=jobs,
        create_time_us=now_us,
        update_time_us=now_us,
        not_before_us=0,
        submission=0,
        provider_batch_id="",
        provider_state="",
        total=jobs,
        completed=0,
        failed=0,
        output_file_id="",
        error_file_id="",
        cancel_sent=False,
        problem="",
        last_revision=0,
        tokens=tokens,
        failures=0,
        failing_since_us=0,
    )


def grow(batch: Batch, jobs: int, tokens: int, now_us: int) -> Batch:
    """More jobs come into a planned batch."""
    return batch._replace(
        jobs=batch.jobs + jobs, total=batch.total + jobs, tokens=batch.tokens + tokens, update_time_us=now_us
    )


def freeze(batch: Batch, jobs: int, now_us: int) -> Batch:
    """Opens the next submission with the members that are left."""
    return batch._replace(
        state=State.SUBMITTING,
        jobs=jobs,
        total=jobs,
        submission=batch.submission + 1,
        update_time_us=now_us,
    )


def adopt(batch: Batch, provider_batch_id: str, now_us: int) -> Batch:
    """The provider has the batch."""
    return steady(batch)._replace(
        state=State.RUNNING,
        provider_batch_id=provider_batch_id,
        provider_state="validating",
        update_time_us=now_us,
    )


def abandon(batch: Batch, not_before_us: int, now_us: int, problem: str = "") -> Batch:
    """The provider has not got the batch: it is tried again, not before the given time."""
    return stumble(batch, not_before_us, problem, now_us)._replace(state=State.PLANNED)


def stumble(batch: Batch, not_before_us: int, problem: str, now_us: int) -> Batch:
    """The batch's step failed: it is done again, not before the given time. problem: what needs a person, or empty."""
    return batch._replace(
        not_before_us=not_before_us,
        update_time_us=now_us,
        problem=problem,
        failures=batch.failures + 1,
        failing_since_us=batch.failing_since_us or now_us,
    )


def problem_of(row: Row, code: str, over: bool) -> str:
    """What a person has to look at after a failure, in a few words; empty where nobody has to.

    over: the tries have reached their bound.
    """
    action = row.afterwards if over and row.afterwards else row.action
    return f"{row.name.replace('_', ' ')} ({code})" if action is Action.HOLD_AND_ALERT else ""


def steady(batch: Batch) -> Batch:
    """The batch's step has succeeded: what failed before it is over."""
    return batch._replace(not_before_us=0, problem="", failures=0, failing_since_us=0)


def recover(batch: Batch, jobs: int, submission: int, provider_batch_id: str, now_us: int) -> Batch:
    """A purchase was found that our database had forgotten."""
    frozen = batch._replace(jobs=jobs, total=jobs, submission=submission)
    return adopt(frozen, provider_batch_id, now_us)


def split(batch: Batch, batch_id: str, moved: int, moved_tokens: int, now_us: int) -> tuple[Batch, Batch]:
    """Cuts a planned batch in two: what is left of it, and a new one of the moved jobs. Both go at once."""
    jobs = batch.jobs - moved
    left = steady(batch)._replace(jobs=jobs, total=jobs, tokens=batch.tokens - moved_tokens, update_time_us=now_us)
    return left, plan(batch_id, batch.model, moved, now_us, moved_tokens)


def move(job: Job, batch_id: str, now_us: int) -> Change:
    """Another batch takes the job's attempt, as nothing was bought for it yet."""
    return Change("job.batched", job, job._replace(batch_id=batch_id, update_time_us=now_us))


def progress(batch: Batch, provider_state: str, counts: Counts, now_us: int) -> Batch | None:
    """What the provider says now, or None when it says nothing new. Its total is 0 until it has read the file."""
    total = counts.total or batch.total
    if (provider_state, total, counts.completed, counts.failed) == (
        batch.provider_state,
        batch.total,
        batch.completed,
        batch.failed,
    ):
        return None
    return batch._replace(
        provider_state=provider_state,
        total=total,
        completed=counts.completed,
        failed=counts.failed,
        update_time_us=now_us,
    )


def end(batch: Batch, output_file_id: str | None, error_file_id: str | None, now_us: int) -> Batch:
    """The provider is done. A file's id may come as null or as an empty string: both mean that there is none."""
    return steady(batch)._replace(
        state=State.INGESTING,
        output_file_id=output_file_id or "",
        error_file_id=error_file_id or "",
        update_time_us=now_us,
    )


def close(batch: Batch, now_us: int) -> Batch:
    """Every member has its outcome."""
    return batch._replace(state=State.CLOSED, update_time_us=now_us, problem="")


def next_step(submission: Submission, provider_identity: str, settle_us: int, now_us: int) -> Step:
    """What to do with an open submission whose batch was just looked for and not found."""
    if not submission.input_file_id:
        return Step.ABANDON
    if submission.provider_identity != provider_identity:
        return Step.HOLD
    if not submission.doubt_time_us:
        return Step.DELETE_INPUT
    return Step.ABANDON if now_us >= submission.doubt_time_us + settle_us else Step.WAIT


def judge(errors: Sequence[BatchError]) -> Verdict:
    """What the errors of a batch that `failed` mean for its jobs. What heals by waiting or cutting comes first."""
    said = errors or [BatchError(PROVIDER_ERROR, "The provider refused the batch.", 0)]
    judged = [(classify(Signal(Place.FAILED, error.code, None, error.message)), error) for error in said]
    row, error = min(judged, key=lambda pair: _URGENCY.index(pair[0].action))
    alone = row.action is Action.FAIL_JOB and all(error.line for _, error in judged)
    return Verdict(row, Failure(error.code, error.message), frozenset(e.line for e in said) if alone else frozenset())


_URGENCY = (Action.WAIT_UNTIL, Action.SPLIT_BATCH, Action.RETRY_LINE, Action.FAIL_JOB)


def is_complete(counts: Counts, lines: int) -> bool:
    """Whether the files hold as many lines as the provider counted, so that what is missing is missing for good."""
    return lines >= counts.completed + counts.failed


def line_bytes(request_bytes: int, image_bytes: int, inline: bool) -> int:
    """How large a job's line of the input file becomes at most. The image travels in it as base64, or as an address."""
    image = int(image_bytes * BASE64_GROWTH) + 4 if inline else URL_BYTES
    return LINE_OVERHEAD_BYTES + request_bytes + image


def is_ours(metadata: Mapping[str, str], input_file_id: str, submission: Submission) -> bool:
    """Whether a batch of the provider's list came from this submission: by its tag, or by the file that is its own."""
    return metadata.get("intent_id") == submission.intent_id or input_file_id == submission.input_file_id != ""


def metadata(batch_id: str, intent_id: str, deployment_id: str = "") -> Mapping[str, str]:
    """The tags that a batch carries at the provider: the only thing by which a lost create can be found again."""
    tags = {"intent_id": intent_id, "batch_id": batch_id}
    return tags | {"deployment_id": deployment_id} if deployment_id else tags
