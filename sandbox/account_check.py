"""Whether an account's money adds up: its balance against its own history, and no reservation left open."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from punchcard.wallet.v1 import wallet_pb2

WELCOME_ACTOR = "@wallet"


@dataclass
class Totals:
    """What the history of an account says, in the asset's smallest unit."""

    welcome: int = 0
    granted: int = 0
    committed: int = 0
    refunded: int = 0
    open_reservations: set[str] = field(default_factory=set)
    committed_reservations: set[str] = field(default_factory=set)

    @property
    def balance(self) -> int:
        """What must be left."""
        return self.welcome + self.granted - self.committed + self.refunded


def total(transactions: Iterable[wallet_pb2.Transaction]) -> Totals:
    """Adds up a whole history, in any order."""
    totals = Totals()
    reserved: set[str] = set()
    ended: set[str] = set()
    for each in transactions:
        match each.kind:
            case wallet_pb2.TRANSACTION_KIND_GRANT if each.actor == WELCOME_ACTOR:
                totals.welcome += each.balance_change
            case wallet_pb2.TRANSACTION_KIND_GRANT:
                totals.granted += each.balance_change
            case wallet_pb2.TRANSACTION_KIND_RESERVE:
                reserved.add(each.reservation_id)
            case wallet_pb2.TRANSACTION_KIND_COMMIT:
                totals.committed -= each.balance_change
                totals.committed_reservations.add(each.reservation_id)
                ended.add(each.reservation_id)
            case wallet_pb2.TRANSACTION_KIND_REFUND:
                totals.refunded += each.balance_change
            case wallet_pb2.TRANSACTION_KIND_RELEASE | wallet_pb2.TRANSACTION_KIND_EXPIRE:
                ended.add(each.reservation_id)
    totals.open_reservations = reserved - ended
    return totals


def problems(totals: Totals, tokens: wallet_pb2.Balance, charged: int) -> list[str]:
    """What does not add up, each as a sentence. charged: what the jobs' settlements say that they cost together."""
    found = []
    if totals.balance != tokens.balance:
        found.append(f"the history leaves {totals.balance} tokens, the account has {tokens.balance}")
    if totals.committed != charged:
        found.append(f"{totals.committed} tokens were taken, the jobs say {charged}")
    if tokens.held or totals.open_reservations:
        names = ", ".join(sorted(totals.open_reservations)) or "none by name"
        found.append(f"{tokens.held} tokens are still held; open reservations: {names}")
    return found
