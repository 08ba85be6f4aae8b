"""The twin's own routes, beside those of the API. All but the first want the key; bodies are JSON.

    GET    /twin/health              it is up
    GET    /twin/books               what was bought here, what struck (`faults`) and what was told (`webhooks`)
    GET    /twin/faults              the script: {"seed", "faults": [...], "storm"}; a fault has what it saw and struck
    PUT    /twin/faults              another script in its place
    POST   /twin/faults              one fault more, at the end
    DELETE /twin/faults              no faults and no storm; what was held back goes on
    DELETE /twin/faults/{id}         one less; the storm's id is `storm`
    GET    /twin/faults/vocabulary   every kind of fault: where it strikes, what it does, its parameters
    GET    /twin/webhooks            who is told of batches that end (without the secret), or null
    PUT    /twin/webhooks            {"url", "secret", "retry_seconds", "attempts_max"}
    DELETE /twin/webhooks            nobody is told

A fault is {"name"} and, all optional, "operation", "model" (of the batch or call), "object" (an id or a custom_id),
"nth" (1), "count" (1; null for always), "probability" (1) and "parameters". A storm is {"seed", "rate", "names"}.
"""

from collections.abc import Callable
from dataclasses import asdict

from aiohttp import web

from sandbox.openai_twin.answer import Json, RequestRefused
from sandbox.openai_twin.fault_book import FaultBook
from sandbox.openai_twin.fault_kinds import KINDS
from sandbox.openai_twin.faults import FaultMistake
from sandbox.openai_twin.folder import Folder
from sandbox.openai_twin.webhook import Target, WebhookMistake
from sandbox.openai_twin.webhook_sender import WebhookSender


class TwinRoutes:
    """The handlers. `sender` gives the twin's sender of webhooks, which lives as long as the server."""

    def __init__(self, folder: Folder, book: FaultBook, sender: Callable[[], WebhookSender]) -> None:
        self._folder = folder
        self._book = book
        self._sender = sender

    def routes(self) -> list[web.RouteDef]:
        """What to add to an application."""
        return [
            web.get("/twin/health", self._health),
            web.get("/twin/books", self._books),
            web.get("/twin/faults", self._show_faults),
            web.put("/twin/faults", self._replace_faults),
            web.post("/twin/faults", self._add_fault),
            web.delete("/twin/faults", self._clear_faults),
            web.delete("/twin/faults/{fault_id}", self._remove_fault),
            web.get("/twin/faults/vocabulary", self._vocabulary),
            web.get("/twin/webhooks", self._show_webhook),
            web.put("/twin/webhooks", self._set_webhook),
            web.delete("/twin/webhooks", self._drop_webhook),
        ]

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _books(self, _: web.Request) -> web.Response:
        batches = sorted(self._folder.batches.values(), key=lambda batch: batch.sequence)
        shown = [
            {
                "id": batch.id,
                "created_at": batch.created_at,
                "input_file_id": batch.input_file_id,
                "metadata": batch.metadata,
                "status": batch.status,
                "lines": batch.total,
                "answered": batch.completed,
            }
            for batch in batches
        ]
        return web.json_response(
            {
                "batches": shown,
                "chat_completions": self._folder.count_completions(),
                "faults": self._book.strikes(),
                "webhooks": self._sender().deliveries(),
            }
        )

    async def _show_faults(self, _: web.Request) -> web.Response:
        return web.json_response(self._book.to_json())

    async def _replace_faults(self, request: web.Request) -> web.Response:
        asked = await _json(request)
        try:
            self._book.replace(asked)
        except FaultMistake as mistake:
            raise _refused(mistake) from mistake
        return web.json_response(self._book.to_json())

    async def _add_fault(self, request: web.Request) -> web.Response:
        asked = await _json(request)
        try:
            fault = self._book.add(asked)
        except FaultMistake as mistake:
            raise _refused(mistake) from mistake
        return web.json_response(asdict(fault), status=201)

    async def _clear_faults(self, _: web.Request) -> web.Response:
        self._book.replace({})
        return web.json_response(self._book.to_json())

    async def _remove_fault(self, request: web.Request) -> web.Response:
        fault_id = request.match_info["fault_id"]
        if not self._book.remove(fault_id):
            raise RequestRefused(f"there is no fault {fault_id!r}", status=404)
        return web.json_response(self._book.to_json())

    async def _vocabulary(self, _: web.Request) -> web.Response:
        kinds: list[Json] = [{**kind._asdict(), "parameters": dict(kind.parameters)} for kind in KINDS.values()]
        return web.json_response({"kinds": kinds})

    async def _show_webhook(self, _: web.Request) -> web.Response:
        target = self._sender().target
        shown = None if target is None else {**target._asdict(), "secret": "whsec_..."}
        return web.json_response({"webhook": shown})

    async def _set_webhook(self, request: web.Request) -> web.Response:
        asked = await _json(request)
        try:
            self._sender().aim(Target.read(asked))
        except WebhookMistake as mistake:
            raise _refused(mistake) from mistake
        return await self._show_webhook(request)

    async def _drop_webhook(self, request: web.Request) -> web.Response:
        self._sender().aim(None)
        return await self._show_webhook(request)


async def _json(request: web.Request) -> object:
    try:
        return await request.json()
    except ValueError as error:
        raise RequestRefused("the body must be JSON") from error


def _refused(mistake: ValueError) -> RequestRefused:
    return RequestRefused(str(mistake), code="invalid_value")
