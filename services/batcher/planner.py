"""Which waiting jobs form the next batches, and when. Pure: the queue, the clock and the limits in, the batches out.

A batch starts when `jobs_per_batch` jobs of a model wait, and a cycle takes what waits. A cycle forms as many batches
as the queue fills; where that would need more creates than the provider allows in this hour, batches grow instead.

Between accounts the queue is shared by deficit round robin over the bytes of their lines: each round gives every
waiting account the same number of bytes, what it can't use yet is kept for its next round, and within an account the
oldest goes first. So an account with ten thousand jobs delays another's single one by one line and not by ten
thousand.

What a model may enqueue at the provider is kept to: where the queue of tokens is full nothing more of it is planned. A
job that is over the limit by itself goes alone, once nothing else is enqueued: the provider knows best.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from services.batcher.allowance import Room


class Waiting(NamedTuple):
    """A job in the queue."""

    uid: str
    account_id: str
    model: str
    line_bytes: int
    queue_time_us: int
    tokens: int = 0


class Limits(NamedTuple):
    """What a batch and an hour may hold. creates_left: how many batches may still be created in this hour."""

    jobs_per_batch: int
    jobs_per_batch_max: int
    bytes_per_batch_max: int
    creates_left: int


class Planned(NamedTuple):
    """One batch to form."""

    model: str
    uids: tuple[str, ...]


def next_cycle_us(now_us: int, cycle_us: int) -> int:
    """When the next cycle comes: cycles lie on whole multiples of their length, the same on every replica."""
    return (now_us // cycle_us + 1) * cycle_us


def cycle_start_us(now_us: int, cycle_us: int) -> int:
    """When the present cycle began."""
    return now_us // cycle_us * cycle_us


NO_ROOMS: Mapping[str, Room] = MappingProxyType({})
UNLIMITED = Room(None, 0)


def may_start(depths: Mapping[str, int], jobs_per_batch: int, rooms: Mapping[str, Room], now_us: int) -> bool:
    """Whether a full batch of some model may go without waiting for the cycle. depths: jobs in the queue, by model.

    With the provider's queue more than half full it is left to the cycle, which looks at the whole queue less often.
    """
    return any(
        jobs >= jobs_per_batch and (room.limit is None or room.taken * 2 <= room.limit) and now_us >= room.not_before_us
        for jobs, room in ((jobs, rooms.get(model, UNLIMITED)) for model, jobs in depths.items())
    )


def plan(
    queue: Sequence[Waiting], cycle_due: bool, limits: Limits, rooms: Mapping[str, Room] = NO_ROOMS, now_us: int = 0
) -> list[Planned]:
    """The batches to form now, of all models. Without a cycle being due only full batches are formed.

    rooms: what may be enqueued of the models of which that is known.
    """
    by_model: dict[str, list[Waiting]] = {}
    for job in queue:
        by_model.setdefault(job.model, []).append(job)
    batches: list[Planned] = []
    # The model that has waited longest comes first: the hour's last creates must not always go to the same one.
    for model, jobs in sorted(by_model.items(), key=lambda of: (min(job.queue_time_us for job in of[1]), of[0])):
        left = limits.creates_left - len(batches)
        room = rooms.get(model, UNLIMITED)
        if left > 0 and now_us >= room.not_before_us:
            batches += _plan_model(model, jobs, cycle_due, limits._replace(creates_left=left), room)
    return batches


def fair_order(jobs: Iterable[Waiting]) -> list[Waiting]:
    """Deficit round robin between accounts, oldest first within one; the account that has waited longest starts."""
    queues: dict[str, deque[Waiting]] = {}
    for job in sorted(jobs, key=lambda job: (job.queue_time_us, job.uid)):
        queues.setdefault(job.account_id, deque()).append(job)
    if not queues:
        return []
    quantum_bytes = max(job.line_bytes for waiting in queues.values() for job in waiting)
    deficits = dict.fromkeys(queues, 0)
    ordered: list[Waiting] = []
    while queues:
        for account_id in list(queues):
            waiting = queues[account_id]
            deficits[account_id] += quantum_bytes
            while waiting and waiting[0].line_bytes <= deficits[account_id]:
                deficits[account_id] -= waiting[0].line_bytes
                ordered.append(waiting.popleft())
            if not waiting:
                del queues[account_id]
    return ordered


def _plan_model(model: str, jobs: list[Waiting], cycle_due: bool, limits: Limits, room: Room) -> list[Planned]:
    wanted = -(-len(jobs) // limits.jobs_per_batch)
    size = limits.jobs_per_batch
    if wanted > limits.creates_left:
        size = min(limits.jobs_per_batch_max, -(-len(jobs) // limits.creates_left))
    batches: list[Planned] = []
    for members, full in _cut(_fitting(fair_order(jobs), room), size, limits.bytes_per_batch_max):
        if len(batches) < limits.creates_left and (full or cycle_due):
            batches.append(Planned(model, tuple(job.uid for job in members)))
    return batches


def _fitting(jobs: list[Waiting], room: Room) -> list[Waiting]:
    """The head of the queue for which there is room: never a later job before an earlier one."""
    left = room.left
    if left is None:
        return jobs
    used = 0
    for place, job in enumerate(jobs):
        used += job.tokens
        if used > left:
            return jobs[: max(place, 0 if room.taken else 1)]
    return jobs


def _cut(jobs: list[Waiting], size: int, bytes_max: int) -> Iterable[tuple[list[Waiting], bool]]:
    """Cuts the queue into batches, each with whether it is full, by jobs or by bytes."""
    members: list[Waiting] = []
    used_bytes = 0
    for job in jobs:
        if members and (len(members) == size or used_bytes + job.line_bytes > bytes_max):
            yield members, True
            members, used_bytes = [], 0
        members.append(job)
        used_bytes += job.line_bytes
    if members:
        yield members, len(members) == size
