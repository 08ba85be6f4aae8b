"""The wallet's store keeps every promise on both databases, also when commands come in groups and at once."""

import asyncio
import contextlib
import random
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from services.chassis import journal
from services.chassis.database import Database, Row, Transaction
from services.chassis.group_commit import GroupCommitter
from services.wallet.commands import (
    Amend,
    Command,
    Commit,
    Grant,
    OpenAccount,
    Outcome,
    Refund,
    Release,
    Reserve,
    Sweep,
)
from services.wallet.economy import Rules
from services.wallet.grant import ISSUED_MAX
from services.wallet.holdings import Account, State
from services.wallet.journal_entry import apply
from services.wallet.store import Store
from services.wallet.store_history import NoSuchPlace
from services.wallet.store_rows import entry_of
from tests.databases import opened
from tests.fixed_time import SECOND_US, Clock, FixedTime
from tests.wallet_model import WalletModel, word

WALLET = Path("services/wallet")


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A migrated wallet database with an open journal."""
    async with opened(database_url, WALLET) as database:
        async with database.transaction() as tx:
            # Long before the tests' own clock, which no row of the journal may precede.
            await journal.open_head(tx, "test", 1)
        await Store(database, Rules()).open("test")
        yield database


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(database: Database, clock: Clock) -> Store:
    """The store under test, at the test's time."""
    return Store(FixedTime(database, clock), Rules(welcome_bonus=10))  # type: ignore[arg-type]


async def rebuilt(database: Database) -> State:
    """What replaying the whole journal comes to; the hash chain is checked on the way."""
    state = State()
    async with database.reading() as tx:
        head = await journal.read_head(tx)
        rows = await journal.read_after(tx, 0, head.revision + 1)
    assert journal.verify_chain(rows) is None
    assert len(rows) == head.revision
    for row in rows:
        apply(state, entry_of(row), row.time_us)
    return state


async def check_promises(database: Database, store: Store) -> None:
    """Sums are 0, every projection is what the journal says, and histories are complete."""
    assert set((await store.asset_sums()).values()) <= {0}
    state = await rebuilt(database)
    for key, account in state.accounts.items():
        stored = await store.account(account.account_id)
        assert stored is not None
        assert stored._replace(due_time_us=None, held=0) == account._replace(due_time_us=None, held=0), key
        history = await store.transactions(account.account_id, None, 10_000)
        assert history is not None
        assert len(history.rows) == sum(entry.account_id == account.account_id for entry in state.entries)
    async with database.reading() as tx:
        for (created_by, reservation_id), reservation in state.reservations.items():
            row = await tx.row("get_reservation", created_by=created_by, reservation_id=reservation_id)
            assert row is not None
            assert tuple(row) == tuple(reservation)


def random_command(random_source: random.Random) -> Command:
    """One command out of a small world, so that keys repeat and accounts run dry."""
    account_id = random_source.choice(["alice", "bob", "carol"])
    key = f"r{random_source.randrange(12)}"
    amount = random_source.randint(1, 8)
    maybe_amount = random_source.choice([None, amount])
    hold_us = random_source.choice([2, 9, 60]) * SECOND_US
    match random_source.randrange(10):
        case 0:
            return OpenAccount("boss", account_id)
        case 1:
            return Grant("boss", account_id, f"g{random_source.randrange(6)}", amount, "")
        case 2 | 3 | 4:
            return Reserve("batcher", account_id, account_id, key, amount, hold_us, "v1", "", True)
        case 5 | 6:
            return Commit("batcher", "batcher", key, maybe_amount, random_source.random() < 0.5)
        case 7:
            return Release("batcher", "batcher", key)
        case 8:
            return Refund("batcher", "batcher", key, f"f{random_source.randrange(2)}", maybe_amount)
        case _:
            hold = random_source.choice([None, hold_us])
            amend_amount = amount if hold is None else maybe_amount
            return Amend("batcher", "batcher", key, f"a{random_source.randrange(3)}", amend_amount, hold)


