"""services.chassis.interceptors, through a real server and a real channel"""

import asyncio
import io
import json
import time

import grpc
import pytest

from services.chassis import interceptors, logs
from services.chassis.errors import StoreUnavailable
from tests.echo import OutOfPatience, info_of, outcome_of, serving
from tests.tokens import bearer

SHAPES = {"unary", "out_stream", "in_stream", "both_stream"}


def reasons(outcomes):
    return {shape: info_of(error).reason for shape, error in outcomes.items()}


def raising(error):
    async def work(_request, _context):
        raise error

    return work


@pytest.fixture
def log_lines():
    """Calling it gives the lines logged so far."""
    stream = io.StringIO()
    logs.configure(line_format="json", stream=stream)

    def lines():
        logs.close()
        return [json.loads(line) for line in stream.getvalue().splitlines()]

    yield lines
    logs.close()


async def test_each_shape_of_call_is_answered():
    async with serving() as client:
        outcomes = await client.every_shape()

    assert outcomes == dict.fromkeys(SHAPES, b"hello")


async def test_an_unknown_error_reaches_no_client_in_any_shape(log_lines):
    async with serving(raising(ValueError("postgres://u:p@h"))) as client:
        outcomes = await client.every_shape()

    assert reasons(outcomes) == dict.fromkeys(SHAPES, "INTERNAL")
    assert not any("postgres" in repr(error) for error in outcomes.values())
    told = {info_of(error).metadata["error_id"] for error in outcomes.values()}
    masked = [line for line in log_lines() if line["event"] == "masked_error"]
    assert {line["error_id"] for line in masked} == told
    assert all("ValueError: postgres://u:p@h" in line["exception"] for line in masked)


async def test_an_error_of_the_table_keeps_its_status_in_every_shape():
    async with serving(raising(OutOfPatience("no more"))) as client:
        outcomes = await client.every_shape()

    assert reasons(outcomes) == dict.fromkeys(SHAPES, "OUT_OF_PATIENCE")
    assert {error.code() for error in outcomes.values()} == {grpc.StatusCode.FAILED_PRECONDITION}
    assert {error.details() for error in outcomes.values()} == {"no more"}


async def test_a_failing_store_asks_for_a_retry_and_tells_the_log_why(log_lines):
    async with serving(raising(StoreUnavailable("10.0.0.7 refused"))) as client:
        error = await outcome_of(client.unary())

    assert info_of(error).reason == "STORE_UNAVAILABLE"
    assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "1000"
    assert "10.0.0.7 refused" in {line.get("detail") for line in log_lines()}


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ((), "TOKEN_MISSING"),
        ((("authorization", "Basic YTpi"),), "TOKEN_MISSING"),
        ((("authorization", "Bearer nonsense"),), "TOKEN_INVALID"),
        (bearer(scope="echo", audience="punchcard.other"), "TOKEN_INVALID"),
        (bearer(scope="echo", kid="unknown"), "TOKEN_INVALID"),
        (bearer(scope="echo", lifetime_seconds=-1), "TOKEN_EXPIRED"),
        (bearer(scope="echoes"), "SCOPE_MISSING"),
    ],
)
async def test_no_shape_is_open_to_a_caller_without_a_good_token(metadata, reason):
    async with serving() as client:
        outcomes = await client.every_shape(metadata=metadata)

    assert reasons(outcomes) == dict.fromkeys(SHAPES, reason)


async def test_a_method_that_no_table_lists_is_open_to_nobody():
    async with serving() as client:
        error = await outcome_of(client.unary(method="Unlisted"))

    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert dict(info_of(error).metadata) == {"method": "/punchcard.test.v1.EchoService/Unlisted", "scope": ""}


async def test_the_handler_knows_its_caller():
    async with serving() as client:
        assert await client.unary(method="WhoAmI", metadata=bearer("bob", "whoami")) == b"bob"


async def test_without_a_verifier_everybody_may_everything():
    async with serving(insecure=True) as client:
        assert await client.unary(metadata=()) == b"hello"


async def test_what_is_no_message_is_bad_input_and_judged_after_the_token():
    async with serving() as client:
        known = await outcome_of(client.unary(b"\xff\xfe"))
        unknown = await outcome_of(client.unary(b"\xff\xfe", metadata=()))

    assert info_of(known).reason == "INVALID_FIELD"
    assert info_of(unknown).reason == "TOKEN_MISSING"


async def test_a_stream_ends_when_its_token_does():
    async def forever(_request, _context):
        await asyncio.Event().wait()

    async with serving(forever) as client:
        metadata = bearer(scope="echo", claims={"exp": time.time() + 0.3})
        outcomes = await asyncio.gather(
            outcome_of(client.in_stream([b"a"], metadata=metadata)),
            outcome_of(client.out_stream(b"a", metadata=metadata).read()),
        )

    assert [info_of(error).reason for error in outcomes] == ["TOKEN_EXPIRED"] * 2


