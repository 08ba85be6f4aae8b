"""Compares what we have bought with what the provider says we have, in both directions, and mends what differs.

The list is read from its end to an hour before the last whole reading, or before the oldest submission that was in
doubt in the last 24 hours. `reconciliation` decides about each batch in it. A reading in which something that was
bought could not be taken over is no whole one: it is done again, and nothing is bought before it is.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from services.batcher.batch import LOOK_BACK_US
from services.batcher.bought_lines import bought_lines
from services.batcher.openai_api import OpenAIApi, ProviderBatch, ProviderError, ProviderMissing
from services.batcher.outcome import Action
from services.batcher.purchases import Purchases
from services.batcher.reconciled import Told
from services.batcher.reconciliation import Act, Finding, Listed, judge_batch
from services.batcher.store_reconciliation import Bought, ReconciliationStore, Running, Side
from services.chassis import logs
from services.chassis.leases import Lease

DAY_US = 24 * 3600 * 1_000_000
LIST_LAG_US = 600 * 1_000_000
"""A batch may be missing in the list for so long after its creation."""

_log = logs.get_logger(__name__)


class Reconciler:
    """One holder of the lease at a time reads. `adopted` is called when there is a batch to follow."""

    def __init__(
        self,
        store: ReconciliationStore,
        provider: OpenAIApi,
        purchases: Purchases,
        folder: Path,
        interval_us: int,
        adopted: Callable[[], None],
    ) -> None:
        self._store = store
        self._provider = provider
        self._purchases = purchases
        self._folder = folder
        self._interval_us = interval_us
        self._adopted = adopted
        self._told = Told()

    async def step(self, lease: Lease) -> bool:
        """Reads the provider's list when it is time to, and once after a start. Raises ProviderError."""
        begin_us = await self._store.now_us()
        last = await self._store.last(Side.PROVIDER)
        is_due = begin_us >= last.complete_time_us + self._interval_us or not await self._purchases.is_read(
            Side.PROVIDER
        )
        if not is_due or self._provider.is_down():
            return False
        await self._tell_obstacles()
        doubt_us = await self._store.oldest_doubt_us(begin_us - DAY_US)
        from_us = min(last.begin_time_us or begin_us - DAY_US, doubt_us or begin_us) - LOOK_BACK_US
        uncancelled = await self._read(from_us, begin_us, lease)
        # What could not be cancelled yet is looked for again, and keeps nobody from buying.
        await self._store.complete(Side.PROVIDER, last.begin_time_us if uncancelled else begin_us, lease)
        return False

    async def _read(self, from_us: int, begin_us: int, lease: Lease) -> int:
        """Goes through the list; gives how many batches could not be cancelled."""
        running = await self._store.running(begin_us - LIST_LAG_US)
        unseen = {each.provider_batch_id: each for each in running if each.create_time_us >= from_us + LOOK_BACK_US}
        uncancelled = 0
        trouble: ProviderError | None = None
        async for page in self._provider.pages_since(from_us // 1_000_000):
            for batch in page:
                unseen.pop(batch.id, None)
            for batch in await self._astray(page):
                try:
                    uncancelled += not await self._mend(batch, lease)
                except ProviderError as error:
                    trouble = trouble or error
        for missing in unseen.values():
            await self._look_for(missing)
        if trouble is not None:
            raise trouble
        return uncancelled

    async def _astray(self, page: Sequence[ProviderBatch]) -> list[ProviderBatch]:
        """The batches of a page about which something is to be done. Our books are read after the page, so that a
        batch that was bought a moment ago is in them.
        """
        ours = await self._store.ours([_listed(batch) for batch in page])
        deployment_id = self._provider.deployment_id
        return [
            batch
            for batch, listed in ((batch, _listed(batch)) for batch in page)
            if judge_batch(
                listed, deployment_id, ours.submissions.get(listed.intent_id), ours.batches.get(listed.batch_id)
            ).finding
        ]

    async def _mend(self, batch: ProviderBatch, lease: Lease) -> bool:
        """Does what is to be done about one batch, as things stand now; False where it is to be done again later."""
        listed = _listed(batch)
        ours = await self._store.ours([listed])
        submission, known = ours.submissions.get(listed.intent_id), ours.batches.get(listed.batch_id)
        act, finding = judge_batch(listed, self._provider.deployment_id, submission, known)
        if finding is None:
            return True
        if act is Act.CANCEL:
            return await self._cancel(batch, finding)
        identity = submission.provider_identity if submission else self._provider.provider_identity()
        lines = await bought_lines(self._provider, batch, self._folder) if act is Act.REBUILD else ()
        taken = await self._store.take_over(Bought(listed, batch.input_file_id, identity, lines), lease)
        if taken is not None:
            self._told.tell(finding, batch.id, batch=taken.batch_id, jobs=taken.jobs)
            self._adopted()
        elif act is Act.REBUILD:
            self._told.tell(Finding.UNKNOWN_BATCH, batch.id, batch=listed.batch_id, lines=len(lines))
        return True

    async def _cancel(self, batch: ProviderBatch, finding: Finding) -> bool:
        """Ends a batch that was bought beside another; its answers reach no job, and nobody pays for them."""
        self._told.tell(finding, batch.id, batch=batch.metadata.get("batch_id"))
        try:
            await self._provider.cancel(batch.id)
        except ProviderError as error:
            if error.row.action is not Action.DROP:
                _log.warning("batch_not_cancelled", provider_batch=batch.id, error=str(error))
                return False
        return True

    async def _look_for(self, running: Running) -> None:
        """Asks for a batch that the list lacks. The poller holds one that is not there."""
        try:
            await self._provider.retrieve(running.provider_batch_id)
        except ProviderMissing:
            self._told.tell(Finding.MISSING_BATCH, running.provider_batch_id, batch=running.batch_id)

    async def _tell_obstacles(self) -> None:
        """Tells for whose sake nothing is bought."""
        for found in await self._store.obstacles(self._provider.provider_identity()):
            finding = Finding.IDENTITY_CHANGED if found.is_foreign else Finding.MISSING_BATCH
            self._told.tell(finding, found.provider_batch_id or found.batch_id, batch=found.batch_id)


def _listed(batch: ProviderBatch) -> Listed:
    return Listed(batch.id, batch.status, batch.metadata)
