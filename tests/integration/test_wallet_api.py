"""The wallet over gRPC: what callers get, on both databases."""

import asyncio
import base64
import contextlib
import io
import json
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from punchcard.wallet.v1 import error_reason_pb2, wallet_pb2
from services.chassis import logs
from tests.tokens import bearer
from tests.wallets import EVERY_SCOPE, WalletClient, refused, wallet_at

HELD = wallet_pb2.RESERVATION_STATE_HELD
COMMITTED = wallet_pb2.RESERVATION_STATE_COMMITTED
RELEASED = wallet_pb2.RESERVATION_STATE_RELEASED


def reserve(key: str = "job-1", amount: int = 5, **changes: Any) -> wallet_pb2.ReserveRequest:
    """A Reserve for alice, for a minute."""
    values: dict[str, Any] = {"account_id": "alice", "reservation_id": key, "amount": amount}
    return wallet_pb2.ReserveRequest(**{**values, "hold_duration": Duration(seconds=60), **changes})


async def test_a_job_is_paid_from_the_welcome_bonus(wallet: WalletClient) -> None:
    """Reserve opens the account with its bonus; a smaller Commit gives the rest back; a refund returns a part."""
    held = await wallet.call("Reserve", reserve())
    assert (held.reservation.state, held.balance.available, held.balance.held) == (HELD, 5, 5)

    taken = await wallet.call("Commit", wallet_pb2.CommitRequest(reservation_id="job-1", amount=3))
    assert (taken.reservation.state, taken.reservation.committed, taken.reservation.released) == (COMMITTED, 3, 2)

    refund = wallet_pb2.RefundRequest(reservation_id="job-1", refund_id="f1", amount=1)
    assert (await wallet.call("Refund", refund)).balance.balance == 8
    assert (await wallet.call("Refund", refund)).replayed
    assert await wallet.balance("alice") == (8, 0)


async def test_repeats_are_answered_with_the_thing_as_it_is_now(wallet: WalletClient) -> None:
    """A Reserve that is repeated after its Commit says COMMITTED: the caller must not go on."""
    first = await wallet.call("Reserve", reserve())
    await wallet.call("Commit", wallet_pb2.CommitRequest(reservation_id="job-1"))
    again = await wallet.call("Reserve", reserve())

    assert (first.replayed, again.replayed, again.reservation.state) == (False, True, COMMITTED)
    assert await refused(wallet.call("Reserve", reserve(amount=6))) == (
        "ALREADY_EXISTS",
        "IDEMPOTENCY_MISMATCH",
        {"field": "amount", "stored": "5", "received": "6"},
    )


async def test_a_refusal_of_money_has_the_numbers(wallet: WalletClient) -> None:
    """FAILED_PRECONDITION with requested, available and held; nothing was opened."""
    assert await refused(wallet.call("Reserve", reserve(amount=11))) == (
        "FAILED_PRECONDITION",
        "INSUFFICIENT_FUNDS",
        {"account_id": "alice", "requested": "11", "available": "10", "held": "0"},
    )
    code, reason, _ = await refused(wallet.call("GetAccount", wallet_pb2.GetAccountRequest(account_id="alice")))
    assert (code, reason) == ("NOT_FOUND", "ACCOUNT_NOT_FOUND")


FORGED = [base64.urlsafe_b64encode(f"alice {revision}".encode()).decode() for revision in (10**30, 10**9)]
"""Places in alice's history with a revision that no database can hold, and one that it does not have."""

