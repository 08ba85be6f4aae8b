"""Each fault of the twin does what its word says, and the books stay true; `serving` checks the answers' types."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from openai import (
    APIConnectionError,
    APIStatusError,
    InvalidWebhookSignatureError,
    NotFoundError,
    OpenAI,
    RateLimitError,
)
from openai.types.chat import ChatCompletion

from sandbox.openai_twin.batch_worker import Pace
from sandbox.openai_twin.fault_kinds import KINDS
from sandbox.plan import Plan
from sandbox.stack import Stack
from tests.openai_shapes import wrong_with
from tests.ports import free_ports
from tests.twins import ENDPOINT, MODEL, Clock, Gate, Running, chat, line, painted, serving

TESTED: Final[set[str]] = set()
FOREVER: Final = {"late_seconds": None}
SECRET: Final = "whsec_c2VjcmV0IG9mIHRoZSB0ZXN0cyBvZiB0aGUgdHdpbg=="
RED = painted("red")


def plays(*names: str) -> Callable[[Any], Any]:
    """Says which faults a test is about; a test at the end wants them all."""
    TESTED.update(names)
    return lambda test: test


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(tmp_path) as served:
        yield served


async def upload(running: Running, *custom_ids: str) -> str:
    lines = [line(custom_id, RED) for custom_id in custom_ids or ("a",)]
    return (await running.client.files.create(file=("in.jsonl", b"\n".join(lines)), purpose="batch")).id


async def create(running: Running, file_id: str) -> Any:
    return await running.client.batches.create(input_file_id=file_id, endpoint=ENDPOINT, completion_window="24h")


async def run(running: Running, *custom_ids: str) -> Any:
    """A batch of these lines, when it has ended."""
    batch = await create(running, await upload(running, *custom_ids))
    await running.twin.worker.idle()
    return await running.client.batches.retrieve(batch.id)


async def results(running: Running, file_id: str | None) -> list[dict[str, Any]]:
    return await running.lines_of(file_id)


async def until(true: Callable[[], Awaitable[object]]) -> None:
    """Asks again and again, through the API, until it is true."""
    async with asyncio.timeout(10):
        while True:
            if await true():
                return


# What each asks: a fresh file, a fresh batch, and the call that the fault strikes.
CALLS: Final[dict[str, Callable[[Running, str, str], Awaitable[Any]]]] = {
    "files.create": lambda running, *_: upload(running),
    "files.list": lambda running, *_: running.client.files.list(),
    "files.retrieve": lambda running, file, _: running.client.files.retrieve(file),
    "files.delete": lambda running, file, _: running.client.files.delete(file),
    "files.content": lambda running, file, _: running.client.files.content(file),
    "batches.create": lambda running, file, _: create(running, file),
    "batches.list": lambda running, *_: running.client.batches.list(),
    "batches.retrieve": lambda running, _, batch: running.client.batches.retrieve(batch),
    "batches.cancel": lambda running, _, batch: running.client.batches.cancel(batch),
    "chat.create": lambda running, *_: running.client.chat.completions.create(**chat(RED)),
}
REFUSALS: Final = [
    ("rate_limited", "batches.create", {"retry_after_seconds": 7}, 429, "rate_limit_exceeded"),
    ("rate_limited", "chat.create", {}, 429, "rate_limit_exceeded"),
    ("insufficient_quota", "batches.create", {}, 429, "insufficient_quota"),
    ("server_error", "files.create", {}, 500, "server_error"),
    ("bad_gateway", "files.content", {}, 502, None),
    ("unavailable", "batches.cancel", {}, 503, None),
    ("key_rejected", "batches.list", {"status": 403}, 403, "invalid_api_key"),
    ("payload_too_large", "files.create", {}, 413, None),
    ("file_too_large", "files.create", {}, 400, None),
    ("file_not_found_yet", "batches.create", {}, 404, None),
    ("file_not_found_yet", "files.content", {}, 404, None),
    ("other_key", "batches.retrieve", {}, 404, None),
    ("other_key", "files.delete", {}, 404, None),
    ("cancel_refused", "batches.cancel", {}, 400, None),
    ("cancel_refused", "batches.cancel", {"status": 409}, 409, None),
    ("line_model_not_found", "chat.create", {}, 404, "model_not_found"),
    ("line_image_unreachable", "chat.create", {}, 400, "invalid_image_url"),
    ("line_image_unreachable", "chat.create", {"timeout": True}, 400, "invalid_image_url"),
    ("line_bad_request", "chat.create", {}, 400, "invalid_value"),
    ("line_server_error", "chat.create", {}, 500, "server_error"),
    ("line_rate_limited", "chat.create", {}, 429, "rate_limit_exceeded"),
]


@plays(*(row[0] for row in REFUSALS))
@pytest.mark.parametrize(("name", "operation", "parameters", "status", "code"), REFUSALS)
async def test_a_refusal_does_nothing_and_is_over_with_the_next_call(
    tmp_path: Path, name: str, operation: str, parameters: dict[str, Any], status: int, code: str | None
) -> None:
    """The client raises the status and code of the API; the books are as before, and the fault is spent."""
    async with serving(tmp_path, pace=Pace(validating_seconds=3600)) as running:
        file_id = await upload(running)
        batch = await create(running, file_id)
        _, before = await running.own("GET", "books")
        await running.break_with(name, operation=operation, parameters=parameters)

        with pytest.raises(APIStatusError) as refused:
            await CALLS[operation](running, file_id, batch.id)
        _, after = await running.own("GET", "books")
        await CALLS[operation](running, file_id, batch.id)

    assert (refused.value.status_code, refused.value.code) == (status, code)
    seconds = {**KINDS[name].parameters, **parameters}.get("retry_after_seconds")
    assert refused.value.response.headers.get("retry-after") == (None if seconds is None else str(seconds))
    assert [each["name"] for each in after["faults"]] == [name]
    assert {**after, "faults": []} == before


@plays("reply_lost_before")
@pytest.mark.parametrize("operation", CALLS)
async def test_a_reply_lost_before_the_act_leaves_nothing_behind(tmp_path: Path, operation: str) -> None:
    async with serving(tmp_path, pace=Pace(validating_seconds=3600)) as running:
        file_id = await upload(running)
        batch = await create(running, file_id)
        await running.break_with("reply_lost_before", operation=operation)

        with pytest.raises(APIConnectionError):
            await CALLS[operation](running, file_id, batch.id)

        assert await running.bought() == [batch.id]
        assert [each.id async for each in running.client.files.list()] == [file_id]
        assert (await running.client.batches.retrieve(batch.id)).status == "validating"
        assert [name for name, _ in await running.struck()] == ["reply_lost_before"]


@plays("reply_lost_after")
async def test_what_was_done_before_its_reply_was_lost_is_in_the_books(tmp_path: Path) -> None:
    """The batch exists and is listed, the upload is there, the answer of a chat is paid, the cancel counts."""
    async with serving(tmp_path, pace=Pace(validating_seconds=3600)) as running:
        await running.break_with("reply_lost_after", count=4)
        with pytest.raises(APIConnectionError):
            await upload(running)
        await running.own("DELETE", "faults")
        (file,) = [each async for each in running.client.files.list()]
        await running.break_with("reply_lost_after", count=3)
        for operation in ("batches.create", "chat.create"):
            with pytest.raises(APIConnectionError):
                await CALLS[operation](running, file.id, "")
        (batch_id,) = await running.bought()
        with pytest.raises(APIConnectionError):
            await running.client.batches.cancel(batch_id)
        _, books = await running.own("GET", "books")

        assert [each.id async for each in running.client.batches.list()] == [batch_id]
        assert books["chat_completions"] == 1
        assert books["faults"][1]["objects"] == books["faults"][3]["objects"] == [batch_id]
        assert books["batches"][0]["status"] in ("cancelling", "cancelled")


@plays("late_act")
async def test_a_create_that_wakes_up_late_buys_though_the_client_has_left(running: Running) -> None:
    file_id = await upload(running)
    fault_id = await running.break_with("late_act", operation="batches.create", parameters=FOREVER)
    sleeping = asyncio.create_task(create(running, file_id))
    await until(running.struck)
    sleeping.cancel()
    assert await running.bought() == []

    await running.own("DELETE", f"faults/{fault_id}")
    await until(running.bought)

    assert len(await running.bought()) == 1


@plays("late_act")
async def test_an_upload_can_hang_and_then_go_on(running: Running) -> None:
    fault_id = await running.break_with("late_act", operation="files.create", parameters=FOREVER)
    hanging = asyncio.create_task(upload(running))
    await until(running.struck)
    assert [file async for file in running.client.files.list()] == []

    await running.own("DELETE", f"faults/{fault_id}")

    assert [file.id async for file in running.client.files.list()] in ([], [await hanging])


@plays("late_reply")
async def test_a_batch_is_listed_while_its_create_still_waits_for_the_answer(running: Running) -> None:
    file_id = await upload(running)
    fault_id = await running.break_with("late_reply", operation="batches.create", parameters=FOREVER)
    waiting = asyncio.create_task(create(running, file_id))
    await until(running.struck)

    listed = [batch.id async for batch in running.client.batches.list()]
    assert not waiting.done()
    await running.own("DELETE", f"faults/{fault_id}")

    assert listed == [(await waiting).id]


@plays("reply_garbled")
async def test_a_garbled_reply_hides_a_batch_that_was_bought(running: Running) -> None:
    file_id = await upload(running)
    await running.break_with("reply_garbled", operation="batches.create")

    with pytest.raises(ValueError, match="Unterminated"):
        await create(running, file_id)

    assert len(await running.bought()) == 1


@plays("empty_list", "other_key")
@pytest.mark.parametrize("name", ["empty_list", "other_key"])
async def test_a_list_can_show_nothing_of_what_there_is(running: Running, name: str) -> None:
    batch = await run(running)
    await running.break_with(name, operation="batches.list")

    assert [each async for each in running.client.batches.list()] == []
    assert [each.id async for each in running.client.batches.list()] == [batch.id]


@plays("batch_listed_late")
async def test_a_new_batch_is_missing_from_so_many_walks_of_the_list(running: Running) -> None:
    """All pages of a walk miss it, and it can be retrieved all the same."""
    old = [(await run(running)).id for _ in range(3)]
    await running.break_with("batch_listed_late", parameters={"walks": 2})
    new = (await run(running)).id

    walks = [[each.id async for each in running.client.batches.list(limit=2)] for _ in range(3)]

    assert (await running.client.batches.retrieve(new)).id == new
    assert walks == [old[::-1], old[::-1], [new, *old[::-1]]]


@plays("creates_per_hour")
async def test_creates_are_limited_by_the_hour(tmp_path: Path) -> None:
    clock = Clock()
    async with serving(tmp_path, clock=clock) as running:
        await running.break_with("creates_per_hour", count=None, parameters={"creates_max": 2})
        file_id = await upload(running)
        for _ in range(2):
            await create(running, file_id)
        with pytest.raises(APIStatusError) as refused:
            await create(running, file_id)
        clock.now += 3600
        await create(running, file_id)
        await running.twin.worker.idle()

        assert refused.value.status_code == 429
        assert [name for name, _ in await running.struck()] == ["creates_per_hour"]


@plays("counts_wrong", "stale_status")
async def test_a_batch_can_be_shown_as_it_is_not(running: Running) -> None:
    """Counts below zero, and a state that it has left; the next look is true."""
    batch = await run(running)
    await running.break_with("counts_wrong")
    await running.break_with("stale_status", nth=2)

    wrong, stale, true = [await running.client.batches.retrieve(batch.id) for _ in range(3)]

    assert wrong.request_counts is not None
    assert (wrong.request_counts.total, wrong.request_counts.completed, wrong.request_counts.failed) == (0, -1, -1)
    assert (stale.status, stale.output_file_id) == ("validating", None)
    assert true == batch


@plays("cancel_ignored")
async def test_a_cancel_can_be_answered_and_ignored(tmp_path: Path) -> None:
    gate = Gate()
    async with gate.serving() as image_url, serving(tmp_path) as running:
        batch_id = await running.submit([line("slow", image_url)])
        await gate.asked.wait()
        await running.break_with("cancel_ignored")
        answered = await running.client.batches.cancel(batch_id)
        shown = await running.client.batches.retrieve(batch_id)
        gate.open.set()
        await running.twin.worker.idle()

        assert (answered.status, shown.status) == ("cancelling", "in_progress")
        assert (await running.client.batches.retrieve(batch_id)).status == "completed"


@plays("truncated_download")
async def test_a_download_can_break_in_the_middle(running: Running) -> None:
    batch = await run(running, "a", "b")
    await running.break_with("truncated_download")

    with pytest.raises((httpx2.RemoteProtocolError, APIConnectionError)):
        await results(running, batch.output_file_id)

    assert len(await results(running, batch.output_file_id)) == 2


@plays("short_download")
@pytest.mark.parametrize("whole_lines", [False, True])
async def test_a_download_can_be_short_and_look_whole(running: Running, whole_lines: bool) -> None:
    """The length is what was sent; in the middle of a line, or behind one, which only the counts give away."""
    batch = await run(running, "a", "b", "c")
    whole = (await running.client.files.content(str(batch.output_file_id))).content
    await running.break_with("short_download", parameters={"fraction": 0.8, "whole_lines": whole_lines})

    short = await running.client.files.content(str(batch.output_file_id))

    assert whole.startswith(short.content)
    assert short.response.headers["content-length"] == str(len(short.content))
    assert short.content.count(b"\n") == 2
    assert short.content.endswith(b"\n") == whole_lines


FAILURES: Final = [
    ("validation_failed", {}, [("invalid_json_line", 1)]),
    ("validation_failed", {"code": "url_mismatch", "lines": [2, 5]}, [("url_mismatch", 2), ("url_mismatch", 5)]),
    ("token_limit_exceeded", {}, [("token_limit_exceeded", None)]),
    ("enqueued_limit", {"tokens_max": 1999}, [("token_limit_exceeded", None)]),
    ("input_file_lost", {}, [("invalid_file_id", None)]),
]


@plays(*(row[0] for row in FAILURES))
@pytest.mark.parametrize(("name", "parameters", "expected"), FAILURES)
async def test_a_batch_can_fail_after_its_create_was_answered(
    running: Running, name: str, parameters: dict[str, Any], expected: list[tuple[str, int | None]]
) -> None:
    """create() is 200; then the batch is failed with its code and lines, and the input file is left behind."""
    await running.break_with(name, parameters=parameters, model=MODEL)

    batch = await run(running, "a", "b")

    assert batch.status == "failed"
    assert [(error.code, error.line) for error in batch.errors.data] == expected
    assert (await running.client.files.retrieve(batch.input_file_id)).id == batch.input_file_id
    assert await running.struck() == [(name, [batch.id])]


async def test_the_enqueued_limit_counts_only_batches_that_have_not_ended(running: Running) -> None:
    await running.break_with("enqueued_limit", count=None, parameters={"tokens_max": 2000})
    await running.break_with("stalls", parameters=FOREVER, id="stall")
    first = await create(running, await upload(running, "a", "b"))
    await until(running.struck)

    refused = await create(running, await upload(running, "c"))
    await until(lambda: _ended(running, refused.id))
    await running.own("DELETE", "faults/stall")
    await running.twin.worker.idle()
    taken = await run(running, "c")

    statuses = [(await running.client.batches.retrieve(each.id)).status for each in (first, refused, taken)]
    assert statuses == ["completed", "failed", "completed"]


async def _ended(running: Running, batch_id: str) -> bool:
    return (await running.client.batches.retrieve(batch_id)).status in ("failed", "completed", "expired", "cancelled")


@plays("ends_expired", "ends_cancelled", "ends_expired_opaquely")
@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("ends_expired", "expired", "batch_expired"),
        ("ends_cancelled", "cancelled", "batch_cancelled"),
        ("ends_expired_opaquely", "expired", "server_error"),
    ],
)
async def test_a_batch_that_ends_early_keeps_what_was_done(running: Running, name: str, status: str, code: str) -> None:
    """So many lines are in the output file and counted, the others are errors."""
    await running.break_with(name, parameters={"after_lines": 2})

    batch = await run(running, "a", "b", "c", "d", "e")

    assert (batch.status, batch.request_counts.completed, batch.request_counts.total) == (status, 2, 5)
    assert {each["custom_id"] for each in await results(running, batch.output_file_id)} == {"a", "b"}
    errors = await results(running, batch.error_file_id)
    codes = {(each["error"] or each["response"]["body"]["error"])["code"] for each in errors}
    assert ({each["custom_id"] for each in errors}, codes) == ({"c", "d", "e"}, {code})
    assert await running.struck() == [(name, [batch.id])]


@plays("stalls")
async def test_a_batch_can_stall_until_it_is_cancelled_or_let_go(running: Running) -> None:
    fault_id = await running.break_with("stalls", count=2, parameters={**FOREVER, "after_lines": 1})
    ids = [(await create(running, await upload(running, "a", "b"))).id for _ in range(2)]

    async def both_stalled() -> bool:
        return len(await running.struck()) == 2

    await until(both_stalled)
    stalled = [await running.client.batches.retrieve(batch_id) for batch_id in ids]
    await running.client.batches.cancel(ids[0])
    await until(lambda: _ended(running, ids[0]))
    await running.own("DELETE", f"faults/{fault_id}")
    await running.twin.worker.idle()

    assert [batch.status for batch in stalled] == ["in_progress", "in_progress"]
    assert [(await running.client.batches.retrieve(each)).status for each in ids] == ["cancelled", "completed"]


@plays("all_lines_failed")
async def test_a_batch_whose_lines_all_fail_is_completed_without_output(running: Running) -> None:
    await running.break_with("all_lines_failed", parameters={"line": "line_model_not_found"})

    batch = await run(running, "a", "b")

    assert (batch.status, batch.output_file_id, batch.request_counts.failed) == ("completed", None, 2)
    assert {each["response"]["status_code"] for each in await results(running, batch.error_file_id)} == {404}
    assert await running.struck() == [("all_lines_failed", [batch.id])]


@plays("line_request_timeout")
@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("line_model_not_found", 404, "model_not_found"),
        ("line_image_unreachable", 400, "invalid_image_url"),
        ("line_bad_request", 400, "invalid_value"),
        ("line_server_error", 500, "server_error"),
        ("line_rate_limited", 429, "rate_limit_exceeded"),
        ("line_request_timeout", None, "request_timeout"),
    ],
)
async def test_a_line_can_fail_beside_good_neighbours(
    running: Running, name: str, status: int | None, code: str
) -> None:
    await running.break_with(name, operation="batch.line", object="b")

    batch = await run(running, "a", "b", "c")

    (failed,) = await results(running, batch.error_file_id)
    response = failed["response"]
    assert (failed["custom_id"], response and response["status_code"]) == ("b", status)
    assert (failed["error"] or response["body"]["error"])["code"] == code
    assert (batch.request_counts.completed, batch.request_counts.failed) == (2, 1)
    assert await running.struck() == [(name, [batch.id, "b"])]


@plays("answer_cut")
async def test_an_answer_can_be_cut(running: Running) -> None:
    """In a batch and in a call, with its reason; it is a completion all the same."""
    await running.break_with("answer_cut", count=2, parameters={"finish_reason": "content_filter"})

    called = await running.client.chat.completions.create(**chat(RED))
    (answered,) = await results(running, (await run(running)).output_file_id)

    assert called.choices[0].finish_reason == "content_filter"
    assert answered["response"]["body"]["choices"][0]["finish_reason"] == "content_filter"
    assert wrong_with(ChatCompletion, answered["response"]["body"], "line") == []


@plays("slow_finalizing")
async def test_a_batch_can_be_counted_whole_and_have_no_file_yet(running: Running) -> None:
    fault_id = await running.break_with("slow_finalizing", parameters=FOREVER)
    batch = await create(running, await upload(running, "a", "b"))
    await until(running.struck)

    slow = await running.client.batches.retrieve(batch.id)
    await running.own("DELETE", f"faults/{fault_id}")
    await running.twin.worker.idle()

    assert slow.request_counts is not None
    assert (slow.status, slow.request_counts.completed, slow.output_file_id) == ("finalizing", 2, None)
    assert (await running.client.batches.retrieve(batch.id)).output_file_id is not None


@plays("file_id_empty", "file_id_null", "result_file_gone")
async def test_file_ids_can_be_empty_null_or_of_a_file_that_is_gone(running: Running) -> None:
    await running.break_with("file_id_empty")
    empty = await run(running)
    await running.break_with("line_server_error", object="b", operation="batch.line")
    await running.break_with("file_id_null")
    null = await run(running, "a", "b")
    await running.break_with("result_file_gone")
    gone = await run(running)

    assert (bool(empty.output_file_id), empty.error_file_id) == (True, "")
    assert (null.request_counts.failed, null.error_file_id) == (1, None)
    with pytest.raises(NotFoundError):
        await running.client.files.content(gone.output_file_id)


@plays("results_reversed")
async def test_results_can_stand_backwards(tmp_path: Path) -> None:
    orders = []
    for name in ("as it is", "backwards"):
        async with serving(tmp_path / name) as running:
            if name == "backwards":
                await running.break_with("results_reversed")
            batch = await run(running, *"abcdefgh")
            orders.append([each["custom_id"] for each in await results(running, batch.output_file_id)])

    assert orders[0] == orders[1][::-1] != sorted(orders[0])


@plays("garbage_line", "line_without_outcome", "custom_id_missing", "custom_id_unknown", "custom_id_duplicated")
@plays("result_missing")
@pytest.mark.parametrize("file", ["output", "error"])
@pytest.mark.parametrize(
    ("name", "parameters", "expected"),
    [
        ("garbage_line", {}, ["?", "+"]),
        ("garbage_line", {"instead": False}, ["+", "+", "?"]),
        ("line_without_outcome", {}, ["+", "-"]),
        ("custom_id_missing", {}, ["+", "nameless"]),
        ("custom_id_unknown", {}, ["+", "unknown"]),
        ("custom_id_duplicated", {}, ["+", "+", "+"]),
        ("custom_id_duplicated", {"other_answer": True}, ["+", "+", "+"]),
        ("result_missing", {}, ["+"]),
    ],
)
async def test_a_result_file_can_have_a_bad_line(
    running: Running, name: str, parameters: dict[str, Any], expected: list[str], file: str
) -> None:
    """One line of the file suffers, the counts and the books say what was done."""
    if file == "error":
        await running.break_with("all_lines_failed")
    await running.break_with(name, parameters={**parameters, "file": file})

    batch = await run(running, "a", "b")
    content = (await running.client.files.content(str(getattr(batch, f"{file}_file_id")))).text.splitlines()

    lines = [_read(each) for each in content]
    assert sorted(_look(each) for each in lines) == sorted(expected)
    if name == "custom_id_duplicated":
        first, last = (each for each in lines if each and each["custom_id"] == lines[0]["custom_id"])  # type: ignore[index]
        assert first["id"] != last["id"]
    assert batch.request_counts.completed + batch.request_counts.failed == 2
    assert (name, [batch.id]) in await running.struck()


def _read(text: str) -> dict[str, Any] | None:
    try:
        read: dict[str, Any] = json.loads(text)
    except ValueError:
        return None
    return read


def _look(record: dict[str, Any] | None) -> str:
    if record is None:
        return "?"
    if "custom_id" not in record:
        return "nameless"
    if record["custom_id"] not in ("a", "b"):
        return "unknown"
    return "+" if record["response"] or record["error"] else "-"


class Receiver:
    """A web server that takes webhooks, and says 200 unless a test wants something else first."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.taken: asyncio.Queue[tuple[dict[str, str], bytes]] = asyncio.Queue()

    @asynccontextmanager
    async def listening(self, running: Running, **more: Any) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_post("/hook", self._take)
        async with TestServer(app) as server:
            target = {"url": str(server.make_url("/hook")), "secret": SECRET, "retry_seconds": 0, **more}
            status, shown = await running.own("PUT", "webhooks", target)
            assert (status, shown["webhook"]["secret"]) == (200, "whsec_...")
            yield

    async def next(self) -> tuple[dict[str, str], bytes]:
        async with asyncio.timeout(10):
            return await self.taken.get()

    async def _take(self, request: web.Request) -> web.Response:
        self.taken.put_nowait((dict(request.headers), await request.read()))
        return web.Response(status=self.answers.pop(0) if self.answers else 200)


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (None, "completed"),
        ("token_limit_exceeded", "failed"),
        ("ends_expired", "expired"),
        ("ends_cancelled", "cancelled"),
    ],
)
async def test_each_end_of_a_batch_is_told_by_a_signed_webhook(
    running: Running, fault: str | None, status: str
) -> None:
    """The client's own check of signatures takes it, and it names the batch; the batch is retrievable as ended."""
    receiver = Receiver()
    async with receiver.listening(running):
        if fault:
            await running.break_with(fault)
        batch = await run(running, "a", "b")
        headers, body = await receiver.next()

    event: Any = running.client.webhooks.unwrap(body, headers, secret=SECRET)
    assert (event.type, event.data.id, batch.status) == (f"batch.{status}", batch.id, status)
    assert wrong_with(type(event), json.loads(body), "webhook") == []


