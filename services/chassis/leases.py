"""A lease lets one of several replicas do a thing, and a fence stops the one that has not noticed its lease is over.

    lease = Lease(database, "submitter", holder="replica-7", duration_seconds=30)
    if await lease.hold():
        async with database.transaction() as tx:
            await lease.check(tx)      # from here to the transaction's end nobody else can take over
            ...

Every time a lease changes hands its fence grows. Times are the database's, so clocks of replicas do not matter.
"""

from __future__ import annotations

from services.chassis.database import Database, Transaction


class LeaseLost(Exception):
    """Another replica may do this now: whatever was about to be written must not be."""


async def acquire(tx: Transaction, name: str, holder: str, duration_seconds: float) -> int | None:
    """Takes a lease that is free or over, and returns its fence; None while another holds it."""
    now_us = await tx.now_us()
    expire_time_us = now_us + round(duration_seconds * 1_000_000)
    row = await tx.row("lease_acquire", name=name, holder=holder, now_us=now_us, expire_time_us=expire_time_us)
    return None if row is None else int(row["fence"])


async def renew(tx: Transaction, name: str, fence: int, duration_seconds: float) -> bool:
    """Prolongs a lease; False when it has changed hands. One that is over but was not taken is ours again."""
    expire_time_us = await tx.now_us() + round(duration_seconds * 1_000_000)
    return await tx.run("lease_renew", name=name, fence=fence, expire_time_us=expire_time_us) == 1


async def release(tx: Transaction, name: str, fence: int) -> None:
    """Lets others take the lease at once; nothing happens when it is not ours any more."""
    await tx.run("lease_release", name=name, fence=fence)


async def check(tx: Transaction, name: str, fence: int) -> None:
    """Keeps the lease from changing hands until this transaction ends; raises LeaseLost when it already has."""
    if await tx.row("lease_check", name=name, fence=fence) is None:
        raise LeaseLost(name)


class Lease:
    """One replica's side of a lease: acquired when it can be, renewed while it is used."""

    def __init__(self, database: Database, name: str, holder: str, duration_seconds: float = 30.0) -> None:
        self.name = name
        self.duration_seconds = duration_seconds
        self._database = database
        self._holder = holder
        self._fence: int | None = None

    @property
    def fence(self) -> int | None:
        """The fence that we hold, as far as we know."""
        return self._fence

    async def hold(self) -> bool:
        """Renews the lease if it is ours, otherwise tries to take it."""
        async with self._database.transaction() as tx:
            fence = self._fence
            if fence is None or not await renew(tx, self.name, fence, self.duration_seconds):
                fence = await acquire(tx, self.name, self._holder, self.duration_seconds)
        self._fence = fence
        return fence is not None

    async def renew(self) -> bool:
        """Prolongs the lease; False, and no fence any more, when it has changed hands."""
        fence = self._fence
        if fence is None:
            return False
        async with self._database.transaction() as tx:
            renewed = await renew(tx, self.name, fence, self.duration_seconds)
        if not renewed:
            self._fence = None
        return renewed

    async def check(self, tx: Transaction) -> None:
        """Call it first in a transaction that only the holder may write; raises LeaseLost."""
        if self._fence is None:
            raise LeaseLost(self.name)
        await check(tx, self.name, self._fence)

    async def release(self) -> None:
        """Gives the lease back, if it is ours."""
        fence, self._fence = self._fence, None
        if fence is not None:
            async with self._database.transaction() as tx:
                await release(tx, self.name, fence)
