"""Rows and values: how jobs and batches are read from the database, and the one place where their changes are written.

Every command of the stores runs in one transaction, in one order, so that replicas never wait for each other in a
circle: jobs are locked in uid order, then batches, then the journal's head; then all is written. A change of a job is
applied by compare-and-set on its state and attempt, and each leaves one row in the journal.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple

from services.batcher import batch as batches
from services.batcher.batch import Batch, Submission, SubmissionState
from services.batcher.job import (
    Action,
    Answer,
    Change,
    Failure,
    Job,
    Lane,
    Settlement,
    SettlementState,
    State,
    is_final,
)
from services.batcher.order import Order, decode
from services.chassis import journal
from services.chassis.database import Conflict, Database, Row, Transaction
from services.chassis.leases import Lease

SYSTEM_ACTOR = "@batcher"
NEW_BATCH_KINDS = frozenset({"batch.planned", "batch.rebuilt"})

_LIFE = len(Job._fields)
_STATES = {state.value: state for state in State}
_LANES = {lane.value: lane for lane in Lane}


class JobView(NamedTuple):
    """A job with all that a caller may see of it. detail and max_output_tokens are as resolved at admission."""

    job: Job
    order: Order
    detail: str
    max_output_tokens: int
    answer: Answer | None
    failure: Failure | None
    settlement: Settlement | None


class Member(NamedTuple):
    """A job of a batch, with what its line says. detail is LOW, HIGH or AUTO."""

    job: Job
    order: Order
    detail: str
    max_output_tokens: int


class Note(NamedTuple):
    """A change of a batch: what the journal calls it, the batch after it, and what watchers are told."""

    kind: str
    batch: Batch
    body: Mapping[str, object]


def settlement_of(row: Row) -> Settlement:
    """A settlement, from its row."""
    return Settlement(Action(row["action"]), row["amount"], SettlementState(row["state"]))


def job_of(row: Row) -> Job:
    """The job in a row's first columns."""
    life = list(row[:_LIFE])
    life[4] = _LANES[life[4]]
    life[16] = _STATES[life[16]]
    life[19] = bool(life[19])
    return Job._make(life)


def member_of(row: Row) -> Member:
    """The member in a row of `batch_members`."""
    return Member(job_of(row), decode(row["request"]), row["detail"], row["max_output_tokens"])


def view_of(row: Row) -> JobView:
    """The job, its order, its answer and its settlement in a row of one of the views."""
    answer = failure = settlement = None
    if row["finish_reason"] is not None:
        answer = Answer(row["answer"], row["finish_reason"], row["input_tokens"], row["output_tokens"])
    if row["failure_code"] is not None:
        failure = Failure(row["failure_code"], row["failure_message"])
    if row["action"] is not None:
        settlement = Settlement(Action(row["action"]), row["amount"], SettlementState(row["settlement_state"]))
    order = decode(row["request"])
    return JobView(job_of(row), order, row["detail"], row["max_output_tokens"], answer, failure, settlement)


def batch_of(row: Row) -> Batch:
    """The batch in a row."""
    batch = Batch._make(row)
    return batch._replace(state=batches.State(batch.state), cancel_sent=bool(batch.cancel_sent))


def submission_of(row: Row) -> Submission:
    """The submission in a row."""
    submission = Submission._make(row)
    return submission._replace(state=SubmissionState(submission.state))


async def check(tx: Transaction, lease: Lease | None) -> None:
    """Raises if the loop that writes has lost its lease."""
    if lease is not None:
        await lease.check(tx)


async def lock_jobs(tx: Transaction, uids: Iterable[str]) -> list[Job]:
    """Reads and locks jobs in uid order; unknown ones are left out."""
    return [job_of(row) for row in await tx.rows("jobs_lock", uids=json.dumps(sorted(uids)))]


async def lock_batches(tx: Transaction, batch_ids: Iterable[str]) -> dict[str, Batch]:
    """Reads and locks batches, after the jobs."""
    wanted = sorted(batch_id for batch_id in batch_ids if batch_id)
    if not wanted:
        return {}
    rows = await tx.rows("batches_lock", batch_ids=json.dumps(wanted))
    return {batch.batch_id: batch for batch in map(batch_of, rows)}


async def write(
    tx: Transaction,
    now_us: int,
    changes: Sequence[Change],
    notes: Sequence[Note] = (),
    *,
    actors: Mapping[str, str] = MappingProxyType({}),
    orders: Mapping[str, tuple[str, int, str, int]] = MappingProxyType({}),
    lease_us: int = 0,
) -> tuple[list[Change], list[Note]]:
    """Writes the changes of locked jobs and batches, each with its journal row; gives them back with their revisions.

    actors: who asked, by uid, where it was not the service. orders: (detail, max_output_tokens, order, prompt_tokens)
    of new jobs, by uid. lease_us: how long an attempt opened here is left to this process. Raises Conflict when a job
    is not what it was.
    """
    if not changes and not notes:
        return [], []
    head = await journal.lock_head(tx)
    entries = [_entry_of(change, actors.get(change.job.uid, SYSTEM_ACTOR)) for change in changes]
    entries += [
        journal.Entry(
            note.kind, SYSTEM_ACTOR, note.batch.batch_id, note.batch.last_revision, json.dumps(dict(note.body))
        )
        for note in notes
    ]
    new_head, rows = journal.chain(head, entries, now_us)
    revisions = [row.revision for row in rows]
    written = [
        change._replace(job=change.job._replace(last_revision=revision))
        for change, revision in zip(changes, revisions, strict=False)
    ]
    noted = [
        note._replace(batch=note.batch._replace(last_revision=revision))
        for note, revision in zip(notes, revisions[len(changes) :], strict=True)
    ]
    await _update(tx, [change for change in written if change.before.last_revision])
    new = [(*_plain(change.job), *orders[change.job.uid]) for change in written if not change.before.last_revision]
    await tx.run_all(
        [
            ("jobs_insert", new),
            *_statements(written, noted, now_us, lease_us),
            *journal.statements(new_head, rows),
        ]
    )
    return written, noted


