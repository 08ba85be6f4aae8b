"""The batcher on the wire: decode, hand on, encode. No rule lives here."""

import base64
import binascii
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final

import grpc

from punchcard.batcher.v1 import batcher_pb2, batcher_pb2_grpc
from services.batcher import errors, grpc_messages
from services.batcher.grpc_dead_jobs import list_dead_jobs
from services.batcher.grpc_messages import Shield
from services.batcher.grpc_submissions import Submissions
from services.batcher.grpc_uploads import Received, Uploads, read_out
from services.batcher.grpc_watch import Watches
from services.batcher.job import Job, Lane, is_final
from services.batcher.progress import Outlook, waiting_for
from services.batcher.store import Store
from services.batcher.store_batches import BatchStore
from services.batcher.store_rows import JobView
from services.chassis.auth import current_principal
from services.chassis.errors import ErrorTable, InvalidField, Row, Violation
from services.chassis.fields import Checks
from services.chassis.watch import RevisionCompacted, RevisionUnknown

SERVICE: Final = "punchcard.batcher.v1.BatcherService"
ITEMS_MAX: Final = 1_000
PAGE_SIZE_DEFAULT: Final = 100
PAGE_SIZE_MAX: Final = 1_000
PAGE_BYTES_MAX: Final = 3 * 1024 * 1024
"""A client refuses messages of more than 4 MiB, unless it was told otherwise; a job's prompt alone may have 32 KiB."""

SCOPES: Final[Mapping[str, str]] = {
    f"/{SERVICE}/UploadImage": "image.upload",
    f"/{SERVICE}/SubmitJob": "job.submit",
    f"/{SERVICE}/SubmitJobs": "job.submit",
    f"/{SERVICE}/GetJob": "job.read",
    f"/{SERVICE}/ListJobs": "job.read",
    f"/{SERVICE}/CancelJob": "job.cancel",
    f"/{SERVICE}/WatchJob": "job.read",
    f"/{SERVICE}/ListDeadJobs": "job.admin",
    f"/{SERVICE}/RetryJob": "job.submit",
}
"""Which scope a method asks for. A method that is not here is open to nobody."""

_NOT_FOUND = grpc.StatusCode.NOT_FOUND
_INVALID = grpc.StatusCode.INVALID_ARGUMENT
_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION

ERRORS: Final = ErrorTable(
    "batcher.punchcard",
    {
        errors.AccountNotFound: Row(_NOT_FOUND, "ACCOUNT_NOT_FOUND"),
        errors.JobNotFound: Row(_NOT_FOUND, "JOB_NOT_FOUND"),
        errors.ImageNotFound: Row(_NOT_FOUND, "IMAGE_NOT_FOUND"),
        errors.ImageUnreadable: Row(_INVALID, "IMAGE_UNREADABLE"),
        errors.ImageTooLarge: Row(_INVALID, "IMAGE_TOO_LARGE"),
        errors.ChecksumMismatch: Row(_INVALID, "CHECKSUM_MISMATCH"),
        errors.IdempotencyMismatch: Row(grpc.StatusCode.ALREADY_EXISTS, "IDEMPOTENCY_MISMATCH"),
        errors.PriceListNotFound: Row(_NOT_FOUND, "PRICE_LIST_NOT_FOUND"),
        errors.PriceListWithdrawn: Row(_PRECONDITION, "PRICE_LIST_WITHDRAWN"),
        errors.PriceListInForce: Row(_PRECONDITION, "PRICE_LIST_IN_FORCE"),
        errors.RolloutShrinks: Row(_PRECONDITION, "ROLLOUT_SHRINKS"),
        errors.TooManyPriceLists: Row(_PRECONDITION, "TOO_MANY_PRICE_LISTS"),
        errors.PriceChanged: Row(_PRECONDITION, "PRICE_CHANGED"),
        errors.InsufficientFunds: Row(_PRECONDITION, "INSUFFICIENT_FUNDS"),
        errors.WalletRefused: Row(_PRECONDITION, "WALLET_REFUSED"),
        errors.JobNotDead: Row(_PRECONDITION, "JOB_NOT_DEAD"),
        errors.JobEnded: Row(_PRECONDITION, "JOB_ENDED"),
        RevisionUnknown: Row(grpc.StatusCode.OUT_OF_RANGE, "REVISION_UNKNOWN"),
        RevisionCompacted: Row(grpc.StatusCode.OUT_OF_RANGE, "REVISION_COMPACTED"),
    },
)
"""How each refusal looks on the wire."""


