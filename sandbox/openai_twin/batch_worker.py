"""Takes each batch through its states, from validating to its end, and does its lines on the way.

Every step starts from what the folder says, so a worker that was killed goes on: answers are appended one by one, and a
line that has one is not done again.
"""

import asyncio
import contextlib
import json
import logging
import random
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from sandbox.openai_twin.answer import RequestRefused, complete, parse_question
from sandbox.openai_twin.batch import Batch, Json, Status
from sandbox.openai_twin.folder import Folder
from sandbox.openai_twin.http_images import HttpImages
from sandbox.openai_twin.input_file import Inspection, batch_error

OUTPUT_FILE_SECONDS: Final = 30 * 24 * 3600
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
    """Runs every batch that has not ended, each in its own task."""

    def __init__(
        self,
        folder: Folder,
        images: HttpImages,
        pace: Pace,
        seed: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._images = images
        self._pace = pace
        self._seed = seed
        self._clock = clock
        self._free_lines = asyncio.Semaphore(pace.lines_at_once)
        self._cancelled: dict[str, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Goes on with every batch of the folder that has not ended."""
        for batch in self._folder.batches.values():
            if not batch.ended:
                # Counts are saved with each state and answers one by one, so the answers know better.
                _count(batch, self._folder.read_answers(batch.id))
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
            message = f"Cannot find file {batch.input_file_id}, or the organization does not have access to it."
            return [batch_error("invalid_file_id", message, param="input_file_id")]
        inspection = await asyncio.to_thread(_inspect_file, path, batch.endpoint)
        batch.model = inspection.model
        batch.total = inspection.lines
        return inspection.errors

    async def _answer_lines(self, batch: Batch) -> None:
        """Answers every line that has no answer yet; ends early when the batch is cancelled or its 24 hours pass."""
        done = {answer["line"] for answer in await asyncio.to_thread(self._folder.read_answers, batch.id)}
        with self._folder.open_answers(batch.id) as answers:
            async with asyncio.TaskGroup() as group:
                for number, raw in _lines(self._folder.link_input(batch)):
                    if number in done:
                        continue
                    await self._free_lines.acquire()
                    if batch.status != "in_progress" or self._clock() >= batch.expires_at:
                        self._free_lines.release()
                        break
                    group.create_task(self._answer_line(batch, number, raw, answers))
        if batch.status == "in_progress" and batch.completed + batch.failed == batch.total:
            batch.enter("finalizing", self._now())
            self._folder.save_batch(batch)
        elif batch.status == "in_progress":
            await self._close(batch)

    async def _answer_line(self, batch: Batch, number: int, raw: bytes, answers: BinaryIO) -> None:
        try:
            line = json.loads(raw)
            status, body = await self._respond(line["body"])
        finally:
            self._free_lines.release()
        response = {"status_code": status, "request_id": f"req_{uuid.uuid4().hex}", "body": body}
        answer = {"line": number, "ok": status == 200, "record": _record(line["custom_id"], response, None)}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()
        if status == 200:
            batch.completed += 1
        else:
            batch.failed += 1

    async def _respond(self, body: Json) -> tuple[int, Json]:
        try:
            return 200, await self.respond(body)
        except RequestRefused as refused:
            return refused.status, refused.body

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
        answers = await asyncio.to_thread(self._all_answers, batch, status)
        batch.output_file_id = await self._write_file(batch, "output", [each for each in answers if each["ok"]])
        batch.error_file_id = await self._write_file(batch, "error", [each for each in answers if not each["ok"]])
        batch.enter(status, self._now())
        self._folder.save_batch(batch)
        self._folder.clear_work(batch.id)

    def _all_answers(self, batch: Batch, status: Status) -> list[Json]:
        """One answer for every line, in an order that only the seed knows; counts and usage are noted on the way."""
        answers = self._folder.read_answers(batch.id)
        _count(batch, answers)
        batch.usage = _usage(answer["record"] for answer in answers if answer["ok"])
        if status != "completed" and "in_progress_at" in batch.reached:
            answers += self._unfinished(batch, status, {answer["line"] for answer in answers})
        answers.sort(key=lambda answer: int(answer["line"]))
        random.Random(self._seed).shuffle(answers)  # noqa: S311 - an order, not a secret
        return answers

    def _unfinished(self, batch: Batch, status: Status, done: set[int]) -> Iterator[Json]:
        """The error lines of what an expired or cancelled batch did not come to."""
        end = "the completion window expired" if status == "expired" else "the batch was cancelled"
        error = {"code": f"batch_{status}", "message": f"This request could not be executed before {end}."}
        for number, raw in _lines(self._folder.link_input(batch)):
            if number not in done:
                yield {"line": number, "ok": False, "record": _record(json.loads(raw)["custom_id"], None, error)}

    async def _write_file(self, batch: Batch, kind: str, answers: list[Json]) -> str | None:
        """A result file of these answers, or None if there are none."""
        if not answers:
            return None
        # Opened and closed in the thread, which goes on when the twin is stopped in the middle of a write.
        upload = await asyncio.to_thread(_write_lines, self._folder, answers)
        now = self._now()
        return self._folder.keep_upload(
            upload,
            filename=f"{batch.id}_{kind}.jsonl",
            purpose="batch_output",
            created_at=now,
            expires_at=now + (batch.output_file_seconds or OUTPUT_FILE_SECONDS),
        ).id

    def _now(self) -> int:
        return int(self._clock())


def _record(custom_id: str, response: Json | None, error: Json | None) -> Json:
    """A line of a result file."""
    return {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": custom_id, "response": response, "error": error}


def _write_lines(folder: Folder, answers: list[Json]) -> BinaryIO:
    with folder.open_upload() as upload:
        upload.writelines(json.dumps(answer["record"]).encode() + b"\n" for answer in answers)
    return upload


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of an input file that are not blank, counted from 1."""
    with path.open("rb") as content:
        yield from ((number, raw) for number, raw in enumerate(content, 1) if raw.strip())


def _inspect_file(path: Path, endpoint: str) -> Inspection:
    inspection = Inspection(endpoint)
    for number, raw in _lines(path):
        inspection.take(number, raw)
    inspection.finish()
    return inspection


def _count(batch: Batch, answers: list[Json]) -> None:
    batch.completed = sum(answer["ok"] for answer in answers)
    batch.failed = len(answers) - batch.completed


def _usage(records: Iterator[Json]) -> Json:
    """The usage of a batch: the sum over its answered lines."""
    input_tokens = output_tokens = 0
    for record in records:
        usage = record["response"]["body"]["usage"]
        input_tokens += usage["prompt_tokens"]
        output_tokens += usage["completion_tokens"]
    return {
        "input_tokens": input_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": input_tokens + output_tokens,
    }
