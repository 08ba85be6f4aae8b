"""The batcher's values as messages of its proto, and requests as orders: nothing here decides anything."""

from collections.abc import Awaitable, Coroutine, Mapping
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from punchcard.batcher.v1 import batcher_pb2, error_reason_pb2
from services.batcher.job import Answer, Failure, Job, Lane, Settlement, SettlementState, State
from services.batcher.order import Order
from services.batcher.pricing import Terms
from services.batcher.store_reads import Image
from services.batcher.store_rows import JobView
from services.chassis.auth import Principal
from services.chassis.errors import Outcome
from services.chassis.fields import Checks

PROMPT_BYTES_MAX: Final = 32 * 1024
INLINE_BYTES_MAX: Final = 1024 * 1024
OUTPUT_TOKENS_MAX: Final = 32_768
LABELS_MAX: Final = 16
LABEL_KEY_CHARS_MAX: Final = 64
LABEL_VALUE_CHARS_MAX: Final = 256
MODEL_CHARS_MAX: Final = 128
IMAGES_MAX: Final = 1

STATES: Final[Mapping[str, batcher_pb2.JobState.ValueType]] = {
    state.value: batcher_pb2.JobState.Value(f"JOB_STATE_{state.value}") for state in State
}
SETTLEMENTS: Final[Mapping[str, batcher_pb2.SettlementState.ValueType]] = {
    state.value: batcher_pb2.SettlementState.Value(f"SETTLEMENT_STATE_{state.value}") for state in SettlementState
}
LANES: Final[Mapping[str, batcher_pb2.Lane.ValueType]] = {
    lane.value: batcher_pb2.Lane.Value(f"LANE_{lane.value}") for lane in Lane
}
_DETAILS: Final[Mapping[str, batcher_pb2.Detail.ValueType]] = {
    name: batcher_pb2.Detail.Value(f"DETAIL_{name}") for name in ("LOW", "HIGH", "AUTO")
}
_LANE_NAMES: Final = {number: name for name, number in LANES.items()}
_DETAIL_NAMES: Final = {number: name for name, number in _DETAILS.items()} | {batcher_pb2.DETAIL_UNSPECIFIED: "AUTO"}
TIER_SCOPE: Final = "tier:"
_HEX: Final = frozenset("0123456789abcdef")


Done = TypeVar("Done")


class Shield(Protocol):
    """Runs work that a client's deadline must not cut in the middle; the server waits for it when it drains."""

    def __call__(self, work: Coroutine[Any, Any, Done]) -> Awaitable[Done]:
        """The result of the work, or its exception."""
        ...


class Asked(NamedTuple):
    """A request for a job, decoded. inline: the bytes of images that are not stored yet, which the order lacks.

    terms: on what price; they are about this acceptance, and no part of what the key stands for.
    """

    account_id: str
    job_id: str
    order: Order
    inline: tuple[bytes, ...]
    terms: Terms = Terms()


def asked_of(request: batcher_pb2.SubmitJobRequest, prefix: str, inline_allowed: bool) -> Asked:
    """Checks a request field by field. Raises InvalidField."""
    checks = Checks(prefix)
    account_id = checks.id("account_id", request.account_id)
    job_id = checks.id("job_id", request.job_id)
    image_ids, inline = _images(checks, request, inline_allowed)
    _check_prompt(checks, request.prompt)
    if request.lane not in _LANE_NAMES:
        checks.fail("lane", request.lane, "must be LANE_BATCH or LANE_INSTANT")
    if request.detail not in _DETAIL_NAMES:
        checks.fail("detail", request.detail, "must be a Detail")
    if request.allow_batch_fallback and request.lane == batcher_pb2.LANE_BATCH:
        checks.fail("allow_batch_fallback", True, "must be left out unless the lane is LANE_INSTANT")
    if request.HasField("max_output_tokens"):
        checks.number("max_output_tokens", request.max_output_tokens, 1, OUTPUT_TOKENS_MAX)
    order = Order(
        payer_account_id=checks.optional_id("payer_account_id", request.payer_account_id),
        image_ids=image_ids,
        prompt=request.prompt,
        lane=_LANE_NAMES.get(request.lane, ""),
        model=checks.text("model", request.model, MODEL_CHARS_MAX),
        detail=_DETAIL_NAMES.get(request.detail, ""),
        max_output_tokens=request.max_output_tokens if request.HasField("max_output_tokens") else None,
        labels=_labels(checks, request.labels),
        deadline_us=time_us(checks, "deadline", request.deadline) if request.HasField("deadline") else None,
        allow_batch_fallback=request.allow_batch_fallback,
    )
    terms = terms_of(checks, request)
    checks.done()
    return Asked(account_id, job_id, order, inline, terms)


def terms_of(checks: Checks, request: batcher_pb2.SubmitJobRequest | batcher_pb2.RetryJobRequest) -> Terms:
    """On what price a job is to be taken, without what the caller's token adds."""
    version = checks.optional_id("price_version", request.price_version)
    if not request.HasField("max_price"):
        return Terms(version)
    return Terms(version, checks.amount("max_price", request.max_price))


def tiers_of(principal: Principal) -> frozenset[str]:
    """The tiers of customers that a token names in its scopes, as `tier:<tier>`."""
    return frozenset(scope.removeprefix(TIER_SCOPE) for scope in principal.scopes if scope.startswith(TIER_SCOPE))


def is_image_id(text: str) -> bool:
    """Whether a text is a SHA-256 in hexadecimal, in small letters."""
    return len(text) == 64 and _HEX.issuperset(text)


