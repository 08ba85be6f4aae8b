"""Many commands, one transaction: while a group runs, the next one gathers.

A durable transaction costs a flush to disk whatever it holds, so the rate of single commands is bound by the disk, and
that of commands in groups by the processor. Nobody is answered before the group's transaction is durable.

    submit ──► queue ──► group (≤ group_commands_max) ──► run_group ──► answers
                                                            │ Conflict, StoreUnavailable: the whole group again, bounded
                                                            └ anything else: in halves, until the culprit fails alone
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, NamedTuple, TypeVar

from services.chassis.database import Conflict
from services.chassis.errors import ServerBusy, ServerDraining, StoreUnavailable

GROUP_COMMANDS_MAX: Final = 1_000
QUEUE_COMMANDS_MAX: Final = 20_000
GATHER_SECONDS: Final = 0.002
GATHER_COMMANDS: Final = 64
QUIET_PASSES: Final = 10
"""Passes of the event loop without a new command after which nobody is expected: a call takes several to come in."""
ATTEMPTS_MAX: Final = 5
BACKOFF_SECONDS: Final = 0.01
BACKOFF_SECONDS_MAX: Final = 1.0

C = TypeVar("C")
R = TypeVar("R")


class _Entry(NamedTuple, Generic[C, R]):
    commands: Sequence[C]
    answer: asyncio.Future[list[R | Exception]]


class GroupCommitter(Generic[C, R]):
    """Runs commands in groups, in the order in which they came.

    `run_group` runs ONE transaction and returns a result or an exception for each command. It may be called again with
    commands that have already run, because the outcome of a transaction can be unknown: commands must be idempotent.
    """

    def __init__(
        self,
        run_group: Callable[[list[C]], Awaitable[Sequence[R | Exception]]],
        *,
        group_commands_max: int = GROUP_COMMANDS_MAX,
        queue_commands_max: int = QUEUE_COMMANDS_MAX,
        attempts_max: int = ATTEMPTS_MAX,
        gather_seconds: float = GATHER_SECONDS,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._run_group = run_group
        self._group_commands_max = group_commands_max
        self._queue_commands_max = queue_commands_max
        self._attempts_max = attempts_max
        self._gather_seconds = gather_seconds
        self._sleep = sleep
        self._jitter = jitter
        self._queue: deque[_Entry[C, R]] = deque()
        self._queued_commands = 0
        self._last_entries = 0
        self._gathered = asyncio.Event()
        self._closing = False
        self._runner: asyncio.Task[None] | None = None

    @property
    def queued_commands(self) -> int:
        """How many commands wait for a group; for a gauge."""
        return self._queued_commands

    def start(self) -> None:
        """Starts to run groups; needs a running event loop."""
        self._runner = asyncio.create_task(self._run(), name="group_commit")

    async def close(self) -> None:
        """Refuses new commands, runs those that wait, and stops."""
        self._closing = True
        self._gathered.set()
        if self._runner is not None:
            await self._runner

    async def submit(self, command: C) -> R:
        """Returns the command's result once it is durable, or raises its exception; ServerBusy when the queue is full.

        A caller that is cancelled while its command waits takes it back; once its group runs, it runs to the end.
        """
        (result,) = await self._answer([command])
        if isinstance(result, Exception):
            raise result
        return result

    async def submit_many(self, commands: Sequence[C]) -> list[R | Exception]:
        """Results in order, one per command, all from one group; ServerBusy when they don't all fit into the queue."""
        return await self._answer(commands) if commands else []

    def _answer(self, commands: Sequence[C]) -> asyncio.Future[list[R | Exception]]:
        if self._runner is not None and self._runner.done() and not self._closing:
            raise StoreUnavailable("the group committer has stopped")
        if self._closing:
            raise ServerDraining
        if self._queued_commands + len(commands) > self._queue_commands_max:
            raise ServerBusy(self._queue_commands_max)
        answer: asyncio.Future[list[R | Exception]] = asyncio.get_running_loop().create_future()
        self._queue.append(_Entry(commands, answer))
        self._queued_commands += len(commands)
        self._gathered.set()
        return answer

    async def _run(self) -> None:
        group: list[_Entry[C, R]] = []
        try:
            while self._queue or not self._closing:
                await self._gathered.wait()
                await self._gather()
                group = self._next_group()
                if group:
                    await self._run_entries(group)
        finally:
            # Only a cancelled or broken runner leaves anybody here: better a refusal than a wait without end.
            for entry in (*group, *self._queue):
                if not entry.answer.done():
                    entry.answer.set_exception(StoreUnavailable("the group committer has stopped"))

    async def _gather(self) -> None:
        """Lets the loop do what it has ready, as long as that brings commands: each group has a price of its own.

        A lone caller waits for nobody: there is a pause only when the last group was of several entries, or this is.
        """
        quiet_passes = QUIET_PASSES if self._last_entries > 1 or len(self._queue) > 1 else 0
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._gather_seconds
        while quiet_passes and self._queued_commands < GATHER_COMMANDS and loop.time() < give_up_at:
            before = self._queued_commands
            await asyncio.sleep(0)
            quiet_passes = QUIET_PASSES if self._queued_commands > before else quiet_passes - 1

    def _next_group(self) -> list[_Entry[C, R]]:
        """Entries up to the maximum, never a part of one; a larger entry is a group of its own."""
        group: list[_Entry[C, R]] = []
        count = 0
        while self._queue and (not group or count + len(self._queue[0].commands) <= self._group_commands_max):
            entry = self._queue.popleft()
            self._queued_commands -= len(entry.commands)
            if not entry.answer.done():
                group.append(entry)
                count += len(entry.commands)
        if not self._queue and not self._closing:
            self._gathered.clear()
        self._last_entries = len(group)
        return group

    async def _run_entries(self, entries: list[_Entry[C, R]]) -> None:
        results = await self._results([command for entry in entries for command in entry.commands])
        start = 0
        for commands, answer in entries:
            end = start + len(commands)
            if not answer.done():
                answer.set_result(results[start:end])
            start = end

    async def _results(self, commands: list[C]) -> list[R | Exception]:
        """Runs commands together, or what can be run of them: one result or exception for each."""
        try:
            return await self._run_with_retries(commands)
        except Exception as error:
            # Whatever it is, it belongs to whoever sent the culprit. A lost database is nobody's fault.
            lost = isinstance(error, StoreUnavailable) and not isinstance(error, Conflict)
            if lost or len(commands) == 1:
                return [error] * len(commands)
        middle = len(commands) // 2
        return [*await self._results(commands[:middle]), *await self._results(commands[middle:])]

    async def _undisturbed(self, commands: list[C]) -> Sequence[R | Exception]:
        """Runs a group; a cancellation of something underneath, which nobody asked us for, does not end the runner."""
        try:
            return await self._run_group(commands)
        except asyncio.CancelledError as error:
            if self._runner is None or self._runner.cancelling():
                raise
            raise StoreUnavailable("a task underneath was cancelled") from error

    async def _run_with_retries(self, commands: list[C]) -> list[R | Exception]:
        attempt = 1
        while True:
            try:
                results = list(await self._undisturbed(commands))
            except StoreUnavailable:
                if attempt >= self._attempts_max:
                    raise
                pause = min(BACKOFF_SECONDS * 4 ** (attempt - 1), BACKOFF_SECONDS_MAX)
                await self._sleep(pause * (0.5 + self._jitter() / 2))
                attempt += 1
                continue
            if len(results) != len(commands):
                raise RuntimeError(f"a group of {len(commands)} commands gave {len(results)} results")
            return results
