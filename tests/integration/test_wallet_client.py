"""The wallet's client over a real channel, against a wallet that a test can make fail."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2

from punchcard.wallet.v1 import error_reason_pb2, wallet_pb2, wallet_pb2_grpc
from services.batcher.wallet_client import (
    ITEMS_MAX,
    Amend,
    Commit,
    Held,
    Refused,
    Release,
    Reserve,
    Settle,
    Settled,
    TokenFile,
    WalletClient,
    WalletUnavailable,
)
from tests.tokens import token
from tests.wallets import EVERY_SCOPE, wallet_at

HOUR_US = 3_600_000_000
EXPIRE_US = 1_800_000_000_123_456


def expire_time() -> Timestamp:
    """When every hold of the fake wallet ends."""
    time = Timestamp()
    time.FromMicroseconds(EXPIRE_US)
    return time


def held() -> wallet_pb2.BatchReserveResult:
    """A reserve that was done."""
    return wallet_pb2.BatchReserveResult(state=wallet_pb2.RESERVATION_STATE_HELD, expire_time=expire_time())


def refusal(code: grpc.StatusCode, reason: int, **metadata: str) -> wallet_pb2.Refusal:
    """A refusal of one item."""
    known = error_reason_pb2.ErrorReason.ValueType(reason)
    return wallet_pb2.Refusal(code=code.value[0], reason=known, message="no", metadata=metadata)


class FakeWallet(wallet_pb2_grpc.WalletServiceServicer):
    """Holds everything, except what a test decides otherwise; keeps each request and its token."""

    def __init__(self) -> None:
        self.reserves: list[wallet_pb2.BatchReserveRequest] = []
        self.settles: list[wallet_pb2.BatchSettleRequest] = []
        self.tokens: list[str] = []
        self.arrived = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.results: dict[str, wallet_pb2.BatchReserveResult] = {}
        self.settled: dict[str, wallet_pb2.BatchSettleResult] = {}
        self.failure: grpc.StatusCode | None = None
        self.trailer: bytes | None = None
        self.lost_results = 0

    async def _enter(self, context: grpc.aio.ServicerContext) -> None:  # type: ignore[type-arg]
        self.arrived.set()
        await self.gate.wait()
        self.tokens.append(str(dict(context.invocation_metadata() or ()).get("authorization", "")))
        if self.failure is not None:
            trailing = (("grpc-status-details-bin", self.trailer),) if self.trailer is not None else ()
            await context.abort(self.failure, "out of order", trailing)

    async def BatchReserve(self, request, context):
        """Answers each reserve."""
        self.reserves.append(request)
        await self._enter(context)
        results = [self.results.get(item.reservation_id, held()) for item in request.items]
        return wallet_pb2.BatchReserveResponse(results=results[self.lost_results :])

    async def BatchSettle(self, request, context):
        """Answers each settlement."""
        self.settles.append(request)
        await self._enter(context)
        results = []
        for item in request.items:
            command = getattr(item, item.WhichOneof("command"))
            done = wallet_pb2.BatchSettleResult(
                state=wallet_pb2.RESERVATION_STATE_COMMITTED, committed=1, expire_time=expire_time()
            )
            results.append(self.settled.get(command.reservation_id, done))
        return wallet_pb2.BatchSettleResponse(results=results)


@pytest.fixture
def wallet() -> FakeWallet:
    """A wallet in order."""
    return FakeWallet()  # type: ignore[abstract]


@pytest.fixture
async def address(wallet: FakeWallet) -> AsyncIterator[str]:
    """Where it is served."""
    server = grpc.aio.server()
    wallet_pb2_grpc.add_WalletServiceServicer_to_server(wallet, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    wallet.gate.set()
    await server.stop(None)


@pytest.fixture
async def client(address: str) -> AsyncIterator[WalletClient]:
    """A client of it."""
    opened = WalletClient(address, None, 10.0)
    yield opened
    await opened.close()


def reserve(number: int = 1, payer: str = "alice") -> Reserve:
    """A reserve of one token."""
    return Reserve(f"uid-{number}", "alice", payer, 1, HOUR_US + 500_000, "v1", "cat-1")


async def test_a_reserve_says_what_it_means(client: WalletClient, wallet: FakeWallet) -> None:
    """Each field reaches the wallet, durations exactly; a payer is named only when it is another account."""
    assert await client.reserve_many([reserve(1), reserve(2, payer="team")]) == [Held(EXPIRE_US, False)] * 2
    own, paid = wallet.reserves[0].items
    assert (own.account_id, own.payer_account_id, own.reservation_id, own.amount) == ("alice", "", "uid-1", 1)
    assert (own.hold_duration.ToMicroseconds(), own.price_version, own.reference) == (HOUR_US + 500_000, "v1", "cat-1")
    assert paid.payer_account_id == "team"


async def test_settlements_say_what_they_mean(client: WalletClient, wallet: FakeWallet) -> None:
    """Commits, releases and amends share a call, and what is absent stays absent."""
    results = await client.settle_many(
        [Commit("uid-1", 1), Commit("uid-2"), Release("uid-3"), Amend("uid-4", "lane", 1), Amend("uid-5", "r", None, 7)]
    )
    assert results == [Settled("COMMITTED", 1, EXPIRE_US, False)] * 5
    items = wallet.settles[0].items
    assert [item.WhichOneof("command") for item in items] == ["commit", "commit", "refund", "amend", "amend"]
    assert (items[0].commit.amount, items[0].commit.allow_late) == (1, True)
    assert not items[1].commit.HasField("amount")
    assert not items[2].refund.refund_id
    assert (items[3].amend.amend_id, items[3].amend.amount, items[3].amend.HasField("hold_duration")) == (
        "lane",
        1,
        False,
    )
    assert (items[4].amend.HasField("amount"), items[4].amend.hold_duration.ToMicroseconds()) == (False, 7)


async def test_one_refusal_does_not_touch_its_neighbours(client: WalletClient, wallet: FakeWallet) -> None:
    """A definite no comes with the wallet's reason and numbers, in its place."""
    poor = refusal(grpc.StatusCode.FAILED_PRECONDITION, error_reason_pb2.ERROR_REASON_INSUFFICIENT_FUNDS, available="0")
    wallet.results["uid-2"] = wallet_pb2.BatchReserveResult(refusal=poor)
    assert await client.reserve_many([reserve(1), reserve(2), reserve(3)]) == [
        Held(EXPIRE_US, False),
        Refused("INSUFFICIENT_FUNDS", "no", {"available": "0"}),
        Held(EXPIRE_US, False),
    ]


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (wallet_pb2.RESERVATION_STATE_EXPIRED, "RESERVATION_EXPIRED"),
        (wallet_pb2.RESERVATION_STATE_RELEASED, "RESERVATION_RELEASED"),
        (wallet_pb2.RESERVATION_STATE_COMMITTED, "RESERVATION_COMMITTED"),
    ],
)
async def test_only_held_is_held(
    client: WalletClient, wallet: FakeWallet, state: wallet_pb2.ReservationState.ValueType, reason: str
) -> None:
    """A reserve that was made before and has ended holds nothing, whatever its replay says."""
    wallet.results["uid-1"] = wallet_pb2.BatchReserveResult(state=state, replayed=True)
    (result,) = await client.reserve_many([reserve()])
    assert isinstance(result, Refused)
    assert result.reason == reason


