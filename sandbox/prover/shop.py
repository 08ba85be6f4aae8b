"""The batcher in memory: price lists that an administrator changes, quotes, and jobs from submission to settlement.

The real pure rules decide (`price_change`, `pricing`, `job`); what they ask of the wallet goes to the real ledger.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

from sandbox.prover.move import BACKEND, FALLBACK, HOUR_US, Move
from services.batcher import job as jobs
from services.batcher import price_change
from services.batcher.errors import BatcherError, PriceChanged
from services.batcher.job import Action, Answer, Change, Failure, Job, Lane, Limits, State
from services.batcher.price_list import Content, PriceList, Rollout, plain_list
from services.batcher.pricing import Quote, Terms, base_of, pinned, quote
from services.wallet.commands import Amend, Command, Commit, Refund, Release, Reserve

NOTICE_US: Final = HOUR_US
MODEL: Final = "model"
FIRST: Final = plain_list("v-first", {Lane.BATCH: 2, Lane.INSTANT: 5})
"""As of a database's first start: it was always in force."""
GOLD: Final = frozenset({"user-0", "user-1"})
"""Customers with a tier of their own."""
ANSWER: Final = Answer("a cat", "stop", 1, 1)
NO_ANSWER: Final = Failure("server_error", "nothing came")
LIMITS: Final = Limits(attempts_max=1, uncharged_finish_reasons=frozenset())
JOB_US: Final = 30 * HOUR_US
SHOP_KINDS: Final = frozenset(
    {"put_prices", "roll_out", "withdraw", "quote", "submit", "answer", "fail", "give_up", "give_back"}
)
"""The moves that are the shop's: each has a method of its name."""
Wallet = Callable[[Command], bool]
"""Carries a command out; whether it was not refused."""


class Put(NamedTuple):
    """A list, and from when on it is in force."""

    content: Content
    begin_us: int


class RolledOut(NamedTuple):
    """A list reaches more accounts."""

    version: str
    step: Rollout


class Withdrawn(NamedTuple):
    """A list is not to come into force."""

    version: str


class Quoted(NamedTuple):
    """What a payer was told."""

    quote_id: str
    payer_id: str
    tiers: frozenset[str]
    version: str
    batch: int
    instant: int
    expire_us: int


class Submitted(NamedTuple):
    """A job that was asked for; by a quote, unless quote_id is empty. price: None where that was refused."""

    uid: str
    payer_id: str
    tiers: frozenset[str]
    lane: str
    quote_id: str
    price: int | None
    version: str


class Answered(NamedTuple):
    """A job has an answer, for which it pays."""

    uid: str


class FellBack(NamedTuple):
    """An instant job goes on as a batch job."""

    uid: str


Event = Put | RolledOut | Withdrawn | Quoted | Submitted | Answered | FellBack


