"""WatchBalance on both databases: a snapshot, then each row of the account once and in order, from wherever one was."""

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from punchcard.wallet.v1 import wallet_pb2
from services.chassis import watch_stream
from services.chassis.watch import Tailer
from services.wallet import __main__ as wiring
from tests.tokens import bearer
from tests.wallets import WalletClient, reason_of, refused, wallet_at

Message = wallet_pb2.WatchBalanceResponse


class Watch:
    """One watch and all that it has told. `until(revision)` reads until everything up to there has been told."""

    def __init__(self, wallet: WalletClient, account_id: str = "alice", token: str = "", metadata: Any = None) -> None:
        request = wallet_pb2.WatchBalanceRequest(account_id=account_id, resume_token=token)
        self._call = wallet.stub.WatchBalance(request, metadata=wallet.metadata if metadata is None else metadata)
        self._messages = aiter(self._call)
        self.told: list[Message] = []

    async def next(self) -> Message:
        self.told.append(await anext(self._messages))
        return self.told[-1]

    async def until(self, revision: int) -> "Watch":
        while not self.told or self.told[-1].revision < revision:
            await self.next()
        return self

    async def rest(self) -> list[Message]:
        return [message async for message in self._messages]

    @property
    def changes(self) -> list[wallet_pb2.Transaction]:
        return [message.change for message in self.told if message.HasField("change")]

    def close(self) -> None:
        self._call.cancel()


def event(message: Message) -> str:
    return str(message.WhichOneof("event"))


async def opened(wallet: WalletClient, account_id: str = "alice") -> int:
    answer = await wallet.call("OpenAccount", wallet_pb2.OpenAccountRequest(account_id=account_id))
    return int(answer.account.revision)


async def granted(wallet: WalletClient, number: int, account_id: str = "alice") -> int:
    request = wallet_pb2.GrantRequest(account_id=account_id, grant_id=f"{account_id}-{number}", amount=number)
    return int((await wallet.call("Grant", request)).account.revision)


async def reserved(wallet: WalletClient, keys: list[str], account_id: str = "alice", amount: int = 1) -> int:
    hold = Duration(seconds=600)
    items = [
        wallet_pb2.ReserveRequest(account_id=account_id, reservation_id=key, amount=amount, hold_duration=hold)
        for key in keys
    ]
    answer = await wallet.call("BatchReserve", wallet_pb2.BatchReserveRequest(items=items))
    return int(answer.results[-1].revision)


async def history(wallet: WalletClient, account_id: str = "alice") -> list[wallet_pb2.Transaction]:
    """The account's rows, oldest first."""
    request = wallet_pb2.ListTransactionsRequest(account_id=account_id, page_size=1000)
    rows: list[wallet_pb2.Transaction] = []
    while True:
        page = await wallet.call("ListTransactions", request)
        rows += page.transactions
        request.page_token = page.next_page_token
        if not request.page_token:
            return rows[::-1]


async def test_a_watch_begins_with_the_account_and_then_tells_each_change(wallet: WalletClient) -> None:
    """Snapshot, bookmark, one change for each row, each with a place to go on from."""
    begun = await opened(wallet)
    await opened(wallet, "bob")
    watch = Watch(wallet)
    snapshot, bookmark = await watch.next(), await watch.next()
    await reserved(wallet, ["job-1"], amount=5)
    last = int((await wallet.call("Commit", wallet_pb2.CommitRequest(reservation_id="job-1"))).reservation.revision)
    await watch.until(last)
    watch.close()

    assert (event(snapshot), event(bookmark)) == ("snapshot", "bookmark")
    assert (snapshot.snapshot.tokens.balance, snapshot.snapshot.revision) == (10, begun)
    assert snapshot.revision == bookmark.revision > begun
    assert bookmark.bookmark.time.seconds > 0
    assert watch.changes == (await history(wallet))[2:]
    assert [(each.balance, each.held) for each in watch.changes] == [(10, 5), (5, 0)]
    epoch = snapshot.resume_token.rpartition(".")[0]
    assert [message.resume_token for message in watch.told] == [f"{epoch}.{each.revision}" for each in watch.told]


async def test_a_watch_goes_on_from_every_revision(wallet: WalletClient) -> None:
    """Wherever it is cut, what came before and what comes after are the whole history, once and in order."""
    rng = random.Random(7)
    await opened(wallet)
    await opened(wallet, "bob")
    watch = Watch(wallet)
    token = (await watch.next()).resume_token
    for number in range(1, 25):
        account_id = rng.choice(["alice", "bob"])
        last = await granted(wallet, number, account_id)
        if rng.random() < 0.4:
            last = await reserved(wallet, [f"{number}-{each}" for each in range(3)], account_id)
    await watch.until(last)
    whole = await history(wallet)

    assert whole[2:] == watch.changes
    for cut in range(last + 1):
        resumed = await Watch(wallet, token=f"{token.rpartition('.')[0]}.{cut}").until(last)
        bookmark = await resumed.next() if event(resumed.told[-1]) == "change" else resumed.told[-1]
        resumed.close()
        assert [each for each in whole if each.revision <= cut] + resumed.changes == whole
        assert "snapshot" not in map(event, resumed.told)
        assert (event(bookmark), bookmark.revision) == ("bookmark", last)
    for message in watch.told:
        resumed = await Watch(wallet, token=message.resume_token).until(last)
        resumed.close()
        assert [each for each in whole if each.revision <= message.revision] + resumed.changes == whole
    watch.close()


