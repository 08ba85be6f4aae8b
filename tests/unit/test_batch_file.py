"""The lines of a batch's files are written as the API wants them and read whatever they hold."""

import base64
import json
from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.batcher import batch_file
from services.batcher.batch_file import LineFailure, LineResult
from services.batcher.job import Answer

UID = "019aa000-0000-7000-8000-000000000001"


def completion(content: object = "a cat", finish_reason: str = "stop", **message: object) -> dict[str, Any]:
    """The body of a chat completion."""
    return {
        "object": "chat.completion",
        "choices": [{"index": 0, "finish_reason": finish_reason, "message": {"content": content, **message}}],
        "usage": {"prompt_tokens": 812, "completion_tokens": 3, "total_tokens": 815},
    }


def line(response: object = None, error: object = None, custom_id: object = "a.1") -> bytes:
    """A line of a result file."""
    return json.dumps({"id": "batch_req_1", "custom_id": custom_id, "response": response, "error": error}).encode()


def outcome(response: object = None, error: object = None) -> Answer | LineFailure:
    """The outcome that such a line has."""
    result = batch_file.parse_result_line(line(response, error))
    assert result is not None
    assert result.custom_id == "a.1"
    return result.outcome


def test_an_image_within_its_line_is_encoded_piece_by_piece_to_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the prompt says, and wherever the image is cut, the provider reads one data URL."""
    image = batch_file.Inline("image/png", bytes(range(256)) * 5)
    whole = f"data:image/png;base64,{b64encode(image.data).decode()}"
    monkeypatch.setattr(batch_file, "PIECE_BYTES", 300)
    pieces = list(batch_file.encode_line("a.1", "gpt-x", 'What is {"url":""}?', "LOW", 9, image))

    assert max(map(len, pieces)) <= 400
    assert b"".join(pieces) == b"".join(batch_file.encode_line("a.1", "gpt-x", 'What is {"url":""}?', "LOW", 9, whole))
    text, shown = json.loads(b"".join(pieces))["body"]["messages"][0]["content"]
    assert (text["text"], shown["image_url"]["url"]) == ('What is {"url":""}?', whole)
    assert batch_file.data_url(image) == whole


def test_a_line_has_the_shape_of_the_batch_api() -> None:
    """A request is one line of JSON with the endpoint, the prompt, one image and the bound of the answer."""
    url = batch_file.data_url(batch_file.Inline("image/png", b"\x89PNG"))
    written = b"".join(batch_file.encode_line("a.1", "gpt-4.1-mini", "What\nis ü?", "HIGH", 512, url))
    assert written.index(b"\n") == len(written) - 1
    assert json.loads(written) == {
        "custom_id": "a.1",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "gpt-4.1-mini",
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "What\nis ü?"},
                        {"type": "image_url", "image_url": {"url": url, "detail": "high"}},
                    ],
                }
            ],
            "max_completion_tokens": 512,
        },
    }
    assert base64.b64decode(url.removeprefix("data:image/png;base64,")) == b"\x89PNG"


@given(st.integers(1, 999_999_999))
def test_a_custom_id_names_a_job_and_an_attempt(attempt: int) -> None:
    """What was joined comes apart again."""
    assert batch_file.split_custom_id(batch_file.custom_id_of(UID, attempt)) == (UID, attempt)


@pytest.mark.parametrize("foreign", ["", "a", ".1", "a.", "a.x", "a.-1", "a.²", "a.12345678901"])
def test_a_foreign_custom_id_is_none_of_ours(foreign: str) -> None:
    """An id that we never wrote is not taken for one of ours."""
    assert batch_file.split_custom_id(foreign) is None


def test_an_answer_is_read() -> None:
    """A line with status 200 holds the text, why it ended and what it counted."""
    result = batch_file.parse_result_line(line({"status_code": 200, "body": completion()}))
    assert result == LineResult("a.1", Answer("a cat", "stop", 812, 3))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (completion("cut", "length"), Answer("cut", "length", 812, 3)),
        (completion(None, "stop", refusal="I can't."), Answer("I can't.", "content_filter", 812, 3)),
        (completion([{"type": "text", "text": "a "}, {"type": "text", "text": "b"}, 3]), Answer("a b", "stop", 812, 3)),
        (completion(None, "length"), Answer("", "length", 812, 3)),
        ({**completion(), "usage": None}, Answer("a cat", "stop", 0, 0)),
        ({**completion(), "usage": {"prompt_tokens": -1, "completion_tokens": True}}, Answer("a cat", "stop", 0, 0)),
        (completion("a\0b\ud800"), Answer("a\ufffdb?", "stop", 812, 3)),
    ],
)
def test_unusual_answers_are_answers(body: dict[str, Any], expected: Answer) -> None:
    """Cut off, refused, in parts, empty, uncounted: each is an answer, fit for every store."""
    assert outcome({"status_code": 200, "body": body}) == expected


@pytest.mark.parametrize(
    ("response", "error", "code", "retryable"),
    [
        (None, {"code": "batch_expired", "message": "This request could not be executed."}, "batch_expired", True),
        (None, {"code": "batch_cancelled", "message": "..."}, "batch_cancelled", True),
        (None, {"code": "request_timeout", "message": "..."}, "request_timeout", True),
        (None, {"code": "unheard_of", "message": "..."}, "unheard_of", False),
        (None, None, "provider_error", True),
        (None, "a text", "provider_error", True),
        ({"status_code": 429, "body": {"error": {"code": "rate_limit_exceeded"}}}, None, "rate_limit_exceeded", True),
        ({"status_code": 500, "body": {"error": {"code": None, "type": "server_error"}}}, None, "server_error", True),
        ({"status_code": 503, "body": None}, None, "http_503", True),
        ({"status_code": 400, "body": {"error": {"code": "invalid_image_url"}}}, None, "invalid_image_url", False),
        (
            {
                "status_code": 400,
                "body": {"error": {"code": "invalid_image_url", "message": "Timeout while downloading"}},
            },
            None,
            "invalid_image_url",
            True,
        ),
        ({"status_code": 400, "body": {"error": {"code": "invalid_image"}}}, None, "invalid_image", False),
        ({"status_code": 404, "body": {"error": {"code": "model_not_found"}}}, None, "model_not_found", False),
        ({"status_code": 200, "body": {}}, None, "invalid_response", True),
        ({"status_code": 200, "body": {"choices": [None]}}, None, "invalid_response", True),
        ({"status_code": "400"}, {"code": "batch_expired"}, "batch_expired", True),
        ({}, None, "provider_error", True),
    ],
)
def test_failures_are_told_apart(response: object, error: object, code: str, retryable: bool) -> None:
    """Each failure has a code, a sentence, and whether another try may help."""
    failure = outcome(response, error)
    assert isinstance(failure, LineFailure)
    assert (failure.code, failure.retryable) == (code, retryable)
    assert failure.message


def test_a_failures_words_are_bounded() -> None:
    """A provider that floods us with words is cut."""
    failure = outcome(None, {"code": "c" * 10_000, "message": "m\0" * 10_000})
    assert isinstance(failure, LineFailure)
    assert (len(failure.code), len(failure.message)) == (64, 512)
    assert "\0" not in failure.message


@pytest.mark.parametrize(
    "garbage",
    [b"", b"\n", b"not json", b"[1]", b"3", b"null", b"{}", b'{"custom_id": 3}', b"\xff\xfe", b"[" * 100_000],
)
def test_a_line_that_names_no_request_is_garbage(garbage: bytes) -> None:
    """What names no request is None, and never an exception."""
    assert batch_file.parse_result_line(garbage) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["status_code", "body", "error", "code", "message", "choices", "content", "usage", "type"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON, JSON)
def test_any_json_has_an_outcome(response: object, error: object) -> None:
    """Whatever stands where response and error should be, the line has an outcome of bounded, storable texts."""
    read = outcome(response, error)
    text = read.text + read.finish_reason if isinstance(read, Answer) else read.code + read.message
    assert "\0" not in text
    assert text.encode("utf-8")
