"""The adapter against the twin for what works, and against a server of faults for what does not."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from sandbox.openai_twin.batch_worker import Pace
from sandbox.openai_twin.http_api import Twin
from services.batcher import batch_file
from services.batcher.job import Answer
from services.batcher.openai_api import (
    OpenAIApi,
    ProviderBatch,
    ProviderBusy,
    ProviderDoubt,
    ProviderError,
    ProviderMissing,
    ProviderRefused,
)

SAMPLES = Path(__file__).parents[2] / "sandbox" / "samples"
CAT = batch_file.data_url(batch_file.Inline("image/webp", (SAMPLES / "cat.webp").read_bytes()))
MODEL = "gpt-4.1-mini"
KEY = "sk-twin"
Call = Callable[[OpenAIApi], Awaitable[object]]


class Running(NamedTuple):
    """A twin that is served, and the adapter to it."""

    api: OpenAIApi
    twin: Twin

    async def bought(self, folder: Path, lines: list[bytes], **metadata: str) -> ProviderBatch:
        """A batch of these lines."""
        path = folder / "input.jsonl"
        path.write_bytes(b"".join(lines))
        file_id = await self.api.upload_input(path, "b-1.jsonl")
        return await self.api.create_batch(file_id, metadata, 10)


@asynccontextmanager
async def twin_in(folder: Path, **settings: Any) -> AsyncIterator[Running]:
    """Serves a twin."""
    twin = Twin(folder, api_key=KEY, **settings)
    async with TestServer(twin.app()) as server:
        api = OpenAIApi(KEY, base_url=str(server.make_url("/v1")), timeout_seconds=10)
        yield Running(api, twin)
        await api.close()


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    """A quick twin."""
    async with twin_in(tmp_path / "twin") as served:
        yield served


def cat_line(custom_id: str, prompt: str = "Describe this.", image_url: str = CAT) -> bytes:
    """A request about the cat."""
    return b"".join(batch_file.encode_line(custom_id, MODEL, prompt, "low", 64, image_url))


def names_in(folder: Path) -> set[str]:
    """What lies in a folder."""
    return {path.name for path in folder.iterdir()}


async def test_a_batch_goes_there_and_its_answers_come_back(running: Running, tmp_path: Path) -> None:
    """A file is uploaded, a batch made of it, and each line of its files names its request and has an outcome."""
    bought = await running.bought(
        tmp_path, [cat_line("a.1"), cat_line("b.1", image_url="data:,no image")], intent="i-1"
    )
    assert (bought.status, bought.metadata, bought.output_file_id) == ("validating", {"intent": "i-1"}, None)
    await running.twin.worker.idle()

    batch = await running.api.retrieve(bought.id)
    assert (batch.status, batch.total, batch.completed, batch.failed) == ("completed", 2, 1, 1)
    outcomes = {}
    for file_id in (batch.output_file_id, batch.error_file_id):
        assert file_id is not None
        path = tmp_path / "result.jsonl"
        assert await running.api.download(file_id, path) == path.stat().st_size
        for line in path.read_bytes().splitlines():
            result = batch_file.parse_result_line(line)
            assert result is not None
            outcomes[result.custom_id] = result.outcome
    assert isinstance(outcomes["a.1"], Answer)
    assert outcomes["a.1"].output_tokens > 0
    assert isinstance(outcomes["b.1"], batch_file.LineFailure)
    assert not outcomes["b.1"].retryable


async def test_a_refused_file_says_why(running: Running, tmp_path: Path) -> None:
    """A batch of a bad file fails after its create, with codes and the lines that they are about."""
    bought = await running.bought(tmp_path, [cat_line("a.1"), b"not json\n"])
    await running.twin.worker.idle()
    batch = await running.api.retrieve(bought.id)
    assert batch.status == "failed"
    assert [(error.code, error.line) for error in batch.errors] == [("invalid_json_line", 2)]
    assert batch.errors[0].message.startswith("line 2: ")


async def test_a_lost_create_is_found_by_its_metadata(tmp_path: Path) -> None:
    """The list has every batch since a time, over all its pages, and none from before it."""
    times = iter(range(1_800_000_000, 1_900_000_000))
    idle = Pace(validating_seconds=3600)
    async with twin_in(tmp_path / "twin", clock=lambda: float(next(times)), pace=idle) as running:
        batches = [await running.bought(tmp_path, [cat_line("a.1")], intent=f"i-{number}") for number in range(105)]
        listed = await running.api.list_since(batches[1].created_at)
    assert [batch.metadata["intent"] for batch in listed] == [f"i-{number}" for number in range(104, 0, -1)]


async def test_a_cancelled_batch_ends(tmp_path: Path) -> None:
    """A batch that waits can be cancelled."""
    async with twin_in(tmp_path / "twin", pace=Pace(validating_seconds=3600)) as running:
        bought = await running.bought(tmp_path, [cat_line("a.1")])
        assert (await running.api.cancel(bought.id)).status in {"cancelling", "cancelled"}


async def test_a_deleted_file_is_gone(running: Running, tmp_path: Path) -> None:
    """Deleting an input file twice is fine, and a batch made of it afterwards is refused or fails."""
    path = tmp_path / "input.jsonl"
    path.write_bytes(cat_line("a.1"))
    file_id = await running.api.upload_input(path, "b-1.jsonl")
    await running.api.delete_file(file_id)
    await running.api.delete_file(file_id)
    with pytest.raises(ProviderMissing):
        await running.api.download(file_id, tmp_path / "copy.jsonl")
    assert names_in(tmp_path) == {"input.jsonl", "twin"}
    try:
        batch = await running.api.create_batch(file_id, {}, 10)
    except (ProviderRefused, ProviderMissing):
        return
    await running.twin.worker.idle()
    assert (await running.api.retrieve(batch.id)).status == "failed"


async def test_an_instant_answer(running: Running) -> None:
    """A question asked at once has its answer at once."""
    answer = await running.api.answer_now(MODEL, "Describe this.", "HIGH", 64, CAT, 10)
    assert answer.text
    assert answer.finish_reason in {"stop", "length"}
    assert answer.input_tokens > 0


async def test_a_wrong_key_is_refused_without_being_told(tmp_path: Path) -> None:
    """A key that is not accepted is our fault and not the request's, and no part of it is repeated."""
    async with TestServer(Twin(tmp_path, api_key="sk-other").app()) as server:
        api = OpenAIApi(KEY, base_url=str(server.make_url("/v1")))
        with pytest.raises(ProviderRefused) as caught:
            await api.retrieve("batch_1")
        await api.close()
    assert not caught.value.permanent
    assert "sk-" not in str(caught.value)


