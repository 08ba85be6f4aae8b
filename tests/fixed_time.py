"""A clock that the test moves, and a database that lives by it."""

from services.chassis.database import Database

SECOND_US = 1_000_000


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_us = 1_000 * SECOND_US

    def __call__(self) -> int:
        return self.now_us


class FixedTime:
    """A database whose transactions all read the test's clock, so that both dialects live through the same history."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def __getattr__(self, name: str) -> object:
        return getattr(self._database, name)

    def transaction(self) -> object:
        return _Timed(self._database.transaction(), self._clock)

    def reading(self) -> object:
        return _Timed(self._database.reading(), self._clock)


class _Timed:
    def __init__(self, context: object, clock: Clock) -> None:
        self._context = context
        self._clock = clock

    async def __aenter__(self) -> object:
        tx = await self._context.__aenter__()  # type: ignore[attr-defined]

        async def now_us() -> int:
            return self._clock()

        tx.now_us = now_us
        return tx

    async def __aexit__(self, *details: object) -> object:
        return await self._context.__aexit__(*details)  # type: ignore[attr-defined]
