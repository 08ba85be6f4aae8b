"""What a job was asked to do, exactly as the client sent it: the content that its key stands for. Pure.

The order is stored as JSON beside the job and compared field by field when the key comes again. What the server adds
(the default model, the deadline, the price) is not in it, so that a change of defaults never turns a retry into a
mismatch. An inline image is in it by its id, which is the SHA-256 of its bytes. A field that came later has a default,
with which the orders that were stored before are read.
"""

import json
from collections.abc import Mapping
from typing import NamedTuple


class Order(NamedTuple):
    """A request for a job. Empty strings and None stand for what the client left to the server.

    retry_of: the job_id of the dead job whose content this has.
    """

    payer_account_id: str
    image_ids: tuple[str, ...]
    prompt: str
    lane: str
    model: str
    detail: str
    max_output_tokens: int | None
    labels: Mapping[str, str]
    deadline_us: int | None
    allow_batch_fallback: bool = False
    retry_of: str = ""


class Difference(NamedTuple):
    """The first field in which two orders differ, in the order of the fields of the request."""

    field: str
    stored: object
    received: object


def encode(order: Order) -> str:
    """The order as JSON, in ASCII, so that its length is its size."""
    return json.dumps(order._asdict(), sort_keys=True, separators=(",", ":"))


def decode(text: str) -> Order:
    """The order of a stored text."""
    fields = json.loads(text)
    return Order(**{**fields, "image_ids": tuple(fields["image_ids"])})


def again(order: Order, job_id: str, model: str, max_output_tokens: int) -> Order:
    """The order that retries a dead job: its content as it was pinned, with a deadline of its own."""
    return order._replace(model=model, max_output_tokens=max_output_tokens, deadline_us=None, retry_of=job_id)


def first_difference(stored: str, received: str) -> Difference | None:
    """Where two encoded orders differ, or None."""
    if stored == received:
        return None
    before, after = decode(stored), decode(received)
    for field, old, new in zip(Order._fields, before, after, strict=True):
        if old != new:
            return Difference("images" if field == "image_ids" else field.removesuffix("_us"), old, new)
    return None
