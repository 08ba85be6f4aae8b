"""What is wrong with the lines of a batch's input file, judged as the API judges them after a batch was created.

The codes are those that a failed batch shows in `errors.data`: invalid_json_line, missing_required_parameter,
invalid_method, url_mismatch, model_mismatch, duplicate_custom_id, too_many_tasks and empty_file.
"""

import json
from typing import Final

from sandbox.openai_twin.answer import Json

LINES_MAX: Final = 50_000
FILE_BYTES_MAX: Final = 200_000_000
ERRORS_MAX: Final = 100
_KEYS: Final = ("custom_id", "method", "url", "body")


class Inspection:
    """Judges a file: feed `take` with every line that is not blank, call `finish`, read what was found."""

    def __init__(self, endpoint: str) -> None:
        self.errors: list[Json] = []
        self.lines = 0
        self.model: str | None = None
        self._endpoint = endpoint
        self._number = 0
        self._custom_ids: set[str] = set()

    def take(self, number: int, raw: bytes) -> None:
        """Judges the next line, which stands at `number` in the file."""
        self._number = number
        self.lines += 1
        if self.lines > LINES_MAX:
            if self.lines == LINES_MAX + 1:
                self._refuse("too_many_tasks", f"The batch has more than the maximum of {LINES_MAX} requests.", None)
            return
        try:
            line = json.loads(raw)
        except (ValueError, RecursionError):
            line = None
        if not isinstance(line, dict):
            self._refuse("invalid_json_line", "This line is not parseable as valid JSON.", None)
            return
        self._judge(line)

    def finish(self) -> None:
        """Judges the file as a whole."""
        if self.lines == 0:
            self.errors.append(batch_error("empty_file", "The input file is empty.", param="input_file_id"))

    def _judge(self, line: Json) -> None:
        missing = next((key for key in _KEYS if not line.get(key)), None)
        if missing is not None:
            self._refuse("missing_required_parameter", f"Missing required parameter: '{missing}'.", missing)
        elif line["method"] != "POST":
            self._refuse("invalid_method", "The method must be POST.", "method")
        elif line["url"] != self._endpoint:
            self._refuse("url_mismatch", "The URL provided for this request does not match the batch endpoint.", "url")
        elif not isinstance(line["custom_id"], str) or not isinstance(line["body"], dict):
            self._refuse("invalid_type", "custom_id must be a string and body an object.", None)
        elif line["custom_id"] in self._custom_ids:
            self._refuse(
                "duplicate_custom_id", "The custom_id for this request is a duplicate of another request.", "custom_id"
            )
        else:
            self._custom_ids.add(line["custom_id"])
            self._judge_model(line["body"].get("model"))

    def _judge_model(self, model: object) -> None:
        if not isinstance(model, str) or not model:
            self._refuse("missing_required_parameter", "Missing required parameter: 'body.model'.", "body.model")
        elif self.model is None:
            self.model = model
        elif model != self.model:
            self._refuse(
                "model_mismatch",
                f"All requests of a batch must name the same model, which is '{self.model}' here.",
                "body.model",
            )

    def _refuse(self, code: str, message: str, param: str | None) -> None:
        if len(self.errors) < ERRORS_MAX:
            self.errors.append(batch_error(code, message, param=param, line=self._number))


def batch_error(code: str, message: str, *, param: str | None = None, line: int | None = None) -> Json:
    """One entry of a failed batch's errors; lines count from 1."""
    return {"code": code, "message": message, "param": param, "line": line}
