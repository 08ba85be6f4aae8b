"""Batches of which the provider has told that they ended, in the database: whichever replica heard it, the one that
polls sees it.
"""

import json
from collections.abc import Collection
from typing import Final

from services.batcher.store_rows import Stored, check
from services.chassis.leases import Lease

DUE_MAX: Final = 1_000
KEPT_US: Final = 600 * 1_000_000
"""What was told of a batch that is not written down yet, as its create was only just answered, is kept so long."""


class DueStore(Stored):
    """What was told, under the provider's ids."""

    async def hasten(self, provider_batch_ids: Collection[str]) -> None:
        """Has these batches asked about before their time. No change of a batch, so nothing is journalled."""
        async with self.database.transaction() as tx:
            now_us = await tx.now_us()
            await tx.run_many("due_write", [(provider_batch_id, now_us) for provider_batch_id in provider_batch_ids])

    async def due(self) -> frozenset[str]:
        """The provider's ids of batches that are to be asked about, the newest 1,000."""
        async with self.database.reading() as tx:
            return frozenset(row[0] for row in await tx.rows("due_read", count=DUE_MAX))

    async def forget_due(self, provider_batch_ids: Collection[str], lease: Lease) -> None:
        """These are asked about now; what is old goes as well."""
        async with self.database.transaction() as tx:
            await check(tx, lease)
            before_us = await tx.now_us() - KEPT_US
            await tx.run("due_delete", keys=json.dumps(sorted(provider_batch_ids)), before_us=before_us)
