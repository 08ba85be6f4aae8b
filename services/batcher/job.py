"""A job's life, as pure functions: a job and what happened to it in, the change out. Nothing here reads a clock.

    ADMITTING ── hold ──► QUEUED ── plan ──► BATCHED ── start ──► RUNNING ──► SUCCEEDED | FAILED | EXPIRED | CANCELLED
        │                  ▲ │                  │                    │
        ├─► REJECTED       │ ├─► CANCELLED      └── lose, attempt + 1 ┘ back to QUEUED
        ├─► CANCELLED      │ ├─► EXPIRED
        ├─► EXPIRED        │ └─► FAILED (its hold was lost)
        └── hold, instant: RUNNING (attempt 1) ── lose, attempt + 1 ──► RUNNING ──► the same ends
                                                └─ lose, attempt + 1 ──► QUEUED on the lane BATCH, where that is allowed

- `hold`: the wallet says HELD. Nothing that costs money is done before.
- `plan`: a batch takes the job. Until the batch is frozen a cancel ends the job at once; after it, a cancel is a wish.
- `start`: the provider has accepted the batch.
- `recover`: a batch was found that our database had forgotten, being restored from a backup.
- `lose`: an attempt ended without an answer. Whether the job tries again is decided here and nowhere else. An instant
  job whose tries are used up through no fault of its own falls back to the lane BATCH, if it was submitted so: from
  then on its price is the one that was pinned for this, and the wallet is to be told that it holds too much.
- Every end writes one settlement: COMMIT of the price for a success that is charged, RELEASE for everything else. The
  last five states are final: no function leaves them, but for the settlement's own two steps.

A function answers None where the change no longer applies (another replica was faster, an old attempt answers late):
the caller drops it and counts it. All times are microseconds since the epoch, UTC.
"""

from enum import StrEnum
from typing import NamedTuple


class State(StrEnum):
    """Where a job stands, as in the proto."""

    ADMITTING = "ADMITTING"
    QUEUED = "QUEUED"
    BATCHED = "BATCHED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    EXPIRED = "EXPIRED"
    CANCELLED = "CANCELLED"
    REJECTED = "REJECTED"


DEAD = frozenset({State.FAILED, State.EXPIRED})
FINAL = frozenset({State.SUCCEEDED, State.FAILED, State.EXPIRED, State.CANCELLED, State.REJECTED})


class Lane(StrEnum):
    """How fast a job is done."""

    BATCH = "BATCH"
    INSTANT = "INSTANT"


class Action(StrEnum):
    """What a settlement asks of the wallet."""

    COMMIT = "COMMIT"
    RELEASE = "RELEASE"


class SettlementState(StrEnum):
    """Where a settlement stands."""

    PENDING = "PENDING"
    SETTLED = "SETTLED"
    REFUSED = "REFUSED"


class Settlement(NamedTuple):
    """What an ended job owes the wallet. amount: 0 for a release."""

    action: Action
    amount: int
    state: SettlementState

    @property
    def charged(self) -> int:
        """What the payer pays: nothing once the wallet has refused."""
        return 0 if self.state is SettlementState.REFUSED else self.amount


class Answer(NamedTuple):
    """What the model said. The counts are the provider's tokens."""

    text: str
    finish_reason: str
    input_tokens: int
    output_tokens: int


class Failure(NamedTuple):
    """Why a job, or one attempt of it, has no answer. code is for programs, message for people."""

    code: str
    message: str


class Limits(NamedTuple):
    """How often a job is tried, and which finish reasons of an answer are given away."""

    attempts_max: int
    uncharged_finish_reasons: frozenset[str]


class Job(NamedTuple):
    """The part of a job that its life turns on; the question and the answer stay in the store.

    lane and price are those of now; fallback_price: what the job costs on the lane BATCH, 0 where it may not go there.
    """

    uid: str
    account_id: str
    job_id: str
    payer_account_id: str
    lane: Lane
    model: str
    price: int
    price_version: str
    line_bytes: int
    deadline_us: int
    hold_duration_us: int
    create_time_us: int
    update_time_us: int
    queue_time_us: int
    not_before_us: int
    hold_expire_time_us: int
    state: State
    attempt: int
    batch_id: str
    cancel_requested: bool
    last_revision: int
    fallback_price: int = 0


class Change(NamedTuple):
    """One change of one job: what the journal calls it, the job before and after, and the rows that go with it.

    opened: an attempt of the number `job.attempt` begins. ended: the outcome of the attempt `before.attempt`, or empty.
    lowered: the wallet holds more than the job costs now, and is to be told so.
    """

    kind: str
    before: Job
    job: Job
    opened: bool = False
    ended: str = ""
    answer: Answer | None = None
    failure: Failure | None = None
    settlement: Settlement | None = None
    lowered: bool = False


