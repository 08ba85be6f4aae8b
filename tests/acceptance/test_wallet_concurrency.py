"""Many clients at once, through three wallets on one PostgreSQL and through one on SQLite: no promise breaks.

While the load runs, a sampler reads the database in snapshots beside it. Another load: PROOF_SEED=7 pytest <this file>.
"""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import pytest
from google.protobuf.duration_pb2 import Duration

from punchcard.wallet.v1 import wallet_pb2
from services.wallet.grpc_messages import KINDS
from tests.wallet_audit import BY_THEMSELVES, audited, sampled
from tests.wallet_load import SEED, Load, Replica, replayable, replicas_at, verified
from tests.wallet_mix import DONE, REPLAYED, Act, unkept
from tests.wallet_processes import WalletProcess, wallet_processes

CLIENTS = 200
SPREAD_ACCOUNTS = [f"user-{number}" for number in range(10_000)]
RESERVED = 75
GRANTED = 500
REPLICAS = {"sqlite": 1, "postgres": 3}
OF_OTHERS = {
    "earn", "convert", "give", "receive", "offer", "buy", "sell", "unoffer", "team", "member", "unmember", "limit",
}  # fmt: skip
"""What no command of WalletService asks for."""


class Wallet:
    """The processes of one ledger, and where it is kept."""

    def __init__(self, url: str, processes: list[WalletProcess]) -> None:
        self.url = url
        self.processes = processes


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def wallet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wallet]:
    """One wallet on SQLite, or three on PostgreSQL; the tests use accounts of their own."""
    folder = tmp_path_factory.mktemp("wallet")
    url = f"sqlite:{folder}/wallet.db"
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_server").format(database=f"proof_{os.getpid()}")
        asyncio.run(_create_database(url))
    settings = {"WALLET_GRACE_SECONDS": "1"}
    with wallet_processes(url, folder, REPLICAS[request.param], settings) as processes:
        yield Wallet(url, processes)


async def _create_database(url: str) -> None:
    name = url.partition("?")[0].rpartition("/")[2]
    admin = await asyncpg.connect(url.replace(f"/{name}?", "/postgres?"))
    try:
        await admin.execute(f"CREATE DATABASE {name}")
    finally:
        await admin.close()


@pytest.fixture
async def replicas(wallet: Wallet) -> AsyncIterator[list[Replica]]:
    async with replicas_at(process.address for process in wallet.processes) as replicas:
        yield replicas


def hot(_: int) -> list[str]:
    return ["hot"]


def spread(_: int) -> list[str]:
    return SPREAD_ACCOUNTS


def half_hot(number: int) -> list[str]:
    return hot(number) if number % 2 else spread(number)


@pytest.mark.parametrize(
    ("accounts", "steps"),
    [
        pytest.param(half_hot, 20, id="some"),
        pytest.param(hot, 150, id="one-hot-account", marks=pytest.mark.slow),
        pytest.param(spread, 150, id="10000-accounts", marks=pytest.mark.slow),
    ],
)
async def test_no_promise_breaks_under_load(
    wallet: Wallet, replicas: list[Replica], accounts, steps: int, request: pytest.FixtureRequest
) -> None:
    """Every snapshot keeps the invariants; every acknowledged command is in the ledger once, and no refused one."""
    load = Load(f"{SEED}-{accounts.__name__}", CLIENTS, accounts)
    await fund(replicas[0], "hot", 10_000)

    with replayable(request):
        await check_under_load(wallet, replicas, load, steps)


async def check_under_load(wallet: Wallet, replicas: list[Replica], load: Load, steps: int) -> None:
    async with sampled(wallet.url) as sampler:
        running = asyncio.create_task(load.run(replicas, steps))
        while not running.done():
            check = await verified(replicas[-1])
            assert check.intact, check
        await running

    ledger = await audited(wallet.url)
    check = await verified(replicas[0])
    assert check.intact, check
    assert check.revision >= ledger.rows[-1].revision
    assert unkept(ledger, load.tried) == []
    assert sampler.samples > 2
    # The load was one: each kind of command was done and refused. What ends by itself may not have had the time.
    assert {DONE, REPLAYED, "INSUFFICIENT_FUNDS", "RESERVATION_NOT_FOUND"} <= set(load.words), load.words
    assert {entry.kind for entry in ledger.entries} >= set(KINDS) - BY_THEMSELVES - OF_OTHERS
    assert [process.log() for process in wallet.processes if "masked_error" in process.log()] == []


@pytest.mark.parametrize("rounds", [pytest.param(25, id="25"), pytest.param(300, id="300", marks=pytest.mark.slow)])
async def test_twenty_reserves_of_75_against_500_tokens_grant_exactly_six(
    wallet: Wallet, replicas: list[Replica], rounds: int
) -> None:
    """However they are spread over the replicas, and every time."""
    for number in range(rounds):
        account_id = f"oversold-{rounds}-{number}"
        await fund(replicas[0], account_id, GRANTED - 10)
        asks = [Act("Reserve", reserve(account_id, f"{account_id}-{ask}", RESERVED)) for ask in range(20)]

        heard = await asyncio.gather(
            *(replicas[place % len(replicas)].do([ask]) for place, ask in enumerate(asks, number))
        )

        assert Counter(word for words in heard for word in words) == {DONE: 6, "INSUFFICIENT_FUNDS": 14}
    await audited(wallet.url)


