"""Settles ended jobs with the wallet: takes the price of those that are charged, gives the others' tokens back.

The settlement was decided and written when the job ended; this only carries it out, as often as it takes. A refusal is
final: the answer was delivered and is not paid for, which is counted and told to whoever looks after the money.
"""

from prometheus_client import Counter

from services.batcher.job import Action, Settlement, SettlementState, State
from services.batcher.store import Store
from services.batcher.wallet_client import Commit, Refused, Release, WalletClient, WalletUnavailable
from services.chassis import logs
from services.chassis.leases import Lease

SETTLEMENTS_MAX = 1_000
UNCOLLECTED = Counter("batcher_uncollected_settlements", "Settlements that the wallet refused for good.", ["reason"])

_log = logs.get_logger(__name__)


class Settler:
    """Carries out settlements that are PENDING."""

    def __init__(self, store: Store, wallet: WalletClient) -> None:
        self._store = store
        self._wallet = wallet

    async def step(self, lease: Lease) -> bool:
        """Settles up to 1,000; True if there may be more. Raises WalletUnavailable."""
        pending = await self._store.pending_settlements("", SETTLEMENTS_MAX)
        if not pending:
            return False
        answers = await self._wallet.settle_many([_command(*each) for each in pending])
        refusals = {
            uid: answer.reason if isinstance(answer, Refused) else ""
            for (uid, _, _), answer in zip(pending, answers, strict=True)
            if not isinstance(answer, WalletUnavailable)
        }
        for change in await self._store.settle(refusals, lease):
            settled = change.settlement
            if settled is not None and settled.state is SettlementState.REFUSED:
                _tell(change.job.uid, settled, refusals[change.job.uid])
        return len(refusals) == SETTLEMENTS_MAX


def _command(uid: str, ended: State, settlement: Settlement) -> Commit | Release:
    """What the wallet is asked. A job that was not cancelled and has no answer failed on our side."""
    if settlement.action is Action.COMMIT:
        return Commit(reservation_id=uid, amount=settlement.amount, allow_late=True)
    return Release(reservation_id=uid, grace=ended in {State.FAILED, State.EXPIRED})


def _tell(uid: str, settlement: Settlement, reason: str) -> None:
    UNCOLLECTED.labels(reason).inc()
    _log.error(
        "settlement_refused",
        job=uid,
        action=settlement.action.value,
        amount=settlement.amount,
        reason=reason,
        alert=True,
    )