class Shop:
    """One batcher."""

    def __init__(self) -> None:
        begun = (Rollout(100, 0),)
        self.lists: tuple[PriceList, ...] = (PriceList(FIRST, ZoneInfo("UTC"), 0, 0, 0, "admin", 1, 1, begun),)
        self.quotes: dict[str, tuple[str, Quote]] = {}
        self.jobs: dict[str, Job] = {}

    def do(self, move: Move, now_us: int, wallet: Wallet) -> Sequence[Event]:
        """Lets a move happen; what a customer or the journal tells of it, nothing where it was refused."""
        told: Sequence[Event] = getattr(self, move.kind)(move, now_us, wallet)
        return told

    def put_prices(self, move: Move, now_us: int, _wallet: Wallet) -> Sequence[Event]:
        """Puts a list, to begin after the notice or later."""
        content = move.content
        if content is None or any(each.content.version == content.version for each in self.lists):
            return ()
        begin_us = price_change.begin_us(content, now_us, NOTICE_US)
        if begin_us is None:
            return ()
        number, steps = len(self.lists) + 1, (Rollout(content.rollout_percent, begin_us),)
        zone = ZoneInfo(content.time_zone)
        self.lists += (PriceList(content, zone, begin_us, now_us, 0, move.who, number, number, steps),)
        return (Put(content, begin_us),)

    def roll_out(self, move: Move, now_us: int, _wallet: Wallet) -> Sequence[Event]:
        """Lets a list reach more accounts."""
        for place, known in enumerate(self.lists):
            if known.content.version != move.what:
                continue
            with suppress(BatcherError):
                step = price_change.rolled_out(known, move.amount, now_us, NOTICE_US)
                if step is not None:
                    self._change(place, known._replace(rollouts=(*known.rollouts, step)))
                    return (RolledOut(move.what, step),)
        return ()

    def withdraw(self, move: Move, now_us: int, _wallet: Wallet) -> Sequence[Event]:
        """Takes a list back that has not begun."""
        for place, known in enumerate(self.lists):
            if known.content.version != move.what:
                continue
            with suppress(BatcherError):
                if price_change.withdraws(known, now_us):
                    self._change(place, known._replace(withdraw_time_us=now_us))
                    return (Withdrawn(move.what),)
        return ()

    def _alive(self, now_us: int) -> tuple[PriceList, ...]:
        """The lists that may still price something: the latest that has reached everybody, and those behind it."""
        base = base_of(self.lists, now_us)
        return tuple(each for each in self.lists if base is None or each.place >= base.place)

    def _change(self, place: int, changed: PriceList) -> None:
        self.lists = (*self.lists[:place], changed, *self.lists[place + 1 :])

    def quote(self, move: Move, now_us: int, _wallet: Wallet) -> Sequence[Event]:
        """Tells a customer what a job would cost."""
        payer, tiers = move.of or move.who, tiers_of(move.who)
        quoted = quote(self._alive(now_us), payer, MODEL, tiers, now_us, NOTICE_US)
        self.quotes[move.key] = (payer, quoted)
        return (Quoted(move.key, payer, tiers, *quoted.prices, quoted.expire_time_us),)

    def submit(self, move: Move, now_us: int, wallet: Wallet) -> Sequence[Event]:
        """Takes a job, by a quote or as it comes, and has its price held."""
        payer, tiers = move.of or move.who, tiers_of(move.who)
        lane = Lane.BATCH if move.lane == Lane.BATCH else Lane.INSTANT
        terms = Terms(tiers=tiers, falls_back=move.lane == FALLBACK)
        _, quoted = self.quotes.get(move.what, ("", None))
        if quoted is not None:
            prices = quoted.prices
            terms = terms._replace(price_version=prices.version, max_price=prices.of(lane))
        said = Submitted(move.key, payer, tiers, move.lane, move.what if quoted else "", None, "")
        try:
            job = pinned(_blank(move, payer, lane, now_us), self._alive(now_us), terms, now_us)
        except PriceChanged:
            return (said,)
        hold = Reserve(BACKEND, move.who, payer, job.uid, job.price, JOB_US, job.price_version, job.job_id, False)
        change = jobs.hold(job, now_us + JOB_US, now_us) if wallet(hold) else jobs.refuse(job, NO_ANSWER, now_us)
        if change is not None:
            self.jobs[job.uid] = change.job
        return (said._replace(price=job.price, version=job.price_version),)

    def answer(self, move: Move, now_us: int, wallet: Wallet) -> Sequence[Event]:
        """Ends a job with an answer, which it pays for."""
        job = self._at_work(move.what, now_us)
        change = job and jobs.succeed(job, job.attempt, ANSWER, LIMITS, now_us)
        if not change:
            return ()
        self._end(change, wallet)
        return (Answered(move.what),)

    def fail(self, move: Move, now_us: int, wallet: Wallet) -> Sequence[Event]:
        """Lets an attempt of a job come to nothing: the job falls back, or ends."""
        job = self._at_work(move.what, now_us)
        change = job and jobs.lose(job, job.attempt, NO_ANSWER, True, LIMITS, now_us)
        if not change:
            return ()
        self._end(change, wallet)
        return (FellBack(move.what),) if change.kind == "job.fell_back" else ()

    def give_up(self, move: Move, now_us: int, wallet: Wallet) -> Sequence[Event]:
        """Ends a job that nobody wants any more."""
        job = self.jobs.get(move.what)
        change = job and jobs.cancel(job, False, now_us)
        if change:
            self._end(change, wallet)
        return ()

    def give_back(self, move: Move, _now_us: int, wallet: Wallet) -> Sequence[Event]:
        """Gives the price of an answered job back."""
        wallet(Refund(BACKEND, BACKEND, move.what, move.key, None))
        return ()

    def _at_work(self, uid: str, now_us: int) -> Job | None:
        """The job, in a batch that was bought where it waited for one."""
        job = self.jobs.get(uid)
        if job is None or job.state is not State.QUEUED:
            return job
        planned = jobs.plan(job, "batch", now_us)
        started = planned and jobs.start(planned.job, job.attempt, now_us)
        return started.job if started else None

    def _end(self, change: Change, wallet: Wallet) -> None:
        """Keeps the job as it is now, and tells the wallet what it owes, or holds too much."""
        job = self.jobs[change.job.uid] = change.job
        if change.lowered:
            wallet(Amend(BACKEND, BACKEND, job.uid, "fallback", job.price, None))
        if change.settlement is None:
            return
        if change.settlement.action is Action.COMMIT:
            wallet(Commit(BACKEND, BACKEND, job.uid, change.settlement.amount, True))
        else:
            wallet(Release(BACKEND, BACKEND, job.uid))


def tiers_of(who: str) -> frozenset[str]:
    """The tiers that a customer has."""
    return frozenset({"gold"}) if who in GOLD else frozenset()


def _blank(move: Move, payer: str, lane: Lane, now_us: int) -> Job:
    return Job(
        uid=move.key,
        account_id=move.who,
        job_id=move.key,
        payer_account_id=payer,
        lane=lane,
        model=MODEL,
        price=0,
        price_version="",
        line_bytes=1,
        deadline_us=now_us + JOB_US,
        hold_duration_us=JOB_US,
        create_time_us=now_us,
        update_time_us=now_us,
        queue_time_us=0,
        not_before_us=0,
        hold_expire_time_us=0,
        state=State.ADMITTING,
        attempt=0,
        batch_id="",
        cancel_requested=False,
        last_revision=0,
    )