@pytest.mark.parametrize("rounds", [pytest.param(100, id="100"), pytest.param(500, id="500", marks=pytest.mark.slow)])
async def test_a_reservation_that_two_want_to_end_is_ended_by_one(
    wallet: Wallet, replicas: list[Replica], rounds: int
) -> None:
    """A Commit through one replica and a release through another at the same time: one wins, the other is told so."""
    account_id = f"contested-{rounds}"
    await fund(replicas[0], account_id, 10_000)
    for number in range(rounds):
        hold = f"{account_id}-{number}"
        await replicas[0].call("Reserve", reserve(account_id, hold, 5))
        rivals = [commit(hold), release(hold), amend(hold, 3)]

        committed, released, amended = await at_once(replicas, rivals, number)

        if committed == DONE:
            assert released == "RESERVATION_COMMITTED"
            assert amended in {DONE, "RESERVATION_COMMITTED"}
        else:
            assert (committed, released) == ("RESERVATION_RELEASED", DONE)
            assert amended in {DONE, "RESERVATION_RELEASED"}
    await audited(wallet.url)


@pytest.mark.parametrize("rounds", [pytest.param(60, id="60"), pytest.param(600, id="600", marks=pytest.mark.slow)])
async def test_a_hold_that_runs_out_while_it_is_wanted_ends_once(
    wallet: Wallet, replicas: list[Replica], rounds: int
) -> None:
    """Commits, releases and amendments around the instant of its end: at most one ends it, or its time has."""
    account_id = f"running-out-{rounds}"
    await fund(replicas[0], account_id, 10_000)
    holds = [f"{account_id}-{number}" for number in range(rounds)]
    await asyncio.gather(*(replicas[0].call("Reserve", reserve(account_id, hold, 5, seconds=1)) for hold in holds))

    endings = await asyncio.gather(*(contend(replicas, hold, number) for number, hold in enumerate(holds)))

    ledger = await audited(wallet.url)
    stored = [ledger.reservations["batcher", hold]["state"] for hold in holds]
    assert stored == endings
    assert wallet_pb2.RESERVATION_STATE_EXPIRED in endings


async def contend(replicas: list[Replica], hold: str, number: int) -> int:
    """Asks for amendments until the hold is about to end, then for both ends at once; gives the state it came to."""
    mine = replicas[number % len(replicas)]
    word, asked = DONE, 0
    while word == DONE:
        asked += 1
        (word,) = await mine.do([amend(hold, 5, amend_id=f"a{asked}")])
        if number % 3 and asked == number // 3 + 1:
            break
    committed, released = await at_once(replicas, [commit(hold), release(hold)], number)
    if committed == DONE:
        assert released == "RESERVATION_COMMITTED"
        return wallet_pb2.RESERVATION_STATE_COMMITTED
    if committed == "RESERVATION_RELEASED":
        assert released == DONE
        return wallet_pb2.RESERVATION_STATE_RELEASED
    assert (committed, released) == ("RESERVATION_EXPIRED", REPLAYED)
    return wallet_pb2.RESERVATION_STATE_EXPIRED


async def at_once(replicas: list[Replica], rivals: list[Act], number: int) -> list[str]:
    """The word for each of several commands that are sent at the same time, each through the next replica."""
    order = range(number, number + len(rivals))
    heard = await asyncio.gather(
        *(replicas[place % len(replicas)].do([act]) for place, act in zip(order, rivals, strict=True))
    )
    return [word for words in heard for word in words]


async def fund(replica: Replica, account_id: str, amount: int) -> None:
    """Opens an account, with so many tokens beside the welcome bonus."""
    await replica.call("OpenAccount", wallet_pb2.OpenAccountRequest(account_id=account_id))
    grant = wallet_pb2.GrantRequest(account_id=account_id, grant_id=f"for-{account_id}", amount=amount)
    await replica.call("Grant", grant)


def reserve(account_id: str, reservation_id: str, amount: int, seconds: int = 600) -> Any:
    return wallet_pb2.ReserveRequest(
        account_id=account_id,
        reservation_id=reservation_id,
        amount=amount,
        hold_duration=Duration(seconds=seconds),
    )


def commit(reservation_id: str) -> Act:
    return Act("Commit", wallet_pb2.CommitRequest(reservation_id=reservation_id))


def release(reservation_id: str) -> Act:
    return Act("Refund", wallet_pb2.RefundRequest(reservation_id=reservation_id))


def amend(reservation_id: str, amount: int, amend_id: str = "a") -> Act:
    request = wallet_pb2.AmendRequest(reservation_id=reservation_id, amend_id=amend_id, amount=amount)
    return Act("Amend", request)
