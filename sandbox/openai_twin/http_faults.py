"""Lets faults strike requests: each answers in the place of a handler, or does something to its answer.

Whatever is lost, the act itself is whole or not there at all, so that the twin's books stay true. An answer that a
fault changed says so in the header x-twin-fault.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from aiohttp import web

from sandbox.openai_twin.answer import Json, RequestRefused
from sandbox.openai_twin.batch import CANCELLABLE
from sandbox.openai_twin.fault_book import FaultBook
from sandbox.openai_twin.faults import Strike
from sandbox.openai_twin.folder import Folder
from sandbox.openai_twin.line_faults import OPAQUE, cut_answer, refusal

FAULT_HEADER: Final = "x-twin-fault"
HOUR_SECONDS: Final = 3600
_CHUNK_BYTES: Final = 256 * 1024
_EMPTY_PAGE: Final[Json] = {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
_HTML: Final = "<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
# Answers a request that a fault strikes; None lets the request pass, with no effect.
Player = Callable[["HttpFaults", web.Request, Handler, Strike], Awaitable[web.StreamResponse | None]]


class HttpFaults:
    """Stands before the handlers of one twin."""

    def __init__(self, book: FaultBook, folder: Folder, clock: Callable[[], float]) -> None:
        self.book = book
        self.folder = folder
        self.clock = clock
        self.acting: set[asyncio.Task[web.StreamResponse]] = set()
        # Batches that a list does not show yet, and how often it may still be walked without them.
        self._unlisted: dict[str, int] = {}

    async def handle(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The answer to a request; raises RequestRefused."""
        operation = request.match_info.route.name
        if operation is None:
            return await handler(request)
        objects = tuple(request.match_info.values())
        strikes = self.book.draw(operation, model=await _model(request, operation), objects=objects)
        if operation == "batches.list" and "after" not in request.query:
            self._walk()
        if not strikes:
            return await handler(request)
        strike = strikes[0]
        try:
            answer = await _PLAYERS.get(strike.name, _refuse)(self, request, handler, strike)
        except RequestRefused as refused:
            answer = web.json_response(refused.body, status=refused.status)
            answer.headers.update(refused.headers)
        if answer is None:
            return await handler(request)
        if not answer.prepared:
            answer.headers[FAULT_HEADER] = strike.name
        return answer

    async def close(self) -> None:
        """Gives up what still sleeps, as a kill would."""
        for task in self.acting:
            task.cancel()
        await asyncio.gather(*self.acting, return_exceptions=True)

    def is_listed(self, batch_id: str) -> bool:
        """Whether a list shows a batch already."""
        return batch_id not in self._unlisted

    def delay_listing(self, batch_id: str, walks: int) -> None:
        """Hides a batch from the next `walks` readings of the list."""
        self._unlisted[batch_id] = walks + 1

    def _walk(self) -> None:
        self._unlisted = {batch_id: left - 1 for batch_id, left in self._unlisted.items() if left > 1}


async def _model(request: web.Request, operation: str) -> str | None:
    """The model of a chat request."""
    if operation != "chat.create":
        return None
    try:
        model = (await request.json()).get("model")
    except (ValueError, AttributeError):
        return None
    return model if isinstance(model, str) else None


def _objects(request: web.Request, answer: web.StreamResponse | None = None) -> tuple[str, ...]:
    """The ids that a request names, or that its answer does."""
    if isinstance(answer, web.Response) and isinstance(answer.body, bytes):
        shown = json.loads(answer.body)
        if isinstance(shown.get("id"), str):
            return (shown["id"],)
    return tuple(request.match_info.values())


def _close(request: web.Request) -> web.Response:
    """Closes the connection under the answer, which is what makes it not arrive."""
    if request.transport is not None:
        request.transport.close()
    return web.Response()


