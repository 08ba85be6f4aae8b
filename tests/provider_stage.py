"""A batcher whose provider fails as a test says, beside a real wallet and a real S3, and the audit of all of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from punchcard.batcher.v1 import batcher_pb2
from sandbox.openai_twin.batch_worker import Pace
from services.batcher import wiring
from tests.acceptance.money import BATCHER_TABLES, WALLET_TABLES, Evidence, _is_spared, _tables, problems
from tests.batchers import KEY, BatcherClient, Sandbox, picture, request_of, sandbox_in, until

SUCCEEDED: Final = batcher_pb2.JOB_STATE_SUCCEEDED
FAILED: Final = batcher_pb2.JOB_STATE_FAILED
CANCELLED: Final = batcher_pb2.JOB_STATE_CANCELLED
RUNNING: Final = batcher_pb2.JOB_STATE_RUNNING
QUEUED: Final = batcher_pb2.JOB_STATE_QUEUED
SETTLED: Final = batcher_pb2.SETTLEMENT_STATE_SETTLED
COLOURS: Final = {"red": (200, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 200), "yellow": (230, 220, 30)}
PATIENT: Final = {"cycle_seconds": 0.3, "poll_seconds": 0.05, "submit_retry_seconds": 0.1, "breaker_seconds": 0.05}
QUICK_SECONDS: Final = 0.05


class Stage:
    """A sandbox, the client of the batcher that runs on it, and the faults of its provider."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.provider = sandbox.provider
        self.client: BatcherClient
        self._asked: list[str] = []

    @asynccontextmanager
    async def batcher(self, jobs: int = 3, **changes: Any) -> AsyncIterator[BatcherClient]:
        """A batcher that sends so many waiting jobs as a batch at once, and fewer with the next cycle."""
        async with self.sandbox.batcher(**{**PATIENT, "batch_jobs": jobs, **changes}) as self.client:
            yield self.client

    @asynccontextmanager
    async def process(self, jobs: int = 3, **changes: Any) -> AsyncIterator[Any]:
        """The same in a process that a test may kill; gives it."""
        async with self.sandbox.process(**{**PATIENT, "batch_jobs": jobs, **changes}) as (self.client, process):
            yield process

    def strike(self, name: str, *, times: int | None = 1, must: bool = True, **more: Any) -> str:
        """Adds a fault to the provider's script; gives its id. must: the audit holds it against us if it never struck.

        The parameters of the fault are given as `parameters`.
        """
        if must:
            self._asked.append(name)
        return str(self.provider.twin._book.add({"name": name, "count": times, **more}).id)

    def storm(self, seed: int, rate: float) -> None:
        """Faults at random from now on."""
        self.provider.twin._book.replace({"storm": {"seed": seed, "rate": rate}})

    def mend(self, fault_id: str | None = None) -> None:
        """Takes a fault away, or all; what it holds back goes on."""
        if fault_id is None:
            self.provider.twin._book.replace({})
        else:
            assert self.provider.twin._book.remove(fault_id)

    def struck(self) -> Counter[str]:
        """How often each fault has struck."""
        return Counter(strike["name"] for strike in self.provider.twin._book.strikes())

    async def has_struck(self, name: str, times: int = 1) -> None:
        """Returns once a fault has struck so often."""

        async def often() -> bool:
            return self.struck()[name] >= times

        await until(often)

    def calls(self, call: str) -> int:
        """How often the provider was asked for something, such as `POST /v1/batches`."""
        return self.provider.requests.count(call)

    def lines_bought(self) -> list[int]:
        """How many lines each batch that was created has, oldest first."""
        return [batch.total for batch in self.provider.bought()]

    async def submit(self, *colours: str, again: str = "", **fields: Any) -> None:
        """Submits a job about a picture of each colour, under the colour's name, all in one call.

        again: what goes before the names, where these were used before.
        """
        requests = []
        for colour in colours:
            image = (await self.client.upload(picture(COLOURS[colour]))).image
            requests.append(request_of(again + colour, image.image_id, **fields))
        answer = await self.client.call("SubmitJobs", batcher_pb2.SubmitJobsRequest(items=requests))
        assert not [result for result in answer.results if result.HasField("refusal")], answer

    async def ended(self, *job_ids: str) -> dict[str, Any]:
        """The jobs once they are settled."""
        return dict(zip(job_ids, await asyncio.gather(*map(self.client.ended, job_ids)), strict=True))

    async def answered(self, *colours: str, **fields: Any) -> dict[str, Any]:
        """Submits jobs, and gives them once they are settled."""
        await self.submit(*colours, **fields)
        return await self.ended(*colours)

    async def waits(self, job_id: str, reason: str) -> str:
        """Returns once the job says that it waits for this; gives all that it says."""
        said = ""

        async def says() -> bool:
            nonlocal said
            said = (await self.client.get(job_id)).waiting_for
            return reason in said

        try:
            await until(says)
        except TimeoutError as error:
            raise AssertionError(f"{job_id} waits for {said!r} and not for {reason!r}") from error
        return said

    async def reaches(self, job_id: str, state: int) -> Any:
        """The job once it is in a state."""
        job: Any = None

        async def is_there() -> bool:
            nonlocal job
            job = await self.client.get(job_id)
            return bool(job.state == state)

        await until(is_there)
        return job

    async def books(self) -> dict[str, Any]:
        """The provider's books."""
        url = self.provider.url.removesuffix("/v1") + "/twin/books"
        headers = {"Authorization": f"Bearer {KEY}"}
        async with aiohttp.ClientSession(headers=headers) as session, session.get(url) as answer:
            read: dict[str, Any] = await answer.json()
            return read

    async def evidence(self) -> Evidence:
        """What both services and the provider have written down."""
        batcher = await _tables(self.sandbox.settings["database_url"], BATCHER_TABLES)
        wallet = await _tables(f"sqlite:{self.sandbox.folder}/wallet.db", WALLET_TABLES)
        return Evidence(wallet, batcher, await self.books())

    async def audit(self) -> Evidence:
        """Everything that must be true whatever failed: the sums, one settlement a job, each batch bought once."""
        never = [name for name in self._asked if not self.struck()[name]]
        assert not never, f"never struck: {never}"
        evidence = await self.evidence()
        found = list(problems(evidence))
        assert not found, "\n  ".join(["the audit found:", *found])
        return evidence

    async def comes_to_agree(self) -> None:
        """Returns once nothing is left to be found, but second batches that were cancelled or came to nothing."""
        found: list[str] = []

        async def agrees() -> bool:
            evidence = await self.evidence()
            bought = [row for row in evidence.books["batches"] if not _is_spared(row, evidence)]
            found[:] = problems(replace(evidence, books={**evidence.books, "batches": bought}))
            return not found

        try:
            await until(agrees)
        except TimeoutError as error:
            raise AssertionError("\n  ".join(["the audit found to the end:", *found])) from error


