"""Takes each batch through its states, from validating to its end, and does its lines on the way.

Every step starts from what the folder says, so a worker that was killed goes on: answers are appended one by one, and a
line that has one is not done again.
"""

import asyncio
import contextlib
import json
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from sandbox.openai_twin.answer import RequestRefused, complete, parse_question
from sandbox.openai_twin.batch import Batch, Json, Status
from sandbox.openai_twin.batch_faults import BatchFaults, missing_file_error
from sandbox.openai_twin.fault_book import FaultBook
from sandbox.openai_twin.faults import Strike
from sandbox.openai_twin.folder import Folder
from sandbox.openai_twin.http_images import HttpImages
from sandbox.openai_twin.input_file import Inspection
from sandbox.openai_twin.line_faults import cut_answer, line_error, refusal
from sandbox.openai_twin.result_files import ResultFiles, count_answers, input_lines, record_of, response_of

_ENDS: Final[dict[Status, Status]] = {
    "finalizing": "completed",
    "cancelling": "cancelled",
    "in_progress": "expired",
}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pace:
    """How long things take, in seconds, and how many lines are done at a time over all batches."""

    validating_seconds: float = 0.0
    finalizing_seconds: float = 0.0
    image_seconds: float = 0.0
    lines_at_once: int = 8
    fetch_timeout_seconds: float = 20.0


