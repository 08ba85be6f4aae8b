"""Between the wallet's messages and its commands: decoding with every broken field named, and encoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from punchcard.wallet.v1 import error_reason_pb2, teams_pb2, wallet_pb2
from services.chassis import errors, journal
from services.chassis.auth import Principal
from services.chassis.fields import Checks
from services.wallet.commands import (
    Amend,
    ChangeAccount,
    Commit,
    Grant,
    OpenAccount,
    Preview,
    Refund,
    Release,
    Reserve,
    Revoke,
)
from services.wallet.errors import AccountNotFound, GrantNotFound, ReservationNotFound
from services.wallet.holdings import PLAIN, Account, Entry, Lot, Reservation, read_pins
from services.wallet.store_rows import entry_of

REFERENCE_CHARS_MAX: Final = 256
PRICE_VERSION_CHARS_MAX: Final = 128
HOLD_SECONDS_MIN: Final = 1
HOLD_SECONDS_MAX: Final = 45 * 24 * 3600
LIFETIME_SECONDS_MIN: Final = 1
LIFETIME_SECONDS_MAX: Final = 10 * 366 * 24 * 3600
PRIORITY_MAX: Final = 100
ADMIN_SCOPE: Final = "wallet.admin"
OPEN_SCOPE: Final = "account.open"

KINDS: Final[Mapping[str, wallet_pb2.TransactionKind.ValueType]] = MappingProxyType(
    {
        "open": wallet_pb2.TRANSACTION_KIND_OPEN,
        "grant": wallet_pb2.TRANSACTION_KIND_GRANT,
        "reserve": wallet_pb2.TRANSACTION_KIND_RESERVE,
        "amend": wallet_pb2.TRANSACTION_KIND_AMEND,
        "commit": wallet_pb2.TRANSACTION_KIND_COMMIT,
        "release": wallet_pb2.TRANSACTION_KIND_RELEASE,
        "expire": wallet_pb2.TRANSACTION_KIND_EXPIRE,
        "refund": wallet_pb2.TRANSACTION_KIND_REFUND,
        "lapse": wallet_pb2.TRANSACTION_KIND_LAPSE,
        "grace": wallet_pb2.TRANSACTION_KIND_GRACE,
        "revoke": wallet_pb2.TRANSACTION_KIND_REVOKE,
        "freeze": wallet_pb2.TRANSACTION_KIND_FREEZE,
        "unfreeze": wallet_pb2.TRANSACTION_KIND_UNFREEZE,
        "close": wallet_pb2.TRANSACTION_KIND_CLOSE,
        "earn": wallet_pb2.TRANSACTION_KIND_EARN,
        "convert": wallet_pb2.TRANSACTION_KIND_CONVERT,
        "team": wallet_pb2.TRANSACTION_KIND_TEAM,
        "member": wallet_pb2.TRANSACTION_KIND_MEMBER,
        "unmember": wallet_pb2.TRANSACTION_KIND_UNMEMBER,
        "give": wallet_pb2.TRANSACTION_KIND_GIVE,
        "receive": wallet_pb2.TRANSACTION_KIND_RECEIVE,
        "offer": wallet_pb2.TRANSACTION_KIND_OFFER,
        "buy": wallet_pb2.TRANSACTION_KIND_BUY,
        "sell": wallet_pb2.TRANSACTION_KIND_SELL,
        "unoffer": wallet_pb2.TRANSACTION_KIND_UNOFFER,
        "limit": wallet_pb2.TRANSACTION_KIND_LIMIT,
    }
)

STATES: Final[Mapping[int, wallet_pb2.ReservationState.ValueType]] = MappingProxyType(
    {
        1: wallet_pb2.RESERVATION_STATE_HELD,
        2: wallet_pb2.RESERVATION_STATE_COMMITTED,
        3: wallet_pb2.RESERVATION_STATE_RELEASED,
        4: wallet_pb2.RESERVATION_STATE_EXPIRED,
    }
)


ACCOUNT_STATES: Final[Mapping[int, wallet_pb2.AccountState.ValueType]] = MappingProxyType(
    {
        1: wallet_pb2.ACCOUNT_STATE_OPEN,
        2: wallet_pb2.ACCOUNT_STATE_FROZEN,
        3: wallet_pb2.ACCOUNT_STATE_CLOSED,
    }
)

ChangeRequest = wallet_pb2.FreezeAccountRequest | wallet_pb2.UnfreezeAccountRequest | wallet_pb2.CloseAccountRequest


def check_account(principal: Principal, account_id: str) -> None:
    """Refuses an account that the caller may not act for, as if there were none."""
    if not principal.may_act_for(account_id):
        raise AccountNotFound(account_id)


def maker(principal: Principal, created_by: str, reservation_id: str) -> str:
    """Whose reservation is meant: the caller's own, or, for an administrator, the one named."""
    if created_by and created_by != principal.subject and not principal.may(ADMIN_SCOPE):
        raise ReservationNotFound(reservation_id)
    return created_by or principal.subject


