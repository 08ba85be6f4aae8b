"""Why the wallet refuses a command: one class per reason of the proto's ErrorReason, with its numbers.

    Refusal
    ├── AccountNotFound            ├── CommitExceedsReservation
    ├── ReservationNotFound        ├── RefundExceedsCommitted
    ├── GrantNotFound              ├── AmendNotAllowed
    ├── RuleNotFound               ├── AccountClosed
    ├── IdempotencyMismatch        ├── AccountFrozen
    ├── ReservationCommitted       ├── AccountNotEmpty
    ├── ReservationReleased        ├── LotLimit
    ├── ReservationExpired         ├── DailyBonusClaimed, LimitReached, RulesLimit
    └── ReservationNotCommitted    ├── InsufficientPoints, InsufficientFunds
                                   └── BalanceLimit

When several apply, the one that stands first in the proto's enum is raised: that order is the order of these classes.

`str(error)` is a sentence for people, `error.metadata` what programs read.
"""

from datetime import UTC, datetime
from typing import Final

SAID_CHARS_MAX: Final = 128
"""Of a value in a refusal: ids fit, and a thousand refusals stay far below what one message or trailer may hold."""


def rfc3339(time_us: int) -> str:
    """Writes microseconds since the epoch as RFC 3339, in UTC."""
    return datetime.fromtimestamp(time_us / 1_000_000, UTC).isoformat().replace("+00:00", "Z")


class Refusal(Exception):
    """A definite no: the command changed nothing and never will by itself."""

    def __init__(self, message: str, **metadata: object) -> None:
        super().__init__(message)
        self.metadata = {key: str(value) for key, value in metadata.items()}


class AccountNotFound(Refusal):
    """The account was never opened, or the caller may not act for it."""

    def __init__(self, account_id: str) -> None:
        super().__init__(f"there is no account {account_id!r} that you may act for", account_id=account_id)


class ReservationNotFound(Refusal):
    """The reservation was never made, or not by this principal."""

    def __init__(self, reservation_id: str) -> None:
        super().__init__(f"you have made no reservation {reservation_id!r}", reservation_id=reservation_id)


class GrantNotFound(Refusal):
    """The grant was never made to this account, or not by this principal."""

    def __init__(self, grant_id: str) -> None:
        super().__init__(f"you have made no grant {grant_id!r} to this account", grant_id=grant_id)


class RuleNotFound(Refusal):
    """The earning rules of the account have no such activity, or no such achievement that a caller may award."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"there is no {kind} {name!r} that you may report", kind=kind, name=name)


class IdempotencyMismatch(Refusal):
    """The key was used before with other content."""

    def __init__(self, field: str, stored: object, received: object) -> None:
        stored, received = _said(stored), _said(received)
        super().__init__(
            f"this key was used before with {field} {stored}, not {received}",
            field=field,
            stored=stored,
            received=received,
        )


class ReservationCommitted(Refusal):
    """The hold was taken, so that it can be neither released nor amended."""

    def __init__(self, reservation_id: str, committed: int) -> None:
        super().__init__(
            f"reservation {reservation_id!r} was committed with {committed}; return tokens with a refund_id",
            reservation_id=reservation_id,
            committed=committed,
        )


class ReservationReleased(Refusal):
    """The hold was given back, or blocked before it was made."""

    def __init__(self, reservation_id: str, released: int) -> None:
        super().__init__(
            f"reservation {reservation_id!r} was released", reservation_id=reservation_id, released=released
        )


class ReservationExpired(Refusal):
    """The hold's time passed."""

    def __init__(self, reservation_id: str, expired: int, expired_at_us: int) -> None:
        expired_at = rfc3339(expired_at_us)
        super().__init__(
            f"reservation {reservation_id!r} expired at {expired_at}",
            reservation_id=reservation_id,
            expired=expired,
            expired_at=expired_at,
        )


class ReservationNotCommitted(Refusal):
    """Tokens that are still held can't be refunded, only released."""

    def __init__(self, reservation_id: str, reserved: int) -> None:
        super().__init__(
            f"reservation {reservation_id!r} is still held; release it by a Refund without refund_id",
            reservation_id=reservation_id,
            reserved=reserved,
        )


class CommitExceedsReservation(Refusal):
    """More was asked for than is held."""

    def __init__(self, reservation_id: str, requested: int, reserved: int) -> None:
        super().__init__(
            f"reservation {reservation_id!r} holds {reserved}, so that {requested} can't be committed",
            reservation_id=reservation_id,
            requested=requested,
            reserved=reserved,
        )


