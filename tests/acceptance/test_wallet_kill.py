"""The wallet is killed with SIGKILL in the middle of its work, again and again, and nothing that it said is lost.

Clients keep their own book of what they sent and heard. After each kill the database is audited while nobody serves it;
then the wallet is started on it, and what was left without an answer is sent again. Other moments: PROOF_SEED=7 pytest
<this file>.
"""

import asyncio
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.wallet_audit import Ledger, audited, sampled, settled
from tests.wallet_load import REFUSALS, SEED, Replica, replayable, replicas_at
from tests.wallet_mix import DONE, LOST, REPLAYED, Act, Commons, Mix, Tried, unkept
from tests.wallet_processes import WalletProcess, wallet_processes

CLIENTS = 40
ACCOUNTS = ["hot", *(f"user-{number}" for number in range(50))]
ANSWERS_MAX = 600
"""The kill comes behind so many answers at most."""
PATIENCE_SECONDS = 60.0
SETTINGS = {"WALLET_EXPIRY_INTERVAL_SECONDS": "0.05", "WALLET_GRACE_SECONDS": "1"}
STARTING_SECONDS_MAX = 0.9
"""A start takes about a second; some kills come into it."""


class Killed(NamedTuple):
    """The wallet under test: its process and its database."""

    url: str
    process: WalletProcess


class Unanswered(NamedTuple):
    """A command whose answer never came, and the client that waits for it."""

    client: Mix
    tried: Tried


@pytest.fixture
def wallet(database_url: str, tmp_path: Path) -> Iterator[Killed]:
    """One wallet process on each database in turn; overdue holds are swept all the time."""
    with wallet_processes(database_url, tmp_path, 1, SETTINGS) as (process,):
        yield Killed(database_url, process)


@pytest.mark.parametrize("rounds", [pytest.param(4, id="4"), pytest.param(50, id="50", marks=pytest.mark.slow)])
async def test_a_killed_wallet_has_kept_all_that_it_said_and_nothing_by_halves(
    wallet: Killed, rounds: int, request: pytest.FixtureRequest
) -> None:
    """Acknowledged commands are in the ledger, unacknowledged ones whole or not at all, and retries end well."""
    moments = random.Random(f"moments/{SEED}")
    clients = [Mix(f"{SEED}/{number}", ACCOUNTS, Commons()) for number in range(CLIENTS)]
    with replayable(request):
        for number in range(rounds):
            lost = await work_until_killed(wallet, clients, moments)
            ledger = await audit_alone(wallet.url)
            assert unkept(ledger, tried_by(clients)) == []
            await start_again(wallet.process, moments, also_kill=number % 4 == 3)
            await retry(wallet, lost, ledger)

    await asyncio.to_thread(wallet.process.stop)
    ledger = await audit_alone(wallet.url)
    assert unkept(ledger, tried_by(clients)) == []
    heard = {word for tried in tried_by(clients) for word in tried.words}
    assert {DONE, LOST, REPLAYED} <= heard
    assert "masked_error" not in wallet.process.log()


def tried_by(clients: list[Mix]) -> list[Tried]:
    return [tried for client in clients for tried in client.tried]


async def work_until_killed(wallet: Killed, clients: list[Mix], moments: random.Random) -> list[Unanswered]:
    """Lets all clients work until so many answers have come and a moment more; gives what was left unanswered."""
    answers = asyncio.Semaphore(0)
    enough, moment_more_seconds = moments.randint(1, ANSWERS_MAX), moments.uniform(0.0, 0.02)
    lost: list[Unanswered] = []

    async def work(client: Mix, replica: Replica) -> None:
        while True:
            acts = client.acts()
            words = await replica.do(acts)
            tried = [Tried(act, [word]) for act, word in zip(acts, words, strict=True)]
            client.tried += tried
            if LOST in words:
                lost.extend(Unanswered(client, each) for each in tried)
                return
            for act, word in zip(acts, words, strict=True):
                client.tell(act, word)
            answers.release()

    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        replicas_at([wallet.process.address]) as (replica,),
        asyncio.TaskGroup() as group,
    ):
        for client in clients:
            group.create_task(work(client, replica))
        for _ in range(enough):
            await answers.acquire()
        await asyncio.to_thread(_kill_in, wallet.process, moment_more_seconds, alone=moments.random() < 0.5)
    return lost


