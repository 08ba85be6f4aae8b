"""What is wrong is refused with a code, a reason and the field or the numbers, and leaves no trace anywhere."""

import asyncio
import hashlib
import struct
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from io import BytesIO
from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from PIL import Image

from punchcard.batcher.v1 import batcher_pb2, batcher_pb2_grpc
from punchcard.wallet.v1 import wallet_pb2
from punchcard_client import connect
from sandbox import keys
from sandbox.stack import Stack
from tests.acceptance.money import Evidence, audit, gather
from tests.acceptance.stacks import SAMPLES, Customer, Refused, customer_of, objects, painted, refused, stack_in

MIB = 1024 * 1024
AMOUNT_MAX = 10**15


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack in which alice has a settled job and bob too; nothing moves in it by itself."""
    with stack_in(tmp_path_factory.mktemp("stack")) as running:
        asyncio.run(_settle_in(running))
        yield running


async def _settle_in(stack: Stack) -> None:
    for account_id in ("alice", "bob"):
        async with customer_of(stack, account_id) as each:
            await each.open()
            await each.submit("done", await each.upload(IMAGE), lane=batcher_pb2.LANE_INSTANT)
            await each.settled("done")
    async with customer_of(stack, "pauper") as pauper:
        await pauper.open()
        image_id = await pauper.upload(IMAGE)
        for number in range(2):
            await pauper.submit(f"spent-{number}", image_id, lane=batcher_pb2.LANE_INSTANT)
        await pauper.settled("spent-0", "spent-1")


IMAGE = painted((100, 150, 200))
IMAGE_ID = hashlib.sha256(IMAGE).hexdigest()


@pytest.fixture
async def alice(stack: Stack) -> AsyncIterator[Customer]:
    async with customer_of(stack, "alice") as customer:
        yield customer


@asynccontextmanager
async def nothing_changes(stack: Stack, alice: Customer) -> AsyncIterator[None]:
    """Everything is as before: object store, jobs, balance, both journals, and what was bought."""
    before = await _traces(stack, alice)
    yield
    assert await _traces(stack, alice) == before
    await audit(stack)


async def _traces(stack: Stack, alice: Customer) -> dict[str, object]:
    evidence: Evidence = await gather(stack)
    return {
        "objects": objects(stack),
        "jobs": [(job.job_id, job.state) for job in await alice.jobs()],
        "tokens": await alice.tokens(),
        "wallet": evidence.wallet["journal_head"],
        "batcher": evidence.batcher["journal_head"],
        "books": evidence.books,
    }


def violations(error: Refused) -> dict[str, str]:
    """The fields that a BadRequest names, and what is wrong with each."""
    status = rpc_status.from_call(error.error)
    bad_request = error_details_pb2.BadRequest()
    assert status is not None
    assert any(detail.Unpack(bad_request) for detail in status.details)
    return {violation.field: violation.description for violation in bad_request.field_violations}


def bomb() -> bytes:
    """A PNG of a few kilobytes that unpacks to 100,000 x 100,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def text_named_jpg() -> bytes:
    """What a text file holds, whatever its name says."""
    return b"This is not a photograph.\n" * 40


def truncated() -> bytes:
    """A photograph whose transfer broke off."""
    return (SAMPLES / "rocket.jpg").read_bytes()[:9000]


def too_many_pixels() -> bytes:
    """A whole image that is a little larger than what is taken."""
    out = BytesIO()
    Image.new("1", (10_000, 5_001)).save(out, "PNG")
    return out.getvalue()


UNREADABLE = ("INVALID_ARGUMENT", "IMAGE_UNREADABLE")
TOO_LARGE = ("INVALID_ARGUMENT", "IMAGE_TOO_LARGE")
FORMATS = {"formats": "JPEG, PNG, WEBP, GIF"}
IMAGES: list[tuple[Callable[[], bytes], tuple[str, str], dict[str, str]]] = [
    (text_named_jpg, UNREADABLE, {"problem": "not an image", **FORMATS}),
    (truncated, UNREADABLE, {"problem": "truncated", **FORMATS}),
    (bomb, TOO_LARGE, {"pixels": "10000000000", "limit_pixels": "50000000"}),
    (too_many_pixels, TOO_LARGE, {"pixels": "50010000", "limit_pixels": "50000000"}),
]