def open_account_command(request: wallet_pb2.OpenAccountRequest, principal: Principal) -> OpenAccount:
    """Decodes an OpenAccount. Raises `InvalidField` or `AccountNotFound`."""
    checks = Checks()
    account_id = checks.id("account_id", request.account_id)
    checks.done()
    check_account(principal, account_id)
    return OpenAccount(principal.subject, account_id)


def grant_command(request: wallet_pb2.GrantRequest, principal: Principal) -> Grant:
    """Decodes a Grant. Raises `InvalidField` or `AccountNotFound`."""
    checks = Checks()
    lifetime_us = priority = None
    if request.HasField("lifetime"):
        lifetime_us = checks.duration_us("lifetime", request.lifetime, LIFETIME_SECONDS_MIN, LIFETIME_SECONDS_MAX)
    if request.HasField("priority"):
        priority = checks.number("priority", request.priority, 1, PRIORITY_MAX)
    command = Grant(
        principal.subject,
        checks.id("account_id", request.account_id),
        checks.id("grant_id", request.grant_id),
        checks.amount("amount", request.amount),
        checks.text("reference", request.reference, REFERENCE_CHARS_MAX),
        lifetime_us,
        priority,
    )
    checks.done()
    check_account(principal, command.account_id)
    return command


def revoke_command(request: wallet_pb2.RevokeGrantRequest, principal: Principal) -> Revoke:
    """Decodes a RevokeGrant. Raises `InvalidField`, `AccountNotFound` or `GrantNotFound`."""
    checks = Checks()
    command = Revoke(
        principal.subject,
        checks.id("account_id", request.account_id),
        checks.optional_id("created_by", request.created_by) or principal.subject,
        checks.id("grant_id", request.grant_id),
        checks.text("reference", request.reference, REFERENCE_CHARS_MAX),
    )
    checks.done()
    check_account(principal, command.account_id)
    if command.created_by != principal.subject and not principal.may(ADMIN_SCOPE):
        raise GrantNotFound(command.grant_id)
    return command


def preview_command(request: wallet_pb2.PreviewReserveRequest, principal: Principal) -> Preview:
    """Decodes a PreviewReserve. Raises `InvalidField` or `AccountNotFound`."""
    return Preview(reserve_command(request.reserve, principal, "reserve."))


def change_command(request: ChangeRequest, principal: Principal, kind: str) -> ChangeAccount:
    """Decodes a FreezeAccount, UnfreezeAccount or CloseAccount. Raises `InvalidField` or `AccountNotFound`."""
    checks = Checks()
    command = ChangeAccount(
        principal.subject,
        checks.id("account_id", request.account_id),
        checks.id("change_id", request.change_id),
        kind,
        isinstance(request, wallet_pb2.CloseAccountRequest) and request.forfeit_balance,
        checks.text("reference", request.reference, REFERENCE_CHARS_MAX),
    )
    checks.done()
    check_account(principal, command.account_id)
    return command


def reserve_command(request: wallet_pb2.ReserveRequest, principal: Principal, prefix: str = "") -> Reserve:
    """Decodes a Reserve; `prefix` names its place in a batch. Raises `InvalidField` or `AccountNotFound`."""
    checks = Checks(prefix)
    account_id = checks.id("account_id", request.account_id)
    payer_account_id = checks.optional_id("payer_account_id", request.payer_account_id)
    command = Reserve(
        principal.subject,
        account_id,
        payer_account_id or account_id,
        checks.id("reservation_id", request.reservation_id),
        checks.amount("amount", request.amount),
        checks.duration_us("hold_duration", request.hold_duration, HOLD_SECONDS_MIN, HOLD_SECONDS_MAX),
        checks.text("price_version", request.price_version, PRICE_VERSION_CHARS_MAX),
        checks.text("reference", request.reference, REFERENCE_CHARS_MAX),
        principal.may(OPEN_SCOPE),
    )
    checks.done()
    check_account(principal, account_id)
    if payer_account_id:
        check_account(principal, payer_account_id)
    return command


