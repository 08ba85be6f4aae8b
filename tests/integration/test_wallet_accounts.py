"""Lots, previews, lists, account states and past balances over gRPC: what callers get, on both databases."""

import asyncio
import time
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from punchcard.wallet.v1 import wallet_pb2
from tests.integration.test_wallet_api import reserve
from tests.tokens import bearer
from tests.wallets import EVERY_SCOPE, WalletClient, refused

ADMIN = bearer("root", f"{EVERY_SCOPE} wallet.admin", audience="punchcard.wallet")
HOUR = Duration(seconds=3600)


def grant(key: str, amount: int, **changes: Any) -> wallet_pb2.GrantRequest:
    """A Grant to alice."""
    return wallet_pb2.GrantRequest(account_id="alice", grant_id=key, amount=amount, **changes)


async def account(wallet: WalletClient) -> wallet_pb2.Account:
    """Alice's account."""
    request = wallet_pb2.GetAccountRequest(account_id="alice")
    found: wallet_pb2.Account = (await wallet.call("GetAccount", request)).account
    return found


@pytest.fixture
async def alice(wallet: WalletClient) -> WalletClient:
    """A wallet in which alice has 10 tokens without a lot, and 5 promotional ones for an hour."""
    await wallet.call("OpenAccount", wallet_pb2.OpenAccountRequest(account_id="alice"))
    await wallet.call("Grant", grant("promo", 5, lifetime=HOUR, priority=10))
    return wallet


async def test_a_grant_with_a_life_is_shown_as_a_lot(alice: WalletClient) -> None:
    """With what is left, what is held, and when it ends; the history names the lot."""
    (lot,) = (await account(alice)).lots
    assert (lot.grant_id, lot.remaining, lot.held, lot.priority, lot.grace) == ("promo", 5, 0, 10, False)
    assert 3500 < lot.expire_time.seconds - time.time() <= 3600

    held = (await alice.call("Reserve", reserve(amount=7))).reservation
    assert [(pin.lot_id, pin.amount) for pin in held.pins] == [(lot.lot_id, 5)]
    assert (await account(alice)).lots[0].held == 5

    history = await alice.call("ListTransactions", wallet_pb2.ListTransactionsRequest(account_id="alice"))
    granted = [row for row in history.transactions if row.key == "promo"]
    assert [(row.kind, row.lot_id) for row in granted] == [(wallet_pb2.TRANSACTION_KIND_GRANT, lot.lot_id)]


async def test_a_grant_that_is_repeated_with_another_life_is_refused(alice: WalletClient) -> None:
    """The duration is compared as it was sent, whenever the repeat comes."""
    assert (await alice.call("Grant", grant("promo", 5, lifetime=HOUR, priority=10))).replayed

    found = await refused(alice.call("Grant", grant("promo", 5, lifetime=Duration(seconds=60), priority=10)))
    assert found == (
        "ALREADY_EXISTS",
        "IDEMPOTENCY_MISMATCH",
        {"field": "lifetime", "stored": "3600.0s", "received": "60.0s"},
    )


async def test_a_preview_is_no_hold(alice: WalletClient) -> None:
    """It says from which lots, or why not, and nothing is held."""
    before = await account(alice)

    seen = await alice.call("PreviewReserve", wallet_pb2.PreviewReserveRequest(reserve=reserve(amount=7)))

    assert [(lot.grant_id, lot.held) for lot in seen.lots] == [("promo", 5)]
    assert [pin.amount for pin in seen.pins] == [5]
    assert (seen.balance.available, seen.balance.held, seen.replayed) == (8, 7, False)
    too_much = wallet_pb2.PreviewReserveRequest(reserve=reserve(amount=16))
    assert (await refused(alice.call("PreviewReserve", too_much)))[1] == "INSUFFICIENT_FUNDS"
    bad = wallet_pb2.PreviewReserveRequest(reserve=reserve(amount=0))
    assert (await refused(alice.call("PreviewReserve", bad)))[2] == {"field": "reserve.amount"}
    assert await account(alice) == before