@pytest.mark.parametrize(("make", "outcome", "metadata"), IMAGES, ids=[row[0].__name__ for row in IMAGES])
async def test_a_bad_image_is_refused_when_uploaded_and_when_sent_inline(stack, alice, make, outcome, metadata):
    """By its content, and before anything of it is stored."""
    data = make()
    inline = batcher_pb2.SubmitJobRequest(
        account_id="alice",
        job_id="inline",
        images=[batcher_pb2.ImageSource(inline=data)],
        prompt="What is this?",
        lane=batcher_pb2.LANE_BATCH,
    )
    async with nothing_changes(stack, alice):
        uploaded = await refused(alice.upload(data))
        submitted = await refused(alice.batcher.SubmitJob(inline))

    assert (uploaded.code, uploaded.reason) == outcome
    assert (submitted.code, submitted.reason) == outcome
    assert uploaded.metadata == submitted.metadata == metadata


async def stream(alice: Customer, total_bytes: int, **spec: Any) -> int:
    """Uploads so many bytes of noise in chunks without announcing how many; gives how many were sent."""
    sent = 0

    async def parts() -> AsyncIterator[batcher_pb2.UploadImageRequest]:
        nonlocal sent
        values = {"account_id": "alice", "sha256": "0" * 64, **spec}
        yield batcher_pb2.UploadImageRequest(spec=batcher_pb2.ImageSpec(**values))
        while sent < total_bytes:
            sent += MIB
            yield batcher_pb2.UploadImageRequest(chunk=batcher_pb2.ImageChunk(data=bytes(MIB)))

    await alice.batcher.UploadImage(parts())
    return sent


async def test_21_mib_are_refused_while_they_stream_or_when_they_are_announced(stack, alice):
    """The refusal names the size at which it came, and the limit."""
    async with nothing_changes(stack, alice):
        streamed = await refused(stream(alice, 21 * MIB))
        announced = await refused(stream(alice, 21 * MIB, size_bytes=21 * MIB))

    for refusal in (streamed, announced):
        assert (refusal.code, refusal.reason) == TOO_LARGE
        assert refusal.metadata == {"size_bytes": str(21 * MIB), "limit_bytes": str(20 * MIB)}