BAD_REQUESTS: list[tuple[str, Any, str]] = [
    ("Reserve", reserve(amount=-1), "amount"),
    ("Reserve", reserve(amount=0), "amount"),
    ("Reserve", reserve(amount=10**15 + 1), "amount"),
    ("Reserve", reserve(amount=2**63 - 1), "amount"),
    ("Reserve", reserve(key="@mine"), "reservation_id"),
    ("Reserve", reserve(key=""), "reservation_id"),
    ("Reserve", reserve(key="x" * 129), "reservation_id"),
    ("Reserve", reserve(account_id="@issue"), "account_id"),
    ("Reserve", reserve(hold_duration=Duration(seconds=0)), "hold_duration"),
    ("Reserve", reserve(hold_duration=Duration(seconds=46 * 86400)), "hold_duration"),
    ("Reserve", reserve(reference="a\0b"), "reference"),
    ("Grant", wallet_pb2.GrantRequest(account_id="alice", grant_id="g", amount=-5), "amount"),
    ("Commit", wallet_pb2.CommitRequest(reservation_id="job-1", amount=0), "amount"),
    ("Refund", wallet_pb2.RefundRequest(reservation_id="job-1", amount=1), "amount"),
    ("Amend", wallet_pb2.AmendRequest(reservation_id="job-1", amend_id="a"), "amount"),
    ("BatchReserve", wallet_pb2.BatchReserveRequest(), "items"),
    ("BatchReserve", wallet_pb2.BatchReserveRequest(items=[reserve(f"r{n}", 1) for n in range(1001)]), "items"),
    ("ListTransactions", wallet_pb2.ListTransactionsRequest(account_id="alice", page_size=-1), "page_size"),
    ("ListTransactions", wallet_pb2.ListTransactionsRequest(account_id="alice", page_token="rubbish"), "page_token"),
    ("ListTransactions", wallet_pb2.ListTransactionsRequest(account_id="alice", page_token=FORGED[0]), "page_token"),
    ("ListTransactions", wallet_pb2.ListTransactionsRequest(account_id="alice", page_token=FORGED[1]), "page_token"),
]


@pytest.mark.parametrize(("method", "request_", "field"), BAD_REQUESTS)
async def test_bad_input_names_the_field_and_changes_nothing(
    wallet: WalletClient, method: str, request_: Any, field: str
) -> None:
    """INVALID_ARGUMENT, whatever is wrong, before anything is touched."""
    await wallet.call("OpenAccount", wallet_pb2.OpenAccountRequest(account_id="alice"))

    code, reason, metadata = await refused(wallet.call(method, request_))

    assert (code, reason, metadata["field"]) == ("INVALID_ARGUMENT", "INVALID_FIELD", field)
    assert await wallet.balance("alice") == (10, 0)
    history = await wallet.call("ListTransactions", wallet_pb2.ListTransactionsRequest(account_id="alice"))
    assert len(history.transactions) == 2


def user(**changes: Any) -> Any:
    """The token of alice, a user with every scope but act_for."""
    values: dict[str, Any] = {"scope": "wallet.reserve wallet.read wallet.settle", "audience": "punchcard.wallet"}
    return bearer("alice", **{**values, **changes})


def bob() -> Any:
    """The token of bob, who may not touch alice's account."""
    return bearer("bob", "wallet.reserve", audience="punchcard.wallet")


STRANGERS = [
    pytest.param(tuple, "UNAUTHENTICATED", "TOKEN_MISSING", id="no token"),
    pytest.param(lambda: user(lifetime_seconds=-60), "UNAUTHENTICATED", "TOKEN_EXPIRED", id="an expired token"),
    pytest.param(lambda: user(audience="punchcard.batcher"), "UNAUTHENTICATED", "TOKEN_INVALID", id="for the batcher"),
    pytest.param(lambda: user(scope="wallet.read"), "PERMISSION_DENIED", "SCOPE_MISSING", id="without the scope"),
    pytest.param(bob, "NOT_FOUND", "ACCOUNT_NOT_FOUND", id="another's"),
]


@pytest.mark.parametrize(("metadata", "code", "reason"), STRANGERS)
async def test_strangers_are_refused_and_change_nothing(
    wallet: WalletClient, metadata: Callable[[], Any], code: str, reason: str
) -> None:
    """Who may not, learns nothing but that."""
    await wallet.call("OpenAccount", wallet_pb2.OpenAccountRequest(account_id="alice"))

    found = await refused(wallet.call("Reserve", reserve(), metadata()))

    assert found[:2] == (code, reason)
    assert await wallet.balance("alice") == (10, 0)


