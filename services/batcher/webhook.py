"""The provider's webhooks: POST /webhooks/openai tells that a batch has ended, which has it asked about and no more.

What is told is never believed: the poller asks the provider itself, and would have asked anyway. So duplicates,
replays, wrong orders and batches of others cost an answer each, and nothing that is lost is missed. A body is looked at
only after its signature was checked (Standard Webhooks, 300 seconds of tolerance); sizes, times and requests at once
are bounded.
"""

import asyncio
import re
import ssl
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection
from typing import Final

from aiohttp import web
from openai import AsyncOpenAI, InvalidWebhookSignatureError
from prometheus_client import Counter

from services.chassis import logs

PATH: Final = "/webhooks/openai"
BODY_BYTES_MAX: Final = 64 * 1024
LINE_BYTES_MAX: Final = 4 * 1024
HEADERS_MAX: Final = 64
REQUESTS_MAX: Final = 64
READ_SECONDS: Final = 5.0
IDLE_SECONDS: Final = 15.0
GATHER_SECONDS: Final = 0.25
"""Many batches may end at once: what comes within this time is told together."""

IDS_MAX: Final = 1_000
"""Batches that are told together at most; the poll finds the others."""

SEEN_SECONDS: Final = 600.0
SEEN_MAX: Final = 10_000
"""For how long a message could be replayed (its tolerance, both ways), and how many are remembered at most."""

ENDINGS: Final = frozenset({"batch.completed", "batch.failed", "batch.expired", "batch.cancelled"})
WEBHOOKS: Final = Counter("batcher_webhooks", "Webhooks of the provider, by what became of them.", ["outcome"])

_BATCH_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_log = logs.get_logger(__name__)
Hasten = Callable[[Collection[str]], Awaitable[None]]


class Webhooks:
    """Takes webhooks. secret: the endpoint's, as the provider shows it; hasten: is told which batches have ended, by
    the provider's ids.
    """

    def __init__(self, secret: str, hasten: Hasten, monotonic_seconds: Callable[[], float] = time.monotonic) -> None:
        # The client is used for its signatures alone: it calls nobody.
        self._signatures = AsyncOpenAI(api_key="unused", webhook_secret=secret).webhooks
        self._hasten = hasten
        self._monotonic_seconds = monotonic_seconds
        self._seen: OrderedDict[str, float] = OrderedDict()
        self._gathering: asyncio.TimerHandle | None = None
        self._gathered: set[str] = set()
        self._telling: set[asyncio.Task[None]] = set()
        self._requests = 0
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        """Listens. Raises OSError."""
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_post(PATH, self._handle)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            keepalive_timeout=IDLE_SECONDS,
            max_line_size=LINE_BYTES_MAX,
            max_field_size=LINE_BYTES_MAX,
            max_headers=HEADERS_MAX,
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, ssl_context=tls, reuse_port=False).start()
        self.port = self._runner.addresses[0][1]
        _log.info("webhooks_listening", host=host, port=self.port)

    async def close(self) -> None:
        """Stops listening; what was not told yet is found by the next poll."""
        if self._gathering is not None:
            self._gathering.cancel()
        if self._runner is not None:
            await self._runner.cleanup()
        await asyncio.gather(*self._telling)

    async def _handle(self, request: web.Request) -> web.Response:
        if self._requests >= REQUESTS_MAX:
            # The provider tries again for three days.
            return _told("busy", 503)
        self._requests += 1
        try:
            async with asyncio.timeout(READ_SECONDS):
                body = await request.read()
        except TimeoutError:
            return _told("slow", 408)
        finally:
            self._requests -= 1
        return self._take(request, body)

    def _take(self, request: web.Request, body: bytes) -> web.Response:
        try:
            event = self._signatures.unwrap(body, request.headers)
            kind = getattr(event, "type", None)
        except (InvalidWebhookSignatureError, ValueError, TypeError, AttributeError):
            # The client finds a header missing, or not a number, or not ASCII, or a body that is no JSON by these.
            return _told("refused", 400)
        if not isinstance(kind, str) or kind not in ENDINGS:
            return _told("other", 204)
        if not self._is_new(request.headers["webhook-id"]):
            return _told("duplicate", 204)
        batch_id = getattr(getattr(event, "data", None), "id", None)
        if not isinstance(batch_id, str) or not _BATCH_ID.fullmatch(batch_id):
            return _told("other", 204)
        if len(self._gathered) < IDS_MAX:
            self._gathered.add(batch_id)
        if self._gathering is None:
            self._gathering = asyncio.get_running_loop().call_later(GATHER_SECONDS, self._tell)
        return _told("accepted", 204)

    def _is_new(self, webhook_id: str) -> bool:
        """Whether a message was not seen before; what can't be replayed any more is forgotten."""
        now_seconds = self._monotonic_seconds()
        while self._seen:
            oldest, seen_seconds = next(iter(self._seen.items()))
            if now_seconds - seen_seconds < SEEN_SECONDS and len(self._seen) < SEEN_MAX:
                break
            del self._seen[oldest]
        if webhook_id in self._seen:
            return False
        self._seen[webhook_id] = now_seconds
        return True

    def _tell(self) -> None:
        self._gathering = None
        told, self._gathered = self._gathered, set()
        task = asyncio.create_task(self._hasten_them(told))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _hasten_them(self, batch_ids: Collection[str]) -> None:
        try:
            await self._hasten(batch_ids)
        except Exception as error:
            # The poll finds them all the same.
            _log.warning("webhooks_not_told", batches=len(batch_ids), error=f"{type(error).__name__}: {error}")


def _told(outcome: str, status: int) -> web.Response:
    WEBHOOKS.labels(outcome).inc()
    return web.Response(status=status)