def _kill_in(process: WalletProcess, seconds: float, *, alone: bool = False) -> None:
    """Kills at an instant that no answer marks: somewhere in the life of a group, or of a start."""
    time.sleep(seconds)
    if alone:
        process.kill_alone()
    else:
        process.kill()


async def audit_alone(url: str) -> Ledger:
    """Audits the database when nothing of a killed wallet is going on in it any more."""
    await settled(url)
    return await audited(url)


async def start_again(process: WalletProcess, moments: random.Random, *, also_kill: bool) -> None:
    """Starts the wallet; sometimes it is killed once more before it serves."""
    if also_kill:
        process.launch()
        await asyncio.to_thread(_kill_in, process, moments.uniform(0.0, STARTING_SECONDS_MAX))
    process.launch()
    await asyncio.to_thread(process.wait_ready)


async def retry(wallet: Killed, lost: list[Unanswered], ledger: Ledger) -> None:
    """Sends again what had no answer: what the audit has seen is found done, and everything else is decided now."""
    async with replicas_at([wallet.process.address]) as (replica,):
        for client, (act, words) in lost:
            (word,) = await replica.do([act])
            words.append(word)
            client.tell(act, word)
            assert word in {DONE, REPLAYED} | REFUSALS, f"{act} was sent again and came to {word}"
            if has_a_key_of_its_own(act):
                there = act.key in ledger.by_key
                assert (word == REPLAYED) == there, f"{act} came to {word}; whether the journal had it: {there}"


def has_a_key_of_its_own(act: Act) -> bool:
    """Whether no other command can have left what this one leaves: a reservation ends by any command that ends it."""
    return act.method not in {"OpenAccount", "Commit", "Refund"} or (
        act.method == "Refund" and bool(act.request.refund_id)
    )


@pytest.mark.parametrize("rounds", [pytest.param(2, id="2"), pytest.param(25, id="25", marks=pytest.mark.slow)])
async def test_what_a_killed_replica_left_is_done_by_another(
    postgres_url: str, tmp_path: Path, rounds: int, request: pytest.FixtureRequest
) -> None:
    """Clients turn to the other replica at once, and the locks of the dead one hold nobody up."""
    moments = random.Random(f"replica/{SEED}")
    clients = [Mix(f"{SEED}/{number}", ACCOUNTS, Commons()) for number in range(CLIENTS)]
    with wallet_processes(postgres_url, tmp_path, 2, SETTINGS) as (victim, other), replayable(request):
        for _ in range(rounds):
            async with sampled(postgres_url), asyncio.timeout(PATIENCE_SECONDS):
                await work_on_through_a_kill(victim, other, clients, moments)
            victim.launch()
            await asyncio.to_thread(victim.wait_ready)
        assert unkept(await audited(postgres_url), tried_by(clients)) == []

    heard = {word for tried in tried_by(clients) for word in tried.words}
    assert {DONE, LOST, REPLAYED} <= heard


async def work_on_through_a_kill(
    victim: WalletProcess, other: WalletProcess, clients: list[Mix], moments: random.Random
) -> None:
    """Lets all clients work through both replicas, kills one, and lets them work on for a while."""
    answers, over = asyncio.Semaphore(0), asyncio.Event()

    async def work(client: Mix, replicas: list[Replica]) -> None:
        while not over.is_set():
            acts = client.acts()
            words = await client.random.choice(replicas).do(acts)
            for act, first in zip(acts, words, strict=True):
                tried = Tried(act, [first])
                if first == LOST:
                    tried.words.extend(await replicas[-1].do([act]))
                client.tried.append(tried)
                assert tried.words[-1] in {DONE, REPLAYED} | REFUSALS, f"{act} came to {tried.words}"
                client.tell(act, tried.words[-1])
            answers.release()

    async with replicas_at([victim.address, other.address]) as replicas, asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(work(client, replicas))
        for _ in range(moments.randint(1, ANSWERS_MAX)):
            await answers.acquire()
        await asyncio.to_thread(_kill_in, victim, moments.uniform(0.0, 0.02))
        for _ in range(ANSWERS_MAX):
            await answers.acquire()
        over.set()
