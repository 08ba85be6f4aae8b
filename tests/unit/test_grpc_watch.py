"""A watch says something, whatever happens in the journal around its job."""

import asyncio
import json
from types import SimpleNamespace

from services.batcher.grpc_watch import Watches
from services.chassis.auth import Principal
from services.chassis.journal import Row
from services.chassis.watch import Page
from services.chassis.watch_stream import WatchStreams


class Pages:
    """A subscription that gives these pages."""

    def __init__(self, *pages):
        self._pages = list(pages)

    async def next(self, _timeout_seconds):
        return self._pages.pop(0)

    def add(self, _subject, _revision):
        """A batch whose job is in it now."""

    def remove(self, _subject):
        """A batch whose job has left it."""


async def test_rows_that_a_watcher_is_not_told_of_still_bring_a_bookmark():
    """A provider that can't be reached fills the journal with tries; the watch must not fall silent over them."""
    row = Row(7, 1, "batch.submitting", "@batcher", "batch-1", 0, "{}", "0" * 64)
    watches = Watches(None, None, WatchStreams("epoch", asyncio.Event()))
    job = SimpleNamespace(uid="job-1", batch_id="batch-1")

    messages = watches._follow(Pages(Page([row], 7)), job, Principal("alice", frozenset(), float("inf")))
    first = await anext(messages)
    await messages.aclose()

    assert first.WhichOneof("event") == "bookmark"
    assert first.revision == 7


async def test_a_watcher_never_goes_back_and_is_told_of_no_step_twice():
    """The rows of a batch that is watched late come behind later ones of its job, and some of them a second time."""

    def row(revision, kind, subject, body):
        return Row(revision, 1, kind, "@batcher", subject, 0, json.dumps(body), "0" * 64)

    def progress(revision, completed):
        body = {"state": "RUNNING", "provider_state": "in_progress", "total": 3, "completed": completed, "failed": 0}
        return row(revision, "batch.progress", "batch-1", body)

    started = row(7, "job.started", "job-1", {"state": "RUNNING", "attempt": 1, "batch_id": "batch-1"})
    pages = Pages(
        Page([started], 7), Page([progress(6, 1), progress(8, 2)], 8), Page([progress(6, 1), progress(8, 2)], 8)
    )
    watches = Watches(None, None, WatchStreams("epoch", asyncio.Event()))
    job = SimpleNamespace(uid="job-1", batch_id="")

    messages = watches._follow(pages, job, Principal("alice", frozenset(), float("inf")))
    told = [await anext(messages) for _ in range(4)]
    await messages.aclose()

    assert [(message.WhichOneof("event"), message.revision) for message in told] == [
        ("change", 7),
        ("progress", 7),
        ("progress", 8),
        ("bookmark", 8),
    ]
    assert [message.progress.completed for message in told[1:3]] == [1, 2]