@pytest.fixture
async def small_ring(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WalletClient]:
    """A wallet that remembers three rows for its watchers."""
    monkeypatch.setattr(wiring, "Tailer", partial(Tailer, ring_rows_max=3))
    async with wallet_at(database_url, tmp_path) as (wallet, _):
        yield wallet


async def test_a_watcher_that_falls_behind_loses_nothing(small_ring: WalletClient) -> None:
    """A thousand rows at once are more than the ring holds, and a long past is told before the present."""
    await opened(small_ring)
    await granted(small_ring, 10_000)
    watch = Watch(small_ring)
    begun = (await watch.next()).revision
    for number in range(3):
        last = await reserved(small_ring, [f"{number}-{each}" for each in range(1000)])
    await watch.until(last)
    watch.close()
    late = await Watch(small_ring, token=watch.told[0].resume_token).until(last)
    late.close()
    expected = [each for each in await history(small_ring) if each.revision > begun]

    assert watch.changes == expected
    assert late.changes == expected


async def test_watchers_of_one_account_are_all_told_everything(wallet: WalletClient) -> None:
    """200 at once: each gets the same rows."""
    await opened(wallet)
    watches = [Watch(wallet) for _ in range(200)]
    await asyncio.gather(*(watch.next() for watch in watches))
    for number in range(1, 6):
        last = await granted(wallet, number)
    await asyncio.gather(*(watch.until(last) for watch in watches))
    for watch in watches:
        watch.close()
    expected = (await history(wallet))[2:]

    assert len(expected) == 5
    assert all(watch.changes == expected for watch in watches)


async def test_each_watcher_is_told_of_its_own_account_alone(wallet: WalletClient) -> None:
    """200 accounts, each watched once, while all of them change."""
    names = [f"user-{number}" for number in range(200)]
    await asyncio.gather(*(opened(wallet, name) for name in names))
    watches = [Watch(wallet, name) for name in names]
    await asyncio.gather(*(watch.next() for watch in watches))
    for number in range(1, 4):
        last = await asyncio.gather(*(granted(wallet, number, name) for name in names))
    await asyncio.gather(*(watch.until(revision) for watch, revision in zip(watches, last, strict=True)))
    for watch in watches:
        watch.close()

    for watch, name in zip(watches, names, strict=True):
        assert [each.key for each in watch.changes] == [f"{name}-{number}" for number in range(1, 4)]


