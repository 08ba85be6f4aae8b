"""What an administrator's change of the price lists comes to, or why it is refused. Pure.

Each change is known for the notice before it begins, and what has begun is never taken back: so every quote is kept.
"""

from datetime import UTC, datetime

from services.batcher.errors import PriceListInForce, PriceListWithdrawn, RolloutShrinks
from services.batcher.price_list import Content, PriceList, Rollout


def begin_us(content: Content, now_us: int, notice_us: int) -> int | None:
    """When a list is in force that is put now; None: it asks for a time before the notice is over."""
    soonest_us = now_us + notice_us
    if not content.effective_time_us:
        return soonest_us
    return content.effective_time_us if content.effective_time_us >= soonest_us else None


def rolled_out(known: PriceList, percent: int, now_us: int, notice_us: int) -> Rollout | None:
    """The next step of a list; None where it had that one. Raises PriceListWithdrawn, RolloutShrinks."""
    if any(step.percent == percent for step in known.rollouts):
        return None
    if known.withdraw_time_us:
        raise PriceListWithdrawn(known.content.version)
    if percent < known.rollouts[-1].percent:
        raise RolloutShrinks(known.content.version, percent, known.rollouts[-1].percent)
    return Rollout(percent, max(known.effective_time_us, now_us + notice_us))


def withdraws(known: PriceList, now_us: int) -> bool:
    """Whether a list is taken back now; False where it was before. Raises PriceListInForce."""
    if known.withdraw_time_us:
        return False
    if now_us >= known.effective_time_us:
        raise PriceListInForce(known.content.version, time_text(known.effective_time_us))
    return True


def time_text(time_us: int) -> str:
    """A time as a person reads it, in whole seconds of UTC."""
    return datetime.fromtimestamp(time_us / 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