async def test_a_stream_whose_client_does_not_read_still_ends_when_its_token_does():
    async def large(_request, _context):
        return b"x" * 1_000_000

    async with serving(large) as client:
        call = client.out_stream(b"a " * 50, metadata=bearer(scope="echo", claims={"exp": time.time() + 0.3}))
        await call.wait_for_connection()
        error = await outcome_of(_drop_all(call, begin=client.server._traffic.streams))

    assert info_of(error).reason == "TOKEN_EXPIRED"


async def _drop_all(call, begin):
    """Read only when the server has given the stream up."""
    await asyncio.wait(set(begin), timeout=0.6)
    async for _ in call:
        pass


async def test_a_cancellation_from_below_is_no_silence():
    async with serving(raising(asyncio.CancelledError())) as client:
        outcomes = await client.every_shape(timeout=5)

    assert reasons(outcomes) == dict.fromkeys(SHAPES, "STORE_UNAVAILABLE")


async def test_a_client_that_leaves_cancels_the_handler_which_may_clean_up():
    entered, cleaned = asyncio.Event(), asyncio.Event()

    async def slow(_request, _context):
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    async with serving(slow) as client:
        call = client.unary()
        waiting = asyncio.ensure_future(outcome_of(call))
        await entered.wait()
        call.cancel()
        await asyncio.wait_for(cleaned.wait(), 5)
        with pytest.raises(asyncio.CancelledError):
            await waiting


async def test_a_call_beyond_the_servers_time_limit_times_out():
    async def slow(_request, _context):
        await asyncio.Event().wait()

    async with serving(slow, request_timeout_seconds=0.05) as client:
        error = await outcome_of(client.unary())

    assert info_of(error).reason == "TIMED_OUT"
    assert dict(info_of(error).metadata) == {"timeout_seconds": "0.05"}


async def test_a_timeout_of_the_handlers_own_is_not_the_servers():
    async with serving(raising(TimeoutError())) as client:
        assert info_of(await outcome_of(client.unary())).reason == "INTERNAL"


async def test_calls_and_streams_beyond_their_limits_are_refused_apart_and_at_once():
    entered, leave = asyncio.Event(), asyncio.Event()

    async def slow(request, _context):
        entered.set()
        await leave.wait()
        return request

    async with serving(slow, concurrent_calls_max=1, concurrent_streams_max=1) as client:
        first = asyncio.ensure_future(outcome_of(client.unary()))
        await entered.wait()
        refused = await outcome_of(client.unary())
        entered.clear()
        stream = asyncio.ensure_future(outcome_of(client.out_stream(b"a").read()))
        await entered.wait()
        refused_stream = await outcome_of(client.in_stream([b"a"]))
        leave.set()

        assert await first == b"hello"
        assert await stream == b"a"
        assert await client.unary() == b"hello"

    assert (info_of(refused).reason, refused.code()) == ("SERVER_BUSY", grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert dict(info_of(refused_stream).metadata) == {"limit": "1"}


async def test_each_call_leaves_one_line_with_what_the_handler_added(log_lines):
    async def work(request, _context):
        logs.annotate(job_id="cat-1")
        return request

    async with serving(work) as client:
        await client.unary(metadata=(*client.metadata, ("x-request-id", "mine-1")))
        await outcome_of(client.unary(b"\xff"))

    fine, refused = [line for line in log_lines() if line["event"] == "rpc"]
    assert (fine["code"], fine["request_id"], fine["subject"], fine["job_id"]) == ("OK", "mine-1", "alice", "cat-1")
    assert (refused["code"], refused["reason"]) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert "Bearer" not in json.dumps([fine, refused])


async def test_an_error_tells_its_request_id():
    async with serving(raising(OutOfPatience("x"))) as client:
        sent = await outcome_of(client.unary(metadata=(*client.metadata, ("x-request-id", "mine-1"))))
        made = await outcome_of(client.unary(metadata=(*client.metadata, ("x-request-id", "not an id"))))

    assert dict(sent.trailing_metadata())["x-request-id"] == "mine-1"
    assert dict(made.trailing_metadata())["x-request-id"].startswith(interceptors._request_prefix)


async def test_a_streaming_handler_must_yield():
    async def no_generator(_request, _context):
        return b""

    handler = grpc.unary_stream_rpc_method_handler(no_generator)

    async with serving() as client:
        with pytest.raises(TypeError, match="without `yield`"):
            client.server._chain.wrap("/a/B", handler)