def _images(
    checks: Checks, request: batcher_pb2.SubmitJobRequest, inline_allowed: bool
) -> tuple[tuple[str, ...], tuple[bytes, ...]]:
    checks.count("images", request.images, IMAGES_MAX)
    ids: list[str] = []
    inline: list[bytes] = []
    for place, source in enumerate(request.images):
        field = f"images[{place}]"
        if source.WhichOneof("source") == "image_id":
            if not is_image_id(source.image_id):
                checks.fail(f"{field}.image_id", source.image_id, "must be 64 hexadecimal digits in small letters")
            ids.append(source.image_id)
        elif source.WhichOneof("source") is None:
            checks.fail(field, "", "must have an image_id or the image inline")
        elif not inline_allowed:
            checks.fail(f"{field}.inline", "", "must be uploaded first, and named by its image_id")
        else:
            checks.number(f"{field}.inline", len(source.inline), 1, INLINE_BYTES_MAX)
            inline.append(source.inline)
    return tuple(ids), tuple(inline)


def _check_prompt(checks: Checks, prompt: str) -> None:
    size_bytes = len(prompt.encode())
    if size_bytes > PROMPT_BYTES_MAX:
        checks.fail("prompt", prompt, f"must have at most {PROMPT_BYTES_MAX} bytes and has {size_bytes}")
    else:
        checks.text("prompt", prompt, PROMPT_BYTES_MAX, 1)


def _labels(checks: Checks, labels: Mapping[str, str]) -> dict[str, str]:
    checks.count("labels", list(labels), LABELS_MAX, 0)
    for key, value in labels.items():
        checks.text("labels", key, LABEL_KEY_CHARS_MAX, 1)
        checks.text(f"labels[{key[:LABEL_KEY_CHARS_MAX]}]", value, LABEL_VALUE_CHARS_MAX)
    return dict(labels)


def time_us(checks: Checks, field: str, time: Timestamp) -> int:
    """A time in microseconds since the epoch; 0 if it is none at all."""
    try:
        return time.ToMicroseconds()
    except ValueError:
        checks.fail(field, str(time), "is not a time")
        return 0


def timestamp(time_us: int) -> Timestamp:
    """Microseconds since the epoch as a message."""
    made = Timestamp()
    made.FromMicroseconds(time_us)
    return made


def image_message(image: Image) -> batcher_pb2.Image:
    """A stored image."""
    return batcher_pb2.Image(
        image_id=image.image_id,
        account_id=image.account_id,
        media_type=image.media_type,
        width_pixels=image.width_pixels,
        height_pixels=image.height_pixels,
        size_bytes=image.size_bytes,
        create_time=timestamp(image.create_time_us),
    )


def job_message(view: JobView, waiting_for: str = "", with_text: bool = True) -> batcher_pb2.Job:
    """A job as its caller may see it."""
    job, order = view.job, view.order
    return batcher_pb2.Job(
        job_id=job.job_id,
        uid=job.uid,
        account_id=job.account_id,
        payer_account_id=job.payer_account_id,
        state=STATES[job.state],
        settlement=settlement_message(view.settlement),
        lane=LANES[job.lane],
        attempt=max(job.attempt, 1),
        image_ids=order.image_ids,
        prompt=order.prompt,
        model=job.model,
        detail=_DETAILS[view.detail],
        max_output_tokens=view.max_output_tokens,
        labels=dict(order.labels),
        price=job.price,
        price_version=job.price_version,
        deadline=timestamp(job.deadline_us),
        create_time=timestamp(job.create_time_us),
        update_time=timestamp(job.update_time_us),
        batch_id=job.batch_id,
        cancel_requested=job.cancel_requested,
        answer=answer_message(view.answer, with_text),
        failure=failure_message(view.failure),
        waiting_for=waiting_for,
        revision=job.last_revision,
        asked_lane=LANES[order.lane],
        allow_batch_fallback=order.allow_batch_fallback,
        retry_of=order.retry_of,
    )


def settlement_message(settlement: Settlement | None) -> batcher_pb2.Settlement | None:
    """What became of the tokens, once the job has ended."""
    if settlement is None:
        return None
    return batcher_pb2.Settlement(state=SETTLEMENTS[settlement.state], charged=settlement.charged)


def answer_message(answer: Answer | None, with_text: bool = True) -> batcher_pb2.Answer | None:
    """What the model said."""
    if answer is None:
        return None
    return batcher_pb2.Answer(
        text=answer.text if with_text else "",
        finish_reason=answer.finish_reason,
        input_tokens=answer.input_tokens,
        output_tokens=answer.output_tokens,
    )


def failure_message(failure: Failure | None) -> batcher_pb2.Failure | None:
    """Why there is no answer."""
    return None if failure is None else batcher_pb2.Failure(code=failure.code, message=failure.message)


def result_message(job: Job, replayed: bool) -> batcher_pb2.SubmitJobsResult:
    """A job in short."""
    return batcher_pb2.SubmitJobsResult(uid=job.uid, state=STATES[job.state], replayed=replayed)


def refusal_message(outcome: Outcome) -> batcher_pb2.Refusal:
    """An item's refusal: what the single call would have given as its status."""
    code: Any = outcome.code.value
    return batcher_pb2.Refusal(
        code=code[0],
        reason=error_reason_pb2.ErrorReason.Value(f"ERROR_REASON_{outcome.reason}"),
        message=outcome.message,
        metadata=dict(outcome.metadata),
    )
