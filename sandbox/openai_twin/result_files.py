"""Writes the output and the error file of a batch that ends, with what faults make of them."""

import asyncio
import json
import random
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from sandbox.openai_twin.batch import Batch, Json, Status
from sandbox.openai_twin.fault_book import FaultBook
from sandbox.openai_twin.faults import Strike
from sandbox.openai_twin.folder import Folder
from sandbox.openai_twin.line_faults import OPAQUE
from sandbox.openai_twin.result_faults import Results, spoil

OUTPUT_FILE_SECONDS: Final = 30 * 24 * 3600


class ResultFiles:
    """Writes for every batch of one folder. seed: decides the order of lines."""

    def __init__(self, folder: Folder, book: FaultBook, seed: int, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._book = book
        self._seed = seed
        self._clock = clock

    async def write(self, batch: Batch, status: Status, strikes: Sequence[Strike]) -> None:
        """Sets a batch's file ids, counts and usage; `status` is the one that it will end in."""
        answers = await asyncio.to_thread(self._all_answers, batch, status)
        results = Results(
            [each["record"] for each in answers if each["ok"]], [each["record"] for each in answers if not each["ok"]]
        )
        for strike in strikes:
            if spoil(results, strike):
                self._book.note(strike, (batch.id,))
        batch.output_file_id = await self._write_file(batch, "output", results)
        batch.error_file_id = await self._write_file(batch, "error", results)
        for strike in strikes:
            if self._take_file(batch, strike):
                self._book.note(strike, (batch.id,))

    def _take_file(self, batch: Batch, strike: Strike) -> bool:
        """Lets a fault strike the file ids; False when there is nothing that it could strike."""
        if strike.name == "file_id_empty":
            struck = None in (batch.output_file_id, batch.error_file_id)
            batch.output_file_id = batch.output_file_id or ""
            batch.error_file_id = batch.error_file_id or ""
            return struck
        if strike.name not in ("file_id_null", "result_file_gone"):
            return False
        name = f"{strike.parameters['file']}_file_id"
        file_id = getattr(batch, name)
        if not file_id:
            return False
        self._folder.delete_file(file_id)
        if strike.name == "file_id_null":
            setattr(batch, name, None)
        return True

    def _all_answers(self, batch: Batch, status: Status) -> list[Json]:
        """One answer for every line, in an order that only the seed knows; counts and usage are noted on the way."""
        answers = self._folder.read_answers(batch.id)
        count_answers(batch, answers)
        batch.usage = _usage(answer["record"] for answer in answers if answer["ok"])
        if status != "completed" and "in_progress_at" in batch.reached:
            answers += self._unfinished(batch, status, {answer["line"] for answer in answers})
        answers.sort(key=lambda answer: int(answer["line"]))
        random.Random(self._seed).shuffle(answers)  # noqa: S311 - an order, not a secret
        return answers

    def _unfinished(self, batch: Batch, status: Status, done: set[int]) -> Iterator[Json]:
        """The error lines of what an expired or cancelled batch did not come to."""
        end = "the completion window expired" if status == "expired" else "the batch was cancelled"
        error: Json | None = {"code": f"batch_{status}", "message": f"This request could not be executed before {end}."}
        response = None
        if any(Strike(*each).name == "ends_expired_opaquely" for each in batch.strikes.get("batch.run", [])):
            opaque = {"message": OPAQUE, "type": "server_error", "param": None, "code": "server_error"}
            error, response = None, response_of(500, {"error": opaque})
        for number, raw in input_lines(self._folder.link_input(batch)):
            if number not in done:
                record = record_of(json.loads(raw)["custom_id"], response, error)
                yield {"line": number, "ok": False, "record": record}

    async def _write_file(self, batch: Batch, kind: str, results: Results) -> str | None:
        """A result file of one kind, or None if there is nothing to write into it."""
        if not getattr(results, kind):
            return None
        # Opened and closed in the thread, which goes on when the twin is stopped in the middle of a write.
        upload = await asyncio.to_thread(_write_lines, self._folder, results, kind)
        now = int(self._clock())
        return self._folder.keep_upload(
            upload,
            filename=f"{batch.id}_{kind}.jsonl",
            purpose="batch_output",
            created_at=now,
            expires_at=now + (batch.output_file_seconds or OUTPUT_FILE_SECONDS),
        ).id


def record_of(custom_id: str, response: Json | None, error: Json | None) -> Json:
    """A line of a result file."""
    return {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": custom_id, "response": response, "error": error}


def response_of(status: int, body: Json) -> Json:
    """The response of a line that got one."""
    return {"status_code": status, "request_id": f"req_{uuid.uuid4().hex}", "body": body}


def input_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of an input file that are not blank, counted from 1."""
    with path.open("rb") as content:
        yield from ((number, raw) for number, raw in enumerate(content, 1) if raw.strip())


def count_answers(batch: Batch, answers: list[Json]) -> None:
    """Sets a batch's counts by its answers."""
    batch.completed = sum(answer["ok"] for answer in answers)
    batch.failed = len(answers) - batch.completed


def _write_lines(folder: Folder, results: Results, kind: str) -> BinaryIO:
    with folder.open_upload() as upload:
        upload.writelines(line + b"\n" for line in results.lines(kind))
    return upload


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
