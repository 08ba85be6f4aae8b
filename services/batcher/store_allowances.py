"""What may be enqueued at the provider, in the database: what refusals have taught survives a restart."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from services.batcher import allowance
from services.batcher.allowance import Allowance, Room
from services.batcher.batch import Batch, State
from services.batcher.store_rows import Stored, check
from services.chassis.database import Database, Transaction
from services.chassis.leases import Lease


class AllowanceStore(Stored):
    """What refusals have taught. token_limits: what may be enqueued as configured, by model."""

    def __init__(
        self, database: Database, wake: Callable[[], None], token_limits: Mapping[str, int] = MappingProxyType({})
    ) -> None:
        super().__init__(database, wake)
        self._token_limits = token_limits

    async def rooms(self) -> dict[str, Room]:
        """What may be enqueued at the provider now, for each model of which anything is known."""
        async with self.database.reading() as tx:
            known = await _allowances(tx)
            now_us = await tx.now_us()
            taken = await _taken(tx) if known or self._token_limits else {}
        return allowance.read_rooms(self._token_limits, known, taken, now_us)

    async def tokens_wanted(self) -> dict[str, int]:
        """Tokens of the jobs that queue, by model."""
        async with self.database.reading() as tx:
            return {row["model"]: int(row["tokens"]) for row in await tx.rows("tokens_wanted")}

    async def learn(
        self, batch: Batch, message: str, pause_us: Callable[[int], int], lease: Lease, *, teaches: bool = True
    ) -> Allowance:
        """Writes that a batch was refused for the sake of the provider's queue, in the words of the message.

        pause_us: from the number of refusals in a row to how long nothing more of the model is planned. teaches: False
        where it was refused for another reason, so that there is a pause only.
        """
        async with self.database.transaction() as tx:
            await check(tx, lease)
            now_us = await tx.now_us()
            known = (await _allowances(tx)).get(batch.model, Allowance(batch.model))
            taken = (await _taken(tx)).get(batch.model, 0)
            if batch.state is State.INGESTING:
                # It has left the provider's queue by now, and was in it when it was refused.
                taken += batch.tokens
            not_before_us = now_us + pause_us(known.refusals + 1)
            if teaches:
                after = allowance.refuse(known, message, taken, not_before_us, now_us)
            else:
                after = allowance.pause(known, not_before_us)
            await tx.run("allowances_write", **after._asdict())
        return after

    async def unlearn(self, model: str, lease: Lease) -> None:
        """Writes that the provider has taken a batch of the model."""
        async with self.database.transaction() as tx:
            await check(tx, lease)
            known = (await _allowances(tx)).get(model)
            if known is not None and (known.refusals or known.guessed):
                await tx.run("allowances_write", **allowance.accept(known)._asdict())


async def _allowances(tx: Transaction) -> dict[str, Allowance]:
    read = [Allowance._make(row) for row in await tx.rows("allowances_read")]
    return {known.model: known._replace(guessed=bool(known.guessed)) for known in read}


async def _taken(tx: Transaction) -> dict[str, int]:
    """Tokens of the batches that are, or will be, in the provider's queue, by model."""
    return {row["model"]: int(row["tokens"]) for row in await tx.rows("tokens_enqueued")}