async def test_a_batch_of_nobody_is_missing(running: Running) -> None:
    """A batch that is not there, for this key, is missing."""
    with pytest.raises(ProviderMissing):
        await running.api.retrieve("batch_none")


def test_without_a_key_there_is_no_provider() -> None:
    """A key that was forgotten is told at the start, by the name of its variable."""
    with pytest.raises(ValueError, match="OPENAI_API_KEY"):
        OpenAIApi("")


def test_the_identity_outlives_a_key_of_a_project() -> None:
    """With a project keys may be rotated; without one another key is another identity. No key is in it."""
    by_project = {OpenAIApi(key, project="proj_1").provider_identity() for key in ("sk-one", "sk-two")}
    by_key = {OpenAIApi(key, base_url="http://127.0.0.1:1/v1").provider_identity() for key in ("sk-one", "sk-two")}
    assert len(by_project) == 1
    assert len(by_key) == 2
    assert not any("sk-" in identity for identity in by_project | by_key)


class Faults:
    """A server that answers every request with one fault, and counts requests."""

    def __init__(self) -> None:
        self.requests = 0
        self.released = asyncio.Event()
        self.answer: Callable[[web.Request], Awaitable[web.StreamResponse]] = self.hang

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Reads the request whole and answers with the fault of the moment."""
        self.requests += 1
        await request.read()
        return await self.answer(request)

    async def hang(self, _: web.Request) -> web.StreamResponse:
        """Answers never, as far as the test goes."""
        await self.released.wait()
        return web.Response()

    async def hang_up(self, request: web.Request) -> web.StreamResponse:
        """Closes the connection instead of answering."""
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    async def break_off(self, request: web.Request) -> web.StreamResponse:
        """Sends half of what it announced."""
        response = web.StreamResponse(headers={"Content-Length": "2000000"})
        await response.prepare(request)
        await response.write(b"x" * 1_000_000)
        assert request.transport is not None
        request.transport.close()
        return response

    def status(self, status: int, error: object, **headers: str) -> None:
        """Answers with a status and an error object from now on."""

        async def answer(_: web.Request) -> web.StreamResponse:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return web.json_response({"error": error}, status=status, headers=named)

        self.answer = answer

    def text(self, text: str) -> None:
        """Answers 200 with this text from now on."""

        async def answer(_: web.Request) -> web.StreamResponse:
            return web.Response(text=text, content_type="application/json")

        self.answer = answer


class Faulty(NamedTuple):
    """The faults, and the adapter to them."""

    api: OpenAIApi
    faults: Faults


@pytest.fixture
async def faulty() -> AsyncIterator[Faulty]:
    """A provider out of order."""
    faults = Faults()
    app = web.Application()
    app.router.add_route("*", "/v1/{path:.*}", faults.handle)
    async with TestServer(app) as server:
        api = OpenAIApi(KEY, base_url=str(server.make_url("/v1")), timeout_seconds=10)
        yield Faulty(api, faults)
        faults.released.set()
        await api.close()


def create(api: OpenAIApi) -> Awaitable[object]:
    """Buys a batch."""
    return api.create_batch("file-1", {"intent": "i-1"}, 10)


def ask(api: OpenAIApi) -> Awaitable[object]:
    """Asks at once."""
    return api.answer_now(MODEL, "?", "low", 64, "https://example.com/cat.jpg", 10)


BUYING = pytest.mark.parametrize("buy", [create, ask])


@BUYING
async def test_a_hang_up_is_a_doubt_and_not_a_second_try(faulty: Faulty, buy: Call) -> None:
    """When the connection is lost after sending nobody knows what was done: it is said, and not tried again."""
    faulty.faults.answer = faulty.faults.hang_up
    with pytest.raises(ProviderDoubt):
        await buy(faulty.api)
    assert faulty.faults.requests == 1


async def test_an_answer_that_does_not_come_is_a_doubt(faulty: Faulty) -> None:
    """A create has a limit on the whole of its time."""
    with pytest.raises(ProviderDoubt, match=r"0\.05 seconds"):
        await faulty.api.create_batch("file-1", {}, 0.05)
    with pytest.raises(ProviderDoubt):
        await faulty.api.answer_now(MODEL, "?", "low", 64, "https://example.com/cat.jpg", 0.05)


@BUYING
@pytest.mark.parametrize("status", [500, 502, 503, 504, 408])
async def test_a_server_error_is_a_doubt(faulty: Faulty, buy: Call, status: int) -> None:
    """A 5xx says nothing of what was done, and buys nothing a second time."""
    faulty.faults.status(status, {"message": "The server had an error", "type": "server_error"})
    with pytest.raises(ProviderDoubt):
        await buy(faulty.api)
    assert faulty.faults.requests == 1


@BUYING
@pytest.mark.parametrize("text", ["", "ok", "[]", "null", "{}", '{"id": ""}', '{"id": "x"}', "<html>"])
async def test_a_garbled_answer_is_a_doubt(faulty: Faulty, buy: Call, text: str) -> None:
    """A 200 that is no batch and no answer leaves open what was done."""
    faulty.faults.text(text)
    with pytest.raises(ProviderDoubt):
        await buy(faulty.api)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry_After": "7"}, 7.0),
        ({"Retry_After_Ms": "1500", "Retry_After": "7"}, 1.5),
        ({"Retry_After": "Wed, 21 Oct 2026 07:28:00 GMT"}, 10.0),
        ({"Retry_After": "999999"}, 3600.0),
        ({"Retry_After": "-1"}, 10.0),
        ({}, 10.0),
    ],
)
async def test_too_many_requests_are_busy(faulty: Faulty, headers: dict[str, str], seconds: float) -> None:
    """A rate limit is a definite "not now", with the provider's own pause, bounded."""
    faulty.faults.status(429, {"message": "Rate limit reached", "code": "rate_limit_exceeded"}, **headers)
    with pytest.raises(ProviderBusy) as caught:
        await create(faulty.api)
    assert caught.value.retry_after_seconds == seconds
    assert faulty.faults.requests == 1


