"""Which cycle was planned last, in the database: whichever replica plans, each cycle is decided once."""

from services.batcher.store_rows import Stored, check
from services.chassis.leases import Lease


class CycleStore(Stored):
    """The planner's one row."""

    async def planned_cycle(self) -> int:
        """When the last cycle that was decided began, in microseconds since the epoch; 0 where none ever was."""
        async with self.database.reading() as tx:
            row = await tx.row("cycle_read")
        return int(row[0]) if row else 0

    async def end_cycle(self, cycle_start_us: int, lease: Lease) -> None:
        """Writes that all batches of a cycle are formed; one that is older than what is known changes nothing."""
        async with self.database.transaction() as tx:
            await check(tx, lease)
            await tx.run("cycle_write", cycle_start_us=cycle_start_us)
