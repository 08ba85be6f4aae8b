"""The rules by which tokens come into the world, as data. Every number is configuration."""

from typing import NamedTuple


class Rules(NamedTuple):
    """What the operator declared. Amounts are in the asset's smallest unit."""

    welcome_bonus: int = 10
    """Granted once to every account, in the transaction that opens it. 0 grants nothing."""
    token_scale: int = 0
    """Decimal places of TOKEN, fixed when the ledger is created."""


WELCOME_GRANT_ID = "welcome"
"""The key of the welcome bonus among the grants of the wallet itself."""
