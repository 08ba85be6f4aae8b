"""Keeps the tokens of open jobs held: a hold that nears its end is made longer while its job still waits.

A queued job whose hold is gone ends, as it can't be bought any more. One that the provider has is left alone: its
answer is charged late, from what the account has then.
"""

from collections.abc import Awaitable, Callable, Sequence

from services.batcher.job import Job, State
from services.batcher.store import Store
from services.batcher.wallet_client import WalletClient
from services.batcher.wallet_holds import extend_holds
from services.chassis import logs
from services.chassis.leases import Lease

HOLDS_MAX = 1_000

_log = logs.get_logger(__name__)


class Renewer:
    """Extends holds that end within `margin_us`."""

    def __init__(
        self,
        store: Store,
        wallet: WalletClient,
        margin_us: int,
        may_end: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        """may_end: whether it is known by now which queued jobs have been bought all the same."""
        self._store = store
        self._may_end = may_end
        self._wallet = wallet
        self._margin_us = margin_us

    async def step(self, lease: Lease, now_us: int) -> bool:
        """Extends up to 1,000; True if there may be more. Raises WalletUnavailable."""
        uids = await self._store.renewable(now_us + self._margin_us, HOLDS_MAX)
        if not uids:
            return False
        open_jobs = await self._store.read(uids)
        duration_us = max(job.hold_duration_us for job in open_jobs)
        extended = await extend_holds(self._wallet, open_jobs, duration_us, now_us)
        await self._store.renew(extended.expire_times_us, lease)
        await self._lose(open_jobs, extended.lost, now_us + duration_us, lease)
        if extended.unanswered:
            # Only now, so that one job without an answer does not let the holds of its neighbours run out.
            raise extended.unanswered
        return len(uids) == HOLDS_MAX

    async def _lose(self, open_jobs: Sequence[Job], lost: dict[str, str], again_us: int, lease: Lease) -> None:
        """Ends queued jobs without a hold. The others are not asked about again soon, or they would fill every page."""
        gone = [job for job in open_jobs if job.uid in lost]
        for job in gone:
            _log.warning("hold_lost", job=job.uid, state=job.state.value, reason=lost[job.uid])
        if self._may_end is None or await self._may_end():
            await self._store.lose_holds([job.uid for job in gone if job.state is State.QUEUED], lease)
        await self._store.renew({job.uid: again_us for job in gone if job.state is State.RUNNING}, lease)