@pytest.mark.parametrize("seed", range(4))
async def test_a_random_history_in_groups_ends_as_the_model_says(
    database: Database, store: Store, clock: Clock, seed: int
) -> None:
    """Groups of random commands have the model's outcomes one by one, and the journal rebuilds all that is stored."""
    random_source = random.Random(seed)
    model = WalletModel(10)
    for _ in range(60):
        group = [random_command(random_source) for _ in range(random_source.randint(1, 25))]
        expected = [model.run(command, clock.now_us) for command in group]
        assert [word(result) for result in await store.run_group(group)] == expected
        clock.now_us += random_source.choice([0, 1, 3]) * SECOND_US
        model.pass_time(clock.now_us)
    for account_id, balance in model.balance.items():
        account = await store.account(account_id)
        assert account is not None
        assert (account.balance, account.held) == (balance, model.held(account_id))
    await check_promises(database, store)


async def test_a_refused_group_stores_nothing(database: Database, store: Store) -> None:
    """A Reserve that is refused opens no account and writes no row."""
    results = await store.run_group([reserve("r1", 11), Commit("batcher", "batcher", "r1", None, False)])

    assert [word(result) for result in results] == ["InsufficientFunds", "ReservationNotFound"]
    assert await store.account("alice") is None
    assert (await rebuilt(database)).entries == []


async def test_more_due_holds_than_one_transaction_sweeps_are_all_swept_before_anything_is_decided(
    database: Database, store: Store, clock: Clock
) -> None:
    """2,500 holds that ended free all their tokens for the next command, however many transactions that takes."""
    await store.run_group([OpenAccount("boss", "alice"), Grant("boss", "alice", "g", 2_490, "")])
    for start in range(0, 2_500, 500):
        await store.run_group([reserve(f"h{number}", 1) for number in range(start, start + 500)])
    clock.now_us += 61 * SECOND_US

    (result,) = await store.run_group([reserve("all", 2_500)])

    assert word(result) == "ok"
    await check_promises(database, store)


async def test_a_read_leaves_out_what_is_overdue_although_nothing_has_swept_it(store: Store, clock: Clock) -> None:
    """Reads compute what the next command will find."""
    await store.run_group([reserve("r1", 4)])
    clock.now_us += 60 * SECOND_US

    account = await store.account("alice")
    reservation = await store.reservation("batcher", "r1")

    assert account is not None
    assert (account.held, account.available) == (0, 10)
    assert reservation is not None
    assert (reservation.state, reservation.expired) == (4, 4)


async def test_grants_end_before_the_ledger_can_no_longer_count_them(database_url: str, store: Store) -> None:
    """Who grants without end is refused, and everybody else can still open accounts and be paid for."""
    await store.run_group([OpenAccount("boss", "alice")])
    await execute(database_url, f"UPDATE system_accounts SET balance = {8 - ISSUED_MAX} WHERE account_id = '@issue'")

    results = await store.run_group([Grant("boss", "alice", f"g{number}", 5, "") for number in range(2)])
    opened = await store.run_group([OpenAccount("boss", "bob"), reserve("r1", 15), Commit("b", "b", "r", None, False)])

    assert [word(result) for result in results] == ["ok", "BalanceLimit"]
    assert [word(result) for result in opened] == ["ok", "ok", "ReservationNotFound"]


async def test_a_read_does_not_go_back_in_time_with_the_clock(store: Store, clock: Clock) -> None:
    """What the journal's time has ended stays ended for reads too, as it does for commands."""
    await store.run_group([reserve("r1", 4)])
    clock.now_us += 60 * SECOND_US
    await store.run_group([OpenAccount("boss", "bob")])
    clock.now_us -= 60 * SECOND_US

    account = await store.account("alice")
    reservation = await store.reservation("batcher", "r1")

    assert account is not None
    assert account.held == 0
    assert reservation is not None
    assert reservation.state == 4