@pytest.mark.parametrize(
    "undecided",
    [
        wallet_pb2.BatchReserveResult(refusal=refusal(grpc.StatusCode.INTERNAL, 22)),
        wallet_pb2.BatchReserveResult(refusal=refusal(grpc.StatusCode.UNAVAILABLE, 19)),
        wallet_pb2.BatchReserveResult(refusal=refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, 18)),
        wallet_pb2.BatchReserveResult(refusal=refusal(grpc.StatusCode.PERMISSION_DENIED, 4)),
        wallet_pb2.BatchReserveResult(),
    ],
)
async def test_an_undecided_item_is_no_refusal(
    client: WalletClient, wallet: FakeWallet, undecided: wallet_pb2.BatchReserveResult
) -> None:
    """An item that the wallet could not decide stands as such among the others."""
    wallet.results["uid-1"] = undecided
    first, second = await client.reserve_many([reserve(1), reserve(2)])
    assert isinstance(first, WalletUnavailable)
    assert second == Held(EXPIRE_US, False)


async def test_a_reason_of_a_newer_wallet_is_a_refusal(client: WalletClient, wallet: FakeWallet) -> None:
    """A reason that we don't know is definite when its status is."""
    wallet.settled["uid-1"] = wallet_pb2.BatchSettleResult(refusal=refusal(grpc.StatusCode.FAILED_PRECONDITION, 99))
    assert await client.settle_many([Release("uid-1")]) == [Refused("REASON_99", "no", {})]


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.NOT_FOUND])
async def test_a_failed_call_decides_nothing(client: WalletClient, wallet: FakeWallet, code: grpc.StatusCode) -> None:
    """Whatever status a whole call has, no item of it was refused. Only where the wallet was away is it tried again."""
    wallet.failure = code
    with pytest.raises(WalletUnavailable) as caught:
        await client.reserve_many([reserve()])
    assert caught.value.reason == code.name
    with pytest.raises(WalletUnavailable):
        await client.settle_many([Release("uid-1")])
    tries = 4 if code is grpc.StatusCode.UNAVAILABLE else 1
    assert (len(wallet.reserves), len(wallet.settles)) == (tries, tries)


