"""The rules by which tokens come into the world, as data. Every number is configuration."""

from typing import NamedTuple


class Rules(NamedTuple):
    """What the operator declared. Amounts are in the asset's smallest unit."""

    welcome_bonus: int = 10
    """Granted once to every account, in the transaction that opens it. 0 grants nothing."""
    token_scale: int = 0
    """Decimal places of TOKEN, fixed when the ledger is created."""
    grace_us: int = 7 * 24 * 3600 * 1_000_000
    """How long tokens live on that come back through our failure after their life has ended. 0 gives no grace."""


WELCOME_GRANT_ID = "welcome"
"""The key of the welcome bonus among the grants of the wallet itself."""