def commit_command(request: wallet_pb2.CommitRequest, principal: Principal, prefix: str = "") -> Commit:
    """Decodes a Commit; `prefix` names its place in a batch. Raises `InvalidField` or `ReservationNotFound`."""
    checks = Checks(prefix)
    reservation_id = checks.id("reservation_id", request.reservation_id)
    amount = checks.amount("amount", request.amount) if request.HasField("amount") else None
    created_by = checks.optional_id("created_by", request.created_by)
    checks.done()
    created_by = maker(principal, created_by, reservation_id)
    return Commit(principal.subject, created_by, reservation_id, amount, request.allow_late)


def refund_command(request: wallet_pb2.RefundRequest, principal: Principal, prefix: str = "") -> Release | Refund:
    """Decodes a Refund: of a hold without a refund_id, of committed tokens with one."""
    checks = Checks(prefix)
    reservation_id = checks.id("reservation_id", request.reservation_id)
    refund_id = checks.optional_id("refund_id", request.refund_id)
    amount = checks.amount("amount", request.amount) if request.HasField("amount") else None
    if amount is not None and not refund_id:
        checks.fail("amount", amount, "goes with a refund_id: a hold is released as a whole (or lowered by Amend)")
    created_by = checks.optional_id("created_by", request.created_by)
    checks.done()
    created_by = maker(principal, created_by, reservation_id)
    if refund_id:
        return Refund(principal.subject, created_by, reservation_id, refund_id, amount, request.grace)
    return Release(principal.subject, created_by, reservation_id, request.grace)


def amend_command(request: wallet_pb2.AmendRequest, principal: Principal, prefix: str = "") -> Amend:
    """Decodes an Amend; `prefix` names its place in a batch. Raises `InvalidField` or `ReservationNotFound`."""
    checks = Checks(prefix)
    reservation_id = checks.id("reservation_id", request.reservation_id)
    amend_id = checks.id("amend_id", request.amend_id)
    amount = checks.amount("amount", request.amount) if request.HasField("amount") else None
    hold_us = None
    if request.HasField("hold_duration"):
        hold_us = checks.duration_us("hold_duration", request.hold_duration, HOLD_SECONDS_MIN, HOLD_SECONDS_MAX)
    if amount is None and hold_us is None:
        checks.fail("amount", "", "an amendment needs an amount, a hold_duration, or both")
    created_by = checks.optional_id("created_by", request.created_by)
    checks.done()
    created_by = maker(principal, created_by, reservation_id)
    return Amend(principal.subject, created_by, reservation_id, amend_id, amount, hold_us)


def settle_command(item: wallet_pb2.SettleItem, principal: Principal, prefix: str) -> Commit | Release | Refund | Amend:
    """Decodes one item of a BatchSettle."""
    match item.WhichOneof("command"):
        case "commit":
            return commit_command(item.commit, principal, f"{prefix}commit.")
        case "refund":
            return refund_command(item.refund, principal, f"{prefix}refund.")
        case "amend":
            return amend_command(item.amend, principal, f"{prefix}amend.")
        case _:
            checks = Checks(prefix)
            checks.fail("command", "", "must be one of commit, refund, amend")
            raise errors.InvalidField(checks.violations)


def timestamp(time_us: int) -> Timestamp:
    """Microseconds since the epoch as a Timestamp."""
    seconds, microseconds = divmod(time_us, 1_000_000)
    return Timestamp(seconds=seconds, nanos=microseconds * 1_000)


def balance_message(account: Account, scale: int) -> wallet_pb2.Balance:
    """What an account has of one asset."""
    return wallet_pb2.Balance(
        balance=account.balance, held=account.held, available=account.balance - account.held, scale=scale
    )


def spending_message(used: int, limit: int | None, resets_at_us: int) -> teams_pb2.Spending:
    """What was spent in a day or month, and what may still be."""
    return teams_pb2.Spending(
        used=used,
        limit=limit,
        remaining=None if limit is None else max(limit - used, 0),
        resets_at=timestamp(resets_at_us),
    )


