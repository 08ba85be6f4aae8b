"""The lines of a batch are judged with the API's codes and line numbers."""

import json
from typing import Any

import pytest

from sandbox.openai_twin.input_file import ERRORS_MAX, LINES_MAX, Inspection

ENDPOINT = "/v1/chat/completions"


def line(custom_id: object = "a", **changed: Any) -> bytes:
    whole = {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": {"model": "gpt-4.1-mini"}}
    return json.dumps({**whole, **changed}).encode()


def inspect(*lines: bytes) -> Inspection:
    inspection = Inspection(ENDPOINT)
    for number, raw in enumerate(lines, 1):
        inspection.take(number, raw)
    inspection.finish()
    return inspection


def test_a_good_file_has_a_model_and_no_errors() -> None:
    """The model of all lines is the batch's."""
    good = inspect(line("a"), line("b"))

    assert (good.errors, good.lines, good.model) == ([], 2, "gpt-4.1-mini")


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (b"{", "invalid_json_line"),
        (b"[1]", "invalid_json_line"),
        (b"\xff\xfe", "invalid_json_line"),
        (line(""), "missing_required_parameter"),
        (line("b", method=None), "missing_required_parameter"),
        (line("b", body={}), "missing_required_parameter"),
        (line("b", method="GET"), "invalid_method"),
        (line("b", url="v1/chat/completions"), "url_mismatch"),
        (line(7), "invalid_type"),
        (line("a"), "duplicate_custom_id"),
        (line("b", body={"model": "gpt-4o"}), "model_mismatch"),
    ],
)
def test_a_bad_line_is_named_with_its_number(bad: bytes, code: str) -> None:
    """The second line is wrong, the others are not."""
    errors = inspect(line("a"), bad, line("c")).errors

    assert [(code, 2)] == [(error["code"], error["line"]) for error in errors]


def test_an_empty_file_is_an_error_without_a_line() -> None:
    """Nothing to do is refused."""
    assert [(error["code"], error["line"]) for error in inspect().errors] == [("empty_file", None)]


def test_one_line_more_than_the_limit_is_one_error() -> None:
    """50,000 lines pass, 50,001 do not."""
    full = [line(str(number)) for number in range(LINES_MAX)]

    assert inspect(*full).errors == []
    assert [error["code"] for error in inspect(*full, line("x"), line("y")).errors] == ["too_many_tasks"]


def test_errors_are_bounded() -> None:
    """A file of rubbish does not make an endless list."""
    assert len(inspect(*[b"?"] * (ERRORS_MAX + 10)).errors) == ERRORS_MAX
