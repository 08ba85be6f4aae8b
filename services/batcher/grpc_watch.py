"""A watch of one job: a cursor over the journal, told in the proto's words.

snapshot, bookmark, then each change of the job and each step of its batch, until its tokens are settled. Every message
carries the revision that it brings the watcher to, and a token to go on from there.
"""

import json
import time
from collections.abc import AsyncIterator
from typing import Any, Final

from punchcard.batcher.v1 import batcher_pb2
from services.batcher.grpc_messages import (
    LANES,
    SETTLEMENTS,
    STATES,
    answer_message,
    failure_message,
    timestamp,
)
from services.batcher.job import Job, SettlementState, is_final
from services.batcher.store import Store
from services.batcher.store_rows import JobView
from services.chassis.auth import Principal
from services.chassis.journal import Row
from services.chassis.watch import Subscription, Tailer
from services.chassis.watch_stream import WatchStreams

PROGRESS_KINDS: Final = frozenset({"batch.running", "batch.progress"})
ENDING_KINDS: Final = frozenset({"job.succeeded", "job.failed", "job.expired", "job.cancelled", "job.rejected"})
SETTLED_KINDS: Final = frozenset({"job.settled", "job.uncollected"})

Response = batcher_pb2.WatchJobResponse


class Watches:
    """All watches of jobs."""

    def __init__(self, store: Store, tailer: Tailer, streams: WatchStreams) -> None:
        self._store = store
        self._tailer = tailer
        self._streams = streams

    async def watch(
        self, account_id: str, job_id: str, resume_token: str, principal: Principal, snapshot_of: Any
    ) -> AsyncIterator[Response]:
        """The messages of one watch. snapshot_of: makes the message of a JobView. Raises JobNotFound, RevisionUnknown,
        RevisionCompacted, TokenExpired, ServerDraining.
        """
        view, head = await self._store.view_at(account_id, job_id)
        revision = self._streams.begin(resume_token, head)
        if not resume_token:
            yield self._message(revision, snapshot=await snapshot_of(view))
        if is_settled(view) and view.job.last_revision <= revision:
            yield self._bookmark(revision)
            return
        batch_ids = [view.job.batch_id] if view.job.batch_id else []
        with await self._tailer.subscribe([view.job.uid, *batch_ids], revision, head.revision) as subscription:
            yield self._bookmark(revision)
            async for message in self._follow(subscription, view.job, principal):
                yield message

    async def _follow(self, subscription: Subscription, job: Job, principal: Principal) -> AsyncIterator[Response]:
        batch_id = job.batch_id
        # A batch is watched once its job is in it: its rows may come behind later ones of the job, and twice.
        told = progressed = 0
        while True:
            page = await self._streams.next(subscription, principal)
            silent = True
            for row in page.rows:
                if row.subject != job.uid and (row.kind not in PROGRESS_KINDS or row.revision <= progressed):
                    continue
                silent = False
                told = max(told, row.revision)
                if row.subject != job.uid:
                    progressed = row.revision
                    yield self._message(told, progress=_progress(row))
                    continue
                body = json.loads(row.body)
                yield self._message(told, change=await self._change(row, body))
                if row.kind in SETTLED_KINDS:
                    return
                now_in = body.get("batch_id", "")
                if now_in != batch_id:
                    subscription.remove(batch_id)
                    if now_in:
                        subscription.add(now_in, row.revision)
                    batch_id = now_in
            if silent:
                told = max(told, page.revision)
                yield self._bookmark(told)

    async def _change(self, row: Row, body: dict[str, Any]) -> batcher_pb2.JobChange:
        change = batcher_pb2.JobChange(
            state=STATES[body["state"]],
            attempt=max(body["attempt"], 1),
            batch_id=body.get("batch_id", ""),
            cancel_requested=body.get("cancel_requested", False),
            time=timestamp(row.time_us),
        )
        if "lane" in body:
            change.lane, change.price = LANES[body["lane"]], body["price"]
        if "settlement" in body:
            state = SETTLEMENTS[body["settlement"]]
            change.settlement.CopyFrom(batcher_pb2.Settlement(state=state, charged=body["charged"]))
        if row.kind in ENDING_KINDS:
            # The journal holds no content, so that what a job came to is read from the job.
            view = await self._store.view_of(row.subject)
            change.MergeFrom(
                batcher_pb2.JobChange(answer=answer_message(view.answer), failure=failure_message(view.failure))
            )
        return change

    def _bookmark(self, revision: int) -> Response:
        now = timestamp(time.time_ns() // 1000)
        return self._message(revision, bookmark=batcher_pb2.Bookmark(time=now))

    def _message(self, revision: int, **event: Any) -> Response:
        return Response(**self._streams.place(revision), **event)


def is_settled(view: JobView) -> bool:
    """Whether nothing will ever happen to the job any more."""
    settled = view.settlement is not None and view.settlement.state is not SettlementState.PENDING
    return is_final(view.job) and settled


def _progress(row: Row) -> batcher_pb2.BatchProgress:
    body = json.loads(row.body)
    return batcher_pb2.BatchProgress(
        batch_id=row.subject,
        provider_state=body["provider_state"],
        total=body["total"],
        completed=body["completed"],
        failed=body["failed"],
    )
