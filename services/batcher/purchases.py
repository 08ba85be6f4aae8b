"""Whether anything may be bought: not before the others' books were read once, nor while a purchase is not to be found.

A database that was restored from a backup does not know what was bought since. And a batch that the provider does not
know, or that was bought under another identity, says that we may be asking the wrong provider: whatever is bought
then may be bought twice, and by the wrong organisation. Both are read from the database, so that all replicas agree.
"""

from prometheus_client import Gauge

from services.batcher.store_reconciliation import ReconciliationStore, Side
from services.chassis import logs

STOPPED = Gauge("batcher_buying_stopped", "Purchases for whose sake nothing more is bought until an operator decides.")
UNREAD = "the books of the provider and of the wallet to be compared"

_log = logs.get_logger(__name__)


class Purchases:
    """The gate before everything that is bought. identity: the provider's, as configured."""

    def __init__(self, store: ReconciliationStore, identity: str) -> None:
        self._store = store
        self._identity = identity
        self._since_us = 0
        self._read: set[Side] = set()
        self._is_stopped = False

    async def start(self) -> None:
        """Begins with nothing read: what was read before this process may have been by another database."""
        self._since_us = await self._store.now_us()

    async def is_read(self, side: Side) -> bool:
        """Whether a side's books were read whole since this process started, by any replica."""
        if side not in self._read and (await self._store.last(side)).complete_time_us >= self._since_us > 0:
            self._read.add(side)
        return side in self._read

    async def is_begun(self) -> bool:
        """Whether the books of both sides were read."""
        return await self.is_read(Side.PROVIDER) and await self.is_read(Side.WALLET)

    async def obstacle(self) -> str:
        """What a job that is to be bought waits for, or empty."""
        if not await self.is_begun():
            return UNREAD
        found = await self._store.obstacles(self._identity)
        return f"held for an operator: {found[0].why}" if found else ""

    async def is_foreign(self, batch_id: str) -> bool:
        """Whether an open batch was bought under another identity: that its files are not seen does not say that they
        are gone.
        """
        return any(
            found.batch_id == batch_id and found.is_foreign for found in await self._store.obstacles(self._identity)
        )

    async def look(self) -> bool:
        """Shows in the metrics of this replica whether nothing is bought, and logs when that begins and ends."""
        if await self.is_begun():
            found = await self._store.obstacles(self._identity)
            if bool(found) is not self._is_stopped:
                self._is_stopped = bool(found)
                _log.warning("buying_stopped" if found else "buying_goes_on", batches=[each.batch_id for each in found])
            STOPPED.set(len(found))
        return False
