"""The twin's answers are parsed by the real `openai` client, so that it cannot drift from the API."""

import asyncio
import io
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import APIConnectionError, AsyncOpenAI, AuthenticationError, BadRequestError, NotFoundError

from sandbox.openai_twin.batch_worker import Pace
from tests.ports import free_port
from tests.twins import ENDPOINT, KEY, MODEL, Clock, Gate, Running, books_of, chat, data_url, line, painted, serving


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(tmp_path) as served:
        yield served


async def test_a_batch_answers_every_line_about_its_own_image(running: Running) -> None:
    """Each custom_id gets the colour that its image was painted in, whatever the order."""
    colours = {f"job-{number}": colour for number, colour in enumerate(["red", "green", "blue", "yellow", "white"] * 8)}
    batch_id = await running.submit(
        [line(custom_id, painted(colour)) for custom_id, colour in colours.items()], metadata={"intent": "i-1"}
    )
    await running.twin.worker.idle()

    batch = await running.client.batches.retrieve(batch_id)
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (40, 40, 0)
    assert (batch.model, batch.metadata, batch.error_file_id) == (MODEL, {"intent": "i-1"}, None)
    assert batch.in_progress_at
    assert batch.finalizing_at
    assert batch.completed_at
    assert batch.expires_at == batch.created_at + 24 * 3600

    lines = await running.lines_of(batch.output_file_id)
    answers = {each["custom_id"]: each["response"]["body"]["choices"][0]["message"]["content"] for each in lines}
    assert colours.keys() == answers.keys()
    assert all(f"mostly {colour}" in answers[custom_id] for custom_id, colour in colours.items())
    assert list(answers) != list(colours)
    assert batch.usage is not None
    assert batch.usage.total_tokens == sum(each["response"]["body"]["usage"]["total_tokens"] for each in lines)


async def test_the_order_of_results_depends_on_the_seed_alone(tmp_path: Path) -> None:
    """Two twins of one seed shuffle one batch alike, and one of another seed does not."""

    async def order(name: str, seed: int) -> list[str]:
        async with serving(tmp_path / name, seed=seed) as served:
            batch_id = await served.submit([line(str(number), painted("red")) for number in range(30)])
            await served.twin.worker.idle()
            batch = await served.client.batches.retrieve(batch_id)
            return [each["custom_id"] for each in await served.lines_of(batch.output_file_id)]

    first, again, other = await order("a", 1), await order("b", 1), await order("c", 2)

    assert first == again
    assert first != other


async def test_failed_lines_go_to_the_error_file_alone(running: Running) -> None:
    """A line without a reachable image is a 400 of that line, its neighbours are answered."""
    batch_id = await running.submit(
        [
            line("good", painted("red")),
            line("gone", running.url + "twin/nothing"),
            line("nowhere", "http://127.0.0.1:1/cat.jpg"),
            line("rubbish", data_url(b"not an image")),
            line("half", "data:image/png;base64,!"),
        ]
    )
    await running.twin.worker.idle()

    batch = await running.client.batches.retrieve(batch_id)
    errors = {each["custom_id"]: each["response"] for each in await running.lines_of(batch.error_file_id)}
    assert [each["custom_id"] for each in await running.lines_of(batch.output_file_id)] == ["good"]
    assert {400} == {response["status_code"] for response in errors.values()}
    codes = {custom_id: response["body"]["error"]["code"] for custom_id, response in errors.items()}
    expected = {"gone": "invalid_image_url", "nowhere": "invalid_image_url", "half": "invalid_image_url"}
    assert expected | {"rubbish": "image_parse_error"} == codes
    assert batch.request_counts is not None
    assert batch.request_counts.failed == 4


