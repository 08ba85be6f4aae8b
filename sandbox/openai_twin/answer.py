"""A chat request in, a chat completion out: which images a request shows, what is said of them, and what it counts.

Shapes and error codes are those of POST /v1/chat/completions as the `openai` client 3.54 types them. Counts of tokens
are plausible and not a bill: four bytes of text a token, and 1.62 tokens for each 32 x 32 pixels (as gpt-4.1-mini).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from sandbox.openai_twin.vision import Description

Json = dict[str, Any]

IMAGES_MAX: Final = 500
_PATCH_PIXELS: Final = 32
_PATCHES_MAX: Final = 1536
_PATCH_TOKENS: Final = 1.62
_LOW_DETAIL_TOKENS: Final = 85
_TEXT_TOKEN_BYTES: Final = 4
_DETAILS: Final = ("low", "high", "auto", "original")


class RequestRefused(Exception):
    """What the API answers instead: an HTTP status and the fields of its error object."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers: dict[str, str] = {}
        self.body: Json = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class ImagePart(NamedTuple):
    """An image of a request: an http, https or data URL, and how closely to look."""

    url: str
    detail: str


class Question(NamedTuple):
    """What a chat request asks, reduced to what matters for an answer."""

    model: str
    prompt: str
    images: tuple[ImagePart, ...]
    wants_json: bool
    output_tokens_max: int | None


def parse_question(body: object) -> Question:
    """Reads a chat request; raises RequestRefused as the API would."""
    if not isinstance(body, dict):
        raise RequestRefused("The body of the request must be a JSON object.")
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise RequestRefused("you must provide a model parameter")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _missing("messages")
    if body.get("stream"):
        raise RequestRefused("Streaming is not supported here.", param="stream", code="unsupported_value")
    texts: list[str] = []
    images: list[ImagePart] = []
    for at, message in enumerate(messages):
        _read_message(message, f"messages[{at}]", texts, images)
    if len(images) > IMAGES_MAX:
        raise RequestRefused(f"At most {IMAGES_MAX} images can be sent.", param="messages", code="too_many_images")
    prompt = "\n".join(texts)
    return Question(model, prompt, tuple(images), _wants_json(body, prompt), _output_tokens_max(body))


def _read_message(message: object, param: str, texts: list[str], images: list[ImagePart]) -> None:
    if not isinstance(message, dict):
        raise _wrong_type(param, "an object")
    if not isinstance(message.get("role"), str):
        raise _missing(f"{param}.role")
    content = message.get("content")
    if isinstance(content, str):
        texts.append(content)
        return
    if not isinstance(content, list):
        raise _wrong_type(f"{param}.content", "a string or an array")
    for at, part in enumerate(content):
        _read_part(part, f"{param}.content[{at}]", texts, images)


def _read_part(part: object, param: str, texts: list[str], images: list[ImagePart]) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(part, dict) and kind == "text" and isinstance(part.get("text"), str):
        texts.append(part["text"])
    elif isinstance(part, dict) and kind == "image_url":
        images.append(_image_part(part.get("image_url"), f"{param}.image_url"))
    else:
        raise RequestRefused(
            f"Invalid value: '{kind}'. Supported values are: 'text' and 'image_url'.",
            param=f"{param}.type",
            code="invalid_value",
        )


def _image_part(image_url: object, param: str) -> ImagePart:
    if not isinstance(image_url, dict) or not isinstance(image_url.get("url"), str):
        raise _wrong_type(param, "an object with a url")
    detail = image_url.get("detail", "auto")
    if detail not in _DETAILS:
        raise RequestRefused(f"Invalid value: '{detail}'.", param=f"{param}.detail", code="invalid_value")
    if not image_url["url"].startswith(("https://", "http://", "data:")):
        raise RequestRefused("Expected a valid URL.", param=f"{param}.url", code="invalid_image_url")
    return ImagePart(image_url["url"], detail)


def _wants_json(body: Mapping[str, Any], prompt: str) -> bool:
    response_format = body.get("response_format")
    asked = isinstance(response_format, dict) and response_format.get("type") in ("json_object", "json_schema")
    return asked or "json" in prompt.lower()


def _output_tokens_max(body: Mapping[str, Any]) -> int | None:
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    if limit is None:
        return None
    if not isinstance(limit, int) or limit < 1:
        raise RequestRefused("The limit must be a positive integer.", param="max_tokens", code="invalid_value")
    return limit


def complete(question: Question, seen: Sequence[Description], completion_id: str, created: int) -> Json:
    """The completion that answers a question about images already described. `created` is in unix seconds."""
    text = _answer_text(question, seen)
    output_tokens = _text_tokens(text)
    finish_reason = "stop"
    if question.output_tokens_max is not None and output_tokens > question.output_tokens_max:
        output_tokens = question.output_tokens_max
        text = text[: output_tokens * _TEXT_TOKEN_BYTES]
        finish_reason = "length"
    message: Json = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    return {
        "id": completion_id,
        "object": "chat.completion",
        "created": created,
        "model": question.model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}],
        "usage": _usage(question, seen, output_tokens),
        "service_tier": "default",
        "system_fingerprint": None,
    }


def _answer_text(question: Question, seen: Sequence[Description]) -> str:
    if question.wants_json:
        described = [description.as_json() for description in seen]
        return json.dumps(described[0] if len(described) == 1 else {"images": described})
    if not seen:
        return "I was shown no image."
    if len(seen) == 1:
        return seen[0].sentence()
    return " ".join(f"Image {number}: {each.sentence()}" for number, each in enumerate(seen, 1))


def _usage(question: Question, seen: Sequence[Description], output_tokens: int) -> Json:
    image_tokens = sum(_image_tokens(part, each) for part, each in zip(question.images, seen, strict=True))
    input_tokens = _text_tokens(question.prompt) + image_tokens
    return {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _image_tokens(part: ImagePart, seen: Description) -> int:
    if part.detail == "low":
        return _LOW_DETAIL_TOKENS
    patches = -(-seen.width_pixels // _PATCH_PIXELS) * -(-seen.height_pixels // _PATCH_PIXELS)
    return round(min(patches, _PATCHES_MAX) * _PATCH_TOKENS)


def _text_tokens(text: str) -> int:
    return -(-len(text.encode()) // _TEXT_TOKEN_BYTES)


def _missing(param: str) -> RequestRefused:
    return RequestRefused(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")


def _wrong_type(param: str, expected: str) -> RequestRefused:
    return RequestRefused(f"Invalid type for '{param}': expected {expected}.", param=param, code="invalid_type")
