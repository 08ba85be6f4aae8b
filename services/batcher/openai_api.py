"""OpenAI's Files, Batch and Chat Completions APIs, through the `openai` client; every error gets one of four names.

    ProviderRefused   a definite no; permanent says that the same request will never be taken
    ProviderBusy      a definite "not now": nothing was done, come back after retry_after_seconds
    ProviderMissing   the batch or file is not there, for this key
    ProviderDoubt     nobody knows whether it was done: a timeout, a connection lost after sending, a 5xx, garble

What to do about it is the error's `row` of the table of outcomes.

A create has no idempotency key at this provider, so that a retry may buy a second batch: the client's own retries are
off everywhere, and each call has a limit on the whole of its time. Files are streamed in both directions.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from openai import APIConnectionError, APIStatusError, AsyncOpenAI, OpenAIError
from openai.types import Batch

from services.batcher import batch_file, outcome
from services.batcher.batch import BatchError
from services.batcher.batch_file import LineFailure
from services.batcher.breaker import State
from services.batcher.job import Answer
from services.batcher.outcome import Action, Place, Row, Signal
from services.batcher.provider_circuit import ProviderCircuit

CHUNK_BYTES = 1024 * 1024
PAGE_BATCHES = 100
PAGES_MAX = 200
LISTED_PAGES_MAX = 5_000
"""Of which one day, at the provider's limit of creates, fills 480."""

EXPIRES_SECONDS_MIN = 3600
EXPIRES_SECONDS_MAX = 30 * 24 * 3600
BUSY_SECONDS = 10.0
BUSY_SECONDS_MAX = 3600.0
MESSAGE_CHARS_MAX = 512
LINES_MAX = 2**31 - 1

# What the client lets through, of itself and of what it stands on.
_OF_A_CALL = (TimeoutError, OpenAIError, httpx2.HTTPError, httpx2.StreamError, ValueError)
# Raised before the request has left us, so that nothing can have been done.
_NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)


class ProviderError(Exception):
    """The base of the four. code: a word for programs, of the provider or of the table of outcomes."""

    def __init__(self, code: str, message: str, row: Row) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.row = row


class ProviderRefused(ProviderError):
    """A definite no."""

    @property
    def permanent(self) -> bool:
        """Whether no patience helps, as the request itself is at fault."""
        return self.row.action in (Action.FAIL_JOB, Action.SPLIT_BATCH)


class ProviderBusy(ProviderError):
    """Not now, and nothing was done."""

    def __init__(self, code: str, message: str, row: Row, retry_after_seconds: float) -> None:
        super().__init__(code, message, row)
        self.retry_after_seconds = retry_after_seconds


class ProviderDown(ProviderBusy):
    """Not asked, as it did not answer lately (`breaker`)."""


class ProviderMissing(ProviderError):
    """There is no such batch or file, or this key may not see it."""


class ProviderDoubt(ProviderError):
    """Whether it was done is not known. retry_after_seconds: as the provider asked for, or 0."""

    def __init__(self, code: str, message: str, row: Row, retry_after_seconds: float = 0.0) -> None:
        super().__init__(code, message, row)
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True, slots=True)
class ProviderBatch:
    """A batch as the provider shows it. created_at: seconds since the epoch; errors: why it `failed`."""

    id: str
    status: str
    input_file_id: str
    output_file_id: str | None
    error_file_id: str | None
    total: int
    completed: int
    failed: int
    metadata: Mapping[str, str]
    created_at: int
    errors: Sequence[BatchError]


