"""The wallet's store against a model that was written from the promises: all of them hold after every random step.

`make soak` walks many more histories than the normal run does.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from itertools import zip_longest
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from services.wallet.commands import ChangeAccount, Command, Commit, Grant, OpenAccount, Release, Reserve, Revoke
from tests.fixed_time import SECOND_US, Clock
from tests.wallet_books import Ledger, Ledgers, Tables
from tests.wallet_commands import FURNISHED, GROUPS, KINDS, World
from tests.wallet_model import WalletModel, word
from tests.wallet_promises import PROMISES, Promises, Step

TIMES_AS_LONG = int(os.environ.get("PUNCHCARD_SOAK", "1"))
"""How many times as many histories as in a normal run."""
HISTORIES = {"sqlite": 50 * TIMES_AS_LONG, "postgres": 15 * TIMES_AS_LONG, "both": 8 * TIMES_AS_LONG}
"""Of each about two dozen groups of commands; PostgreSQL takes four times as long for one."""
STEPS = 40
GRACES_US = [3 * SECOND_US, 30 * SECOND_US, 0]
QUICK = settings(
    deadline=None,
    # A normal run draws the same histories each time, so that a red one is the change's doing; a soak draws new ones.
    derandomize=TIMES_AS_LONG == 1,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)


class WalletAgainstModel(Promises, RuleBasedStateMachine):
    """Drives the store and the model with the same commands at the same times."""

    ledgers: Ledgers

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()

    @initialize(data=st.data(), grace_us=st.sampled_from(GRACES_US), furnished=st.sampled_from([True, True, False]))
    def begin(self, data: st.DataObject, grace_us: int, furnished: bool) -> None:
        self.model = WalletModel(10, grace_us)
        self.world = World(self.model)
        self.ledger = self.runner.run(self.stack.enter_async_context(self.ledgers.open(grace_us)))
        self.runner.run(self.look())
        if furnished:
            self.send(data, FURNISHED)

    @rule(data=st.data(), kind=KINDS)
    def one_command(self, data: st.DataObject, kind: str) -> None:
        self.send(data, [kind])

    @rule(data=st.data(), kinds=GROUPS)
    def a_group(self, data: st.DataObject, kinds: list[str]) -> None:
        self.send(data, kinds)

    @rule(seconds=st.sampled_from([1, 2, 3, 7, 20]))
    def time_passes(self, seconds: int) -> None:
        self.pass_time(seconds * SECOND_US)

    @rule(offset_us=st.sampled_from([0, 0, -1, 1]))
    def time_comes_to_the_next_end(self, offset_us: int) -> None:
        now_us = self.ledger.clock.now_us
        end_us = self.model.next_end_us()
        self.pass_time(0 if end_us is None else max(0, end_us + offset_us - now_us))

    @rule(data=st.data(), kinds=st.lists(st.sampled_from(["commit", "release", "amend"]), min_size=1, max_size=3))
    def a_life_ends_under_a_hold(self, data: st.DataObject, kinds: list[str]) -> None:
        self.send(data, ["reserve"])
        self.every_promise_holds()
        ends = self.model.ends_under_holds_us(self.ledger.clock.now_us)
        self.pass_time(min(ends) - self.ledger.clock.now_us if ends else 0)
        self.every_promise_holds()
        self.send(data, kinds)

    def pass_time(self, duration_us: int) -> None:
        self.ledger.clock.now_us += duration_us
        self.model.pass_time(self.ledger.clock.now_us)
        self.last = None
        self.runner.run(self.read())

    def send(self, data: st.DataObject, kinds: list[str]) -> None:
        now_us = self.ledger.clock.now_us
        before, overdue = self.tables, any(self.overdue(row) for row in self.tables["accounts"])
        commands, expected = [], []
        for kind in kinds:
            commands.append(self.world.command(data.draw, kind))
            expected.append(self.model.answer(commands[-1], now_us))
            note(f"    at {now_us}: {commands[-1]}")
        results = self.runner.run(self.ledger.store.run_group(commands))
        self.last = Step(commands, results, expected, now_us, before, overdue)
        self.runner.run(self.look())

    @invariant()
    def every_promise_holds(self) -> None:
        for check in PROMISES:
            check(self)

    def teardown(self) -> None:
        self.runner.run(self.stack.aclose())
        self.runner.close()


@pytest.fixture(params=["sqlite", "postgres"])
def ledgers(request: pytest.FixtureRequest, tmp_path: Path) -> Ledgers:
    """Fresh wallets on each database in turn."""
    server = request.getfixturevalue("postgres_server") if request.param == "postgres" else None
    return asyncio.run(Ledgers.prepared(tmp_path, server))


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    """A fresh wallet on a SQLite file."""
    ledgers = await Ledgers.prepared(tmp_path)
    async with ledgers.open(0) as ledger:
        yield ledger


def test_every_promise_holds_after_every_step(ledgers: Ledgers) -> None:
    """Commands alone and in groups, repeats and refusals, at all times: as the model says, and with nothing amiss."""

    class Machine(WalletAgainstModel):
        pass

    Machine.ledgers = ledgers
    steps = settings(QUICK, max_examples=HISTORIES[ledgers.dialect], stateful_step_count=STEPS)
    run_state_machine_as_test(Machine, settings=steps)


def test_one_history_leaves_the_same_rows_on_both_databases(tmp_path: Path, postgres_server: str) -> None:
    """Every table, row for row, and the journal with its hashes: an operator may move from one to the other."""
    sqlite = asyncio.run(Ledgers.prepared(tmp_path))
    postgres = asyncio.run(Ledgers.prepared(tmp_path, postgres_server))

    @settings(QUICK, max_examples=HISTORIES["both"])
    @given(data=st.data(), groups=st.lists(GROUPS, min_size=5, max_size=20), grace_us=st.sampled_from(GRACES_US))
    def both_are_alike(data: st.DataObject, groups: list[list[str]], grace_us: int) -> None:
        model = WalletModel(10, grace_us)
        world = World(model)
        history: list[tuple[int, list[Command]]] = []
        now_us = Clock().now_us
        for kinds in groups:
            now_us += data.draw(st.sampled_from([0, 1, 2, 5])) * SECOND_US
            history.append((now_us, []))
            for kind in kinds:
                history[-1][1].append(world.command(data.draw, kind))
                model.answer(history[-1][1][-1], now_us)
                note(f"at {now_us}: {history[-1][1][-1]}")
        with asyncio.Runner() as runner:
            left = [runner.run(left_by(ledgers, history, grace_us)) for ledgers in (sqlite, postgres)]
        for name in left[0]:
            for rows in zip_longest(*(tables[name] for tables in left)):
                assert rows[0] == rows[1], name
        assert left[0] == left[1]

    both_are_alike()


async def test_entries_that_touch_several_lots_name_them_in_one_order_on_both_databases(
    tmp_path: Path, postgres_server: str
) -> None:
    """Revocations, lapses, graces and closes of many lots do not depend on the order in which a database gives rows."""
    lots = [Grant("boss", "alice", f"g{number}", 2, "", 9 * SECOND_US, 1 + number % 4) for number in range(16)]
    spent = [
        Reserve("batcher", "alice", "alice", f"r{number}", 3, 99 * SECOND_US, "", "", False) for number in range(8)
    ]
    history: list[tuple[int, list[Command]]] = [
        (1 * SECOND_US, [OpenAccount("boss", "alice"), *lots, *spent]),
        (2 * SECOND_US, [Release("batcher", "batcher", f"r{number}") for number in (7, 2, 5)]),
        (12 * SECOND_US, [Release("batcher", "batcher", f"r{number}", True) for number in (1, 6, 4)]),
        (13 * SECOND_US, [Release("batcher", "batcher", "r0"), Commit("batcher", "batcher", "r3", 1, False)]),
        (14 * SECOND_US, [Revoke("boss", "alice", "boss", f"g{number}", "") for number in range(0, 16, 4)]),
        (15 * SECOND_US, [ChangeAccount("boss", "alice", "c", "close", True, "")]),
    ]

    left = []
    for server in (None, postgres_server):
        folder = tmp_path / str(server is None)
        folder.mkdir()
        left.append(await left_by(await Ledgers.prepared(folder, server), history, 30 * SECOND_US))

    assert [row["kind"] for row in left[0]["journal"]].count("grace") > 1
    assert left[0]["journal"][-1]["kind"] == "close"
    assert left[0] == left[1]


async def left_by(ledgers: Ledgers, history: list[tuple[int, list[Command]]], grace_us: int) -> Tables:
    """All that is stored after groups of commands at their times."""
    async with ledgers.open(grace_us) as ledger:
        for now_us, commands in history:
            ledger.clock.now_us = now_us
            await ledger.store.run_group(commands)
        return await ledger.tables()


async def test_an_account_has_at_most_a_thousand_lots_with_tokens_left(ledger: Ledger) -> None:
    """One more is refused, one without a lot is not, and when a lot is used up or over there is room again."""
    model = WalletModel(10)
    lots: list[Command] = [Grant("boss", "alice", f"g{number}", 1, "", 9 * SECOND_US, None) for number in range(999)]
    one_more = Grant("boss", "alice", "more", 1, "", None, 60)
    groups: list[tuple[int, list[Command]]] = [
        (0, [OpenAccount("boss", "alice"), *lots]),
        (0, [Grant("boss", "alice", "g", 1, "", None, 1), one_more, Grant("boss", "alice", "plain", 1, "")]),
        (0, [Reserve("batcher", "alice", "alice", "r", 1, SECOND_US, "", "", False), one_more]),
        (0, [Commit("batcher", "batcher", "r", None, False), one_more]),
        (9, [one_more._replace(grant_id="another")]),
    ]

    for seconds, commands in groups:
        ledger.clock.now_us += seconds * SECOND_US
        expected = [model.run(command, ledger.clock.now_us) for command in commands]
        assert [word(result) for result in await ledger.store.run_group(commands)] == expected

    words = [model.run(command, 0) for command in (one_more, lots[0])]
    assert words == ["replayed", "replayed"]