RELEASE = Settlement(Action.RELEASE, 0, SettlementState.PENDING)
CANCELLED = Failure("cancelled", "The job was cancelled before it had an answer.")
DEADLINE = Failure("deadline", "The job's deadline passed before it had an answer.")
HOLD_LOST = Failure("hold_lost", "The tokens' hold ran out while the job waited, and could not be made longer.")


def uid_of(time_us: int, random_bits: int) -> str:
    """Makes a UUIDv7 (RFC 9562, section 5.7) of a time and 74 random bits: ids sort by the millisecond they were made
    in.
    """
    random_bits &= (1 << 74) - 1
    number = (
        (time_us // 1000) << 80 | 0x7 << 76 | (random_bits >> 62) << 64 | 0b10 << 62 | random_bits & ((1 << 62) - 1)
    )
    digits = f"{number:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def is_final(job: Job) -> bool:
    """Whether the job has ended."""
    return job.state in FINAL


def falls_back(job: Job) -> bool:
    """Whether the job goes to the lane BATCH once its instant tries are used up."""
    return job.lane is Lane.INSTANT and job.fallback_price > 0


def is_frozen(job: Job, batch_frozen: bool) -> bool:
    """Whether the provider may have the job already, so that a cancel can only be a wish."""
    return job.state is State.RUNNING or (job.state is State.BATCHED and batch_frozen)


def accept(job: Job) -> Change:
    """A new job, not known to the wallet yet."""
    return Change("job.accepted", job, job)


def hold(job: Job, hold_expire_time_us: int, now_us: int) -> Change | None:
    """The wallet holds the job's tokens until the given time: it may queue, or run at once."""
    if job.state is not State.ADMITTING:
        return None
    held = job._replace(update_time_us=now_us, hold_expire_time_us=hold_expire_time_us, attempt=1)
    if job.lane is Lane.INSTANT:
        return Change("job.started", job, held._replace(state=State.RUNNING), opened=True)
    return Change("job.queued", job, held._replace(state=State.QUEUED, queue_time_us=now_us))


def refuse(job: Job, failure: Failure, now_us: int) -> Change | None:
    """The wallet refused the tokens for good. The release blocks the id, should a reserve still be on its way."""
    if job.state is not State.ADMITTING:
        return None
    return _end(job, State.REJECTED, "job.rejected", now_us, failure)


def plan(job: Job, batch_id: str, now_us: int) -> Change | None:
    """A batch takes the job."""
    if job.state is not State.QUEUED:
        return None
    return Change(
        "job.batched", job, job._replace(state=State.BATCHED, batch_id=batch_id, update_time_us=now_us), opened=True
    )


def start(job: Job, attempt: int, now_us: int) -> Change | None:
    """The provider has accepted the batch that the job's attempt is in."""
    if job.state is not State.BATCHED or job.attempt != attempt:
        return None
    return Change("job.started", job, job._replace(state=State.RUNNING, update_time_us=now_us))


def succeed(job: Job, attempt: int, answer: Answer, limits: Limits, now_us: int) -> Change | None:
    """The job's attempt has an answer, which counts even after the deadline or a cancel: it was paid for."""
    if not _is_at_work(job, attempt):
        return None
    charged = 0 if answer.finish_reason in limits.uncharged_finish_reasons else job.price
    settlement = Settlement(Action.COMMIT, charged, SettlementState.PENDING) if charged else RELEASE
    ended = job._replace(state=State.SUCCEEDED, update_time_us=now_us)
    return Change("job.succeeded", job, ended, ended="succeeded", answer=answer, settlement=settlement)


def lose(
    job: Job, attempt: int, failure: Failure, retryable: bool, limits: Limits, now_us: int, not_before_us: int = 0
) -> Change | None:
    """The job's attempt ended without an answer: try again while attempts and time are left, fall back, or end.

    retryable: it was not the job's fault. not_before_us: the provider asked to wait until then; such an attempt does
    not count against `attempts_max`.
    """
    if not _is_at_work(job, attempt):
        return None
    again = retryable and (not_before_us > 0 or attempt < limits.attempts_max)
    ending = _ending_of(job, failure, again or (retryable and falls_back(job)), now_us)
    if ending is not None:
        return ending
    after = job._replace(attempt=attempt + 1, update_time_us=now_us, not_before_us=not_before_us)
    if again and job.lane is Lane.INSTANT:
        return Change("job.retried", job, after, opened=True, ended=failure.code, failure=None)
    queued = after._replace(state=State.QUEUED, batch_id="", queue_time_us=now_us)
    if job.lane is Lane.INSTANT:
        cheaper = queued._replace(lane=Lane.BATCH, price=job.fallback_price)
        lowered = cheaper.price < job.price
        return Change("job.fell_back", job, cheaper, ended=failure.code, lowered=lowered)
    return Change("job.requeued", job, queued, ended=failure.code)


def leave(job: Job, attempt: int, failure: Failure, now_us: int) -> Change | None:
    """The job leaves a batch that nothing was bought for yet: for good, as its hold is lost or its time is over."""
    if job.state is not State.BATCHED or job.attempt != attempt:
        return None
    return _ending_of(job, failure, False, now_us)


def expire(job: Job, now_us: int) -> Change | None:
    """The deadline passed while the job waited; one that the provider has is left to its batch."""
    if job.state not in (State.ADMITTING, State.QUEUED) or now_us < job.deadline_us:
        return None
    return _end(job, State.EXPIRED, "job.expired", now_us, DEADLINE)


def lose_hold(job: Job, now_us: int) -> Change | None:
    """The wallet gave the tokens back while the job queued: it can't be bought any more."""
    if job.state is not State.QUEUED:
        return None
    return _end(job, State.FAILED, "job.failed", now_us, HOLD_LOST)


def cancel(job: Job, batch_frozen: bool, now_us: int) -> Change | None:
    """Somebody asks to end the job: it ends, or carries the wish along. None: it was asked before, or has ended."""
    if is_final(job) or job.cancel_requested:
        return None
    asked = job._replace(cancel_requested=True)
    if is_frozen(job, batch_frozen):
        return Change("job.cancel_requested", job, asked._replace(update_time_us=now_us))
    ended = "cancelled" if job.state is State.BATCHED else ""
    return _end(asked, State.CANCELLED, "job.cancelled", now_us, CANCELLED, ended, before=job)


def settle(job: Job, settlement: Settlement, accepted: bool, now_us: int) -> Change | None:
    """The wallet has answered the settlement: it took it, or refused it for good."""
    if not is_final(job) or settlement.state is not SettlementState.PENDING:
        return None
    state = SettlementState.SETTLED if accepted else SettlementState.REFUSED
    kind = "job.settled" if accepted else "job.uncollected"
    return Change(kind, job, job._replace(update_time_us=now_us), settlement=settlement._replace(state=state))


def uncollect(job: Job, settlement: Settlement, now_us: int) -> Change | None:
    """The wallet has lost a settlement that it had taken, and refuses it now."""
    if not is_final(job) or settlement.state is not SettlementState.SETTLED:
        return None
    refused = settlement._replace(state=SettlementState.REFUSED)
    return Change("job.uncollected", job, job._replace(update_time_us=now_us), settlement=refused)


def recover(job: Job, attempt: int, batch_id: str, now_us: int) -> Change | None:
    """A batch that we had forgotten was bought with this attempt of the job: the job waits for it, in whatever place
    the forgetting has put it. None where that batch can't have its answer, or the job is in it already.
    """
    at_work = job.state in (State.BATCHED, State.RUNNING)
    if is_final(job) or job.lane is not Lane.BATCH or attempt < max(job.attempt, 1):
        return None
    if at_work and job.batch_id == batch_id:
        return None
    held_until_us = job.hold_expire_time_us or job.create_time_us + job.hold_duration_us
    after = job._replace(
        state=State.BATCHED,
        attempt=attempt,
        batch_id=batch_id,
        update_time_us=now_us,
        hold_expire_time_us=held_until_us,
    )
    moved = at_work and attempt == job.attempt
    return Change("job.recovered", job, after, opened=not moved, ended="forgotten" if at_work and not moved else "")


def _is_at_work(job: Job, attempt: int) -> bool:
    """Whether this attempt of the job may still bring something: a batch may answer before its start is written."""
    return job.state in (State.BATCHED, State.RUNNING) and job.attempt == attempt


def _ending_of(job: Job, failure: Failure, again: bool, now_us: int) -> Change | None:
    """How an attempt without an answer ends its job, or None where the job is to be tried again."""
    if job.cancel_requested:
        return _end(job, State.CANCELLED, "job.cancelled", now_us, CANCELLED, failure.code)
    if now_us >= job.deadline_us:
        return _end(job, State.EXPIRED, "job.expired", now_us, DEADLINE, failure.code)
    if again:
        return None
    return _end(job, State.FAILED, "job.failed", now_us, failure, failure.code)


def _end(
    job: Job, state: State, kind: str, now_us: int, failure: Failure, ended: str = "", before: Job | None = None
) -> Change:
    after = job._replace(state=state, update_time_us=now_us)
    return Change(kind, before or job, after, ended=ended, failure=failure, settlement=RELEASE)