async def test_a_webhook_is_tried_again_until_it_is_taken(running: Running) -> None:
    """Any status but 2xx is a failure, a redirect as well; the id stays the same."""
    receiver = Receiver()
    receiver.answers = [500, 302]
    async with receiver.listening(running):
        await run(running)
        ids = [(await receiver.next())[0]["webhook-id"] for _ in range(3)]
        await until(lambda: _outcomes(running, 3))
        _, books = await running.own("GET", "books")

    assert len(set(ids)) == 1
    assert [each["outcome"] for each in books["webhooks"]] == [500, 302, 200]


async def test_a_webhook_is_given_up_after_so_many_tries(running: Running) -> None:
    receiver = Receiver()
    receiver.answers = [500] * 3
    async with receiver.listening(running, attempts_max=2):
        await run(running)
        await until(lambda: _outcomes(running, 2))
        await run(running)
        await until(lambda: _outcomes(running, 4))
        _, books = await running.own("GET", "books")

    assert [each["outcome"] for each in books["webhooks"]] == [500, 500, 500, 200]


async def _outcomes(running: Running, count: int) -> bool:
    _, books = await running.own("GET", "books")
    return len(books["webhooks"]) == count


@plays("webhook_missigned", "webhook_stale")
@pytest.mark.parametrize("name", ["webhook_missigned", "webhook_stale"])
async def test_a_webhook_can_be_one_that_must_not_be_believed(running: Running, name: str) -> None:
    """The client refuses it; when the receiver does, the next try is good."""
    receiver = Receiver()
    receiver.answers = [400]
    async with receiver.listening(running):
        await running.break_with(name)
        await run(running)
        (bad_headers, bad), (headers, good) = await receiver.next(), await receiver.next()

    with pytest.raises((InvalidWebhookSignatureError, ValueError)):
        running.client.webhooks.unwrap(bad, bad_headers, secret=SECRET)
    assert running.client.webhooks.unwrap(good, headers, secret=SECRET).type == "batch.completed"


