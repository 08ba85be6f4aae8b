"""What faults do on a batch's way through its states: which draw belongs to it, what fails it, what ends it early."""

import asyncio
from typing import Final

from sandbox.openai_twin.batch import Batch, Json
from sandbox.openai_twin.fault_book import FaultBook
from sandbox.openai_twin.fault_kinds import KINDS
from sandbox.openai_twin.faults import Strike
from sandbox.openai_twin.folder import Folder
from sandbox.openai_twin.input_file import batch_error

_ENDINGS: Final = ("ends_expired", "ends_expired_opaquely", "ends_cancelled")


class BatchFaults:
    """Draws and plays for the batches of one folder. What was drawn for a batch is kept with it over restarts."""

    def __init__(self, book: FaultBook, folder: Folder) -> None:
        self._book = book
        self._folder = folder

    def draw(self, batch: Batch, operation: str) -> list[Strike]:
        """What strikes a batch at an operation."""
        if operation not in batch.strikes:
            drawn = self._book.draw(operation, model=batch.model, objects=(batch.id, batch.input_file_id))
            batch.strikes[operation] = [list(strike) for strike in drawn]
            if drawn:
                self._folder.save_batch(batch)
        return [Strike(*each) for each in batch.strikes[operation]]

    def errors(self, batch: Batch) -> list[Json]:
        """What fails a batch whose input was good."""
        errors: list[Json] = []
        for strike in self.draw(batch, "batch.validate"):
            found = self._errors_of(batch, strike)
            if found:
                self._book.note(strike, (batch.id,))
            errors += found
        return errors

    def _errors_of(self, batch: Batch, strike: Strike) -> list[Json]:
        given = strike.parameters
        match strike.name:
            case "input_file_lost":
                return [missing_file_error(batch.input_file_id)]
            case "validation_failed":
                lines = given["lines"] or [None]
                return [batch_error(given["code"], given["message"], param=given["param"], line=each) for each in lines]
            case "enqueued_limit" if self._enqueued_lines(batch) * given["line_tokens"] <= given["tokens_max"]:
                return []
        message = (
            f"Enqueued token limit reached for {batch.model} in organization org-twin. Limit: "
            f"{given.get('tokens_max', 90_000):,} enqueued tokens. "
            "Please try again once some in_progress batches have been completed."
        )
        return [batch_error("token_limit_exceeded", message)]

    def _enqueued_lines(self, batch: Batch) -> int:
        """The lines of a batch and of all of its model that are past their validation and have not ended."""
        others = (
            each
            for each in self._folder.batches.values()
            if each.model == batch.model and each.id != batch.id and not each.ended and each.status != "validating"
        )
        return batch.total + sum(each.total for each in others)

    async def stall(self, batch: Batch, strikes: list[Strike], begun: int | None, cancelled: asyncio.Event) -> None:
        """Stays where it is when a fault says so after `begun` lines, None for all, at most until `cancelled`."""
        for strike in [each for each in strikes if each.name == "stalls"]:
            if begun is not None and begun < strike.parameters["after_lines"]:
                continue
            strikes.remove(strike)
            self._book.note(strike, (batch.id,))
            waits = {asyncio.create_task(self._book.hold(strike)), asyncio.create_task(cancelled.wait())}
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()

    def ending(self, strikes: list[Strike], begun: int) -> Strike | None:
        """The fault that ends a batch after `begun` lines."""
        return next(
            (each for each in strikes if each.name in _ENDINGS and begun >= each.parameters["after_lines"]), None
        )

    def end_early(self, batch: Batch, strikes: list[Strike], now: int) -> bool:
        """Ends a batch in progress that has lines left, if a fault says so; it is left as it is to expire."""
        strike = self.ending(strikes, batch.completed + batch.failed)
        if strike is None or batch.completed + batch.failed >= batch.total:
            return False
        self._book.note(strike, (batch.id,))
        if strike.name == "ends_cancelled":
            batch.enter("cancelling", now)
        return True

    def draw_line(self, batch: Batch, custom_id: str, run: list[Strike]) -> Strike | None:
        """What strikes a line."""
        for strike in run:
            if strike.name == "all_lines_failed":
                name = strike.parameters["line"]
                return Strike(strike.fault_id, name, "batch.line", dict(KINDS[name].parameters))
        drawn = self._book.draw("batch.line", model=batch.model, objects=(batch.id, custom_id))
        for strike in drawn:
            self._book.note(strike, (batch.id, custom_id))
        return drawn[0] if drawn else None

    def note_run(self, batch: Batch, run: list[Strike]) -> None:
        """Writes down, once for a batch, that all of its lines fail."""
        for strike in run:
            if strike.name == "all_lines_failed":
                self._book.note(strike, (batch.id,))

    async def hold_results(self, batch: Batch, strikes: list[Strike]) -> None:
        """Holds the result files back."""
        for strike in strikes:
            if strike.name == "slow_finalizing":
                self._book.note(strike, (batch.id,))
                await self._book.hold(strike)


def missing_file_error(file_id: str) -> Json:
    """What fails a batch whose input file is not there."""
    message = f"Cannot find file {file_id}, or the organization does not have access to it."
    return batch_error("invalid_file_id", message, param="input_file_id")
