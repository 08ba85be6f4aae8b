"""Errors and their one way to the wire.

    ServiceError
    ├── TokenMissing, TokenInvalid, TokenExpired     who are you?
    ├── ScopeMissing                                 you may not
    ├── InvalidField                                 that is not a request
    ├── ServerBusy, ServerDraining                   not here, not now: nothing was done
    ├── StoreUnavailable, TimedOut                   it may have been done: retry with the same key
    ├── StoreDamaged                                 no retry helps: an operator must restore the database
    └── Internal                                     our mistake, hidden behind an id

A service adds a table of its own exceptions, which need not know this module: `str(error)` is the sentence that the
client reads and `error.metadata` the numbers in it. What stands in no table is masked.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, NamedTuple

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

VIOLATION_VALUE_MAX: Final = 64
RETRY_SOON_SECONDS: Final = 0.2
RETRY_LATER_SECONDS: Final = 1.0


class Violation(NamedTuple):
    """A field that breaks its rule; `value` is cut to 64 characters."""

    field: str
    value: str
    problem: str


class ServiceError(Exception):
    """What the chassis itself refuses. `str(error)` and `metadata` reach the client."""

    def __init__(self, message: str, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.metadata: dict[str, str] = dict(metadata or {})


class TokenMissing(ServiceError):
    """The call carries no bearer token."""

    def __init__(self) -> None:
        super().__init__("the call carries no bearer token: send the metadata 'authorization: Bearer <token>'")


class TokenInvalid(ServiceError):
    """The token is malformed, signed by an unknown key, or meant for another service."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"the bearer token is not valid: {problem}", {"problem": problem})


class TokenExpired(ServiceError):
    """The token was valid and is no longer; `expire_time_seconds` counts from the epoch."""

    def __init__(self, expire_time_seconds: float) -> None:
        expired_at = datetime.fromtimestamp(expire_time_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        super().__init__(f"the bearer token expired at {expired_at}", {"expired_at": expired_at})


class ScopeMissing(ServiceError):
    """The token lacks the scope of the method; an empty scope means that no token has it."""

    def __init__(self, method: str, scope: str) -> None:
        need = f"needs the scope {scope}" if scope else "is open to nobody"
        super().__init__(f"{method} {need}", {"method": method, "scope": scope})


class InvalidField(ServiceError):
    """At least one field breaks its rule; all that do are told at once."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        first = violations[0]
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        super().__init__(f"{first.field}: {first.problem}{more}", {"field": first.field})
        self.violations: tuple[Violation, ...] = tuple(violations)


class ServerBusy(ServiceError):
    """Too many calls at once; nothing was done."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"too many calls at once: the limit is {limit}", {"limit": str(limit)})


class StoreUnavailable(ServiceError):
    """The database or object store does not answer. `detail` may name hosts and goes to the log alone."""

    def __init__(self, detail: str = "") -> None:
        super().__init__("the store does not answer: retry with the same key")
        self.detail = detail


class StoreDamaged(ServiceError):
    """The database can't be read, or contradicts itself. `detail` says how, and goes to the log alone."""

    def __init__(self, detail: str) -> None:
        super().__init__("the database is damaged: an operator must restore it, no retry helps")
        self.detail = detail


class ServerDraining(ServiceError):
    """The server is stopping."""

    def __init__(self) -> None:
        super().__init__("the server is stopping: retry with the same key")


class TimedOut(ServiceError):
    """The call ran into the server's own limit; what it began may be done all the same."""

    def __init__(self, timeout_seconds: float) -> None:
        super().__init__(
            f"the call took longer than {timeout_seconds:g} seconds: retry with the same key",
            {"timeout_seconds": f"{timeout_seconds:g}"},
        )


class Internal(ServiceError):
    """Stands in for an exception that nobody foresaw; the log has the cause under `error_id`."""

    def __init__(self, error_id: str) -> None:
        super().__init__(f"our mistake: the server's log has the cause under {error_id}", {"error_id": error_id})
        self.error_id = error_id


@dataclass(frozen=True, slots=True)
class Row:
    """How one class of errors looks on the wire; `retry_seconds` is the pause that RetryInfo asks for."""

    code: grpc.StatusCode
    reason: str
    retry_seconds: float | None = None


CHASSIS_ROWS: Final[Mapping[type[Exception], Row]] = {
    TokenMissing: Row(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MISSING"),
    TokenInvalid: Row(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID"),
    TokenExpired: Row(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED"),
    ScopeMissing: Row(grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING"),
    InvalidField: Row(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
    ServerBusy: Row(grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER_BUSY", RETRY_SOON_SECONDS),
    StoreUnavailable: Row(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE", RETRY_LATER_SECONDS),
    StoreDamaged: Row(grpc.StatusCode.DATA_LOSS, "STORE_DAMAGED"),
    ServerDraining: Row(grpc.StatusCode.UNAVAILABLE, "SERVER_DRAINING", RETRY_SOON_SECONDS),
    TimedOut: Row(grpc.StatusCode.DEADLINE_EXCEEDED, "TIMED_OUT"),
    Internal: Row(grpc.StatusCode.INTERNAL, "INTERNAL"),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """An error, judged: all that the client will learn of it."""

    code: grpc.StatusCode
    reason: str
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: Sequence[Violation] = ()
    retry_seconds: float | None = None


class ErrorTable:
    """The errors of one service: which status and which ErrorInfo.reason each class of exceptions becomes.

    `domain` is ErrorInfo.domain ("wallet.punchcard"). A subclass takes the row of its nearest ancestor.
    """

    def __init__(self, domain: str, rows: Mapping[type[Exception], Row]) -> None:
        self.domain = domain
        self.rows: Mapping[type[Exception], Row] = {**CHASSIS_ROWS, **rows}

    def outcome(self, error: BaseException) -> Outcome:
        """What the client may know of `error`: of one that is in no table, only a fresh id."""
        row = next((self.rows[kind] for kind in type(error).__mro__ if kind in self.rows), None)
        if row is None:
            return self.outcome(Internal(secrets.token_hex(6)))
        return Outcome(
            code=row.code,
            reason=row.reason,
            message=str(error),
            metadata=getattr(error, "metadata", {}),
            violations=getattr(error, "violations", ()),
            retry_seconds=row.retry_seconds,
        )

    def status(self, outcome: Outcome) -> status_pb2.Status:
        """The google.rpc.Status: always an ErrorInfo, a BadRequest for fields, a RetryInfo where a retry helps."""
        details = [_info(outcome, self.domain)]
        if outcome.violations:
            details.append(_bad_request(outcome.violations))
        if outcome.retry_seconds is not None:
            details.append(_retry_info(outcome.retry_seconds))
        return status_pb2.Status(code=outcome.code.value[0], message=outcome.message, details=details)


def _packed(
    message: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _info(outcome: Outcome, domain: str) -> any_pb2.Any:
    return _packed(error_details_pb2.ErrorInfo(reason=outcome.reason, domain=domain, metadata=outcome.metadata))


def _bad_request(violations: Sequence[Violation]) -> any_pb2.Any:
    request = error_details_pb2.BadRequest()
    for violation in violations:
        description = f"{violation.problem}, got {violation.value!r}"
        request.field_violations.add(field=violation.field, description=description)
    return _packed(request)


def _retry_info(retry_seconds: float) -> any_pb2.Any:
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromNanoseconds(int(retry_seconds * 1e9))
    return _packed(info)
