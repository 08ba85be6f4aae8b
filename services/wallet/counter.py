"""What an account has used of something that is limited by calendar day or month, and the refusal of more. Pure."""

from services.wallet.errors import LimitReached
from services.wallet.holdings import State


def refuse_over(
    state: State, account_id: str, counter: str, day: int, amount: int, limit: int, resets_at_us: int
) -> None:
    """Refuses what would pass a limit; the counter of this day (or month, by its first day) is loaded if it exists."""
    counted = state.counters.get((account_id, counter, day))
    used = counted.amount if counted else 0
    if used + amount > limit:
        raise LimitReached(account_id, counter, amount, used, limit, resets_at_us)