async def test_a_batch_whose_lines_all_failed_is_completed_without_output(running: Running) -> None:
    """As the API does: completed, output_file_id null, everything in the error file."""
    batch_id = await running.submit([line("a", data_url(b"?")), line("b", data_url(b"??"))])
    await running.twin.worker.idle()

    batch = await running.client.batches.retrieve(batch_id)
    assert (batch.status, batch.output_file_id) == ("completed", None)
    assert {"a", "b"} == {each["custom_id"] for each in await running.lines_of(batch.error_file_id)}


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([line("a", painted("red")), b"{"], ("invalid_json_line", 2)),
        ([line("a", painted("red")), b"", line("a", painted("red"))], ("duplicate_custom_id", 3)),
        ([line("a", painted("red")), line("b", painted("red"), model="gpt-4o")], ("model_mismatch", 2)),
        ([], ("empty_file", None)),
    ],
)
async def test_a_bad_input_file_fails_the_batch_afterwards(
    running: Running, lines: list[bytes], expected: tuple[str, int | None]
) -> None:
    """create() answers 200; the batch turns failed and names the line."""
    batch_id = await running.submit(lines)
    await running.twin.worker.idle()

    batch = await running.client.batches.retrieve(batch_id)
    assert batch.status == "failed"
    assert batch.failed_at is not None
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert [expected] == [(error.code, error.line) for error in batch.errors.data]
    assert (batch.output_file_id, batch.error_file_id) == (None, None)


async def test_a_batch_of_a_deleted_file_fails(running: Running) -> None:
    """A late create that names a file which is gone buys nothing."""
    file = await running.client.files.create(file=("in.jsonl", line("a", painted("red"))), purpose="batch")
    assert (await running.client.files.delete(file.id)).deleted
    batch = await running.client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
    await running.twin.worker.idle()

    batch = await running.client.batches.retrieve(batch.id)
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert "Cannot find" in str(batch.errors.data[0])


async def test_files_are_stored_listed_streamed_and_deleted(running: Running) -> None:
    """The Files API: what went in comes out, until it is deleted."""
    content = b"x" * 700_000
    with io.BytesIO(content) as upload:
        first = await running.client.files.create(file=("one.jsonl", upload), purpose="batch")
    second = await running.client.files.create(
        file=("two.jsonl", b"{}"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )

    assert (first.bytes, first.filename, first.purpose) == (700_000, "one.jsonl", "batch")
    assert first.expires_at == first.created_at + 30 * 24 * 3600
    assert second.expires_at == second.created_at + 3600
    assert content == (await running.client.files.content(first.id)).content
    assert [second.id, first.id] == [file.id async for file in running.client.files.list(limit=1)]
    assert first == await running.client.files.retrieve(first.id)

    await running.client.files.delete(first.id)
    with pytest.raises(NotFoundError):
        await running.client.files.retrieve(first.id)
    with pytest.raises(NotFoundError):
        await running.client.files.content(first.id)


async def test_an_expired_file_is_gone(tmp_path: Path) -> None:
    """An hour after its creation a file of one hour answers 404."""
    clock = Clock()
    async with serving(tmp_path, clock=clock) as served:
        file = await served.client.files.create(
            file=("in.jsonl", b"{}"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
        )
        clock.now += 3600

        with pytest.raises(NotFoundError):
            await served.client.files.content(file.id)


async def test_a_batch_file_must_be_named_jsonl(running: Running) -> None:
    """The name's end is enforced at the upload."""
    with pytest.raises(BadRequestError, match=r"Must be \.jsonl"):
        await running.client.files.create(file=("lines.txt", b"{}"), purpose="batch")

    assert [file async for file in running.client.files.list()] == []


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {f"k{number}": "v" for number in range(17)}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k"),
    ],
)
async def test_a_bad_create_is_refused_at_once(running: Running, changed: dict[str, Any], param: str) -> None:
    """What needs no look into the file is a 400 that names the parameter."""
    file = await running.client.files.create(file=("in.jsonl", line("a", painted("red"))), purpose="batch")

    with pytest.raises(BadRequestError) as refused:
        await running.client.batches.create(
            **{"input_file_id": file.id, "endpoint": ENDPOINT, "completion_window": "24h", **changed}
        )

    assert param == refused.value.param


