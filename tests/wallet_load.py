"""Clients that send the wallet what `Mix` thinks of, through several replicas, and note what they hear."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, Final

import grpc
import pytest

from punchcard.wallet.v1 import error_reason_pb2, wallet_pb2, wallet_pb2_grpc
from punchcard_client import reason_of
from services.wallet import errors
from services.wallet.grpc_api import ERRORS
from tests.tokens import bearer
from tests.wallet_mix import DONE, LOST, MAKER, REPLAYED, Act, Commons, Mix, Tried, settle_item
from tests.wallets import EVERY_SCOPE

REFUSALS: Final = {row.reason for kind, row in ERRORS.rows.items() if issubclass(kind, errors.Refusal)}
"""What a client may hear: the reasons of the ledger itself, and none of a server in trouble."""
CALL_TIMEOUT_SECONDS: Final = 60.0
CHANNELS_PER_REPLICA: Final = 4
TRIES_MAX: Final = 20
METADATA: Final = bearer(MAKER, f"{EVERY_SCOPE} wallet.admin", audience="punchcard.wallet")
_OPTIONS: Final = (("grpc.use_local_subchannel_pool", 1),)


SEED: Final = int(os.environ.get("PROOF_SEED", "1"))
"""Chooses what clients ask for and when a wallet is killed: set it to try another load, or the one that failed."""


@contextmanager
def replayable(request: pytest.FixtureRequest) -> Iterator[None]:
    """Says with a failure how to try the same again."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"replay with: PROOF_SEED={SEED} pytest '{request.node.nodeid}'")
        raise


class Replica:
    """Stubs of one wallet, on several connections."""

    def __init__(self, stubs: Sequence[Any]) -> None:
        self._stubs = stubs
        self._calls = 0

    async def call(self, method: str, request: Any) -> Any:
        """The answer, or the `grpc.aio.AioRpcError`."""
        self._calls += 1
        stub = self._stubs[self._calls % len(self._stubs)]
        return await getattr(stub, method)(request, metadata=METADATA, timeout=CALL_TIMEOUT_SECONDS)

    def stream(self, method: str, request: Any) -> Any:
        """The messages of a call that streams."""
        return getattr(self._stubs[0], method)(request, metadata=METADATA, timeout=CALL_TIMEOUT_SECONDS)

    async def do(self, acts: Sequence[Act]) -> list[str]:
        """Sends commands, several in a batch call; a word for each, see `Mix`."""
        try:
            if len(acts) == 1:
                answer = await self.call(acts[0].method, acts[0].request)
                return [REPLAYED if answer.replayed else DONE]
            return [_word(result) for result in (await self.call(*_batch(acts))).results]
        except grpc.aio.AioRpcError as error:
            reason = reason_of(error)
            # Without a reason of ours the connection broke, and whether the command was done is unknown.
            word = LOST if reason is None or reason.name == "STORE_UNAVAILABLE" else reason.name
            return [word] * len(acts)


def _batch(acts: Sequence[Act]) -> tuple[str, Any]:
    if acts[0].method == "Reserve":
        return "BatchReserve", wallet_pb2.BatchReserveRequest(items=[act.request for act in acts])
    return "BatchSettle", wallet_pb2.BatchSettleRequest(items=[settle_item(act) for act in acts])


def _word(result: Any) -> str:
    if not result.HasField("refusal"):
        return REPLAYED if result.replayed else DONE
    name = error_reason_pb2.ErrorReason.Name(result.refusal.reason).removeprefix("ERROR_REASON_")
    return LOST if name == "STORE_UNAVAILABLE" else name


@asynccontextmanager
async def replicas_at(addresses: Iterable[str]) -> AsyncIterator[list[Replica]]:
    """Connections to each."""
    async with AsyncExitStack() as stack:
        replicas = []
        for address in addresses:
            channels = [grpc.aio.insecure_channel(address, options=_OPTIONS) for _ in range(CHANNELS_PER_REPLICA)]
            for channel in channels:
                await stack.enter_async_context(channel)
            replicas.append(Replica([wallet_pb2_grpc.WalletServiceStub(channel) for channel in channels]))
        yield replicas


