"""What a question gets instead of an answer when a fault strikes it, in a batch's line or in a call of its own."""

from typing import Final

from sandbox.openai_twin.answer import Json, RequestRefused
from sandbox.openai_twin.faults import Strike

OPAQUE: Final = "The server had an error while processing your request. Sorry about that!"
_HALF: Final = 2


def refusal(strike: Strike, model: str) -> RequestRefused | None:
    """The error that the API answers, if the strike is one of those."""
    match strike.name:
        case "line_model_not_found":
            message = f"The model `{model}` does not exist or you do not have access to it."
            return RequestRefused(message, status=404, code="model_not_found")
        case "line_image_unreachable" if strike.parameters["timeout"]:
            return RequestRefused("Timeout while downloading the image.", code="invalid_image_url")
        case "line_image_unreachable":
            return RequestRefused("Error while downloading the image.", code="invalid_image_url")
        case "line_bad_request":
            message = "Invalid value: 'input_image'. Supported values are: 'text' and 'image_url'."
            return RequestRefused(message, param="messages[0].content[1].type", code="invalid_value")
        case "line_server_error":
            return RequestRefused(OPAQUE, status=500, kind="server_error", code="server_error")
        case "line_rate_limited":
            message = f"Rate limit reached for {model}. Please try again later."
            return RequestRefused(message, status=429, kind="requests", code="rate_limit_exceeded")
    return None


def line_error(strike: Strike) -> Json | None:
    """The error of a line that got no response at all, if the strike is one of those."""
    if strike.name == "line_request_timeout":
        return {"code": "request_timeout", "message": "The request timed out."}
    return None


def cut_answer(completion: Json, finish_reason: str) -> None:
    """Cuts the text of a completion in half, and says why it ended."""
    choice = completion["choices"][0]
    text = choice["message"]["content"]
    choice["message"]["content"] = text[: len(text) // _HALF]
    choice["finish_reason"] = finish_reason