class BatcherApi(batcher_pb2_grpc.BatcherServiceServicer):
    """The nine methods. outlook: what holds up the queue at a time; cancelled: called after a cancel."""

    def __init__(
        self,
        store: Store,
        batches: BatchStore,
        submissions: Submissions,
        uploads: Uploads,
        watches: Watches,
        shield: Shield,
        outlook: Callable[[int], Awaitable[Outlook]],
        cancelled: Callable[[], None],
    ) -> None:
        self._store = store
        self._batches = batches
        self._submissions = submissions
        self._uploads = uploads
        self._watches = watches
        self._shield = shield
        self._outlook = outlook
        self._cancelled = cancelled

    async def UploadImage(
        self, request_iterator: AsyncIterator[batcher_pb2.UploadImageRequest], context: Any
    ) -> batcher_pb2.UploadImageResponse:
        parts = aiter(request_iterator)
        try:
            received = await self._received(parts)
        except (InvalidField, errors.BatcherError):
            await read_out(parts)
            raise
        image, replayed = await self._shield(self._uploads.keep(received))
        return batcher_pb2.UploadImageResponse(image=grpc_messages.image_message(image), replayed=replayed)

    async def _received(self, parts: AsyncIterator[batcher_pb2.UploadImageRequest]) -> Received:
        first = await anext(parts, batcher_pb2.UploadImageRequest())
        checks = Checks()
        if first.WhichOneof("part") != "spec":
            checks.fail("spec", "", "must be the first message")
        else:
            checks.id("spec.account_id", first.spec.account_id)
        checks.done()
        _check_account(first.spec.account_id)
        return await self._uploads.receive(first.spec, parts)

    async def SubmitJob(self, request: batcher_pb2.SubmitJobRequest, context: Any) -> batcher_pb2.SubmitJobResponse:
        asked = grpc_messages.asked_of(request, "", inline_allowed=True)
        view, replayed = await self._shield(self._submissions.submit(asked, current_principal()))
        return batcher_pb2.SubmitJobResponse(job=await self._message(view), replayed=replayed)

    async def SubmitJobs(self, request: batcher_pb2.SubmitJobsRequest, context: Any) -> batcher_pb2.SubmitJobsResponse:
        checks = Checks()
        checks.count("items", request.items, ITEMS_MAX)
        checks.done()
        asked: list[grpc_messages.Asked | Exception] = []
        for place, item in enumerate(request.items):
            try:
                asked.append(grpc_messages.asked_of(item, f"items[{place}].", inline_allowed=False))
            except InvalidField as refusal:
                asked.append(refusal)
        outcomes = await self._shield(self._submissions.submit_many(asked, current_principal()))
        return batcher_pb2.SubmitJobsResponse(results=[_result(outcome) for outcome in outcomes])

    async def GetJob(self, request: batcher_pb2.GetJobRequest, context: Any) -> batcher_pb2.GetJobResponse:
        _check_key(request.account_id, request.job_id)
        view = await self._store.view(request.account_id, request.job_id)
        return batcher_pb2.GetJobResponse(job=await self._message(view))

    async def ListJobs(self, request: batcher_pb2.ListJobsRequest, context: Any) -> batcher_pb2.ListJobsResponse:
        checks = Checks()
        account_id = checks.id("account_id", request.account_id)
        state = _STATE_NAMES.get(request.state, "")
        if request.state not in _STATE_NAMES:
            checks.fail("state", request.state, "must be a JobState")
        if request.page_size < 0:
            checks.fail("page_size", request.page_size, "must not be negative")
        checks.done()
        _check_account(account_id)
        before_uid = _page_uid(request.page_token, account_id, state) if request.page_token else ""
        size = min(request.page_size or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)
        views = await self._store.views(account_id, state, before_uid, size + 1)
        jobs = [await self._message(view, with_text=False) for view in views[:size]]
        fitting = _fitting(jobs)
        more = len(fitting) < len(views)
        return batcher_pb2.ListJobsResponse(
            jobs=fitting, next_page_token=_page_token(account_id, state, fitting[-1].uid) if more else ""
        )

    async def CancelJob(self, request: batcher_pb2.CancelJobRequest, context: Any) -> batcher_pb2.CancelJobResponse:
        _check_key(request.account_id, request.job_id)
        actor = current_principal().subject
        view, replayed = await self._shield(self._store.cancel(request.account_id, request.job_id, actor))
        self._cancelled()
        return batcher_pb2.CancelJobResponse(job=await self._message(view), replayed=replayed)

    async def ListDeadJobs(
        self, request: batcher_pb2.ListDeadJobsRequest, context: Any
    ) -> batcher_pb2.ListDeadJobsResponse:
        return await list_dead_jobs(self._store.database, request)

    async def RetryJob(self, request: batcher_pb2.RetryJobRequest, context: Any) -> batcher_pb2.RetryJobResponse:
        checks = Checks()
        account_id = checks.id("account_id", request.account_id)
        job_id = checks.id("job_id", request.job_id)
        if checks.id("new_job_id", request.new_job_id) == job_id:
            checks.fail("new_job_id", job_id, "must be another than job_id, which never reopens")
        terms = grpc_messages.terms_of(checks, request)
        checks.done()
        _check_account(account_id)
        retry = self._submissions.retry(account_id, job_id, request.new_job_id, terms, current_principal())
        view, replayed = await self._shield(retry)
        return batcher_pb2.RetryJobResponse(job=await self._message(view), replayed=replayed)

    async def WatchJob(
        self, request: batcher_pb2.WatchJobRequest, context: Any
    ) -> AsyncIterator[batcher_pb2.WatchJobResponse]:
        _check_key(request.account_id, request.job_id)
        messages = self._watches.watch(
            request.account_id, request.job_id, request.resume_token, current_principal(), self._message
        )
        async for message in messages:
            yield message

    async def _message(self, view: JobView, with_text: bool = True) -> batcher_pb2.Job:
        """A job's message, with why it is not further."""
        now_us = time.time_ns() // 1000
        # A list of a thousand jobs of a hundred batches is not worth a read for each: it says so in general.
        look = with_text and view.job.batch_id and view.job.lane is Lane.BATCH
        batch = await self._batches.batch(view.job.batch_id) if look else None
        waits = "" if is_final(view.job) else waiting_for(view.job, batch, await self._outlook(now_us), now_us)
        return grpc_messages.job_message(view, waits, with_text)