async def test_nobody_there_is_busy() -> None:
    """A connection that never came about did nothing: no doubt, come back later."""
    api = OpenAIApi(KEY, base_url=f"http://127.0.0.1:{unused_port()}/v1")
    with pytest.raises(ProviderBusy):
        await create(api)
    await api.close()


@pytest.mark.parametrize(
    ("status", "error", "code", "permanent"),
    [
        (400, {"message": "Invalid image", "code": "invalid_image"}, "invalid_image", True),
        (400, {"message": "Timeout while downloading", "code": "invalid_image_url"}, "invalid_image_url", False),
        (404, {"message": "No such model", "code": "model_not_found"}, "model_not_found", True),
        (413, {"message": "Too large", "type": "invalid_request_error"}, "invalid_request_error", True),
        (422, None, "http_422", True),
        (401, {"message": "Incorrect API key: sk-twin", "code": "invalid_api_key"}, "invalid_api_key", False),
        (403, {"message": "No", "code": "unsupported_country"}, "unsupported_country", False),
        (409, {"message": "Conflict", "code": "conflict"}, "conflict", False),
        (429, {"message": "Pay first", "code": "insufficient_quota"}, "insufficient_quota", False),
        (400, {"message": "Limit", "code": "billing_hard_limit_reached"}, "billing_hard_limit_reached", False),
    ],
)
async def test_a_definite_no_is_refused(faulty: Faulty, status: int, error: object, code: str, permanent: bool) -> None:
    """What the provider turns down is told with its code, and whether the request itself is at fault."""
    faulty.faults.status(status, error)
    with pytest.raises(ProviderRefused) as caught:
        await ask(faulty.api)
    assert (caught.value.code, caught.value.permanent) == (code, permanent)
    assert "sk-twin" not in str(caught.value)