async def _act(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What a handler answers, refusals included, as an answer."""
    try:
        return await handler(request)
    except RequestRefused as refused:
        return web.json_response(refused.body, status=refused.status)


async def _reply_lost_before(
    faults: HttpFaults, request: web.Request, _: Handler, strike: Strike
) -> web.StreamResponse | None:
    faults.book.note(strike, _objects(request))
    return _close(request)


async def _reply_lost_after(
    faults: HttpFaults, request: web.Request, handler: Handler, strike: Strike
) -> web.StreamResponse | None:
    answer = await _act(request, handler)
    faults.book.note(strike, _objects(request, answer))
    return _close(request)


async def _late_act(
    faults: HttpFaults, request: web.Request, handler: Handler, strike: Strike
) -> web.StreamResponse | None:
    if not request.content_type.startswith("multipart/"):
        # The body must be here when the client has left.
        await request.read()
    faults.book.note(strike, _objects(request))

    async def sleep_and_act() -> web.StreamResponse:
        await faults.book.hold(strike)
        return await _act(request, handler)

    # A server may cancel the handler of a client that has left, and the act must happen all the same.
    acting = asyncio.create_task(sleep_and_act())
    faults.acting.add(acting)
    acting.add_done_callback(faults.acting.discard)
    return await asyncio.shield(acting)


async def _late_reply(
    faults: HttpFaults, request: web.Request, handler: Handler, strike: Strike
) -> web.StreamResponse | None:
    answer = await _act(request, handler)
    faults.book.note(strike, _objects(request, answer))
    await faults.book.hold(strike)
    return answer


async def _reply_garbled(
    faults: HttpFaults, request: web.Request, handler: Handler, strike: Strike
) -> web.StreamResponse | None:
    answer = await _act(request, handler)
    faults.book.note(strike, _objects(request, answer))
    return web.Response(text=strike.parameters["text"], content_type="application/json")


async def _bad_gateway(
    faults: HttpFaults, request: web.Request, _: Handler, strike: Strike
) -> web.StreamResponse | None:
    faults.book.note(strike, _objects(request))
    return web.Response(text=_HTML, status=502, content_type="text/html")


async def _empty_page(
    faults: HttpFaults, request: web.Request, handler: Handler, strike: Strike
) -> web.StreamResponse | None:
    if strike.operation not in ("batches.list", "files.list"):
        return await _refuse(faults, request, handler, strike)
    faults.book.note(strike, ())
    return web.json_response(_EMPTY_PAGE)


async def _batch_listed_late(
    faults: HttpFaults, request: web.Request, handler: Handler, strike: Strike
) -> web.StreamResponse | None:
    answer = await _act(request, handler)
    if answer.status != 200:
        return answer
    (batch_id,) = _objects(request, answer)
    faults.book.note(strike, (batch_id,))
    faults.delay_listing(batch_id, strike.parameters["walks"])
    return answer


async def _creates_per_hour(
    faults: HttpFaults, request: web.Request, handler: Handler, strike: Strike
) -> web.StreamResponse | None:
    since = faults.clock() - HOUR_SECONDS
    created = sum(batch.created_at > since for batch in faults.folder.batches.values())
    if created < strike.parameters["creates_max"]:
        return None
    return await _refuse(faults, request, handler, strike)


async def _payload_too_large(
    faults: HttpFaults, request: web.Request, handler: Handler, strike: Strike
) -> web.StreamResponse | None:
    if request.content_length is not None and request.content_length <= strike.parameters["bytes_max"]:
        return None
    return await _refuse(faults, request, handler, strike)


async def _changed_batch(
    faults: HttpFaults, request: web.Request, handler: Handler, strike: Strike
) -> web.StreamResponse | None:
    answer = await _act(request, handler)
    batch = faults.folder.batches.get(request.match_info["batch_id"])
    if answer.status != 200 or batch is None:
        return answer
    faults.book.note(strike, (batch.id,))
    if strike.name == "stale_status":
        return web.json_response(batch.as_created())
    return web.json_response({**batch.to_api(), "request_counts": strike.parameters})


async def _cancel_ignored(
    faults: HttpFaults, request: web.Request, handler: Handler, strike: Strike
) -> web.StreamResponse | None:
    batch = faults.folder.batches.get(request.match_info["batch_id"])
    if batch is None or batch.status not in CANCELLABLE:
        return await _act(request, handler)
    faults.book.note(strike, (batch.id,))
    return web.json_response({**batch.to_api(), "status": "cancelling", "cancelling_at": int(faults.clock())})


async def _part_of_file(
    faults: HttpFaults, request: web.Request, handler: Handler, strike: Strike
) -> web.StreamResponse | None:
    answer = await _act(request, handler)
    path = faults.folder.content_path(request.match_info["file_id"])
    if answer.status != 200 or not path.exists():
        return answer
    size_bytes = path.stat().st_size
    part_bytes = min(int(size_bytes * strike.parameters["fraction"]), size_bytes - 1)
    truncated = strike.name == "truncated_download"
    if not truncated:
        part_bytes = await asyncio.to_thread(_cut_bytes, path, part_bytes, whole_lines=strike.parameters["whole_lines"])
    faults.book.note(strike, _objects(request))
    part = web.StreamResponse(headers={"Content-Type": "application/octet-stream", FAULT_HEADER: strike.name})
    part.content_length = size_bytes if truncated else part_bytes
    await part.prepare(request)
    with path.open("rb") as content:
        while part_bytes and (chunk := await asyncio.to_thread(content.read, min(part_bytes, _CHUNK_BYTES))):
            await part.write(chunk)
            part_bytes -= len(chunk)
    if truncated:
        _close(request)
    return part


def _cut_bytes(path: Path, part_bytes: int, *, whole_lines: bool) -> int:
    """Where to cut: behind a line's end, or just not there."""
    with path.open("rb") as content:
        part = content.read(part_bytes)
    return part.rfind(b"\n") + 1 if whole_lines else len(part.rstrip(b"\n"))


async def _answer_cut(
    faults: HttpFaults, request: web.Request, handler: Handler, strike: Strike
) -> web.StreamResponse | None:
    answer = await _act(request, handler)
    if answer.status != 200 or not isinstance(answer, web.Response) or not isinstance(answer.body, bytes):
        return answer
    completion = json.loads(answer.body)
    cut_answer(completion, strike.parameters["finish_reason"])
    faults.book.note(strike, (completion["id"],))
    return web.json_response(completion)


async def _refuse(faults: HttpFaults, request: web.Request, _: Handler, strike: Strike) -> web.StreamResponse | None:
    """An error object of the API, and nothing done."""
    named = next(iter(request.match_info.values()), "")
    if strike.operation == "batches.create":
        named = await _input_file_id(request)
    refused = refusal(strike, await _model(request, strike.operation) or "") or _refusal(strike, named)
    faults.book.note(strike, _objects(request))
    raise refused


async def _input_file_id(request: web.Request) -> str:
    try:
        return str((await request.json())["input_file_id"])
    except (ValueError, KeyError, TypeError):
        return ""


def _refusal(strike: Strike, named: str) -> RequestRefused:
    message, fields = _REFUSALS[strike.name]
    given = strike.parameters
    refused = RequestRefused(message.format(named=named), **{**fields, **_status(given)})
    if "retry_after_seconds" in given:
        refused.headers = {"retry-after": str(given["retry_after_seconds"])}
    return refused


def _status(given: Json) -> Json:
    return {"status": given["status"]} if "status" in given else {}


_LIMITED: Final[tuple[str, Json]] = (
    "Rate limit reached.",
    {"status": 429, "kind": "requests", "code": "rate_limit_exceeded"},
)
# What is said, and the fields of the error; a strike's own status goes before.
_REFUSALS: Final[dict[str, tuple[str, Json]]] = {
    "rate_limited": _LIMITED,
    "creates_per_hour": _LIMITED,
    "insufficient_quota": (
        "You exceeded your current quota, please check your plan and billing details.",
        {"status": 429, "kind": "insufficient_quota", "code": "insufficient_quota"},
    ),
    "server_error": (OPAQUE, {"status": 500, "kind": "server_error", "code": "server_error"}),
    "unavailable": ("The engine is currently overloaded.", {"status": 503, "kind": "server_error"}),
    "key_rejected": ("Incorrect API key provided.", {"code": "invalid_api_key"}),
    "payload_too_large": ("Maximum content size limit exceeded.", {"status": 413}),
    "file_too_large": ("File is too large. The Batch API takes up to 200 MB.", {"param": "file"}),
    "file_not_found_yet": (
        "Cannot find file {named}, or project does not have access to it.",
        {"status": 404, "param": "id"},
    ),
    "other_key": ("No object found with id '{named}'.", {"status": 404}),
    "cancel_refused": ("Cannot cancel this batch now.", {}),
}
_PLAYERS: Final[dict[str, Player]] = {
    "reply_lost_before": _reply_lost_before,
    "reply_lost_after": _reply_lost_after,
    "late_act": _late_act,
    "late_reply": _late_reply,
    "reply_garbled": _reply_garbled,
    "bad_gateway": _bad_gateway,
    "empty_list": _empty_page,
    "other_key": _empty_page,
    "batch_listed_late": _batch_listed_late,
    "creates_per_hour": _creates_per_hour,
    "payload_too_large": _payload_too_large,
    "counts_wrong": _changed_batch,
    "stale_status": _changed_batch,
    "cancel_ignored": _cancel_ignored,
    "truncated_download": _part_of_file,
    "short_download": _part_of_file,
    "answer_cut": _answer_cut,
}
