"""The lines of a batch's files: the requests that go to the provider, and the results that come back, in any order.

    request  {"custom_id", "method": "POST", "url": "/v1/chat/completions", "body": {...}}
    result   {"custom_id", "response": {"status_code", "body"} | null, "error": {"code", "message"} | null}

A `custom_id` is a job's uid and the number of its attempt, so that an answer can't reach another job and one of an old
attempt is known as such. Shapes are those of the published API and of what live batches were seen to hold: a line may
have neither response nor error, a status other than 200 with the error in its body, or no JSON at all. Nothing here
trusts a result: its texts are made fit for every store (no NUL, no half of a surrogate pair), its counts are bounded.
"""

import json
from base64 import b64encode
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from services.batcher.job import Answer
from services.batcher.outcome import INVALID_RESPONSE, PROVIDER_ERROR, Action, Place, Row, Signal, classify

ENDPOINT: Final = "/v1/chat/completions"
CODE_CHARS_MAX = 64
MESSAGE_CHARS_MAX = 512
COUNT_MAX = 2**53
PIECE_BYTES = 3 * 256 * 1024
"""What is encoded at a time: three bytes become four characters, so that only the last piece is padded."""


class LineFailure(NamedTuple):
    """Why a request has no answer. code: a word for programs; row: of the table of outcomes, what becomes of it."""

    code: str
    message: str
    row: Row

    @property
    def retryable(self) -> bool:
        """Whether the same request may fare better later."""
        return self.row.action is not Action.FAIL_JOB


class LineResult(NamedTuple):
    """What became of the request of one line."""

    custom_id: str
    outcome: Answer | LineFailure


def custom_id_of(uid: str, attempt: int) -> str:
    """Names an attempt of a job in a batch."""
    return f"{uid}.{attempt}"


def split_custom_id(custom_id: str) -> tuple[str, int] | None:
    """The (uid, attempt) that a custom_id names; None when it is none of ours."""
    uid, dot, attempt = custom_id.rpartition(".")
    if not uid or not dot or not (attempt.isascii() and attempt.isdigit() and len(attempt) < 10):
        return None
    return uid, int(attempt)


class Inline(NamedTuple):
    """An image that travels within its request."""

    media_type: str
    data: bytes


def data_url(image: Inline) -> str:
    """An image as an address that holds it (RFC 2397)."""
    return b"".join(_url_pieces(image)).decode("ascii")


def chat_body(model: str, prompt: str, detail: str, max_output_tokens: int, image_url: str) -> dict[str, Any]:
    """The body of a chat completion that asks a prompt about an image. detail: low, high or auto, in any case."""
    image = {"type": "image_url", "image_url": {"url": image_url, "detail": detail.lower()}}
    return {
        "model": model,
        "messages": [{"role": "user", "content": [{"type": "text", "text": prompt}, image]}],
        "max_completion_tokens": max_output_tokens,
    }


def encode_line(
    custom_id: str, model: str, prompt: str, detail: str, max_output_tokens: int, image: str | Inline
) -> Iterator[bytes]:
    """One line of an input file, with its newline, in pieces: a large image is never there twice. The same arguments
    give the same bytes. image: its address, or what such an address would hold.
    """
    line = {
        "custom_id": custom_id,
        "method": "POST",
        "url": ENDPOINT,
        "body": chat_body(model, prompt, detail, max_output_tokens, ""),
    }
    # No text can hold these bytes, as a quotation mark within one has a backslash before it.
    head, mark, tail = json.dumps(line, separators=(",", ":")).encode("ascii").partition(b'"url":""')
    yield head + mark[:-1]
    yield from (json.dumps(image)[1:-1].encode("ascii"),) if isinstance(image, str) else _url_pieces(image)
    yield mark[-1:] + tail + b"\n"


def parse_result_line(line: bytes) -> LineResult | None:
    """What a line of an output or error file says; None for one that names no request, which the caller counts."""
    try:
        result = json.loads(line)
    except (ValueError, RecursionError):
        return None
    custom_id = _field(result, "custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        return None
    return LineResult(_clean(custom_id), _outcome(_field(result, "response"), _field(result, "error")))


def read_completion(body: object) -> Answer | LineFailure:
    """The answer in the body of a chat completion. What the model refuses to say is an answer: content_filter."""
    choices = _field(body, "choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = _field(choice, "message")
    if not isinstance(message, Mapping):
        return read_failure(Place.LINE, None, {"code": INVALID_RESPONSE, "message": "The answer holds no message."})
    text, refusal = _text_of(message.get("content")), message.get("refusal")
    finish_reason = str(_field(choice, "finish_reason") or "stop")
    if isinstance(refusal, str) and refusal and not text:
        text, finish_reason = refusal, "content_filter"
    usage = _field(body, "usage")
    return Answer(
        text=_clean(text),
        finish_reason=_clean(finish_reason)[:CODE_CHARS_MAX],
        input_tokens=_count(_field(usage, "prompt_tokens")),
        output_tokens=_count(_field(usage, "completion_tokens")),
    )


def read_failure(place: Place, status: int | None, error: object) -> LineFailure:
    """What an HTTP status and an error object of the API mean where they came up. status: None where there was none."""
    code = _field(error, "code") or _field(error, "type") or (f"http_{status}" if status else PROVIDER_ERROR)
    code = _clean(str(code))[:CODE_CHARS_MAX]
    message = _clean(str(_field(error, "message") or "The provider gave no reason."))[:MESSAGE_CHARS_MAX]
    return LineFailure(code, message, classify(Signal(place, code, status, message)))


def _url_pieces(image: Inline) -> Iterator[bytes]:
    yield f"data:{image.media_type};base64,".encode("ascii")
    data = memoryview(image.data)
    for start in range(0, len(data), PIECE_BYTES):
        yield b64encode(data[start : start + PIECE_BYTES])


def _outcome(response: object, error: object) -> Answer | LineFailure:
    status, body = _field(response, "status_code"), _field(response, "body")
    if status == 200:
        return read_completion(body)
    known_status = status if isinstance(status, int) and not isinstance(status, bool) else None
    return read_failure(Place.LINE, known_status, _field(body, "error") or error)


def _field(value: object, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else None


def _text_of(content: object) -> str:
    """A message's content: a text, or a list of parts of which the texts count."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(text for part in parts if isinstance(text := _field(part, "text"), str))


def _clean(text: str) -> str:
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= COUNT_MAX else 0