async def test_bytes_that_are_not_those_announced_are_refused(stack, alice):
    async with nothing_changes(stack, alice):
        wrong_sum = await refused(stream(alice, MIB))
        wrong_size = await refused(stream(alice, MIB, size_bytes=MIB + 1))

    assert (wrong_sum.code, wrong_sum.reason) == ("INVALID_ARGUMENT", "CHECKSUM_MISMATCH")
    assert wrong_sum.metadata["expected_sha256"] == "0" * 64
    assert wrong_sum.metadata["received_sha256"] == hashlib.sha256(bytes(MIB)).hexdigest()
    assert (wrong_size.code, wrong_size.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert str(MIB) in violations(wrong_size)["spec.size_bytes"]


BAD_ORDERS: dict[str, tuple[dict[str, Any], str, str]] = {
    "an empty prompt": ({"prompt": ""}, "prompt", "is required"),
    "a prompt of 100 kB": ({"prompt": "x" * 100_000}, "prompt", "100000"),
    "a prompt with NUL": ({"prompt": "What\0?"}, "prompt", "NUL"),
    "no lane": ({"lane": 0}, "lane", "LANE_BATCH or LANE_INSTANT"),
    "a lane that is not there": ({"lane": 99}, "lane", "LANE_BATCH or LANE_INSTANT"),
    "a detail that is not there": ({"detail": 99}, "detail", "Detail"),
    "an answer of no tokens": ({"max_output_tokens": 0}, "max_output_tokens", "32768"),
    "an answer of too many": ({"max_output_tokens": 32_769}, "max_output_tokens", "32768"),
    "seventeen labels": ({"labels": {f"key-{n}": "x" for n in range(17)}}, "labels", "16"),
}


@pytest.mark.parametrize(("fields", "field", "said"), BAD_ORDERS.values(), ids=BAD_ORDERS)
async def test_a_bad_order_names_its_field_and_its_limit(stack, alice, fields, field, said):
    async with nothing_changes(stack, alice):
        refusal = await refused(alice.submit("bad", IMAGE_ID, **fields))

    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert refusal.metadata["field"] == field
    assert said in violations(refusal)[field]
    assert len(refusal.error.details()) < 1000


async def test_all_bad_fields_are_named_at_once(stack, alice):
    request = batcher_pb2.SubmitJobRequest(account_id="alice", job_id="no spaces please")
    async with nothing_changes(stack, alice):
        refusal = await refused(alice.batcher.SubmitJob(request))

    assert set(violations(refusal)) == {"job_id", "images", "prompt", "lane"}


async def test_an_image_that_was_not_uploaded_by_this_account_is_not_there(stack, alice):
    async with customer_of(stack, "bob") as bob, nothing_changes(stack, alice):
        other = await bob.upload(IMAGE)
        unknown = await refused(alice.submit("blind", "f" * 64))

    assert other == IMAGE_ID
    assert (unknown.code, unknown.reason) == ("NOT_FOUND", "IMAGE_NOT_FOUND")
    assert unknown.metadata == {"account_id": "alice", "image_id": "f" * 64}


HOUR = duration_pb2.Duration(seconds=3600)
BAD_AMOUNTS = [-1, 0, AMOUNT_MAX + 1, 2**63 - 1, -(2**63)]


@pytest.mark.parametrize("amount", BAD_AMOUNTS)
async def test_an_amount_out_of_range_is_refused_by_the_wallet(stack, alice, amount):
    """For grants and holds, one by one and in a batch."""
    hold = wallet_pb2.ReserveRequest(account_id="alice", reservation_id="bad", amount=amount, hold_duration=HOUR)
    grant = wallet_pb2.GrantRequest(account_id="alice", grant_id="bad", amount=amount)
    service = stack.keys.sign("batcher", [keys.WALLET], f"{keys.BATCHER_SCOPES} wallet.grant", 600)
    async with connect(stack.wallet_address, service) as channel, nothing_changes(stack, alice):
        wallet: Any = type(alice.wallet)(channel)
        refusals = [await refused(wallet.Reserve(hold)), await refused(wallet.Grant(grant))]
        batch = await wallet.BatchReserve(wallet_pb2.BatchReserveRequest(items=[hold]))

    for refusal in refusals:
        assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
        assert refusal.metadata["field"] == "amount"
        assert str(AMOUNT_MAX) in violations(refusal)["amount"]
    assert batch.results[0].refusal.metadata["field"] == "items[0].amount"


@pytest.mark.parametrize("method", ["GetJob", "CancelJob", "WatchJob"])
@pytest.mark.parametrize("job_id", ["done", "nothing"])
async def test_another_accounts_job_looks_like_none(stack, alice, method, job_id):
    """Whether or not there is such a job, alice is told the same; nothing of bob's leaks."""
    request = getattr(batcher_pb2, f"{method}Request")(account_id="bob", job_id=job_id)
    async with nothing_changes(stack, alice):
        refusal = await refused(called(getattr(alice.batcher, method)(request)))

    assert (refusal.code, refusal.reason) == ("NOT_FOUND", "ACCOUNT_NOT_FOUND")
    assert refusal.metadata == {"account_id": "bob"}


@pytest.mark.parametrize("method", ["GetJob", "CancelJob", "WatchJob"])
async def test_a_job_that_is_not_there_is_named(stack, alice, method):
    request = getattr(batcher_pb2, f"{method}Request")(account_id="alice", job_id="nothing")
    async with nothing_changes(stack, alice):
        refusal = await refused(called(getattr(alice.batcher, method)(request)))

    assert (refusal.code, refusal.reason) == ("NOT_FOUND", "JOB_NOT_FOUND")
    assert refusal.metadata == {"account_id": "alice", "job_id": "nothing"}


async def test_a_payer_that_one_may_not_act_for_pays_nothing(stack, alice):
    async with nothing_changes(stack, alice):
        refusal = await refused(alice.submit("on-bob", IMAGE_ID, payer_account_id="bob"))

    assert (refusal.code, refusal.reason) == ("NOT_FOUND", "ACCOUNT_NOT_FOUND")
    assert refusal.metadata == {"account_id": "bob"}


async def called(call: Any) -> Any:
    """The answer of a unary call, or all messages of a stream."""
    return [message async for message in call] if hasattr(call, "__aiter__") else await call


def no_token(_: Stack) -> tuple[tuple[str, str], ...]:
    return ()


def expired_token(stack: Stack) -> tuple[tuple[str, str], ...]:
    return bearer(stack.keys.sign("alice", [keys.WALLET, keys.BATCHER], keys.USER_SCOPES, -5))


def token_for_others(stack: Stack) -> tuple[tuple[str, str], ...]:
    return bearer(stack.keys.sign("alice", ["somebody.else"], keys.USER_SCOPES, 600))


def token_of_others(stack: Stack) -> tuple[tuple[str, str], ...]:
    stranger = keys.Keys(stack.data / "stranger")
    return bearer(stranger.sign("alice", [keys.WALLET, keys.BATCHER], keys.USER_SCOPES, 600))


def token_without_the_scope(stack: Stack) -> tuple[tuple[str, str], ...]:
    return bearer(stack.keys.sign("alice", [keys.WALLET, keys.BATCHER], "job.reading", 600))


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


STRANGERS = [
    (no_token, "UNAUTHENTICATED", "TOKEN_MISSING", set()),
    (expired_token, "UNAUTHENTICATED", "TOKEN_EXPIRED", {"expired_at"}),
    (token_for_others, "UNAUTHENTICATED", "TOKEN_INVALID", {"problem"}),
    (token_of_others, "UNAUTHENTICATED", "TOKEN_INVALID", {"problem"}),
    (token_without_the_scope, "PERMISSION_DENIED", "SCOPE_MISSING", {"method", "scope"}),
]


@pytest.mark.parametrize(("who", "code", "reason", "metadata"), STRANGERS, ids=[row[0].__name__ for row in STRANGERS])
async def test_who_may_not_call_is_refused_before_anything_else(stack, alice, who, code, reason, metadata):
    """By every kind of method of both services: unary, uploading, watching."""
    metadata_of_call = who(stack)
    job = {"account_id": "alice", "job_id": "done"}
    upload = batcher_pb2.UploadImageRequest(
        spec=batcher_pb2.ImageSpec(account_id="alice", sha256=hashlib.sha256(b"x").hexdigest())
    )
    async with (
        grpc.aio.insecure_channel(stack.batcher_address) as batcher_channel,
        grpc.aio.insecure_channel(stack.wallet_address) as wallet_channel,
        nothing_changes(stack, alice),
    ):
        batcher: Any = batcher_pb2_grpc.BatcherServiceStub(batcher_channel)
        wallet: Any = type(alice.wallet)(wallet_channel)
        refusals = [
            await refused(batcher.SubmitJob(alice.order("stranger", IMAGE_ID), metadata=metadata_of_call)),
            await refused(batcher.UploadImage(iter([upload]), metadata=metadata_of_call)),
            await refused(batcher.CancelJob(batcher_pb2.CancelJobRequest(**job), metadata=metadata_of_call)),
            await refused(called(batcher.WatchJob(batcher_pb2.WatchJobRequest(**job), metadata=metadata_of_call))),
            await refused(
                wallet.GetAccount(wallet_pb2.GetAccountRequest(account_id="alice"), metadata=metadata_of_call)
            ),
        ]

    assert {(refusal.code, refusal.reason) for refusal in refusals} == {(code, reason)}
    assert all(set(refusal.metadata) == metadata for refusal in refusals)


async def test_a_user_may_not_grant_itself_tokens(stack, alice):
    """The scope that is missing is named."""
    async with nothing_changes(stack, alice):
        refusal = await refused(
            alice.wallet.Grant(wallet_pb2.GrantRequest(account_id="alice", grant_id="gift", amount=1000))
        )

    assert (refusal.code, refusal.reason) == ("PERMISSION_DENIED", "SCOPE_MISSING")
    assert refusal.metadata == {"method": "/punchcard.wallet.v1.WalletService/Grant", "scope": "wallet.grant"}


@pytest.mark.parametrize(
    ("terms", "metadata"),
    [
        ({"max_price": 4}, {"max_price": "4"}),
        ({"price_version": "v0"}, {"expected_version": "v0"}),
    ],
)
async def test_a_job_that_would_cost_more_than_its_terms_allow_leaves_no_trace(stack, alice, terms, metadata):
    """The price is looked at before the job is stored and before any token."""
    async with nothing_changes(stack, alice):
        refusal = await refused(alice.submit("dear", IMAGE_ID, lane=batcher_pb2.LANE_INSTANT, **terms))

    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "PRICE_CHANGED")
    assert refusal.metadata == {"price": "5", "price_version": "v1", **metadata}


async def test_too_few_tokens_are_refused_with_the_numbers_and_change_no_balance(stack, alice):
    """The refused job is remembered as REJECTED; no token moves, nothing is stored or bought."""
    async with customer_of(stack, "pauper") as pauper:
        before = await gather(stack)
        objects_before = objects(stack)
        refusal = await refused(pauper.submit("dear", IMAGE_ID, lane=batcher_pb2.LANE_INSTANT))
        (rejected,) = await pauper.settled("dear")
        after = await audit(stack)

        assert await pauper.tokens() == (0, 0)
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "INSUFFICIENT_FUNDS")
    assert refusal.metadata == {"account_id": "pauper", "requested": "5", "available": "0", "held": "0"}
    assert rejected.state == batcher_pb2.JOB_STATE_REJECTED
    assert after.wallet["accounts"] == before.wallet["accounts"]
    assert after.books == before.books
    assert objects(stack) == objects_before
    assert [job.job_id for job in await alice.jobs()] == ["done"]
