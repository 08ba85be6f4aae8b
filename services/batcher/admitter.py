"""Reserves the tokens of new jobs: nothing that costs money is done for a job before the wallet has said HELD.

The edge hands in uids and waits for a while; whoever does not wait, or dies, leaves the job in ADMITTING, where the
sweep finds it. Reserving again is safe, as the uid is the key in the wallet, so that no lease is needed between the
two.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from services.batcher.errors import BatcherError, InsufficientFunds, WalletRefused
from services.batcher.job import Failure, Job, Lane, State
from services.batcher.store import Store
from services.batcher.wallet_client import Held, Refused, WalletClient, WalletUnavailable
from services.batcher.wallet_settlements import reserve_of
from services.chassis import logs
from services.chassis.group_commit import GroupCommitter

SWEEP_JOBS_MAX = 1_000
PAID = "RESERVATION_COMMITTED"

_log = logs.get_logger(__name__)


class Listeners(NamedTuple):
    """Who is told when jobs come out of admission."""

    running: Callable[[Sequence[Job]], None]
    ended: Callable[[], None]


class Admitter:
    """Brings jobs from ADMITTING to QUEUED, RUNNING or REJECTED. instant_lease_us: how long an instant try is ours."""

    def __init__(self, store: Store, wallet: WalletClient, listeners: Listeners, instant_lease_us: int) -> None:
        self._store = store
        self._wallet = wallet
        self._listeners = listeners
        self._instant_lease_us = instant_lease_us
        self._groups: GroupCommitter[Job, Job] = GroupCommitter(self._admit)

    def start(self) -> None:
        """Starts to take jobs."""
        self._groups.start()

    async def close(self) -> None:
        """Finishes what it has."""
        await self._groups.close()

    async def admit(self, waiting: Sequence[Job], timeout_seconds: float) -> list[Job | Exception]:
        """The jobs as they came out, or why one did not: a refusal of the wallet, or that it has not answered yet."""
        answers = asyncio.ensure_future(self._groups.submit_many(waiting))
        done, _ = await asyncio.wait([answers], timeout=timeout_seconds)
        if done and answers.exception() is None:
            return answers.result()
        # Nobody will ask for what it comes to, were it an error.
        answers.add_done_callback(lambda late: late.cancelled() or late.exception())
        # A full queue is no refusal either: the jobs are stored, and the sweep finds them.
        return [WalletUnavailable("TIMED_OUT", "not yet")] * len(waiting)

    async def sweep(self, before_us: int) -> bool:
        """Admits jobs that have waited since before the given time; True if there may be more."""
        uids = await self._store.admitting(before_us, SWEEP_JOBS_MAX)
        answers = await self._groups.submit_many(await self._store.read(uids))
        unavailable = [answer for answer in answers if isinstance(answer, WalletUnavailable)]
        if unavailable:
            raise unavailable[0]
        return len(uids) == SWEEP_JOBS_MAX

    async def _admit(self, waiting: Sequence[Job]) -> list[Job | Exception]:
        """Asks the wallet about a group. The jobs may have changed since they were read: the store looks again, and an
        id that was released meanwhile can't be reserved any more.
        """
        try:
            outcomes, refusals = await self._reserve([job for job in waiting if job.state is State.ADMITTING])
        except WalletUnavailable as error:
            return [error] * len(waiting)
        changes = await self._store.admit(outcomes, self._instant_lease_us)
        admitted = {change.job.uid: change.job for change in changes}
        self._tell(list(admitted.values()))
        for job in admitted.values():
            _log.info("job_admitted", job=job.uid, account=job.account_id, state=job.state.value)
        others = [job.uid for job in waiting if job.uid not in admitted]
        now = admitted | {job.uid: job for job in await self._store.read(others)} if others else admitted
        return [_answer(now.get(job.uid, job), refusals.get(job.uid)) for job in waiting]

    async def _reserve(self, asked: Sequence[Job]) -> tuple[Mapping[str, int | Failure], Mapping[str, Exception]]:
        """What the wallet says about each job: as the store writes it, and as the caller is told. Raises
        WalletUnavailable; where it is unavailable for single ones, those are only told.
        """
        if not asked:
            return {}, {}
        answers = await self._wallet.reserve_many([reserve_of(job) for job in asked])
        outcomes: dict[str, int | Failure] = {}
        refusals: dict[str, Exception] = {}
        for job, answer in zip(asked, answers, strict=True):
            if isinstance(answer, Held):
                outcomes[job.uid] = answer.expire_time_us
            elif isinstance(answer, Refused) and answer.reason == PAID:
                # It had its answer before our database was restored; it is not charged for the next one.
                outcomes[job.uid] = job.create_time_us + job.hold_duration_us
            elif isinstance(answer, Refused):
                error = _refusal(job, answer)
                refusals[job.uid] = error
                code = "insufficient_funds" if isinstance(error, InsufficientFunds) else "wallet_refused"
                outcomes[job.uid] = Failure(code, str(error))
            else:
                refusals[job.uid] = answer
        return outcomes, refusals

    def _tell(self, admitted: Sequence[Job]) -> None:
        running = [job for job in admitted if job.state is State.RUNNING and job.lane is Lane.INSTANT]
        if running:
            self._listeners.running(running)
        if any(job.state is State.REJECTED for job in admitted):
            self._listeners.ended()


def _answer(job: Job, refusal: Exception | None) -> Job | Exception:
    """What the caller is told. A job that was cancelled meanwhile was not refused, whatever became of its key."""
    return refusal if refusal is not None and job.state in (State.ADMITTING, State.REJECTED) else job


def _refusal(job: Job, refused: Refused) -> BatcherError:
    numbers = {name: value for name, value in refused.metadata.items() if name != "account_id"}
    if refused.reason == "INSUFFICIENT_FUNDS":
        return InsufficientFunds(refused.metadata.get("account_id", job.payer_account_id), **numbers)
    return WalletRefused(job.payer_account_id, refused.reason, refused.message, **numbers)