_STATE_NAMES = {number: name for name, number in grpc_messages.STATES.items()} | {batcher_pb2.JOB_STATE_UNSPECIFIED: ""}


def _result(outcome: tuple[Job, bool] | Exception) -> batcher_pb2.SubmitJobsResult:
    if isinstance(outcome, Exception):
        return batcher_pb2.SubmitJobsResult(refusal=grpc_messages.refusal_message(ERRORS.outcome(outcome)))
    return grpc_messages.result_message(*outcome)


def _check_account(account_id: str) -> None:
    if not current_principal().may_act_for(account_id):
        raise errors.AccountNotFound(account_id)


def _check_key(account_id: str, job_id: str) -> None:
    checks = Checks()
    checks.id("account_id", account_id)
    checks.id("job_id", job_id)
    checks.done()
    _check_account(account_id)


def _fitting(jobs: list[batcher_pb2.Job]) -> list[batcher_pb2.Job]:
    """As many of the jobs as one message should hold, but one at least."""
    size_bytes = 0
    for place, job in enumerate(jobs):
        size_bytes += job.ByteSize()
        if place and size_bytes > PAGE_BYTES_MAX:
            return jobs[:place]
    return jobs


def _page_token(account_id: str, state: str, uid: str) -> str:
    """Where a list goes on. It gives no right by itself: the account is checked each time."""
    return base64.urlsafe_b64encode(f"{account_id} {state} {uid}".encode()).decode()


def _page_uid(token: str, account_id: str, state: str) -> str:
    try:
        of_account, of_state, uid = base64.urlsafe_b64decode(token.encode()).decode().split(" ")
    except (binascii.Error, UnicodeError, ValueError):
        of_account = of_state = uid = ""
    if of_account != account_id or of_state != state or not uid or "\0" in uid:
        raise InvalidField([Violation("page_token", token[:64], "is not a next_page_token of this list")])
    return uid