class OpenAIApi:
    """The provider. base_url, organization and project: None for the client's own defaults. ValueError: no key.

    deployment_id: which of several installations that share a key this is; may be empty.
    circuit: stops the calls of the batch API while the provider is down, so that each may raise ProviderDown. A call
    that waits for an answer of the model is neither stopped by it nor a sign for it: models may be slow.
    """

    def __init__(
        self,
        api_key: str,
        *,
        base_url: str | None = None,
        organization: str | None = None,
        project: str | None = None,
        timeout_seconds: float = 30.0,
        transfer_timeout_seconds: float = 900.0,
        circuit: ProviderCircuit | None = None,
        deployment_id: str = "",
    ) -> None:
        if not api_key:
            raise ValueError("the provider's key is not set: set OPENAI_API_KEY")
        self._api_key = api_key
        self._timeout_seconds = timeout_seconds
        self._transfer_timeout_seconds = transfer_timeout_seconds
        self._circuit = circuit
        self.deployment_id = deployment_id
        self._client = AsyncOpenAI(
            api_key=api_key,
            base_url=base_url or None,
            organization=organization or None,
            project=project or None,
            timeout=timeout_seconds,
            max_retries=0,
        )

    def is_down(self) -> bool:
        """Whether calls are not made at present, as the provider did not answer."""
        return self._circuit is not None and self._circuit.state() is State.OPEN

    def down_until_us(self) -> int:
        """When a provider that did not answer is called again; 0 while it is called."""
        return self._circuit.open_until_us() if self._circuit is not None else 0

    def provider_identity(self) -> str:
        """Whose batches these are: a text that stays the same for as long as a batch bought by it can be found by it.

        Without a project the key alone decides whose batches are seen, so that its fingerprint takes the project's
        place; with one, keys may be rotated.
        """
        client = self._client
        owner = client.project or f"key-{hashlib.sha256(self._api_key.encode()).hexdigest()[:12]}"
        identity = f"{str(client.base_url).rstrip('/')}|{client.organization or ''}|{owner}"
        return f"{identity}|{self.deployment_id}" if self.deployment_id else identity

    async def upload_input(self, path: Path, filename: str, expires_after_seconds: int = EXPIRES_SECONDS_MAX) -> str:
        """Uploads an input file, under a name that ends in .jsonl, and answers its id. It expires by itself."""
        seconds = max(EXPIRES_SECONDS_MIN, min(expires_after_seconds, EXPIRES_SECONDS_MAX))
        with await asyncio.to_thread(path.open, "rb") as file:
            async with self._named_errors(Place.UPLOAD, self._transfer_timeout_seconds):
                uploaded = await self._client.files.create(
                    # A path would be read into memory whole; an open file is streamed.
                    file=(filename, file, "application/jsonl"),
                    purpose="batch",
                    expires_after={"anchor": "created_at", "seconds": seconds},
                    timeout=self._transfer_timeout_seconds,
                )
        file_id = getattr(uploaded, "id", None)
        if not isinstance(file_id, str) or not file_id:
            raise _broken(Place.UPLOAD, outcome.UNREADABLE, "the answer to an upload names no file")
        return file_id

    async def create_batch(self, file_id: str, metadata: Mapping[str, str], timeout_seconds: float) -> ProviderBatch:
        """Buys a batch. After ProviderDoubt it may be bought: look for its metadata before trying again."""
        async with self._named_errors(Place.CREATE, timeout_seconds):
            created = await self._client.batches.create(
                input_file_id=file_id,
                endpoint=batch_file.ENDPOINT,
                completion_window="24h",
                metadata=dict(metadata),
                timeout=timeout_seconds,
            )
        return _batch(Place.CREATE, created)

    async def retrieve(self, batch_id: str) -> ProviderBatch:
        """The batch as it is now."""
        async with self._named_errors(Place.RETRIEVE, self._timeout_seconds):
            found = await self._client.batches.retrieve(batch_id)
        return _batch(Place.RETRIEVE, found)

    async def cancel(self, batch_id: str) -> ProviderBatch:
        """Asks to end a batch; what it finished until then is still delivered, and paid."""
        async with self._named_errors(Place.CANCEL, self._timeout_seconds):
            cancelled = await self._client.batches.cancel(batch_id)
        return _batch(Place.CANCEL, cancelled)

    async def list_since(self, created_after: int) -> list[ProviderBatch]:
        """All batches created at or after a time in seconds since the epoch, newest first.

        Never a part of them: raises ProviderDoubt when there are more than 20,000.
        """
        found: list[ProviderBatch] = []
        async with self._named_errors(Place.LIST, self._transfer_timeout_seconds):
            async for listed in self._client.batches.list(limit=PAGE_BATCHES):
                batch = _batch(Place.LIST, listed)
                if batch.created_at < created_after:
                    return found
                found.append(batch)
                if len(found) > PAGE_BATCHES * PAGES_MAX:
                    said = f"more than {PAGE_BATCHES * PAGES_MAX} batches since {created_after}"
                    raise _broken(Place.LIST, outcome.UNREADABLE, said)
        return found

    async def pages_since(self, created_after: int) -> AsyncIterator[list[ProviderBatch]]:
        """The same page by page. Raises ProviderDoubt at last when there are more than LISTED_PAGES_MAX pages."""
        page: Any = None
        for _ in range(LISTED_PAGES_MAX):
            async with self._named_errors(Place.LIST, self._timeout_seconds):
                page = await (self._client.batches.list(limit=PAGE_BATCHES) if page is None else page.get_next_page())
                found = [_batch(Place.LIST, listed) for listed in page.data or []]
                has_more = page.has_next_page()
            recent = [batch for batch in found if batch.created_at >= created_after]
            if recent:
                yield recent
            if len(recent) < len(found) or not has_more:
                return
        raise _broken(Place.LIST, outcome.UNREADABLE, f"more than {LISTED_PAGES_MAX} pages since {created_after}")

    async def download(self, file_id: str, path: Path) -> int:
        """Streams a file's content to a path, where it appears only when it is whole; answers its size in bytes."""
        size_bytes = 0
        partial = path.with_name(path.name + ".part")
        try:
            with await asyncio.to_thread(partial.open, "wb") as file:
                async with (
                    self._named_errors(Place.DOWNLOAD, self._transfer_timeout_seconds),
                    self._client.files.with_streaming_response.content(file_id) as response,
                ):
                    async for chunk in response.iter_bytes(CHUNK_BYTES):
                        size_bytes += await asyncio.to_thread(file.write, chunk)
            await asyncio.to_thread(partial.replace, path)
        finally:
            await asyncio.to_thread(partial.unlink, missing_ok=True)
        return size_bytes

    async def delete_file(self, file_id: str) -> None:
        """Deletes a file; that it is gone already is fine."""
        try:
            async with self._named_errors(Place.DELETE, self._timeout_seconds):
                await self._client.files.delete(file_id)
        except ProviderMissing:
            return

    async def answer_now(
        self, model: str, prompt: str, detail: str, max_output_tokens: int, image_url: str, timeout_seconds: float
    ) -> Answer:
        """Asks at once, and waits. After ProviderDoubt the provider may have been paid."""
        body = batch_file.chat_body(model, prompt, detail, max_output_tokens, image_url)
        async with self._named_errors(Place.INSTANT, timeout_seconds):
            completion: Any = await self._client.chat.completions.create(**body, timeout=timeout_seconds)
        answer = batch_file.read_completion(completion.model_dump() if hasattr(completion, "model_dump") else None)
        if isinstance(answer, LineFailure):
            raise _broken(Place.INSTANT, outcome.UNREADABLE, answer.message)
        return answer

    @asynccontextmanager
    async def _named_errors(self, place: Place, timeout_seconds: float) -> AsyncIterator[None]:
        """Bounds the time of a call and gives its errors their names."""
        circuit = None if place is Place.INSTANT else self._circuit
        if circuit is not None and (wait_seconds := circuit.wait_seconds()):
            row = outcome.classify(Signal(place, outcome.CIRCUIT_OPEN))
            raise ProviderDown(outcome.CIRCUIT_OPEN, "the provider does not answer", row, wait_seconds)
        try:
            async with asyncio.timeout(timeout_seconds):
                yield
        except _OF_A_CALL as error:
            named = _error_of(place, error, timeout_seconds)
            if circuit is not None:
                circuit.tell(answered=not (isinstance(named, ProviderDoubt) or named.code == outcome.NO_CONNECTION))
            raise named from error
        if circuit is not None:
            circuit.tell(answered=True)

    async def close(self) -> None:
        """Lets go of the connections."""
        if self._circuit is not None:
            self._circuit.close()
        await self._client.close()