class BatchWorker:
    """Runs every batch that has not ended, each in its own task. `on_end` is told of each end before it is saved."""

    def __init__(
        self,
        folder: Folder,
        images: HttpImages,
        pace: Pace,
        book: FaultBook,
        on_end: Callable[[Batch], None],
        seed: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._images = images
        self._pace = pace
        self._faults = BatchFaults(book, folder)
        self._results = ResultFiles(folder, book, seed, clock)
        self._on_end = on_end
        self._clock = clock
        self._free_lines = asyncio.Semaphore(pace.lines_at_once)
        self._cancelled: dict[str, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Goes on with every batch of the folder that has not ended."""
        for batch in self._folder.batches.values():
            if not batch.ended:
                # Counts are saved with each state and answers one by one, so the answers know better.
                count_answers(batch, self._folder.read_answers(batch.id))
                self.add(batch)

    def add(self, batch: Batch) -> None:
        """Starts to work on a batch."""
        self._cancelled[batch.id] = asyncio.Event()
        task = asyncio.create_task(self._run(batch), name=batch.id)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def cancel(self, batch: Batch) -> None:
        """Asks for the end of a batch that is validating or in progress."""
        if batch.status != "cancelling":
            batch.enter("cancelling", self._now())
            self._folder.save_batch(batch)
        self._cancelled[batch.id].set()

    async def idle(self) -> None:
        """Returns when no batch is being worked on."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Stops where it is; the folder knows where to go on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, batch: Batch) -> None:
        try:
            if batch.status == "validating":
                await self._validate(batch)
            if batch.status == "in_progress":
                await self._answer_lines(batch)
            if batch.status == "finalizing":
                await self._dwell(batch, self._pace.finalizing_seconds)
                await self._close(batch)
            elif batch.status == "cancelling":
                await self._close(batch)
        except Exception:
            # The batch stays as it is on disk, and a restart tries again, as with a provider that had an incident.
            _log.exception("batch %s stopped", batch.id)
        finally:
            self._cancelled.pop(batch.id, None)

    async def _dwell(self, batch: Batch, seconds: float) -> None:
        """Stays in a state for a while, unless the batch is cancelled."""
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._cancelled[batch.id].wait(), seconds)

    async def _validate(self, batch: Batch) -> None:
        await self._dwell(batch, self._pace.validating_seconds)
        errors = await self._inspect(batch)
        if batch.status != "validating":
            return
        if errors:
            batch.errors = errors
            batch.enter("failed", self._now())
            self._on_end(batch)
            self._folder.clear_work(batch.id)
        else:
            batch.enter("in_progress", self._now())
        self._folder.save_batch(batch)

    async def _inspect(self, batch: Batch) -> list[Json]:
        """What is wrong with a batch's input; its model and number of lines are noted on the way."""
        try:
            if self._folder.find_file(batch.input_file_id, self._now()) is None:
                raise FileNotFoundError(batch.input_file_id)
            path = self._folder.link_input(batch)
        except FileNotFoundError:
            return [missing_file_error(batch.input_file_id)]
        inspection = await asyncio.to_thread(_inspect_file, path, batch.endpoint)
        batch.model = inspection.model
        batch.total = inspection.lines
        return inspection.errors or self._faults.errors(batch)

    async def _answer_lines(self, batch: Batch) -> None:
        """Answers every line that has no answer yet; ends early when the batch is cancelled or its 24 hours pass."""
        done = {answer["line"] for answer in await asyncio.to_thread(self._folder.read_answers, batch.id)}
        run = self._faults.draw(batch, "batch.run")
        self._faults.note_run(batch, run)
        cancelled = self._cancelled[batch.id]
        begun = len(done)
        with self._folder.open_answers(batch.id) as answers:
            async with asyncio.TaskGroup() as group:
                for number, raw in input_lines(self._folder.link_input(batch)):
                    if number in done:
                        continue
                    await self._faults.stall(batch, run, begun, cancelled)
                    await self._free_lines.acquire()
                    if batch.status != "in_progress" or self._is_over(batch) or self._faults.ending(run, begun):
                        self._free_lines.release()
                        break
                    begun += 1
                    group.create_task(self._answer_line(batch, number, raw, answers, run))
            await self._faults.stall(batch, run, None, cancelled)
        await self._end_lines(batch, run)

    async def _end_lines(self, batch: Batch, run: list[Strike]) -> None:
        """Moves a batch on whose lines are answered as far as they will be."""
        if batch.status != "in_progress":
            return
        if self._faults.end_early(batch, run, self._now()):
            self._folder.save_batch(batch)
            if batch.status == "in_progress":
                await self._close(batch)
        elif batch.completed + batch.failed == batch.total:
            batch.enter("finalizing", self._now())
            self._folder.save_batch(batch)
        else:
            await self._close(batch)

    def _is_over(self, batch: Batch) -> bool:
        """Whether the window of a batch has passed."""
        return self._clock() >= batch.expires_at

    async def _answer_line(self, batch: Batch, number: int, raw: bytes, answers: BinaryIO, run: list[Strike]) -> None:
        try:
            line = json.loads(raw)
            custom_id = line["custom_id"]
            strike = self._faults.draw_line(batch, custom_id, run)
            error = line_error(strike) if strike else None
            status, body = (0, {}) if error else await self._respond(line["body"], strike)
        finally:
            self._free_lines.release()
        record = record_of(custom_id, None if error else response_of(status, body), error)
        answers.write(json.dumps({"line": number, "ok": status == 200, "record": record}).encode() + b"\n")
        answers.flush()
        if status == 200:
            batch.completed += 1
        else:
            batch.failed += 1

    async def _respond(self, body: Json, strike: Strike | None) -> tuple[int, Json]:
        try:
            if strike and (struck := refusal(strike, body["model"])):
                raise struck
            completion = await self.respond(body)
        except RequestRefused as refused:
            return refused.status, refused.body
        if strike and strike.name == "answer_cut":
            cut_answer(completion, strike.parameters["finish_reason"])
        return 200, completion

    async def respond(self, body: object) -> Json:
        """The completion for a chat request; raises RequestRefused."""
        question = parse_question(body)
        if self._pace.image_seconds and question.images:
            await asyncio.sleep(self._pace.image_seconds * len(question.images))
        seen = [await self._images.look(part.url) for part in question.images]
        return complete(question, seen, f"chatcmpl-{uuid.uuid4().hex}", self._now())

    async def _close(self, batch: Batch) -> None:
        """Writes the result files and ends the batch."""
        status: Status = _ENDS[batch.status]
        strikes = self._faults.draw(batch, "batch.finish")
        await self._faults.hold_results(batch, strikes)
        await self._results.write(batch, status, strikes)
        batch.enter(status, self._now())
        self._on_end(batch)
        self._folder.save_batch(batch)
        self._folder.clear_work(batch.id)

    def _now(self) -> int:
        return int(self._clock())


def _inspect_file(path: Path, endpoint: str) -> Inspection:
    inspection = Inspection(endpoint)
    for number, raw in input_lines(path):
        inspection.take(number, raw)
    inspection.finish()
    return inspection