async def test_only_its_maker_may_end_a_reservation(wallet: WalletClient) -> None:
    """Alice can't release the hold under the batcher's running job, not even by naming its maker; an admin can."""
    await wallet.call("Reserve", reserve())
    release = wallet_pb2.RefundRequest(reservation_id="job-1", created_by="batcher")

    found = await refused(wallet.call("Refund", release, user()))
    assert found[:2] == ("NOT_FOUND", "RESERVATION_NOT_FOUND")

    # Without naming the maker it is alice's own id, which a release blocks; the batcher's hold is another reservation.
    await wallet.call("Refund", wallet_pb2.RefundRequest(reservation_id="job-1"), user())
    assert await wallet.balance("alice") == (10, 5)

    admin = bearer("root", "wallet.settle wallet.admin", audience="punchcard.wallet")
    assert (await wallet.call("Refund", release, admin)).reservation.state == RELEASED


async def test_a_release_that_overtakes_its_reserve_leaves_a_tombstone(wallet: WalletClient) -> None:
    """The late Reserve is refused: the one who released it has long gone on."""
    released = await wallet.call("Refund", wallet_pb2.RefundRequest(reservation_id="job-1"))
    assert (released.reservation.state, released.HasField("balance")) == (RELEASED, False)

    found = await refused(wallet.call("Reserve", reserve()))
    assert found[:2] == ("FAILED_PRECONDITION", "RESERVATION_RELEASED")


async def test_each_item_of_a_batch_has_its_own_result(wallet: WalletClient) -> None:
    """Refusals stand in their places and do not touch their neighbours."""
    items = [
        reserve("a", 4),
        reserve("b", -1),
        reserve("c", 7),
        reserve("a", 4),
        reserve("d", 6),
        reserve("e", 1, account_id="@x"),
    ]
    results = (await wallet.call("BatchReserve", wallet_pb2.BatchReserveRequest(items=items))).results

    reasons = [error_reason_pb2.ErrorReason.Name(result.refusal.reason)[len("ERROR_REASON_") :] for result in results]
    assert reasons == [
        "UNSPECIFIED",
        "INVALID_FIELD",
        "INSUFFICIENT_FUNDS",
        "UNSPECIFIED",
        "UNSPECIFIED",
        "INVALID_FIELD",
    ]
    assert [result.replayed for result in results] == [False, False, False, True, False, False]
    assert results[1].refusal.metadata["field"] == "items[1].amount"
    assert results[2].refusal.metadata["available"] == "6"

    settle = wallet_pb2.BatchSettleRequest(
        items=[
            wallet_pb2.SettleItem(commit=wallet_pb2.CommitRequest(reservation_id="a")),
            wallet_pb2.SettleItem(amend=wallet_pb2.AmendRequest(reservation_id="d", amend_id="1", amount=2)),
            wallet_pb2.SettleItem(refund=wallet_pb2.RefundRequest(reservation_id="a")),
            wallet_pb2.SettleItem(),
        ]
    )
    settled = (await wallet.call("BatchSettle", settle)).results
    assert [(result.state, result.committed, result.released) for result in settled[:2]] == [
        (COMMITTED, 4, 0),
        (HELD, 0, 4),
    ]
    assert settled[2].refusal.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    assert settled[3].refusal.metadata["field"] == "items[3].command"
    assert await wallet.balance("alice") == (6, 2)


