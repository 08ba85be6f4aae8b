"""Lists of dead jobs on the wire: for operators, so that they carry causes and no content."""

import base64
import binascii
import hashlib
import json
from typing import Final

from punchcard.batcher.v1 import batcher_pb2
from services.batcher.grpc_messages import job_message, time_us, timestamp
from services.batcher.store_dead_jobs import Attempt, DeadJob, Wanted, dead_jobs
from services.chassis.database import Database
from services.chassis.errors import InvalidField, Violation
from services.chassis.fields import Checks

PAGE_SIZE_DEFAULT: Final = 100
PAGE_SIZE_MAX: Final = 500
"""So many fit into a message that clients take, whatever their sentences."""

FAILURE_CODE_CHARS_MAX: Final = 128
TIME_US_MAX: Final = 2**62


async def list_dead_jobs(
    database: Database, request: batcher_pb2.ListDeadJobsRequest
) -> batcher_pb2.ListDeadJobsResponse:
    """A page of dead jobs. Raises InvalidField."""
    wanted = _wanted(request)
    filters = hashlib.sha256(repr(wanted).encode()).hexdigest()[:16]
    if request.page_token:
        before_us, before_uid = _place(request.page_token, filters)
        wanted = wanted._replace(before_us=before_us, before_uid=before_uid)
    size = min(request.page_size or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)
    found = await dead_jobs(database, wanted, size + 1)
    page = found[:size]
    token = _token(filters, page[-1]) if len(found) > size else ""
    return batcher_pb2.ListDeadJobsResponse(jobs=[_message(dead) for dead in page], next_page_token=token)


def _wanted(request: batcher_pb2.ListDeadJobsRequest) -> Wanted:
    checks = Checks()
    account_id = checks.optional_id("account_id", request.account_id)
    failure_code = checks.text("failure_code", request.failure_code, FAILURE_CODE_CHARS_MAX)
    since_us = time_us(checks, "end_time_from", request.end_time_from) if request.HasField("end_time_from") else 0
    before_us = TIME_US_MAX
    if request.HasField("end_time_before"):
        before_us = time_us(checks, "end_time_before", request.end_time_before)
    if request.page_size < 0:
        checks.fail("page_size", request.page_size, "must not be negative")
    checks.done()
    return Wanted(account_id, failure_code, since_us, before_us, "")


def _token(filters: str, last: DeadJob) -> str:
    """Where a list goes on, and of which list it is; it gives no right by itself."""
    return base64.urlsafe_b64encode(json.dumps([filters, last.end_time_us, last.view.job.uid]).encode()).decode()


def _place(token: str, filters: str) -> tuple[int, str]:
    try:
        of_filters, before_us, before_uid = json.loads(base64.urlsafe_b64decode(token.encode()))
    except (binascii.Error, UnicodeError, ValueError, TypeError):
        of_filters, before_us, before_uid = None, None, None
    is_place = isinstance(before_us, int) and 0 <= before_us <= TIME_US_MAX and isinstance(before_uid, str)
    if of_filters != filters or not is_place or "\0" in before_uid:
        raise InvalidField([Violation("page_token", token[:64], "is not a next_page_token of this list")])
    return before_us, before_uid


def _message(dead: DeadJob) -> batcher_pb2.DeadJob:
    job = job_message(dead.view, with_text=False)
    # Whoever looks after the service needs no customer's question for that.
    job.ClearField("prompt")
    job.ClearField("labels")
    attempts = [_attempt_message(attempt) for attempt in dead.attempts]
    return batcher_pb2.DeadJob(job=job, end_time=timestamp(dead.end_time_us), attempts=attempts)


def _attempt_message(attempt: Attempt) -> batcher_pb2.Attempt:
    return batcher_pb2.Attempt(
        attempt=attempt.attempt,
        batch_id=attempt.batch_id,
        start_time=timestamp(attempt.start_time_us),
        end_time=timestamp(attempt.end_time_us) if attempt.end_time_us else None,
        outcome=attempt.outcome,
    )