async def test_a_revoked_grant_gives_back_what_is_left_of_it(alice: WalletClient) -> None:
    """Once, and only by whoever made it."""
    await alice.call("Reserve", reserve(amount=2))
    request = wallet_pb2.RevokeGrantRequest(account_id="alice", grant_id="promo", reference="fraud")

    others = bearer("eve", EVERY_SCOPE, audience="punchcard.wallet")
    assert (await refused(alice.call("RevokeGrant", request, others)))[:2] == ("NOT_FOUND", "GRANT_NOT_FOUND")
    first = await alice.call("RevokeGrant", request)
    again = await alice.call("RevokeGrant", request)

    assert (first.revoked, first.replayed, again.revoked, again.replayed) == (3, False, 3, True)
    assert await alice.balance("alice") == (12, 2)
    by_admin = wallet_pb2.RevokeGrantRequest(account_id="alice", grant_id="promo", created_by="batcher")
    assert (await alice.call("RevokeGrant", by_admin, ADMIN)).replayed


async def test_open_reservations_are_listed_in_the_order_in_which_they_end(alice: WalletClient) -> None:
    """In pages, without those that have ended; a token of another account is refused."""
    for number in range(7):
        await alice.call("Reserve", reserve(f"r{number}", 1, hold_duration=Duration(seconds=600 - 60 * number)))
    await alice.call("Commit", wallet_pb2.CommitRequest(reservation_id="r3"))

    listed, token = [], ""
    while True:
        request = wallet_pb2.ListReservationsRequest(account_id="alice", page_size=2, page_token=token)
        page = await alice.call("ListReservations", request)
        listed += [reservation.reservation_id for reservation in page.reservations]
        token = page.next_page_token
        if not token:
            break
        bobs = wallet_pb2.ListReservationsRequest(account_id="bob", page_token=token)
        assert (await refused(alice.call("ListReservations", bobs)))[2] == {"field": "page_token"}

    assert listed == ["r6", "r5", "r4", "r2", "r1", "r0"]


async def test_a_frozen_account_holds_nothing_more_and_a_closed_one_is_over(alice: WalletClient) -> None:
    """Each change once per key; open reservations end as they would have."""
    await alice.call("Reserve", reserve(amount=2))
    freeze = wallet_pb2.FreezeAccountRequest(account_id="alice", change_id="c1", reference="dispute")
    assert (await alice.call("FreezeAccount", freeze, ADMIN)).account.state == wallet_pb2.ACCOUNT_STATE_FROZEN
    assert await refused(alice.call("Reserve", reserve("job-2"))) == (
        "FAILED_PRECONDITION", "ACCOUNT_FROZEN", {"account_id": "alice"},
    )  # fmt: skip
    await alice.call("Commit", wallet_pb2.CommitRequest(reservation_id="job-1"))

    unfreeze = wallet_pb2.UnfreezeAccountRequest(account_id="alice", change_id="c2")
    await alice.call("UnfreezeAccount", unfreeze, ADMIN)
    assert (await alice.call("FreezeAccount", freeze, ADMIN)).replayed
    assert (await account(alice)).state == wallet_pb2.ACCOUNT_STATE_OPEN

    close = wallet_pb2.CloseAccountRequest(account_id="alice", change_id="c3")
    assert (await refused(alice.call("CloseAccount", close, ADMIN)))[1:] == (
        "ACCOUNT_NOT_EMPTY", {"account_id": "alice", "balance": "13", "held": "0", "offered": "0"},
    )  # fmt: skip
    close.forfeit_balance = True
    closed = await alice.call("CloseAccount", close, ADMIN)
    assert (closed.account.state, closed.account.tokens.balance) == (wallet_pb2.ACCOUNT_STATE_CLOSED, 0)
    assert (await refused(alice.call("OpenAccount", wallet_pb2.OpenAccountRequest(account_id="alice"))))[1] == (
        "ACCOUNT_CLOSED"
    )


async def test_a_balance_of_the_past_is_what_the_journal_had_then(alice: WalletClient) -> None:
    """Each instant of the history gives the row that was the last one; before the first there was no account."""
    await alice.call("Reserve", reserve(amount=3))
    await alice.call("Commit", wallet_pb2.CommitRequest(reservation_id="job-1"))
    history = await alice.call("ListTransactions", wallet_pb2.ListTransactionsRequest(account_id="alice"))
    last_at = {row.time.ToMicroseconds(): row for row in reversed(history.transactions)}

    for time_us, row in last_at.items():
        request = wallet_pb2.GetBalanceAtRequest(account_id="alice", time=row.time)
        found = await alice.call("GetBalanceAt", request)
        assert (found.balance.balance, found.balance.held, found.revision) == (row.balance, row.held, row.revision)
        assert found.time.ToMicroseconds() == time_us

    before, later = Timestamp(seconds=1), Timestamp()
    later.FromSeconds(int(time.time()) + 3600)
    early = wallet_pb2.GetBalanceAtRequest(account_id="alice", time=before)
    assert (await refused(alice.call("GetBalanceAt", early)))[1] == "ACCOUNT_NOT_FOUND"
    for bad in (wallet_pb2.GetBalanceAtRequest(account_id="alice"), wallet_pb2.GetBalanceAtRequest(time=later)):
        assert (await refused(alice.call("GetBalanceAt", bad)))[1:] == ("INVALID_FIELD", {"field": "time"})