@plays("webhook_duplicated", "webhook_lost", "webhook_late", "webhook_reordered")
async def test_webhooks_can_come_twice_late_in_another_order_or_never(running: Running) -> None:
    receiver = Receiver()
    async with receiver.listening(running):
        await running.break_with("webhook_lost")
        lost = await run(running)
        await running.break_with("webhook_duplicated")
        twice = await run(running)
        told = [await receiver.next() for _ in range(2)]
        late_id = await running.break_with("webhook_late", parameters=FOREVER)
        late = await run(running)
        await until(lambda: _struck_with(running, "webhook_late"))
        await running.break_with("webhook_reordered", parameters=FOREVER)
        second = await run(running)
        await until(lambda: _struck_with(running, "webhook_reordered"))
        first = await run(running)
        told += [await receiver.next() for _ in range(2)]
        await running.own("DELETE", f"faults/{late_id}")
        told.append(await receiver.next())

    ids = [json.loads(body)["data"]["id"] for _, body in told]
    assert ids == [twice.id, twice.id, first.id, second.id, late.id]
    assert told[0][0]["webhook-id"] == told[1][0]["webhook-id"]
    assert lost.id not in ids


async def _struck_with(running: Running, name: str) -> bool:
    return name in [struck for struck, _ in await running.struck()]


