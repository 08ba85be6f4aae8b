"""Compares the holds of open jobs and the settlements of ended ones with the wallet's ledger, and mends what differs.

Holds are asked for by the very Reserve that made them: the wallet answers a repeat without changing anything, and one
that has lost the hold holds the tokens anew. Settlements are sent again from the newest back, until a page of them
is known to the wallet: a restored database has lost its end and nothing else.
"""

from collections.abc import Sequence

from services.batcher.job import Job, State
from services.batcher.purchases import Purchases
from services.batcher.reconciled import Told
from services.batcher.reconciliation import Finding, judge_hold
from services.batcher.store import Store
from services.batcher.store_reconciliation import ReconciliationStore, Side
from services.batcher.store_settlements import Owed, SettlementStore
from services.batcher.wallet_client import Amend, Held, Refused, Settled, WalletClient, WalletUnavailable
from services.batcher.wallet_holds import LOWERED_ID
from services.batcher.wallet_settlements import ask_witnesses, carry_out, charge_again, reserve_of, tell_uncollected
from services.chassis.leases import Lease

PAGE = 1_000
SETTLED_PAGES_MAX = 100_000
OPEN = frozenset({State.QUEUED, State.BATCHED, State.RUNNING})


class WalletReconciler:
    """One holder of the lease at a time compares."""

    def __init__(
        self, store: Store, books: ReconciliationStore, wallet: WalletClient, purchases: Purchases, interval_us: int
    ) -> None:
        self._store = store
        self._books = books
        self._settlements = SettlementStore(store.database)
        self._wallet = wallet
        self._purchases = purchases
        self._interval_us = interval_us
        self._told = Told()

    async def step(self, lease: Lease) -> bool:
        """Compares when it is time to, and once after a start. Raises WalletUnavailable."""
        begin_us = await self._books.now_us()
        last = await self._books.last(Side.WALLET)
        if begin_us < last.complete_time_us + self._interval_us and await self._purchases.is_read(Side.WALLET):
            return False
        await self._compare_settlements(lease)
        await self._compare_holds(lease)
        await self._books.complete(Side.WALLET, begin_us, lease)
        return False

    async def _compare_holds(self, lease: Lease) -> None:
        after = (-1, "")
        while page := await self._books.held(after, PAGE):
            after = (page[-1].hold_expire_time_us, page[-1].uid)
            await self._compare_page(page, lease)

    async def _compare_page(self, page: Sequence[Job], lease: Lease) -> None:
        answers = await self._ask(page)
        verdicts = {
            job.uid: judge_hold(state, expire_us, replayed, job.hold_expire_time_us)
            for job, (state, expire_us, replayed) in zip(page, answers, strict=True)
        }
        differing = [uid for uid, verdict in verdicts.items() if verdict.finding]
        # A job that has ended meanwhile was settled, and its hold is not what it was.
        still_open = [job for job in await self._store.read(differing) if job.state in OPEN]
        corrected = {
            job.uid: expire_us for job in still_open if (expire_us := verdicts[job.uid].expire_time_us) is not None
        }
        if corrected:
            await self._books.hold_until(corrected, lease)
        self._told.tell_jobs((job.uid, found) for job in still_open if (found := verdicts[job.uid].finding))

    async def _ask(self, page: Sequence[Job]) -> list[tuple[str, int, bool]]:
        """State, end and whether it was known, of each job's hold. Raises WalletUnavailable if one has no answer."""
        answers = dict(zip(page, await self._wallet.reserve_many([reserve_of(job) for job in page]), strict=True))
        fell_back = [job for job, answer in answers.items() if _reason(answer) == "IDEMPOTENCY_MISMATCH"]
        said = {job: _hold(answer) for job, answer in answers.items() if job not in set(fell_back)}
        if fell_back:
            # What it held at first is not written down any more; that it was to be lowered is.
            lowerings = [Amend(job.uid, LOWERED_ID, amount=job.price) for job in fell_back]
            lowered = await self._wallet.settle_many(lowerings)
            said |= {job: _hold(answer) for job, answer in zip(fell_back, lowered, strict=True)}
        return [said[job] for job in page]

    async def _compare_settlements(self, lease: Lease) -> None:
        before = await self._settlements.newest()
        known: bool | None = None
        for _ in range(SETTLED_PAGES_MAX):
            page = await self._settlements.settled_before(before, PAGE)
            before = page.before
            if page.settled:
                if known is None and not (known := await self._knows_us()):
                    return
                if not await self._settle_again(page.settled, lease):
                    return
            if not before:
                return

    async def _knows_us(self) -> bool:
        witnessed = await ask_witnesses(self._wallet, self._settlements)
        if witnessed is None:
            return False
        self._told.tell_jobs(witnessed.mended.items())
        if not witnessed.known:
            self._told.tell(Finding.UNKNOWN_WALLET, "wallet")
        return witnessed.known

    async def _settle_again(self, owed: Sequence[Owed], lease: Lease) -> bool:
        """Sends settlements once more; whether the wallet had lost some. Raises WalletUnavailable."""
        done = await carry_out(self._wallet, owed)
        refusals, mended, unanswered = done.refusals, done.mended, done.unanswered
        if done.unknown:
            again = await charge_again(self._wallet, done.unknown, self._store.read)
            refusals, mended, unanswered = (
                refusals | again.refusals,
                mended | again.mended,
                unanswered + again.unanswered,
            )
        self._told.tell_jobs(mended.items())
        lost = {uid: reason for uid, reason in refusals.items() if reason}
        if lost:
            for change in await self._settlements.uncollect(lost, lease):
                if change.settlement is not None:
                    tell_uncollected(change.job.uid, change.settlement, lost[change.job.uid])
        if unanswered:
            raise WalletUnavailable("UNANSWERED", f"{unanswered} settlements have no answer")
        return bool(mended or lost)


def _reason(answer: object) -> str:
    return answer.reason if isinstance(answer, Refused) else ""


def _hold(answer: Held | Settled | Refused | WalletUnavailable) -> tuple[str, int, bool]:
    if isinstance(answer, WalletUnavailable):
        raise answer
    if isinstance(answer, Refused):
        return answer.reason.removeprefix("RESERVATION_"), 0, True
    if isinstance(answer, Held):
        return "HELD", answer.expire_time_us, answer.replayed
    # An Amend that is new to the wallet lowers a hold that it knows.
    return answer.state, answer.expire_time_us, True