def account_message(account: Account, scale: int, lots: Sequence[Lot] = ()) -> wallet_pb2.Account:
    """An account."""
    return wallet_pb2.Account(
        account_id=account.account_id,
        tokens=balance_message(account, scale),
        create_time=timestamp(account.create_time_us),
        revision=account.revision,
        state=ACCOUNT_STATES[account.state],
        lots=[lot_message(lot) for lot in lots],
    )


def lot_message(lot: Lot) -> wallet_pb2.Lot:
    """Tokens with a life of their own."""
    return wallet_pb2.Lot(
        lot_id=lot.lot_id,
        grant_id=lot.grant_id,
        remaining=lot.remaining,
        held=lot.held,
        priority=lot.priority,
        expire_time=None if lot.expire_time_us is None else timestamp(lot.expire_time_us),
        grace=bool(lot.grace),
    )


def pin_messages(pins: str) -> list[wallet_pb2.Pin]:
    """What a reservation has of which lot."""
    return [wallet_pb2.Pin(lot_id=lot_id, amount=amount) for lot_id, amount in read_pins(pins) if lot_id != PLAIN]


def reservation_message(reservation: Reservation) -> wallet_pb2.Reservation:
    """A reservation, whole."""
    return wallet_pb2.Reservation(
        reservation_id=reservation.reservation_id,
        created_by=reservation.created_by,
        account_id=reservation.account_id,
        payer_account_id=reservation.payer_account_id,
        state=STATES[reservation.state],
        reserved=reservation.reserved,
        committed=reservation.committed,
        released=reservation.released,
        expired=reservation.expired,
        refunded=reservation.refunded,
        expire_time=timestamp(reservation.expire_time_us),
        create_time=timestamp(reservation.create_time_us),
        price_version=reservation.price_version,
        reference=reservation.reference,
        revision=reservation.revision,
        pins=pin_messages(reservation.pins) if reservation.pins else None,
    )


def transaction_message(row: journal.Row) -> wallet_pb2.Transaction:
    """One row of an account's history."""
    entry = entry_of(row)
    return wallet_pb2.Transaction(
        revision=row.revision,
        kind=KINDS[row.kind],
        time=timestamp(row.time_us),
        balance_change=entry.balance_change,
        held_change=entry.held_change,
        balance=entry.balance,
        held=entry.held,
        counterparty=entry.counterparty,
        actor=entry.actor,
        reservation_id=entry.reservation_id,
        created_by=entry.created_by,
        key=entry.key,
        reference=entry.facts.get("reference", ""),
        lot_id=lot_id_of(row.revision, entry),
        peer_account_id=entry.facts.get("peer", ""),
        offer_id=offer_id_of(entry),
    )


def balance_at_message(row: journal.Row, scale: int) -> wallet_pb2.GetBalanceAtResponse:
    """What an account had after one row of its history."""
    entry = entry_of(row)
    balance = wallet_pb2.Balance(
        balance=entry.balance, held=entry.held, available=entry.balance - entry.held, scale=scale
    )
    return wallet_pb2.GetBalanceAtResponse(balance=balance, revision=row.revision, time=timestamp(row.time_us))


def offer_id_of(entry: Entry) -> str:
    """The offer that an entry made, ended or sold of; empty when none."""
    offer_id: str = entry.key if entry.kind in {"offer", "unoffer"} else entry.facts.get("offer", "")
    return offer_id


def lot_id_of(revision: int, entry: Entry) -> int:
    """The lot that an entry made or ended; 0 when none."""
    facts = entry.facts
    if entry.kind == "lapse":
        lot_id: int = facts["lot"]
        return lot_id
    if entry.kind == "revoke" and facts.get("ended"):
        first: int = facts["ended"][0]
        return first
    makes_a_lot = entry.kind == "grace" or (entry.kind == "grant" and ("lifetime_us" in facts or "priority" in facts))
    return revision if makes_a_lot else 0


def refusal_message(outcome: errors.Outcome) -> wallet_pb2.Refusal:
    """What a single call would have given as its status, for one item of a batch."""
    return wallet_pb2.Refusal(
        code=outcome.code.value[0],
        reason=error_reason_pb2.ErrorReason.Value(f"ERROR_REASON_{outcome.reason}"),
        message=outcome.message,
        metadata=outcome.metadata,
    )
