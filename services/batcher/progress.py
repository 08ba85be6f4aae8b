"""What a waiting job waits for, as an honest sentence: no more than is known, and where it is known, until when."""

from datetime import UTC, datetime

from services.batcher import batch as batches
from services.batcher.batch import Batch
from services.batcher.job import FINAL, Job, Lane, State


def clock(time_us: int) -> str:
    """A time of day for people, in UTC: 12:05:00Z."""
    return datetime.fromtimestamp(time_us // 1_000_000, UTC).strftime("%H:%M:%SZ")


def waiting_for(job: Job, batch: Batch | None, next_cycle_us: int, now_us: int, obstacle: str = "") -> str:
    """Why the job is not further, or nothing for one that has ended. batch: the one it is in, if it is in one;
    obstacle: what everything that is to be bought waits for, or empty.
    """
    if job.state in FINAL:
        return ""
    if job.state is State.ADMITTING:
        return "the wallet to answer"
    if obstacle and is_unbought(job, batch):
        return obstacle
    if job.state is State.QUEUED:
        return _queued(job, next_cycle_us, now_us)
    if job.lane is Lane.INSTANT:
        return f"the provider's answer (try {job.attempt})"
    return "its batch" if batch is None else _batched(batch, now_us)


def is_unbought(job: Job, batch: Batch | None) -> bool:
    """Whether the job's next answer is still to be bought in a batch."""
    planned = batch is not None and batch.state is batches.State.PLANNED and not batch.problem
    return job.state is State.QUEUED or (job.state is State.BATCHED and planned)


def _queued(job: Job, next_cycle_us: int, now_us: int) -> str:
    if job.not_before_us > now_us:
        return f"provider limit until {clock(job.not_before_us)}"
    return f"next cycle at {clock(next_cycle_us)}"


def _batched(batch: Batch, now_us: int) -> str:
    if batch.problem:
        return f"an operator: {batch.problem}"
    if batch.state is batches.State.PLANNED:
        if batch.not_before_us > now_us:
            return f"the provider to take its batch, again at {clock(batch.not_before_us)}"
        return "its batch to be submitted"
    if batch.state is batches.State.SUBMITTING:
        return "the provider to take its batch"
    if batch.state is batches.State.RUNNING:
        done = batch.completed + batch.failed
        return f"the provider ({batch.provider_state}, {done} of {batch.total} done)"
    return "its batch's answers to be stored"