async def test_a_webhook_that_was_not_told_is_told_after_a_restart(tmp_path: Path) -> None:
    receiver = Receiver()
    async with serving(tmp_path) as running, receiver.listening(running):
        await running.break_with("webhook_late", parameters=FOREVER)
        batch = await run(running)
        await until(running.struck)
    async with serving(tmp_path) as running, receiver.listening(running):
        _, body = await receiver.next()

    assert json.loads(body)["data"]["id"] == batch.id


async def test_a_storm_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    """Three twins, the same calls: two of one seed suffer the same, one of another does not."""
    quick = [kind.name for kind in KINDS.values() if kind.storm and "late_seconds" not in kind.parameters]
    storms = []
    for name, seed in (("one", 3), ("again", 3), ("other", 4)):
        async with serving(tmp_path / name, faults={"storm": {"seed": seed, "rate": 0.3, "names": quick}}) as running:
            for _ in range(40):
                try:
                    await running.client.batches.list()
                except (APIStatusError, APIConnectionError, ValueError):
                    continue
            storms.append([struck for struck, _ in await running.struck()])

    assert storms[0] == storms[1] != storms[2]
    assert 5 < len(storms[0]) < 25


async def test_the_books_of_a_storm_are_true(running: Running) -> None:
    """Whatever the client was told, each batch of the books is there, and each that it was told of is in the books."""
    await running.own("PUT", "faults", {"storm": {"seed": 11, "rate": 0.3}})
    told = []
    for _ in range(12):
        try:
            told.append((await create(running, await upload(running, "a", "b"))).id)
        except (APIStatusError, APIConnectionError, ValueError):
            continue
    await running.own("DELETE", "faults")
    await running.twin.worker.idle()

    bought = await running.bought()
    assert set(told) <= set(bought)
    listed = [[each.id async for each in running.client.batches.list(limit=100)] for _ in range(2)]
    assert sorted(listed[1]) == sorted(bought)
    assert all([await _ended(running, batch_id) for batch_id in bought])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"name": "rate_limit"}, "no fault is called 'rate_limit'"),
        ({"name": "stalls", "operation": "files.create"}, "stalls strikes at batch.run"),
        ({"name": "rate_limited", "model": MODEL}, "model is known only at"),
        ({"name": "rate_limited", "counts": 2}, "a fault has no 'counts'"),
        ({"name": "rate_limited", "count": 0}, "count must be a whole number, at least 1"),
        ({"name": "rate_limited", "nth": True}, "nth must be a whole number"),
        ({"name": "rate_limited", "probability": 0}, "probability must be"),
        ({"name": "rate_limited", "parameters": {"seconds": 1}}, "has no 'seconds'"),
        ({"name": "rate_limited", "parameters": {"retry_after_seconds": "1"}}, "is no retry_after_seconds"),
        ({"name": "garbage_line", "parameters": {"file": "input"}}, "is no file"),
        ({"name": "all_lines_failed", "parameters": {"line": "stalls"}}, "is no line"),
        ([], "a fault must be a JSON object"),
    ],
)
async def test_a_fault_that_there_is_not_is_refused_with_a_sentence(running: Running, asked: Any, said: str) -> None:
    before = await running.own("GET", "faults")

    status, refused = await running.own("POST", "faults", asked)
    replaced, _ = await running.own("PUT", "faults", {"faults": [asked]})

    assert (status, replaced) == (400, 400)
    assert said in refused["error"]["message"]
    assert before == await running.own("GET", "faults")


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"url": "ftp://x", "secret": SECRET},
        {"url": "http://x", "secret": "x"},
        {"url": "http://x", "secret": "whsec_"},
    ],
)
async def test_a_webhook_that_cannot_be_is_refused(running: Running, asked: dict[str, str]) -> None:
    status, _ = await running.own("PUT", "webhooks", asked)

    assert status == 400
    assert await running.own("GET", "webhooks") == (200, {"webhook": None})


