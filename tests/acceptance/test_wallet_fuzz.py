"""Whatever is sent to the wallet, it answers as its protos say, and a refusal changes nothing.

The messages are made from the descriptors, so that a new method or field is covered by itself; what may come back is
read from the comments of the protos, so that these can't drift from the code. Hypothesis says how to replay what fails.
"""

import asyncio
import os
import time
from collections.abc import Iterator
from typing import NamedTuple

import asyncpg
import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from hypothesis import HealthCheck, given, settings

from punchcard.wallet.v1 import wallet_pb2
from services.chassis.server import RECEIVE_BYTES_MAX
from tests.protobuf_values import garbled, messages
from tests.wallet_audit import BY_THEMSELVES
from tests.wallet_docs import Promise, Reason, promises, reasons
from tests.wallet_fuzz import METHODS, Answer, Eye, Refused, Wire, World, watched
from tests.wallet_processes import wallet_processes

REASONS = reasons()
PROMISES = promises()
TROUBLE = {"INTERNAL", "STORE_UNAVAILABLE", "STORE_DAMAGED", "SERVER_BUSY", "SERVER_DRAINING", "TIMED_OUT"}
"""What any method may say, and never because of what it was sent."""
TOO_LARGE = Refused("RESOURCE_EXHAUSTED", "", {})
"""What gRPC itself says before a handler sees anything, so that there is no reason of ours."""
TRIES_MAX = 100
EXAMPLES = {"sqlite": 80, "postgres": 12}
EXAMPLES_SLOW = {"sqlite": 1_000, "postgres": 200}


class Fuzzed(NamedTuple):
    """A wallet process that is sent anything, and the eye on its database."""

    dialect: str
    wire: Wire
    eye: Eye
    world: World


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def wallet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    """A wallet that expires nothing unless it is asked something."""
    folder = tmp_path_factory.mktemp("wallet")
    url = f"sqlite:{folder}/wallet.db"
    if request.param == "postgres":
        server = request.getfixturevalue("postgres_server")
        url = server.format(database=f"fuzz_{os.getpid()}")
        asyncio.run(create_database(server.format(database="postgres"), f"fuzz_{os.getpid()}"))
    with (
        wallet_processes(url, folder, 1, {"WALLET_EXPIRY_INTERVAL_SECONDS": "3600"}) as (process,),
        grpc.insecure_channel(process.address) as channel,
        watched(url) as eye,
    ):
        wire = Wire(channel)
        yield Fuzzed(request.param, wire, eye, World(wire))
        assert "masked_error" not in process.log()


async def create_database(url: str, name: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(f"CREATE DATABASE {name}")
    finally:
        await connection.close()


def check(wallet: Fuzzed, method: str, raw: bytes) -> Answer:
    """Sends something; what comes back is documented, and what was refused has changed nothing."""
    promise = PROMISES[method]
    wallet.eye.changed()

    answer = send(wallet, method, raw)

    if len(raw) > RECEIVE_BYTES_MAX:
        assert answer.refused == TOO_LARGE
    elif answer.refused is not None:
        check_refusal(method, promise, answer)
    for refused in answer.item_refusals:
        check_documented(f"an item of {method}", refused, promise.item_errors)
    changed = wallet.eye.changed()
    if answer.did_nothing or promise.changes_nothing:
        assert changed is None or set(changed) <= BY_THEMSELVES, f"{method} answered {answer} and has done {changed}"
    return answer


def send(wallet: Fuzzed, method: str, raw: bytes) -> Answer:
    """Sends something; again, when it asks for that, where the call before may still be ending."""
    for _ in range(TRIES_MAX):
        answer = wallet.wire.send(method, raw)
        busy = answer.refused is not None and answer.refused.reason == "SERVER_BUSY"
        if not (busy and PROMISES[method].one_at_a_time):
            break
        time.sleep(answer.retry_seconds)
    return answer


def check_refusal(method: str, promise: Promise, answer: Answer) -> None:
    """The refusal is one of the method's, with the details that its kind must have."""
    assert answer.refused is not None
    check_documented(method, answer.refused, promise.errors)
    assert answer.status is not None
    kinds = [detail.TypeName() for detail in answer.status.details]
    named = error_details_pb2.BadRequest.DESCRIPTOR.full_name in kinds
    assert named == (answer.refused.reason == "INVALID_FIELD"), kinds


def check_documented(where: str, refused: Refused, errors: frozenset[str]) -> None:
    """The proto's comments name this reason here, with this code and this metadata."""
    assert refused.reason in errors - TROUBLE, f"{where} gave {refused}; documented are {sorted(errors)}"
    promised = REASONS[refused.reason]
    assert Reason(refused.code, frozenset(refused.metadata)) == promised, refused


def examples(wallet: Fuzzed, method: str, slow: bool, share: int = 1) -> settings:
    """One of `share` parts of the examples; the same ones in each normal run, new ones in each slow one."""
    count = (EXAMPLES_SLOW if slow else EXAMPLES)[wallet.dialect] // share
    return settings(
        max_examples=count // 4 if PROMISES[method].one_at_a_time else count,
        derandomize=not slow,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
    )


NORMAL_AND_SLOW = pytest.mark.parametrize(
    "slow", [pytest.param(False, id="some"), pytest.param(True, id="many", marks=pytest.mark.slow)]
)


@NORMAL_AND_SLOW
@pytest.mark.parametrize("method", METHODS)
def test_any_message_is_answered_as_documented(wallet: Fuzzed, method: str, slow: bool) -> None:
    """By a code, reason and metadata of the proto's comments, never INTERNAL, and no refusal has an effect."""
    words = wallet.world.words(f"{method.lower()}-{slow}")

    @examples(wallet, method, slow)
    @given(messages(METHODS[method].input_type, words))
    def each(message: Message) -> None:
        check(wallet, method, message.SerializeToString())

    each()


@NORMAL_AND_SLOW
@pytest.mark.parametrize("method", METHODS)
def test_bytes_that_are_hardly_a_message_are_refused_or_understood(wallet: Fuzzed, method: str, slow: bool) -> None:
    """Noise, broken messages and fields of another wire type never reach the ledger as an error of ours."""
    words = wallet.world.words(f"{method.lower()}-raw-{slow}")

    @examples(wallet, method, slow, share=2)
    @given(garbled(METHODS[method].input_type, words))
    def each(raw: bytes) -> None:
        check(wallet, method, raw)

    each()


def test_a_message_larger_than_the_limit_is_refused_before_it_is_read(wallet: Fuzzed) -> None:
    """And the next call on the same connection is answered."""
    wallet.eye.changed()
    huge = wallet_pb2.GrantRequest(account_id="rich", grant_id="g", amount=1, reference="x" * RECEIVE_BYTES_MAX)

    answer = wallet.wire.send("Grant", huge.SerializeToString())

    assert answer.refused == Refused("RESOURCE_EXHAUSTED", "", {})
    assert wallet.eye.changed() is None
    assert check(wallet, "GetAccount", b"").refused == Refused(
        "INVALID_ARGUMENT", "INVALID_FIELD", {"field": "account_id"}
    )


@pytest.mark.parametrize("method", METHODS)
def test_each_reason_that_a_method_documents_is_a_reason(method: str) -> None:
    """Nothing in a comment is misspelt, so that nothing is left out above."""
    promise = PROMISES[method]

    assert promise.errors | promise.item_errors <= REASONS.keys()
    assert {code for code, _ in REASONS.values()} <= {code.name for code in grpc.StatusCode}