async def test_a_failed_call_names_the_wallets_reason(client: WalletClient, wallet: FakeWallet) -> None:
    """Where the status carries the wallet's own reason, that is the one told; a garbled one is passed over."""
    status = status_pb2.Status(code=16, message="out of order")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="TOKEN_EXPIRED", domain="wallet.punchcard"))
    wallet.failure = grpc.StatusCode.UNAUTHENTICATED
    for trailer, reason in ((status.SerializeToString(), "TOKEN_EXPIRED"), (b"\xff\xff", "UNAUTHENTICATED")):
        wallet.trailer = trailer
        with pytest.raises(WalletUnavailable) as caught:
            await client.reserve_many([reserve()])
        assert caught.value.reason == reason


async def test_a_wallet_that_does_not_answer(address: str, wallet: FakeWallet) -> None:
    """A call has a time limit, after which nobody knows what was done."""
    wallet.gate.clear()
    client = WalletClient(address, None, 0.05)
    with pytest.raises(WalletUnavailable) as caught:
        await client.reserve_many([reserve()])
    assert caught.value.reason == "DEADLINE_EXCEEDED"
    await client.close()


async def test_no_wallet_at_all() -> None:
    """A wallet that is not there is unavailable."""
    client = WalletClient("127.0.0.1:1", None, 10.0)
    with pytest.raises(WalletUnavailable) as caught:
        await client.reserve_many([reserve()])
    assert caught.value.reason == "UNAVAILABLE"
    await client.close()


async def test_too_few_results_decide_nothing(client: WalletClient, wallet: FakeWallet) -> None:
    """Results that can't be told apart are none."""
    wallet.lost_results = 1
    with pytest.raises(WalletUnavailable):
        await client.reserve_many([reserve(1), reserve(2)])


async def test_a_call_is_bounded(client: WalletClient) -> None:
    """More than 1,000 items, or none, is a mistake of the caller."""
    with pytest.raises(ValueError, match="1 to 1000 items"):
        await client.reserve_many([reserve(number) for number in range(ITEMS_MAX + 1)])
    with pytest.raises(ValueError, match="1 to 1000 items"):
        await client.settle_many([])


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    """A file with a token."""
    path = tmp_path / "token"
    path.write_text("first\n")
    return path


async def test_a_token_is_sent_and_rotated(address: str, wallet: FakeWallet, token_file: Path) -> None:
    """Each call carries the token that the file has now."""
    client = WalletClient(address, token_file, 10.0)
    await client.reserve_many([reserve()])
    await asyncio.to_thread(token_file.write_text, "second, longer\n")
    await client.settle_many([Release("uid-1")])
    await client.close()
    assert wallet.tokens == ["Bearer first", "Bearer second, longer"]


async def test_no_token_is_no_refusal(address: str, tmp_path: Path) -> None:
    """A token file that is missing is our mistake, and not that of a job."""
    client = WalletClient(address, tmp_path / "none", 10.0)
    with pytest.raises(WalletUnavailable, match="TOKEN_MISSING"):
        await client.reserve_many([reserve()])
    await client.close()


