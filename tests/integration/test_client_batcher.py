"""The client against a real gRPC server that says what a script says: lost streams, restarts, refusals."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from grpc_status import rpc_status

from punchcard.batcher.v1 import batcher_pb2
from punchcard.batcher.v1.batcher_pb2_grpc import (
    BatcherServiceServicer,
    BatcherServiceStub,
    add_BatcherServiceServicer_to_server,
)
from punchcard_client import BackoffPolicy, connect, reason_of, retry_seconds_of, upload_image, watch_job

if TYPE_CHECKING:
    from punchcard.batcher.v1.batcher_pb2_grpc import BatcherServiceAsyncStub

QUICK = BackoffPolicy(first_seconds=0.001, longest_seconds=0.002, outage_seconds=30.0)
PENDING, SETTLED = batcher_pb2.SETTLEMENT_STATE_PENDING, batcher_pb2.SETTLEMENT_STATE_SETTLED
QUEUED, RUNNING, SUCCEEDED = (
    batcher_pb2.JOB_STATE_QUEUED,
    batcher_pb2.JOB_STATE_RUNNING,
    batcher_pb2.JOB_STATE_SUCCEEDED,
)


class Refuse(Exception):
    """A step of a script: the call ends with this status."""

    def __init__(self, code: grpc.StatusCode, reason: str = "", retry_seconds: int | None = None) -> None:
        details = []
        if reason:
            info = error_details_pb2.ErrorInfo(reason=reason, domain="batcher.punchcard", metadata={"a": "b"})
            details.append(info)
        if retry_seconds is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.seconds = retry_seconds
            details.append(retry)
        self.status = status_pb2.Status(code=code.value[0], message="no", details=[_packed(each) for each in details])


def _packed(detail: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


HANG = "hang"
Step = batcher_pb2.WatchJobResponse | Refuse | str


class Scripted(BatcherServiceServicer):
    """Plays one script for each WatchJob, and notes what it was asked."""

    def __init__(self, *scripts: Sequence[Step]) -> None:
        self.scripts = list(scripts)
        self.asked: list[str] = []
        self.tokens: list[str] = []
        self.uploads: list[bytes] = []
        self.refuse_uploads: list[Refuse] = []

    async def WatchJob(self, request: Any, context: Any) -> AsyncIterator[batcher_pb2.WatchJobResponse]:
        self.asked.append(request.resume_token)
        self._note_token(context)
        for step in self.scripts.pop(0):
            if isinstance(step, Refuse):
                await context.abort_with_status(rpc_status.to_status(step.status))
            elif isinstance(step, str):
                await asyncio.Event().wait()
            else:
                yield step

    async def GetJob(self, _request: Any, context: Any) -> batcher_pb2.GetJobResponse:
        self._note_token(context)
        if self.refuse_uploads:
            await context.abort_with_status(rpc_status.to_status(self.refuse_uploads.pop(0).status))
        return batcher_pb2.GetJobResponse()

    async def UploadImage(self, requests: Any, context: Any) -> batcher_pb2.UploadImageResponse:
        self._note_token(context)
        content, spec = b"", None
        async for request in requests:
            if request.HasField("spec"):
                spec = request.spec
            else:
                assert request.chunk.offset == len(content)
                content += request.chunk.data
        if self.refuse_uploads:
            await context.abort_with_status(rpc_status.to_status(self.refuse_uploads.pop(0).status))
        self.uploads.append(content)
        assert spec is not None
        assert (spec.sha256, spec.size_bytes) == (hashlib.sha256(content).hexdigest(), len(content))
        image = batcher_pb2.Image(image_id=spec.sha256, account_id=spec.account_id)
        return batcher_pb2.UploadImageResponse(image=image)

    def _note_token(self, context: Any) -> None:
        self.tokens.append(dict(context.invocation_metadata())["authorization"])


def scripted(*scripts: Sequence[Step]) -> Scripted:
    return Scripted(*scripts)  # type: ignore[abstract]


@asynccontextmanager
async def serving(
    servicer: Scripted, token: str | Callable[[], str] = "t", port: int = 0
) -> AsyncIterator[tuple[BatcherServiceAsyncStub, int]]:
    server = aio.server(options=[("grpc.so_reuseport", 0)])
    add_BatcherServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    async with connect(f"127.0.0.1:{port}", token) as channel:
        yield BatcherServiceStub(channel), port
    await server.stop(None)


def snapshot(revision: int, state: Any = QUEUED, settlement: Any = None) -> batcher_pb2.WatchJobResponse:
    job = batcher_pb2.Job(state=state, settlement=batcher_pb2.Settlement(state=settlement))
    return batcher_pb2.WatchJobResponse(snapshot=job, revision=revision, resume_token=f"e.{revision}")


def change(revision: int, state: Any, settlement: Any = None) -> batcher_pb2.WatchJobResponse:
    told = batcher_pb2.JobChange(state=state, settlement=batcher_pb2.Settlement(state=settlement))
    return batcher_pb2.WatchJobResponse(change=told, revision=revision, resume_token=f"e.{revision}")


async def revisions(stub: BatcherServiceAsyncStub, **more: Any) -> list[int]:
    watched = watch_job(stub, "alice", "cat-1", **{"backoff": QUICK, **more})
    return [message.revision async for message in watched]


async def test_a_watch_ends_with_the_settlement() -> None:
    """The terminal event is not the end; the settlement behind it is, even if the server would go on."""
    script: list[Step] = [
        snapshot(1),
        change(2, RUNNING),
        change(3, SUCCEEDED, PENDING),
        change(4, SUCCEEDED, SETTLED),
        HANG,
    ]
    async with serving(scripted(script)) as (stub, _):
        assert await revisions(stub) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "lost",
    [
        Refuse(grpc.StatusCode.UNAVAILABLE, "SERVER_DRAINING", 0),
        Refuse(grpc.StatusCode.CANCELLED),
        Refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER_BUSY", 0),
    ],
)
async def test_a_lost_watch_goes_on_behind_its_last_message(lost: Refuse) -> None:
    """Each message comes once and in order, over three connections."""
    servicer = scripted(
        [snapshot(1), change(2, RUNNING), lost], [lost], [change(3, SUCCEEDED, PENDING), change(4, SUCCEEDED, SETTLED)]
    )
    async with serving(servicer) as (stub, _):
        assert await revisions(stub) == [1, 2, 3, 4]

    assert servicer.asked == ["", "e.2", "e.2"]


async def test_a_watch_survives_the_restart_of_its_server() -> None:
    """The server goes away in the middle of a watch, and another one at its address goes on."""
    first, second = scripted([snapshot(1), HANG]), scripted([change(2, SUCCEEDED, SETTLED)])
    server = aio.server(options=[("grpc.so_reuseport", 0)])
    add_BatcherServiceServicer_to_server(first, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with connect(f"127.0.0.1:{port}", "t") as channel:
        watched = watch_job(BatcherServiceStub(channel), "alice", "cat-1", backoff=QUICK)
        seen = [(await anext(watched)).revision]
        await server.stop(None)
        async with serving(second, port=port):
            seen += [message.revision async for message in watched]

    assert seen == [1, 2]
    assert second.asked == ["e.1"]


async def test_an_end_without_a_settlement_is_asked_again_for_a_snapshot() -> None:
    """A watch that is resumed behind the very last message learns the end from a snapshot."""
    servicer = scripted([], [snapshot(4, SUCCEEDED, SETTLED)])
    async with serving(servicer) as (stub, _):
        assert await revisions(stub, resume_token="e.4") == [4]

    assert servicer.asked == ["e.4", ""]


async def test_a_compacted_token_is_given_up_for_a_snapshot() -> None:
    """OUT_OF_RANGE with a token starts anew; without one it is an error."""
    compacted = Refuse(grpc.StatusCode.OUT_OF_RANGE, "REVISION_COMPACTED")
    servicer = scripted([compacted], [snapshot(9, SUCCEEDED, SETTLED)], [compacted])
    async with serving(servicer) as (stub, _):
        assert await revisions(stub, resume_token="e.3") == [9]
        with pytest.raises(aio.AioRpcError) as refused:
            await revisions(stub)

    assert servicer.asked == ["e.3", "", ""]
    reason = reason_of(refused.value)
    assert reason is not None
    assert (reason.name, reason.domain, reason.metadata) == ("REVISION_COMPACTED", "batcher.punchcard", {"a": "b"})


async def test_a_silent_watch_is_made_again() -> None:
    """A connection that says nothing for too long is as good as lost."""
    servicer = scripted([snapshot(1), HANG], [change(2, SUCCEEDED, SETTLED)])
    async with serving(servicer) as (stub, _):
        assert await revisions(stub, silence_seconds=0.2) == [1, 2]


async def test_what_no_retry_mends_is_raised_at_once() -> None:
    """An unknown job is not asked for twice."""
    servicer = scripted([Refuse(grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND")])
    async with serving(servicer) as (stub, _):
        with pytest.raises(aio.AioRpcError) as refused:
            await revisions(stub)

    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert len(servicer.asked) == 1


async def test_an_outage_has_an_end() -> None:
    """After the policy's patience the last error is raised."""
    servicer = scripted(*[[Refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER_BUSY", 0)]] * 50)
    async with serving(servicer) as (stub, _):
        with pytest.raises(aio.AioRpcError) as refused:
            await revisions(stub, backoff=BackoffPolicy(0.001, 0.001, outage_seconds=0.0))

    assert retry_seconds_of(refused.value) == 0.0
    assert len(servicer.asked) == 2


async def test_every_call_carries_the_token_of_its_moment() -> None:
    """A source of tokens is asked for each call, whatever its shape; none of it needs TLS."""
    tokens = iter(["one", "two", "three"])
    servicer = scripted([snapshot(1, SUCCEEDED, SETTLED)])
    async with serving(servicer, lambda: next(tokens)) as (stub, _):
        await stub.GetJob(batcher_pb2.GetJobRequest())
        await revisions(stub)
        await upload_image(stub, "alice", b"image")

    assert servicer.tokens == ["Bearer one", "Bearer two", "Bearer three"]


async def test_an_unavailable_service_is_called_again() -> None:
    """The service config retries by itself, and only that status."""
    servicer = scripted()
    async with serving(servicer) as (stub, _):
        servicer.refuse_uploads = [Refuse(grpc.StatusCode.UNAVAILABLE), Refuse(grpc.StatusCode.UNAVAILABLE)]
        await stub.GetJob(batcher_pb2.GetJobRequest())
        servicer.refuse_uploads = [Refuse(grpc.StatusCode.INTERNAL)]
        with pytest.raises(aio.AioRpcError):
            await stub.GetJob(batcher_pb2.GetJobRequest())

    assert len(servicer.tokens) == 4


async def test_an_image_is_uploaded_from_bytes_or_from_a_file(tmp_path: Path) -> None:
    """It comes whole and in order, however many chunks it takes; an empty one is the service's to refuse."""
    contents = [b"", b"tiny", bytes(range(256)) * 4096]
    (tmp_path / "image").write_bytes(contents[2])
    servicer = scripted()
    async with serving(servicer) as (stub, _):
        stored = [await upload_image(stub, "alice", content) for content in contents]
        from_file = [await upload_image(stub, "alice", path) for path in (tmp_path / "image", str(tmp_path / "image"))]

    assert servicer.uploads == [*contents, contents[2], contents[2]]
    assert from_file == [stored[2], stored[2]]


async def test_an_interrupted_upload_is_sent_again() -> None:
    """While the service is unavailable, and not for ever."""
    content = bytes(1_000_000)
    servicer = scripted()
    async with serving(servicer) as (stub, _):
        servicer.refuse_uploads = [Refuse(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE", 0)]
        await upload_image(stub, "alice", content)
        servicer.refuse_uploads = [Refuse(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE", 0) for _ in range(20)]
        with pytest.raises(aio.AioRpcError):
            await upload_image(stub, "alice", content, tries_max=2)

    assert servicer.uploads == [content]


async def test_an_upload_that_a_busy_service_refused_is_sent_again() -> None:
    """It says when; exhaustion without a time, as of a message that is too large, is for good."""
    servicer = scripted()
    async with serving(servicer) as (stub, _):
        servicer.refuse_uploads = [Refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER_BUSY", 0)]
        await upload_image(stub, "alice", b"content")
        servicer.refuse_uploads = [Refuse(grpc.StatusCode.RESOURCE_EXHAUSTED)]
        with pytest.raises(aio.AioRpcError):
            await upload_image(stub, "alice", b"content")

    assert servicer.uploads == [b"content"]


async def test_nobody_listening_has_no_reason() -> None:
    """An error that none of our services made is an error without details."""
    async with connect("127.0.0.1:1", "t") as channel:
        with pytest.raises(aio.AioRpcError) as refused:
            await BatcherServiceStub(channel).GetJob(batcher_pb2.GetJobRequest(), timeout=5)

    assert (reason_of(refused.value), retry_seconds_of(refused.value)) == (None, None)