async def test_a_history_is_asked_for_by_kind_period_and_counterparty(alice: WalletClient) -> None:
    """Each filter alone and all together; a broken one is named."""
    await alice.call("Reserve", reserve(amount=3))
    await alice.call("Commit", wallet_pb2.CommitRequest(reservation_id="job-1"))
    whole = (await alice.call("ListTransactions", wallet_pb2.ListTransactionsRequest(account_id="alice"))).transactions
    committed = whole[0]

    async def revisions(**filters: Any) -> list[int]:
        request = wallet_pb2.ListTransactionsRequest(account_id="alice", **filters)
        return [row.revision for row in (await alice.call("ListTransactions", request)).transactions]

    grants = [row.revision for row in whole if row.kind == wallet_pb2.TRANSACTION_KIND_GRANT]
    assert await revisions(kinds=[wallet_pb2.TRANSACTION_KIND_GRANT]) == grants
    assert await revisions(counterparty="@issue") == grants
    assert await revisions(counterparty="@revenue", start_time=committed.time) == [committed.revision]
    assert committed.revision not in await revisions(end_time=committed.time)

    bad: dict[str, Any] = {"kinds": [0], "counterparty": "no one", "end_time": Timestamp(seconds=1)}
    for field, value in bad.items():
        broken = {"account_id": "alice", "start_time": Timestamp(seconds=2), field: value}
        request = wallet_pb2.ListTransactionsRequest(**broken)
        named = "kinds[0]" if field == "kinds" else field
        assert (await refused(alice.call("ListTransactions", request)))[1:] == ("INVALID_FIELD", {"field": named})


async def test_days_say_what_came_and_went_and_what_was_left(alice: WalletClient) -> None:
    """Today is the only day; a period without it has none, and what is no day is refused by its field's name."""
    await alice.call("Reserve", reserve(amount=3))
    await alice.call("Commit", wallet_pb2.CommitRequest(reservation_id="job-1"))
    page = await alice.call("ListDaySummaries", wallet_pb2.ListDaySummariesRequest(account_id="alice"))
    found = {
        (part.kind, part.rule): (part.amount_in, part.amount_out, part.transactions)
        for day in page.days
        for part in day.parts
    }
    expected = {
        (wallet_pb2.TRANSACTION_KIND_GRANT, "welcome"): (10, 0, 1),
        (wallet_pb2.TRANSACTION_KIND_GRANT, ""): (5, 0, 1),
        (wallet_pb2.TRANSACTION_KIND_COMMIT, ""): (0, 3, 1),
    }
    assert found.items() >= expected.items()
    assert (page.days[0].balance, page.next_page_token) == ((await account(alice)).tokens.balance, "")

    async def days(**fields: Any) -> list[wallet_pb2.DaySummary]:
        request = wallet_pb2.ListDaySummariesRequest(account_id="alice", **fields)
        return list((await alice.call("ListDaySummaries", request)).days)

    assert await days(first_day=page.days[-1].day, last_day=page.days[0].day) == list(page.days)
    assert await days(last_day="2026-01-01") == []
    assert await days(asset="POINT", last_day="2026-01-01") == []
    for field, value in {"first_day": "2026-02-30", "last_day": "today", "asset": "EURO", "page_token": "x"}.items():
        assert (await refused(days(**{field: value})))[1:] == ("INVALID_FIELD", {"field": field})


async def test_expired_tokens_read_as_gone_before_any_sweep(alice: WalletClient) -> None:
    """A second's promotion: what reads and what a Reserve sees agree, whoever comes first after its end."""
    await alice.call("Grant", grant("flash", 100, lifetime=Duration(seconds=1), priority=1))
    ends = (await account(alice)).lots[0].expire_time.ToMicroseconds() / 1e6

    while True:
        seen = await account(alice)
        if len(seen.lots) == 1:
            break
        assert seen.tokens.available == 115
        await asyncio.sleep(max(0.0, ends - time.time()) / 2)

    assert time.time() >= ends
    assert seen.tokens.available == 15
    assert (await refused(alice.call("Reserve", reserve(amount=16))))[2]["available"] == "15"
