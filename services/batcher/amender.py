"""Lowers the holds of jobs that fell back to a cheaper lane: what they do not cost any more is given back at once.

That a hold is too large was written when its job fell back; this only tells the wallet, under one key for each job, as
often as it takes. Nothing waits for it: a settlement takes no more than the job's price, whatever became of the hold.
"""

from collections.abc import Callable

from services.batcher.store import Store
from services.batcher.wallet_client import Amend, Refused, WalletClient, WalletUnavailable
from services.batcher.wallet_holds import LOWERED_ID, STILL_HELD
from services.chassis import logs
from services.chassis.leases import Lease

LOWERINGS_MAX = 1_000

_log = logs.get_logger(__name__)


class Amender:
    """Carries out what the wallet was not told yet; `ended` is called when jobs have ended, as their hold is gone."""

    def __init__(self, store: Store, wallet: WalletClient, ended: Callable[[], None]) -> None:
        self._store = store
        self._wallet = wallet
        self._ended = ended

    async def step(self, lease: Lease) -> bool:
        """Lowers up to 1,000 holds; True if there may be more. Raises WalletUnavailable."""
        pending = await self._store.pending_lowerings(LOWERINGS_MAX)
        if not pending:
            return False
        answers = await self._wallet.settle_many([Amend(uid, LOWERED_ID, amount=amount) for uid, amount in pending])
        refusals = {
            uid: answer.reason if isinstance(answer, Refused) else ""
            for (uid, _), answer in zip(pending, answers, strict=True)
            if not isinstance(answer, WalletUnavailable)
        }
        # A job that has ended meanwhile is settled: then the refusal says no more than that.
        lost = [uid for uid, reason in refusals.items() if reason and reason not in STILL_HELD]
        for change in await self._store.lower(refusals, lost, lease):
            _log.warning("hold_lost", job=change.job.uid, state=change.before.state.value)
            self._ended()
        return len(refusals) == LOWERINGS_MAX
