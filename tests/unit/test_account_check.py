"""An account's history is added up, and whatever does not add up is named."""

from punchcard.wallet.v1 import wallet_pb2
from punchcard.wallet.v1.wallet_pb2 import Transaction
from sandbox.account_check import problems, total

WELCOME = Transaction(kind=wallet_pb2.TRANSACTION_KIND_GRANT, actor="@wallet", balance_change=10)
GRANT = Transaction(kind=wallet_pb2.TRANSACTION_KIND_GRANT, actor="operator", balance_change=3)
OPEN = Transaction(kind=wallet_pb2.TRANSACTION_KIND_OPEN, actor="alice")


def reserve(reservation_id: str) -> Transaction:
    return Transaction(kind=wallet_pb2.TRANSACTION_KIND_RESERVE, reservation_id=reservation_id, held_change=1)


def commit(reservation_id: str) -> Transaction:
    kind = wallet_pb2.TRANSACTION_KIND_COMMIT
    return Transaction(kind=kind, reservation_id=reservation_id, balance_change=-1, held_change=-1)


def release(reservation_id: str) -> Transaction:
    return Transaction(kind=wallet_pb2.TRANSACTION_KIND_RELEASE, reservation_id=reservation_id, held_change=-1)


def refund(reservation_id: str) -> Transaction:
    return Transaction(kind=wallet_pb2.TRANSACTION_KIND_REFUND, reservation_id=reservation_id, balance_change=1)


HISTORY = [OPEN, WELCOME, GRANT, reserve("a"), reserve("b"), reserve("c"), commit("a"), release("b"), commit("c")]


def test_a_history_is_added_up_by_what_happened() -> None:
    """Balance = welcome + granted - committed + refunded, whatever the order of the rows."""
    for rows in ([*HISTORY, refund("c")], [*HISTORY, refund("c")][::-1]):
        totals = total(rows)

        assert (totals.welcome, totals.granted, totals.committed, totals.refunded) == (10, 3, 2, 1)
        assert totals.balance == 12
        assert totals.open_reservations == set()
        assert problems(totals, wallet_pb2.Balance(balance=12, available=12), charged=2) == []


def test_an_open_reservation_is_named() -> None:
    """A hold that nobody ended is a problem, with its id."""
    (problem,) = problems(total([*HISTORY, reserve("d")]), wallet_pb2.Balance(balance=11, held=1), charged=2)

    assert "1 tokens are still held" in problem
    assert "open reservations: d" in problem


def test_a_balance_that_differs_is_a_problem() -> None:
    """Both numbers are told."""
    (problem,) = problems(total(HISTORY), wallet_pb2.Balance(balance=12), charged=2)

    assert problem == "the history leaves 11 tokens, the account has 12"


def test_a_charge_that_no_job_owns_up_to_is_a_problem() -> None:
    """What was taken must be what the jobs say."""
    (problem,) = problems(total(HISTORY), wallet_pb2.Balance(balance=11), charged=1)

    assert problem == "2 tokens were taken, the jobs say 1"
