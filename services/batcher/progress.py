"""What a waiting job waits for, as an honest sentence: no more than is known, and where it is known, until when."""

from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import NamedTuple

from services.batcher import batch as batches
from services.batcher.allowance import Room
from services.batcher.batch import Batch
from services.batcher.job import FINAL, Job, Lane, State
from services.batcher.planner import NO_ROOMS


class Outlook(NamedTuple):
    """What holds up more than one job. down_until_us: when a provider that does not answer is asked again;
    creates_until_us: when the hour has room for another batch; each 0 where nothing holds up. rooms: what may be
    enqueued of the models of which that is known; wanted: tokens of all queued jobs of these. obstacle: what all that
    is to be bought waits for, or empty.
    """

    next_cycle_us: int
    down_until_us: int = 0
    creates_until_us: int = 0
    rooms: Mapping[str, Room] = NO_ROOMS
    wanted: Mapping[str, int] = MappingProxyType({})
    obstacle: str = ""


def clock(time_us: int) -> str:
    """A time of day for people, in UTC: 12:05:00Z."""
    return datetime.fromtimestamp(time_us // 1_000_000, UTC).strftime("%H:%M:%SZ")


def waiting_for(job: Job, batch: Batch | None, outlook: Outlook, now_us: int) -> str:
    """Why the job is not further, or nothing for one that has ended. batch: the one it is in, if it is in one."""
    if job.state in FINAL:
        return ""
    if job.state is State.ADMITTING:
        return "the wallet to answer"
    if outlook.obstacle and is_unbought(job, batch):
        return outlook.obstacle
    if job.state is State.QUEUED:
        return _queued(job, outlook, now_us)
    if job.lane is Lane.INSTANT:
        return f"the provider's answer (try {job.attempt})"
    if batch is not None and batch.problem:
        return f"held for an operator: {batch.problem}"
    if outlook.down_until_us > now_us:
        return f"provider is down, asked again at {clock(outlook.down_until_us)}"
    return "its batch" if batch is None else _batched(batch, now_us)


def is_unbought(job: Job, batch: Batch | None) -> bool:
    """Whether the job's next answer is still to be bought in a batch."""
    planned = batch is not None and batch.state is batches.State.PLANNED and not batch.problem
    return job.state is State.QUEUED or (job.state is State.BATCHED and planned)


def _queued(job: Job, outlook: Outlook, now_us: int) -> str:
    room = outlook.rooms.get(job.model)
    until_us = max(job.not_before_us, outlook.creates_until_us, room.not_before_us if room else 0)
    if until_us > now_us:
        return f"provider limit until {clock(until_us)}"
    next_cycle = f"next cycle at {clock(outlook.next_cycle_us)}"
    if room is None or room.left is None or outlook.wanted.get(job.model, 0) <= room.left:
        return next_cycle
    # A cycle takes as many as there is room for, and whether this job is among them is not known before.
    return f"provider limit of {room.limit:,} enqueued tokens, {room.taken:,} of them taken; {next_cycle}"


def _batched(batch: Batch, now_us: int) -> str:
    if batch.state is batches.State.PLANNED:
        if batch.not_before_us > now_us:
            return f"the provider to take its batch, again at {clock(batch.not_before_us)}"
        return "its batch to be submitted"
    again = f", asked again at {clock(batch.not_before_us)}" if batch.not_before_us > now_us else ""
    if batch.state is batches.State.SUBMITTING:
        return f"the provider to take its batch{again}"
    if batch.state is batches.State.RUNNING:
        done = batch.completed + batch.failed
        return f"the provider ({batch.provider_state}, {done} of {batch.total} done){again}"
    return f"its batch's answers to be stored{again}"