async def _update(tx: Transaction, changes: Sequence[Change]) -> None:
    """Applies changes of stored jobs by compare-and-set, each kind with the columns that it touches."""
    moved: list[dict[str, object]] = []
    ended: list[dict[str, object]] = []
    settled: list[dict[str, object]] = []
    for change in changes:
        if is_final(change.before):
            settled.append(_settled_row(change))
        elif is_final(change.job):
            ended.append(_ended_row(change))
        else:
            moved.append(_moved_row(change))
    for statement, rows in (("jobs_update", moved), ("jobs_end", ended), ("jobs_settle", settled)):
        if rows and await tx.run(statement, rows=json.dumps(rows)) != len(rows):
            raise Conflict("a job changed under the transaction that had locked it")


def _settled_row(change: Change) -> dict[str, object]:
    job = change.job
    return {
        "uid": job.uid,
        "was_state": change.before.state.value,
        "update_time_us": job.update_time_us,
        "last_revision": job.last_revision,
    }


def _ended_row(change: Change) -> dict[str, object]:
    job, answer, failure = change.job, change.answer, change.failure
    return {
        **_settled_row(change),
        "was_attempt": change.before.attempt,
        "state": job.state.value,
        "cancel_requested": job.cancel_requested,
        "answer": answer and answer.text,
        "finish_reason": answer and answer.finish_reason,
        "input_tokens": answer and answer.input_tokens,
        "output_tokens": answer and answer.output_tokens,
        "failure_code": failure and failure.code,
        "failure_message": failure and failure.message,
    }


def _moved_row(change: Change) -> dict[str, object]:
    job = change.job
    return {
        **_settled_row(change),
        "was_attempt": change.before.attempt,
        "state": job.state.value,
        "attempt": job.attempt,
        "batch_id": job.batch_id,
        "cancel_requested": job.cancel_requested,
        "queue_time_us": job.queue_time_us,
        "not_before_us": job.not_before_us,
        "hold_expire_time_us": job.hold_expire_time_us,
        "lane": job.lane.value,
        "price": job.price,
    }


def _statements(
    changes: Sequence[Change], notes: Sequence[Note], now_us: int, lease_us: int
) -> list[tuple[str, list[tuple[Any, ...]]]]:
    """What goes with the changes: attempts that end and begin, settlements that are owed or answered, holds to lower,
    batches.
    """
    ended = [(c.job.uid, c.before.attempt, now_us, c.ended, _counted(c)) for c in changes if c.ended]
    opened = [(c.job.uid, c.job.attempt, c.job.batch_id, now_us, now_us + lease_us) for c in changes if c.opened]
    owed = [
        (c.job.uid, c.settlement.action.value, c.settlement.amount, now_us)
        for c in changes
        if c.settlement and c.settlement.state is SettlementState.PENDING
    ]
    lowered = [(c.job.uid, c.job.price, now_us) for c in changes if c.lowered]
    return [
        ("attempts_end", ended),
        ("attempts_insert", opened),
        ("settlements_insert", owed),
        ("lowerings_insert", lowered),
        ("batches_insert", [_plain(note.batch) for note in notes if note.kind in NEW_BATCH_KINDS]),
        ("batches_update", [_plain(note.batch) for note in notes if note.kind not in NEW_BATCH_KINDS]),
    ]


def _counted(change: Change) -> bool:
    """Whether the attempt that ended counts: not where the job goes on and the provider had asked to wait."""
    return is_final(change.job) or not change.job.not_before_us


def _plain(record: Job | Batch) -> tuple[object, ...]:
    """A record's columns, without the classes of its enums: the PostgreSQL driver takes strings only as such."""
    return tuple(value.value if isinstance(value, StrEnum) else value for value in record)


def _entry_of(change: Change, actor: str) -> journal.Entry:
    """A job's journal row. Its body holds no prompt, no answer and no sentence of the provider."""
    job = change.job
    body: dict[str, object] = {"state": job.state, "attempt": job.attempt}
    if job.batch_id:
        body["batch_id"] = job.batch_id
    if job.cancel_requested:
        body["cancel_requested"] = True
    if job.lane is not change.before.lane:
        body |= {"lane": job.lane, "price": job.price}
    if change.settlement:
        body["settlement"] = change.settlement.state
        body["charged"] = change.settlement.charged
    if change.failure:
        body["failure"] = change.failure.code
    return journal.Entry(change.kind, actor, job.uid, change.before.last_revision, json.dumps(body))


class Stored:
    """What both stores stand on: the database, and whom to wake when something was written."""

    def __init__(self, database: Database, wake: Callable[[], None]) -> None:
        self.database = database
        self._wake = wake

    async def renew(self, expire_times_us: Mapping[str, int], lease: Lease | None = None) -> None:
        """Notes until when the wallet holds the jobs' tokens now. No change of a job, so nothing is journalled."""
        if expire_times_us:
            rows = [{"uid": uid, "hold_expire_time_us": time_us} for uid, time_us in sorted(expire_times_us.items())]
            async with self.database.transaction() as tx:
                await check(tx, lease)
                await tx.run("jobs_renew", rows=json.dumps(rows))