class Load:
    """Many clients at once; each is seeded, how they interleave is not."""

    def __init__(self, seed: str, clients: int, accounts: Callable[[int], Sequence[str]]) -> None:
        commons = Commons()
        self.mixes = [Mix(f"{seed}/{number}", accounts(number), commons) for number in range(clients)]

    @property
    def tried(self) -> list[Tried]:
        """All that was sent."""
        return [tried for mix in self.mixes for tried in mix.tried]

    @property
    def words(self) -> Counter[str]:
        """How often each word was heard."""
        return Counter(word for tried in self.tried for word in tried.words)

    async def run(self, replicas: Sequence[Replica], steps: int) -> None:
        """So many steps of each client; raises AssertionError at the first answer that may not be."""
        async with asyncio.TaskGroup() as group:
            for mix in self.mixes:
                group.create_task(_steps(mix, replicas, steps))


async def _steps(mix: Mix, replicas: Sequence[Replica], steps: int) -> None:
    for _ in range(steps):
        kind = mix.random.random()
        if kind < 0.08 and (earlier := mix.earlier()):
            await _again(earlier, mix.random.choice(replicas))
        elif kind < 0.2:
            await _twice_at_once(mix, replicas)
        elif kind < 0.28:
            await _look(mix, mix.random.choice(replicas))
        else:
            await _once(mix, mix.random.choice(replicas))


async def _once(mix: Mix, replica: Replica) -> None:
    acts = mix.acts()
    for act, word in zip(acts, await _heard(replica, acts), strict=True):
        mix.tried.append(Tried(act, [word]))
        mix.tell(act, word)


async def _again(earlier: Tried, replica: Replica) -> None:
    """What was done before is not done again, wherever it is sent."""
    (word,) = await _heard(replica, [earlier.act])
    closed = earlier.act.method == "OpenAccount" and word == "ACCOUNT_CLOSED"
    assert word == REPLAYED or closed, f"{earlier} was sent again and came to {word}"
    earlier.words.append(word)


async def _twice_at_once(mix: Mix, replicas: Sequence[Replica]) -> None:
    """The same through two replicas at the same time: at most one does it."""
    acts = mix.acts()
    pair = mix.random.sample(replicas, 2) if len(replicas) > 1 else [*replicas, *replicas]
    one, other = await asyncio.gather(*(_heard(replica, acts) for replica in pair))
    for act, *words in zip(acts, one, other, strict=True):
        assert words != [DONE, DONE], f"{act} was done twice"
        mix.tried.append(Tried(act, words))
        mix.tell(act, min(words, key=[DONE, REPLAYED, *sorted(REFUSALS)].index))


async def _look(mix: Mix, replica: Replica) -> None:
    """What is read in the middle of the load is coherent in itself."""
    method, request = mix.question()
    try:
        answer = await replica.call(method, request)
    except grpc.aio.AioRpcError as error:
        reason = reason_of(error)
        if reason is None or reason.name not in REFUSALS:
            raise
        return
    if method == "GetAccount":
        tokens, lots = answer.account.tokens, answer.account.lots
        assert tokens.balance == tokens.held + tokens.available
        assert min(tokens.held, tokens.available) >= 0
        assert sum(lot.remaining for lot in lots) <= tokens.balance
        assert sum(lot.held for lot in lots) <= tokens.held
    elif method == "PreviewReserve":
        assert sum(pin.amount for pin in answer.pins) <= request.reserve.amount
        assert {pin.lot_id for pin in answer.pins} == {lot.lot_id for lot in answer.lots}
    elif method == "ListReservations":
        held = wallet_pb2.RESERVATION_STATE_HELD
        ends = [each.expire_time.ToNanoseconds() for each in answer.reservations]
        assert {each.state for each in answer.reservations} <= {held}
        assert ends == sorted(ends)


async def verified(replica: Replica) -> Any:
    """The result of the wallet's own check of its ledger."""
    messages = [each async for each in replica.stream("VerifyLedger", wallet_pb2.VerifyLedgerRequest())]
    assert [each.WhichOneof("event") for each in messages].index("result") == len(messages) - 1
    return messages[-1].result


async def _heard(replica: Replica, acts: Sequence[Act]) -> list[str]:
    """The words for commands, which are sent again for as long as the store says that it does not answer."""
    for _ in range(TRIES_MAX):
        words = await replica.do(acts)
        if LOST not in words:
            assert set(words) <= {DONE, REPLAYED} | REFUSALS, f"{acts} came to {words}"
            return words
    raise AssertionError(f"the store did not answer {TRIES_MAX} times: {acts}")
