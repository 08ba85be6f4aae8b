"""A chat request is read, refused or answered as the API does."""

import json
from typing import Any

import pytest

from sandbox.openai_twin.answer import RequestRefused, complete, parse_question
from sandbox.openai_twin.vision import Colour, Description

CAT = Description("JPEG", 64, 32, (Colour("brown", 80), Colour("green", 20)), 47, 411)
TEXT = {"type": "text", "text": "What is this?"}
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/cat.jpg", "detail": "high"}}


def request(*parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": "gpt-4.1-mini", "messages": [{"role": "user", "content": list(parts)}], **more}


def text_of(completion: dict[str, Any]) -> str:
    return str(completion["choices"][0]["message"]["content"])


def test_an_image_is_described_in_a_sentence() -> None:
    """One image, one sentence, with its size, format and colours."""
    completion = complete(parse_question(request(TEXT, IMAGE)), [CAT], "chatcmpl-1", 0)

    expected = "A sharp, evenly lit JPEG image of 64 x 32 pixels, mostly brown, with some green."
    assert expected == text_of(completion)
    assert completion["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "asked",
    [
        request({"type": "text", "text": "Answer as JSON."}, IMAGE),
        request(TEXT, IMAGE, response_format={"type": "json_object"}),
    ],
)
def test_json_is_answered_when_json_is_asked_for(asked: dict[str, Any]) -> None:
    """The word in the prompt or the response_format gives a JSON object."""
    answer = json.loads(text_of(complete(parse_question(asked), [CAT], "chatcmpl-1", 0)))

    assert (answer["format"], answer["width_pixels"], answer["height_pixels"]) == ("JPEG", 64, 32)


def test_an_answer_over_the_limit_is_cut_and_says_so() -> None:
    """max_completion_tokens ends the text with finish_reason length."""
    completion = complete(parse_question(request(TEXT, IMAGE, max_completion_tokens=3)), [CAT], "chatcmpl-1", 0)

    assert completion["choices"][0]["finish_reason"] == "length"
    assert completion["usage"]["completion_tokens"] == 3
    assert len(text_of(completion)) == 12


def test_usage_adds_up() -> None:
    """The total is input and output; a larger image costs more; low detail is flat."""
    low = {"type": "image_url", "image_url": {"url": "https://example.org/cat.jpg", "detail": "low"}}
    large = CAT._replace(width_pixels=640, height_pixels=640)
    usages = [
        complete(parse_question(request(TEXT, part)), [seen], "chatcmpl-1", 0)["usage"]
        for part, seen in ((IMAGE, CAT), (IMAGE, large), (low, CAT), (low, large))
    ]

    assert all(each["total_tokens"] == each["prompt_tokens"] + each["completion_tokens"] for each in usages)
    assert usages[0]["prompt_tokens"] < usages[1]["prompt_tokens"]
    assert usages[2]["prompt_tokens"] == usages[3]["prompt_tokens"]


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ([], None, None),
        ({"messages": []}, None, None),
        ({"model": "m"}, "messages", "missing_required_parameter"),
        ({"model": "m", "messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
        (request({"type": "input_image", "image_url": "https://x"}), "messages[0].content[0].type", "invalid_value"),
        (
            request({"type": "image_url", "image_url": "https://x"}),
            "messages[0].content[0].image_url",
            "invalid_type",
        ),
        (
            request({"type": "image_url", "image_url": {"url": "s3://bucket/cat"}}),
            "messages[0].content[0].image_url.url",
            "invalid_image_url",
        ),
        (
            request({"type": "image_url", "image_url": {"url": "https://x", "detail": "huge"}}),
            "messages[0].content[0].image_url.detail",
            "invalid_value",
        ),
        (request(TEXT, stream=True), "stream", "unsupported_value"),
        (request(TEXT, max_tokens=0), "max_tokens", "invalid_value"),
    ],
)
def test_a_bad_request_is_refused_by_name(body: object, param: str | None, code: str | None) -> None:
    """The error object names the parameter and has the API's code."""
    with pytest.raises(RequestRefused) as refused:
        parse_question(body)

    assert refused.value.status == 400
    error = refused.value.body["error"]
    assert (param, code) == (error["param"], error["code"])