def _error_of(place: Place, error: Exception, timeout_seconds: float) -> ProviderError:
    """The name of whatever a call raised."""
    if isinstance(error, TimeoutError):
        return _broken(place, outcome.NO_ANSWER, f"no answer within {timeout_seconds:g} seconds")
    if isinstance(error, APIStatusError):
        return _named_status(place, error)
    cause = type(error.__cause__).__name__
    if isinstance(error, APIConnectionError) and isinstance(error.__cause__, _NEVER_SENT):
        return _broken(place, outcome.NO_CONNECTION, f"no connection: {cause}")
    if isinstance(error, APIConnectionError):
        return _broken(place, outcome.CONNECTION_LOST, f"connection lost: {cause}")
    return _broken(place, outcome.UNREADABLE, f"unreadable answer: {type(error).__name__}")


def _broken(place: Place, code: str, message: str) -> ProviderError:
    """An error that has no status: the answer did not come, or was none."""
    row = outcome.classify(Signal(place, code, None, message))
    if row.action is Action.WAIT_UNTIL:
        return ProviderBusy(code, message, row, BUSY_SECONDS)
    return ProviderDoubt(code, message, row)


def _named_status(place: Place, error: APIStatusError) -> ProviderError:
    status = error.status_code
    code, message, row = batch_file.read_failure(place, status, error.body)
    said = f"{message} (status {status}, request {error.request_id})"[:MESSAGE_CHARS_MAX]
    if status in (401, 403):
        # The provider repeats a part of the key in its own words.
        return ProviderRefused(code, f"the key is not accepted (status {status})", row)
    if row.action is Action.WAIT_UNTIL:
        return ProviderBusy(code, said, row, _retry_after_seconds(error.response.headers, BUSY_SECONDS))
    if row.action is Action.DOUBT or status >= 500 or status == 408:
        return ProviderDoubt(code, said, row, _retry_after_seconds(error.response.headers, 0.0))
    if status == 404 and not (place is Place.INSTANT or row.action is Action.FAIL_JOB):
        return ProviderMissing(code, said, row)
    return ProviderRefused(code, said, row)