class RefundExceedsCommitted(Refusal):
    """All refunds together would return more than was committed."""

    def __init__(self, reservation_id: str, requested: int, committed: int, refunded: int) -> None:
        super().__init__(
            f"reservation {reservation_id!r} committed {committed} of which {refunded} were refunded: "
            f"{requested} more is too much",
            reservation_id=reservation_id,
            requested=requested,
            committed=committed,
            refunded=refunded,
        )


class AmendNotAllowed(Refusal):
    """An amendment may only lower the amount and move the expiry later."""

    def __init__(self, reservation_id: str, field: str, requested: object, current: object) -> None:
        rule = "only be lowered" if field == "amount" else "only end later"
        super().__init__(
            f"{field} {requested} of reservation {reservation_id!r}: a hold may {rule} (now {current})",
            reservation_id=reservation_id,
            field=field,
            requested=requested,
            current=current,
        )


class AccountClosed(Refusal):
    """The account is over, for ever."""

    def __init__(self, account_id: str) -> None:
        super().__init__(f"account {account_id!r} was closed", account_id=account_id)


class AccountFrozen(Refusal):
    """Nothing more can be held of the account, or taken late."""

    def __init__(self, account_id: str) -> None:
        super().__init__(f"account {account_id!r} is frozen: nothing more can be held", account_id=account_id)


class AccountNotEmpty(Refusal):
    """An account is closed only when nothing of it is held, and nothing is left or may be taken."""

    def __init__(self, account_id: str, balance: int, held: int, offered: int) -> None:
        remedy = "set forfeit_balance to take what is left"
        if held or offered:
            remedy = "wait until its open reservations have ended" if held else "cancel its open offers"
        super().__init__(
            f"account {account_id!r} has {balance} of which {held} are held, and {offered} in offers, so that it "
            f"can't be closed: {remedy}",
            account_id=account_id,
            balance=balance,
            held=held,
            offered=offered,
        )


class LotLimit(Refusal):
    """The account has as many lots as grants may give it."""

    def __init__(self, account_id: str, limit: int) -> None:
        super().__init__(
            f"account {account_id!r} has {limit} lots with tokens left: grant without lifetime and priority",
            account_id=account_id,
            limit=limit,
        )


class DailyBonusClaimed(Refusal):
    """The account has had today's bonus, by another key."""

    def __init__(self, account_id: str, resets_at_us: int) -> None:
        resets_at = rfc3339(resets_at_us)
        super().__init__(
            f"account {account_id!r} has claimed today's bonus; the next one from {resets_at}",
            account_id=account_id,
            resets_at=resets_at,
        )


class LimitReached(Refusal):
    """So much may not be done in one day, or month."""

    def __init__(self, account_id: str, limited: str, requested: int, used: int, limit: int, resets_at_us: int) -> None:
        resets_at = rfc3339(resets_at_us)
        super().__init__(
            f"account {account_id!r} has used {used} of {limit} ({limited}), so that {requested} more are too many "
            f"before {resets_at}",
            account_id=account_id,
            limited=limited,
            requested=requested,
            used=used,
            limit=limit,
            resets_at=resets_at,
        )


class RulesLimit(Refusal):
    """So many versions of the earning rules were put as may ever be."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} versions of the earning rules were put, and no more may be", limit=limit)


class InsufficientPoints(Refusal):
    """The account does not have that many points."""

    def __init__(self, account_id: str, requested: int, available: int) -> None:
        super().__init__(
            f"account {account_id!r} has {available} points, and {requested} are needed",
            account_id=account_id,
            requested=requested,
            available=available,
        )


class InsufficientFunds(Refusal):
    """The account does not have that much available."""

    def __init__(self, account_id: str, requested: int, available: int, held: int) -> None:
        super().__init__(
            f"account {account_id!r} has {available} available ({held} held), and {requested} were asked for",
            account_id=account_id,
            requested=requested,
            available=available,
            held=held,
        )


class BalanceLimit(Refusal):
    """The balance would grow past what an account may have."""

    def __init__(self, account_id: str, requested: int, balance: int, limit: int) -> None:
        super().__init__(
            f"account {account_id!r} has {balance}, and {requested} more would pass the limit of {limit}",
            account_id=account_id,
            requested=requested,
            balance=balance,
            limit=limit,
        )


def _said(value: object) -> str:
    if value is None:
        return "(absent)"
    said = str(value)
    return said if len(said) <= SAID_CHARS_MAX else f"{said[: SAID_CHARS_MAX - 1]}…"
