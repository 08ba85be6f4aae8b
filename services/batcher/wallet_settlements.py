"""Carrying out settlements, also with a wallet, or by a batcher, that was restored from an older backup.

A wallet that has lost the hold of an answered job is asked for it anew, under the same uid, and then for its price; one
that took the price of a job which has no answer any more is asked to give it back. Both carry fixed keys, so that
doing it again changes nothing.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

from prometheus_client import Counter

from services.batcher.job import DEAD, Action, Job, Settlement
from services.batcher.reconciliation import Finding
from services.batcher.store_settlements import Owed, SettlementStore
from services.batcher.wallet_client import (
    Commit,
    GiveBack,
    Held,
    Refused,
    Release,
    Reserve,
    Settled,
    WalletClient,
    WalletUnavailable,
)
from services.chassis import logs

UNCOLLECTED = Counter("batcher_uncollected_settlements", "Settlements that the wallet refused for good.", ["reason"])
REFUND_ID = "no-answer"
"""A job ends once, so that its reservation has one such refund."""

NOT_FOUND = "RESERVATION_NOT_FOUND"
WITNESSES = 10
"""Of our first charges so many are looked up: a restored wallet has lost the last ones."""

_log = logs.get_logger(__name__)

ReadJobs = Callable[[Sequence[str]], Awaitable[Sequence[Job]]]


class Done(NamedTuple):
    """What the wallet has answered. refusals: by uid, empty where it is done. mended: what was found on the way.

    unknown: charges of reservations that the wallet does not know, which were left alone. unanswered: how many are in
    none of these. known: whether the wallet had a charge of ours among them already.
    """

    refusals: dict[str, str]
    mended: dict[str, Finding]
    unknown: list[Owed]
    unanswered: int
    known: bool


Answers = dict[str, Settled | Refused | WalletUnavailable]


async def carry_out(wallet: WalletClient, owed: Sequence[Owed]) -> Done:
    """Asks the wallet for up to 1,000 settlements. Raises WalletUnavailable when it answers none."""
    by_uid = {each.uid: each for each in owed}
    answers = await _ask(wallet, {each.uid: _command(each) for each in owed})
    back = {uid: _give_back(by_uid[uid]) for uid, answer in answers.items() if _charged(by_uid[uid], answer)}
    if back:
        answers |= await _ask(wallet, back)
    mended = {uid: finding for uid, answer in answers.items() if (finding := _finding(answer, uid in back))}
    unknown = [by_uid[uid] for uid, answer in answers.items() if _reason(answer) == NOT_FOUND]
    left = {each.uid for each in unknown}
    said = {uid: answer for uid, answer in answers.items() if uid not in left}
    refusals = {uid: _reason(answer) for uid, answer in said.items() if not isinstance(answer, WalletUnavailable)}
    known = any(isinstance(answer, Settled) and answer.replayed and answer.committed for answer in said.values())
    return Done(refusals, mended, unknown, len(said) - len(refusals), known)


async def charge_again(wallet: WalletClient, owed: Sequence[Owed], read: ReadJobs) -> Done:
    """Takes the price of up to 1,000 jobs whose holds the wallet has lost. Raises WalletUnavailable."""
    jobs = {job.uid: job for job in await read([each.uid for each in owed])}
    held = await wallet.reserve_many([reserve_of(jobs[each.uid]) for each in owed])
    asked = list(zip(owed, held, strict=True))
    refused = {each.uid: answer.reason for each, answer in asked if isinstance(answer, Refused)}
    again = [each for each, answer in asked if isinstance(answer, Held)]
    done = await carry_out(wallet, again) if again else Done({}, {}, [], 0, known=False)
    refusals = refused | done.refusals
    unanswered = len(owed) - len(refusals)
    return Done(refusals, dict.fromkeys(refusals, Finding.FORGOTTEN_SETTLEMENT), [], unanswered, done.known)


async def ask_witnesses(wallet: WalletClient, store: SettlementStore) -> Done | None:
    """Whether the wallet is the one that we had, of now or of former days: it is `known` by one of our first charges.

    A new one, or one to which we are somebody else than before, must not be asked for old charges: they were paid.
    None where we have never charged anything. Raises WalletUnavailable.
    """
    first = await store.first_charged(WITNESSES)
    return await carry_out(wallet, first) if first else None


def reserve_of(job: Job) -> Reserve:
    """What holds a job's tokens: the same whenever it is asked for, as it is what the key stands for."""
    return Reserve(
        account_id=job.account_id,
        payer_account_id=job.payer_account_id,
        reservation_id=job.uid,
        amount=job.price,
        hold_duration_us=job.hold_duration_us,
        price_version=job.price_version,
        reference=job.job_id,
    )


def tell_uncollected(uid: str, settlement: Settlement, reason: str) -> None:
    """Counts and tells a settlement that the wallet refused for good."""
    UNCOLLECTED.labels(reason).inc()
    _log.error(
        "settlement_refused",
        job=uid,
        action=settlement.action.value,
        amount=settlement.amount,
        reason=reason,
        alert=True,
    )


async def _ask(wallet: WalletClient, commands: Mapping[str, Commit | Release | GiveBack]) -> Answers:
    answers = await wallet.settle_many(list(commands.values()))
    return dict(zip(commands, answers, strict=True))


def _command(owed: Owed) -> Commit | Release:
    """What the wallet is asked. A job that was not cancelled and has no answer failed on our side."""
    if owed.settlement.action is Action.COMMIT:
        return Commit(reservation_id=owed.uid, amount=owed.settlement.amount, allow_late=True)
    return Release(reservation_id=owed.uid, grace=owed.ended in DEAD)


def _give_back(owed: Owed) -> GiveBack:
    return GiveBack(reservation_id=owed.uid, refund_id=REFUND_ID, grace=owed.ended in DEAD)


def _charged(owed: Owed, answer: Settled | Refused | WalletUnavailable) -> bool:
    """Whether the wallet took the price of a job that owes none."""
    return owed.settlement.action is Action.RELEASE and _reason(answer) == "RESERVATION_COMMITTED"


def _finding(answer: Settled | Refused | WalletUnavailable, given_back: bool) -> Finding | None:
    """What an answer tells of a settlement that was carried out before, as far as our record goes."""
    if not isinstance(answer, Settled) or answer.replayed:
        return None
    return Finding.CHARGED_WITHOUT_ANSWER if given_back else Finding.FORGOTTEN_SETTLEMENT


def _reason(answer: Settled | Refused | WalletUnavailable) -> str:
    return answer.reason if isinstance(answer, Refused) else ""