async def test_batches_are_listed_newest_first_by_cursor(running: Running) -> None:
    """Paging by `after` shows each batch once, also those created in one second."""
    created = [await running.submit([line("a", painted("red"))]) for _ in range(5)]

    listed = [batch.id async for batch in running.client.batches.list(limit=2)]

    assert created[::-1] == listed
    with pytest.raises(BadRequestError):
        await running.client.batches.list(limit=101)


async def test_a_cancelled_batch_keeps_what_was_done(tmp_path: Path) -> None:
    """Finished lines are in the output file, the others are batch_cancelled in the error file."""
    gate = Gate()
    async with gate.serving() as image_url, serving(tmp_path, pace=Pace(lines_at_once=1)) as served:
        batch_id = await served.submit(
            [line("done", painted("red")), line("slow", image_url), line("never", painted("blue"))]
        )
        await gate.asked.wait()
        midway = await served.client.batches.retrieve(batch_id)
        cancelling = await served.client.batches.cancel(batch_id)
        again = await served.client.batches.cancel(batch_id)
        gate.open.set()
        await served.twin.worker.idle()

        batch = await served.client.batches.retrieve(batch_id)
        done = {each["custom_id"] for each in await served.lines_of(batch.output_file_id)}
        missing = {each["custom_id"]: each["error"]["code"] for each in await served.lines_of(batch.error_file_id)}
        with pytest.raises(BadRequestError):
            await served.client.batches.cancel(batch_id)

    assert midway.request_counts is not None
    assert (midway.status, midway.request_counts.total, midway.request_counts.completed) == ("in_progress", 3, 1)
    assert (cancelling.status, again.status, batch.status) == ("cancelling", "cancelling", "cancelled")
    assert {"done", "slow"} == done
    assert missing == {"never": "batch_cancelled"}


async def test_a_batch_cancelled_while_validating_has_no_files(tmp_path: Path) -> None:
    """Nothing was begun, so there is nothing to show."""
    async with serving(tmp_path, pace=Pace(validating_seconds=3600)) as served:
        batch_id = await served.submit([line("a", painted("red"))])
        await served.client.batches.cancel(batch_id)
        await served.twin.worker.idle()

        batch = await served.client.batches.retrieve(batch_id)

    assert (batch.status, batch.output_file_id, batch.error_file_id) == ("cancelled", None, None)


async def test_a_batch_that_outlives_its_window_expires_with_partial_results(tmp_path: Path) -> None:
    """What was done in 24 hours is in the output file, the others are batch_expired."""
    gate, clock = Gate(), Clock()
    async with gate.serving() as image_url, serving(tmp_path, pace=Pace(lines_at_once=1), clock=clock) as served:
        batch_id = await served.submit([line("slow", image_url), line("never", painted("blue"))])
        await gate.asked.wait()
        clock.now += 24 * 3600
        gate.open.set()
        await served.twin.worker.idle()

        batch = await served.client.batches.retrieve(batch_id)
        done = [each["custom_id"] for each in await served.lines_of(batch.output_file_id)]
        missing = [(each["custom_id"], each["error"]["code"]) for each in await served.lines_of(batch.error_file_id)]

    assert (batch.status, done, missing) == ("expired", ["slow"], [("never", "batch_expired")])


async def test_deleting_the_input_does_not_stop_a_running_batch(tmp_path: Path) -> None:
    """A batch in progress has its lines already."""
    gate = Gate()
    async with gate.serving() as image_url, serving(tmp_path, pace=Pace(lines_at_once=1)) as served:
        batch_id = await served.submit([line("slow", image_url), line("next", painted("blue"))])
        await gate.asked.wait()
        batch = await served.client.batches.retrieve(batch_id)
        await served.client.files.delete(batch.input_file_id)
        gate.open.set()
        await served.twin.worker.idle()

        batch = await served.client.batches.retrieve(batch_id)

    assert batch.request_counts is not None
    assert (batch.status, batch.request_counts.completed) == ("completed", 2)


