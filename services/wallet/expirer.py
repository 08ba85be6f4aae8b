"""Hurries what would happen anyway: expires overdue holds of accounts that nobody touches.

A hold is over when its time has passed, whether or not this loop has run: every command on an account sweeps it first,
and every read leaves overdue holds out. The loop only brings the journal up to date. Two replicas doing it at once is
harmless: the second finds nothing due.
"""

from typing import Final

from services.chassis.group_commit import GroupCommitter
from services.wallet.commands import Command, Outcome, Sweep
from services.wallet.store import Store

ACCOUNTS_MAX: Final = 200
"""Accounts swept by one step."""


class Expirer:
    """The step of the loop `expirer`."""

    def __init__(self, store: Store, committer: GroupCommitter[Command, Outcome]) -> None:
        self._store = store
        self._committer = committer

    async def step(self) -> bool:
        """Sweeps the accounts that are longest overdue; True when there may be more."""
        account_ids = await self._store.due_accounts(ACCOUNTS_MAX)
        results = await self._committer.submit_many([Sweep(account_id) for account_id in account_ids])
        for result in results:
            if isinstance(result, Exception):
                raise result
        return len(account_ids) == ACCOUNTS_MAX