def test_a_token_file_that_is_away_for_a_moment(token_file: Path) -> None:
    """While a file is being replaced the former token does."""
    tokens = TokenFile(token_file)
    assert tokens.token() == "first"
    aside = token_file.with_name("aside")
    token_file.rename(aside)
    assert tokens.token() == "first"
    aside.write_text("other")
    aside.replace(token_file)
    assert tokens.token() == "other"


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[WalletClient]:
    """A client of a real wallet, whose accounts open with ten tokens."""
    tokens = tmp_path / "token"
    tokens.write_text(token("batcher", EVERY_SCOPE, audience="punchcard.wallet"))
    async with wallet_at(f"sqlite:{tmp_path}/wallet.db", tmp_path) as (_, port):
        opened = WalletClient(f"127.0.0.1:{port}", tokens, 10.0)
        yield opened
        await opened.close()


async def one(client: WalletClient, command: Reserve | Settle) -> Held | Settled | Refused | WalletUnavailable:
    """The answer to a single command."""
    if isinstance(command, Reserve):
        return (await client.reserve_many([command]))[0]
    return (await client.settle_many([command]))[0]


async def test_a_jobs_life_in_a_real_wallet(real: WalletClient) -> None:
    """Reserved, reserved again, prolonged, lowered, taken: each step is what the wallet says, and may be repeated."""
    command = Reserve("uid-1", "alice", "alice", 5, HOUR_US, "v1", "cat-1")
    first = await one(real, command)
    assert isinstance(first, Held)
    assert await one(real, command) == Held(first.expire_time_us, True)
    longer = await one(real, Amend("uid-1", "renew-1", hold_duration_us=2 * HOUR_US))
    assert isinstance(longer, Settled)
    assert longer.expire_time_us > first.expire_time_us
    assert isinstance(await one(real, Amend("uid-1", "lane", amount=1)), Settled)
    for replayed in (False, True):
        taken = await one(real, Commit("uid-1", 1))
        assert isinstance(taken, Settled)
        assert (taken.state, taken.committed, taken.replayed) == ("COMMITTED", 1, replayed)
    again = await one(real, command)
    assert isinstance(again, Refused)
    assert again.reason == "RESERVATION_COMMITTED"


async def test_a_real_wallets_refusals(real: WalletClient) -> None:
    """Each item has its own answer: too dear, another content under a known key, blocked before it was used."""
    assert isinstance(await one(real, Release("blocked")), Settled)
    answers = await real.reserve_many(
        [
            Reserve("uid-1", "alice", "alice", 8, HOUR_US),
            Reserve("uid-2", "alice", "alice", 8, HOUR_US),
            Reserve("uid-1", "alice", "alice", 7, HOUR_US),
            Reserve("blocked", "alice", "alice", 1, HOUR_US),
            Reserve("a bad id", "alice", "alice", 1, HOUR_US),
        ]
    )
    assert isinstance(answers[0], Held)
    refusals = [answer for answer in answers if isinstance(answer, Refused)]
    assert [refused.reason for refused in refusals] == [
        "INSUFFICIENT_FUNDS",
        "IDEMPOTENCY_MISMATCH",
        "RESERVATION_RELEASED",
        "INVALID_FIELD",
    ]
    assert refusals[0].metadata == {"account_id": "alice", "requested": "8", "available": "2", "held": "8"}


async def test_a_real_wallet_that_does_not_take_our_token(tmp_path: Path) -> None:
    """A token of ours without the scope, or one that ran out, refuses no job."""
    tokens = tmp_path / "token"
    async with wallet_at(f"sqlite:{tmp_path}/wallet.db", tmp_path) as (_, port):
        client = WalletClient(f"127.0.0.1:{port}", tokens, 10.0)
        for bad, reason in (
            (token("batcher", "wallet.read", audience="punchcard.wallet"), "SCOPE_MISSING"),
            (token("batcher", EVERY_SCOPE, audience="punchcard.wallet", lifetime_seconds=-60), "TOKEN_EXPIRED"),
        ):
            await asyncio.to_thread(tokens.write_text, bad)
            with pytest.raises(WalletUnavailable) as caught:
                await client.reserve_many([reserve()])
            assert caught.value.reason == reason
        await client.close()
