"""Settles ended jobs with the wallet: takes the price of those that are charged, gives the others' tokens back.

The settlement was decided and written when the job ended; this only carries it out, as often as it takes. A refusal is
final: the answer was delivered and is not paid for, which is counted and told to whoever looks after the money.
"""

from services.batcher.job import SettlementState
from services.batcher.reconciliation import Finding
from services.batcher.store import Store
from services.batcher.store_settlements import Owed, SettlementStore
from services.batcher.wallet_client import WalletClient
from services.batcher.wallet_settlements import (
    NOT_FOUND,
    Done,
    ask_witnesses,
    carry_out,
    charge_again,
    tell_uncollected,
)
from services.chassis import logs
from services.chassis.leases import Lease

SETTLEMENTS_MAX = 1_000

_log = logs.get_logger(__name__)


class Settler:
    """Carries out settlements that are PENDING."""

    def __init__(self, store: Store, wallet: WalletClient) -> None:
        self._store = store
        self._settlements = SettlementStore(store.database)
        self._wallet = wallet

    async def step(self, lease: Lease) -> bool:
        """Settles up to 1,000; True if there may be more. Raises WalletUnavailable."""
        pending = [Owed(*each) for each in await self._store.pending_settlements("", SETTLEMENTS_MAX)]
        if not pending:
            return False
        done = await carry_out(self._wallet, pending)
        refusals = done.refusals | await self._charge_again(done)
        for uid, finding in done.mended.items():
            if finding is Finding.CHARGED_WITHOUT_ANSWER:
                _log.warning("charge_given_back", job=uid)
        for change in await self._store.settle(refusals, lease):
            settled = change.settlement
            if settled is not None and settled.state is SettlementState.REFUSED:
                tell_uncollected(change.job.uid, settled, refusals[change.job.uid])
        return len(refusals) == SETTLEMENTS_MAX

    async def _charge_again(self, done: Done) -> dict[str, str]:
        """Takes the price of jobs whose hold the wallet has lost, if it is the wallet that we had."""
        if not done.unknown:
            return {}
        witnessed = done if done.known else await ask_witnesses(self._wallet, self._settlements)
        if witnessed is None or not witnessed.known:
            return {each.uid: NOT_FOUND for each in done.unknown}
        again = await charge_again(self._wallet, done.unknown, self._store.read)
        return again.refusals
