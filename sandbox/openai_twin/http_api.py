"""The edge: the HTTP routes of the API, their checks and their error objects. Each route's name is an operation.

Faults strike between the check of the key and the handler. Beside the API's own routes there are those of `http_twin`.
"""

import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from aiohttp import BodyPartReader, web

from sandbox.openai_twin.answer import Json, RequestRefused
from sandbox.openai_twin.batch import CANCELLABLE, Batch, StoredFile
from sandbox.openai_twin.batch_request import check_batch_request, expiry_seconds
from sandbox.openai_twin.batch_worker import BatchWorker, Pace
from sandbox.openai_twin.fault_book import FaultBook
from sandbox.openai_twin.folder import Folder
from sandbox.openai_twin.http_faults import Handler, HttpFaults
from sandbox.openai_twin.http_images import HttpImages
from sandbox.openai_twin.http_twin import TwinRoutes
from sandbox.openai_twin.input_file import FILE_BYTES_MAX
from sandbox.openai_twin.webhook import Target
from sandbox.openai_twin.webhook_sender import WebhookSender

WINDOW_SECONDS: Final = 24 * 3600
BATCH_FILE_SECONDS: Final = 30 * 24 * 3600
BODY_BYTES_MAX: Final = 64 * 1024 * 1024
PURPOSES: Final = ("assistants", "batch", "fine-tune", "vision", "user_data")
_EXPIRY_KEYS: Final = ("anchor", "seconds")
_UPLOAD_CHUNK_BYTES: Final = 256 * 1024


