"""What is declared of accounts that are frozen or over, held against every row. Written from the declarations."""

from collections import Counter
from collections.abc import Iterator

from services.wallet.holdings import TOKEN, Entry

SPENDS = frozenset({"reserve", "give", "offer", "buy"})
"""What takes available tokens or points of an account: nothing of a frozen one."""


class AccountPromises:
    """Watches the accounts of one world."""

    def __init__(self) -> None:
        self._opened: set[str] = set()
        self._frozen: set[str] = set()
        self._closed: set[str] = set()
        self._held: Counter[str] = Counter()
        self._payers: dict[str, str] = {}

    def of_row(self, entry: Entry) -> Iterator[str]:
        """What one row breaks."""
        account_id, kind = entry.account_id, entry.kind
        if kind == "open":
            if account_id in self._opened:
                yield f"{account_id} was opened twice"
            self._opened.add(account_id)
        if account_id in self._closed and (entry.balance_change or entry.held_change):
            yield f"a {kind} moved something of {account_id}, which is over"
        late = kind == "commit" and not entry.held_change and entry.balance_change < 0
        if account_id in self._frozen and (
            late or (kind in SPENDS and (entry.balance_change < 0 or entry.held_change))
        ):
            yield f"a {kind} took something of {account_id}, which is frozen"
        if entry.asset == TOKEN:
            self._held[account_id] += entry.held_change
        if kind == "reserve":
            self._payers[entry.reservation_id] = account_id
        yield from self._of_change(entry)

    def _of_change(self, entry: Entry) -> Iterator[str]:
        if entry.kind == "freeze":
            self._frozen.add(entry.account_id)
        elif entry.kind == "unfreeze":
            self._frozen.discard(entry.account_id)
        elif entry.kind == "close":
            self._frozen.discard(entry.account_id)
            self._closed.add(entry.account_id)
            if self._held[entry.account_id] or entry.balance:
                yield f"{entry.account_id} is over, and {entry.balance} are left of it"

    def is_over(self, reservation_id: str) -> bool:
        """Whether who paid for a reservation has no account any more."""
        return self._payers.get(reservation_id) in self._closed