def _retry_after_seconds(headers: Mapping[str, str], unsaid_seconds: float) -> float:
    for name, unit_seconds in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit_seconds
        except ValueError:
            continue
        if seconds >= 0:
            return min(seconds, BUSY_SECONDS_MAX)
    return unsaid_seconds


def _batch(place: Place, shown: object) -> ProviderBatch:
    """Reads a batch. The client builds its objects unchecked: of something else it makes one with fields of None."""
    if not isinstance(shown, Batch) or not all((shown.id, shown.status, shown.input_file_id, shown.created_at)):
        raise _broken(place, outcome.UNREADABLE, "the answer is no batch")
    counts = shown.request_counts
    listed = (shown.errors.data if shown.errors else None) or []
    failures = [batch_file.read_failure(Place.FAILED, None, {"code": e.code, "message": e.message}) for e in listed]
    return ProviderBatch(
        id=shown.id,
        status=shown.status,
        input_file_id=shown.input_file_id,
        # An id that is an empty string means none, as null does.
        output_file_id=shown.output_file_id or None,
        error_file_id=shown.error_file_id or None,
        total=_lines(counts.total) if counts else 0,
        completed=_lines(counts.completed) if counts else 0,
        failed=_lines(counts.failed) if counts else 0,
        metadata=dict(shown.metadata or {}),
        created_at=shown.created_at,
        errors=[
            BatchError(
                failure.code,
                failure.message if error.line is None else f"line {error.line}: {failure.message}",
                _lines(error.line),
            )
            for failure, error in zip(failures, listed, strict=True)
        ],
    )


def _lines(count: object) -> int:
    """A count of lines, of which some providers say null, or less than none while lines are tried again."""
    return count if isinstance(count, int) and 0 <= count <= LINES_MAX else 0