async def test_a_script_outlives_a_restart_and_strikes_no_more_than_it_may(tmp_path: Path) -> None:
    """With the same command line it goes on where it was; with another it begins anew."""
    given = {"faults": ["rate_limited"]}
    for expected, faults in ((429, given), (200, given), (503, {"faults": ["unavailable"]})):
        async with serving(tmp_path, faults=faults) as running:
            status = 200
            try:
                await running.client.batches.list()
            except APIStatusError as refused:
                status = refused.status_code
            assert status == expected


def test_a_stack_starts_its_twin_with_faults_and_a_webhook(tmp_path: Path) -> None:
    """The plan's script and receiver reach the twin's process by its command line."""
    plan = Plan(
        ports=free_ports(),
        parts=("openai_twin",),
        faults={"faults": ["rate_limited"], "storm": None},
        webhook_url="http://127.0.0.1:1/hook",
    )
    with (
        Stack(tmp_path, plan) as stack,
        OpenAI(base_url=stack.openai_base_url, api_key=stack.keys.openai_twin(), max_retries=0) as client,
    ):
        with pytest.raises(RateLimitError):
            client.batches.list()
        beside_v1 = client.with_options(base_url=stack.openai_base_url.removesuffix("/v1"))
        books = beside_v1.get("/twin/books", cast_to=dict[str, Any])
        webhook = beside_v1.get("/twin/webhooks", cast_to=dict[str, Any])["webhook"]

    assert [each["name"] for each in books["faults"]] == ["rate_limited"]
    assert webhook["url"] == plan.webhook_url


async def test_the_vocabulary_can_be_asked_for(running: Running) -> None:
    _, shown = await running.own("GET", "faults/vocabulary")

    assert [kind["name"] for kind in shown["kinds"]] == list(KINDS)
    assert (await running.own("DELETE", "faults/nothing"))[0] == 404


def test_each_word_of_the_vocabulary_has_a_test() -> None:
    assert set(KINDS) == TESTED