@asynccontextmanager
async def stage_in(folder: Path, monkeypatch: pytest.MonkeyPatch, pace: Pace | None = None) -> AsyncIterator[Stage]:
    """A stage, on which loops that look for work do so often."""
    monkeypatch.setattr(wiring, "QUICK_SECONDS", QUICK_SECONDS)
    async with sandbox_in(folder, pace=pace) as sandbox:
        yield Stage(sandbox)


def states(jobs: dict[str, Any]) -> dict[str, tuple[int, int, int]]:
    """State, attempt and charge of jobs."""
    assert {job.settlement.state for job in jobs.values()} <= {SETTLED}
    return {job_id: (job.state, job.attempt, job.settlement.charged) for job_id, job in jobs.items()}


def all_of(jobs: dict[str, Any], state: int, attempt: int, charged: int) -> bool:
    """Whether all jobs ended alike, each with the answer to its own picture if it has one."""
    assert states(jobs) == dict.fromkeys(jobs, (state, attempt, charged))
    return state != SUCCEEDED or is_own_answer(jobs)


def is_own_answer(jobs: dict[str, Any]) -> bool:
    """Whether each job that was answered has the answer to its own picture."""
    return all(job_id in job.answer.text for job_id, job in jobs.items() if job.state == SUCCEEDED)
