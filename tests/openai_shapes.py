"""Whether an answer is one that the installed `openai` client has types for: nothing missing, nothing more, no cast."""

import json
from collections.abc import Iterator
from typing import Any, Final

from aiohttp import web
from openai.types import Batch, FileDeleted, FileObject
from openai.types.chat import ChatCompletion
from openai.types.shared import ErrorObject
from pydantic import BaseModel, ValidationError

from sandbox.openai_twin.fault_kinds import HTTP_OPERATIONS

SHAPES: Final[dict[str, type[BaseModel]]] = {
    "files.create": FileObject,
    "files.retrieve": FileObject,
    "files.list": FileObject,
    "files.delete": FileDeleted,
    "batches.create": Batch,
    "batches.retrieve": Batch,
    "batches.list": Batch,
    "batches.cancel": Batch,
    "chat.create": ChatCompletion,
}
_PAGE: Final = {"object", "data", "first_id", "last_id", "has_more"}


def wrong_in(request: web.Request, response: web.StreamResponse) -> list[str]:
    """What is wrong in an answer of the API's own routes; a fault that garbles is let pass."""
    operation = request.match_info.route.name
    garbled = response.headers.get("x-twin-fault") in ("reply_garbled", "bad_gateway")
    if operation not in HTTP_OPERATIONS or garbled or not isinstance(response, web.Response) or response.body is None:
        return []
    assert isinstance(response.body, bytes)
    answer = json.loads(response.body)
    if response.status != 200:
        return [*_unequal(operation, set(answer), {"error"}), *wrong_with(ErrorObject, answer["error"], operation)]
    if not operation.endswith(".list"):
        return wrong_with(SHAPES[operation], answer, operation)
    wrong = _unequal(operation, set(answer), _PAGE)
    return wrong + [each for item in answer["data"] for each in wrong_with(SHAPES[operation], item, operation)]


def wrong_with(shape: type[BaseModel], answer: Any, where: str) -> list[str]:
    """What is wrong in JSON that should be of a type of the client."""
    try:
        model = shape.model_validate(answer, strict=True)
    except ValidationError as error:
        return [f"{where}: {error}"]
    return [f"{where}: unknown {name}" for name in _unknown(model, shape.__name__)]


def _unknown(model: BaseModel, path: str) -> Iterator[str]:
    yield from (f"{path}.{name}" for name in model.model_extra or {})
    for name in type(model).model_fields:
        value = getattr(model, name)
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, BaseModel):
                yield from _unknown(each, f"{path}.{name}")


def _unequal(where: str, found: set[str], wanted: set[str]) -> list[str]:
    return [f"{where}: has {sorted(found)}, not {sorted(wanted)}"] if found != wanted else []
