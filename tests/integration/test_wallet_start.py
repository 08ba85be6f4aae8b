"""How the wallet starts, and when it refuses to."""

import pytest

from services.chassis.server import RefusesToStart
from tests.wallets import wallet_at


async def test_a_ledger_does_not_start_under_another_scale(tmp_path):
    """Read with another scale every balance would mean something else, so the second start is refused."""
    url = f"sqlite:{tmp_path}/wallet.db"
    async with wallet_at(url, tmp_path):
        pass

    with pytest.raises(RefusesToStart, match="scale 0"):
        async with wallet_at(url, tmp_path, token_scale=2):
            pass