async def test_history_comes_in_pages_newest_first(wallet: WalletClient) -> None:
    """The pages together are the whole journal of the account, each row once."""
    for number in range(7):
        await wallet.call("Reserve", reserve(f"r{number}", 1, reference=f"job {number}"))
    pages: list[list[int]] = []
    token = ""
    while not pages or token:
        request = wallet_pb2.ListTransactionsRequest(account_id="alice", page_size=4, page_token=token)
        page = await wallet.call("ListTransactions", request)
        pages.append([transaction.revision for transaction in page.transactions])
        token = page.next_page_token

    assert pages == [[9, 8, 7, 6], [5, 4, 3, 2], [1]]


async def test_a_users_token_acts_for_its_own_account_only(wallet: WalletClient) -> None:
    """Alice reads alice, and bob is as if he did not exist."""
    await wallet.call("OpenAccount", wallet_pb2.OpenAccountRequest(account_id="alice"))
    await wallet.call("OpenAccount", wallet_pb2.OpenAccountRequest(account_id="bob"))

    own = await wallet.call("GetAccount", wallet_pb2.GetAccountRequest(account_id="alice"), user())
    assert own.account.tokens.available == 10
    found = await refused(wallet.call("GetAccount", wallet_pb2.GetAccountRequest(account_id="bob"), user()))
    assert found[:2] == ("NOT_FOUND", "ACCOUNT_NOT_FOUND")


async def test_an_expired_hold_is_swept_by_the_expirer(database_url: str, tmp_path: Path) -> None:
    """Nobody needs to touch the account: its history shows the expiry, and its tokens are free."""
    async with wallet_at(database_url, tmp_path, expiry_interval_seconds=0.05) as (wallet, _):
        await wallet.call("Reserve", reserve(hold_duration=Duration(seconds=1)))
        deadline = time.monotonic() + 20
        kinds: list[int] = []
        while wallet_pb2.TRANSACTION_KIND_EXPIRE not in kinds:
            assert time.monotonic() < deadline, "the expirer did not come"
            request = wallet_pb2.ListTransactionsRequest(account_id="alice")
            kinds = [row.kind for row in (await wallet.call("ListTransactions", request)).transactions]
            await asyncio.sleep(0.05)
        assert await wallet.balance("alice") == (10, 0)


async def test_a_client_that_gives_up_does_not_stop_its_command(wallet: WalletClient) -> None:
    """The answer of a cancelled call is lost, and its key finds what it did."""
    await wallet.call("OpenAccount", wallet_pb2.OpenAccountRequest(account_id="alice"))
    call = wallet.stub.Reserve(reserve(), metadata=wallet.metadata)
    await asyncio.sleep(0)
    call.cancel()
    again = await wallet.call("Reserve", reserve())

    assert again.reservation.state == HELD
    assert await wallet.balance("alice") == (10, 5)


def test_the_scopes_of_the_tests_are_all_but_the_administrators() -> None:
    """Tests run with the least that they need."""
    assert "wallet.admin" not in EVERY_SCOPE


async def test_the_log_has_the_cause_of_an_item_that_was_masked(tmp_path: Path) -> None:
    """A broken item tells its caller an id, and the log tells us what it stands for, once."""
    url = f"sqlite:{tmp_path}/test.db"
    lines = io.StringIO()
    async with wallet_at(url, tmp_path) as (wallet, _):
        await wallet.call("OpenAccount", wallet_pb2.OpenAccountRequest(account_id="alice"))
        with contextlib.closing(sqlite3.connect(f"{tmp_path}/test.db")) as file:
            file.execute("CREATE TRIGGER broken BEFORE INSERT ON reservations BEGIN SELECT RAISE(ABORT, 'broken'); END")
        logs.configure(line_format="json", stream=lines)
        try:
            (result,) = (await wallet.call("BatchReserve", wallet_pb2.BatchReserveRequest(items=[reserve()]))).results
        finally:
            logs.close()

    masked = [line for line in map(json.loads, lines.getvalue().splitlines()) if line["event"] == "masked_error"]
    assert [line["error_id"] for line in masked] == [result.refusal.metadata["error_id"]]
    assert "broken" in masked[0]["exception"]