async def test_the_expirer_finds_each_overdue_account_once(store: Store, clock: Clock) -> None:
    """After a sweep an account is due again only when its next hold ends."""
    await store.run_group([reserve("r1", 1), reserve("r2", 1)._replace(hold_us=90 * SECOND_US)])
    assert await store.due_accounts(10) == []
    clock.now_us += 60 * SECOND_US
    assert await store.due_accounts(10) == ["alice"]
    await store.run_group([Sweep("alice")])
    assert await store.due_accounts(10) == []
    clock.now_us += 30 * SECOND_US
    assert await store.due_accounts(10) == ["alice"]


async def test_twenty_reserves_of_75_against_500_grant_exactly_six(database: Database, store: Store) -> None:
    """Whoever asks at once and through however many group committers, the account is never oversold."""
    await store.run_group([OpenAccount("boss", "alice"), Grant("boss", "alice", "g", 490, "")])
    committers = [GroupCommitter[Command, Outcome](store.run_group) for _ in range(3)]
    for committer in committers:
        committer.start()
    asks = [committers[number % 3].submit(reserve(f"r{number}", 75)) for number in range(20)]

    results = await asyncio.gather(*asks, return_exceptions=True)

    words = [word(result) for result in results]
    assert (words.count("ok"), words.count("InsufficientFunds")) == (6, 14)
    for committer in committers:
        await committer.close()
    await check_promises(database, store)


async def test_one_key_sent_at_once_through_several_writers_is_done_once(database: Database, store: Store) -> None:
    """Two replicas that open one account, or make one reservation, collide on the primary key and one runs again."""
    committers = [GroupCommitter[Command, Outcome](store.run_group) for _ in range(4)]
    for committer in committers:
        committer.start()

    results = await asyncio.gather(*(committer.submit(reserve("same", 3)) for committer in committers))

    assert sorted(result.replayed for result in results) == [False, True, True, True]
    for committer in committers:
        await committer.close()
    await check_promises(database, store)


@pytest.mark.parametrize("change", ["UPDATE journal SET body = '{}'", "DELETE FROM journal"])
async def test_the_database_itself_refuses_to_change_the_journal(
    database_url: str, database: Database, store: Store, change: str
) -> None:
    """History is append-only whoever is connected, and stays as it was after the attempt."""
    await store.run_group([OpenAccount("boss", "alice")])

    with pytest.raises(Exception, match="append-only"):
        await execute(database_url, change)

    assert [entry.kind for entry in (await rebuilt(database)).entries] == ["open", "grant"]


@pytest.mark.parametrize("change", ["held = balance + 1", "held = -1", "balance = -1"])
async def test_the_database_itself_refuses_an_overdrawn_account(database_url: str, store: Store, change: str) -> None:
    """Should the code ever be wrong, a CHECK stops it before a token is spent twice."""
    await store.run_group([OpenAccount("boss", "alice")])

    with pytest.raises((sqlite3.IntegrityError, asyncpg.CheckViolationError)):
        await execute(database_url, f"UPDATE accounts SET {change}")