async def test_a_replica_tells_what_another_one_wrote(postgres_url: str, tmp_path: Path) -> None:
    """And a watch that was begun at one goes on at the other."""
    async with wallet_at(postgres_url, tmp_path) as (here, _), wallet_at(postgres_url, tmp_path) as (there, _):
        await opened(here)
        watch = Watch(here)
        await watch.next()
        for number in range(1, 21):
            last = await granted((here, there)[number % 2], number)
        await watch.until(last)
        watch.close()
        cut = watch.told[len(watch.told) // 2]
        resumed = await Watch(there, token=cut.resume_token).until(last)
        resumed.close()
        whole = await history(there)

    assert watch.changes == whole[2:]
    assert resumed.changes == [each for each in whole if each.revision > cut.revision]


async def test_an_overdue_hold_counts_as_ended_before_its_row_is_written(database_url: str, tmp_path: Path) -> None:
    """The snapshot and the row of the sweep, which comes later, say the same."""
    async with wallet_at(database_url, tmp_path, expiry_interval_seconds=1e6) as (wallet, _):
        hold = wallet_pb2.ReserveRequest(account_id="alice", reservation_id="r", amount=4)
        hold.hold_duration.seconds = 1
        await wallet.call("Reserve", hold)
        while (await wallet.balance("alice"))[1]:
            pass
        watch = Watch(wallet)
        snapshot = await watch.next()
        await watch.until(await granted(wallet, 1))
        watch.close()

    tokens = snapshot.snapshot.tokens
    assert (tokens.balance, tokens.held) == (10, 0)
    assert [(each.kind, each.balance, each.held) for each in watch.changes] == [
        (wallet_pb2.TRANSACTION_KIND_EXPIRE, 10, 0),
        (wallet_pb2.TRANSACTION_KIND_GRANT, 11, 0),
    ]


async def test_a_silent_account_gives_signs_of_life(wallet: WalletClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bookmarks come by themselves, and move on with the rows of other accounts."""
    monkeypatch.setattr(watch_stream, "BOOKMARK_SECONDS", 0.01)
    await opened(wallet)
    watch = Watch(wallet)
    await watch.next()
    last = await opened(wallet, "bob")
    await watch.until(last)
    more = [await watch.next() for _ in range(3)]
    watch.close()

    assert {event(message) for message in watch.told[1:]} == {"bookmark"}
    assert [message.revision for message in more] == [last] * 3


async def test_a_watch_ends_with_its_token(wallet: WalletClient) -> None:
    """UNAUTHENTICATED, so that the client comes back with a new one."""
    await opened(wallet)
    metadata = bearer("alice", "wallet.read", audience="punchcard.wallet", lifetime_seconds=1.5)
    watch = Watch(wallet, metadata=metadata)
    assert event(await watch.next()) == "snapshot"

    assert (await refused(watch.rest()))[:2] == ("UNAUTHENTICATED", "TOKEN_EXPIRED")


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[WalletClient]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield WalletClient(channel)


async def test_a_watch_ends_when_the_server_drains(database_url: str, tmp_path: Path) -> None:
    """UNAVAILABLE with a retry, which another replica, or the next start, answers from the last token on."""
    async with AsyncExitStack() as channels:
        async with wallet_at(database_url, tmp_path) as (wallet, port):
            await opened(wallet)
            # A channel of its own, as the other one is closed before the server drains.
            watch = Watch(await channels.enter_async_context(connected(port)))
            token = (await watch.next()).resume_token
            ending = asyncio.ensure_future(watch.rest())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ending
    async with wallet_at(database_url, tmp_path) as (wallet, _):
        resumed = await Watch(wallet, token=token).until(await granted(wallet, 1))
        resumed.close()

    assert reason_of(caught.value)[:2] == ("UNAVAILABLE", "SERVER_DRAINING")
    assert [each.balance for each in resumed.changes] == [11]


async def test_a_token_of_the_future_or_of_another_life_is_refused(wallet: WalletClient) -> None:
    """Nothing hangs, and nothing is told in its stead."""
    last = await opened(wallet)
    watch = Watch(wallet)
    epoch = (await watch.next()).resume_token.rpartition(".")[0]
    watch.close()

    for token in (
        f"{epoch}.{last + 1}",
        f"{epoch}.999999999999",
        f"other.{last}",
        f"{last}",
        "nonsense",
        f"{epoch}.-1",
    ):
        code, reason, metadata = await refused(Watch(wallet, token=token).next())
        assert (code, reason, metadata["current_revision"]) == ("OUT_OF_RANGE", "REVISION_UNKNOWN", str(last))


async def test_what_is_no_longer_kept_is_said_to_be_gone(tmp_path: Path) -> None:
    """A journal whose old rows were cut off by hand refuses to go on from there, and goes on from later."""
    url = f"sqlite:{tmp_path}/wallet.db"
    async with wallet_at(url, tmp_path) as (wallet, _):
        await opened(wallet)
        await granted(wallet, 2_000)
        # A start looks at the last thousand rows: what is older may be gone.
        for half in ("a", "b"):
            last = await reserved(wallet, [f"{half}-{number}" for number in range(600)])
        watch = Watch(wallet)
        epoch = (await watch.next()).resume_token.rpartition(".")[0]
        watch.close()
    with sqlite3.connect(tmp_path / "wallet.db") as raw:
        raw.executescript("DROP TRIGGER journal_refuses_delete; DELETE FROM journal WHERE revision < 4;")
    raw.close()

    async with wallet_at(url, tmp_path) as (wallet, _):
        found = await refused(Watch(wallet, token=f"{epoch}.2").next())
        kept = await Watch(wallet, token=f"{epoch}.3").until(last)
        kept.close()

    assert found == ("OUT_OF_RANGE", "REVISION_COMPACTED", {"revision": "2", "oldest_revision": "4"})
    assert [each.revision for each in kept.changes] == list(range(4, last + 1))


async def test_strangers_watch_nothing(wallet: WalletClient) -> None:
    """Another's account looks like none, and no scope is no watch."""
    await opened(wallet)
    bob = bearer("bob", "wallet.read", audience="punchcard.wallet")
    blind = bearer("alice", "wallet.reserve", audience="punchcard.wallet")

    assert await refused(Watch(wallet, "nobody").next()) == (
        "NOT_FOUND",
        "ACCOUNT_NOT_FOUND",
        {"account_id": "nobody"},
    )
    assert (await refused(Watch(wallet, metadata=bob).next()))[1] == "ACCOUNT_NOT_FOUND"
    assert (await refused(Watch(wallet, metadata=blind).next()))[1] == "SCOPE_MISSING"
    assert (await refused(Watch(wallet, "@issue").next()))[1] == "INVALID_FIELD"