class Twin:
    """The handlers over one folder. A server serves `app()`; `worker` tells when all batches have ended."""

    worker: BatchWorker
    sender: WebhookSender

    def __init__(
        self,
        data: Path,
        *,
        api_key: str,
        pace: Pace | None = None,
        seed: int = 0,
        clock: Callable[[], float] = time.time,
        faults: Json | None = None,
        webhook: Target | None = None,
    ) -> None:
        """`faults` is a script as JSON; raises FaultMistake."""
        self._data = data
        self._folder = Folder(data)
        self._book = FaultBook(data, faults, clock)
        self._faults = HttpFaults(self._book, self._folder, clock)
        self._own = TwinRoutes(self._folder, self._book, lambda: self.sender)
        self._webhook = webhook
        self._api_key = api_key
        self._pace = pace or Pace()
        self._seed = seed
        self._clock = clock

    def app(self) -> web.Application:
        """The application, whose start and end are those of the worker."""
        app = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[self._guard])
        app.cleanup_ctx.append(self._running)
        app.add_routes(
            [
                *self._own.routes(),
                web.post("/v1/files", self._create_file, name="files.create"),
                web.get("/v1/files", self._list_files, name="files.list"),
                web.get("/v1/files/{file_id}", self._get_file, name="files.retrieve"),
                web.delete("/v1/files/{file_id}", self._delete_file, name="files.delete"),
                web.get("/v1/files/{file_id}/content", self._get_content, name="files.content"),
                web.post("/v1/batches", self._create_batch, name="batches.create"),
                web.get("/v1/batches", self._list_batches, name="batches.list"),
                web.get("/v1/batches/{batch_id}", self._get_batch, name="batches.retrieve"),
                web.post("/v1/batches/{batch_id}/cancel", self._cancel_batch, name="batches.cancel"),
                web.post("/v1/chat/completions", self._complete_chat, name="chat.create"),
            ]
        )
        return app

    async def _running(self, _: web.Application) -> AsyncIterator[None]:
        images = HttpImages(self._pace.fetch_timeout_seconds, threads=2)
        self.sender = WebhookSender(self._data, self._folder, self._book, self._webhook, self._clock)
        self.worker = BatchWorker(
            self._folder, images, self._pace, self._book, self.sender.tell, self._seed, self._clock
        )
        self.sender.start()
        self.worker.start()
        yield
        await self._faults.close()
        await self.worker.close()
        await self.sender.close()
        await images.close()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Checks the key, and turns refusals into the API's error objects."""
        try:
            if request.path != "/twin/health":
                self._check_key(request)
            response = await self._faults.handle(request, handler)
        except RequestRefused as refused:
            response = web.json_response(refused.body, status=refused.status)
        except web.HTTPException as error:
            missing = RequestRefused(f"Invalid URL ({request.method} {request.path})", status=error.status)
            response = web.json_response(missing.body, status=missing.status)
        if not response.prepared:
            response.headers["x-request-id"] = f"req_{uuid.uuid4().hex}"
        return response

    def _check_key(self, request: web.Request) -> None:
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or not key:
            raise RequestRefused("You didn't provide an API key.", status=401)
        if key != self._api_key:
            raise RequestRefused("Incorrect API key provided.", status=401, code="invalid_api_key")

    async def _create_file(self, request: web.Request) -> web.Response:
        if not request.content_type.startswith("multipart/"):
            raise RequestRefused("The request must be multipart/form-data.", param="file")
        fields: dict[str, str] = {}
        upload = self._folder.open_upload()
        try:
            filename = None
            async for part in await request.multipart():
                if isinstance(part, BodyPartReader) and part.name == "file":
                    filename = part.filename or "upload"
                    while chunk := await part.read_chunk(_UPLOAD_CHUNK_BYTES):
                        upload.write(chunk)
                elif isinstance(part, BodyPartReader) and part.name:
                    fields[part.name] = await part.text()
            record = self._keep_upload(upload, filename, fields)
        except BaseException:
            self._folder.drop_upload(upload)
            raise
        return web.json_response(record.to_api())

    def _keep_upload(self, upload: BinaryIO, filename: str | None, fields: dict[str, str]) -> StoredFile:
        purpose = fields.get("purpose")
        if filename is None:
            raise RequestRefused("Missing required parameter: 'file'.", param="file", code="missing_required_parameter")
        if purpose not in PURPOSES:
            raise RequestRefused(f"'{purpose}' is not one of {list(PURPOSES)} - 'purpose'", param="purpose")
        if purpose == "batch" and not filename.endswith(".jsonl"):
            raise RequestRefused("Invalid file format for Batch API. Must be .jsonl")
        if purpose == "batch" and upload.tell() > FILE_BYTES_MAX:
            raise RequestRefused("File is too large. The Batch API takes up to 200 MB.", param="file")
        now = self._now()
        asked = {key: fields[f"expires_after[{key}]"] for key in _EXPIRY_KEYS if f"expires_after[{key}]" in fields}
        seconds = expiry_seconds(asked, "expires_after")
        if seconds is None and purpose == "batch":
            seconds = BATCH_FILE_SECONDS
        return self._folder.keep_upload(
            upload,
            filename=filename,
            purpose=purpose,
            created_at=now,
            expires_at=None if seconds is None else now + seconds,
        )

    async def _list_files(self, request: web.Request) -> web.Response:
        now = self._now()
        purpose = request.query.get("purpose")
        oldest_first = request.query.get("order") == "asc"
        found = [
            record
            for record in self._folder.files.values()
            if purpose in (None, record.purpose) and self._folder.find_file(record.id, now)
        ]
        found.sort(key=lambda record: record.sequence, reverse=not oldest_first)
        return _page(request, found, limit_default=10_000, limit_max=10_000)

    async def _get_file(self, request: web.Request) -> web.Response:
        return web.json_response(self._file(request.match_info["file_id"]).to_api())

    async def _delete_file(self, request: web.Request) -> web.Response:
        record = self._file(request.match_info["file_id"])
        self._folder.delete_file(record.id)
        return web.json_response({"id": record.id, "object": "file", "deleted": True})

    async def _get_content(self, request: web.Request) -> web.FileResponse:
        record = self._file(request.match_info["file_id"])
        return web.FileResponse(
            self._folder.content_path(record.id), headers={"Content-Type": "application/octet-stream"}
        )

    async def _create_batch(self, request: web.Request) -> web.Response:
        body = await _json_object(request)
        check_batch_request(body)
        known = self._folder.find_file(body["input_file_id"], self._now())
        if known is not None and known.purpose != "batch":
            raise RequestRefused("The input file must have the purpose 'batch'.", param="input_file_id")
        now = self._now()
        batch = Batch(
            id=f"batch_{uuid.uuid4().hex}",
            endpoint=body["endpoint"],
            input_file_id=body["input_file_id"],
            created_at=now,
            expires_at=now + WINDOW_SECONDS,
            sequence=self._folder.next_sequence(),
            metadata=body.get("metadata"),
            output_file_seconds=expiry_seconds(body.get("output_expires_after") or {}, "output_expires_after"),
        )
        self._folder.save_batch(batch)
        self.worker.add(batch)
        return web.json_response(batch.to_api())

    async def _list_batches(self, request: web.Request) -> web.Response:
        listed = (batch for batch in self._folder.batches.values() if self._faults.is_listed(batch.id))
        found = sorted(listed, key=lambda batch: batch.sequence, reverse=True)
        return _page(request, found, limit_default=20, limit_max=100)

    async def _get_batch(self, request: web.Request) -> web.Response:
        return web.json_response(self._batch(request).to_api())

    async def _cancel_batch(self, request: web.Request) -> web.Response:
        batch = self._batch(request)
        if batch.status not in CANCELLABLE:
            raise RequestRefused(f"Cannot cancel a batch with status '{batch.status}'.")
        self.worker.cancel(batch)
        return web.json_response(batch.to_api())

    async def _complete_chat(self, request: web.Request) -> web.Response:
        completion = await self.worker.respond(await _json_object(request))
        self._folder.note_completion({"id": completion["id"], "created": completion["created"]})
        return web.json_response(completion)

    def _file(self, file_id: str) -> StoredFile:
        record = self._folder.find_file(file_id, self._now())
        if record is None:
            raise RequestRefused(f"No such File object: {file_id}", status=404, param="id")
        return record

    def _batch(self, request: web.Request) -> Batch:
        batch_id = request.match_info["batch_id"]
        batch = self._folder.batches.get(batch_id)
        if batch is None:
            raise RequestRefused(f"No batch found with id '{batch_id}'.", status=404)
        return batch

    def _now(self) -> int:
        return int(self._clock())


def _page(
    request: web.Request, found: Sequence[Batch | StoredFile], *, limit_default: int, limit_max: int
) -> web.Response:
    """The page of `found` that stands behind the id `after`."""
    try:
        limit = int(request.query.get("limit", limit_default))
    except ValueError:
        limit = 0
    if not 1 <= limit <= limit_max:
        raise RequestRefused(f"The limit must be from 1 to {limit_max}.", param="limit", code="invalid_value")
    start = 0
    if after := request.query.get("after"):
        start = next((at for at, each in enumerate(found, 1) if each.id == after), -1)
        if start < 0:
            raise RequestRefused(f"No object found with id '{after}'.", param="after")
    shown = found[start : start + limit]
    return web.json_response(
        {
            "object": "list",
            "data": [each.to_api() for each in shown],
            "first_id": shown[0].id if shown else None,
            "last_id": shown[-1].id if shown else None,
            "has_more": start + limit < len(found),
        }
    )


async def _json_object(request: web.Request) -> Json:
    try:
        body = await request.json()
    except ValueError as error:
        raise RequestRefused("We could not parse the JSON body of your request.") from error
    if not isinstance(body, dict):
        raise RequestRefused("The body of the request must be a JSON object.")
    return body
