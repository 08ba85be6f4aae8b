"""Tells a webhook's receiver of each batch that ended, until it says 2xx or the tries are used up; faults included.

    webhooks.json     the receiver
    webhooks.jsonl    every delivery that was tried, with what came of it

A batch whose end was not told when the twin was killed is told after the restart.
"""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import aiohttp

from sandbox.openai_twin.batch import Batch, Json
from sandbox.openai_twin.fault_book import FaultBook
from sandbox.openai_twin.faults import Strike
from sandbox.openai_twin.folder import Folder
from sandbox.openai_twin.webhook import Event, Target, event_of, headers_of

SEND_TIMEOUT_SECONDS: Final = 10.0
WRONG_SECRET: Final = "whsec_bm90IHRoZSBzZWNyZXQgdGhhdCB5b3Uga25vdw=="  # noqa: S105 - wrong on purpose


class WebhookSender:
    """Sends for one twin. `target` is who is told, None for nobody."""

    def __init__(
        self,
        path: Path,
        folder: Folder,
        book: FaultBook,
        target: Target | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._target_path = path / "webhooks.json"
        self._deliveries_path = path / "webhooks.jsonl"
        self._folder = folder
        self._book = book
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._sent = asyncio.Event()
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SEND_TIMEOUT_SECONDS))
        self.target = target or self._kept_target()

    def start(self) -> None:
        """Goes on with what was not told yet."""
        for batch in self._folder.batches.values():
            if batch.untold:
                self._start(batch)

    def aim(self, target: Target | None) -> None:
        """Tells somebody else from now on, or nobody."""
        self.target = target
        self._target_path.touch(mode=0o600)
        self._target_path.write_text(json.dumps(target and target._asdict()))

    def tell(self, batch: Batch) -> None:
        """Sends the event of a batch that has just ended, if there is somebody to tell; the caller saves the batch."""
        if self.target is not None:
            batch.untold = True
            self._start(batch)

    def deliveries(self) -> list[Json]:
        """Every delivery that was tried, the oldest first."""
        if not self._deliveries_path.exists():
            return []
        content = self._deliveries_path.read_text()
        return [json.loads(line) for line in content[: content.rfind("\n") + 1].splitlines()]

    async def close(self) -> None:
        """Stops where it is."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()

    def _kept_target(self) -> Target | None:
        if not self._target_path.exists():
            return None
        kept = json.loads(self._target_path.read_text())
        return None if kept is None else Target.read(kept)

    def _start(self, batch: Batch) -> None:
        task = asyncio.create_task(self._deliver(batch), name=f"webhook of {batch.id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, batch: Batch) -> None:
        tries = 0
        while (target := self.target) is not None and tries < target.attempts_max:
            tries += 1
            strikes = self._book.draw("webhook.send", objects=(batch.id,))
            if await self._try(batch, target, strikes[0] if strikes else None):
                break
            await asyncio.sleep(target.wait_seconds(tries))
        batch.untold = False
        self._folder.save_batch(batch)

    async def _try(self, batch: Batch, target: Target, strike: Strike | None) -> bool:
        """Whether a try, with what a fault makes of it, needs no other."""
        event, secret, age_seconds, copies = event_of(batch), target.secret, 0.0, 1
        if strike is not None:
            self._book.note(strike, (batch.id,))
        match strike:
            case Strike(name="webhook_lost"):
                return True
            case Strike(name="webhook_late"):
                await self._book.hold(strike)
            case Strike(name="webhook_reordered"):
                await self._wait_for_another(strike)
            case Strike(name="webhook_missigned"):
                secret = WRONG_SECRET
            case Strike(name="webhook_stale"):
                age_seconds = strike.parameters["age_seconds"]
            case Strike(name="webhook_duplicated"):
                copies += strike.parameters["copies"]
        headers = headers_of(event, secret, self._clock() - age_seconds)
        sent = [await self._post(target.url, batch, event, headers) for _ in range(copies)]
        return any(sent)

    async def _wait_for_another(self, strike: Strike) -> None:
        waits = {asyncio.create_task(self._book.hold(strike)), asyncio.create_task(self._sent.wait())}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _post(self, url: str, batch: Batch, event: Event, headers: dict[str, str]) -> bool:
        """Whether a receiver said 2xx; a redirect is not followed and is a failure."""
        outcome: int | str
        try:
            async with self._session.post(url, data=event.body, headers=headers, allow_redirects=False) as answer:
                outcome = answer.status
        except (aiohttp.ClientError, TimeoutError) as error:
            outcome = type(error).__name__
        record = {"sent_at": self._clock(), "id": event.id, "type": event.type, "batch": batch.id, "outcome": outcome}
        with self._deliveries_path.open("a") as deliveries:
            deliveries.write(json.dumps(record) + "\n")
        self._sent.set()
        self._sent = asyncio.Event()
        return isinstance(outcome, int) and 200 <= outcome < 300
