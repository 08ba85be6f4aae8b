"""What the prices declare with one rule left out."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sandbox.prover import shop
from sandbox.prover.hole import Hole, both, replaced
from sandbox.prover.move import BACKEND, Move
from sandbox.prover.shop import Event, Shop, Wallet
from services.batcher import job as jobs
from services.batcher import price_change, pricing
from services.batcher.job import Change, Job
from services.batcher.price_list import Content, PriceList, Rollout
from services.batcher.pricing import Terms
from services.wallet.commands import Refund

_shipped_in_force: Final = pricing.in_force
_shipped_pinned: Final = pricing.pinned
_shipped_lose: Final = jobs.lose
_shipped_answer: Final = Shop.answer


def _draws_anew(lists: Sequence[PriceList], account_id: str, now_us: int) -> PriceList:
    return _shipped_in_force(lists, f"{account_id} at {now_us}", now_us)


def _keeps_quotes_for_ever(job: Job, lists: Sequence[PriceList], terms: Terms, now_us: int) -> Job:
    """As if the list that a quote names were in force for as long as anybody names it."""
    named = [each for each in lists if each.content.version == terms.price_version]
    always = [each._replace(effective_time_us=0, rollouts=(Rollout(100, 0),)) for each in named]
    return _shipped_pinned(job, always or lists, terms, now_us)


def _pins_for_any_price(job: Job, lists: Sequence[PriceList], terms: Terms, now_us: int) -> Job:
    return _shipped_pinned(job, lists, terms._replace(max_price=None), now_us)


def _price_now(of: Shop, job: Job, now_us: int) -> int:
    return pricing.prices_of(of.lists, job.payer_account_id, shop.MODEL, frozenset(), now_us).of(job.lane)


def _charges_todays_price(of: Shop, move: Move, now_us: int, wallet: Wallet) -> Sequence[Event]:
    """As if a job's price were looked up when it is answered, as far as it was held."""
    job = of.jobs.get(move.what)
    if job is not None:
        of.jobs[move.what] = job._replace(price=min(_price_now(of, job, now_us), job.price))
    return _shipped_answer(of, move, now_us, wallet)


def _refunds_todays_price(of: Shop, move: Move, now_us: int, wallet: Wallet) -> Sequence[Event]:
    """As if a refund were what the job would cost now."""
    job = of.jobs.get(move.what)
    if job is not None:
        wallet(Refund(BACKEND, BACKEND, move.what, move.key, _price_now(of, job, now_us)))
    return ()


def _begins_at_once(content: Content, now_us: int, _notice_us: int) -> int | None:
    return max(content.effective_time_us, now_us)


def _rolls_back(known: PriceList, percent: int, now_us: int, notice_us: int) -> Rollout | None:
    """As if a roll-out could be made smaller."""
    return Rollout(percent, max(known.effective_time_us, now_us + notice_us))


def _last_percent(known: PriceList, now_us: int) -> int:
    begun = [step for step in known.rollouts if step.start_time_us <= now_us]
    return 0 if known.withdraw_time_us or not begun else begun[-1].percent


def _falls_back_dearly(job: Job, *more: Any) -> Change | None:
    """As if a job that falls back went on paying for an instant answer."""
    change = _shipped_lose(job, *more)
    if change is None or change.kind != "job.fell_back":
        return change
    return change._replace(job=change.job._replace(price=job.price), lowered=False)


PRICE_HOLES: Final[Mapping[str, Hole]] = {
    "variants": Hole("who sees a trial of prices is drawn anew each time", replaced(pricing, "in_force", _draws_anew)),
    "old_quotes": Hole("a quote holds for ever", replaced(shop, "pinned", _keeps_quotes_for_ever)),
    "dearer": Hole("a job may cost more than it was quoted", replaced(shop, "pinned", _pins_for_any_price)),
    "charges": Hole("a job pays what it would cost at its answer", replaced(Shop, "answer", _charges_todays_price)),
    "todays_refunds": Hole(
        "a refund is what the job would cost today", replaced(Shop, "give_back", _refunds_todays_price)
    ),
    "notice": Hole("prices change without notice", replaced(price_change, "begin_us", _begins_at_once)),
    "rollbacks": Hole(
        "a roll-out may be made smaller",
        both(replaced(price_change, "rolled_out", _rolls_back), replaced(PriceList, "percent_at", _last_percent)),
    ),
    "withdrawals": Hole("a list in force may be withdrawn", replaced(price_change, "withdraws", lambda *_: True)),
    "fallbacks": Hole("a job that fell back pays for an instant answer", replaced(jobs, "lose", _falls_back_dearly)),
}
