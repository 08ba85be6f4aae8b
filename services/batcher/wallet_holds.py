"""Making holds last longer, with what the wallet's answers mean for jobs."""

from collections.abc import Sequence
from typing import NamedTuple

from services.batcher.job import Job
from services.batcher.wallet_client import Amend, Refused, WalletClient, WalletUnavailable

STILL_HELD = frozenset({"AMEND_NOT_ALLOWED", "RESERVATION_COMMITTED"})
"""Reasons that say no more than that the hold ends later already; or that the job was paid for already, as one is that
had its answer before our database was restored.
"""

LOWERED_ID = "fallback"
"""The key under which the hold of a job that fell back is lowered: a job falls back once."""


class Extended(NamedTuple):
    """Until when holds last now, by uid, the jobs whose hold is gone, with the wallet's reason, and why the wallet gave
    no answer for those that are in neither.
    """

    expire_times_us: dict[str, int]
    lost: dict[str, str]
    unanswered: WalletUnavailable | None


async def extend_holds(wallet: WalletClient, held: Sequence[Job], duration_us: int, now_us: int) -> Extended:
    """Holds the tokens of at most 1,000 jobs for that long from now. Raises WalletUnavailable when none is answered."""
    expire_time_us = now_us + duration_us
    answers = await wallet.settle_many(
        [Amend(job.uid, f"hold-{job.uid}-{expire_time_us}", hold_duration_us=duration_us) for job in held]
    )
    expire_times_us: dict[str, int] = {}
    lost: dict[str, str] = {}
    unanswered: WalletUnavailable | None = None
    for job, answer in zip(held, answers, strict=True):
        if isinstance(answer, WalletUnavailable):
            unanswered = answer
        elif isinstance(answer, Refused) and answer.reason not in STILL_HELD:
            lost[job.uid] = answer.reason
        else:
            expire_times_us[job.uid] = expire_time_us
    return Extended(expire_times_us, lost, unanswered)
