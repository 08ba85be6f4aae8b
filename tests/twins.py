"""A running twin of the provider, a client of it, and what to send it."""

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
from aiohttp import web
from aiohttp.test_utils import BaseTestServer, TestServer
from openai import AsyncOpenAI
from PIL import Image

from sandbox.openai_twin.http_api import Twin
from tests import openai_shapes

SAMPLES = Path(__file__).parents[1] / "sandbox" / "samples"
ENDPOINT: Final = "/v1/chat/completions"
MODEL = "gpt-4.1-mini"
KEY = "sk-twin"


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Running:
    """A twin that is served, and a client of it."""

    def __init__(self, twin: Twin, server: BaseTestServer) -> None:
        self.twin = twin
        self.client = AsyncOpenAI(base_url=str(server.make_url("/v1")), api_key=KEY, max_retries=0)
        self.url = str(server.make_url("/"))

    async def submit(self, lines: Sequence[bytes], **more: Any) -> str:
        """Uploads lines and makes them a batch; returns its id."""
        file = await self.client.files.create(file=("in.jsonl", b"\n".join(lines)), purpose="batch")
        batch = await self.client.batches.create(
            input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h", **more
        )
        assert batch.status == "validating"
        return batch.id

    async def own(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Calls one of the twin's own routes; gives status and JSON."""
        headers = {"Authorization": f"Bearer {KEY}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.request(method, f"{self.url}twin/{path}", json=body) as answer,
        ):
            return answer.status, await answer.json()

    async def break_with(self, name: str, **more: Any) -> str:
        """Adds a fault to the twin's script; gives its id."""
        status, fault = await self.own("POST", "faults", {"name": name, **more})
        assert status == 201, fault
        return str(fault["id"])

    async def struck(self) -> list[tuple[str, list[str]]]:
        """What struck so far, and whom."""
        _, books = await self.own("GET", "books")
        return [(each["name"], each["objects"]) for each in books["faults"]]

    async def bought(self) -> list[str]:
        """The batches that the books list."""
        _, books = await self.own("GET", "books")
        return [each["id"] for each in books["batches"]]

    async def lines_of(self, file_id: str | None) -> list[dict[str, Any]]:
        """The lines of a result file, streamed."""
        if not file_id:
            return []
        content = b""
        async with self.client.files.with_streaming_response.content(file_id) as response:
            async for chunk in response.iter_bytes():
                content += chunk
        return [json.loads(line) for line in content.splitlines()]


@asynccontextmanager
async def serving(data: Path, **settings: Any) -> AsyncIterator[Running]:
    """A twin in this process, of which every JSON answer is checked against the client's types."""
    twin = Twin(data, api_key=KEY, **settings)
    app = twin.app()
    wrong: list[str] = []

    async def check(request: web.Request, response: web.StreamResponse) -> None:
        wrong.extend(openai_shapes.wrong_in(request, response))

    app.on_response_prepare.append(check)
    async with TestServer(app) as server:
        running = Running(twin, server)
        try:
            yield running
        finally:
            await running.client.close()
    assert wrong == []


async def books_of(client: AsyncOpenAI) -> dict[str, Any]:
    """What was bought of a twin."""
    beside_v1 = client.with_options(base_url=str(client.base_url).removesuffix("v1/"))
    return await beside_v1.get("/twin/books", cast_to=dict[str, Any])


def data_url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def painted(colour: str) -> str:
    content = io.BytesIO()
    Image.new("RGB", (12, 8), colour).save(content, "PNG")
    return data_url(content.getvalue())


def chat(url: str, prompt: str = "Describe this.", model: str = MODEL) -> dict[str, Any]:
    parts = [{"type": "text", "text": prompt}, {"type": "image_url", "image_url": {"url": url}}]
    return {"model": model, "messages": [{"role": "user", "content": parts}]}


def line(custom_id: str, url: str, **more: Any) -> bytes:
    body = chat(url, **more)
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body}).encode()


class Gate:
    """A web server of one image that answers when a test lets it."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.open = asyncio.Event()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_get("/cat.webp", self._answer)
        async with TestServer(app) as server:
            yield str(server.make_url("/cat.webp"))

    async def _answer(self, _: web.Request) -> web.StreamResponse:
        self.asked.set()
        await self.open.wait()
        return web.FileResponse(SAMPLES / "cat.webp")