def _execute_in_file(path: str, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as file:
        file.execute(statement)
        file.commit()


async def execute(url: str, statement: str) -> None:
    """Runs a statement as somebody with direct access to the database would."""
    if url.startswith("sqlite:"):
        # In a thread: a service of this process may be in a transaction, which can't end while its loop waits.
        await asyncio.to_thread(_execute_in_file, url.removeprefix("sqlite:"), statement)
        return
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def test_the_first_start_fixes_what_a_token_is(database: Database) -> None:
    """A ledger that was opened with one scale keeps it, whatever a later start is configured with."""
    assert await Store(database, Rules(token_scale=2)).open("later") == 0


async def test_a_page_of_another_accounts_history_is_not_given(store: Store) -> None:
    """A place in bob's history is no place in alice's."""
    await store.run_group([OpenAccount("boss", "alice"), OpenAccount("boss", "bob")])
    bob = await store.account("bob")

    assert isinstance(bob, Account)
    with pytest.raises(NoSuchPlace):
        await store.transactions("alice", bob.revision, 10)


def reserve(key: str, amount: int) -> Reserve:
    """A Reserve by the batcher for alice, for a minute."""
    return Reserve("batcher", "alice", "alice", key, amount, 60 * SECOND_US, "v1", "", True)


async def test_a_key_that_comes_back_with_another_payer_is_refused_although_both_have_holds_to_sweep(
    database: Database, store: Store, clock: Clock
) -> None:
    """The hold that the key names is loaded, and so is its payer, whom the command does not name."""
    await store.run_group([reserve("a", 3), reserve("b", 3)._replace(account_id="bob", payer_account_id="bob")])
    clock.now_us += 60 * SECOND_US

    results = await store.run_group([reserve("b", 3), reserve("c", 10)])

    assert [word(result) for result in results] == ["IdempotencyMismatch", "ok"]
    await check_promises(database, store)


class Interposed:
    """A database in whose transactions something happens, once, right before a statement is run."""

    def __init__(self, database: Database, statement: str, happens: Callable[[], Awaitable[object]]) -> None:
        self._database = database
        self._statement = statement
        self._happens: Callable[[], Awaitable[object]] | None = happens

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        async with self._database.transaction() as tx:
            rows = tx.rows

            async def rows_later(name: str, /, **parameters: Any) -> list[Row]:
                happens = self._happens
                if name == self._statement and happens is not None:
                    self._happens = None
                    await happens()
                return await rows(name, **parameters)

            tx.rows = rows_later  # type: ignore[method-assign]
            yield tx


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (Commit("batcher", "batcher", "r1", None, False), "ok"),
        (Release("batcher", "batcher", "r1"), "ok"),
        (Amend("batcher", "batcher", "r1", "a1", 1, None), "ok"),
    ],
)
async def test_a_reservation_that_another_replica_makes_while_its_group_is_loaded_is_settled(
    postgres_url: str, command: Command, expected: str
) -> None:
    """Who pays is learnt before the locks; a reservation that appears after it brings its payer's lock with it."""
    async with opened(postgres_url, WALLET) as database:
        async with database.transaction() as tx:
            await journal.open_head(tx, "test", 1)
        other = Store(database, Rules())
        raced = Interposed(database, "load_reservations", lambda: other.run_group([reserve("r1", 3)]))

        results = await Store(raced, Rules()).run_group([command])  # type: ignore[arg-type]

        assert [word(result) for result in results] == [expected]
        await check_promises(database, other)


async def test_a_sweep_that_finds_nothing_due_leaves_the_end_of_the_journal_as_it_is(
    database: Database, store: Store, clock: Clock
) -> None:
    """It only learns that nothing is due; a head that moved without a row would read as damage at the next start."""
    await store.run_group([reserve("r1", 1), Commit("batcher", "batcher", "r1", None, False)])
    clock.now_us += 61 * SECOND_US
    async with database.reading() as tx:
        before = await journal.read_head(tx)

    assert await store.due_accounts(10) == ["alice"]
    await store.run_group([Sweep("alice")])

    assert await store.due_accounts(10) == []
    async with database.reading() as tx:
        assert await journal.read_head(tx) == before
        await journal.check_tail(tx)


async def test_lots_that_the_next_sweep_will_make_are_read_in_their_place(store: Store, clock: Clock) -> None:
    """A grace that ends with an older lot is younger, and so is spent behind it, before the sweep and after it."""
    brief = Store(store._database, Rules(welcome_bonus=0, grace_us=3 * SECOND_US))
    await brief.run_group(
        [
            OpenAccount("boss", "alice"),
            Grant("boss", "alice", "soon", 1, "", 2 * SECOND_US),
            Grant("boss", "alice", "later", 1, "", 5 * SECOND_US),
            reserve("r1", 1)._replace(hold_us=2 * SECOND_US),
        ]
    )
    clock.now_us += 2 * SECOND_US

    unswept = [(lot.grant_id, lot.lot_id > 0) for lot in await brief.lots("alice")]
    await brief.run_group([Sweep("alice")])
    swept = [lot.grant_id for lot in await brief.lots("alice")]

    assert unswept == [("later", True), ("soon", False)]
    assert swept == ["later", "soon"]