async def test_a_download_that_breaks_off_leaves_no_file(faulty: Faulty, tmp_path: Path) -> None:
    """A result file is there whole or not at all."""
    faulty.faults.answer = faulty.faults.break_off
    with pytest.raises(ProviderDoubt):
        await faulty.api.download("file-1", tmp_path / "output.jsonl")
    assert names_in(tmp_path) == set()


async def test_an_empty_file_id_means_none(faulty: Faulty) -> None:
    """A result file's id may come as an empty string, which names no file; a batch may come without counts."""
    faulty.faults.text(
        '{"id": "batch_1", "object": "batch", "status": "completed", "input_file_id": "file-1", "created_at": 5,'
        ' "output_file_id": "", "error_file_id": null, "metadata": null, "errors": {"data": [{"code": null}]}}'
    )
    batch = await faulty.api.retrieve("batch_1")
    assert (batch.output_file_id, batch.error_file_id, batch.total, batch.created_at) == (None, None, 0, 5)
    assert batch.errors == [("provider_error", "The provider gave no reason.", 0)]


async def test_words_and_counts_of_a_batch_are_made_fit_for_every_store(faulty: Faulty) -> None:
    """Texts come without NUL and halves of characters, and counts that are none of lines come as 0."""
    faulty.faults.text(
        '{"id": "batch_1", "object": "batch", "status": "failed", "input_file_id": "file-1", "created_at": 5,'
        ' "request_counts": {"total": null, "completed": -1, "failed": 99999999999},'
        ' "errors": {"data": [{"code": "a\\u0000b", "message": "cut \\ud83d", "line": 7}, {"code": 17}]}}'
    )
    batch = await faulty.api.retrieve("batch_1")
    assert (batch.total, batch.completed, batch.failed) == (0, 0, 0)
    assert batch.errors == [("a\ufffdb", "line 7: cut ?", 7), ("17", "The provider gave no reason.", 0)]


async def test_every_error_is_one_of_four(faulty: Faulty, tmp_path: Path) -> None:
    """Each call of the adapter names its errors; none of the client's own gets through."""
    path = tmp_path / "input.jsonl"
    path.write_bytes(b"{}\n")
    faulty.faults.answer = faulty.faults.hang_up
    api = faulty.api
    for call in (
        api.upload_input(path, "b-1.jsonl"),
        api.retrieve("batch_1"),
        api.cancel("batch_1"),
        api.list_since(0),
        api.download("file-1", tmp_path / "output.jsonl"),
        api.delete_file("file-1"),
    ):
        with pytest.raises(ProviderError):
            await call
