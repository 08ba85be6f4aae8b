"""What is wrong with a request to create a batch or to let a file expire, said as the API says it at once."""

from typing import Final

from sandbox.openai_twin.answer import Json, RequestRefused

ENDPOINTS: Final = ("/v1/chat/completions",)
PAIRS_MAX: Final = 16
KEY_CHARS_MAX: Final = 64
VALUE_CHARS_MAX: Final = 512
_EXPIRY_SECONDS_RANGE: Final = range(3600, 2_592_001)


def check_batch_request(body: Json) -> None:
    """Raises RequestRefused unless a body has all that a batch needs."""
    for name in ("input_file_id", "endpoint", "completion_window"):
        if not isinstance(body.get(name), str) or not body[name]:
            raise RequestRefused(
                f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter"
            )
    if body["endpoint"] not in ENDPOINTS:
        message = f"Invalid value: '{body['endpoint']}'. Supported values are: {', '.join(map(repr, ENDPOINTS))}."
        raise RequestRefused(message, param="endpoint", code="invalid_value")
    if body["completion_window"] != "24h":
        message = f"Invalid value: '{body['completion_window']}'. Supported values are: '24h'."
        raise RequestRefused(message, param="completion_window", code="invalid_value")
    _check_metadata(body.get("metadata"))


def _check_metadata(metadata: object) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or len(metadata) > PAIRS_MAX:
        raise RequestRefused(f"metadata has up to {PAIRS_MAX} pairs.", param="metadata", code="invalid_value")
    for key, value in metadata.items():
        if not isinstance(value, str) or len(value) > VALUE_CHARS_MAX or len(key) > KEY_CHARS_MAX:
            message = f"metadata has keys of up to {KEY_CHARS_MAX} characters and texts of up to {VALUE_CHARS_MAX}."
            raise RequestRefused(message, param=f"metadata.{key[:KEY_CHARS_MAX]}", code="invalid_value")


def expiry_seconds(asked: Json, param: str) -> int | None:
    """How long a file lives, if a request says so; raises RequestRefused outside 1 hour to 30 days."""
    if not asked:
        return None
    try:
        seconds = int(asked.get("seconds", 0))
    except (TypeError, ValueError):
        seconds = 0
    if asked.get("anchor") != "created_at" or seconds not in _EXPIRY_SECONDS_RANGE:
        raise RequestRefused(f"Invalid value for '{param}'.", param=param, code="invalid_value")
    return seconds