async def test_an_instant_question_is_answered_from_the_pixels(running: Running) -> None:
    """chat.completions.create gives a typed completion with usage, and the books count it."""
    completion = await running.client.chat.completions.create(**chat(painted("purple"), prompt="Answer in JSON."))

    answer = json.loads(completion.choices[0].message.content or "")
    assert (
        answer["format"],
        answer["width_pixels"],
        answer["height_pixels"],
        answer["colours"][0]["name"],
    ) == ("PNG", 12, 8, "purple")
    assert completion.usage is not None
    assert completion.usage.total_tokens > 0
    assert (await books_of(running.client))["chat_completions"] == 1


async def test_an_unreachable_image_is_a_400_of_the_instant_call(running: Running) -> None:
    """The code is invalid_image_url, and a presigned URL's signature is not repeated."""
    with pytest.raises(BadRequestError) as refused:
        await running.client.chat.completions.create(**chat("http://127.0.0.1:1/cat.jpg?X-Amz-Signature=secret"))

    assert refused.value.code == "invalid_image_url"
    assert "secret" not in str(refused.value)


async def test_every_route_wants_the_key(running: Running) -> None:
    """A wrong key is a 401 for each kind of call, the books included."""
    stranger = running.client.with_options(api_key="sk-wrong")
    calls: list[Callable[[], Any]] = [
        stranger.files.list,
        stranger.batches.list,
        lambda: stranger.batches.retrieve("batch_1"),
        lambda: stranger.chat.completions.create(**chat(painted("red"))),
        lambda: books_of(stranger),
    ]
    for call in calls:
        with pytest.raises(AuthenticationError) as refused:
            await call()
        assert refused.value.code == "invalid_api_key"


async def test_what_does_not_exist_is_404(running: Running) -> None:
    """Unknown ids and unknown paths."""
    with pytest.raises(NotFoundError):
        await running.client.batches.retrieve("batch_1")
    with pytest.raises(NotFoundError):
        await running.client.batches.cancel("batch_1")
    with pytest.raises(NotFoundError):
        await running.client.get("/responses", cast_to=dict[str, Any])


async def test_a_killed_twin_goes_on_with_its_batches(tmp_path: Path) -> None:
    """SIGKILL in the middle of a batch: after a restart it completes, each line answered once, nothing done twice."""
    gate = Gate()
    async with gate.serving() as image_url:
        lines = [line(f"job-{number}", painted("red")) for number in range(20)]
        lines.insert(10, line("slow", image_url))
        async with twin_process(tmp_path) as client:
            file = await client.files.create(file=("in.jsonl", b"\n".join(lines)), purpose="batch")
            batch = await client.batches.create(
                input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h", metadata={"intent": "i-1"}
            )
            await gate.asked.wait()
        gate.open.set()
        async with twin_process(tmp_path) as client, asyncio.timeout(30):
            before = await client.batches.retrieve(batch.id)
            while (batch := await client.batches.retrieve(batch.id)).status != "completed":
                pass
            output = (await client.files.content(str(batch.output_file_id))).text
            books = await books_of(client)

    assert before.request_counts is not None
    assert before.request_counts.completed >= 10
    custom_ids = [json.loads(each)["custom_id"] for each in output.splitlines()]
    assert sorted(custom_ids) == sorted([f"job-{number}" for number in range(20)] + ["slow"])
    assert [(each["metadata"], each["lines"]) for each in books["batches"]] == [({"intent": "i-1"}, 21)]


@asynccontextmanager
async def twin_process(data: Path) -> AsyncIterator[AsyncOpenAI]:
    """A twin in a process of its own, killed at the end."""
    port = free_port()
    arguments = ["--data", str(data), "--port", str(port), "--lines-at-once", "1"]
    root = str(Path(__file__).parents[2])
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sandbox.openai_twin", *arguments, cwd=root, env={**os.environ, "PYTHONPATH": root}
    )
    client = AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=0)
    try:
        async with asyncio.timeout(30):
            while True:
                try:
                    await client.batches.list()
                    break
                except APIConnectionError:
                    assert process.returncode is None
        yield client
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await client.close()
