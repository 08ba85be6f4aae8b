"""A watch says something, whatever happens in the journal around its job."""

import asyncio
from types import SimpleNamespace

from services.batcher.grpc_watch import Watches
from services.chassis.auth import Principal
from services.chassis.journal import Row
from services.chassis.watch import Page


class Pages:
    """A subscription that gives these pages."""

    def __init__(self, *pages):
        self._pages = list(pages)

    async def next(self, _timeout_seconds):
        return self._pages.pop(0)


async def test_rows_that_a_watcher_is_not_told_of_still_bring_a_bookmark():
    """A provider that can't be reached fills the journal with tries; the watch must not fall silent over them."""
    row = Row(7, 1, "batch.submitting", "@batcher", "batch-1", 0, "{}", "0" * 64)
    watches = Watches(None, None, "epoch", asyncio.Event())
    job = SimpleNamespace(uid="job-1", batch_id="batch-1")

    messages = watches._follow(Pages(Page([row], 7)), job, Principal("alice", frozenset(), float("inf")))
    first = await anext(messages)
    await messages.aclose()

    assert first.WhichOneof("event") == "bookmark"
    assert first.revision == 7
